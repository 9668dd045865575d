"""Any set of problems with answers: files, folders and hub data sets, alone or concatenated."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

from steerkit.datasets.base import SPLITS, Split
from steerkit.datasets.columns import Counts, Reading, to_examples
from steerkit.datasets.readers import SPLIT_WORDS, Tables, read_source
from steerkit.datasets.splits import assign_split, check_fractions, deduplicate, normalised_key, subset
from steerkit.errors import DataError
from steerkit.registry import did_you_mean
from steerkit.types import Example

logger = logging.getLogger(__name__)

_PER_SOURCE = ("path", "columns", "where", "answer_pattern", "config", "revision", "splits")


class Records:
    """A prompt data set read from JSON Lines, JSON, CSV, parquet, a folder of these, or the hub.

    Args:
        path: a path under ``data_root``, a hub id (``openai/gsm8k``), or a list of these, concatenated in order. An
            item may be a mapping ``{path: ..., columns: ..., where: ...}`` whose settings replace those below
            (``columns``, ``where``, ``answer_pattern``, ``config``, ``revision``, ``splits``) for that source.
        data_root: where relative paths start; None: the working directory.
        columns: our column -> the source's. ``problem`` falls back on the only one of question, prompt; ``answer``
            on solution; ``id`` and ``source`` are taken where present. Other keys rename other columns; every column
            left over reaches reward functions under its own name.
        where: keep rows by equality, e.g. ``{subject: [Addition, Subtraction], grade: 3}``.
        answer_pattern: regular expression; the first group of its last match in the answer column is the answer
            (``'####\\s*(.+)'`` for GSM8K as published).
        config: the hub data set's configuration.
        revision: the hub data set's commit or tag.
        splits: our split -> the source's name of it, e.g. ``{test: train}`` for a benchmark published as "train".
            None: names such as train, val and test are understood.
        unsplit_as: which split a source without splits of its own is, unless ``split_by_hash`` is given.
        split_by_hash: shares of train, validation and test, e.g. ``[0.8, 0.1, 0.1]``: the source's own splits are
            pooled and each problem goes where its ``normalised_key`` says. None: the source's own splits.
        drop_duplicates: drop a problem that was there before (by ``normalised_key``) in any source or split; of two
            splits, test keeps it before validation and train.
        on_empty: ``drop`` (counted and logged) or ``refuse`` rows without a problem or an answer.
        limit: at most so many examples a split, chosen by a hash of ``seed`` and the problem (not the first rows).
        seed: enters the choice that ``limit`` makes and nothing else; splits never depend on it.

    Raises:
        DataError: for unknown settings; on ``load`` also for missing files, columns, splits, and equal ids.
    """

    def __init__(
        self,
        path: str | list[str | dict[str, Any]],
        *,
        data_root: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        where: Mapping[str, Any] | None = None,
        answer_pattern: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str] | None = None,
        unsplit_as: Split = "test",
        split_by_hash: Sequence[float] | None = None,
        drop_duplicates: bool = True,
        on_empty: Literal["drop", "refuse"] = "drop",
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        shared = {
            "columns": columns or {},
            "where": where or {},
            "answer_pattern": answer_pattern,
            "config": config,
            "revision": revision,
            "splits": splits,
        }
        items = path if isinstance(path, list) else [path]
        if not items:
            raise DataError("No data set given: path is an empty list.")
        self._sources = [shared | _source(item) for item in items]
        for source in self._sources:
            for name in source["splits"] or {}:
                _check_split(name)
            _check_pattern(source["answer_pattern"])
        _check_split(unsplit_as)
        if split_by_hash is not None:
            check_fractions(split_by_hash)
        if limit is not None and limit < 1:
            raise DataError(f"limit must be at least 1, got {limit}.")
        if on_empty not in ("drop", "refuse"):
            raise DataError(f"on_empty must be 'drop' or 'refuse', got {on_empty!r}.")
        self.data_root = data_root
        self.unsplit_as = unsplit_as
        self.split_by_hash = split_by_hash
        self.drop_duplicates = drop_duplicates
        self.on_empty = on_empty
        self.limit = limit
        self.seed = seed
        self.counts = Counts()
        """What became of the rows; filled by the first ``load``."""
        self._splits: dict[Split, list[Example]] | None = None

    def load(self, split: Split) -> list[Example]:
        """All examples of ``split``, in the order of the sources; read once, then kept."""
        _check_split(split)
        if self._splits is None:
            self._splits = self._read()
        examples = self._splits[split]
        if not examples:
            sizes = ", ".join(f"{name} {len(rows)}" for name, rows in self._splits.items())
            raise DataError(
                f"The {split} split of {self._names()} is empty ({sizes}). Set split_by_hash=[0.8, 0.1, 0.1] to divide "
                f"the rows, splits={{{split!r}: ...}} to name a source's split, or unsplit_as={split!r} to take it all."
            )
        return list(examples)

    def _names(self) -> str:
        return ", ".join(str(source["path"]) for source in self._sources)

    def _read(self) -> dict[Split, list[Example]]:
        counts = Counts()
        found: list[tuple[Split, Example]] = []
        for source in self._sources:
            tables = read_source(source["path"], self.data_root, source["config"], source["revision"])
            label = PurePath(source["path"]).stem
            reading = Reading(label, source["columns"] or {}, source["where"] or {}, source["answer_pattern"])
            for split, name in self._chosen(tables, source["splits"], source["path"]):
                found += [(split, example) for example in to_examples(tables[name], reading, counts, name or "")]
        self._report_empty(counts)
        if self.split_by_hash is not None:
            found = [(assign_split(normalised_key(e.problem), self.split_by_hash), e) for _, e in found]
        if self.drop_duplicates:
            found = self._without_duplicates(found, counts)
        _refuse_equal_ids([example for _, example in found])
        self.counts = counts
        return {split: subset([e for owner, e in found if owner == split], self.limit, self.seed) for split in SPLITS}

    def _chosen(self, tables: Tables, splits: Mapping[str, str] | None, path: str) -> list[tuple[Split, str | None]]:
        """Pairs (our split, the source's name of it)."""
        own = [name for name in tables if name is not None]
        if not own:
            return [(self.unsplit_as, None)]
        if splits is not None:
            for theirs in splits.values():
                if theirs not in own:
                    raise DataError(
                        f"{path} has no split {theirs!r}.{did_you_mean(theirs, own)} It has {', '.join(own)}."
                    )
            return [(ours, theirs) for ours, theirs in splits.items()]  # type: ignore[misc]
        for name in own:
            if name.lower() not in SPLIT_WORDS:
                raise DataError(
                    f"{path} has the splits {', '.join(own)}: say which to use, as in splits={{'test': {name!r}}}."
                )
        return [(SPLIT_WORDS[name.lower()], name) for name in own]

    def _report_empty(self, counts: Counts) -> None:
        if not counts.empty:
            return
        text = f"{counts.empty} of {counts.rows} rows of {self._names()} have no problem or no answer"
        if self.on_empty == "refuse":
            raise DataError(f"{text}; set on_empty='drop' to leave them out.")
        logger.warning("%s: left out", text)

    def _without_duplicates(self, found: list[tuple[Split, Example]], counts: Counts) -> list[tuple[Split, Example]]:
        # Under the source's own splits a repeated problem stays where it measures, not where it trains.
        rank = {"test": 0, "validation": 1, "train": 2}
        kept, dropped = deduplicate(e for _, e in sorted(found, key=lambda pair: rank[pair[0]]))
        counts.duplicates = len(dropped)
        counts.conflicts = sum(first.answer != second.answer for first, second in dropped)
        if dropped:
            logger.info(
                "%d repeated problems of %s left out, %d of them with another answer than the one kept",
                counts.duplicates,
                self._names(),
                counts.conflicts,
            )
        stay = {id(example) for example in kept}
        return [pair for pair in found if id(pair[1]) in stay]


def _source(item: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(item, (str, PurePath)):
        return {"path": str(item)}
    for key in item:
        if key not in _PER_SOURCE:
            raise DataError(f"A data source has no setting {key!r}.{did_you_mean(key, _PER_SOURCE)}")
    if "path" not in item:
        raise DataError(f"A data source needs a path, got only {sorted(item)}.")
    return dict(item)


def _check_pattern(pattern: str | None) -> None:
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise DataError(f"answer_pattern {pattern!r} is not a regular expression: {error}.") from error
    if groups < 1:
        raise DataError(f"answer_pattern {pattern!r} has no group: put the answer's part in parentheses.")


def _check_split(name: str) -> None:
    if name not in SPLITS:
        raise DataError(f"No split {name!r}.{did_you_mean(name, SPLITS)} Splits: {', '.join(SPLITS)}.")


def _refuse_equal_ids(examples: list[Example]) -> None:
    seen: dict[str, Example] = {}
    for example in examples:
        first = seen.setdefault(example.id, example)
        if first is not example:
            raise DataError(
                f"Two examples have the id {example.id!r} (sources {first.source!r} and {example.source!r}): name "
                f"another column in columns={{'id': ...}}, or number the rows with columns={{'id': None}}."
            )
