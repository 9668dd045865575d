"""Two evaluations side by side: differences on shared problems, and the samples that flipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerkit.errors import DataError, SteerkitError
from steerkit.evaluation.compare import compare, read_samples
from steerkit.evaluation.metrics import paired_difference_interval
from steerkit.evaluation.results import write_samples

Rows = list[dict[str, Any]]


def samples(table: Any, arm: str = "base", set_: str = "s", temperature: float = 1.0, seed: int = 1) -> Rows:
    """Records of a [problems, samples] table of 1, 0 and NaN."""
    names = {1.0: "correct", 0.0: "wrong"}
    return [
        {
            "arm": arm,
            "set": set_,
            "temperature": temperature,
            "seed": seed,
            "id": f"{set_}{n}",
            "problem": f"problem {n} of {set_}",
            "answer": "1",
            "sample": j,
            "verdict": names.get(float(value), "fault"),
            "reason": "r",
            "extracted": "x",
            "completion": f"{arm} {n} {j} {value}",
        }
        for n, row in enumerate(np.asarray(table, dtype=float))
        for j, value in enumerate(row)
    ]


A = [[1, 0], [0, 0], [1, 1], [0, 1]]
B = [[1, 1], [1, 0], [0, 1], [0, 1]]


def test_the_difference_is_the_paired_interval() -> None:
    found = compare(samples(A), samples(B), seed=4)
    (row,) = found.rows
    assert row.interval == paired_difference_interval(B, A, seed=4)
    assert (row.n, row.a, row.b, row.gained, row.lost) == (4, 0.5, 0.625, 2, 1)
    assert row.interval.mean == pytest.approx(row.b - row.a)


def test_the_flipped_samples() -> None:
    flips = compare(samples(A), samples(B)).flips
    assert [(f["id"], f["sample"], f["verdict_a"], f["verdict_b"]) for f in flips] == [
        ("s0", 1, "wrong", "correct"),
        ("s1", 0, "wrong", "correct"),
        ("s2", 0, "correct", "wrong"),
    ]
    assert flips[2]["completion_a"] == "base 2 0 1.0" and flips[2]["completion_b"] == "base 2 0 0.0"


def test_only_shared_problems_count() -> None:
    b = [{**s, "id": s["id"] if s["id"] != "s3" else "s9"} for s in samples(B)]
    b[0]["problem"] = b[1]["problem"] = "another problem of this id"
    found = compare(samples(A), b)
    assert (found.rows[0].n, found.rows[0].a, found.rows[0].b) == (2, 0.5, 0.5)
    assert found.left_out == ["base, s, temperature 1: 2 problems of A only, 2 problems of B only."]
    same = [{**s, "problem": s["problem"].upper() + "!"} for s in samples(B)]
    assert compare(samples(A), same).rows[0].n == 4  # the normalised text is what counts


def test_faults_leave_their_problem_out_on_both_sides() -> None:
    nan = float("nan")
    row = compare(samples([[1], [0], [1]]), samples([[1], [nan], [0]])).rows[0]
    assert (row.n, row.a, row.b, row.interval.mean, row.gained, row.lost) == (2, 1.0, 0.5, -0.5, 0, 1)
    with pytest.raises(SteerkitError, match="fault"):
        compare(samples([[1]]), samples([[nan]]))


def test_arms_sets_and_temperatures_are_kept_apart() -> None:
    def side(shift: float) -> Rows:
        rng = np.random.default_rng(int(10 * shift))
        return [
            record
            for arm in ("base", "steered")
            for set_, n in (("s", 30), ("t", 10))
            for temperature in (0.0, 1.0)
            for record in samples(rng.random((n, 2)) < 0.3 + shift, arm, set_, temperature)
        ]

    found = compare(side(0), side(0.4))
    keys = [(row.arms[0], row.set, row.temperature) for row in found.rows]
    assert sorted(set(keys)) == sorted(keys) and len(keys) == 2 * (2 * 2 + 2)
    for mean in [row for row in found.rows if row.set == "mean"]:
        parts = [r for r in found.rows if r.set != "mean" and (r.arms, r.temperature) == (mean.arms, mean.temperature)]
        assert mean.interval.mean == pytest.approx(np.mean([r.interval.mean for r in parts]))
        assert mean.interval.low < mean.interval.mean < mean.interval.high and mean.n == 40


def test_arms_of_two_names() -> None:
    a, b = samples(A, "base"), samples(B, "steered")
    with pytest.raises(DataError, match=r"A has base, B has steered.*--arms"):
        compare(a, b)
    both = a + b
    assert compare(both, both, ("base", "steered")).rows[0].interval == compare(samples(A), samples(B)).rows[0].interval
    with pytest.raises(DataError, match="B has no arm 'x'; it has base, steered"):
        compare(both, both, ("base", "x"))


def test_other_seeds_pair_by_their_order() -> None:
    a = samples([[1], [0]], seed=1) + samples([[1], [1]], seed=2)
    b = samples([[1], [1]], seed=7) + samples([[0], [1]], seed=8)
    found = compare(a, b)
    assert [(f["id"], f["verdict_b"]) for f in found.flips] == [("s0", "wrong"), ("s1", "correct")]
    assert (found.rows[0].gained, found.rows[0].lost) == (1, 1)


def test_nothing_shared_is_refused() -> None:
    other = [{**s, "id": "z" + s["id"]} for s in samples(B)]
    for b in (other, samples(B, set_="t"), samples(B, temperature=0.0)):
        with pytest.raises(DataError, match="share no problem"):
            compare(samples(A), b)


def test_reading_a_folder(tmp_path: Path) -> None:
    older = [{k: v for k, v in s.items() if k != "seed"} for s in samples(A)]
    write_samples(tmp_path / "samples.parquet", older)
    assert read_samples(tmp_path) == [{**s, "seed": 0} for s in older]
    with pytest.raises(DataError, match="not an evaluation's folder"):
        read_samples(tmp_path / "nowhere")
    (tmp_path / "half" / "journal").mkdir(parents=True)
    with pytest.raises(DataError, match="not finished"):
        read_samples(tmp_path / "half")
    (tmp_path / "samples.parquet").write_bytes(b"PAR1 not a parquet file")
    with pytest.raises(DataError, match="Can't read"):
        read_samples(tmp_path)
    write_samples(tmp_path / "samples.parquet", [{"id": "x"}])
    with pytest.raises(DataError, match="no column 'arm'"):
        read_samples(tmp_path)
