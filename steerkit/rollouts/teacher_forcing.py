"""Log-probabilities, with gradient, of completions that were sampled before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.models import token_log_probs
from steerkit.models.steered import positions_from_mask

if TYPE_CHECKING:
    from steerkit.models import SteeredModel


@dataclass(frozen=True, slots=True)
class Branches:
    """A prompt and some of its completions, as token ids."""

    prompt: Sequence[int]
    """[P], at least one token."""
    completions: Sequence[Sequence[int]]
    """[K][T], each at least one token."""


_CACHE_SHARE = 8
"""A completion's copy of its prompt's keys and values takes about 1/8 of the memory of the prompt's activations."""


def completion_log_probs(
    model: SteeredModel, groups: Sequence[Branches], pad_id: int, temperature: float = 1.0
) -> Tensor:
    """[N] log-probabilities (nats) of all completion tokens, completion after completion, under logits / temperature.

    Each prompt runs once, forward and backward, however many completions it has: the second pass goes on from its
    keys and values, through which the completions' gradients flow back into it. The gradient is that of separate
    rows. Position t predicts token t + 1, so the first completion token is predicted, and steered, at the last prompt
    position.
    """
    from transformers import DynamicCache

    device = model.device
    prompts, mask = left_pad([group.prompt for group in groups], pad_id, device)
    owner = torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], device=device)
    rows = [completion for group in groups for completion in group.completions]
    width = max(map(len, rows))
    cache = DynamicCache(config=model.base.config)
    hidden = model.hidden_states(prompts, mask, positions_from_mask(mask), past_key_values=cache, use_cache=True)
    states = hidden[:, -1:].index_select(0, owner)
    if width > 1:
        ids = torch.full((len(rows), width - 1), pad_id)
        for k, row in enumerate(rows):
            ids[k, : len(row) - 1] = torch.tensor(row[:-1])
        cache.batch_select_indices(owner)
        # What stands behind a completion's end can't reach it under causal attention: no need to mask it.
        mask = torch.cat([mask.index_select(0, owner), mask.new_ones(len(rows), width - 1)], dim=1)
        positions = positions_from_mask(mask)[:, 1 - width :]
        rest = model.hidden_states(ids.to(device), mask, positions, past_key_values=cache, use_cache=True)
        states = torch.cat([states, rest], dim=1)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    real = torch.arange(width, device=device) < lengths[:, None]
    targets = torch.tensor([token for row in rows for token in row], device=device)
    return token_log_probs(model, states[real], targets, temperature)


def micro_batches(groups: Sequence[Branches], token_budget: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Split groups into batches of at most about ``token_budget`` padded tokens, prompts of like length together.

    Yields:
        Lists of (group index, completion indices). A group that is too large alone is split by its completions,
        sorted by length; a single completion over the budget goes alone.
    """
    pieces: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(groups)), key=lambda g: len(groups[g].prompt)):
        prompt, completions = groups[index].prompt, groups[index].completions
        piece: list[int] = []
        for k in sorted(range(len(completions)), key=lambda k: len(completions[k])):
            if piece and _cost(1, len(prompt), len(piece) + 1, len(completions[k])) > token_budget:
                pieces.append((index, piece))
                piece = []
            piece.append(k)
        if piece:
            pieces.append((index, piece))
    batch: list[tuple[int, list[int]]] = []
    prompt_width = completion_width = n_completions = 0
    for index, piece in pieces:
        longest = max(len(groups[index].completions[k]) for k in piece)
        widths = max(prompt_width, len(groups[index].prompt)), max(completion_width, longest)
        size = _cost(len(batch) + 1, widths[0], n_completions + len(piece), widths[1])
        if batch and size > token_budget:
            yield batch
            batch, n_completions = [], 0
            widths = len(groups[index].prompt), longest
        batch.append((index, piece))
        prompt_width, completion_width = widths
        n_completions += len(piece)
    if batch:
        yield batch


def _cost(prompts: int, prompt_width: int, completions: int, completion_width: int) -> int:
    """Padded tokens of both passes, the completions' copies of the prompts' keys and values included."""
    return prompts * prompt_width + completions * (completion_width + prompt_width // _CACHE_SHARE)


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows -> (ids [B, T], attention mask [B, T]), padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for k, row in enumerate(rows):
        ids[k, width - len(row) :] = torch.tensor(row)
        mask[k, width - len(row) :] = 1
    return ids.to(device), mask.to(device)
