"""Problems that training saw are found by their normalised text."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from steerkit.errors import SteerkitError
from steerkit.evaluation.seen import seen_problems
from steerkit.types import Example

SETS = {
    "a": [Example("a0", "What is 2 + 3?", "5"), Example("a1", "What is 2 + 4?", "6")],
    "b": [Example("b0", "WHAT is  2 + 4", "6")],
}


def write(path: Path, problems: list[str]) -> None:
    path.write_text("".join(json.dumps({"problem": p, "answer": "1"}) + "\n" for p in problems))


def test_by_the_receipts_of_the_vector(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["what is 2+4"])
    spec = {"path": "train.jsonl", "unsplit_as": "train"}
    found = seen_problems(SETS, [{"dataset_spec": spec}], [], str(tmp_path))
    assert found == {"a": frozenset({"a1"}), "b": frozenset({"b0"})}


def test_only_the_training_split_counts(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", ["What is 1 + 1?"])
    write(tmp_path / "set" / "test.jsonl", ["What is 2 + 4?"])
    found = seen_problems(SETS, [{"dataset_spec": {"path": "set"}}], [], str(tmp_path))
    assert found == {"a": frozenset(), "b": frozenset()}


def test_named_training_data_take_the_place_of_the_receipts(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", ["What is 2 + 3?"])
    found = seen_problems(SETS, [{"dataset_spec": "arithmetic"}], ["mine.jsonl", "arithmetic"], str(tmp_path))
    assert found == {"a": frozenset({"a0"}), "b": frozenset()}
    with pytest.raises(SteerkitError, match="nowhere.jsonl"):
        seen_problems(SETS, [], ["nowhere.jsonl"], str(tmp_path))


def test_what_is_not_known_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert seen_problems(SETS, [], [], None) is None  # nothing was trained
    with caplog.at_level(logging.WARNING):
        assert seen_problems(SETS, [{}], [], None) is None
        assert seen_problems(SETS, [{"dataset_spec": "gone.jsonl"}], [], str(tmp_path)) is None
    assert "doesn't say" in caplog.text and "can't open the training data (gone)" in caplog.text
