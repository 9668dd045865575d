"""Token sequences that are run through the model, and their left-padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steerkit.models.positions import positions_from_mask
from steerkit.rollouts import EncodedPrompt
from steerkit.rollouts.prompt_pass import left_pad
from steerkit.token_masks import TokenMask
from steerkit.types import RolloutGroup


@dataclass(frozen=True)
class Text:
    """One sequence of tokens: a prompt, or a prompt with one completion."""

    id: str
    """Of the problem: samples of one problem share it, and intervals resample problems."""
    ids: tuple[int, ...]
    """[N] token ids."""
    prompt_length: int
    """P, the number of prompt tokens; N = P if there is no completion."""
    segments: tuple[str, ...] = ()
    """[P] the part of the prompt that each token belongs to; empty if unknown."""
    sample: int = 0

    def positions(self, mask: TokenMask) -> list[bool]:
        """[N] what a token mask selects of it."""
        prompt = mask.prompt_positions(self.prompt_length, self.segments)
        return prompt + [mask.generated] * (len(self.ids) - self.prompt_length)


def of_prompts(prompts: Sequence[EncodedPrompt]) -> list[Text]:
    """The prompts alone."""
    return [Text(prompt.example.id, tuple(prompt.ids), len(prompt.ids), prompt.segments) for prompt in prompts]


def of_groups(groups: Sequence[RolloutGroup]) -> list[Text]:
    """Each prompt with each of its completions."""
    return [
        Text(group.example.id, (*group.prompt_ids, *rollout.token_ids), len(group.prompt_ids), group.segments, sample)
        for group in groups
        for sample, rollout in enumerate(group.rollouts)
    ]


@dataclass(frozen=True)
class Batch:
    """Texts padded on the left to one length T."""

    texts: tuple[Text, ...]
    indices: tuple[int, ...]
    """[B] where each text stands in the list that was batched."""
    ids: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, T] 0 at padding, else 1."""

    @cached_property
    def positions(self) -> Tensor:
        """[B, T] position ids: 0 at the first real token."""
        return positions_from_mask(self.mask)

    @cached_property
    def targets(self) -> Tensor:
        """[B, T] the token that follows each position; -1 at the last position and at padding."""
        following = torch.cat([self.ids[:, 1:], torch.full_like(self.ids[:, :1], -1)], dim=1)
        return following.masked_fill(self.mask == 0, -1)

    def select(self, mask: TokenMask | str) -> Tensor:
        """[B, T] bool: the positions that a token mask names, never padding.

        Raises:
            SteerkitError: for a mask that names a segment where the texts do not know theirs.
        """
        mask = TokenMask(mask) if isinstance(mask, str) else mask
        width = self.ids.shape[1]
        rows = [[False] * (width - len(text.ids)) + text.positions(mask) for text in self.texts]
        return torch.tensor(rows, dtype=torch.bool).to(self.ids.device)

    def unpad(self, values: Tensor, row: int) -> Tensor:
        """[N, ...] of one text, from [B, T, ...]."""
        return values[row, self.ids.shape[1] - len(self.texts[row].ids) :]


def batches(texts: Sequence[Text], pad_id: int, device: torch.device, batch_tokens: int) -> Iterator[Batch]:
    """Texts of like length together, at most about ``batch_tokens`` padded tokens in a batch; at least one text."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids))
    chosen: list[int] = []
    for index in order:
        if chosen and (len(chosen) + 1) * len(texts[index].ids) > batch_tokens:
            yield _batch(texts, chosen, pad_id, device)
            chosen = []
        chosen.append(index)
    if chosen:
        yield _batch(texts, chosen, pad_id, device)


def _batch(texts: Sequence[Text], chosen: list[int], pad_id: int, device: torch.device) -> Batch:
    picked = tuple(texts[index] for index in chosen)
    return Batch(picked, tuple(chosen), *left_pad([text.ids for text in picked], pad_id, device))
