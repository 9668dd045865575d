"""What each analyzer refuses: one line, exit code 2, and no folder left behind."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import checkpoint
from safetensors.torch import save_file

from steerkit import registry
from steerkit.cli import main
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector, VectorMetadata

NAMES = sorted(entry.name for entry in registry.entries("analyzers") if entry.distribution == "steerkit")
JUDGING = ("composition", "diff_sae", "first_token", "path_patching", "transfer")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model", max_position_embeddings=1024)
    receipts = {"prompt": {"style": "plain"}, "dataset_spec": {"name": "arithmetic", "n_eval": 8}}
    for name, width, layer, fingerprint in (
        ("one", 32, 0, ""), ("two", 32, 1, ""), ("wide", 40, 0, ""), ("deep", 32, 7, ""), ("stranger", 32, 0, "0123"),
    ):  # fmt: skip
        tensors = {HookPoint(layer): {"vector": torch.ones(width)}}
        metadata = VectorMetadata("its own", fingerprint, width, max(3, layer + 1), receipts)
        SteeringVector("static", tensors, {}, metadata).save_pretrained(tmp_path / name)
    return tmp_path


def refused(folder, capsys, arguments, *words):
    assert main(["analyze", *arguments, "--out", "new/out"]) == 2, arguments
    printed = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "━" not in line]
    assert len(printed) == 1 and printed[0].startswith("steerkit analyze: "), printed
    for word in words:
        assert word in printed[0], (word, printed[0])
    assert not (folder / "new").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_that_does_not_fit(folder, capsys, name):
    others = ["one"] if name == "composition" else []
    common = [name, "--model", "model", "--limit", "2", "--vector", *others]
    refused(folder, capsys, [*common, "wide"], "wide: The vector is 40 wide", "the model 32")
    refused(folder, capsys, [*common, "deep"], "deep: layers.7.output is outside the model: it has layers 0 to 2")
    refused(folder, capsys, [*common, "stranger"], "stranger: The vector was trained on its own", "0123", "--force")


def test_the_list_of_judges_is_whole():
    def judges(name):
        return bool(registry.resolve("analyzers", name)().needs_answers)

    assert tuple(name for name in NAMES if judges(name)) == JUDGING


@pytest.mark.parametrize("name", JUDGING)
def test_prompts_without_answers(folder, capsys, name):
    (folder / "rows.jsonl").write_text('{"question": "How many?"}\n{"question": "How much?"}\n')
    (folder / "lines.txt").write_text("How many?\nHow much?\n")
    common = [name, "--model", "model", "--vector", "one", *(["two"] if name == "composition" else [])]
    refused(folder, capsys, [*common, "--prompts", "rows.jsonl"], "none is the answer")
    refused(folder, capsys, [*common, "--prompts", "lines.txt"], f"{name} measures accuracy", "answer column")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["diff_sae", "--layer", "9"], ["Layer 9", "0 to 2"]),
        (["path_patching", "--block", "9"], ["Layer 9", "0 to 2"]),
        (["path_patching", "--paths", '["layers.0.attn_output -> layers.9.q"]'], ["layers.9"]),
        (["diff_sae", "--layer", "1", "--sae", "sae"], ["sae reads 40 numbers", "residual stream has 32"]),
    ],
)
def test_settings_that_do_not_fit_the_model(folder, capsys, arguments, words):
    weights = {"W_enc": torch.zeros(40, 6), "b_enc": torch.zeros(6), "W_dec": torch.zeros(6, 40),
               "b_dec": torch.zeros(40)}  # fmt: skip
    (folder / "sae").mkdir()
    save_file(weights, folder / "sae" / "sae_weights.safetensors")
    (folder / "sae" / "cfg.json").write_text(json.dumps({"architecture": "standard"}))
    common = ["--model", "model", "--vector", "one", "--limit", "2", "--max_tokens", "3"]
    refused(folder, capsys, [*arguments, *common], *words)


def test_forced_on_another_base(folder, caplog):
    command = ["analyze", "geometry", "--model", "model", "--vector", "stranger", "--controls", "2", "--limit", "2"]
    assert main([*command, "--out", "out", "--figures", "false", "--force"]) == 0
    assert "--force: The vector was trained on its own" in caplog.text
    record = json.loads((folder / "out/analysis.json").read_text())
    assert "stranger was trained on another model than this one (its own, fingerprint 0123)." in record["notes"]
    assert record["vectors"]["stranger"]["fingerprint"] == "0123"


def test_a_vector_named_base(folder, capsys):
    refused(folder, capsys, ["geometry", "--model", "model", "--vector", "base=one"], "named 'base'")
