"""A key-value cache in which the samples of a prompt share its keys and values: read once a step, not once a sample.

Decoding is bound by memory traffic. The prompt's keys are multiplied with the queries of all its samples in one product
(as in Hydragen, arXiv 2402.05099); each sample's own tokens stand in a slab that is allocated once, at the column of
their age, so rows of any age run together and none is padded.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from steerkit.models.positions import positions_from_mask
from steerkit.rollouts.slots import moves_to_front

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

ATTENTION = "steerkit_shared_prompt"
"""The name under which ``attend`` is registered; it has no mask function, so models make no mask."""


class SharedLayer(DynamicLayer):
    """One layer: keys stand transposed, as the product with the queries reads them."""

    def __init__(self, cache: SharedPromptCache) -> None:
        super().__init__()
        self.cache = cache
        self.own_keys: Tensor | None = None  # [slots, H, d, T]
        self.own_values: Tensor | None = None  # [slots, H, T, d]
        self.prompt_keys: Tensor | None = None  # [prompt slots, H, d, P]
        self.prompt_values: Tensor | None = None  # [prompt slots, H, P, d]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write each running row's token, [n, H, 1, d], at the column of its age; ``attend`` reads the rest itself."""
        cache, n = self.cache, self.cache.n_rows
        assert self.own_keys is not None and self.own_values is not None
        if cache.one_age is not None:
            self.own_keys[:n, :, :, cache.one_age] = key_states[:, :, 0]
            self.own_values[:n, :, cache.one_age] = value_states[:, :, 0]
        else:
            self.own_keys[cache.arange[:n], :, :, cache.columns] = key_states[:, :, 0]
            self.own_values[cache.arange[:n], :, cache.columns] = value_states[:, :, 0]
        key_states.steerkit_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length + query_length, 0


