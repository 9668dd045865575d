"""The control arms through `steerkit fit`, on a tiny random model."""

import csv

import pytest
import yaml
from helpers import checkpoint

from steerkit.cli import main
from steerkit.vectors import SteeringVector


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model")

    def run(name, steps=3, **model):
        config = {
            "run_dir": name,
            "samples_every": 0,
            "model": {"base": "model", "layers": 1, "lr": 0.5, "samples_per_prompt": 4, "max_tokens": 6, **model},
            "data": {"dataset": {"name": "arithmetic", "n": 32, "n_eval": 4}, "prompts_per_step": 4},
            "trainer": {"max_steps": steps, "accelerator": "cpu", "enable_progress_bar": False},
            "report": {"arms": []},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", f"{name}.yaml"]) == 0
        with open(tmp_path / name / "metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row["loss"]]
        return rows, SteeringVector.from_pretrained(name + "/vector")

    return run


def test_entropy_falls_without_a_reward(fit):
    rows, vector = fit("entropy", steps=12, objective="entropy")
    losses = [float(row["loss"]) for row in rows]
    assert len(losses) == 12 and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    # Every reward is -1: the random model never answers. It is logged, and does not stop the training.
    assert {row["reward"] for row in rows} == {"-1.0"} and float(rows[0]["grad_norm"]) > 0
    # The loss is the exact entropy of what the sampled log-probabilities estimate.
    assert losses[0] == pytest.approx(float(rows[0]["entropy"]), rel=0.2)
    assert vector.norm() > 0.1 and vector.metadata.receipts["objective"] == "entropy"


def test_random_reward_trains_and_repeats_itself(fit):
    rewards = ["random", {"name": "verifiable", "weight": 0}]
    first, vector = fit("random", rewards=rewards)
    again, same = fit("again", rewards=rewards)
    assert [row["reward"] for row in first] == [row["reward"] for row in again]
    assert vector.norm() == same.norm() > 0
    assert all(abs(float(row["reward"])) < 1 for row in first)
    assert {row["rewards/verifiable/mean"] for row in first} == {"-1.0"} and first[0]["accuracy"] == "0.0"


def test_format_reward_runs_without_a_verifier(fit):
    rows, _ = fit("format", rewards="format")
    assert {row["rewards/format/mean"] for row in rows} == {"-1.0"}
