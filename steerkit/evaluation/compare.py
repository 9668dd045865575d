"""Two evaluations of the same problems: the paired difference, and the samples that flipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from steerkit.datasets import normalised_key
from steerkit.errors import DataError
from steerkit.evaluation.metrics import Interval, paired_difference_interval, paired_mean_over_sets
from steerkit.evaluation.records import by_problem, mean_share, verdict_table
from steerkit.evaluation.rows import MEAN
from steerkit.types import VerdictStatus

Sample = Mapping[str, Any]
Part = tuple[str, float]
"""(set, temperature)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One row of a comparison: B minus A on the problems that both have."""

    arms: tuple[str, str]
    set: str
    temperature: float
    n: int
    """Problems on both sides."""
    a: float
    """Accuracy of A on these problems."""
    b: float
    interval: Interval
    """Of b - a: mean, low, high; paired bootstrap over problems."""
    gained: int
    """Samples (of equal problem and number) that are wrong in A and right in B."""
    lost: int
    """Samples that are right in A and wrong in B."""

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "arm_a": self.arms[0],
            "arm_b": self.arms[1],
            "set": self.set,
            "temperature": self.temperature,
            "n": self.n,
            "accuracy_a": self.a,
            "accuracy_b": self.b,
            "difference": self.interval.mean,
            "ci95": [self.interval.low, self.interval.high],
            "gained": self.gained,
            "lost": self.lost,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences, the samples behind them, and what stands on one side only."""

    rows: list[Difference]
    flips: list[dict[str, Any]]
    """One a sample whose verdict is another in B: ids, both verdicts, both completions."""
    left_out: list[str]
    """One line each."""


