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

from steerkit.analysis.places import Place, find_place
from steerkit.analysis.texts import Batch
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.models import LoadedModel
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
    """Place -> its tensor, after steering and edits."""
    logits: Tensor | None = None
    """[B, T, V], if they were asked for."""

    def __getitem__(self, point: HookPoint) -> Tensor:
        return self.values[point]


@dataclass
class Visit:
    """One side of one module, in the order in which the forward pass comes by."""

    module: nn.Module
    side: str
    edits: list[tuple[Place, Edit]] = field(default_factory=list)
    reads: list[Place] = field(default_factory=list)
    steers: list[HookPoint] = field(default_factory=list)

    def edit_and_read(self, value: Any, shape: tuple[int, int], values: dict[HookPoint, Tensor]) -> Any:
        """The value with this visit's edits; what is read of it goes to ``values``."""
        for place, edit in self.edits:
            value = place.write(value, edit(place.read(value, shape)))
        for place in self.reads:
            values[place.point] = place.read(value, shape)
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
        vector: SteeringVector | None = None,
        read: Sequence[HookPoint] = (),
        edits: Mapping[HookPoint, Edit] | None = None,
        logits: bool = False,
        token_mask: TokenMask | str | None = None,
        steered_rows: Tensor | None = None,
    ) -> Trace:
        """One forward pass over a batch.

        Args:
            vector: None runs the base.
            read: places to read (``places.READ_SITES``).
            edits: place -> edit; several places are edited in forward order, each seeing what the ones before did.
            logits: also give the logits of all positions.
            token_mask: where the vector acts; default: its own mask.
            steered_rows: [B] bool, the rows in which it acts; the others are the base's. Default: all.

        Raises:
            VectorError: if the vector does not fit the model.
            SteerkitError: for a place that the model does not have.
        """
        visits = make_visits(self.loaded, read, edits or {})
        steered = None
        if vector is not None:
            steered = batch.select(vector.token_mask if token_mask is None else token_mask)
            if steered_rows is not None:
                steered = steered & steered_rows[:, None]
        patterns = any(point.site == "attn_pattern" for point in read)
        with eager_attention(self.loaded.base) if patterns else nullcontext():
            return self.forward(batch, vector, steered, visits, logits)

    @abstractmethod
    def forward(
        self, batch: Batch, vector: SteeringVector | None, steered: Tensor | None, visits: list[Visit], logits: bool
    ) -> Trace:
        """The pass itself, without gradients.

        Args:
            steered: [B, T] bool, the positions at which ``vector`` acts.
            visits: not in forward order.
        """

    def interventions(self, vector: SteeringVector) -> dict[HookPoint, Intervention]:
        """The vector's interventions on the model's device; the latest few are kept.

        Raises:
            VectorError: if it does not fit the model.
        """
        key = vector.digest()
        if key not in self._built:
            vector.check_fits(self.loaded.base)
            while len(self._built) >= 8:
                self._built.pop(next(iter(self._built)))
            built = vector.to_interventions()
            self._built[key] = {p: item.to(self.loaded.base.device).requires_grad_(False) for p, item in built.items()}
        return self._built[key]

    def arguments(self, batch: Batch, logits: bool) -> dict[str, Any]:
        """Keyword arguments of the base's forward; without ``logits`` the unembedding runs on one position only."""
        given: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        if "position_ids" in self._signature:
            given["position_ids"] = batch.positions
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
