"""`extract` as a user runs it, on a tiny random model."""

import json

import pytest
import torch
from helpers import checkpoint

from steerkit.cli import main
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector, VectorMetadata

KINDS = ("--positive", "worked", "--negative", "bare")
SMALL = ("--model", "model", "--data", '{"name": "arithmetic", "n": 20}', "--n", "4", "--template.style", "plain")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Room for byte-level prompts.
    checkpoint(tmp_path / "model", max_position_embeddings=1024)
    tensors = {HookPoint(k): {"vector": torch.full((32,), 0.5 + k)} for k in range(3)}
    SteeringVector("static", tensors, {}, VectorMetadata("model", "", 32, 3)).save_pretrained(tmp_path / "trained")
    return tmp_path


def test_kinds_of_a_data_set_and_evaluation_of_the_vector(folder, capsys):
    assert main(["extract", *SMALL, *KINDS, "--out", "raw"]) == 0
    out = capsys.readouterr().out
    assert "worked minus bare, 4 problems" in out and "layers.2.output" in out and "Wrote raw" in out
    vector = SteeringVector.from_pretrained("raw")
    receipts = vector.metadata.receipts
    assert receipts["contrast"] == {"positive": "worked", "negative": "bare"} and receipts["n"] == 4
    assert receipts["command"].startswith("steerkit extract --model model") and receipts["split"] == "train"
    assert len(vector.tensors) == 3 and vector.norm() > 0
    assert main(["extract", *SMALL, *KINDS, "--scale", "-0.5", "--out", "half"]) == 0
    half = SteeringVector.from_pretrained("half")
    assert half.norm() == pytest.approx(vector.norm() / 2, rel=1e-5)
    assert main(["extract", *SMALL, *KINDS, "--norm_like", "trained", "--layers", "[0, -1]", "--out", "like"]) == 0
    like = SteeringVector.from_pretrained("like")
    trained = SteeringVector.from_pretrained("trained").norms()
    assert like.norms() == pytest.approx({name: trained[name] for name in ("layers.0.output", "layers.2.output")})
    # The vector says where it comes from, so evaluate needs no more than its name.
    arguments = ["--limit", "3", "--temperature", "1", "--max_tokens", "4", "--split", "validation", "--out", "e"]
    assert main(["evaluate", "--model", "model", "--vector", "raw", *arguments]) == 0
    rows = json.loads((folder / "e" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["base", "steered"] and rows[0]["set"] == "arithmetic"


def test_a_file_and_openings(folder):
    rows = [{"problem": f"What is {k}?", "good": f"It is {k}.", "bad": "No."} for k in range(5)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--model", "model", "--template.style", "plain", "--layers", "1", "--site", "attn_output")
    columns = ("--positive", "good", "--negative", "bad")
    assert main(["extract", *common, "--data", "pairs.jsonl", *columns, "--out", "a"]) == 0
    vector = SteeringVector.from_pretrained("a")
    assert list(vector.tensors) == [HookPoint(1, "attn_output")]
    assert vector.metadata.receipts["n"] == 5 and vector.metadata.receipts["pairs_file"] == "pairs.jsonl"
    assert "dataset_spec" not in vector.metadata.receipts
    openings = ("--positive_prefix", "To", "--negative_prefix", "The answer is", "--max_tokens", "5")
    for positions in ("completion", "last_prompt", "first"):
        assert main(["extract", *SMALL, *openings, "--positions", positions, "--out", positions]) == 0
        receipts = SteeringVector.from_pretrained(positions).metadata.receipts
        assert receipts["contrast"]["positive"] == "samples after 'To'" and receipts["positions"] == positions

    requests = ("--positive_request", "Show steps.", "--negative_request", "", "--token_mask", "first_generated")
    assert main(["extract", *SMALL, *requests, "--out", "asked"]) == 0
    asked = SteeringVector.from_pretrained("asked")
    assert asked.token_mask == "first_generated" and asked.metadata.receipts["positions"] == "last_prompt"
    assert asked.metadata.receipts["contrast"] == {"positive": "asked 'Show steps.'", "negative": "asked ''"}


MISTAKES = {
    "no kinds": ([], "--positive and --negative"),
    "unknown kind": (["--positive", "worked", "--negative", "bear"], "Did you mean 'bare'?"),
    "one opening": (["--positive_prefix", "To"], "Give both"),
    "kinds and openings": ([*KINDS, "--positive_prefix", "To", "--negative_prefix", "A"], "in one way"),
    "one request": (["--negative_request", "Be quick."], "Give both --positive_request"),
    "no completion": (["--positive_request", "x", "--negative_request", "y", "--positions", "first"], "have none"),
    "equal openings": (["--positive_prefix", "To", "--negative_prefix", "To"], "two different openings"),
    "last_prompt of kinds": ([*KINDS, "--positions", "last_prompt"], "needs openings or requests"),
    "layer outside": ([*KINDS, "--layers", "9"], "Layer 9 is out of range"),
    "no norm there": ([*KINDS, "--norm_like", "nowhere"], "nowhere"),
    "n of none": ([*KINDS, "--n", "0"], "at least 1"),
    "no batch": ([*KINDS, "--micro_batch_tokens", "0"], "micro_batch_tokens"),
    "unknown mask": ([*KINDS, "--token_mask", "promt"], "Unknown token mask"),
    "unknown data": ([*KINDS, "--data", "arithmetics"], "Did you mean 'arithmetic'?"),
}


@pytest.mark.parametrize(("arguments", "words"), list(MISTAKES.values()), ids=list(MISTAKES))
def test_mistakes_are_one_line(folder, capsys, arguments, words):
    assert main(["extract", *SMALL, *arguments, "--out", "out"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "━" not in line]
    assert len(lines) == 1 and words in lines[0] and lines[0].startswith("steerkit extract:")
    assert not (folder / "out").exists()
