"""The model under examination: short prompts, strong random vectors, and how far two right ways may differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerkit.doctor.memory import Batch
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import Layout, SteeredModel
from steerkit.models.layout import hidden_of
from steerkit.testing.equalities import cached, left_padded, single_rows

T = TypeVar("T")

TEXTS = (
    "Tom has 12 pens and buys 5 more pens. How many pens does Tom have now, and why?",
    "A train leaves at 7 and arrives at 11 in the morning. How long did it take to arrive?",
    "Find all real numbers x with x + 3 = 10, then write the answer in a box at the end.",
)
LENGTH = 12
"""Tokens of each prompt: the first ones of ``TEXTS``."""
PREFILL = LENGTH - 3
"""Then three tokens are decoded."""
CEILING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference between two right ways to compute the same logits, relative to the largest logit, that is taken
for rounding; more is an error. 16-bit numbers have 11 (fp16) or 8 (bf16) bits, and it adds up over the layers."""
FLOOR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Differences below this are rounding, however exact the base was."""
HEADROOM = 5.0
"""Steering may add this much to the base's own noise: it makes the stream larger."""
STRENGTH = 0.5
"""Length of the doctor's vectors, relative to the median length of the residual stream at their layer."""


class Subject:
    """A model, and what several checks share; each thing is computed once, when first asked for."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layout_override: dict[str, str] | None = None,
        batch: Batch | None = None,
    ) -> None:
        """
        Args:
            layout_override: as in ``load_model``.
            batch: the training step whose cost is asked for.
        """
        self.base, self.tokenizer, self.layout_override = base, tokenizer, layout_override
        self.batch = batch or Batch()
        self.layout: Layout | None = None
        """Set by the check that finds the blocks."""

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype if self.base.dtype in CEILING else torch.bfloat16

    @cached_property
    def ids(self) -> Tensor:
        """[3, LENGTH]."""
        rows = [self.tokenizer(text)["input_ids"][:LENGTH] for text in TEXTS]
        length = min(map(len, rows))
        if length < LENGTH:
            raise SteerkitError(f"The tokenizer makes {length} tokens of {TEXTS[0]!r}: it doesn't fit this text.")
        return torch.tensor(rows, device=self.base.device)

    @cached_property
    def bare(self) -> SteeredModel:
        """Without interventions."""
        return SteeredModel(self.base, {}, self.layout)

    @cached_property
    def plain(self) -> Tensor:
        """[3, LENGTH, V] the base's logits."""
        return self.no_grad(lambda: self.base(input_ids=self.ids).logits)

    @cached_property
    def steered(self) -> SteeredModel:
        """Static vectors in random directions at the first, the middle and the last block."""
        points = [HookPoint(layer) for layer in sorted({0, self.bare.n_layers // 2, self.bare.n_layers - 1})]
        items = Static.build(points, self.bare.d_model)
        generator = torch.Generator().manual_seed(0)
        for point, length in zip(points, self._stream_lengths([p.layer for p in points]), strict=True):
            direction = torch.randn(self.bare.d_model, generator=generator)
            (vector,) = items[point].parameters()
            with torch.no_grad():
                vector.copy_(direction * (STRENGTH * length / direction.norm()))
        return SteeredModel(self.base, items, self.layout)

    @cached_property
    def full(self) -> Tensor:
        """[3, LENGTH, V] the steered logits: one unpadded pass without a cache."""
        return self.no_grad(lambda: self.steered(self.ids).logits)

    @cached_property
    def noise(self) -> dict[str, float]:
        """How far the base itself, unsteered, is from its own full pass: relative to its largest logit."""

        def measure() -> dict[str, float]:
            model, ids, plain = self.steered, self.ids, self.plain
            with model.disabled():
                return {
                    "batch": worst_gap(single_rows(model, ids, plain)),
                    "padded": worst_gap(left_padded(model, ids, plain, self.pad_id)),
                    "cached": worst_gap(cached(model, ids, plain, PREFILL)),
                }

        return {name: gap / largest(self.plain) for name, gap in self.no_grad(measure).items()}

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def ceiling(self) -> float:
        return CEILING[self.dtype]

    @property
    def tolerance(self) -> float:
        """Allowed difference of logits, relative to the largest: the base's own noise with headroom."""
        measured = HEADROOM * max(self.noise.values())
        return min(max(measured, FLOOR[self.dtype]), self.ceiling) if math.isfinite(measured) else self.ceiling

    @staticmethod
    def no_grad(run: Callable[[], T]) -> T:
        with torch.no_grad():
            return run()

    def _stream_lengths(self, layers: list[int]) -> list[float]:
        """Median length of the residual stream behind each block."""
        found: dict[int, float] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(_module: object, _args: object, output: object) -> None:
                found[layer] = float(hidden_of(output).float().norm(dim=-1).median())

            return hook

        blocks = self.bare.layout.block_list(self.base)
        handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
        try:
            self.no_grad(lambda: self.base(input_ids=self.ids))
        finally:
            for handle in handles:
                handle.remove()
        return [found[layer] for layer in layers]


def largest(logits: Tensor) -> float:
    """The largest |logit|: the unit of the tolerances."""
    return max(float(logits.float().abs().max()), 1e-6)


def worst_gap(triples: Iterable[tuple[str, Tensor, Tensor]]) -> float:
    """Largest |got - expected|; infinite where either is not a number."""
    worst = 0.0
    for _, got, expected in triples:
        gap = float((got.float() - expected.float()).abs().max())
        worst = max(worst, gap if math.isfinite(gap) else math.inf)
    return worst
