"""Attention over ``SharedPromptCache``: the prompt's keys are multiplied with the queries of all its samples at once
(as in Hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from steerkit.models.positions import positions_from_mask
from steerkit.rollouts.shared_cache import SharedLayer, SharedPromptCache

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

ATTENTION = "steerkit_shared_prompt"
"""The name under which ``attend`` is registered; it has no mask function, so models make no mask."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function for one token a row: query [n, Hq, 1, d] -> [n, 1, Hq, d].

    Raises:
        NotImplementedError: for a family that does more between cache and attention than this knows; a probe finds
            those (``fast_sampler``).
    """
    layer = getattr(key, "steerkit_layer", None)
    if layer is None or attention_mask is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("not the attention that this function knows")
    cache: SharedPromptCache = layer.cache
    if sliding_window is not None and cache.prompt_width + cache.max_tokens > sliding_window:
        raise NotImplementedError("a sliding window shorter than the sequences")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_shared(layer, query[:, :, 0], scaling, softcap)[:, None], None


def attend_shared(layer: SharedLayer, query: Tensor, scaling: float, softcap: float | None = None) -> Tensor:
    """Attention of each running row's token over its prompt and its own tokens: query [n, Hq, d] -> [n, Hq, d]."""
    cache = layer.cache
    n, heads, d = cache.n_rows, cache.heads, query.shape[-1]
    g = query.shape[1] // heads
    own, width, groups, most = cache.filled, cache.width, cache.n_prompts, cache.rows_a_prompt
    own_keys, own_values, prompt_keys, prompt_values = layer.in_use()
    q = query.reshape(n * heads, g, d) * scaling

    def by_prompt(rows: Tensor) -> Tensor:
        """[n * H, g, x] -> [groups * H, most * g, x]"""
        return rows.index_select(0, cache.to_groups).view(groups * heads, most * g, -1)

    def by_row(grouped: Tensor) -> Tensor:
        """The way back."""
        return grouped.view(groups * heads * most, g, -1).index_select(0, cache.to_rows)

    of_own = torch.bmm(q, own_keys[:, :own].transpose(1, 2))
    bias = cache.prompt_bias
    if softcap is not None:
        of_own = softcap * torch.tanh(of_own / softcap)
        of_prompt = softcap * torch.tanh(torch.bmm(by_prompt(q), prompt_keys) / softcap)
        of_prompt = of_prompt if bias is None else of_prompt.add_(bias)
    elif bias is None:
        of_prompt = torch.bmm(by_prompt(q), prompt_keys)
    else:
        of_prompt = torch.baddbmm(bias.to(q.dtype), by_prompt(q), prompt_keys)
    if cache.own_bias is not None:
        of_own.view(n, heads, g, own).add_(cache.own_bias)
    scores = torch.cat([by_row(of_prompt), of_own], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.bmm(weights[..., width:], own_values[:, :own])
    out += by_row(torch.bmm(by_prompt(weights[..., :width]), prompt_values))
    return out.view(n, heads * g, -1)


@contextmanager
def shared_attention(base: Any) -> Iterator[None]:
    """Inside the block the model attends by ``attend``, and makes no masks."""
    config = base.config.get_text_config()
    before = config._attn_implementation
    AttentionInterface.register(ATTENTION, attend)
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def shared_step(model: SteeredModel, cache: SharedPromptCache, ids: Tensor) -> Tensor:
    """[n, V] logits behind the running rows' last tokens [n], by the model's own forward pass."""
    with shared_attention(model.base):
        out = model(input_ids=ids[:, None], past_key_values=cache, use_cache=True, **cache.inputs())
    logits: Tensor = out.logits[:, -1]
    return logits


def slides(model: SteeredModel, length: int) -> bool:
    """Whether attention in some layers may not reach over sequences of this many tokens."""
    config = model.base.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size")  # the last: gpt_neo's local attention
    windows = [getattr(config, name, None) for name in names]
    return any(window and length > window for window in windows)


_PROBED: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def shares_prompts(model: SteeredModel, length: int) -> bool:
    """Whether the base can be decoded this way: a probe of a few tokens decides (families whose attention does more
    than ``attend`` knows, or that do not hand the cache's keys on as they are, can't).

    On a CPU only: on accelerators it was not measured against their fused kernels.

    Args:
        length: tokens of the longest sequence; none may be longer than a window in which attention slides.
    """
    base = model.base
    config = base.config.get_text_config()
    if model.device.type != "cpu" or not base._supports_attention_backend:
        return False
    if config._attn_implementation not in ("sdpa", "eager") or slides(model, length):
        return False
    if base not in _PROBED:
        with torch.no_grad(), model.disabled():
            try:
                _PROBED[base] = probe_step(model, shared_step)
            except Exception:  # whatever a family makes of a cache that it does not know
                _PROBED[base] = False
    return _PROBED[base]


def probe_step(model: SteeredModel, step: Callable[[SteeredModel, SharedPromptCache, Tensor], Tensor]) -> bool:
    """Whether steps give what a full pass does: prompts of 3 and 5 tokens, two samples each, two steps.

    Args:
        step: (model, cache, [n] ids) -> [n, V] logits.
    """
    size = int(model.base.config.get_text_config().vocab_size)
    full = (torch.arange(28, device=model.device).view(4, 7) * 7 + 1) % size
    full[1, :5], full[3, :5] = full[0, :5], full[2, :5]
    mask = torch.ones_like(full)
    mask[:2, :2] = 0
    positions = positions_from_mask(mask)
    truth = model(full, mask, positions).logits[:, 5:]
    filled = DynamicCache()
    model(full[::2, :5], mask[::2, :5], positions[::2, :5], past_key_values=filled, use_cache=True)
    cache = SharedPromptCache(model.n_layers, 4, 2, 5, 2, model.device)
    cache.join(filled, [3, 5], 2)
    got = []
    for column in (5, 6):
        got.append(step(model, cache, full[:, column]))
        cache.advance()
    difference = (torch.stack(got, dim=1).float() - truth.float()).abs().max()
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
    return bool(difference <= tolerance * truth.float().abs().max().clamp(min=1))
