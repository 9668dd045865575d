"""How far a vector moves attention: the distance between the vanilla and the steered patterns of each head (C4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.differences import problems
from steerkit.analysis.parts import Part
from steerkit.analysis.places import head_counts
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import array_intervals, row
from steerkit.analysis.texts import Text, batches
from steerkit.analysis.work import BASE_TEXTS, Work
from steerkit.hookpoints import HookPoint
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

DISTANCE = "total variation between attention patterns, mean over heads"
_MOST = 2**26
"""Attention weights that are held at once, of all layers and both runs (256 MiB in fp32)."""


@final
@dataclass(frozen=True)
class AttentionShift(Analyzer):
    """How far attention patterns move under a vector, head by head, against random vectors.

    Args:
        positions: token mask of the queries.
        max_tokens: length limit of the base's completions (temperature 1), on which both runs are made.
        controls: norm-matched random vectors.
        sampler: of the completions.
    """

    name: ClassVar[str] = "attention_shift"

    positions: str = "all"
    max_tokens: int = 48
    controls: int = 4
    sampler: str = "fast"

    def __post_init__(self) -> None:
        TokenMask(self.positions)
        at_least_one(self, "max_tokens", "controls")

    def analyze(self, work: Work) -> Findings:
        texts = work.base_texts(self.max_tokens, self.sampler)
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Array] = {}
        for name, vector in work.vectors.items():
            found = self._distances(work, name, vector, texts)  # [N, L, H]
            control = torch.stack(
                [
                    self._distances(work, f"{name}, control {k}", one, texts)
                    for k, one in enumerate(work.controls(vector, self.controls))
                ]
            ).mean(0)
            for layer in range(work.n_layers):
                rows.append(
                    row(DISTANCE, found[:, layer].mean(-1).tolist(), control[:, layer].mean(-1).tolist(), work.seed,
                        vector=name, layer=layer)
                )  # fmt: skip
            known = ~found.isnan().any(-1).any(-1)
            ends = array_intervals(found[known].numpy(), work.seed)
            values = torch.stack([*map(torch.from_numpy, ends), control[known].mean(0)])
            arrays[name] = as_array(
                values, ("number", "layer", "head"), "total variation between attention patterns",
                number=["value", "low", "high", "control"],
            )  # fmt: skip
        notes = [
            "Total variation: half the sum over keys of |steered - vanilla| attention weight, 0 (the same) to 1 (no "
            "key in common); mean over query positions, then over prompts.",
            "Control: norm-matched random vectors on the same tokens. Layers up to the lowest steered one can't move.",
        ]
        where = f"queries at the token mask {self.positions!r} of {BASE_TEXTS}"
        return Findings(rows, where, arrays, notes=notes)

    def _distances(self, work: Work, label: str, vector: SteeringVector, texts: Sequence[Text]) -> Tensor:
        """[N, L, H] mean over the chosen query positions of each problem; NaN where there is none."""
        points = [HookPoint(layer, "attn_pattern") for layer in range(work.n_layers)]
        heads = head_counts(work.loaded.base)[0]

        def compute() -> Part:
            order = {problem: index for index, problem in enumerate(problems(texts))}
            sums = torch.zeros(len(order), work.n_layers, heads, dtype=torch.float64)
            counts = torch.zeros(len(order), dtype=torch.float64)
            longest = max(len(text.ids) for text in texts)
            tokens = min(work.batch_tokens, max(1, _MOST // (2 * work.n_layers * heads * longest)))
            pad = work.loaded.tokenizer.pad_token_id or 0
            done = 0
            for batch in batches(texts, pad, work.loaded.base.device, tokens):
                chosen = batch.select(self.positions)
                base, steered = work.engine.run(batch, read=points), work.engine.run(batch, vector, points)
                for layer, point in enumerate(points):
                    gap = (steered[point].float() - base[point].float()).abs().sum(-1) / 2  # [B, H, T]
                    gap = gap.masked_fill(~chosen[:, None], 0.0).double().sum(-1).cpu()
                    for k, text in enumerate(batch.texts):
                        sums[order[text.id], layer] += gap[k]
                for k, text in enumerate(batch.texts):
                    counts[order[text.id]] += int(chosen[k].sum())
                done += len(batch.texts)
                work.progress(f"attention, {label}", done, len(texts))
            counts[counts == 0] = float("nan")
            return {"distances": (sums / counts[:, None, None]).float()}

        found: Tensor = work.part(f"attention {label}, {len(texts)} texts", compute)["distances"]
        return found

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.attention_shift import panels

        return panels(result)
