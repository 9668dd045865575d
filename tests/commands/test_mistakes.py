"""Typical mistakes at each verb: one line that names what is wrong and what is near, exit code 2, no folder left."""

import json

import pytest
import torch
from helpers import checkpoint

from steerkit.cli import main
from steerkit.commands.parsing import explained
from steerkit.hookpoints import HookPoint
from steerkit.models import fingerprint, load_model
from steerkit.vectors import SteeringVector, VectorMetadata

RECEIPTS = {"dataset": "arithmetic", "dataset_spec": {"name": "arithmetic", "n_eval": 4}, "max_tokens": 4}
BASE = ("--model", "model")
FIT = ("fit", "--model.base", "model", "--run_dir", "new/run")

FLAGS = {
    "a letter too many": (("fit", "--model.lrr", "3"), ["--model.lrr", "'--model.lr'"]),
    "the section left out": (("fit", "--lr", "3"), ["--lr", "'--model.lr'"]),
    "an abbreviation": (("fit", "--trainer.max_step", "3"), ["--trainer.max_step", "'--trainer.max_steps'"]),
    "a flag without its value": (("fit", "--config"), ["--config", "expected one argument"]),
    "a word for a number": (("fit", "--trainer.max_steps", "many"), ["trainer.max_steps", "whole number", "many"]),
    "a word for a rate": (("fit", "--model.lr", "fast"), ["model.lr", "number", "fast"]),
    "a choice of the report": (("fit", "--report.split", "tset"), ["report.split", "'validation' or 'test'", "tset"]),
    "a style": (("fit", "--model.template.style", "chatt"), ["model.template.style", "'chat' or 'plain'", "chatt"]),
    "no such config": (("fit", "--config", "nope.yaml"), ["nope.yaml", "does not exist"]),
    "nothing at all": (("evaluate",), ["--model and --out"]),
    "no place to write to": (("evaluate", *BASE), ["Give --out"]),
    "a flag of evaluate": (("evaluate", *BASE, "--outt", "new"), ["--outt", "'--out'"]),
    "a split": (("evaluate", *BASE, "--out", "new", "--split", "tst"), ["'tst'", "'test'"]),
    "a temperature": (("evaluate", *BASE, "--out", "new", "--temperature", "hot"), ["temperature", "a number", "hot"]),
    "a nested word": (("evaluate", *BASE, "--out", "new", "--template", "{style: x}"), ["template.style", "'chat'"]),
    "a nested key": (("evaluate", *BASE, "--out", "new", "--template", "{stile: chat}"), ["template.stile"]),
    "a flag of chat": (("chat", "--modl", "model"), ["--modl", "'--model'"]),
    "an empty question": (("chat", *BASE, "--prompt", " "), ["--prompt is empty"]),
    "a flag of extract": (("extract", *BASE, "--positve", "worked", "--out", "new"), ["--positve", "'--positive'"]),
    "a flag of doctor": (("doctor", "--modle", "model"), ["--modle", "'--model'"]),
    "no format": (("export", "--vector", "vector", "--out", "new"), ["Give FORMAT"]),
    "a format": (("export", "foldedd", "--vector", "vector", "--out", "new"), ["foldedd", "'folded'"]),
    "one folder to compare": (("compare", "model"), ["Give B."]),
    "a flag of verify": (("verify", "--inptu", "x"), ["--inptu", "'--input'"]),
    "no file to verify": (("verify", "--input", "nope.jsonl"), ["nope.jsonl"]),
    "a kind of plugin": (("plugins", "--kind", "rewards_"), ["rewards_", "'rewards'"]),
    "a verb of plugins": (("plugins", "chekc", "static"), ["chekc", "'check'"]),
    "a plugin": (("plugins", "check", "statik"), ["statik", "'static'"]),
    "a verb": (("evalute",), ["evalute", "'evaluate'"]),
}
CONFIGS = {
    "a key": ("model: {bse: model}", ["'model.bse'", "'model.base'"]),
    "a section": ("modle: {base: model}", ["'modle.base'", "'model.base'"]),
    "a key of the trainer": ("trainer: {max_stepps: 3}", ["'trainer.max_stepps'", "'trainer.max_steps'"]),
    "a key of a nested section": ("model: {template: {stile: plain}}", ["stile", "'model.template.style'"]),
    "a key's old name": ("model: {prompt: {style: plain}}", ["'model.prompt.style'", "'model.template.style'"]),
    "an open bracket": ("model: [1,\n", ["c.yaml is not YAML", "line 2"]),
}
LEFT_NOTHING = {
    "a model": (("evaluate", "--model", "modell", "--out", "new/out"), ["modell"]),
    "a vector": (("evaluate", *BASE, "--out", "new/out", "--vector", "vectr"), ["vectr"]),
    "a data set": (("evaluate", *BASE, "--out", "new/out", "--data", "arithmetik"), ["arithmetik", "'arithmetic'"]),
    "a suite": (("evaluate", *BASE, "--out", "new/out", "--suite", "mth"), ["'mth'", "'math'"]),
    "a protocol": (("evaluate", *BASE, "--out", "new/out", "--protocol", "sinii"), ["'sinii'", "'sinii2025'"]),
    "k": (("evaluate", *BASE, "--out", "new/out", "--k", "0"), ["k must be at least 1"]),
    "a negative temperature": (("evaluate", *BASE, "--out", "new/out", "--temperature", "-1"), ["temperature", "-1"]),
    "a column": (("evaluate", *BASE, "--out", "new/out", "--data", "{path: d.jsonl, columns: {answer: b}}"), ["'b'"]),
    "no evaluation to compare": (("compare", "model", "vector", "--out", "new/out"), ["samples.parquet"]),
    "a model of doctor": (("doctor", "--model", "modell", "--out", "new/out"), ["modell"]),
    "a kind of completion": (
        ("extract", *BASE, "--positive", "workd", "--negative", "bare", "--out", "new/out"),
        ["workd", "'worked'"],
    ),
    "a hook point": ((*FIT, "--model.layers", "layrs.3"), ["layrs.3"]),
    "a layer": ((*FIT, "--model.layers", "17"), ["17", "0 to 2"]),
    "a vector to start from": ((*FIT, "--model.vector", "vectr"), ["vectr"]),
    "a file of problems": ((*FIT, "--data.dataset", "nope.jsonl"), ["nope.jsonl"]),
    "a reward": ((*FIT, "--model.rewards", "verifiabel"), ["verifiabel", "'verifiable'"]),
    "no checkpoint": (("test", "--model.base", "model", "--run_dir", "new/run", "--ckpt_path", "last"), ["checkpoint"]),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model", max_position_embeddings=1024)
    save_vector(tmp_path / "vector", fingerprint(load_model("model").base))
    (tmp_path / "d.jsonl").write_text('{"problem": "What is 1?", "answer": "1"}\n' * 3)
    return tmp_path


def save_vector(place, base):
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0))
    metadata = VectorMetadata("model", base, 32, 3, RECEIPTS | {"prompt": {"style": "plain", "system": None}})
    SteeringVector("static", {HookPoint(1): {"vector": noise}}, {}, metadata).save_pretrained(place)