def read_samples(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of ``FOLDER/samples.parquet``; an older file without ``seed`` counts as one seed.

    Raises:
        DataError: if it is missing, damaged or has other columns.
    """
    from pyarrow import ArrowException, parquet

    path = Path(folder) / "samples.parquet"
    if not path.is_file():
        unfinished = (Path(folder) / "journal").is_dir()
        hint = "its evaluation is not finished: run its command again" if unfinished else "not an evaluation's folder"
        raise DataError(f"{folder} has no samples.parquet ({hint}).")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(f"Can't read {path}: {str(error).splitlines()[0]}") from None
    rows = [{"seed": 0, **row} for row in rows]
    missing = sorted(_COLUMNS.keys() - rows[0].keys()) if rows else sorted(_COLUMNS)
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: it wasn't written by steerkit evaluate or fit.")
    for number, row in enumerate(rows, start=1):
        for name, good in _COLUMNS.items():
            if not good(row[name]):
                raise DataError(f"{path}, row {number}: {name!r} can't be {row[name]!r:.60}.")
    return rows


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_COLUMNS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("arm", "set", "id", "problem", "completion"), _text),
    **dict.fromkeys(("seed", "sample"), _whole),
    "temperature": lambda value: (isinstance(value, float) and math.isfinite(value)) or _whole(value),
    "verdict": lambda value: value in get_args(VerdictStatus),
}
"""What a comparison reads of a sample. The file may be a stranger's."""


def compare(a: Sequence[Sample], b: Sequence[Sample], arms: tuple[str, str] | None = None, seed: int = 0) -> Comparison:
    """Compare two evaluations on the problems that they share.

    A problem is shared if set, id and normalised text agree. Arms of the same name are compared, or the two given.

    Args:
        a, b: rows of ``samples.parquet``.
        arms: the arm of A and the arm of B.
        seed: of the bootstrap.

    Raises:
        DataError: if no arm, or no problem, is on both sides.
        SteerkitError: if a set has no problem with a verdict on both sides (faults alone).
    """
    found = Comparison([], [], [])
    for pair in _arm_pairs(a, b, arms):
        first, second = _parts(a, pair[0]), _parts(b, pair[1])
        own = [(part, *_shared(first[part], second[part])) for part in first if part in second]
        for part in dict.fromkeys([*first, *second]):
            missing = _missing(part, first, second)
            if missing:
                found.left_out.append(f"{_label(pair, part)}: {missing}.")
        kept = [(part, one, other) for part, one, other in own if one]
        differences = [_difference(pair, part, one, other, seed) for part, one, other in kept]
        found.rows.extend(differences)
        for temperature in dict.fromkeys(part[1] for part, _, _ in kept):
            sets = [(one, other) for part, one, other in kept if part[1] == temperature]
            if len(sets) > 1:
                of_sets = [row for row in differences if row.temperature == temperature]
                found.rows.append(_mean(pair, temperature, of_sets, sets, seed))
        for part, one, other in kept:
            found.flips.extend(_flips(pair, part, one, other))
    if not found.rows:
        raise DataError("The two evaluations share no problem (same set, id, text and temperature): nothing to pair.")
    return found


def _label(pair: tuple[str, str], part: Part) -> str:
    return f"{' / '.join(dict.fromkeys(pair))}, {part[0]}, temperature {part[1]:g}"


def _missing(part: Part, a: Mapping[Part, Sequence[Sample]], b: Mapping[Part, Sequence[Sample]]) -> str:
    """What of one set and temperature is on one side only."""
    if part not in a or part not in b:
        return f"only in {'B' if part in b else 'A'}"
    shared = len(by_problem(_shared(a[part], b[part])[0]))
    sizes = len(by_problem(a[part])), len(by_problem(b[part]))
    extra = [
        f"{size - shared} problems of {side} only" for side, size in zip("AB", sizes, strict=True) if size > shared
    ]
    return ", ".join(extra)


def _difference(pair: tuple[str, str], part: Part, a: Sequence[Sample], b: Sequence[Sample], seed: int) -> Difference:
    shares = np.stack([mean_share(a), mean_share(b)])
    known = ~np.isnan(shares).any(axis=0)  # the interval's problems: a verdict on both sides
    flips = _flips(pair, part, a, b)
    interval = paired_difference_interval(verdict_table(b), verdict_table(a), seed)
    changes = [(flip["verdict_a"], flip["verdict_b"]) for flip in flips]
    means = shares[:, known].mean(axis=1)
    return Difference(
        pair,
        *part,
        int(known.sum()),
        float(means[0]),
        float(means[1]),
        interval,
        changes.count(("wrong", "correct")),
        changes.count(("correct", "wrong")),
    )


def _arm_pairs(a: Sequence[Sample], b: Sequence[Sample], arms: tuple[str, str] | None) -> list[tuple[str, str]]:
    there, here = (list(dict.fromkeys(sample["arm"] for sample in side)) for side in (a, b))
    if arms is not None:
        for name, side, names in ((arms[0], "A", there), (arms[1], "B", here)):
            if name not in names:
                raise DataError(f"{side} has no arm {name!r}; it has {', '.join(names)}.")
        return [arms]
    shared = [(name, name) for name in there if name in here]
    if not shared:
        raise DataError(
            f"No arm is in both: A has {', '.join(there)}, B has {', '.join(here)}. Name one of each, with --arms A B."
        )
    return shared


def _parts(samples: Sequence[Sample], arm: str) -> dict[Part, list[Sample]]:
    found: dict[Part, list[Sample]] = {}
    for sample in samples:
        if sample["arm"] == arm:
            found.setdefault((sample["set"], sample["temperature"]), []).append(sample)
    return found


def _shared(a: Sequence[Sample], b: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of the problems on both sides, problems in the same order."""
    first, second = by_problem(a), by_problem(b)
    keys = [
        key
        for key, row in first.items()
        if key in second and normalised_key(row[0]["problem"]) == normalised_key(second[key][0]["problem"])
    ]
    return [s for key in keys for s in first[key]], [s for key in keys for s in second[key]]


def _flips(arms: tuple[str, str], part: Part, a: Sequence[Sample], b: Sequence[Sample]) -> list[dict[str, Any]]:
    """Samples of one problem and number whose verdict changed.

    With equal seeds they were drawn with the same random numbers. With other seeds the first seed of A meets the
    first of B, and so on.
    """
    there = _numbered(a)
    flips = []
    for key, after in _numbered(b).items():
        before = there.get(key)
        if before is None or before["verdict"] == after["verdict"]:
            continue
        facts = {name: after.get(name) for name in ("seed", "id", "sample", "problem", "answer")}
        flip = {"arm_a": arms[0], "arm_b": arms[1], "set": part[0], "temperature": part[1], **facts}
        for name in ("verdict", "reason", "extracted", "completion"):
            flip |= {f"{name}_a": before.get(name), f"{name}_b": after.get(name)}
        flips.append(flip)
    return flips


def _numbered(samples: Sequence[Sample]) -> dict[tuple[str, int, int], Sample]:
    """(problem id, how many-th seed, sample) -> sample."""
    ranks = {seed: rank for rank, seed in enumerate(sorted({sample["seed"] for sample in samples}))}
    return {(sample["id"], ranks[sample["seed"]], sample["sample"]): sample for sample in samples}


def _mean(
    pair: tuple[str, str],
    temperature: float,
    rows: Sequence[Difference],
    sets: Sequence[tuple[Sequence[Sample], Sequence[Sample]]],
    seed: int,
) -> Difference:
    """Unweighted over sets."""
    count = len(rows)
    tables = [(verdict_table(b), verdict_table(a)) for a, b in sets]
    return Difference(
        pair,
        MEAN,
        temperature,
        sum(row.n for row in rows),
        sum(row.a for row in rows) / count,
        sum(row.b for row in rows) / count,
        paired_mean_over_sets(tables, seed),
        sum(row.gained for row in rows),
        sum(row.lost for row in rows),
    )