class SharedPromptCache(Cache):
    """Rows that run stand at 0 .. ``n_rows`` - 1, the prompts that they share at 0 .. ``n_prompts`` - 1.

    Args:
        n_layers: blocks of the model.
        max_rows: rows that can run at once.
        k: rows of a prompt.
        prompt_width: tokens of the longest prompt.
        max_tokens: tokens of the longest completion.
    """

    def __init__(
        self, n_layers: int, max_rows: int, k: int, prompt_width: int, max_tokens: int, device: torch.device
    ) -> None:
        super().__init__(layers=[SharedLayer(self) for _ in range(n_layers)])
        self.max_rows, self.k, self.device = max_rows, k, device
        self.prompt_width, self.max_tokens = prompt_width, max_tokens
        # Groups whose samples have partly ended still hold their prompt: room for as many again.
        self.max_prompts = min(max_rows, 2 * -(-max_rows // k) + 1)
        self.n_rows = self.n_prompts = 0
        self.arange = torch.arange(max_rows, device=device)
        self.prompt_of: list[int] = []  # row -> prompt slot
        self.lengths: list[int] = []  # prompt slot -> tokens
        self.ages = torch.zeros(max_rows, dtype=torch.long, device=device)
        # Of the step that is being made, and of the rows that run (``_settle``).
        self.one_age: int | None = None
        self.columns = self.ages
        self.filled = 0
        self.own_bias: Tensor | None = None
        self.place: Tensor | None = None
        self.where: Tensor | None = None
        self.prompt_bias: Tensor | None = None
        self.width = self.length = 0
        self.rows_a_prompt = k

    @property
    def free_prompts(self) -> int:
        """Prompts that there is room for."""
        return self.max_prompts - self.n_prompts

    def join(self, prompts: Cache, lengths: Sequence[int], k: int) -> None:
        """Add k rows for each prefilled prompt.

        Args:
            prompts: what the model cached for the left-padded prompts, [p, H, P, d] a layer.
            lengths: [p] tokens of each prompt.
        """
        first = self.n_prompts
        last = first + len(lengths)
        for mine, filled in zip(self.layers, prompts.layers, strict=True):
            assert isinstance(mine, SharedLayer)
            keys, values = getattr(filled, "keys", None), getattr(filled, "values", None)
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
            if mine.own_keys is None:
                heads, d, dv = keys.shape[1], keys.shape[-1], values.shape[-1]
                # Zeros: what no row has written yet has weight 0, which times NaN would be NaN.
                mine.own_keys = keys.new_zeros(self.max_rows, heads, d, self.max_tokens)
                mine.own_values = values.new_zeros(self.max_rows, heads, self.max_tokens, dv)
                mine.prompt_keys = keys.new_zeros(self.max_prompts, heads, d, self.prompt_width)
                mine.prompt_values = values.new_zeros(self.max_prompts, heads, self.prompt_width, dv)
                mine.is_initialized = True
            assert mine.prompt_keys is not None and mine.prompt_values is not None
            mine.prompt_keys[first:last, :, :, self.prompt_width - keys.shape[2] :] = keys.transpose(2, 3)
            mine.prompt_values[first:last, :, self.prompt_width - keys.shape[2] :] = values
        self.ages[self.n_rows : self.n_rows + len(lengths) * k] = 0
        self.prompt_of += [slot for slot in range(first, last) for _ in range(k)]
        self.lengths += lengths
        self.n_prompts, self.n_rows = last, self.n_rows + len(lengths) * k
        self._settle()

    def leave(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Take rows out; the last running rows move into their places, and so do prompts without rows.

        Returns:
            (from, to) of each row that moved.
        """
        moves = moves_to_front(slots, self.n_rows)
        self.n_rows -= len(set(slots))
        for there, here in moves:
            self.prompt_of[here] = self.prompt_of[there]
        del self.prompt_of[self.n_rows :]
        empty = sorted(set(range(self.n_prompts)) - set(self.prompt_of))
        prompt_moves = moves_to_front(empty, self.n_prompts)
        self.n_prompts -= len(empty)
        renamed = dict(prompt_moves)
        self.prompt_of = [renamed.get(slot, slot) for slot in self.prompt_of]
        for there, here in prompt_moves:
            self.lengths[here] = self.lengths[there]
        del self.lengths[self.n_prompts :]
        for layer in self.layers:
            assert isinstance(layer, SharedLayer)
            _move((layer.own_keys, layer.own_values), moves, self.device)
            _move((layer.prompt_keys, layer.prompt_values), prompt_moves, self.device)
        _move((self.ages,), moves, self.device)
        self._settle()
        return moves

    def inputs(self) -> dict[str, Tensor | None]:
        """What the next forward pass takes beside the tokens; it writes them at the columns of their ages."""
        n = self.n_rows
        ages = self.ages[:n]
        low, high = (int(x) for x in ages.aminmax())
        self.one_age = low if low == high else None
        self.columns, self.filled = ages, high + 1
        self.own_bias = None
        if self.one_age is None:
            beyond = self.arange_columns(high + 1) > ages[:, None]
            self.own_bias = torch.zeros(n, 1, 1, high + 1, device=self.device).masked_fill_(
                beyond[:, None, None], float("-inf")
            )
        self.length = self.prompt_width + high
        return {"attention_mask": None, "position_ids": (self.starts[:n] + ages)[:, None]}

    def arange_columns(self, n: int) -> Tensor:
        return torch.arange(n, device=self.device)

    def advance(self) -> None:
        """The step is made: every running row is a token older."""
        self.ages[: self.n_rows] += 1

    def _settle(self) -> None:
        """How rows stand by prompt: [prompts, most rows of one] row numbers, and each row's place in there."""
        n, groups = self.n_rows, self.n_prompts
        if not n:
            return
        rows: list[list[int]] = [[] for _ in range(groups)]
        for row, slot in enumerate(self.prompt_of):
            rows[slot].append(row)
        self.rows_a_prompt = most = max(map(len, rows))
        padded = [row for own in rows for row in own + own[:1] * (most - len(own))]
        where = [0] * n
        for slot, own in enumerate(rows):
            for j, row in enumerate(own):
                where[row] = slot * most + j
        in_order = padded == list(range(n))
        self.place = None if in_order else torch.tensor(padded, device=self.device)
        self.where = None if in_order else torch.tensor(where, device=self.device)
        self.width = max(self.lengths)
        starts = torch.tensor(self.lengths, device=self.device)
        self.starts = starts[torch.tensor(self.prompt_of, device=self.device)]
        before = self.arange_columns(self.width) < self.width - starts[:, None]
        self.prompt_bias = None
        if min(self.lengths) < self.width:
            bias = torch.zeros(groups, 1, 1, self.width, device=self.device)
            self.prompt_bias = bias.masked_fill_(before[:, None, None], float("-inf"))


def _move(tensors: Sequence[Tensor | None], moves: Sequence[tuple[int, int]], device: torch.device) -> None:
    if moves:
        source, target = (torch.tensor(side, device=device) for side in zip(*moves, strict=True))
        for tensor in tensors:
            assert tensor is not None
            tensor[target] = tensor[source]


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
    n, heads = cache.n_rows, layer.own_keys.shape[1]
    g, d = query.shape[1] // heads, query.shape[-1]
    own, width, groups, most = cache.filled, cache.width, cache.n_prompts, cache.rows_a_prompt
    q = query.reshape(n, heads, g, d) * (d**-0.5 if scaling is None else scaling)

    def by_prompt(rows: Tensor) -> Tensor:
        """[n, H, g, x] -> [groups * H, most * g, x]"""
        placed = rows if cache.place is None else rows[cache.place]
        return placed.view(groups, most, heads, g, -1).transpose(1, 2).reshape(groups * heads, most * g, -1)

    def by_row(grouped: Tensor) -> Tensor:
        """The way back."""
        rows = grouped.view(groups, heads, most, g, -1).transpose(1, 2).reshape(groups * most, heads, g, -1)
        return rows if cache.where is None else rows[cache.where]

    prompt_keys = layer.prompt_keys.flatten(0, 1)[: groups * heads, :, cache.prompt_width - width :]
    of_prompt = torch.bmm(by_prompt(q), prompt_keys)
    if softcap is not None:
        of_prompt = softcap * torch.tanh(of_prompt / softcap)
    if cache.prompt_bias is not None:
        of_prompt.view(groups, heads, most * g, width).add_(cache.prompt_bias)
    of_own = torch.bmm(q.view(n * heads, g, d), layer.own_keys.flatten(0, 1)[: n * heads, :, :own])
    if softcap is not None:
        of_own = softcap * torch.tanh(of_own / softcap)
    if cache.own_bias is not None:
        of_own.view(n, heads, g, own).add_(cache.own_bias)
    scores = torch.cat([by_row(of_prompt), of_own.view(n, heads, g, own)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.bmm(weights[..., width:].reshape(n * heads, g, own), layer.own_values.flatten(0, 1)[: n * heads, :own])
    prompt_values = layer.prompt_values.flatten(0, 1)[: groups * heads, cache.prompt_width - width :]
    shared = by_row(torch.bmm(by_prompt(weights[..., :width]), prompt_values))
    return (out.view(n, heads, g, -1) + shared).reshape(n, 1, heads * g, -1), None


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
                _PROBED[base] = _probe(model)
            except Exception:  # whatever a family makes of a cache that it does not know
                _PROBED[base] = False
    return _PROBED[base]


def _probe(model: SteeredModel) -> bool:
    """Prompts of 3 and 5 tokens, two samples each, two steps, against a full pass."""
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
        with shared_attention(model.base):
            out = model(full[:, column : column + 1], past_key_values=cache, use_cache=True, **cache.inputs())
        cache.advance()
        got.append(out.logits)
    difference = (torch.cat(got, dim=1).float() - truth.float()).abs().max()
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
    return bool(difference <= tolerance * truth.float().abs().max().clamp(min=1))
