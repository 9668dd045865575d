"""Position ids and steered positions of one forward call, from its attention mask and its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.token_masks import TokenMask


def positions_from_mask(mask: Tensor) -> Tensor:
    """[B, S] attention mask -> [B, S] position ids: 0 at the first real token, 0 under padding (as generate does)."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


def mask_positions(
    mask: TokenMask, lengths: Sequence[int], segments: Sequence[Sequence[str]], width: int, device: torch.device
) -> Tensor | None:
    """The steered positions of left-padded prompts: [B, width] bool; None if the mask steers them all.

    Args:
        lengths: [B] tokens of each prompt.
        segments: ``[B][P]`` the segment of each token, for masks that name one.
    """
    if mask.everywhere:
        return None
    rows = [
        [False] * (width - length) + mask.prompt_positions(length, names)
        for length, names in zip(lengths, segments, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.bool).to(device)


def call_positions(
    mask: TokenMask,
    shape: tuple[int, int],
    kwargs: Mapping[str, Any],
    prompt_positions: Tensor | None,
    device: torch.device,
) -> Tensor | bool:
    """What a forward call steers: True (all positions), False (none), or [B, T] bool.

    A call without a cached past is given the prompt, left-padded, its last column the last prompt token; calls after it
    are given generated tokens.

    Args:
        shape: (B, T) of the call.
        kwargs: of the call: ``past_key_values`` and ``attention_mask`` are read.
        prompt_positions: [B, T], if the caller knows them.
    """
    if mask.everywhere:
        return True
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        return mask.generated
    if prompt_positions is not None:
        return prompt_positions
    if mask.segment is not None:
        raise SteerkitError(
            f"The token mask {mask.spec!r} needs the segments of each prompt: sample through steerkit, or give "
            "applied(prompt_positions=...)."
        )
    rows, width = shape
    attention = kwargs.get("attention_mask")
    columns = torch.arange(width, device=device).expand(rows, width)
    if isinstance(attention, Tensor) and attention.dim() == 2:
        real = attention.bool()
    else:
        real = torch.ones_like(columns, dtype=torch.bool)
    from_end = width - 1 - columns  # 0 at the last prompt token
    if mask.spec.startswith("last_prompt"):
        steered = from_end < min(int(mask.spec.partition(":")[2]), width)
    else:
        body, final = (mask.prompt_positions(2)[k] for k in (0, 1))
        steered = torch.where(from_end == 0, final, body)
    return steered & real
