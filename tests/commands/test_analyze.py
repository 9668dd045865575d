"""`analyze` as a user runs it, on a tiny random model."""

from __future__ import annotations

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
    checkpoint(tmp_path / "model", max_position_embeddings=1024)
    generator = torch.Generator().manual_seed(0)
    receipts = {"prompt": {"style": "plain"}, "dataset_spec": {"name": "arithmetic", "n_eval": 8}}
    for name in ("one", "two"):
        tensors = {HookPoint(k): {"vector": torch.randn(32, generator=generator)} for k in range(3)}
        vector = SteeringVector("static", tensors, {}, VectorMetadata("model", "", 32, 3, receipts))
        vector.save_pretrained(tmp_path / name / "vector")
    return tmp_path


BASE = ("analyze", "geometry", "--model", "model", "--controls", "4", "--limit", "4")


def test_vectors_figures_and_redrawing(folder, capsys):
    command = [*BASE, "--vector", "one/vector", "--vector", "two/vector", "--out", "out"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "one layers.0.output" in out and "Positions: residual norms" in out and "Wrote out/analysis.json" in out
    record = json.loads((folder / "out" / "analysis.json").read_text())
    assert list(record["vectors"]) == ["one", "two"] and record["prompts"]["n"] == 4
    assert record["prompts"]["source"] == "of the test split of arithmetic" and record["engine"] == "nnsight"
    assert record["command"] == "steerkit " + " ".join(command)
    page = (folder / "out" / "figures.html").read_text()
    assert "Plotly.newPlot" in page and 'src="http' not in page
    images = sorted((folder / "out" / "figures").iterdir())
    assert len(images) == 2 and all(image.read_bytes().startswith(b"\x89PNG") for image in images)
    images[0].unlink()
    assert main(["analyze", "--redraw", "out"]) == 0
    assert images[0].exists()
    assert main([*BASE, "--vector", "a=one/vector", "b=two/vector", "--out", "named", "--engine", "batched"]) == 0
    assert list(json.loads((folder / "named" / "analysis.json").read_text())["vectors"]) == ["a", "b"]


def test_help_says_each_setting_once(folder, capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "geometry", "--help"])
    out = capsys.readouterr().out
    assert "Args:" not in out and "--controls" in out and out.count("--controls CONTROLS") <= 2


def test_settings_from_a_config(folder):
    (folder / "c.yaml").write_text("model: model\nvector: [one/vector]\ncontrols: 3\nlimit: 2\nfigures: false\n")
    assert main(["analyze", "geometry", "--config", "c.yaml", "--out", "out"]) == 0
    record = json.loads((folder / "out" / "analysis.json").read_text())
    assert record["settings"] == {"positions": "all", "controls": 3} and not (folder / "out" / "figures").exists()


def test_prompts_without_answers(folder):
    (folder / "lines.txt").write_text("Tom has 12 apples.\n\nAnna gives Tom 3 more.\n")
    (folder / "rows.jsonl").write_text('{"question": "How many?"}\n{"question": "How much?"}\n')
    for file in ("lines.txt", "rows.jsonl"):
        assert main([*BASE, "--vector", "one/vector", "--prompts", file, "--out", f"out-{file}"]) == 0
        record = json.loads((folder / f"out-{file}" / "analysis.json").read_text())
        assert record["prompts"]["n"] == 2


def test_answers_where_they_are_needed(folder):
    from steerkit.analysis.prompts import read_prompts
    from steerkit.errors import DataError

    (folder / "rows.jsonl").write_text('{"question": "How many?"}\n')
    with pytest.raises(DataError, match="none is the answer"):
        read_prompts("rows.jsonl", answers=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "geometri", "--model", "model"], "No analyzer named 'geometri'"),
        (["analyze", "--model", "model"], "The analyzer's name comes first"),
        (["analyze", "--redraw", "nothing"], "is not the folder of an analysis"),
        ([*BASE, "--out", "o"], "geometry takes 1 or more vectors, got 0"),
        ([*BASE, "--vector", "nowhere/at/all", "--out", "o"], "nowhere/at/all"),
        ([*BASE, "--vector", "one/vector", "one/vector", "--out", "o"], "Two vectors are named"),
        ([*BASE, "--vector", "one/vector", "--prompts", "none.txt", "--out", "o"], "Can't read none.txt"),
        ([*BASE, "--vector", "one/vector", "--positions", "here", "--out", "o"], "Unknown token mask 'here'"),
        ([*BASE, "--vector", "one/vector", "--out", "one/vector/steering_config.json"], "Can't write to folder"),
    ],
)
def test_bad_input(folder, capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and error.startswith("steerkit analyze: ")


def test_unknown_settings_are_refused_by_the_parser(folder, capsys):
    assert main([*BASE, "--vector", "one/vector", "--out", "o", "--control", "4x"]) == 2
    assert "--control" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["logit_lens", "persistence", "geometry", "path_patching", "attention_shift", "token_language", "first_token"],
)
def test_a_vector_of_zeros(folder, capsys, name):
    """What a run leaves that never saw an advantage: there is nothing to see, and that is drawn too."""
    vector = SteeringVector.from_pretrained("one/vector")
    (0.0 * vector).save_pretrained("zeros/vector")
    command = ["analyze", name, "--model", "model", "--vector", "zeros/vector", "--out", "out", "--limit", "3"]
    command += [] if name == "geometry" else ["--max_tokens", "4"]
    assert main(command) == 0, capsys.readouterr().err
    assert (folder / "out" / "figures.html").exists()


def test_a_gate_of_zeros(folder, capsys):
    sizes = {"a": 64, "b": 32}
    tensors = {HookPoint(0, "down_proj"): {key: torch.zeros(n) for key, n in sizes.items()}}
    metadata = VectorMetadata("model", "", 32, 3, SteeringVector.from_pretrained("one/vector").metadata.receipts)
    SteeringVector("tokenwise", tensors, {"d_inner": 64}, metadata).save_pretrained("zeros/vector")
    command = ["analyze", "token_scale", "--model", "model", "--vector", "zeros/vector", "--out", "out", "--limit", "3"]
    assert main([*command, "--max_tokens", "4", "--controls", "1"]) == 0, capsys.readouterr().err
