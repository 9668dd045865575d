"""The metrics as torchmetrics modules: accumulated over batches, summed over devices.

Every state is a sum, so merging two instances, or the processes of a DDP run, gives what one instance that saw all
the problems gives, however they were dealt out. A problem's samples have to stay together (one row of a table).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from steerkit.errors import SteerkitError
from steerkit.evaluation.at_k import maj_at_k, pass_at_k
from steerkit.evaluation.metrics import avg_at_k


class MeanOverProblems(Metric):
    """Base: the mean of one number a problem; a subclass's ``update`` hands the numbers to ``add``."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    total: Tensor
    problems: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")  # float32: MPS has no doubles
        self.add_state("problems", default=torch.tensor(0), dist_reduce_fx="sum")

    def add(self, values: Any) -> None:
        """Adds [N] numbers; NaN (nothing known of the problem) is left out."""
        numbers = torch.as_tensor(values, device="cpu").to(torch.float64)
        known = ~numbers.isnan()
        self.total += numbers[known].sum().to(self.total)
        self.problems += known.sum().to(self.problems)

    def compute(self) -> Tensor:
        """Scalar; NaN before any problem came."""
        return self.total / self.problems


class AvgAtK(MeanOverProblems):
    """Mean over problems of the share of right samples.

    >>> metric = AvgAtK()
    >>> metric.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> float(metric.compute())
    0.75
    """

    def update(self, correct: Tensor) -> None:
        """Adds [N, K] bool or 0/1 verdicts of N problems; NaN (a fault) is left out, as are rows of nothing else."""
        self.add(avg_at_k(_table(correct)))


class PassAtK(MeanOverProblems):
    """Mean over problems of the unbiased pass@k (``at_k.pass_at_k``); problems with fewer samples than k are left out.

    >>> metric = PassAtK(2)
    >>> metric.update(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> round(float(metric.compute()), 4)
    0.3333
    """

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise SteerkitError(f"pass@k needs k of at least 1, got {k}.")
        self.k = k

    def update(self, correct: Tensor) -> None:
        """Adds [N, K] verdicts as ``AvgAtK`` has them; K >= k."""
        self.add(pass_at_k(_table(correct), self.k))


class MajAtK(MeanOverProblems):
    """Share of problems whose most frequent answer is right (``at_k.maj_at_k``; a tie counts as its share)."""

    def update(self, answers: Sequence[Sequence[str | None]], correct: Tensor) -> None:
        """Adds N problems: ``[N][K]`` answer texts and their [N, K] verdicts."""
        self.add(maj_at_k(answers, _table(correct)))


class MeanLength(MeanOverProblems):
    """Mean length of a completion in tokens (each completion counts once)."""

    higher_is_better = None

    def update(self, lengths: Tensor) -> None:
        """Adds lengths of any shape."""
        self.add(lengths.reshape(-1))


class Rate(MeanOverProblems):
    """Share of completions of which something holds: cut off (truncation rate), or with a box (boxed rate)."""

    higher_is_better = None

    def update(self, holds: Tensor) -> None:
        """Adds booleans of any shape, one a completion."""
        self.add(holds.reshape(-1))


class FirstTokens(Metric):
    """Distribution of the first generated token.

    Args:
        vocab_size: V, the number of token ids.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor

    def __init__(self, vocab_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", default=torch.zeros(vocab_size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, ids: Tensor) -> None:
        """Adds token ids of any shape, one a completion."""
        self.counts += torch.bincount(ids.reshape(-1), minlength=len(self.counts)).to(self.counts)

    def compute(self) -> Tensor:
        """[V] shares that sum to 1; NaN before any completion came."""
        return self.counts / self.counts.sum()

    def top(self, n: int = 5) -> list[tuple[int, float]]:
        """The ``n`` most frequent ids with their shares, those that never came left out."""
        best = self.compute().topk(min(n, len(self.counts)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(index, share) for index, share in pairs if share > 0]


def _table(correct: Tensor) -> Any:
    return correct.detach().to("cpu", torch.float64).numpy()
