"""Whether what a vector adds at one layer is still there, as one direction, in later layers (C6).

arXiv 2509.06608: D_ij(t) = h_j steered at layer i alone - h_j base, on the same tokens;
Diff-Diff_ij = mean_t cos(D_ij(t), mean_t D_ij); Diff-Vector_ij = mean_t cos(D_ij(t), s_j). Ours besides, to
tell "another direction" from "the same as was added": Diff-Own_ij = mean_t cos(D_ij(t), s_i).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.differences import problems
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import array_intervals, row
from steerkit.analysis.texts import Batch, Text
from steerkit.analysis.variants import Variant, run_variants
from steerkit.analysis.work import BASE_TEXTS, Work
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector
from steerkit.vectors.algebra import directions

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

METRICS = ("Diff-Diff", "Diff-Vector", "Diff-Own")
JOINED = "joined"
"""The name of the map of several vectors that stand at one layer each (trained alone)."""
_NOTHING = 1e-6
"""A difference below this share of the stream's norm is none: the vector's mask leaves the position out."""
_AT_ONCE = 8
"""Steered layers that are run together, with the base; the streams of all of them are held."""


@final
@dataclass(frozen=True)
class Persistence(Analyzer):
    """Diff-Diff and Diff-Vector maps: does what is added at layer i persist to layer j, and along which direction.

    Vectors that stand at one layer each are taken as the rows of one map.

    Args:
        positions: token mask of the positions that are averaged over.
        max_tokens: length limit of the base's completions (temperature 1), on which all runs are made.
        controls: norm-matched random vectors, each with a map of its own.
        sampler: of the completions.
    """

    name: ClassVar[str] = "persistence"

    positions: str = "all"
    max_tokens: int = 48
    controls: int = 2
    sampler: str = "transformers"

    def __post_init__(self) -> None:
        TokenMask(self.positions)
        at_least_one(self, "max_tokens", "controls")

    def analyze(self, work: Work) -> Findings:
        texts = work.base_texts(self.max_tokens, self.sampler)
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Array] = {}
        for name, layers in _maps(work.vectors).items():
            values = self._map(work, name, layers, texts)  # metric -> [N, i, j]
            control = self._controls(work, name, layers, texts)
            for metric in METRICS:
                rows += _rows(metric, name, list(layers), values[metric], control[metric], work.seed)
                arrays[f"{metric} {name}"] = _array(metric, list(layers), values[metric], control[metric], work.seed)
        notes = [
            "Each row of a map steers at its layer alone. Diff-Diff at the steered layer itself is 1 for static "
            "vectors by construction; the rows' means leave it out.",
            "mean_t D_ij is taken over all positions of all prompts, those of the cosine too: with few positions "
            "Diff-Diff is above 0 for unrelated differences, which the control shows.",
            "Control: the same with norm-matched random vectors in the place of all s_i (Diff-Vector against theirs).",
            "Positions where nothing differs (outside the vector's token mask) are left out.",
        ]
        where = f"the token mask {self.positions!r} of {BASE_TEXTS}"
        return Findings(rows, where, arrays, notes=notes)

    def _controls(
        self, work: Work, name: str, layers: Mapping[int, SteeringVector], texts: Sequence[Text]
    ) -> dict[str, Tensor]:
        """Metric -> [N, i, j], the mean over the random vectors."""
        found: list[dict[str, Tensor]] = []
        for index in range(self.controls):
            random = {
                layer: work.controls(vector, self.controls, salt=layer)[index] for layer, vector in layers.items()
            }
            found.append(self._map(work, f"{name}, control {index}", random, texts))
        return {metric: torch.stack([one[metric] for one in found]).nanmean(0) for metric in METRICS}

    def _map(
        self, work: Work, name: str, layers: Mapping[int, SteeringVector], texts: Sequence[Text]
    ) -> dict[str, Tensor]:
        """Metric -> [N, i, j]: problems, steered layers, layers; NaN for layers before i, and where there is no s_j."""
        own = {layer: next(iter(directions(vector).values())).float() for layer, vector in layers.items()}
        found = {metric: torch.full((len(problems(texts)), len(layers), work.n_layers), float("nan"))
                 for metric in METRICS}  # fmt: skip
        sums = self._sums(work, name, layers, texts)
        for index, layer in enumerate(layers):
            units, totals, counts = sums[layer]
            mean = totals / totals.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            shares = units / counts[..., None]
            for j in range(layer, work.n_layers):
                found["Diff-Diff"][:, index, j] = shares[:, j] @ mean[j]
                for metric, k in (("Diff-Vector", j), ("Diff-Own", layer)):
                    if k in own and len(own[k]) == work.d_model and float(own[k].norm()):
                        found[metric][:, index, j] = shares[:, j] @ (own[k] / own[k].norm())
        return found

    def _sums(
        self, work: Work, name: str, layers: Mapping[int, SteeringVector], texts: Sequence[Text]
    ) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Steered layer -> ([N, L, D] sums over each problem's positions of D(t) / |D(t)|, from which both cosines
        follow; [L, D] sums of D(t); [N, L] positions)."""
        order = {problem: index for index, problem in enumerate(problems(texts))}
        shape = len(order), work.n_layers
        found = {
            layer: (torch.zeros(*shape, work.d_model), torch.zeros(work.n_layers, work.d_model), torch.zeros(*shape))
            for layer in layers
        }
        done = 0
        for start in range(0, len(layers), _AT_ONCE):
            chunk = list(layers)[start : start + _AT_ONCE]
            for number, batch in enumerate(work.batches(texts, len(chunk) + 1)):
                label = f"sums {name}, layers {chunk[0]} to {chunk[-1]}, batch {number}"
                part = work.part(label, partial(self._batch, work, batch, [layers[layer] for layer in chunk]))
                for k, layer in enumerate(chunk):
                    units, totals, counts = found[layer]
                    totals += part["totals"][k]
                    for row_, text in enumerate(batch.texts):
                        units[order[text.id]] += part["units"][k, row_]
                        counts[order[text.id]] += part["counts"][k, row_]
                done += len(batch.texts) * len(chunk)
                work.progress(f"persistence, {name}", done, len(texts) * len(layers))
        return found

    def _batch(self, work: Work, batch: Batch, vectors: Sequence[SteeringVector]) -> dict[str, Tensor]:
        """units: [vectors, B, L, D]; totals: [vectors, L, D]; counts: [vectors, B, L].

        Each vector stands at one layer: its rows join the base's there, so the blocks below are run once for all.
        """
        chosen, points = batch.select(self.positions), work.outputs()
        runs = run_variants(work.engine, batch, [Variant(), *map(Variant, vectors)], points)
        shape = len(vectors), len(batch.texts), len(points)
        units, counts = torch.zeros(*shape, work.d_model), torch.zeros(*shape)
        totals = torch.zeros(len(vectors), len(points), work.d_model)
        first = [min(vector.tensors).layer for vector in vectors]
        # Ahead of the first steered token two runs are the same; in rows of one batch they may differ by rounding.
        reached = [chosen & (batch.select(vector.token_mask).cumsum(1) > 0) for vector in vectors]
        for j in range(min(first), len(points)):
            stream = runs.of(0, points[j]).double()
            norm = stream.norm(dim=-1)
            for k in range(len(vectors)):
                if j < first[k]:
                    continue
                gap = runs.of(k + 1, points[j]).double() - stream
                size = gap.norm(dim=-1)
                differs = reached[k] & (size > _NOTHING * norm)
                gap = gap.masked_fill(~differs[..., None], 0.0)
                units[k, :, j] = (gap / size.clamp_min(1e-30)[..., None]).sum(1).float().cpu()
                totals[k, j] = gap.sum((0, 1)).float().cpu()
                counts[k, :, j] = differs.sum(1).float().cpu()
        return {"units": units, "totals": totals, "counts": counts}

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.persistence import panels

        return panels(result)


