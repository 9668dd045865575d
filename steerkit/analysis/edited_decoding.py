"""Sampling from a steered model whose residual stream is edited at one layer, at each step of the decoding.

The edit may look at the base's stream on the same tokens: then the base runs beside the steered model at each step,
with a cache of its own. Positions: those that predict generated tokens (the mask ``generated``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from steerkit.analysis.parts import Part
from steerkit.analysis.places import find_place
from steerkit.analysis.work import Work
from steerkit.hookpoints import HookPoint
from steerkit.models import SteeredModel
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.types import Rollout, RolloutGroup
from steerkit.vectors import SteeringVector

StreamEdit = Callable[[Tensor, Tensor | None], Tensor]
"""(steered stream [R, D], the base's on the same tokens or None) -> the stream that goes on, [R, D]."""


def sample_edited(
    work: Work,
    name: str,
    vector: SteeringVector,
    point: HookPoint,
    edit: StreamEdit,
    beside_base: bool,
    prompts: Sequence[EncodedPrompt],
    k: int,
    params: SamplingParams,
) -> list[RolloutGroup]:
    """K completions of each prompt; the random numbers are those of ``work.generations``. A part of the analysis.

    Args:
        name: of the edit, for progress and the part.
        edit: must not change its arguments.
        beside_base: whether the edit reads the base's stream.
    """
    label = f"sampling, {name}"

    def compute() -> Part:
        work.engine.release()  # hooks of our own: the model as it is
        steered = SteeredModel(
            work.loaded.base, work.engine.interventions(vector), work.loaded.layout, vector.token_mask
        )
        model = cast(SteeredModel, EditedModel(steered, point, edit, beside_base))
        found: dict[int, RolloutGroup] = {}
        work.progress(label, 0, len(prompts))
        sampler = TransformersSampler()
        for index, group in sampler.stream(model, work.loaded.tokenizer, prompts, k, params, work.seed):
            found[index] = group
            work.progress(label, len(found), len(prompts))
        return {
            "rollouts": [
                [[list(r.token_ids), list(r.logprobs), r.finish_reason, r.text] for r in found[index].rollouts]
                for index in range(len(prompts))
            ]
        }

    settings = f"k={k} T={params.temperature:g} max={params.max_tokens} n={len(prompts)}"
    rollouts = work.part(f"edited {name} {settings}", compute)["rollouts"]
    return [
        RolloutGroup(
            prompt.example, prompt.text, prompt.ids,
            tuple(Rollout(tuple(ids), tuple(logprobs), reason, text) for ids, logprobs, reason, text in group),
            prompt.segments,
        )
        for prompt, group in zip(prompts, rollouts, strict=True)
    ]  # fmt: skip


class EditedModel:
    """A ``SteeredModel`` as a sampler sees it, with an edit of the stream behind its steering."""

    def __init__(self, steered: SteeredModel, point: HookPoint, edit: StreamEdit, beside_base: bool) -> None:
        self._steered, self._edit, self._beside_base = steered, edit, beside_base
        self._place = find_place(steered.base, steered.layout, point)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steered, name)

    def __call__(self, input_ids: Tensor, past_key_values: _Caches | None = None, **arguments: Any) -> Any:
        """As ``SteeredModel.forward`` in a sampler: the prompts (left-padded) first, then one token a row."""
        own, others = (None, None) if past_key_values is None else (past_key_values.own, past_key_values.others)
        shape = (input_ids.shape[0], input_ids.shape[1])
        reference: Tensor | None = None
        if self._beside_base:
            seen: list[Tensor] = []

            def look(hidden: Tensor) -> Tensor:
                seen.append(hidden[:, -1])
                return hidden

            with self._steered.disabled(), self._hooked(look, shape):
                others = self._steered(input_ids, past_key_values=others, **arguments).past_key_values
            reference = seen[0]

        def edited(hidden: Tensor) -> Tensor:
            changed = hidden.clone()
            changed[:, -1] = self._edit(hidden[:, -1], reference).to(hidden.dtype)
            return changed

        # The scope first: hooks run in the order of registration, and the edit stands behind the steering.
        with self._steered.scope(), self._hooked(edited, shape):
            out = self._steered(input_ids, past_key_values=own, **arguments)
        out.past_key_values = _Caches(out.past_key_values, others)
        return out

    @contextmanager
    def _hooked(self, change: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Iterator[None]:
        place = self._place

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            return place.write(output, change(place.read(output, shape[1])))

        handle = place.module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Caches:
    """The steered run's cache and the base's, whose rows stay the same."""

    def __init__(self, own: Any, others: Any) -> None:
        self.own, self.others = own, others

    def reorder_cache(self, rows: torch.Tensor) -> None:
        self.own.reorder_cache(rows)
        if self.others is not None:
            self.others.reorder_cache(rows)
