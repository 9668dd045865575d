"""Benchmark sets by short name: where each lies on the hub, what its columns mean, which local files stand for it.

The hub ids and columns are those that public evaluation code uses (docs/evaluation.md has the table). Repeated
problems are kept, so that a set has its published size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerkit.datasets.columns import Counts, Reading, to_examples
from steerkit.datasets.readers import Row, read_source
from steerkit.errors import DataError
from steerkit.registry import did_you_mean
from steerkit.types import Example

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class BenchmarkSet:
    """One benchmark set. A local file may also have steerkit's own columns (problem, answer, id, source)."""

    name: str
    hub: str
    """The hub id of the data set."""
    splits: tuple[str, ...]
    """The hub's splits that make up the set, in order."""
    config: str | None = None
    problem: tuple[str, ...] = ("problem",)
    """The hub's columns that are joined to the problem."""
    answer: str = "answer"
    id: str | None = None
    """None: the rows are numbered."""
    numeric: bool = False
    """The answers are plain numbers: thousands separators and a final ``.0`` are dropped."""
    skip: str | None = None
    """Rows whose answer has this text are left out (ASDiv's ``;``: several answers)."""

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The hub's rows in steerkit's columns; rows that have these already stay as they are."""
        return [self._row(row) for row in rows if self.skip is None or self.skip not in str(row.get(self.answer) or "")]

    def _row(self, row: Row) -> Row:
        if {"problem", "answer", "source"} <= row.keys():
            return dict(row)
        names, gold = self.problem, self.answer
        if not {*names, gold} <= row.keys():
            if not {"problem", "answer"} <= row.keys():
                raise DataError(
                    f"{self.name}: expected the columns {', '.join((*names, gold))} as on the hub ({self.hub}), or "
                    f"problem, answer, id, source; it has {', '.join(row)}."
                )
            names, gold = ("problem",), "answer"
        # "context" is what several questions of one OlympiadBench problem share.
        parts = [str(row.get(name) or "").strip() for name in ("context", *names)]
        found: Row = {"problem": _joined(parts), "answer": self._answer(row[gold])}
        identity = row.get(self.id or "id")
        if identity is not None:
            found["id"] = f"{self.name}/{identity}"
        used = {"context", *names, gold, self.id, "id"}
        return found | {key: value for key, value in row.items() if key not in used}

    def _answer(self, gold: Any) -> str:
        if isinstance(gold, (list, tuple)):  # OlympiadBench's final_answer
            gold = gold[0] if gold else ""
        text = str(gold).strip()
        if "####" in text:  # GSM8K's worked solution
            text = text.rsplit("####", 1)[1].strip()
        enclosed = re.fullmatch(r"\$([^$]*)\$", text)
        text = enclosed.group(1).strip() if enclosed else text
        if self.numeric:
            text = re.sub(r"\s*\([^()]*\)\Z", "", text)  # ASDiv: "9 (apples)"
            text = re.sub(r"(?<=\d)[,_](?=\d{3}(?!\d))", "", text)
            text = re.sub(r"\A([-+]?\d+)\.0+\Z", r"\1", text)
        return text


def _joined(parts: Sequence[str]) -> str:
    """The parts that aren't empty; all but the last end as sentences (some of SVAMP's bodies don't)."""
    filled = [part for part in parts if part]
    return " ".join([*(part + "." * part[-1].isalnum() for part in filled[:-1]), *filled[-1:]])


def _named(*sets: BenchmarkSet) -> dict[str, BenchmarkSet]:
    return {item.name: item for item in sets}


SETS: Mapping[str, BenchmarkSet] = _named(
    BenchmarkSet("gsm8k", "openai/gsm8k", ("test",), "main", ("question",), numeric=True),
    BenchmarkSet("math500", "HuggingFaceH4/MATH-500", ("test",), id="unique_id"),
    BenchmarkSet("aime24", "HuggingFaceH4/aime_2024", ("train",)),
    BenchmarkSet("aime25", "math-ai/aime25", ("test",)),
    BenchmarkSet("amc23", "math-ai/amc23", ("test",), None, ("question",), numeric=True),
    BenchmarkSet("minerva_math", "math-ai/minervamath", ("test",), None, ("question",)),
    BenchmarkSet(
        "olympiadbench", "Hothan/OlympiadBench", ("train",), "OE_TO_maths_en_COMP", ("question",), "final_answer"
    ),
    BenchmarkSet(
        "svamp", "ChilleD/SVAMP", ("train", "test"), None, ("Body", "Question"), "Answer", id="ID", numeric=True
    ),
    BenchmarkSet("asdiv", "EleutherAI/asdiv", ("validation",), "asdiv", ("body", "question"), numeric=True, skip=";"),
    BenchmarkSet("mawps", "MU-NLPC/Calc-mawps", ("test",), None, ("question",), "result", numeric=True),
)
"""Benchmark sets by name."""

