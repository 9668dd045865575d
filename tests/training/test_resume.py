"""A run that was killed, or stopped, and gone on with is the run that was left alone: bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import REWARDS, arguments, fit, numbers, rows, same, write_run

from steerkit.errors import SteerkitError
from steerkit.training import SteeringModule, memory
from steerkit.training import module as module_room
from steerkit.training.callbacks import RunCheckpoints, VectorWriter
from steerkit.training.checkpoints import (
    CheckpointFiles,
    newest_checkpoint,
    random_states,
    read_checkpoint,
    set_random_states,
)
from steerkit.training.logs import MetricsFile, read_rows


class Killed(BaseException):
    """As a kill: nothing is saved on the way out."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("whole"))
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert fit("--run_dir", "whole") == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def folder(undisturbed, monkeypatch, tmp_path):
    """A fresh working directory with the undisturbed run in ``whole``."""
    for name in ("model", "whole", "rewards.py", "config.yaml"):
        (tmp_path / name).symlink_to(undisturbed / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(run):
    return [int(row["step"]) for row in rows(run)]


def killed_at(monkeypatch, step, where="sampling", more=()):
    """Let the next run die in this optimiser step (from 1), or in the validation after it."""

    def die(*arguments, **keywords):
        raise Killed

    def in_step(original):
        def wrapped(self, *arguments):
            if self.global_step + 1 == step:
                die()
            return original(self, *arguments)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "on_exception", lambda *_: None)
        patch.setattr(VectorWriter, "on_exception", lambda *_: None)
        if where == "sampling":
            patch.setattr(SteeringModule, "training_step", in_step(SteeringModule.training_step))
        elif where == "validation":
            original = SteeringModule.validation_step
            patch.setattr(
                SteeringModule,
                "validation_step",
                lambda self, *a: die() if self.global_step == step else original(self, *a),
            )
        with pytest.raises(Killed):
            fit("--ckpt_path", "last", *more)


@pytest.mark.parametrize(
    "kills",
    [
        [(1, "sampling")],  # before any checkpoint: from the beginning
        [(4, "sampling"), (8, "sampling")],
        [(4, "validation"), (8, "validation")],  # the validation is made again, and logged once
        [(10, "sampling")],
    ],
    ids=str,
)
def test_killed_and_resumed(folder, monkeypatch, kills):
    for step, where in kills:
        killed_at(monkeypatch, step, where)
    assert fit("--ckpt_path", "last") == 0
    assert same(folder / "whole", folder / "run")
    assert len(list((folder / "run" / "checkpoints").glob("*.ckpt"))) == 3


@pytest.mark.parametrize("every", [3, 4], ids=lambda every: f"validation every {every}")
@pytest.mark.parametrize("step", [6, 7, 8])
def test_killed_around_the_end_of_an_epoch(folder, monkeypatch, step, every):
    """Six steps an epoch, two epochs, a checkpoint at each step."""
    epochs = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "2", "--data.dataset.n", "24", "--vector_every", "1")
    epochs += ("--trainer.val_check_interval", str(every))
    assert fit("--run_dir", "epochs", *epochs) == 0
    killed_at(monkeypatch, step, more=epochs)
    assert fit("--ckpt_path", "last", *epochs) == 0
    assert torch.equal(numbers(folder / "epochs"), numbers(folder / "run"))
    whole, resumed = rows(folder / "epochs"), rows(folder / "run")
    assert len(whole) == 12 + 12 // every
    for row, again in zip(whole, resumed, strict=True):
        # Lightning counts a validation that is made again at an epoch's end to the next epoch.
        remade = row["step"] == "5" and any(key.startswith("val/") and value for key, value in row.items())
        assert row == (again | {"epoch": row["epoch"]} if remade else again)


def test_how_a_step_is_split_is_not_decided_again(folder, monkeypatch):
    """Measured anew it could come out otherwise (experts), and then the sums would round otherwise."""
    killed_at(monkeypatch, 5)
    monkeypatch.setattr(memory, "saved_for_backward", lambda *_: pytest.fail("measured again"))
    assert fit("--ckpt_path", "last") == 0
    assert same(folder / "whole", folder / "run")


def test_the_comparison_can_fail(folder, monkeypatch):
    """Without the plugins' state a resumed run is another one."""
    killed_at(monkeypatch, 5)
    monkeypatch.setattr("steerkit.training.state.RunState.restore", lambda *_: None)
    assert fit("--ckpt_path", "last") == 0
    assert not same(folder / "whole", folder / "run")


