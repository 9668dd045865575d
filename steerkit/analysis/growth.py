"""Rows that are copies of others up to a block: they join the batch behind it, so what they share is run once.

A run that differs from another one from block 20 on costs the blocks from 20 on. The batch grows on its way through
the model: a hook behind a block puts the new rows in, and hooks before the later blocks hand these the masks and
position embeddings of the rows that there are. It is the model's own forward pass, so it serves every family whose
blocks take rows that don't depend on each other; a probe decides, and where it says no all rows run from the start.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel
from steerkit.models.layout import hidden_of, with_hidden


@dataclass(frozen=True)
class Growth:
    """When each row of a batch comes to be.

    Raises:
        SteerkitError: if rows are not in the order in which they join, or a parent is not there before its copy.
    """

    starts: tuple[int, ...]
    """[R] the block behind which a row joins, before that block's output is steered, edited or read; -1: it runs from
    the beginning. Never decreasing.
    """
    parents: tuple[int, ...]
    """[R] the row that it is a copy of until then; of a row that runs from the beginning: itself."""

    def __post_init__(self) -> None:
        for row, (start, parent) in enumerate(zip(self.starts, self.parents, strict=True)):
            there = parent == row if start == -1 else 0 <= parent < row and self.starts[parent] < start
            if not there or (row and start < self.starts[row - 1]):
                raise SteerkitError(f"Row {row} can't join behind block {start} as a copy of row {parent}.")

    def rows(self, layer: int) -> int:
        """How many there are behind block ``layer`` (-1: in the first block)."""
        return sum(start <= layer for start in self.starts)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The blocks behind which rows join."""
        return tuple(sorted({start for start in self.starts if start >= 0}))

    def joining(self, layer: int) -> list[int]:
        """The rows that those joining behind block ``layer`` are copies of."""
        return [parent for start, parent in zip(self.starts, self.parents, strict=True) if start == layer]

    def ancestors(self, n: int) -> list[int]:
        """[R] the row among the first ``n`` that each is, or is a copy of."""
        found: list[int] = []
        for row, parent in enumerate(self.parents):
            found.append(row if row < n else found[parent])
        return found

    def spread(self, value: Tensor) -> Tensor:
        """[n, ...] of the rows that are there -> [R, ...] of all."""
        if len(value) == len(self.starts):
            return value
        return value[torch.tensor(self.ancestors(len(value)), device=value.device)]


def behind(point: HookPoint) -> int:
    """The block behind which rows have to be their own, for a change at ``point``; -1: from the beginning."""
    return point.layer if point.site == "output" else point.layer - 1


