"""Two processes train what one does: the same batch, gradient, metrics and vector; and they end together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import MINIBATCHES, arguments, fit, numbers, rows, write_run

from steerkit.errors import SteerkitError, TrainingError
from steerkit.training.data import PromptDataModule
from steerkit.training.distributed import Processes, _together

PAIR = Path(__file__).parent / "pair.py"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of the runs (``whole`` by one process), and what each of the two processes says."""
    folder = write_run(tmp_path_factory.mktemp("pair"), rewards=("vowels",), max_steps=6)
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert fit("--run_dir", "whole") == 0
        assert fit("--run_dir", "whole_minibatches", *MINIBATCHES) == 0
    finally:
        os.chdir(here)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "pair"}
    common |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    common |= {
        "PYTHONPATH": os.pathsep.join([str(PAIR.parent), str(PAIR.parents[1]), os.environ.get("PYTHONPATH", "")])
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(PAIR)],
            cwd=folder,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        texts = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def close(first: Path, second: Path, relative: float, n_rows: int = 7) -> None:
    """Vectors and metrics; the log-probability gap is rounding itself."""
    one, other = numbers(first), numbers(second)
    assert float((one - other).norm() / one.norm()) < relative
    assert len(rows(first)) == len(rows(second)) == n_rows  # a validation after step 4
    for row, again in zip(rows(first), rows(second), strict=True):
        assert row.keys() == again.keys()
        for name in row.keys() - {"logprob_gap"}:
            if row[name] != again[name]:
                # The loss is a sum of terms of order 1 that cancel: its rounding is theirs.
                least = 2e-7 if name == "loss" else 0.0
                assert float(row[name]) == pytest.approx(float(again[name]), rel=1e-5, abs=least), name


def test_ddp_equals_one_process(pair):
    folder, said = pair
    assert [results["ddp"]["code"] for results in said] == [0, 0]
    close(folder / "whole", folder / "ddp", 1e-6)
    first = [float(row["grad_norm"]) for row in (rows(folder / "whole")[0], rows(folder / "ddp")[0])]
    assert first[0] == pytest.approx(first[1], rel=1e-6) and first[0] > 1e-4


def test_several_updates_a_step_do_not_depend_on_the_number_of_processes(pair):
    folder, said = pair
    assert [results["minibatches"]["code"] for results in said] == [0, 0]
    close(folder / "whole_minibatches", folder / "ddp_minibatches", 1e-6, 3)


def test_no_problem_is_seen_twice(pair):
    _, said = pair
    shares = [results["ddp"]["seen"] for results in said]
    assert len(shares[0]) == len(shares[1]) == 6
    for one, other in zip(*shares, strict=True):
        assert len(one) == len(other) == 2 and len({*one, *other}) == 4
    whole = [problem for step in zip(*shares, strict=True) for share in step for problem in share]
    assert len(set(whole)) == len(whole)  # 24 of the 64 problems


def test_a_spread_base_trains_the_same_vector(pair):
    folder, said = pair
    assert [results["sharded"]["code"] for results in said] == [0, 0]
    assert said[0]["sharded"]["seen"] == said[1]["sharded"]["seen"]  # the same problems: the passes must be the same
    close(folder / "whole", folder / "sharded", 1e-6)


def test_a_spread_base_gives_the_same_samples_log_probabilities_and_gradients(pair):
    for results in pair[1]:
        found = results["equality"]
        assert found["trainable"] == 0
        assert found["held_here"] * 2 == found["blocks"] > 20_000
        whole, spread = found["whole"], found["spread"]
        assert whole["tokens"] == spread["tokens"]
        torch.testing.assert_close(torch.tensor(spread["log_probs"]), torch.tensor(whole["log_probs"]))
        gradients = torch.tensor(whole["gradients"])
        assert gradients.abs().max() > 1e-2
        torch.testing.assert_close(torch.tensor(spread["gradients"]), gradients, atol=1e-6, rtol=1e-5)


def test_one_process_fails_and_all_end_with_its_cause(tmp_path):
    """Started as the command line starts them. The vector and a checkpoint of the last whole step are saved."""
    write_run(tmp_path, rewards=("fails_in_one",))
    (tmp_path / "rewards.py").write_text((tmp_path / "rewards.py").read_text().replace('"RANK"', '"LOCAL_RANK"'))
    command = [sys.executable, "-m", "steerkit", *arguments("--trainer.devices", "2", "--trainer.strategy", "ddp")]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.strip()]
    cause = (
        "steerkit fit: Process 1 of 2 failed: Reward 'fails_in_one' raised KeyError: 'no such column' (rewards.py, line"
    )
    assert len(said) == 1 and said[0].startswith(cause)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step=00000002.ckpt"]
    assert numbers(tmp_path / "run").abs().sum() > 0


# -- the parts, in one process


def test_one_process_exchanges_nothing():
    alone = Processes()
    with pytest.raises(KeyError), alone.phase():
        raise KeyError("as it is")
    table = torch.arange(6.0).reshape(1, 2, 3)
    assert alone.gathered(table, 1) is table and alone.objects("x") == ["x"] and alone.total(1.5, 2) == [1.5, 2]
    assert list(alone.deal(range(5))) == [0, 1, 2, 3, 4]


def test_dealing():
    shares = [list(Processes(rank, 3).deal(range(8))) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert list(Processes(1, 3, mirrored=True).deal(range(8))) == list(range(8))


def test_a_lost_process_is_one_line():
    """No process group at all: as when the connection is gone."""
    with pytest.raises(TrainingError, match="ended without a word"):
        Processes(0, 2).total(1.0)


def test_gradients_are_exchanged_in_groups():
    sizes = [3, 4, 10, 1, 1]
    groups = list(_together([torch.zeros(size) for size in sizes], most=8))
    assert [[t.numel() for t in group] for group in groups] == [[3, 4], [10], [1, 1]]


def test_prompts_that_can_not_be_divided():
    data = PromptDataModule(prompts_per_step=10)
    data.check_shares(5)
    with pytest.raises(SteerkitError, match=r"prompts_per_step 10 can't be divided between 4 devices.*multiple of 4"):
        data.check_shares(4)
