"""What the benchmarks rest on: which way a ratio goes; both sides make completions of the lengths asked for."""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def test_ratios_larger_is_better(benchmarks):
    from common import Row

    assert Row.of("x", [(30.0, 10.0), (20.0, 10.0), (90.0, 10.0)], "tokens/s", True).ratio == 3
    row = Row.of("step_vs_trl", [(2.0, 10.0)], "s", False, "smollm2-135m-instruct")
    assert (row.ratio, row.target, row.median_a, row.median_b) == (5, 5, 2, 10)
    assert Row.of("step_vs_trl", [(2.0, 10.0)], "s", False, "other").name == "step_vs_trl@other"
    # Pair by pair: a machine that slows down for a while changes no ratio.
    assert Row.of("x", [(1.0, 4.0), (10.0, 40.0)], "s", False).ratio == 4


@pytest.mark.parametrize("natural", [False, True])
def test_both_sides_make_the_lengths(benchmarks, natural):
    from rollouts import Sides
    from workload import Workload, natural_lengths

    work = Workload("tiny-reasoner", "smoke")
    lengths = natural_lengths(4, 12) if natural else None
    assert not natural or (max(lengths) == 12 and min(lengths) >= 2 and len(set(lengths)) > 1)
    sides = Sides(work, 2, 12, lengths)
    assert sides.ours() > 0 and sides.theirs() > 0  # they check the lengths themselves
    sides.expected += 1
    with pytest.raises(SystemExit, match="would not do the same"):
        sides.ours()


def test_fits(benchmarks):
    from growth import fitted

    assert fitted([1, 2, 4], [3.0, 5.0, 9.0]) == pytest.approx({"slope": 2, "intercept": 1, "exponent": 0.79}, abs=0.01)
