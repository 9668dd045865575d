"""Many runs of the same texts that differ in vector or edits: one batch, in which what they share runs once.

A layer sweep, a grid of compositions or a set of patches is such a list of runs. Each starts from the run that it goes
along with for longest, behind the last block in which the two are the same (``growth``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steerkit.analysis.engine import Edit, Engine, RowVectors, Trace
from steerkit.analysis.growth import Growth, behind
from steerkit.analysis.texts import Batch
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector


@dataclass(frozen=True)
class Variant:
    """One run of the texts."""

    vector: SteeringVector | None = None
    """None: the base's."""
    edits: Mapping[HookPoint, Edit] = field(default_factory=dict)
    """Place -> edit of [B, T, ...], B the texts; variants with the same edit (``is``) share it."""

    def marks(self) -> dict[int, tuple[Any, ...]]:
        """What makes it another run, by the block behind which its rows have to be its own."""
        found: dict[int, list[Any]] = {}
        if self.vector is not None:
            kind = (self.vector.intervention, str(dict(self.vector.settings)), self.vector.token_mask)
            for point, tensors in self.vector.tensors.items():
                digest = hashlib.sha256()
                for name, tensor in tensors.items():
                    digest.update(name.encode())
                    digest.update(tensor.contiguous().numpy().tobytes())
                found.setdefault(behind(point), []).append((point, *kind, digest.digest()))
        for point, edit in self.edits.items():
            found.setdefault(behind(point), []).append((point, id(edit)))
        return {layer: tuple(sorted(marks, key=str)) for layer, marks in found.items()}


@dataclass(frozen=True)
class Variants:
    """What ``run_variants`` gave."""

    trace: Trace
    n: int
    """B, the texts."""
    places: tuple[int, ...]
    """[variants] which block of B rows is each one's; equal for runs that are the same."""
    growth: Growth

    def of(self, variant: int, point: HookPoint) -> Tensor:
        """[B, T, ...] what one variant has at a place."""
        values, index = self.distinct(point)
        return values[int(index[variant])]

    def distinct(self, point: HookPoint) -> tuple[Tensor, Tensor]:
        """([U, B, T, ...] the different ones at a place, [variants] which of them is each variant's)."""
        value = self.trace.values[point]
        there = self.growth.ancestors(len(value))
        index = torch.tensor([there[place * self.n] // self.n for place in self.places], device=value.device)
        return value.unflatten(0, (-1, self.n)), index

    def logits(self, variant: int) -> Tensor:
        """[B, T, V] of one variant, if they were asked for."""
        assert self.trace.logits is not None
        place = self.places[variant]
        return self.trace.logits[place * self.n : (place + 1) * self.n]


def run_variants(
    engine: Engine,
    batch: Batch,
    variants: Sequence[Variant],
    read: Sequence[HookPoint] = (),
    logits: bool = False,
    keep: Edit | None = None,
) -> Variants:
    """All variants in one forward pass; the numbers are those of a pass for each.

    Args:
        batch: the texts.
        read: places to read.
        logits: also give the logits of all positions.
        keep: as for ``Engine.run``.

    Raises:
        VectorError: if a vector does not fit the model.
        SteerkitError: for a place that the model does not have; vectors of several kinds at one hook point; no variant.
    """
    if not variants:
        raise SteerkitError("Nothing to run: give at least one variant.")
    n = len(batch.ids)
    places, starts, parents = _plan([variant.marks() for variant in variants])
    growth = Growth(
        tuple(start for start in starts for _ in range(n)),
        tuple(parent * n + row for parent in parents for row in range(n)),
    )
    firsts = [places.index(place) for place in range(len(starts))]  # a variant of each block of rows
    wide = tiled(batch, len(starts))
    moves: dict[HookPoint, list[tuple[slice, Edit]]] = {}
    for place, variant in enumerate(firsts):
        for point, edit in variants[variant].edits.items():
            moves.setdefault(point, []).append((slice(place * n, (place + 1) * n), edit))
    edits = {point: _of_rows(of_point) for point, of_point in moves.items()}
    vector = _row_vectors([variants[variant].vector for variant in firsts], n)
    trace = engine.run(wide, vector, read, edits, logits, growth=growth, keep=keep)
    return Variants(trace, n, tuple(places), growth)


def tiled(batch: Batch, copies: int) -> Batch:
    """The same texts several times over, block after block."""
    return Batch(
        batch.texts * copies, batch.indices * copies, batch.ids.repeat(copies, 1), batch.mask.repeat(copies, 1)
    )


def _plan(marks: Sequence[Mapping[int, tuple[Any, ...]]]) -> tuple[list[int], list[int], list[int]]:
    """(place of each variant, block behind which each place starts, place that it starts from).

    Layer by layer the variants that have been the same so far are told apart.
    """
    group = [0] * len(marks)  # of each variant so far
    starts, parents = [-1], [0]
    for layer in sorted({layer for of_variant in marks for layer in of_variant}):
        known: dict[tuple[int, tuple[Any, ...]], int] = {}
        heirs: set[int] = set()
        renamed = list(group)
        for variant, of_variant in enumerate(marks):
            key = (group[variant], of_variant.get(layer, ()))
            if key not in known:
                if key[0] not in heirs:  # the first one goes on in the rows that there are
                    heirs.add(key[0])
                    known[key] = key[0]
                else:
                    known[key] = len(starts)
                    starts.append(layer)
                    parents.append(key[0] if layer >= 0 else len(parents))
            renamed[variant] = known[key]
        group = renamed
    return group, starts, parents


def _of_rows(moves: Sequence[tuple[slice, Edit]]) -> Edit:
    def edit(value: Tensor) -> Tensor:
        changed = value.clone()
        for rows, one in moves:
            changed[rows] = one(value[rows])
        return changed

    return edit


def _row_vectors(vectors: Sequence[SteeringVector | None], n: int) -> RowVectors | None:
    """Of blocks of ``n`` rows."""
    different: dict[str, SteeringVector] = {}
    for vector in vectors:
        if vector is not None:
            different.setdefault(vector.digest(), vector)
    order = {digest: place for place, digest in enumerate(different)}
    rows = [-1 if vector is None else order[vector.digest()] for vector in vectors for _ in range(n)]
    return RowVectors(tuple(different.values()), tuple(rows)) if different else None
