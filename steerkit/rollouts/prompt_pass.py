"""Prompts, run once forward and backward, and the completions that go on from their keys and values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from steerkit.models.caching import has_running_state
from steerkit.models.positions import mask_positions, positions_from_mask
from steerkit.rollouts.acceleration import is_spread
from steerkit.rollouts.beginnings import shared_tokens, steered_at
from steerkit.rollouts.suffix import SuffixCache, suffix_states

if TYPE_CHECKING:
    from steerkit.models import SteeredModel
    from steerkit.types import RolloutGroup

Picks = Sequence[tuple[int, Sequence[int]]]
"""(group, some of its completions)"""


@dataclass(frozen=True, slots=True)
class Branches:
    """A prompt and some of its completions, as token ids."""

    prompt: Sequence[int]
    """[P], at least one token."""
    completions: Sequence[Sequence[int]]
    """``[K][T]``, each at least one token."""
    segments: Sequence[str] = ()
    """[P] the segment of each prompt token, for token masks that name one."""
    stream: Tensor | None = None
    """[P, D] the residual stream that the rollout kept (``rollouts.suffix``)."""
    streams: Sequence[Tensor] = ()
    """``[K][T - 1, D]`` that of the completions; empty if it was not kept."""
    layer: int | None = None
    """The block that the streams left; None if they were not kept."""
    policy: int = 0
    """Whose rollouts these are, where several policies share a batch."""

    def pick(self, completions: Sequence[int]) -> Branches:
        """The same prompt with some of its completions."""
        streams = [self.streams[k] for k in completions] if self.streams else ()
        return replace(self, completions=[self.completions[k] for k in completions], streams=streams)

    @classmethod
    def of(cls, group: RolloutGroup, picked: Sequence[int]) -> Branches:
        """Some rollouts of a group, with the streams that they carry."""
        rollouts = [group.rollouts[k] for k in picked]
        kept = group.stream is not None and all(rollout.stream is not None for rollout in rollouts)
        return cls(
            group.prompt_ids,
            [rollout.token_ids for rollout in rollouts],
            group.segments,
            group.stream if kept else None,
            [rollout.stream for rollout in rollouts] if kept else (),
            group.stream_layer if kept else None,
            group.policy,
        )


def can_stand_apart(model: SteeredModel) -> bool:
    """Whether ``PromptPass`` can be ``apart``: not with a running state, through which no gradient flows, and not
    where a block's weights are gathered for the backward pass of the block's output.
    """
    return not has_running_state(model.base) and not is_spread(model.base)


class PromptPass:
    """Prompts, run once; their completions go on from their keys and values, through which gradients flow back.

    The gradient is that of separate rows; separate rows is what families with a running state get. What prompts begin
    with in common runs once, too. Position t predicts token t + 1, so the first completion token is predicted, and
    steered, at the last prompt position.

    Args:
        groups: prompts with all completions that will be asked for.
        apart: completions' gradients wait at the prompts' keys, values and last states for ``backward``, so that each
            call of ``states`` can have a backward pass of its own; else they flow through.
    """

    def __init__(self, model: SteeredModel, groups: Sequence[Branches], pad_id: int, apart: bool = False) -> None:
        self.model, self.groups, self.pad_id, self.device = model, groups, pad_id, model.device
        self.waiting: list[tuple[Tensor, Tensor]] = []  # (on the prompts' graph, what the completions see of it)
        self.prompts, self.mask = left_pad([group.prompt for group in groups], pad_id, self.device)
        self.steered = mask_positions(
            model.token_mask,
            [len(group.prompt) for group in groups],
            [group.segments for group in groups],
            self.prompts.shape[1],
            self.device,
        )
        self.whole = has_running_state(model.base)
        if self.whole:
            return
        layers = {group.layer for group in groups}
        self.layer = layers.pop() if len(layers) == 1 else None
        self.cache: Any = DynamicCache(config=model.base.config) if self.layer is None else SuffixCache(self.layer + 1)
        policies = [group.policy for group in groups]
        columns = self.prompts.shape[1] + max(len(row) for group in groups for row in group.completions)
        common = 0
        # A base that is spread over processes gathers a block's weights again when the gradient of the block's output
        # arrives; that of the beginning comes by its keys and values alone.
        if not is_spread(model.base):
            common = shared_tokens(model, [group.prompt for group in groups], policies, self.steered, columns)
        if common:
            hidden = self._in_two(common)
        else:
            with model.prefill(self.steered), model.rows(policies):
                streams = [group.stream for group in groups]
                hidden = self._run(self.prompts, self.mask, positions_from_mask(self.mask), self.steered, streams)
        self.last = hidden[:, -1:]
        if apart:
            self._cut()

    def states(self, picked: Picks | None = None) -> tuple[Tensor, Tensor]:
        """([N, D] final-normed states, [N] ids) of completion tokens: each state is that of the position before.

        Args:
            picked: default: all of them.
        """
        if picked is None:
            picked = [(g, range(len(group.completions))) for g, group in enumerate(self.groups)]
        rows = [self.groups[g].completions[k] for g, picks in picked for k in picks]
        owner = torch.tensor([g for g, picks in picked for _ in picks], device=self.device)
        width = max(map(len, rows))
        fed = torch.full((len(rows), width - 1), self.pad_id)
        for k, row in enumerate(rows):
            fed[k, : len(row) - 1] = torch.tensor(row[:-1])
        # What stands behind a completion's end can't reach it under causal attention: no need to mask it.
        whole = torch.cat([self.mask.index_select(0, owner), self.mask.new_ones(len(rows), width - 1)], dim=1)
        with self.model.rows([self.groups[g].policy for g, picks in picked for _ in picks]):
            if self.whole:
                states = self._separate(owner, fed.to(self.device), whole)
            else:
                states = self.last.index_select(0, owner)
                if width > 1:
                    streams = [
                        self.groups[g].streams[k] for g, picks in picked for k in picks if self.groups[g].streams
                    ]
                    rest = self._behind(owner, fed.to(self.device), whole, streams)
                    states = torch.cat([states, rest], dim=1)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        real = torch.arange(width, device=self.device) < lengths[:, None]
        targets = torch.tensor([token for row in rows for token in row], device=self.device)
        return states[real], targets

    def backward(self) -> None:
        """Take what waits there through the prompts; once, after the last of the completions."""
        found = [(made, seen.grad) for made, seen in self.waiting if seen.grad is not None]
        self.waiting = []
        if found:
            torch.autograd.backward([made for made, _ in found], [grad for _, grad in found])

    def _separate(self, owner: Tensor, fed: Tensor, whole: Tensor) -> Tensor:
        """[n, T, D] of rows that run with their own prompts."""
        ids = torch.cat([self.prompts.index_select(0, owner), fed], dim=1)
        steered = self.steered
        if steered is not None:
            later = steered.new_full(fed.shape, self.model.token_mask.generated)
            steered = torch.cat([steered.index_select(0, owner), later], dim=1)
        with self.model.prefill(steered):
            return self.model.hidden_states(ids, whole, positions_from_mask(whole))[:, self.prompts.shape[1] - 1 :]

    def _behind(self, owner: Tensor, fed: Tensor, whole: Tensor, streams: Sequence[Tensor]) -> Tensor:
        """[n, T, D] of completions behind their prompts, which stay as they are for others."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.reorder_cache(owner)
        positions = positions_from_mask(whole)[:, -fed.shape[1] :]
        if self.layer is None:
            return self.model.hidden_states(fed, whole, positions, past_key_values=cache, use_cache=True)
        stream = _padded(streams, fed.shape[1], self.device, left=False)
        on = self.model.token_mask.generated
        return suffix_states(self.model, self.layer, stream, whole, positions, cast(SuffixCache, cache), on)

    def _cut(self) -> None:
        self.last = self._leaf(self.last)
        for layer in self.cache.layers:
            if isinstance(layer.keys, Tensor) and layer.keys.numel():
                layer.keys, layer.values = self._leaf(layer.keys), self._leaf(layer.values)

    def _leaf(self, made: Tensor) -> Tensor:
        if not made.requires_grad:
            return made
        seen = made.detach().requires_grad_()
        self.waiting.append((made, seen))
        return seen

    def _run(
        self, ids: Tensor, mask: Tensor, positions: Tensor, steered: Tensor | None, streams: Sequence[Tensor | None]
    ) -> Tensor:
        """[n, T, D] final-normed states of one call, from the tokens or from the stream that the rollouts kept.

        Args:
            ids: [n, T], padded on the left.
            mask: [n, S], S = T + cached length.
            positions: [n, T]
            steered: [n, T]; None: all.
            streams: [n][at most T, D] what was kept of these tokens; not read if nothing was.
        """
        if self.layer is None:
            return self.model.hidden_states(ids, mask, positions, past_key_values=self.cache, use_cache=True)
        stream = _padded(streams, ids.shape[1], ids.device, left=True)
        return suffix_states(self.model, self.layer, stream, mask, positions, self.cache, steered)

    def _in_two(self, common: int) -> Tensor:
        """[G, T, D] final-normed states of what follows the ``common`` first tokens, which run once; the gradient of
        the rest flows through their keys and values. From here on padding stands between the two parts.
        """
        model, n, steered = self.model, len(self.groups), self.steered
        first = torch.tensor(self.groups[0].prompt[:common], device=model.device)[None]
        rest, rest_mask = left_pad([group.prompt[common:] for group in self.groups], self.pad_id, model.device)
        here, own = torch.ones_like(first, dtype=torch.bool), rest_mask.bool()
        if steered is not None:
            start = steered.shape[1] - len(self.groups[0].prompt)
            here, own = steered[:1, start : start + common], steered[:, -rest.shape[1] :]
        policy = self.groups[0].policy
        with steered_at(model, here), model.rows([policy]):
            places = torch.arange(common, device=model.device)[None]
            self._run(first, torch.ones_like(first), places, here, [_part(self.groups[0].stream, slice(common))])
        self.cache.reorder_cache(torch.zeros(n, dtype=torch.long, device=model.device))
        self.mask = torch.cat([rest_mask.new_ones(n, common), rest_mask], dim=1)
        with steered_at(model, own), model.rows([policy] * n):
            streams = [_part(group.stream, slice(common, None)) for group in self.groups]
            return self._run(rest, self.mask, positions_from_mask(self.mask)[:, common:], own, streams)


def _part(stream: Tensor | None, tokens: slice) -> Tensor | None:
    return None if stream is None else stream[tokens]


def _padded(rows: Sequence[Tensor | None], width: int, device: torch.device, left: bool) -> Tensor:
    """[n][T, D] -> [n, width, D], zeros at the padding; a copy outside inference mode, so that autograd may keep it."""
    first = rows[0]
    assert first is not None
    out = torch.zeros(len(rows), width, first.shape[-1], dtype=first.dtype, device=device)
    for k, row in enumerate(rows):
        if row is not None and len(row):
            out[k, width - len(row) if left else 0 : width if left else len(row)] = row
    return out


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows -> (ids [B, T], attention mask [B, T]), padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for k, row in enumerate(rows):
        ids[k, width - len(row) :] = torch.tensor(row)
        mask[k, width - len(row) :] = 1
    return ids.to(device), mask.to(device)
