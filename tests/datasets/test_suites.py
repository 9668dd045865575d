"""Benchmark sets from files and from folders laid out as on the hub (no network)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steerkit.datasets.suites import SETS, SUITES, load_suite, suite_sets
from steerkit.errors import DataError

HUB: dict[str, tuple[str, dict[str, list[dict[str, Any]]]]] = {
    # set: (config's folder or "", split -> rows as the hub has them)
    "gsm8k": (
        "main",
        {
            "train": [{"question": "t", "answer": "#### 1"}],
            "test": [{"question": "How many?", "answer": "6*2=<<6*2=12>>12 so\n#### 1,200"}],
        },
    ),
    "math500": (
        "",
        {
            "test": [
                {
                    "problem": "Convert $(0,3)$.",
                    "solution": "s",
                    "answer": r"\left( 3, \frac{\pi}{2} \right)",
                    "subject": "Precalculus",
                    "level": 2,
                    "unique_id": "test/precalculus/807.json",
                }
            ]
        },
    ),
    "aime24": (
        "",
        {"train": [{"id": 60, "problem": "Aya walks.", "solution": "s", "answer": "204", "url": "u", "year": "2024"}]},
    ),
    "aime25": ("", {"test": [{"problem": "Bases $b$.", "answer": "70", "id": "0"}]}),
    "amc23": ("", {"test": [{"id": 0, "question": "Cities.", "answer": "27.0", "url": "u"}]}),
    "minerva_math": ("", {"test": [{"question": "Telescopes.", "answer": "1.6"}]}),
    "olympiadbench": (
        "OE_TO_maths_en_COMP",
        {
            "train": [
                {
                    "id": 1606,
                    "question": "Xenia plays.",
                    "context": None,
                    "final_answer": ["$2$"],
                    "solution": ["s"],
                    "unit": None,
                },
                {
                    "id": 1607,
                    "question": "And then?",
                    "context": "A game.",
                    "final_answer": [r"$\frac{1}{2}$,$3$"],
                    "solution": ["s"],
                    "unit": None,
                },
            ]
        },
    ),
    "svamp": (
        "",
        {
            "train": [
                {
                    "ID": "chal-777",
                    "Body": "There are 87 oranges",
                    "Question": "How big?",
                    "Answer": "145.0",
                    "Type": "Division",
                }
            ],
            "test": [{"ID": "chal-1", "Body": "Two dogs.", "Question": "How many?", "Answer": "2.0", "Type": "x"}],
        },
    ),
    "asdiv": (
        "asdiv",
        {
            "validation": [
                {
                    "body": "Seven apples.",
                    "question": "How many apples?",
                    "solution_type": "Addition",
                    "answer": "9 (apples)",
                    "formula": "7+2=9",
                },
                {"body": "Two.", "question": "Which?", "solution_type": "y", "answer": "3 (a); 4 (b)", "formula": ""},
            ]
        },
    ),
    "mawps": (
        "",
        {
            "train": [{"id": "t", "question": "no", "result": "1", "result_float": 1.0}],
            "validation": [{"id": "v", "question": "no", "result": "1", "result_float": 1.0}],
            "test": [
                {"id": "mawps__1", "question": "Joan found 70 shells.", "result": "1_043", "result_float": 1043.0}
            ],
        },
    ),
}
EXPECTED = {
    "gsm8k": [("gsm8k/00000", "How many?", "1200")],
    "math500": [("math500/test/precalculus/807.json", "Convert $(0,3)$.", r"\left( 3, \frac{\pi}{2} \right)")],
    "aime24": [("aime24/60", "Aya walks.", "204")],
    "aime25": [("aime25/0", "Bases $b$.", "70")],
    "amc23": [("amc23/0", "Cities.", "27")],
    "minerva_math": [("minerva_math/00000", "Telescopes.", "1.6")],
    "olympiadbench": [
        ("olympiadbench/1606", "Xenia plays.", "2"),
        ("olympiadbench/1607", "A game. And then?", r"$\frac{1}{2}$,$3$"),
    ],
    "svamp": [
        ("svamp/chal-777", "There are 87 oranges. How big?", "145"),
        ("svamp/chal-1", "Two dogs. How many?", "2"),
    ],
    "asdiv": [("asdiv/00000", "Seven apples. How many apples?", "9")],
    "mawps": [("mawps/mawps__1", "Joan found 70 shells.", "1043")],
}


def write_hub(root: Path, name: str) -> None:
    """A data set repository: parquet files and a card that names configuration and splits."""
    config, splits = HUB[name]
    folder = root / SETS[name].hub
    (folder / (config or "data")).mkdir(parents=True)
    lines = ["---", "configs:", f"- config_name: {config or 'default'}", "  data_files:"]
    for split, rows in splits.items():
        path = f"{config or 'data'}/{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), folder / path)
        lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", list(SETS))
def test_the_hubs_layout_is_read(tmp_path: Path, name: str) -> None:
    write_hub(tmp_path, name)
    examples = load_suite([name], str(tmp_path))[name]
    assert [(e.id, e.problem, e.answer) for e in examples] == EXPECTED[name]
    assert {e.source for e in examples} == {name}


@pytest.mark.parametrize("name", list(SETS))
def test_a_file_with_the_hubs_columns_is_read_too(tmp_path: Path, name: str) -> None:
    rows = [row for split in SETS[name].splits for row in HUB[name][1][split]]
    (tmp_path / f"{name}_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load_suite([name], str(tmp_path))[name]
    assert [(e.problem, e.answer) for e in examples] == [found[1:] for found in EXPECTED[name]]


def write_ours(root: Path, names: list[str]) -> None:
    for name in names:
        rows = [
            {"id": f"{name}/{k}", "problem": "Same text.", "answer": f"{k},000", "source": "origin"} for k in range(2)
        ]
        file = root / (f"{name}_test.jsonl" if name == "gsm8k" else f"{name}.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_our_own_layout_is_taken_as_it_is(tmp_path: Path) -> None:
    write_ours(tmp_path, list(SETS))
    suite = load_suite(["math"], str(tmp_path))
    assert list(suite) == list(SUITES["math"]) and len(suite) == 10
    # Nothing is cleaned, and a repeated problem is kept: a set has its published size.
    assert all([e.answer for e in examples] == ["0,000", "1,000"] for examples in suite.values())
    assert [e.id for e in suite["gsm8k"]] == ["gsm8k/0", "gsm8k/1"] and suite["svamp"][0].source == "origin"


def test_all_missing_files_are_named_in_one_line(tmp_path: Path) -> None:
    write_ours(tmp_path, ["gsm8k", "svamp"])
    with pytest.raises(DataError) as caught:
        load_suite(["gsm8k", "svamp", "aime24", "mawps"], str(tmp_path))
    assert "no file for aime24, mawps:" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is not a folder"):
        load_suite(["gsm8k"], str(tmp_path / "nowhere"))


def test_names() -> None:
    assert [item.name for item in suite_sets(["svamp", "math"])][:2] == ["svamp", "gsm8k"]
    assert len(suite_sets(["math", "gsm8k"])) == 10
    with pytest.raises(DataError, match="Did you mean 'gsm8k'"):
        suite_sets(["gsm8"])
    with pytest.raises(DataError, match="Name a benchmark"):
        suite_sets([])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "answer": "1"}], "expected the columns question, answer"),
        ([{"id": "0", "problem": "a", "answer": "1", "source": "s"}] * 2, "two problems have the id"),
        ([{"id": "0", "problem": "", "answer": "1", "source": "s"}], "no problem with an answer"),
    ],
)
def test_bad_files(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        load_suite(["gsm8k"], str(tmp_path))


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "math-ai" / "aime25" / "data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(HUB["aime25"][1]["test"]), folder / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        load_suite(["aime25"], str(tmp_path))
