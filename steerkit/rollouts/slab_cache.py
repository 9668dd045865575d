"""A key-value cache that is allocated once: rows come and go, and nothing is concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from steerkit.rollouts.slots import moves_to_front


class SlabLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, columns, head width], allocated at the first prefill."""

    def __init__(self, slab: SlabCache) -> None:
        super().__init__()
        self.slab = slab

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one column, [n, heads, 1, width] of the n running rows; returns views of all columns in use."""
        n, low, column = self.slab.n_rows, self.slab.low, self.slab.column
        assert self.keys is not None and self.values is not None
        self.keys[:n, :, column] = key_states[:, :, 0]
        self.values[:n, :, column] = value_states[:, :, 0]
        return self.keys[:n, :, low : column + 1], self.values[:n, :, low : column + 1]

    def get_seq_length(self) -> int:
        return self.slab.column - self.slab.low

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class SlabCache(Cache):
    """Rows that run stand at 0 .. ``n_rows`` - 1; all of them write the same column at a time.

    A row that joins late has its prompt put in front of the current column, so every row is left-padded: ``starts``
    says where each one begins. Columns before ``low`` belong to no running row.

    Args:
        n_layers: blocks of the model.
        max_rows: rows that can run at once.
        width: columns.
        column: where the first token after the prompts goes: at least the longest prompt's length.
    """

    def __init__(self, n_layers: int, max_rows: int, width: int, column: int, device: torch.device) -> None:
        super().__init__(layers=[SlabLayer(self) for _ in range(n_layers)])
        self.max_rows, self.width, self.device = max_rows, width, device
        self.n_rows = 0
        self.low = self.column = self.first_column = column
        self.starts = torch.zeros(max_rows, dtype=torch.long, device=device)

    @property
    def free_prompts(self) -> int:
        """Prompts that may join, as far as prompts go: as many as there are rows for."""
        return self.max_rows

    def join(self, prompts: Cache, lengths: Sequence[int], k: int) -> None:
        """Add k rows for each prefilled prompt.

        Args:
            prompts: what the model cached for the left-padded prompts, [p, heads, P, width] a layer.
            lengths: [p] tokens of each prompt.
        """
        first, last = self.n_rows, self.n_rows + len(lengths) * k
        for slab, filled in zip(self.layers, prompts.layers, strict=True):
            for name in ("keys", "values"):
                source: Tensor = getattr(filled, name)
                target = getattr(slab, name)
                if target is None:
                    _, heads, _, width = source.shape
                    target = source.new_zeros(self.max_rows, heads, self.width, width)
                    setattr(slab, name, target)
                    slab.is_initialized = True  # type: ignore[union-attr]
                columns = slice(self.column - source.shape[2], self.column)
                target[first:last, :, columns] = source.repeat_interleave(k, dim=0)
        begin = torch.tensor([self.column - length for length in lengths], device=self.device)
        self.starts[first:last] = begin.repeat_interleave(k)
        self.n_rows = last
        self._settle()

    def leave(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Take rows out; the last running rows move into their places.

        Returns:
            (from, to) of each row that moved.
        """
        moves = moves_to_front(slots, self.n_rows)
        self.n_rows -= len(set(slots))
        if moves:
            source, target = (torch.tensor(side, device=self.device) for side in zip(*moves, strict=True))
            for layer in self.layers:
                for name in ("keys", "values"):
                    tensor = getattr(layer, name)
                    tensor[target] = tensor[source]
            self.starts[target] = self.starts[source]
        self._settle()
        return moves

    def inputs(self) -> dict[str, Tensor | None]:
        """What the next forward pass takes beside the tokens."""
        columns = torch.arange(self.low, self.column + 1, device=self.device)
        starts = self.starts[: self.n_rows, None]
        return {"attention_mask": (columns >= starts).long(), "position_ids": self.column - starts}

    def advance(self) -> None:
        """The next column; what no row needs is given up when the last one is reached."""
        self.column += 1
        if self.column == self.width and self.n_rows:
            shift = min(self.low, self.column - self.first_column)
            for layer in self.layers:
                for name in ("keys", "values"):
                    tensor = getattr(layer, name)
                    kept = tensor[: self.n_rows, :, shift:].clone()
                    tensor[: self.n_rows, :, : self.width - shift] = kept
            self.starts -= shift
            self.low -= shift
            self.column -= shift

    def _settle(self) -> None:
        self.low = int(self.starts[: self.n_rows].min()) if self.n_rows else self.column
