"""The exported files have the keys and the numbers that lm-evaluation-harness's have."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerkit.evaluation.lm_eval import write_lm_eval

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901)
# From lm_eval/evaluator.py and loggers/evaluation_tracker.py, version 0.4.
SAMPLE_KEYS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash", "exact_match",
}  # fmt: skip
RESULT_KEYS = {"results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config", "task_hashes"}


def sample(arm: str, number: int, index: int, temperature: float, right: bool) -> dict[str, Any]:
    facts = {"arm": arm, "set": "gsm8k", "temperature": temperature, "seed": 1, "id": f"p{number}", "sample": index}
    texts = {"problem": f"What is {number}?", "answer": str(number), "source": "gsm8k", "extracted": "7"}
    return facts | texts | {"completion": f"é {index}", "verdict": "correct" if right else "wrong"}


def row(arm: str, temperature: float, k: int, accuracy: float, set_: str = "gsm8k") -> dict[str, Any]:
    return {"arm": arm, "set": set_, "temperature": temperature, "k": k, "n": 3, "accuracy": accuracy}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    samples = [sample("base", n, 0, 0.0, n == 0) for n in range(3)]
    samples += [sample("base", n, j, 1.0, n + j > 2) for n in range(3) for j in range(2)]
    samples += [sample("steered", n, 0, 0.0, True) for n in range(3)]
    rows = [row("base", 0.0, 1, 1 / 3), row("base", 1.0, 2, 1 / 6), row("steered", 0.0, 1, 1.0)]
    rows += [row("base", 0.0, 1, 0.5, "mean")]
    record = {
        "schema": 1,
        "model": "org/model",
        "rows": rows,
        "versions": {"torch": "x"},
        "command": "steerkit evaluate",
    }
    files = write_lm_eval(tmp_path, record, samples, NOW)
    assert [f.parent.name for f in files] == ["org__model", "org__model+steered"]
    return tmp_path


def test_results(written: Path) -> None:
    found = json.loads((written / "org__model" / "results_2026-01-02T03-04-05.678901.json").read_text())
    assert found.keys() >= RESULT_KEYS and set(found["results"]) == {"gsm8k"}  # the mean is no task
    numbers = found["results"]["gsm8k"]
    assert numbers["exact_match,temperature=0"] == pytest.approx(1 / 3)
    shares = np.array([0, 0, 0.5])
    assert numbers["exact_match_stderr,temperature=1"] == pytest.approx(shares.std(ddof=1) / math.sqrt(3))
    assert found["configs"]["gsm8k"]["repeats"] == 2 and found["n-samples"]["gsm8k"]["effective"] == 3


def test_samples(written: Path) -> None:
    (file,) = (written / "org__model").glob("samples_*.jsonl")
    # lm-eval's own rules take task and date out of the name.
    assert file.name[file.name.find("_") + 1 : file.name.rfind("_")] == "gsm8k"
    assert file.name[file.name.rfind("_") + 1 :].replace(".jsonl", "") == NOW.isoformat().replace(":", "-")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 6 and all(line.keys() == SAMPLE_KEYS for line in lines)
    greedy, sampled = lines[2], lines[5]
    assert (greedy["doc_id"], sampled["doc_id"]) == (2, 2) and greedy["doc_hash"] == sampled["doc_hash"]
    assert (greedy["filter"], greedy["resps"], greedy["exact_match"]) == ("temperature=0", [["é 0"]], 0.0)
    assert (sampled["filter"], sampled["resps"], sampled["exact_match"]) == ("temperature=1", [["é 0", "é 1"]], 0.5)
    assert sampled["doc"]["id"] == "p2" and sampled["target"] == "2" and sampled["filtered_resps"] == ["7", "7"]


def test_the_datasets_library_reads_the_samples(written: Path, tmp_path: Path) -> None:
    import datasets

    (file,) = (written / "org__model").glob("samples_*.jsonl")
    table = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 6 and table[5]["resps"] == [["é 0", "é 1"]]
