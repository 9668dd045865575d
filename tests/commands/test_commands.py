"""`evaluate` and `chat` as a user runs them, on a tiny random model."""

import io
import json

import pytest
import torch
from helpers import checkpoint

from steerkit.cli import main
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector, VectorMetadata


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    receipts = {"dataset": "arithmetic", "dataset_spec": {"name": "arithmetic", "n_eval": 8}, "max_tokens": 5}
    metadata = VectorMetadata("model", "", 32, 3, receipts | {"prompt": {"style": "plain", "system": None}})
    SteeringVector("static", {HookPoint(1): {"vector": vector}}, {}, metadata).save_pretrained(tmp_path / "vector")
    return tmp_path


def evaluate(*arguments):
    assert main(["evaluate", "--model", "model", "--vector", "vector", *arguments]) == 0


def test_evaluate_takes_its_defaults_from_the_vector_and_is_reproducible(folder):
    for out in ("a", "b"):
        evaluate("--temperature", "0", "1", "--k", "2", "--out", out)
    first, second = (json.loads((folder / out / "results.json").read_text()) for out in ("a", "b"))
    assert first["rows"] == second["rows"]
    assert [(row["arm"], row["temperature"], row["k"]) for row in first["rows"]] == [
        ("base", 0.0, 1),
        ("base", 1.0, 2),
        ("steered", 0.0, 1),
        ("steered", 1.0, 2),
    ]
    assert {row["n"] for row in first["rows"]} == {8} and {row["set"] for row in first["rows"]} == {"arithmetic"}
    assert max(row["mean_tokens"] for row in first["rows"]) <= 5
    assert (folder / "a" / "samples.parquet").read_bytes() == (folder / "b" / "samples.parquet").read_bytes()


def test_evaluate_with_control_and_config_file(folder):
    (folder / "e.yaml").write_text("model: model\nvector: [vector]\nout: c\ntemperature: [1.0]\nlimit: 3\nk: 1\n")
    assert main(["evaluate", "--config", "e.yaml", "--random_control", "true"]) == 0
    rows = json.loads((folder / "c" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["base", "steered", "random"] and rows[0]["n"] == 3


def test_chat_shows_base_and_steered(folder, capsys, monkeypatch):
    assert main(["chat", "--model", "model", "--vector", "vector", "--prompt", "Tom [x]", "--max_tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert "Tom [x]" in out and "base" in out and "steered" in out
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n\nthree\n"))
    assert main(["chat", "--model", "model", "--max_tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "one" in out and "two" in out and "three" not in out
