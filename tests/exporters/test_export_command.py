"""``steerkit export`` from the shell: the packaged model, and every mistake in one line."""

from __future__ import annotations

import pytest
import torch
from exporter_helpers import random_vector
from helpers import checkpoint
from transformers import AutoModelForCausalLM

from steerkit.cli import main
from steerkit.models import load_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_model(checkpoint(tmp_path / "model"))
    random_vector(loaded).save_pretrained("vector")
    random_vector(loaded, points=("layers.0.output",)).save_pretrained("first")
    random_vector(loaded, "tokenwise", points=("layers.1.down_proj",)).save_pretrained("tokenwise")
    return tmp_path


def test_the_packaged_model_folded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loaded = load_model("tiny-reasoner")
    vector = random_vector(loaded, points=tuple(f"layers.{k}.output" for k in range(6)))
    vector.save_pretrained("vector")
    assert main(["export", "folded", "--vector", "vector", "--out", "folded", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "Wrote folded: a llama checkpoint in float32" in printed
    assert "largest difference" in printed
    ids = loaded.tokenizer("Tom has 12 pens. Tom buys 5 more.", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = vector.steer(loaded.base)(ids).logits
        got = AutoModelForCausalLM.from_pretrained("folded", dtype=torch.float32)(ids).logits
        assert (expected - loaded.base(ids).logits).abs().max() > 0.1
    assert (got - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("form", "vector", "words"),
    [
        ("gguf", "vector", "Wrote out: a llama.cpp control vector for blocks 1, 2."),
        ("peft", "tokenwise", "Wrote out: a PEFT LoRA adapter on down_proj (r = alpha = 1), 1 layer."),
    ],
)
def test_other_forms(folder, capsys, form, vector, words):
    assert main(["export", form, "--vector", vector, "--out", "out", "--model", "model"]) == 0
    printed = capsys.readouterr().out
    assert words in printed and "largest difference" in printed


def test_no_check_says_so(folder, capsys):
    assert main(["export", "folded", "--vector", "vector", "--out", "out", "--no_check"]) == 0
    assert "Not compared (--no_check)." in capsys.readouterr().out


MISTAKES = {
    "unknown format": (["foldd", "--vector", "vector", "--out", "x"], ["foldd", "Did you mean 'folded'?"]),
    "no vector": (["folded", "--vector", "nowhere", "--out", "x"], ["No vector at 'nowhere'"]),
    "no model": (["folded", "--vector", "vector", "--out", "x", "--model", "gone"], ["No model 'gone'"]),
    "block 0": (["gguf", "--vector", "first", "--out", "x"], ["block 0"]),
    "not constant": (["folded", "--vector", "tokenwise", "--out", "x"], ["folded can't express 'tokenwise'"]),
    "no such setting": (["gguf", "--vector", "vector", "--out", "x", "--dtype", "bfloat16"], ["gguf", "'dtype'"]),
    "no such dtype": (["folded", "--vector", "vector", "--out", "x", "--dtype", "int3"], ["int3"]),
    "taken": (["folded", "--vector", "vector", "--out", "model"], ["model exists already"]),
    "no option": (["folded", "--vector", "vector"], ["out"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(folder, capsys, case):
    arguments, words = MISTAKES[case]
    before = sorted(path.name for path in folder.iterdir())
    try:
        code = main(["export", *arguments])
    except SystemExit as exit_:  # the parser's own refusals
        code = exit_.code
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    if case != "no option":
        assert len(lines) == 1, lines
    for word in words:
        assert word in lines[-1] or (case == "no option" and word in "".join(lines)), (word, lines)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_another_base_is_refused_unless_forced(folder, capsys):
    checkpoint(folder / "other", seed=1)
    arguments = ["export", "gguf", "--vector", "vector", "--model", "other", "--out", "v.gguf"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "fingerprint" in error and "--force" in error
    assert not (folder / "v.gguf").exists()
    assert main([*arguments, "--force"]) == 0
    assert (folder / "v.gguf").exists()
