"""Prompts for an analysis: a data set as ``evaluate`` takes it, or a file that needs no answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerkit.datasets import dataset_name, open_dataset, subset
from steerkit.datasets.base import Split
from steerkit.errors import DataError
from steerkit.types import Example


def read_prompts(
    spec: str | Mapping[str, Any],
    split: Split = "test",
    limit: int | None = None,
    data_root: str | None = None,
    answers: bool = False,
) -> tuple[list[Example], str]:
    """(examples, what they are, in words).

    Args:
        spec: what ``open_dataset`` takes; or a ``.txt`` file, one problem a line. Without ``answers``, records need no
            answer column; then ``answer`` is empty.
        limit: at most so many; which ones depends on the data set alone.

    Raises:
        DataError: if it can't be read, is empty, or lacks answers that are needed.
    """
    if isinstance(spec, str) and spec.endswith(".txt"):
        examples = _read_lines(Path(data_root or ".") / spec)
        return subset(examples, limit), f"of {Path(spec).name}"
    words = f"of the {split} split of {dataset_name(spec)}"
    try:
        return subset(open_dataset(spec, data_root).load(split), limit), words
    except DataError as error:
        if answers or "the answer" not in str(error):
            raise
    # The problem stands in for the answer while the rows are read, and is taken away again.
    settings: dict[str, Any] = {"path": spec} if isinstance(spec, str) else dict(spec)
    columns = dict(settings.get("columns") or {})
    for name in [columns["problem"]] if "problem" in columns else ["problem", "question", "prompt"]:
        try:
            retry = {**settings, "columns": {**columns, "problem": name, "answer": name}}
            examples = open_dataset(retry, data_root).load(split)
        except DataError as error:
            if "no column" not in str(error):
                raise
            continue
        return subset([replace(example, answer="") for example in examples], limit), words
    raise DataError(f"{spec} has no column problem, question or prompt: say which, as in columns={{'problem': ...}}.")


def _read_lines(path: Path) -> list[Example]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Can't read {path}: {getattr(error, 'strerror', None) or error}.") from None
    found = [Example(f"{path.stem}/{n:05d}", line, "", path.stem) for n, line in enumerate(lines) if line]
    if not found:
        raise DataError(f"{path} holds no prompt.")
    return found