@contextmanager
def growing(loaded: LoadedModel, growth: Growth, paths: frozenset[Path]) -> Iterator[None]:
    """Inside the block a call of the base is given the rows that run from the beginning and ends with all of them.

    Open it before other hooks are put on the blocks' outputs: they are to see the rows that join.

    Args:
        paths: from ``batch_arguments``.
    """
    handles = []
    roots = growth.ancestors(growth.rows(-1))
    grown = _Grown(growth.rows(-1), roots, paths)
    try:
        for layer, block in enumerate(loaded.layout.block_list(loaded.base)):
            if growth.rows(layer - 1) > growth.rows(-1):
                hook = _with_arguments(grown, growth.rows(layer - 1))
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            if layer in growth.layers:
                handles.append(block.register_forward_hook(_join(growth.joining(layer))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _join(parents: Sequence[int]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        return with_hidden(output, torch.cat([hidden, hidden[torch.tensor(parents, device=hidden.device)]]))

    return hook


Path = tuple[str | int, ...]
"""Where among a block's arguments a tensor stands: ``("attention_mask",)``, ``("position_embeddings", 0)``."""


class _Grown:
    """A block's other arguments for more rows than the call began with; made once for blocks that are given the same.

    Args:
        rows: that the call began with.
        roots: [R] the row among these that each is a copy of.
    """

    def __init__(self, rows: int, roots: Sequence[int], paths: frozenset[Path]) -> None:
        self.rows, self.roots, self.paths = rows, roots, paths
        self._made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def of(self, value: Any, n: int, path: Path) -> Any:
        """What stands at ``path``, for ``n`` rows."""
        if isinstance(value, Tensor):
            if path not in self.paths or value.dim() == 0 or len(value) != self.rows:
                return value
            key = (id(value), n)
            if key not in self._made:  # the original is held, so that its id stays its own
                index = torch.tensor(self.roots[:n], device=value.device)
                self._made[key] = (value, value.index_select(0, index))
            return self._made[key][1]
        if type(value) in (tuple, list):
            return type(value)(self.of(one, n, (*path, k)) for k, one in enumerate(value))
        if type(value) is dict:
            return {name: self.of(one, n, (*path, name)) for name, one in value.items()}
        return value


def _with_arguments(grown: _Grown, n: int) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The stream has its rows already.
        first, rest = args[:1], args[1:]
        args = (*first, *(grown.of(one, n, (k,)) for k, one in enumerate(rest, start=1)))
        return args, {
            name: one if name == "hidden_states" else grown.of(one, n, (name,)) for name, one in kwargs.items()
        }

    return hook


_PROBED: weakref.WeakKeyDictionary[nn.Module, frozenset[Path] | None] = weakref.WeakKeyDictionary()


def batch_arguments(loaded: LoadedModel, arguments: Any) -> frozenset[Path] | None:
    """Which of a block's arguments have a row for each of the batch; None if the family's batch can't grow.

    Found by passes of 3 and 5 rows, and tried: rows that join must come out as those that ran from the beginning. Done
    once for a base.

    Args:
        arguments: (ids [B, T], mask [B, T]) -> keyword arguments of the base's forward.
    """
    base = loaded.base
    if base not in _PROBED:
        try:
            _PROBED[base] = _probe(loaded, arguments)
        except Exception:  # whatever a family makes of rows that it did not begin with
            _PROBED[base] = None
    return _PROBED[base]


@torch.no_grad()
def _probe(loaded: LoadedModel, arguments: Any) -> frozenset[Path] | None:
    base, blocks = loaded.base, loaded.layout.block_list(loaded.base)
    seen: list[frozenset[Path]] = []
    for rows in (3, 5):
        found: set[Path] = set()
        handles = [block.register_forward_pre_hook(_note(found, rows), with_kwargs=True) for block in blocks]
        try:
            base(**arguments(*_texts(base, rows)))
        finally:
            for handle in handles:
                handle.remove()
        seen.append(frozenset(found))
    paths = seen[0] & seen[1]
    last = len(blocks) - 1
    starts = [-1, -1, -1, 0, 0, last, last]
    growth = Growth(tuple(starts), (0, 1, 2, 2, 0, 1, 0))
    ids, mask = _texts(base, 3)
    whole = torch.tensor(growth.ancestors(3), device=ids.device)
    truth = base(**arguments(ids[whole], mask[whole])).logits
    with growing(loaded, growth, paths):
        got = base(**arguments(ids, mask)).logits
    tolerance = 1e-4 if base.dtype in (torch.float32, torch.float64) else 3e-2
    real = mask[whole].bool()
    got, truth = got[real].float(), truth[real].float()
    good = bool((got - truth).abs().max() <= tolerance * truth.abs().max().clamp(min=1))
    return paths if good else None


def _texts(base: nn.Module, rows: int) -> tuple[Tensor, Tensor]:
    """([rows, 6] ids, [rows, 6] mask), the first rows left-padded by different amounts."""
    device = next(base.parameters()).device
    size = int(base.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    ids = (torch.arange(rows * 6, device=device).view(rows, 6) * 7 + 3) % size
    mask = torch.ones_like(ids)
    mask[0, :2], mask[1, :1] = 0, 0
    return ids, mask


def _note(found: set[Path], rows: int) -> Any:
    def walk(value: Any, path: Path) -> None:
        if isinstance(value, Tensor):
            if value.dim() and len(value) == rows:
                found.add(path)
        elif type(value) in (tuple, list):
            for k, one in enumerate(value):
                walk(one, (*path, k))
        elif type(value) is dict:
            for name, one in value.items():
                walk(one, (*path, name))

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for k, one in enumerate(args[1:], start=1):
            walk(one, (k,))
        for name, one in kwargs.items():
            if name != "hidden_states":
                walk(one, (name,))

    return hook
