"""torchmetrics modules: one instance = several merged = two processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing
from torchmetrics import Metric

from steerkit.errors import SteerkitError
from steerkit.evaluation.modules import AvgAtK, FirstTokens, MajAtK, MeanLength, PassAtK, Rate

VOCAB = 11
N, K = 13, 4  # 13 problems do not divide evenly


def inputs(first: int = 0, last: int = N) -> dict[str, tuple[Any, ...]]:
    """Arguments of each metric's update for problems first..last, with faults and empty answers."""
    generator = torch.Generator().manual_seed(0)
    correct = (torch.rand(N, K, generator=generator) < 0.4).float()
    correct[2, 1] = math.nan
    correct[5] = math.nan
    numbers = torch.randint(0, 3, (N, K), generator=generator)
    answers = [[("" if n == 0 else str(int(n))) for n in row] for row in numbers]
    lengths = torch.randint(1, 50, (N, K), generator=generator)
    tokens = torch.randint(0, VOCAB, (N, K), generator=generator)
    rows = slice(first, last)
    return {
        "avg": (correct[rows],),
        "pass": (correct[rows],),
        "maj": (answers[rows], correct[rows]),
        "length": (lengths[rows],),
        "rate": (lengths[rows] > 30,),
        "first": (tokens[rows],),
    }


def metrics() -> dict[str, Metric]:
    return {
        "avg": AvgAtK(),
        "pass": PassAtK(2),
        "maj": MajAtK(),
        "length": MeanLength(),
        "rate": Rate(),
        "first": FirstTokens(VOCAB),
    }


def expected() -> dict[str, torch.Tensor]:
    found = metrics()
    for name, arguments in inputs().items():
        found[name].update(*arguments)
    return {name: metric.compute() for name, metric in found.items()}


def test_values_by_hand() -> None:
    found = expected()
    (correct,), (lengths,), (tokens,) = inputs()["avg"], inputs()["length"], inputs()["first"]
    rows = [[v for v in row.tolist() if not math.isnan(v)] for row in correct]
    kept = [row for row in rows if row]
    assert len(kept) == N - 1
    assert float(found["avg"]) == pytest.approx(sum(sum(row) / len(row) for row in kept) / len(kept))
    pairs = [1 - math.comb(len(r) - int(sum(r)), 2) / math.comb(len(r), 2) for r in kept]
    assert float(found["pass"]) == pytest.approx(sum(pairs) / len(pairs))
    assert float(found["length"]) == pytest.approx(lengths.float().mean().item())
    assert float(found["rate"]) == pytest.approx((lengths > 30).float().mean().item())
    assert float(found["first"][3]) == pytest.approx((tokens == 3).float().mean().item())
    assert float(found["first"].sum()) == pytest.approx(1)
    assert 0 < float(found["maj"]) < 1


@pytest.mark.parametrize("cut", [0, 1, 6, N])
def test_merged_halves_equal_the_whole(cut: int) -> None:
    first, second = metrics(), metrics()
    for name in first:
        first[name].update(*inputs(0, cut)[name])
        second[name].update(*inputs(cut, N)[name])
        first[name].merge_state(second[name])
        torch.testing.assert_close(first[name].compute(), expected()[name])


def worker(rank: int, folder: str) -> None:
    """One of two processes, with 5 and 8 of the problems, in two batches."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    bounds = [(0, 3), (3, 5)] if rank == 0 else [(5, 12), (12, 13)]
    found = metrics()
    for first, last in bounds:
        for name, arguments in inputs(first, last).items():
            found[name].update(*arguments)
    torch.save({name: metric.compute() for name, metric in found.items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected().keys()
        for name, value in expected().items():
            torch.testing.assert_close(found[name], value)


def test_nothing_yet_is_nan_and_reset_empties() -> None:
    for name, metric in metrics().items():
        metric.update(*inputs()[name])
        metric.reset()
        with pytest.warns(UserWarning, match="before the ``update``"):
            assert metric.compute().isnan().all()


def test_top_first_tokens() -> None:
    metric = FirstTokens(VOCAB)
    metric.update(torch.tensor([[4, 4, 4], [2, 2, 9]]))
    assert metric.top(2) == [(4, 0.5), (2, pytest.approx(1 / 3))]
    assert len(metric.top(10)) == 3


def test_bad_input() -> None:
    with pytest.raises(SteerkitError, match="k of at least 1"):
        PassAtK(0)
    for metric in (AvgAtK(), PassAtK(1)):
        with pytest.raises(SteerkitError, match="problems, samples"):
            metric.update(torch.tensor([1.0]))
