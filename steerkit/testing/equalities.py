"""Ways to run a steered model that must give the numbers of one unpadded full pass without a cache.

Each yields triples (what, got, expected): the contract asserts on them, ``steerkit doctor`` measures them. Inside
``with steered.disabled():`` they say the same of the base alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steerkit.models.steered import SteeredModel

Triples = Iterator[tuple[str, Tensor, Tensor]]


def single_rows(steered: SteeredModel, ids: Tensor, full: Tensor) -> Triples:
    """Each row alone.

    Args:
        ids: [B, T], rows of one length.
        full: [B, T, V] logits of ``steered(ids)``.
    """
    for row in range(len(ids)):
        yield f"batch = single, row {row}", steered(ids[row : row + 1]).logits[0], full[row]


def left_padded(steered: SteeredModel, ids: Tensor, full: Tensor, pad_id: int = 0) -> Triples:
    """Row r cut by 2 r tokens, and padded on the left by as many."""
    padded, mask = torch.full_like(ids, pad_id), torch.zeros_like(ids)
    kept = [ids.shape[1] - 2 * row for row in range(len(ids))]
    for row, length in enumerate(kept):
        padded[row, -length:] = ids[row, :length]
        mask[row, -length:] = 1
    logits = steered(padded, mask).logits
    for row, length in enumerate(kept):
        yield f"left-padded by {2 * row} = unpadded", logits[row, -length:], full[row, :length]


def cached(steered: SteeredModel, ids: Tensor, full: Tensor, prefill: int = 4) -> Triples:
    """A prefill, then token by token: T - prefill + 1 forward calls."""
    ones = torch.ones_like(ids)
    output = steered(ids[:, :prefill], ones[:, :prefill], use_cache=True)
    yield "prefill = full pass", output.logits, full[:, :prefill]
    for t in range(prefill, ids.shape[1]):
        output = steered(ids[:, t : t + 1], ones[:, : t + 1], past_key_values=output.past_key_values, use_cache=True)
        yield f"cached decoding = full pass, position {t}", output.logits[:, 0], full[:, t]


def generated(steered: SteeredModel, ids: Tensor, new_tokens: int = 4) -> Triples:
    """``base.generate`` under ``applied()``: as many forward calls as new tokens. The comparing pass is not counted."""
    steered.counter.reset()
    with steered.applied():
        generate: Any = steered.base.generate
        made = generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    seen = steered.counter
    steered.counter = type(seen)(seen.layers)
    try:
        again = steered(made.sequences, torch.ones_like(made.sequences)).logits[:, ids.shape[1] - 1 : -1]
    finally:
        steered.counter = seen
    yield "logits of generate() = full pass", torch.stack(made.logits, 1), again