SUITES: Mapping[str, tuple[str, ...]] = {
    "math": tuple(SETS),
    "sinii2025": ("aime24", "aime25", "amc23", "math500", "minerva_math", "olympiadbench"),
}
"""Names for several sets; ``sinii2025`` are the six of arXiv 2509.06608."""


def suite_sets(names: Sequence[str]) -> list[BenchmarkSet]:
    """The sets that ``names`` (of suites, of sets, or both) stand for, each once.

    Raises:
        DataError: for an unknown name, or none.
    """
    found: dict[str, BenchmarkSet] = {}
    for name in names:
        if name not in SUITES and name not in SETS:
            known = [*SUITES, *SETS]
            raise DataError(
                f"No benchmark suite or set {name!r}.{did_you_mean(name, known)} Suites: {', '.join(SUITES)}; "
                f"sets: {', '.join(SETS)}."
            )
        for part in SUITES.get(name, (name,)):
            found[part] = SETS[part]
    if not found:
        raise DataError(f"Name a benchmark suite or set: {', '.join([*SUITES, *SETS])}.")
    return list(found.values())


def load_suite(names: Sequence[str], data_root: str | None = None) -> dict[str, list[Example]]:
    """Examples of each set, by its name, in the order of ``names``.

    Args:
        names: suites and sets.
        data_root: folder with a file of each set (``gsm8k.jsonl`` or ``gsm8k_test.jsonl``; also .json, .parquet,
            .csv) or a copy of the hub's folder (``openai/gsm8k/``). None: the sets come from the hub.

    Raises:
        DataError: in one line that names all the files that are not there; also for columns that don't fit.
    """
    sets = suite_sets(names)
    if data_root is None:
        return {item.name: _examples(item, item.hub, None) for item in sets}
    if not Path(data_root).is_dir():
        raise DataError(f"data_root {data_root} is not a folder.")
    places = {item.name: _place(item, Path(data_root)) for item in sets}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        raise DataError(
            f"{data_root} has no file for {', '.join(missing)}: expected {missing[0]}.jsonl or {missing[0]}_test.jsonl "
            f"(or .json, .parquet, .csv), or the hub's folder {SETS[missing[0]].hub}."
        )
    return {item.name: _examples(item, str(places[item.name]), data_root) for item in sets}


def _place(item: BenchmarkSet, root: Path) -> str | None:
    """The path under ``root`` that holds the set."""
    for stem in (item.name, f"{item.name}_test"):
        for suffix in SUFFIXES:
            if (root / f"{stem}{suffix}").is_file():
                return f"{stem}{suffix}"
    return item.hub if (root / item.hub).is_dir() else None


def _examples(item: BenchmarkSet, path: str, data_root: str | None) -> list[Example]:
    from_hub = path == item.hub
    tables = read_source(path, data_root, item.config if from_hub else None, None)
    if from_hub:
        for split in item.splits:
            if split not in tables:
                raise DataError(f"{item.hub} has no split {split!r}; it has {', '.join(map(str, tables))}.")
        rows = [row for split in item.splits for row in tables[split]]
    else:
        rows = [row for table in tables.values() for row in table]
    reading = Reading(item.name, {}, {}, None)
    examples = to_examples(item.rows(rows), reading, Counts())
    if not examples:
        raise DataError(f"{item.name} ({path}) has no problem with an answer.")
    _refuse_equal_ids(examples, item.name)
    return examples


def _refuse_equal_ids(examples: Sequence[Example], name: str) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"{name}: two problems have the id {example.id!r}; samples are drawn by it.")
        seen.add(example.id)
