"""Each mistake of a user: one clear line on standard error, exit code 2, nothing lost."""

import shutil

import pytest
import torch
import yaml
from helpers import checkpoint

from steerkit.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model")
    rows = (f'{{"problem": "What is {k}?", "answer": "{k}"}}\n' for k in range(40))
    (tmp_path / "data.jsonl").write_text("".join(rows))
    return tmp_path


def run_fit(folder, **changes):
    config = {
        "run_dir": str(folder / "run"),
        "model": {"base": "model", "samples_per_prompt": 2, "max_tokens": 4},
        "data": {"dataset": "arithmetic", "n_test": 4, "n_validation": 4, "prompts_per_step": 2},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "report": {"arms": []},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", "config.yaml"])


def one_line(capsys, *words):
    printed = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in printed if "━" not in line]  # progress bars of what had begun
    assert lines, "expected an error line"
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0], (word, lines[0])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_memory_outside_of_a_step(folder, monkeypatch, capsys, error):
    """In a step the batches are halved first (tests/training/test_training_memory.py)."""

    def load_model(*_, **__):
        raise error

    for module in ("steerkit.training.module", "steerkit.commands.evaluate"):
        monkeypatch.setattr(f"{module}.load_model", load_model)
    assert run_fit(folder) == 2
    one_line(capsys, "steerkit fit: out of memory (", "lower memory_budget")
    assert main(["evaluate", "--model", "model", "--out", "out"]) == 2
    one_line(capsys, "steerkit evaluate: out of memory (", "lower --batch_tokens")
    with pytest.raises(type(error)):
        main(["evaluate", "--model", "model", "--out", "out", "--debug"])


def test_the_config_used_here_is_good(folder):
    assert run_fit(folder) == 0
    assert (folder / "run/vector/steering.safetensors").exists()


CASES = {
    "unknown reward": ({"model__rewards": "verifiabel"}, ["verifiabel", "Did you mean 'verifiable'?"]),
    "unknown intervention": ({"model__intervention": "sttic"}, ["sttic", "Did you mean 'static'?"]),
    "unknown data set": ({"data__dataset": "arithmetics"}, ["arithmetics", "Did you mean 'arithmetic'?"]),
    "unknown model": ({"model__base": "tiny-reasonr"}, ["tiny-reasonr", "tiny-reasoner"]),
    "unknown layer": ({"model__layers": 7}, ["Layer 7", "3 layers, 0 to 2"]),
    "unknown column": (
        {"data__dataset": {"path": "data.jsonl", "columns": {"answer": "anser"}, "split_by_hash": [0.6, 0.2, 0.2]}},
        ["anser", "answer"],
    ),
    "missing file": ({"data__dataset": "nothing.jsonl"}, ["nothing.jsonl"]),
    "no data_root": ({"data_root": "nowhere"}, ["nowhere"]),
    "K = 1": ({"model__samples_per_prompt": 1}, ["samples_per_prompt", "at least 2", "got 1"]),
    "greedy training": ({"model__temperature": 0.0}, ["temperature"]),
    "unknown report arm": ({"report": {"arms": ["bas"]}}, ["bas"]),
    "max_tokens beyond the context": ({"model__max_tokens": 5000}, ["5000", "256"]),
}


@pytest.mark.parametrize("case", CASES)
def test_fit(folder, capsys, case):
    changes, words = CASES[case]
    try:
        code = run_fit(folder, **changes)
    except SystemExit as exit_:  # the config parser's own refusals
        code = exit_.code
    assert code == 2
    one_line(capsys, *words)


def test_empty_data_set(folder, capsys):
    (folder / "empty.jsonl").write_text("")
    assert run_fit(folder, data__dataset="empty.jsonl") == 2
    one_line(capsys, "empty")


def test_run_dir_that_cannot_be_written(folder, capsys):
    (folder / "file").write_text("")
    assert run_fit(folder, run_dir=str(folder / "file" / "run")) == 2
    one_line(capsys, "Can't write to folder")


def test_tokenizer_without_chat_template(folder, capsys):
    (folder / "model" / "chat_template.jinja").unlink()
    assert run_fit(folder) == 2
    one_line(capsys, "chat template", "plain")
    assert run_fit(folder, model__template={"style": "plain"}) == 0


def test_tokenizer_without_pad_token_uses_its_end_token(folder):
    from transformers import AutoTokenizer

    from steerkit.models import load_model

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder / "model")
    assert load_model("model").tokenizer.pad_token == tokenizer.eos_token
    assert run_fit(folder) == 0


def evaluate(folder, *arguments):
    common = ["evaluate", "--model", "model", "--out", str(folder / "out"), "--limit", "4", "--max_tokens", "4"]
    return main([*common, *arguments])


def test_vector_of_another_width_and_damaged_vectors(folder, capsys):
    assert run_fit(folder) == 0
    vector = folder / "run" / "vector"
    assert evaluate(folder, "--vector", str(vector)) == 0
    capsys.readouterr()
    checkpoint(folder / "wide", hidden_size=64)
    assert evaluate(folder, "--vector", str(vector), "--model", "wide") == 2
    one_line(capsys, "width", "64", "32")
    damaged = shutil.copytree(vector, folder / "damaged")
    weights = damaged / "steering.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    assert evaluate(folder, "--vector", str(damaged)) == 2
    one_line(capsys, "damaged")
    assert evaluate(folder, "--vector", str(folder / "nothing")) == 2
    one_line(capsys, "nothing")
    (folder / "file").write_text("")
    assert evaluate(folder, "--out", str(folder / "file" / "x")) == 2
    one_line(capsys, "Can't write to folder")


def test_debug_shows_the_traceback(folder):
    from steerkit.errors import SteerkitError

    with pytest.raises(SteerkitError):
        main(["evaluate", "--model", "nope", "--out", str(folder / "out"), "--debug"])
