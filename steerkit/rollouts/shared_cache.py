"""A key-value cache in which the samples of a prompt share its keys and values: read once a step, not once a sample.

Decoding is bound by memory traffic. The prompt's keys are multiplied with the queries of all its samples in one product
(as in Hydragen, arXiv 2402.05099); each sample's own tokens stand in a slab that is allocated once, at the column of
their age, so rows of any age run together and none is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from steerkit.rollouts.slots import moves_to_front


class SharedLayer(DynamicLayer):
    """One layer. The prompts' keys stand transposed, as the product with the queries of many rows reads them; a row's
    own are streamed from memory once a step, which is fastest in the order in which they were written.
    """

    def __init__(self, cache: SharedPromptCache) -> None:
        super().__init__()
        self.cache = cache
        self.own_keys: Tensor | None = None  # [slots, H, T, d]
        self.own_values: Tensor | None = None  # [slots, H, T, d]
        self.prompt_keys: Tensor | None = None  # [prompt slots, H, d, P]
        self.prompt_values: Tensor | None = None  # [prompt slots, H, P, d]
        self._views: tuple[tuple[int, int, int], tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write each running row's token, [n, H, 1, d], at the column of its age; ``attend`` reads the rest itself."""
        self.write(key_states[:, :, 0], value_states[:, :, 0])
        key_states.steerkit_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Each running row's token, [n, H, d], at the column of its age."""
        cache, n = self.cache, self.cache.n_rows
        assert self.own_keys is not None and self.own_values is not None
        if cache.one_age is not None:
            self.own_keys[:n, :, cache.one_age] = keys
            self.own_values[:n, :, cache.one_age] = values
        else:
            self.own_keys[cache.arange[:n], :, cache.columns] = keys
            self.own_values[cache.arange[:n], :, cache.columns] = values

    def in_use(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the running rows and their prompts: own keys and values [n * H, T, d], prompts' keys [p * H, d, width] and
        values [p * H, width, d].
        """
        cache = self.cache
        state = cache.n_rows, cache.n_prompts, cache.width
        if self._views is None or self._views[0] != state:
            assert self.own_keys is not None and self.own_values is not None
            assert self.prompt_keys is not None and self.prompt_values is not None
            n, p, first = cache.n_rows * cache.heads, cache.n_prompts * cache.heads, cache.prompt_width - cache.width
            own = self.own_keys.flatten(0, 1)[:n], self.own_values.flatten(0, 1)[:n]
            keys, values = self.prompt_keys.flatten(0, 1)[:p], self.prompt_values.flatten(0, 1)[:p]
            self._views = state, (*own, keys[:, :, first:], values[:, first:])
        return self._views[1]

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
        self.to_groups = self.to_rows = self.ages
        self.prompt_bias: Tensor | None = None
        self.width = self.length = 0
        self.rows_a_prompt, self.heads = k, 1

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
                self.heads = heads = keys.shape[1]
                d, dv = keys.shape[-1], values.shape[-1]
                # Zeros: what no row has written yet has weight 0, which times NaN would be NaN.
                mine.own_keys = keys.new_zeros(self.max_rows, heads, self.max_tokens, d)
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
            _move((layer.own_keys, layer.own_values), moves, self.device, self.filled)
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
        """How rows stand by prompt: ``to_groups`` [prompts * H * most rows of one] says where each place is filled
        from, ``to_rows`` [n * H] where each row's heads stand among those.
        """
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
        heads = torch.arange(self.heads, device=self.device)
        placed = torch.tensor(padded, device=self.device).view(groups, 1, most)
        self.to_groups = (placed * self.heads + heads[:, None]).flatten()
        place = torch.tensor(where, device=self.device)[:, None]
        self.to_rows = ((place // most * self.heads + heads) * most + place % most).flatten()
        self.width = max(self.lengths)
        starts = torch.tensor(self.lengths, device=self.device)
        self.starts = starts[torch.tensor(self.prompt_of, device=self.device)]
        before = self.arange_columns(self.width) < self.width - starts[:, None]
        self.prompt_bias = None
        if min(self.lengths) < self.width:
            bias = torch.zeros(groups, self.width, device=self.device).masked_fill_(before, float("-inf"))
            self.prompt_bias = bias.repeat_interleave(self.heads, dim=0)[:, None]


def _move(
    tensors: Sequence[Tensor | None],
    moves: Sequence[tuple[int, int]],
    device: torch.device,
    columns: int | None = None,
) -> None:
    """Copy rows, of a cache their first columns."""
    if moves:
        source, target = (torch.tensor(side, device=device) for side in zip(*moves, strict=True))
        for tensor in tensors:
            assert tensor is not None
            if columns is None:
                tensor[target] = tensor[source]
            else:
                tensor[target, :, :columns] = tensor[source, :, :columns]
