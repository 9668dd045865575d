"""`steerkit fit` with the countdown set and reward, by the package's own configuration, cut to one step."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from steerkit.cli import main

CONFIG = Path(__file__).parents[1] / "countdown.yaml"


def test_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(CONFIG.read_text())
    assert config["data"]["dataset"]["name"] == config["model"]["rewards"] == "countdown"
    # By module, so that the test needs no installation; tests/test_plugin_packages.py checks the names.
    config["data"]["dataset"] = {"name": "steerkit_countdown.puzzles:Countdown", "n": 16, "n_eval": 4}
    config["data"] |= {"prompts_per_step": 2, "n_test": 2}
    config["model"] |= {
        "rewards": "steerkit_countdown.reward:CountdownReward",
        "samples_per_prompt": 2,
        "max_tokens": 16,
    }
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 5, "accelerator": "cpu", "enable_progress_bar": False}
    config["report"] |= {"arms": ["base"], "k": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml", "--allow_code"]) == 0
    with open("runs/countdown/metrics.csv") as file:
        rewards = [float(row["reward"]) for row in csv.DictReader(file) if row["reward"]]
    assert len(rewards) == 1 and 0 <= rewards[0] <= 1
    reasons = set(pq.read_table("runs/countdown/samples.parquet").column("reason").to_pylist())
    # The report judged by the reward's own verifier: math-verify would know neither of these.
    assert reasons <= {"equal", "not_equal", "bad_number", "no_box", "unparsable", "truncated", "empty_box", "too_long"}
    assert not reasons & {"gold_unparsable"}
