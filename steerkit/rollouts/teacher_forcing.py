"""Log-probabilities and entropies, with gradient, of completions that were sampled before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from steerkit.models import token_log_probs, token_log_probs_and_entropies
from steerkit.models.caching import has_running_state
from steerkit.models.positions import mask_positions, positions_from_mask
from steerkit.rollouts.acceleration import is_spread
from steerkit.rollouts.beginnings import shared_tokens, steered_at
from steerkit.rollouts.suffix import SuffixCache, suffix_states

if TYPE_CHECKING:
    from steerkit.models import SteeredModel
    from steerkit.types import RolloutGroup


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


def completion_log_probs(
    model: SteeredModel, groups: Sequence[Branches], pad_id: int, temperature: float = 1.0
) -> Tensor:
    """[N] log-probabilities (nats) of all completion tokens, completion after completion.

    They are those of softmax(logits / temperature), and the gradient is that of separate rows.
    """
    return token_log_probs(model, *predicting_states(model, groups, pad_id), temperature)


def completion_log_probs_and_entropies(
    model: SteeredModel, groups: Sequence[Branches], pad_id: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """([N], [N]): ``completion_log_probs``, and the entropies (nats) of the distributions that the tokens come from."""
    return token_log_probs_and_entropies(model, *predicting_states(model, groups, pad_id), temperature)


def predicting_states(model: SteeredModel, groups: Sequence[Branches], pad_id: int) -> tuple[Tensor, Tensor]:
    """([N, D] final-normed states, [N] ids) of all completion tokens: each state is that of the position before.

    Each prompt runs once, forward and backward, however many completions it has: the second pass goes on from its
    keys and values, through which the completions' gradients flow back into it; and so does what prompts begin with in
    common. The gradient is that of separate
    rows; separate rows is what families with a running state get, as it lets no gradient through. Position t predicts
    token t + 1, so the first completion token is predicted, and steered, at the last prompt position.
    """
    from transformers import DynamicCache

    device = model.device
    prompts, mask = left_pad([group.prompt for group in groups], pad_id, device)
    steered = mask_positions(
        model.token_mask,
        [len(group.prompt) for group in groups],
        [group.segments for group in groups],
        prompts.shape[1],
        device,
    )
    owner = torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], device=device)
    owners = [group.policy for group in groups for _ in group.completions]
    rows = [completion for group in groups for completion in group.completions]
    width = max(map(len, rows))
    fed = torch.full((len(rows), width - 1), pad_id)
    for k, row in enumerate(rows):
        fed[k, : len(row) - 1] = torch.tensor(row[:-1])
    fed = fed.to(device)
    # What stands behind a completion's end can't reach it under causal attention: no need to mask it.
    whole = torch.cat([mask.index_select(0, owner), mask.new_ones(len(rows), width - 1)], dim=1)
    if has_running_state(model.base):
        ids = torch.cat([prompts.index_select(0, owner), fed], dim=1)
        if steered is not None:
            later = steered.new_full((len(rows), width - 1), model.token_mask.generated)
            steered = torch.cat([steered.index_select(0, owner), later], dim=1)
        with model.prefill(steered), model.rows(owners):
            states = model.hidden_states(ids, whole, positions_from_mask(whole))[:, prompts.shape[1] - 1 :]
    else:
        layers = {group.layer for group in groups}
        layer = layers.pop() if len(layers) == 1 else None
        cache = DynamicCache(config=model.base.config) if layer is None else SuffixCache(layer + 1)
        policies = [group.policy for group in groups]
        columns = prompts.shape[1] + width
        common = 0
        # A base that is spread over processes gathers a block's weights again when the gradient of the block's output
        # arrives; that of the beginning comes by its keys and values alone.
        if not is_spread(model.base):
            common = shared_tokens(model, [group.prompt for group in groups], policies, steered, columns)
        call = _Prompts(model, groups, layer, cache)
        if common:
            mask, hidden = call.in_two(common, steered, pad_id)
            whole = torch.cat([mask.index_select(0, owner), mask.new_ones(len(rows), width - 1)], dim=1)
        else:
            with model.prefill(steered), model.rows(policies):
                streams = [group.stream for group in groups]
                hidden = call.run(prompts, mask, positions_from_mask(mask), steered, streams)
        states = hidden[:, -1:].index_select(0, owner)
        if width > 1:
            cache.reorder_cache(owner)  # type: ignore[arg-type]
            positions = positions_from_mask(whole)[:, 1 - width :]
            with model.rows(owners):
                if layer is None:
                    rest = model.hidden_states(fed, whole, positions, past_key_values=cache, use_cache=True)
                else:
                    stream = _padded([row for group in groups for row in group.streams], width - 1, device, left=False)
                    on = model.token_mask.generated
                    rest = suffix_states(model, layer, stream, whole, positions, cast(SuffixCache, cache), on)
            states = torch.cat([states, rest], dim=1)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    real = torch.arange(width, device=device) < lengths[:, None]
    targets = torch.tensor([token for row in rows for token in row], device=device)
    return states[real], targets


class _Prompts:
    """The forward passes of prompts, from their tokens or from the stream that the rollouts kept.

    Args:
        layer: the block that the streams left; None: they were not kept.
        cache: where keys and values go.
    """

    def __init__(self, model: SteeredModel, groups: Sequence[Branches], layer: int | None, cache: Any) -> None:
        self.model, self.groups, self.layer, self.cache = model, groups, layer, cache

    def run(
        self, ids: Tensor, mask: Tensor, positions: Tensor, steered: Tensor | None, streams: Sequence[Tensor | None]
    ) -> Tensor:
        """[n, T, D] final-normed states of one call.

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

    def in_two(self, common: int, steered: Tensor | None, pad_id: int) -> tuple[Tensor, Tensor]:
        """The ``common`` first tokens once, then the rest of each prompt, through whose attention their gradient flows.

        Returns:
            (mask [G, P], padding between the two parts; [G, T, D] final-normed states of the second).
        """
        model, n = self.model, len(self.groups)
        first = torch.tensor(self.groups[0].prompt[:common], device=model.device)[None]
        rest, rest_mask = left_pad([group.prompt[common:] for group in self.groups], pad_id, model.device)
        here, own = torch.ones_like(first, dtype=torch.bool), rest_mask.bool()
        if steered is not None:
            start = steered.shape[1] - len(self.groups[0].prompt)
            here, own = steered[:1, start : start + common], steered[:, -rest.shape[1] :]
        policy = self.groups[0].policy
        with steered_at(model, here), model.rows([policy]):
            places = torch.arange(common, device=model.device)[None]
            self.run(first, torch.ones_like(first), places, here, [_part(self.groups[0].stream, slice(common))])
        self.cache.reorder_cache(torch.zeros(n, dtype=torch.long, device=model.device))
        mask = torch.cat([rest_mask.new_ones(n, common), rest_mask], dim=1)
        with steered_at(model, own), model.rows([policy] * n):
            streams = [_part(group.stream, slice(common, None)) for group in self.groups]
            return mask, self.run(rest, mask, positions_from_mask(mask)[:, common:], own, streams)


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
