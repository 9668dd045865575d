"""Accuracy inside an analysis: completions judged by a verifier plugin, and shares of a gain with their interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from steerkit.analysis.statistics import row
from steerkit.analysis.work import Work
from steerkit.evaluation.metrics import avg_at_k, mean_interval
from steerkit.evaluation.records import correct_table, judge_groups
from steerkit.rewards.verifiable import Verifiable
from steerkit.types import RolloutGroup


class Judge:
    """Judges completions as ``evaluate`` does; the verifier starts with the first ones and is closed with the block.

    Args:
        verifier: a plugin of group ``steerkit.verifiers``, with its settings.
    """

    def __init__(self, work: Work, verifier: str | Mapping[str, Any] = "math") -> None:
        self._work, self._verifier = work, verifier
        self._running: Verifiable | None = None

    def shares(self, name: str, groups: Sequence[RolloutGroup]) -> NDArray[np.float64]:
        """[N] the share of right completions of each prompt (NaN: the verifier failed on all); a part of the analysis.

        Args:
            name: unique among what is judged.
        """

        def compute() -> dict[str, torch.Tensor]:
            self._work.progress(f"judging, {name}", 0, len(groups))
            if self._running is None:
                self._running = Verifiable(self._verifier)
            table = correct_table(judge_groups(self._running, groups))
            self._work.progress(f"judging, {name}", len(groups), len(groups))
            return {"shares": torch.from_numpy(avg_at_k(table))}

        found: NDArray[np.float64] = self._work.part(f"verdicts {name} {self._verifier}", compute)["shares"].numpy()
        return found

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            self._running.close()


def accuracy_row(
    metric: str, shares: ArrayLike, control: ArrayLike | None = None, seed: int = 0, **keys: Any
) -> dict[str, Any]:
    """A row of an accuracy: as ``row``, with the exact binomial interval where all are right or all are wrong.

    Args:
        shares: [N] one share of right completions a problem.
    """
    made = row(metric, shares, control, seed, **keys)
    for ends, values in (("ci95", shares), ("control_ci95", control)):
        known = None if values is None else np.asarray(values, dtype=np.float64)
        if known is not None and not np.isnan(known).all():
            found = mean_interval(known, seed)
            made[ends] = [found.low, found.high]
    return made


def ratio_row(
    metric: str,
    numerators: ArrayLike,
    denominators: ArrayLike,
    seed: int = 0,
    offset: float = 0.0,
    sign: float = 1.0,
    n_resamples: int = 2000,
    **keys: Any,
) -> dict[str, Any]:
    """A row of offset + sign x mean(numerators) / mean(denominators), both of the same problems.

    The bootstrap resamples pairs. There is no value where the denominators' mean is 0, and no interval where it may
    be: where more than 2.5 % of the resamples give it another sign.

    Args:
        numerators: [N]; NaN in either leaves the problem out.
        denominators: [N]
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    known = ~(np.isnan(above) | np.isnan(below))
    above, below = above[known], below[known]
    made = row(metric, None, None, **keys)  # type: ignore[arg-type]
    made["n"] = len(above)
    mean = float(below.mean()) if len(below) else 0.0
    if abs(mean) < 1e-12:
        return made
    made["value"] = offset + sign * float(above.mean()) / mean
    if len(above) > 1:
        weights = np.random.default_rng(seed).multinomial(len(above), np.full(len(above), 1 / len(above)), n_resamples)
        tops, bottoms = weights @ above, weights @ below
        if (np.sign(bottoms) != np.sign(mean)).mean() <= 0.025:
            kept = np.sign(bottoms) == np.sign(mean)
            ratios = offset + sign * tops[kept] / bottoms[kept]
            made["ci95"] = [float(end) for end in np.quantile(ratios, [0.025, 0.975])]
    return made
