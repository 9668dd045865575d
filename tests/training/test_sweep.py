"""A sweep is as many runs: the same prompts, samples, rewards and vectors, from one batch."""

import json

import pytest
import torch
from helpers import checkpoint
from runs import fit, numbers, rows, write_run

from steerkit.errors import SteerkitError
from steerkit.training import memory
from steerkit.training.members import Sweep
from steerkit.vectors import SteeringVector

DOUBLE = ("--model.dtype", "float64", "--trainer.max_steps", "4", "--model.layers", "all")
# Numbers of what is shared: of the whole batch, or of the clock.
SHARED = ("loss", "logprob_gap", "num_tokens", "lr", "epoch")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_run(tmp_path, rewards=("vowels",))
    # GPT-2 is in double precision throughout; llama's norms are not, and AdamW makes of a rounding where the gradient
    # is nearly 0 a step that can be seen.
    checkpoint(tmp_path / "model", "gpt2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(table):
    return [{k: float(v) for k, v in row.items() if k not in SHARED and v} for row in table]


def close(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, abs=1e-5, rel=1e-5, nan_ok=True), name


def test_layers_and_seeds_are_as_many_runs(folder):
    axes = ("--sweep.layers", "[0, 2]", "--sweep.seeds", "[0, 5]")
    lr = ("--model.lr", '{"default": 0.3, "2": 0.5}')
    report = ("--report.arms", "[base, steered, random]", "--report.k", "1", "--report.temperatures", "[1.0]")
    assert fit(*DOUBLE, *axes, *lr, *report) == 0
    for layer, rate in ((0, 0.3), (2, 0.5)):
        for seed in (0, 5):
            alone = ("--model.layers", str(layer), "--model.lr", str(rate), "--seed_everything", str(seed))
            assert fit(*DOUBLE, *alone, *report, "--run_dir", f"alone_{layer}_{seed}") == 0
            member, single = folder / f"run/sweep/layer{layer}_seed{seed}", folder / f"alone_{layer}_{seed}"
            torch.testing.assert_close(numbers(member), numbers(single), atol=1e-6, rtol=1e-5)
            assert numbers(single).abs().max() > 0.1
            close(own(rows(member)), own(rows(single)))
            ours, theirs = (json.loads((run / "results.json").read_text())["rows"] for run in (member, single))
            assert [row["accuracy"] for row in ours] == [row["accuracy"] for row in theirs]
    found = json.loads((folder / "run/results.json").read_text())["rows"]
    assert [row["arm"] for row in found][:2] == ["base", "steered layer0_seed0"] and len(found) == 1 + 4 + 4
    assert found[1]["sweep"] == {"layer": 0, "seed": 0} and (folder / "run/sweep.png").stat().st_size > 5000


def test_rates_and_scales_of_a_vector(folder):
    assert fit(*DOUBLE, "--model.layers", "[1, 2]") == 0
    start = ("--model.vector", "run/vector", "--run_dir", "swept", "--trainer.max_steps", "1")
    assert fit(*DOUBLE, *start, "--sweep.lrs", "[0.0, 0.1]", "--sweep.scales", "[1, 2.0]") == 0
    vector = numbers(folder / "run")
    for scale in (1, 2.0):
        still, moved = (numbers(folder / f"swept/sweep/lr{rate}_scale{scale:g}") for rate in ("0", "0.1"))
        torch.testing.assert_close(still, scale * vector)
        assert 0.05 < (moved - still).abs().max() < 0.2


def test_a_sweep_that_is_gone_on_with(folder):
    axes = ("--sweep.layers", "all", "--trainer.max_steps", "4", "--model.layers", "all")
    assert fit(*axes, "--run_dir", "whole") == 0
    assert fit(*axes, "--trainer.max_steps", "3") == 0
    assert fit(*axes, "--ckpt_path", "last") == 0
    for layer in range(3):
        whole, run = (folder / f"{name}/sweep/layer{layer}" for name in ("whole", "run"))
        assert torch.equal(numbers(whole), numbers(run))
        assert rows(whole) == rows(run)


def broken_at(step, lr, value):
    """An AdamW whose step number ``step`` puts ``value`` into the vectors that learn at ``lr``."""
    original, calls = torch.optim.AdamW.step, []

    def broken(self, *arguments, **keywords):
        done = original(self, *arguments, **keywords)
        calls.append(1)
        for group in self.param_groups:
            for parameter in group["params"] if group["full_lr"] == lr and len(calls) == step else ():
                parameter.data.fill_(value)
        return done

    return broken


def poisoned_from(step, policy):
    """The update, with the advantages of one policy NaN from ``step`` on."""
    original, calls = memory.accumulate_gradients, []

    def poisoned(model, objective, groups, advantages, *rest):
        calls.append(1)
        bad = torch.tensor([group.policy == policy and len(calls) >= step for group in groups])
        return original(model, objective, groups, advantages.masked_fill(bad[:, None], torch.nan), *rest)

    return poisoned


REPORT = ("--report.arms", "[base, steered]", "--report.k", "1", "--report.temperatures", "[1.0]")


@pytest.mark.parametrize("how", ["vector", "loss"])
def test_a_policy_that_breaks_is_frozen_and_the_others_go_on(folder, capsys, monkeypatch, how):
    """One vector overflows in step 2, or its loss is NaN in step 2: the other is what it is in a run of its own."""
    axes = ("--sweep.lrs", "[0.3, 0.1]", *REPORT)
    assert fit(*DOUBLE, "--model.lr", "0.3", *REPORT, "--run_dir", "alone") == 0
    assert fit(*DOUBLE, *axes, "--trainer.max_steps", "1", "--run_dir", "one_step") == 0
    if how == "vector":
        monkeypatch.setattr(torch.optim.AdamW, "step", broken_at(2, 0.1, torch.inf))
    else:
        monkeypatch.setattr(memory, "accumulate_gradients", poisoned_from(2, 1))
    capsys.readouterr()
    assert fit(*DOUBLE, *axes) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("1 of 2 policies broke and were frozen: lr0.1 (frozen at step 1: ")
    good, bad = folder / "run/sweep/lr0.3", folder / "run/sweep/lr0.1"
    torch.testing.assert_close(numbers(good), numbers(folder / "alone"), atol=1e-6, rtol=1e-5)
    close(own(rows(good)), own(rows(folder / "alone")))
    assert torch.equal(numbers(bad), numbers(folder / "one_step/sweep/lr0.1"))  # as it was after step 1
    failed = {row["arm"]: row.get("failed") for row in json.loads((folder / "run/results.json").read_text())["rows"]}
    assert failed["steered lr0.3"] is None and "not finite" in failed["steered lr0.1"].replace(
        "loss is nan", "not finite"
    )
    (own_row,) = [row for row in json.loads((bad / "results.json").read_text())["rows"] if row["arm"] != "base"]
    assert own_row["failed"] == failed["steered lr0.1"]
    receipts = SteeringVector.from_pretrained(bad / "vector").metadata.receipts
    assert receipts["failed"] == own_row["failed"]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    # It stays frozen when the run goes on.
    assert fit(*DOUBLE, *axes, "--trainer.max_steps", "6", "--ckpt_path", "last") == 0
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert torch.equal(numbers(bad), numbers(folder / "one_step/sweep/lr0.1"))
    assert not torch.equal(numbers(good), numbers(folder / "alone"))


def test_when_every_policy_breaks_the_run_ends(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", broken_at(2, 0.3, torch.inf))
    assert fit(*DOUBLE, "--sweep.seeds", "[0, 1]", "--model.lr", "0.3") == 2
    assert "No policy of the sweep is left. 2 of 2" in capsys.readouterr().err.splitlines()[-1]
    assert numbers(folder / "run/sweep/seed0").isfinite().all() and numbers(folder / "run/sweep/seed0").abs().max() < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sweep.layers", "[0, 7]", "--model.layers", "all"), "out of range"),
        (("--sweep.layers", "all"), "leave model.layers"),
        (("--sweep.seeds", "[]"), "one or more different values"),
        (("--sweep.seeds", "[1, 1]"), "one or more different values"),
        (("--sweep.scales", "[1, 2]"), "say which by model.vector"),
        (("--sweep.seeds", "[0, 1]", "--model.intervention", "full", "--model.layers", "all"), "can't share a batch"),
    ],
)
def test_mistakes(folder, capsys, arguments, message):
    assert fit(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "run/sweep").exists()


def test_axes():
    assert not Sweep().on and Sweep(seeds=[0]).on
    with pytest.raises(SteerkitError, match=r"sweep\.lrs"):
        Sweep(lrs=[])
