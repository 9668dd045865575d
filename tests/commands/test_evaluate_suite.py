"""`evaluate --suite`, its protocols and its resume, and `compare`, as a user runs them on a tiny random model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers import checkpoint

from steerkit.cli import main
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector, VectorMetadata

SETS = {"gsm8k_test": 6, "aime24": 4, "svamp": 5}
KILLING = '''
"""A sampler that ends its process when it is asked for batch number KILL_AT, or is interrupted at STOP_AT."""
import os, signal
from steerkit.rollouts import Sampler
from steerkit.rollouts.transformers_sampler import TransformersSampler

class Killing(Sampler):
    def __init__(self):
        self.inner, self.calls = TransformersSampler(), 0

    def stream(self, *arguments):
        self.calls += 1
        if self.calls == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == int(os.environ.get("STOP_AT", -1)):
            raise KeyboardInterrupt
        yield from self.inner.stream(*arguments)
'''
FAULTY = '''
"""A sampler whose answers all end, and a verifier that fails on some golds, each for a reason of its own."""
from dataclasses import replace
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.types import Verdict
from steerkit.verifiers import Verifier

class Ending(TransformersSampler):
    def stream(self, *arguments):
        for index, group in super().stream(*arguments):
            yield index, replace(group, rollouts=tuple(replace(r, finish_reason="stop") for r in group.rollouts))

class Faulty(Verifier):
    def verify(self, completion, answer):
        causes = {"1": "timeout", "2": "error: KeyError", "3": "error: ValueError"}
        return Verdict("fault", causes[answer]) if answer in causes else Verdict("wrong", "not_equal", completion)
'''
OPTIONS = ["--suite", "gsm8k", "aime24", "svamp", "--data_root", "data", "--temperature", "0", "1", "--k", "2"]
OPTIONS += ["--max_tokens", "5", "--verifier", '{"name": "exact", "extract": "text"}', "--batch_tokens", "150"]
OPTIONS += ["--template.style", "plain", "--template.system", ""]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and a vector; tests write beside them."""
    folder = tmp_path_factory.mktemp("home")
    checkpoint(folder / "model")
    (folder / "data").mkdir()
    for name, n in SETS.items():
        rows = [
            {"id": f"{name}/{k}", "problem": f"{name} {'word ' * k}{k}", "answer": f"{k}", "source": name}
            for k in range(n)
        ]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data" / "mine.jsonl").write_text(json.dumps({"problem": "SVAMP: word 1", "answer": "1"}) + "\n")
    (folder / "kill.py").write_text(KILLING)
    (folder / "faulty.py").write_text(FAULTY)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    receipts = {
        "dataset_spec": {"path": "data/svamp.jsonl", "unsplit_as": "train"},
        "rewards": [{"name": "verifiable", "verifier": {"name": "exact", "extract": "text"}}],
        "max_tokens": 5,
        "prompt": {"style": "plain", "system": None},
    }
    metadata = VectorMetadata("model", "", 32, 3, receipts)
    SteeringVector("static", {HookPoint(1): {"vector": vector}}, {}, metadata).save_pretrained(folder / "vector")
    return folder


@pytest.fixture(autouse=True)
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def evaluate(out: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["evaluate", "--model", "model", "--out", out, *arguments]) == code
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text()) if code == 0 else {}
    return found


