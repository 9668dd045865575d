"""The learning rate of each step: by hand, and as a run logs it, whether its length is given in steps or in epochs."""

from __future__ import annotations

import pytest
from runs import fit, rows, write_run

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


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_epochs": 1}])
def test_a_run_logs_the_rates_it_had(tmp_path, monkeypatch, length):
    write_run(tmp_path, rewards=("vowels",), **{"max_steps": -1, **length})
    monkeypatch.chdir(tmp_path)
    more = ["--model.warmup_steps", "2", "--model.decay_steps", "1", "--data.dataset.n", "16"]
    assert fit(*more, "--trainer.limit_val_batches", "0") == 0
    assert [float(row["lr"]) for row in rows(tmp_path / "run")] == pytest.approx([0.15, 0.3, 0.3, 0.15])