def refused(capsys, arguments, words):
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "━" not in line]
    assert len(lines) == 1, lines
    missing = [word for word in words if word not in lines[0]]
    assert not missing, (missing, lines[0])
    assert "<class" not in lines[0] and "Parser key" not in lines[0] and "Traceback" not in lines[0]


@pytest.mark.parametrize("case", FLAGS)
def test_a_mistake_on_the_command_line(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    refused(capsys, *FLAGS[case])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", CONFIGS)
def test_a_mistake_in_a_config(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    text, words = CONFIGS[case]
    (tmp_path / "c.yaml").write_text(text)
    refused(capsys, ("fit", "--config", "c.yaml"), words)


@pytest.mark.parametrize("case", LEFT_NOTHING)
def test_what_fails_leaves_no_folder(folder, capsys, case):
    refused(capsys, *LEFT_NOTHING[case])
    assert not (folder / "new").exists()


def test_a_folder_that_was_there_stays(folder, capsys):
    (folder / "new").mkdir()
    refused(capsys, ("evaluate", *BASE, "--out", "new/out", "--k", "0"), ["k must"])
    assert (folder / "new").is_dir() and not (folder / "new" / "out").exists()


def test_another_base_is_refused_unless_forced(folder, capsys):
    save_vector(folder / "stranger", "0123456789abcdef")
    measure = ("evaluate", *BASE, "--vector", "stranger", "--temperature", "0", "--out", "out")
    talk = ("chat", *BASE, "--vector", "stranger", "--prompt", "Hi", "--max_tokens", "2")
    for arguments in (measure, talk):
        refused(capsys, arguments, ["fingerprint", "0123456789abcdef", "--force"])
    assert not (folder / "out").exists()
    assert main([*measure, "--force"]) == 0 and main([*talk, "--force"]) == 0
    assert "0123456789abcdef" in json.loads((folder / "out/results.json").read_text())["other_base"]["steered"]
    # The vector's own base needs no word, and is not noted as another.
    assert main(["evaluate", *BASE, "--vector", "vector", "--temperature", "0", "--out", "own"]) == 0
    assert json.loads((folder / "own/results.json").read_text())["other_base"] == {}


def test_force_does_not_bend_a_width(folder, capsys):
    checkpoint(folder / "wide", hidden_size=64)
    wide = ("evaluate", "--model", "wide", "--vector", "vector", "--out", "out", "--force")
    refused(capsys, wide, ["width", "64", "32"])


def test_help_is_short_and_the_long_one_is_complete(capsys):
    def shown(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code == 0
        return capsys.readouterr().out

    for verb in ("fit", "validate", "test", "predict"):
        short = shown(verb, "--help")
        assert len(short.splitlines()) < 90 and "--help_all" in short and "--model.lr" in short
        assert short.index("--model.lr") < short.index("--data.dataset") < short.index("--trainer.max_steps")
        assert "--trainer.sync_batchnorm" not in short
    full = shown("fit", "--help_all")
    for option in ("--trainer.sync_batchnorm", "--model.micro_batch_tokens", "--report.openings", "--model.lr"):
        assert option in full
    for verb in ("evaluate", "extract", "export", "chat", "doctor", "verify", "compare", "plugins"):
        assert f"steerkit {verb}" in shown(verb, "--help")


def test_a_complaint_that_is_not_known_keeps_its_words():
    assert explained("Something\n  new", ["--out"]) == "Something new."
    assert explained('Parser key "a.b":\n  broken', []) == "a.b: broken."