def samples(out: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(Path(out, "samples.parquet")).to_pylist()
    return found


def test_a_killed_evaluation_goes_on_and_ends_in_the_same_results(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*OPTIONS, "--sampler", "kill.py:Killing"]
    whole = evaluate("whole", *options)
    command = [sys.executable, "-m", "steerkit", "evaluate", "--model", "model", "--out", "killed", *options]
    ended = subprocess.run(command, env=os.environ | {"KILL_AT": "4"}, capture_output=True, text=True, timeout=240)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not Path("killed", "results.json").exists()
    (shard,) = Path("killed", "journal").glob("samples-*.jsonl")
    done = len(shard.read_text().splitlines())
    assert 0 < done < len(samples("whole"))
    with shard.open("a") as file:
        file.write('{"arm": "base", "se')  # as if the kill had come in the middle of a line
    capsys.readouterr()
    resumed = evaluate("killed", *options)
    assert f"Goes on from {done} samples" in capsys.readouterr().out
    assert resumed["rows"] == whole["rows"]
    assert Path("killed", "samples.parquet").read_bytes() == Path("whole", "samples.parquet").read_bytes()
    assert sorted(path.name for path in Path("killed").iterdir()) == ["results.json", "samples.parquet"]


def test_rows_of_a_suite(capsys: pytest.CaptureFixture[str]) -> None:
    record = evaluate("rows", *OPTIONS, "--limit", "4")
    assert [(row["set"], row["temperature"], row["n"], row["k"]) for row in record["rows"]] == [
        ("gsm8k", 0.0, 4, 1),
        ("gsm8k", 1.0, 4, 2),
        ("aime24", 0.0, 4, 1),
        ("aime24", 1.0, 4, 2),
        ("svamp", 0.0, 4, 1),
        ("svamp", 1.0, 4, 2),
        ("mean", 0.0, 12, None),
        ("mean", 1.0, 12, None),
    ]
    text = capsys.readouterr().out
    assert "mean" in text and "model, gsm8k aime24 svamp" in text and "…" not in text


def test_faults_are_counted_by_cause_and_kept_for_replay(capsys: pytest.CaptureFixture[str]) -> None:
    faulty = ["--verifier", "faulty.py:Faulty", "--sampler", "faulty.py:Ending"]
    options = ["--suite", "gsm8k", "svamp", *OPTIONS[4:], *faulty]
    record = evaluate("faults", *options)
    causes = [row["fault_causes"] for row in record["rows"]]
    assert causes == [{"error": 2 * k, "timeout": k} for k in (1, 2, 1, 2, 2, 4)]  # temperature 0, 1; the means
    assert [row["faults"] for row in record["rows"]] == [sum(found.values()) for found in causes]
    out = capsys.readouterr().out
    assert (
        "The verifier failed on some answers (error 12, timeout 6): steerkit verify --replay faults/faults.jsonl" in out
    )
    kept = [json.loads(line) for line in Path("faults", "faults.jsonl").read_text().splitlines()]
    faults = [sample for sample in samples("faults") if sample["verdict"] == "fault"]
    assert sorted((row["gold"], row["completion"]) for row in kept) == sorted(
        (sample["answer"], sample["completion"]) for sample in faults
    )
    assert main(["verify", "--replay", "faults/faults.jsonl", "--allow_code"]) == 0
    assert "18 faults (error 12, timeout 6)" in capsys.readouterr().out
    evaluate("faults", *options, "--restart", "true")
    assert len(Path("faults", "faults.1.jsonl").read_text().splitlines()) == 18
    assert len(Path("faults", "faults.jsonl").read_text().splitlines()) == 18


def test_a_protocol_and_what_overrides_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--protocol", "sinii2025", "--suite", "gsm8k", "aime24", "--data_root", "data", "--limit", "2"]
    record = evaluate("protocol", *options, "--k", "2", "--max_tokens", "3", "--vector", "vector")
    out = capsys.readouterr().out
    assert (
        "Protocol sinii2025" in out and "--k 2 (protocol: 32 on aime24, 1 elsewhere)" in out and "--max_tokens 3" in out
    )
    assert record["protocol"] == "sinii2025" and len(record["overridden"]) == 2
    assert {row["temperature"] for row in record["rows"]} == {1.0}
    assert all(row["sample_seeds"] == [1, 2, 3] and len(row["accuracy_by_seed"]) == 3 for row in record["rows"])
    assert len(samples("protocol")) == 2 * 2 * 2 * 2 * 3  # arms, sets, problems, k, seeds
    assert "Verifier: extract=text name=exact (what the vector was trained with)" in out


def test_seen_problems_are_flagged(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--suite", "svamp", "gsm8k", "--data_root", ".", "--temperature", "0", "--vector", "vector"]
    Path("svamp.jsonl").write_bytes(Path("data", "svamp.jsonl").read_bytes())
    Path("gsm8k.jsonl").write_bytes(Path("data", "gsm8k_test.jsonl").read_bytes())
    record = evaluate("seen", *options)
    assert [(row["set"], row["seen_in_training"]) for row in record["rows"][:4:2]] == [("svamp", 5), ("gsm8k", 0)]
    assert {s["set"] for s in samples("seen") if s["seen_in_training"]} == {"svamp"}
    assert "seen" in capsys.readouterr().out
    options[3:5] = ["--data_root", "data"]
    record = evaluate("seen2", *[o if o != "gsm8k" else "aime24" for o in options], "--train_data", "mine.jsonl")
    assert [(row["set"], row["seen_in_training"]) for row in record["rows"][:4:2]] == [("svamp", 1), ("aime24", 0)]
    assert [s["id"] for s in samples("seen2") if s["seen_in_training"]] == ["svamp/1", "svamp/1"]


def test_the_output_folder_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--suite", "svamp", *OPTIONS[4:], "--seed", "4"]
    first = evaluate("folder", *options)
    kept = Path("folder", "samples.parquet").read_bytes()
    capsys.readouterr()
    evaluate("folder", *options)
    assert "nothing was left to do" in capsys.readouterr().out
    evaluate("folder", *options, "--limit", "2")
    out = capsys.readouterr().out
    assert "other settings (problems.svamp: 5 there, 2 here" in out and "results.1.json" in out
    assert Path("folder", "samples.1.parquet").read_bytes() == kept
    assert json.loads(Path("folder", "results.1.json").read_text()) == first
    evaluate("folder", *options, "--limit", "2", "--restart", "true")
    assert Path("folder", "results.2.json").exists()


def test_an_unfinished_evaluation_of_other_settings_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*OPTIONS, "--sampler", "kill.py:Killing"]
    with monkeypatch.context() as patch:
        patch.setenv("STOP_AT", "2")
        evaluate("other", *options, code=130)
    captured = capsys.readouterr()
    assert "samples are in other/journal: the same command goes on" in captured.out
    before = sorted(Path("other").rglob("*"))
    evaluate("other", *options, "--k", "3", code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "unfinished evaluation with other settings (k: 2 there, 3 here)" in error
    assert sorted(Path("other").rglob("*")) == before
    evaluate("other", *options, "--k", "3", "--restart", "true")
    assert any(Path("other", "journal.1").glob("samples-*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--suite", "math", "--data_root", "data"],
            "for math500, aime25, amc23, minerva_math, olympiadbench, asdiv, mawps",
        ),
        (["--suite", "maths", "--data_root", "data"], "No benchmark suite or set 'maths'. Did you mean 'math'?"),
        (["--suite", "gsm8k", "--data", "arithmetic"], "Give --suite or --data, not both."),
        (["--suite", "gsm8k", "--data_root", "data", "--split", "validation"], "--split validation needs --data"),
        (["--protocol", "sinii"], "No protocol 'sinii'. Did you mean 'sinii2025'?"),
        (["--suite", "gsm8k", "--data_root", "data", "--seeds", "0"], "seeds must be at least 1"),
        (["--suite", "gsm8k", "--data_root", "data", "--train_data", "no.jsonl"], "No data set file"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("bad", *arguments, code=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("steerkit evaluate: ") and message in line
    assert not Path("bad").exists()


def test_another_commands_results_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run", "results.json").write_text('{"schema": 1}')
    evaluate("run", "--suite", "gsm8k", "--data_root", "data", "--max_tokens", "3", code=2)
    assert "not of steerkit evaluate" in capsys.readouterr().err
    assert [path.name for path in Path("run").iterdir()] == ["results.json"]


def test_compare_two_folders(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--suite", "svamp", *OPTIONS[4:], "--vector", "vector"]
    evaluate("left", *options, "--seed", "1")
    evaluate("right", *options, "--seed", "2", "--limit", "3")
    capsys.readouterr()
    assert main(["compare", "left", "right", "--out", "difference", "--show", "1"]) == 0
    captured = capsys.readouterr()
    assert "B (right) minus A (left)" in captured.out and "2 problems of A only" in captured.err
    record = json.loads(Path("difference", "compare.json").read_text())
    assert [(row["arm_a"], row["set"], row["temperature"], row["n"]) for row in record["rows"]] == [
        (arm, "svamp", temperature, 3) for arm in ("base", "steered") for temperature in (0.0, 1.0)
    ]
    assert all(row["ci95"][0] <= row["difference"] <= row["ci95"][1] for row in record["rows"])
    assert main(["compare", "left", "left", "--arms", "base", "steered"]) == 0
    assert "base > steered" in capsys.readouterr().out
    evaluate("elsewhere", "--suite", "aime24", *OPTIONS[4:])
    capsys.readouterr()
    assert main(["compare", "left", "elsewhere"]) == 2
    assert "share no problem" in capsys.readouterr().err


def test_lm_evals_files_beside_ours() -> None:
    evaluate("exported", "--suite", "svamp", *OPTIONS[4:], "--vector", "vector", "--format", "lm-eval")
    assert {path.name for path in Path("exported", "lm-eval").iterdir()} == {"model", "model+steered"}
    (file,) = Path("exported", "lm-eval", "model").glob("samples_svamp_*.jsonl")
    assert len(file.read_text().splitlines()) == 5 * 2  # problems x temperatures
