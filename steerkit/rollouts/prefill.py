"""The prompts' forward pass of the sampler: what they begin with in common is run once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from steerkit.models.positions import mask_positions, positions_from_mask
from steerkit.rollouts.beginnings import shared_tokens, steered_at
from steerkit.rollouts.prompt_pass import left_pad
from steerkit.rollouts.sampler import EncodedPrompt

if TYPE_CHECKING:
    from steerkit.models import SteeredModel
    from steerkit.rollouts.suffix import KeptStreams


Prefilled = tuple[DynamicCache, Tensor, Tensor | None]
"""(keys and values of the left-padded prompts, [p, V] logits behind each prompt, [p, P, D] what was kept)."""


class PromptStore:
    """Prompts' passes that the next call of the sampler can have again: those of the very same batches, so that a call
    gives the same numbers whether another one came before it or not.

    Args:
        most: bytes that they may take.
    """

    def __init__(self, most: int = 2**28) -> None:
        self.room = most
        self._found: dict[tuple[tuple[Any, ...], ...], Prefilled] = {}

    def get(self, batch: Sequence[EncodedPrompt], make: Callable[[], Prefilled]) -> Prefilled:
        """What ``make`` gives for this batch, or gave."""
        key = tuple((prompt.ids, prompt.segments, prompt.policy) for prompt in batch)
        if key in self._found:
            return self._found[key]
        made = make()
        held = [value for layer in made[0].layers for value in vars(layer).values()]
        size = sum(t.numel() * t.element_size() for t in [*held, *made] if isinstance(t, Tensor))
        if size <= self.room:
            self.room -= size
            self._found[key] = made
        return made


def prefill(model: SteeredModel, batch: Sequence[EncodedPrompt], pad_id: int, kept: KeptStreams) -> Prefilled:
    """Run the prompts, steered.

    Worked examples and system texts stand before every problem: they are run once, for all prompts of one policy.
    """
    ids = [prompt.ids for prompt in batch]
    lengths = [len(row) for row in ids]
    width = max(lengths)
    steered = mask_positions(model.token_mask, lengths, [p.segments for p in batch], width, model.device)
    common = shared_tokens(model, ids, [prompt.policy for prompt in batch], steered, width)
    if common:
        return _in_two(model, batch, pad_id, kept, common, steered)
    padded, mask = left_pad(ids, pad_id, model.device)
    cache = DynamicCache()  # whole keys and values also where attention slides
    with model.prefill(steered), model.rows([prompt.policy for prompt in batch]):
        out = _run(model, padded, mask, positions_from_mask(mask), cache)
    return cache, out.logits[:, -1], _taken(kept, batch, model.device)


def _in_two(
    model: SteeredModel,
    batch: Sequence[EncodedPrompt],
    pad_id: int,
    kept: KeptStreams,
    common: int,
    steered: Tensor | None,
) -> Prefilled:
    device, policy = model.device, batch[0].policy
    first = torch.tensor(batch[0].ids[:common], device=device)[None]
    rest, rest_mask = left_pad([prompt.ids[common:] for prompt in batch], pad_id, device)
    mask = torch.cat([rest_mask.new_ones(len(batch), common), rest_mask], dim=1)
    # A mask names positions by the whole prompt: said for each of the two calls (rows are left-padded).
    shared = torch.ones_like(first, dtype=torch.bool)
    if steered is not None:
        start = steered.shape[1] - len(batch[0].ids)
        shared = steered[:1, start : start + common]
    cache = DynamicCache()
    with steered_at(model, shared), model.rows([policy]):
        places = torch.arange(common, device=device)[None]
        model.hidden_states(first, torch.ones_like(first), places, past_key_values=cache, use_cache=True)
    before = _taken(kept, batch[:1], device)
    cache.reorder_cache(torch.zeros(len(batch), dtype=torch.long, device=device))  # type: ignore[arg-type]
    own = rest_mask.bool() if steered is None else steered[:, -rest.shape[1] :]
    with steered_at(model, own), model.rows([policy] * len(batch)):
        out = _run(model, rest, mask, positions_from_mask(mask)[:, common:], cache)
    after = _taken(kept, batch, device)
    # So far the padding stands between the two parts; it belongs before both.
    order = _padding_first(rest_mask, common)
    for layer in cache.layers:
        layer.keys, layer.values = (_columns(tensor, order, 2) for tensor in (layer.keys, layer.values))  # type: ignore[union-attr, arg-type]
    streams = None
    if before is not None and after is not None:
        streams = _columns(torch.cat([before.expand(len(batch), -1, -1), after], dim=1), order, 1)
    return cache, out.logits[:, -1], streams


def _run(model: SteeredModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Any:
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def _taken(kept: KeptStreams, batch: Sequence[EncodedPrompt], device: torch.device) -> Tensor | None:
    return kept.take(torch.tensor([prompt.policy for prompt in batch], device=device)) if kept.on else None


def _padding_first(rest_mask: Tensor, common: int) -> Tensor:
    """[p, W] for each column of the row with its padding in front, where it comes from."""
    rows, width = rest_mask.shape
    padding = (width - rest_mask.sum(dim=1))[:, None]
    column = torch.arange(common + width, device=rest_mask.device).expand(rows, -1)
    of_common = torch.where(column < padding, column + common, column - padding)
    return torch.where(column < padding + common, of_common, column)


def _columns(tensor: Tensor, order: Tensor, dim: int) -> Tensor:
    """``tensor`` [p, ...] with the columns of ``dim`` in each row's order."""
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = order.shape
    return tensor.gather(dim, order.view(shape).expand(*tensor.shape[:dim], order.shape[1], *tensor.shape[dim + 1 :]))