def _maps(vectors: Mapping[str, SteeringVector]) -> dict[str, dict[int, SteeringVector]]:
    """Map -> steered layer -> the vector at that layer alone."""
    single = {name: next(iter(v.tensors)) for name, v in vectors.items() if len(v.tensors) == 1}
    if len(single) == len(vectors) > 1 and len({point.layer for point in single.values()}) == len(single):
        ordered = sorted(single.items(), key=lambda item: item[1])
        return {JOINED: {point.layer: vectors[name] for name, point in ordered}}
    maps: dict[str, dict[int, SteeringVector]] = {}
    for name, vector in vectors.items():
        points: list[HookPoint] = list(vector.tensors)
        if len({point.layer for point in points}) < len(points):
            raise SteerkitError(
                f"{name} has two hook points at one layer: give one of them (vector.at('layers.3.output'))."
            )
        maps[name] = {point.layer: vector.at(str(point)) for point in points}
    return maps


def _rows(
    metric: str, name: str, layers: list[int], values: Tensor, control: Tensor, seed: int
) -> list[dict[str, Any]]:
    """For each steered layer, and for all: the mean over the layers above it."""
    found = []
    above = torch.stack([_above(values[:, k], layer) for k, layer in enumerate(layers)], 1)  # [N, i]
    of_control = torch.stack([_above(control[:, k], layer) for k, layer in enumerate(layers)], 1)
    for k, layer in enumerate(layers):
        if not bool(above[:, k].isnan().all()):
            keys = {"vector": name, "steered_layer": layer}
            found.append(
                row(f"{metric}, mean over later layers", above[:, k].tolist(), of_control[:, k].tolist(), seed, **keys)
            )
    if len(layers) > 1 and not bool(above.isnan().all()):
        found.append(
            row(f"{metric}, mean over later layers", above.nanmean(1).tolist(), of_control.nanmean(1).tolist(), seed,
                vector=name, steered_layer="each")
        )  # fmt: skip
    return found


def _above(values: Tensor, layer: int) -> Tensor:
    """[N] the mean over j > layer of [N, j], NaN left out."""
    return values[:, layer + 1 :].nanmean(1) if layer + 1 < values.shape[1] else values[:, 0] * float("nan")


def _array(metric: str, layers: list[int], values: Tensor, control: Tensor, seed: int) -> Array:
    """[number, i, j]"""
    mean, low, high = array_intervals(values.numpy(), seed)
    stacked = np.stack([mean, low, high, control.nanmean(0).numpy()])
    steps = [str(j) for j in range(values.shape[-1])]
    return as_array(
        stacked, ("number", "steered layer", "layer"), metric,
        **{"number": ["mean", "low", "high", "control"], "steered layer": list(map(str, layers)), "layer": steps},
    )  # fmt: skip
