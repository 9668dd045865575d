"""The learning rate of each step: by hand, and as a run logs it, whether its length is given in steps or in epochs."""

from __future__ import annotations

import pytest
import torch
from runs import fit, rows, write_run
from safetensors.torch import load_file

from steerkit.errors import SteerkitError
from steerkit.training.schedule import check_schedule, rate_share


def test_shares_by_hand():
    assert [rate_share(step, float("inf"), 0, 0) for step in range(3)] == [1, 1, 1]
    assert [rate_share(step, float("inf"), 4, 0) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert [rate_share(step, 6, 0, 3) for step in range(6)] == [1, 1, 1, 0.75, 0.5, 0.25]
    assert rate_share(2, 4, 4, 3) == pytest.approx(0.75 * 0.5)  # a run too short for both
    assert rate_share(7, 6, 0, 3) == 0  # never below


@pytest.mark.parametrize("steps", [(-1, 0), (0, -1)])
def test_negative_steps_are_refused(steps):
    with pytest.raises(SteerkitError, match="count steps, got"):
        check_schedule(*steps)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, 0.99, 0.999]])
def test_betas_that_adamw_cannot_take_are_refused(betas):
    with pytest.raises(SteerkitError, match="betas needs two numbers"):
        check_schedule(0, 0, betas)


def test_betas_reach_the_optimizer(tmp_path, monkeypatch):
    """And are those of a step by hand: without averages over steps AdamW moves each number by the rate."""
    write_run(tmp_path, rewards=("vowels",), max_steps=2)
    monkeypatch.chdir(tmp_path)
    assert fit("--model.betas", "[0.0, 0.0]") == 0
    vector = load_file(tmp_path / "run" / "vector" / "steering.safetensors")
    rates = [float(row["lr"]) for row in rows(tmp_path / "run")]
    moved = torch.cat([tensor.flatten() for tensor in vector.values()]).abs()
    possible = torch.tensor([0.0, rates[0] + rates[1], abs(rates[0] - rates[1]), *rates])
    assert bool((moved[:, None] - possible).abs().min(dim=1).values.max() < 1e-3) and bool((moved > 0).any())


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_epochs": 1}])
def test_a_run_logs_the_rates_it_had(tmp_path, monkeypatch, length):
    write_run(tmp_path, rewards=("vowels",), **{"max_steps": -1, **length})
    monkeypatch.chdir(tmp_path)
    more = ["--model.warmup_steps", "2", "--model.decay_steps", "1", "--data.dataset.n", "16"]
    assert fit(*more, "--trainer.limit_val_batches", "0") == 0
    assert [float(row["lr"]) for row in rows(tmp_path / "run")] == pytest.approx([0.15, 0.3, 0.3, 0.15])