@pytest.mark.parametrize(
    "where, signum",
    [("gradients", 15), ("optimizer", 2), ("metrics", 15), ("validation", 2)],
)
def test_a_signal_saves_and_the_run_goes_on(folder, monkeypatch, capsys, where, signum):
    """Wherever it comes: what is saved is the state after a whole step, metrics included."""
    count = []

    def at(original, step):
        def wrapped(*arguments, **keywords):
            count.append(1)
            if len(count) == step:
                os.kill(os.getpid(), signum)
            return original(*arguments, **keywords)

        return wrapped

    with monkeypatch.context() as patch:
        if where == "gradients":
            patch.setattr(memory, "accumulate_gradients", at(memory.accumulate_gradients, 5))
        elif where == "optimizer":
            patch.setattr(torch.optim.AdamW, "step", at(torch.optim.AdamW.step, 5))
        elif where == "metrics":
            patch.setattr(module_room, "step_metrics", at(module_room.step_metrics, 5))
        else:
            patch.setattr(SteeringModule, "validation_step", at(SteeringModule.validation_step, 2))
        code = fit()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    made = {"gradients": 4, "optimizer": 5, "metrics": 5, "validation": 8}[where]
    assert code == 128 + signum
    assert line.startswith(f"steerkit fit: stopped by {'Ctrl-C' if signum == 2 else 'SIGTERM'} after step {made};")
    assert line.endswith("Go on with: steerkit fit --config config.yaml --allow_code --ckpt_path last")
    assert newest_checkpoint(folder / "run" / "checkpoints").name == f"step={made:08d}.ckpt"
    assert fit("--ckpt_path", "last") == 0
    assert same(folder / "whole", folder / "run")


