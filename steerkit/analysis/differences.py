"""What a vector changes in the residual stream behind it: h steered - h base, on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steerkit.analysis.texts import Text
from steerkit.analysis.variants import Variant, run_variants
from steerkit.analysis.work import Work
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector


def mean_difference(
    work: Work, name: str, vector: SteeringVector, texts: Sequence[Text], points: Sequence[HookPoint], positions: str
) -> tuple[Tensor, Tensor]:
    """The difference at every point, averaged over the chosen positions of each problem; a part of the analysis.

    Args:
        name: of whose it is, for progress and the part.
        positions: token mask.

    Returns:
        ([N, P, D] fp32: N problems in the order of ``problems(texts)``, P points; [N, P] mean L2 norm of the
        difference, which cancels nothing).
    """

    def compute() -> dict[str, Tensor]:
        order = {problem: index for index, problem in enumerate(problems(texts))}
        sums = torch.zeros(len(order), len(points), work.d_model, dtype=torch.float64)
        norms, counts = torch.zeros(len(order), len(points), dtype=torch.float64), torch.zeros(len(order))
        done = 0
        for batch in work.batches(texts, copies=2):
            chosen = batch.select(positions)
            both = run_variants(work.engine, batch, [Variant(), Variant(vector)], points)
            for index, point in enumerate(points):
                base, steered = (both.of(v, point).float() for v in range(2))
                gap = (steered - base).masked_fill(~chosen[..., None], 0.0).double()
                for row, text in enumerate(batch.texts):
                    sums[order[text.id], index] += gap[row].sum(0).cpu()
                    norms[order[text.id], index] += gap[row].norm(dim=-1).sum().cpu()
            for row, text in enumerate(batch.texts):
                counts[order[text.id]] += int(chosen[row].sum())
            done += len(batch.texts)
            work.progress(f"difference, {name}", done, len(texts))
        seen = counts.clamp_min(1)[:, None]
        return {"mean": (sums / seen[..., None]).float(), "norm": (norms / seen).float(), "counts": counts}

    label = f"difference {name} at {points[0]}..{points[-1]} ({len(points)}), {positions}, {len(texts)} texts"
    part = work.part(label, compute)
    return part["mean"], part["norm"]


def problems(texts: Sequence[Text]) -> list[str]:
    """Ids of the problems, in the order in which they first come."""
    return list(dict.fromkeys(text.id for text in texts))
