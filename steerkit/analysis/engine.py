"""What an analyzer asks of the model, whichever engine runs it: read here, edit there, steered or not.

Two engines give the same numbers (a test compares them): ``nnsight`` traces the model, ``batched`` runs it under
steerkit's own hooks, which costs less for sweeps. Both steer first, then edit, then read at one place.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerkit.analysis.growth import Growth
from steerkit.analysis.places import Place, find_place
from steerkit.analysis.texts import Batch
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.interventions.rowwise import Rows, Rowwise
from steerkit.models import LoadedModel
from steerkit.models.positions import positions_from_mask
from steerkit.registry import did_you_mean
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector

Edit = Callable[[Tensor], Tensor]
"""What stands at a place ([B, T, ...], see ``places``) -> what is to stand there. It must not change its argument."""

ENGINES = ("nnsight", "batched")


@dataclass(frozen=True)
class Trace:
    """What one forward pass gave."""

    values: Mapping[HookPoint, Tensor]
    """Place -> its tensor, after steering and edits; of the rows that there are at the place, where the batch grows."""
    logits: Tensor | None = None
    """[B, T, V], if they were asked for."""
    growth: Growth | None = None

    def __getitem__(self, point: HookPoint) -> Tensor:
        """[B, T, ...] of all rows."""
        value = self.values[point]
        return value if self.growth is None else self.growth.spread(value)


@dataclass(frozen=True)
class RowVectors:
    """Several vectors in one batch, each in its own rows."""

    vectors: tuple[SteeringVector, ...]
    rows: tuple[int, ...]
    """[B] the place in ``vectors`` of the one that acts in each row; -1: none does."""


@dataclass
class Visit:
    """One side of one module, in the order in which the forward pass comes by."""

    module: nn.Module
    side: str
    edits: list[tuple[Place, Edit]] = field(default_factory=list)
    reads: list[Place] = field(default_factory=list)
    steers: list[HookPoint] = field(default_factory=list)
    keep: Edit | None = None

    def edit_and_read(self, value: Any, length: int, values: dict[HookPoint, Tensor]) -> Any:
        """The value with this visit's edits; what is read of it goes to ``values``.

        Args:
            length: T of the call.
        """
        for place, edit in self.edits:
            value = place.write(value, edit(place.read(value, length)))
        for place in self.reads:
            found = place.read(value, length)
            values[place.point] = found if self.keep is None else self.keep(found)
        return value


def make_visits(loaded: LoadedModel, read: Sequence[HookPoint], edits: Mapping[HookPoint, Edit]) -> list[Visit]:
    """The sides of modules where something is read or edited, not in forward order.

    Raises:
        SteerkitError: for a place that the model does not have, or that can't be edited.
    """
    for point in edits:
        if point.site == "attn_pattern":
            raise SteerkitError(f"{point} can only be read: edit q, k, v or heads instead.")
    visits: dict[tuple[int, str], Visit] = {}
    for point in dict.fromkeys((*read, *edits)):
        place = find_place(loaded.base, loaded.layout, point)
        visit = visits.setdefault((id(place.module), place.side), Visit(place.module, place.side))
        if point in edits:
            visit.edits.append((place, edits[point]))
        if point in read:
            visit.reads.append(place)
    return list(visits.values())


class Engine(ABC):
    """Runs forward passes of one base model, in a ``with`` block that leaves the model as it was."""

    name: ClassVar[str]

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._built: dict[str, dict[HookPoint, Intervention]] = {}
        self._signature = inspect.signature(loaded.base.forward).parameters

    @torch.no_grad()
    def run(
        self,
        batch: Batch,
        vector: SteeringVector | RowVectors | None = None,
        read: Sequence[HookPoint] = (),
        edits: Mapping[HookPoint, Edit] | None = None,
        logits: bool = False,
        token_mask: TokenMask | str | None = None,
        steered_rows: Tensor | None = None,
        growth: Growth | None = None,
        keep: Edit | None = None,
    ) -> Trace:
        """One forward pass over a batch.

        Args:
            vector: None runs the base.
            read: places to read (``places.READ_SITES``).
            edits: place -> edit; several places are edited in forward order, each seeing what the ones before did.
            logits: also give the logits of all positions.
            token_mask: where the vector acts; default: its own mask.
            steered_rows: [B] bool, the rows in which it acts; the others are the base's. Default: all.
            growth: rows that are copies of others up to a block, for an engine that can spare them; edits are then
                given the rows that there are at their place, the first ones. It changes no number.
            keep: what is kept of each tensor that is read, e.g. some positions; it gives a tensor of its own.

        Raises:
            VectorError: if the vector does not fit the model.
            SteerkitError: for a place that the model does not have; vectors of several kinds at one hook point.
        """
        visits = make_visits(self.loaded, read, edits or {})
        for visit in visits:
            visit.keep = keep
        steered = None
        if isinstance(vector, RowVectors):
            masks = [batch.select(one.token_mask if token_mask is None else token_mask) for one in vector.vectors]
            none = torch.zeros_like(batch.mask, dtype=torch.bool)
            steered = torch.stack([*masks, none])[torch.tensor(vector.rows), torch.arange(len(vector.rows))]
        elif vector is not None:
            steered = batch.select(vector.token_mask if token_mask is None else token_mask)
        if steered is not None and steered_rows is not None:
            steered = steered & steered_rows[:, None]
        patterns = any(point.site == "attn_pattern" for point in read)
        with eager_attention(self.loaded.base) if patterns else nullcontext():
            return self.forward(batch, vector, steered, visits, logits, growth)

    @abstractmethod
    def forward(
        self,
        batch: Batch,
        vector: SteeringVector | RowVectors | None,
        steered: Tensor | None,
        visits: list[Visit],
        logits: bool,
        growth: Growth | None,
    ) -> Trace:
        """The pass itself, without gradients.

        Args:
            steered: [B, T] bool, the positions at which ``vector`` acts.
            visits: not in forward order.
            growth: may be left out of account.
        """

    def interventions(self, vector: SteeringVector | RowVectors | None) -> dict[HookPoint, Intervention]:
        """The vector's interventions on the model's device; the latest few are kept.

        Raises:
            VectorError: if it does not fit the model.
            SteerkitError: for vectors of several kinds at one hook point.
        """
        if vector is None:
            return {}
        if isinstance(vector, RowVectors):
            return self._rowwise(vector)
        key = vector.digest()
        if key not in self._built:
            vector.check_fits(self.loaded.base)
            while len(self._built) >= 8:
                self._built.pop(next(iter(self._built)))
            built = vector.to_interventions()
            self._built[key] = {p: item.to(self.loaded.base.device).requires_grad_(False) for p, item in built.items()}
        return self._built[key]

    def _rowwise(self, vector: RowVectors) -> dict[HookPoint, Intervention]:
        device = self.loaded.base.device
        members: dict[HookPoint, dict[int, Intervention]] = {}
        for number, one in enumerate(vector.vectors):
            for point, item in self.interventions(one).items():
                members.setdefault(point, {})[number] = item
        # Rows that no vector acts in belong to a policy that has nothing anywhere.
        rows = Rows([len(vector.vectors) if row < 0 else row for row in vector.rows], device, growing=True)
        found: dict[HookPoint, Intervention] = {}
        for point, of_point in members.items():
            kinds = {type(item).__name__ for item in of_point.values()}
            if len(kinds) > 1:
                raise SteerkitError(f"{point}: vectors that share a batch need one kind of intervention, got {kinds}.")
            stacked = Rowwise(of_point, len(vector.vectors) + 1)
            stacked.rows = rows
            found[point] = stacked.to(device)
        return found

    def arguments(self, ids: Tensor, mask: Tensor, logits: bool = True) -> dict[str, Any]:
        """Keyword arguments of the base's forward; without ``logits`` the unembedding runs on one position only.

        Args:
            ids: [B, T]; ``mask``: [B, T].
        """
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if "position_ids" in self._signature:
            given["position_ids"] = positions_from_mask(mask)
        if not logits and "logits_to_keep" in self._signature:
            given["logits_to_keep"] = 1
        return given

    def release(self) -> None:  # noqa: B027  (an engine of hooks leaves nothing)
        """Take whatever stands on the model off it; the next ``run`` puts it back."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def make_engine(name: str, loaded: LoadedModel) -> Engine:
    """``nnsight`` or ``batched``.

    Raises:
        SteerkitError: for another name.
    """
    if name == "batched":
        from steerkit.analysis.batched import BatchedEngine

        return BatchedEngine(loaded)
    if name == "nnsight":
        from steerkit.analysis.tracing import NNsightEngine

        return NNsightEngine(loaded)
    raise SteerkitError(f"No engine {name!r}.{did_you_mean(name, ENGINES)} Engines: {', '.join(ENGINES)}.")


@contextmanager
def eager_attention(base: PreTrainedModel) -> Iterator[None]:
    """Attention that gives its weights back, inside the block: fused kernels never have them."""
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)