def test_sigkill_and_the_same_command(folder):
    """Real processes, two kills at moments that the clock picks."""
    command = [sys.executable, "-m", "steerkit", *arguments("--ckpt_path", "last")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    metrics = folder / "run" / "metrics.csv"
    for least, delay in ((2, 0.11), (6, 0.02)):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 240
        while len(read_rows(metrics)) <= least and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
    assert subprocess.run(command, env=environment, capture_output=True, check=True).returncode == 0
    assert same(folder / "whole", folder / "run")


# -- checkpoints that are not what they were


def run_to(step):
    assert fit("--trainer.max_steps", str(step)) == 0
    return Path("run/checkpoints")


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(folder, capsys, caplog, harm):
    found = run_to(6)
    newest = found / "step=00000006.ckpt"
    data = bytearray(newest.read_bytes())
    if harm == "flipped":
        state = torch.load(newest, weights_only=True)["state_dict"]
        place = data.index(next(iter(state.values())).numpy().tobytes())
        data[place + 7] ^= 1
    newest.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    assert fit("--ckpt_path", "last") == 0
    assert "step=00000006.ckpt is damaged" in caplog.text and "Trying the one before" in caplog.text
    assert "Going on from run/checkpoints/step=00000003.ckpt (step 3)" in capsys.readouterr().out
    assert (found / "step=00000006.ckpt.old").exists()
    assert same(folder / "whole", folder / "run")


def test_no_checkpoint_can_be_read(folder, capsys):
    for path in run_to(4).iterdir():
        path.write_bytes(b"nothing")
    assert fit("--ckpt_path", "last") == 2
    assert "None of the 2 checkpoints in run/checkpoints can be read" in capsys.readouterr().err
    assert fit("--ckpt_path", "run/checkpoints/step=00000004.ckpt") == 2
    assert "is damaged, or none" in capsys.readouterr().err.strip().splitlines()[-1]
    assert fit("--ckpt_path", "nowhere.ckpt") == 2
    assert "No checkpoint nowhere.ckpt" in capsys.readouterr().err.strip().splitlines()[-1]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_a_strangers_checkpoint_runs_nothing(folder, capsys):
    torch.save({"state_dict": {}, "x": Evil()}, "evil.ckpt")
    with pytest.raises(SteerkitError):
        CheckpointFiles().load_checkpoint("evil.ckpt", weights_only=False)
    assert fit("--run_dir", "other", "--ckpt_path", "evil.ckpt") == 2
    assert not Path("owned").exists()
    said = capsys.readouterr().err
    assert "evil.ckpt is damaged, or none (it holds other things than tensors and plain values)" in said


def test_a_checkpoint_brings_no_settings(folder):
    """Lightning's CLI takes hyper-parameters from it, over the config and the command line: a way to name code."""
    path = run_to(3) / "step=00000003.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= {"rewards": "os:getcwd", "lr": 7.0, "trust_remote_code": True}
    CheckpointFiles().save_checkpoint(content, path)
    assert fit("--ckpt_path", "last") == 0
    assert same(folder / "whole", folder / "run")


def test_checkpoints_are_small_and_plain(folder):
    path = run_to(3) / "step=00000003.ckpt"
    assert path.stat().st_size < 40_000
    content = torch.load(path, weights_only=True)
    assert sorted(content["state_dict"]) == [f"policy.steering.layers_{k}_output.vector" for k in (0, 2)]
    assert content["steerkit"]["generated_tokens"] == float(rows(Path("run"))[-1]["num_tokens"])
    assert not list(Path("run").rglob("*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("missing", [1, 10, 30, 200, 5000])
def test_a_checkpoint_that_the_disk_takes_in_part_is_an_error(tmp_path, missing):
    """The last bytes don't fit: the system then takes what does, and says so only by the number."""
    import resource

    content = {"state_dict": {"v": torch.arange(3000.0)}}
    path = tmp_path / "step=00000001.ckpt"
    CheckpointFiles().save_checkpoint(content, path)
    limit = path.stat().st_size - missing
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SteerkitError, match="Can't write .*File too large"):
            CheckpointFiles().save_checkpoint({"state_dict": {"v": torch.ones(3000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(read_checkpoint(path)["state_dict"]["v"], content["state_dict"]["v"])
    assert list(tmp_path.iterdir()) == [path]


def test_an_explicit_checkpoint_sets_later_ones_aside(folder):
    run_to(10)
    assert fit("--ckpt_path", "run/checkpoints/step=00000006.ckpt") == 0
    assert same(folder / "whole", folder / "run")
    assert {p.name for p in Path("run/checkpoints").glob("*.old")} == {
        "step=00000009.ckpt.old",
        "step=00000010.ckpt.old",
    }


# -- the parts


def test_random_states_of_all_generators():
    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), float(torch.randn(()))]

    random.gauss(0, 1), np.random.normal()  # both keep half of a pair for the next call
    states = random_states()
    expected = draw()
    assert draw() != expected
    set_random_states(states)
    assert draw() == expected


def test_a_reward_state_that_can_not_be_read_back_is_refused_at_once(folder, capsys):
    text = REWARDS + "\nclass Odd(Counting):\n    def state_dict(self):\n        return {'own': self}\n"
    (folder / "odd.py").write_text(text)
    assert fit("--model.rewards", '["odd.py:Odd"]') == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The state of reward 'Odd' can't stand in a checkpoint" in error


def test_metrics_file(tmp_path):
    log = MetricsFile(tmp_path)
    for step in range(4):
        log.log_metrics({"reward": step / 3, "lr": 1}, step)
    log.log_metrics({"val/accuracy": 0.5}, 3)
    with log.path.open("a") as file:
        file.write("9,0.")  # a kill in the middle of a row
    assert [row["step"] for row in read_rows(log.path)] == ["0", "1", "2", "3", "3"]
    again = MetricsFile(tmp_path)
    again.go_on_from(4)
    assert len(read_rows(log.path)) == 5
    again.go_on_from(4, validation_due=True)
    assert [row["val/accuracy"] for row in read_rows(log.path)] == [""] * 4
    again.go_on_from(2)
    again.log_metrics({"reward": 1.0, "lr": 1}, 2)
    assert [(row["step"], row["reward"]) for row in read_rows(log.path)] == [
        ("0", "0.0"),
        ("1", str(1 / 3)),
        ("2", "1.0"),
    ]


def test_no_room_for_metrics_is_one_line(tmp_path):
    log = MetricsFile(tmp_path)
    log.log_metrics({"reward": 1.0}, 0)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(SteerkitError, match=r"Can't write .*metrics.csv: Is a directory"):
        log.log_metrics({"reward": 1.0}, 1)


def test_vectors_agree_only_if_equal(folder):
    assert numbers(folder / "whole").abs().sum() > 0
    assert steps(folder / "whole") == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9]
