"""Which SAE features are active in right rather than wrong completions of the same problem, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerkit.analysis.sae import Sae
from steerkit.analysis.statistics import row
from steerkit.analysis.texts import Text

WINDOW = 12
"""Tokens shown on each side of a top activation."""
PER_FEATURE = 4
"""Top texts of a feature."""


@dataclass(frozen=True)
class Ranking:
    """Features by the size of their active-rate difference."""

    differences: Tensor
    """[M, F] right - wrong, of the M problems that have both."""
    rates: Tensor
    """[F] share of all positions at which each is active."""
    order: list[int]
    """Features, the largest mean difference (either sign) first."""
    chance: list[float]
    """[F] by rank: mean size of the difference when verdicts are shuffled."""

    def rows(self, name: str, listed: int, seed: int) -> list[dict[str, Any]]:
        """One row a feature, in the order of the ranking."""
        if not len(self.differences):
            return [row("active rate, right - wrong", float("nan"), seed=seed, vector=name)]
        return [
            row("active rate, right - wrong", self.differences[:, feature].tolist(), self.chance[rank], seed,
                vector=name, feature=feature, rank=rank + 1)
            for rank, feature in enumerate(self.order[:listed])
        ]  # fmt: skip

    def table(self, name: str, listed: int, sae: Sae, activations: Tensor) -> list[dict[str, Any]]:
        """Facts of the first features."""
        mean = self.differences.mean(0) if len(self.differences) else torch.full_like(self.rates, float("nan"))
        return [
            {
                "vector": name, "feature": f, "rank": rank + 1, "difference": float(mean[f]),
                "chance": self.chance[rank], "active_rate": float(self.rates[f]),
                "mean_when_active": _mean_when_active(activations[:, f]), "direction_norm": float(sae.w_dec[f].norm()),
            }
            for rank, f in enumerate(self.order[:listed])
        ]  # fmt: skip

    def random_active(self, n: int, but: int, seed: int) -> list[int]:
        """``n`` features that are active somewhere, drawn at random, none of the first ``but`` of the ranking (where
        enough others are active)."""
        others = [f for f in self.order[but:] if float(self.rates[f]) > 0]
        others = others or [f for f in self.order[1:] if float(self.rates[f]) > 0] or self.order[:1]
        drawn = np.random.default_rng(seed).permutation(len(others))[:n]
        return [others[index] for index in drawn]


def rank_features(
    activations: Tensor, owners: Tensor, ids: Sequence[str], verdicts: Tensor, shuffles: int, seed: int
) -> Ranking:
    """Rank by mean over problems of (active rate in right completions - active rate in wrong ones).

    Args:
        activations: [positions, F].
        owners: [positions] the completion that each is of.
        ids: [C] the completions' problems.
        verdicts: [C] 1 right, 0 wrong, NaN unknown.
        shuffles: of the verdicts within each problem.
    """
    count = torch.bincount(owners, minlength=len(ids)).clamp_min(1).float()
    rates = torch.zeros(len(ids), activations.shape[1]).index_add_(0, owners, (activations > 0).float())
    rates = rates / count[:, None]  # [C, F]
    places: dict[str, list[int]] = {}
    for index, problem in enumerate(ids):
        if not bool(verdicts[index].isnan()):
            places.setdefault(problem, []).append(index)
    both = [p for p in places.values() if 0 < float(verdicts[p].sum()) < len(p)]
    overall = (activations > 0).float().mean(0)
    if not both:
        order = overall.argsort(descending=True, stable=True).tolist()
        return Ranking(torch.empty(0, activations.shape[1]), overall, order, [float("nan")] * len(order))
    differences = _differences(rates, both, verdicts)
    order = differences.mean(0).abs().argsort(descending=True, stable=True).tolist()
    generator = torch.Generator().manual_seed(seed)
    chance = torch.zeros(len(order))
    for _ in range(shuffles):
        shuffled = verdicts.clone()
        for p in both:
            shuffled[p] = verdicts[p][torch.randperm(len(p), generator=generator)]
        chance += _differences(rates, both, shuffled).mean(0).abs().sort(descending=True).values / shuffles
    return Ranking(differences, overall, order, chance.tolist())


def _differences(rates: Tensor, places: Sequence[list[int]], verdicts: Tensor) -> Tensor:
    """[M, F]"""
    found = []
    for p in places:
        right = verdicts[p] > 0.5
        found.append(rates[p][right].mean(0) - rates[p][~right].mean(0))
    return torch.stack(found)


def _mean_when_active(values: Tensor) -> float:
    active = values[values > 0]
    return float(active.mean()) if len(active) else 0.0


def top_texts(
    token: Callable[[int], str], texts: Sequence[Text], owners: Tensor, activations: Tensor, features: Sequence[int]
) -> list[dict[str, Any]]:
    """Of each feature the completions with its largest activations, token by token around them.

    A position's activation stands at the token that it predicts: the first generated token is predicted at the last
    prompt token.
    """
    starts = torch.bincount(owners, minlength=len(texts)).cumsum(0) - torch.bincount(owners, minlength=len(texts))
    found = []
    for feature in features:
        values = activations[:, feature]
        best = torch.zeros(len(texts)).scatter_reduce_(0, owners, values, "amax")
        for rank, index in enumerate(best.argsort(descending=True, stable=True)[:PER_FEATURE].tolist()):
            if float(best[index]) <= 0:
                break
            text = texts[index]
            generated = text.ids[text.prompt_length :]
            of_text = values[int(starts[index]) : int(starts[index]) + len(generated)]
            peak = int(of_text.argmax())
            for step in range(max(0, peak - WINDOW), min(len(generated), peak + WINDOW + 1)):
                found.append({
                    "feature": feature, "rank": rank + 1, "text": text.id, "sample": text.sample, "step": step,
                    "token": token(generated[step]), "activation": float(of_text[step]), "peak": step == peak,
                })  # fmt: skip
    return found
