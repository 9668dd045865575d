"""SteeringVector: what training leaves behind, as a value that is saved, loaded, compared and put on a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.errors import VectorError
from steerkit.hookpoints import HookPoint
from steerkit.token_masks import TokenMask
from steerkit.vectors import algebra, files, hub, limits

if TYPE_CHECKING:  # the model room lies above this one
    from transformers import PreTrainedModel

    from steerkit.interventions.base import Intervention
    from steerkit.models.steered import SteeredModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VectorMetadata:
    """Where a vector comes from."""

    model: str = ""
    """The base model's hub id, plugin name or folder."""
    fingerprint: str = ""
    """``steerkit.models.fingerprint`` of the base; empty if unknown."""
    d_model: int = 0
    n_layers: int = 0
    receipts: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, and what it does: command, data set, steps, seed, metrics... (JSON values)."""


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector:
    """The tensors of one intervention at each of its hook points (a value: methods return new ones)."""

    intervention: str
    """The plugin name in group ``steerkit.interventions``, or ``package.module:Class``."""
    tensors: Mapping[HookPoint, Mapping[str, Tensor]]
    """Hook point -> parameter name -> fp32 tensor on the CPU; for ``static``: {"vector": [D]}."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The intervention's settings, by which it is built again."""
    metadata: VectorMetadata = field(default_factory=VectorMetadata)
    token_mask: str = "all"
    """At which positions it acts (``steerkit.token_masks.TokenMask``)."""

    def __post_init__(self) -> None:
        TokenMask(self.token_mask)
        if not self.tensors:
            raise VectorError("A steering vector needs at least one hook point, got none.")
        owned = {
            point: {name: t.detach().to("cpu", torch.float32, copy=True) for name, t in sorted(tensors.items())}
            for point, tensors in sorted(self.tensors.items())
        }
        for point, tensors in owned.items():
            for name, tensor in tensors.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise VectorError(f"{point} {name}: NaN or infinite numbers; use an earlier checkpoint.")
        object.__setattr__(self, "tensors", owned)

    def __repr__(self) -> str:
        made_for = self.metadata.model or "an unnamed model"
        points = ", ".join(map(str, list(self.tensors)[:4])) + (", ..." if len(self.tensors) > 4 else "")
        facts = f"mask {self.token_mask}; norm {self.norm():.4g}; {made_for}"
        return f"SteeringVector({self.intervention} at {points}; {facts})"

    # -- from and to models

    @classmethod
    def from_interventions(
        cls,
        intervention: str,
        interventions: Mapping[HookPoint, Intervention],
        metadata: VectorMetadata | None = None,
        token_mask: TokenMask | str = "all",
    ) -> SteeringVector:
        """Copy the parameters of trained interventions.

        Args:
            intervention: the name under which they are built again.
            interventions: ``SteeredModel.interventions``.
            metadata: where they come from; ``d_model`` is filled in.
            token_mask: ``SteeredModel.token_mask``.
        """
        if not interventions:
            raise VectorError("A steering vector needs at least one hook point, got none.")
        first = next(iter(interventions.values()))
        metadata = replace(metadata or VectorMetadata(), d_model=first.d_model)
        tensors = {point: item.state_dict() for point, item in interventions.items()}
        return cls(intervention, tensors, dict(first.settings), metadata, str(token_mask))

    def to_interventions(self) -> dict[HookPoint, Intervention]:
        """Interventions with these parameters, trainable.

        Raises:
            PluginError: if the intervention's plugin is not installed.
            VectorError: if the tensors are not the plugin's parameters.
        """
        built = limits.build(self)
        for point, intervention in built.items():
            try:
                intervention.load_state_dict(dict(self.tensors[point]))
            except RuntimeError as error:
                raise VectorError(
                    f"{point} does not fit {self.intervention!r}: {' '.join(str(error).split())}"
                ) from None
        return built

    def steer(self, base: PreTrainedModel, layout: Any = None) -> SteeredModel:
        """``base`` frozen and steered by this vector.

        Raises:
            VectorError: if it does not fit (``check_fits``).
        """
        from steerkit.models.steered import SteeredModel

        self.check_fits(base)
        return SteeredModel(base, self.to_interventions(), layout, self.token_mask)

    @contextmanager
    def applied(self, base: PreTrainedModel, layout: Any = None) -> Iterator[SteeredModel]:
        """Steer every call of ``base`` inside the block (``with vector.applied(base): base.generate(...)``)."""
        with self.steer(base, layout).applied() as model:
            yield model

    def check_fits(self, base: PreTrainedModel, same_base: bool = False) -> None:
        """Refuse a model of another width, or too few layers.

        Args:
            same_base: also refuse a model of the right shape but with other weights (transfer wants those).

        Raises:
            VectorError: naming what differs.
        """
        config = base.config.get_text_config()
        if config.hidden_size != self.metadata.d_model:
            raise VectorError(
                f"The vector is {self.metadata.d_model} wide (trained on {self.metadata.model or 'an unnamed model'}), "
                f"the model {config.hidden_size}: use one trained on a model of this width."
            )
        top = max(self.tensors)
        if top.layer >= config.num_hidden_layers:
            raise VectorError(f"{top} is outside the model: it has layers 0 to {config.num_hidden_layers - 1}.")
        if same_base and self.metadata.fingerprint:
            from steerkit.models.load import fingerprint

            if (got := fingerprint(base)) != self.metadata.fingerprint:
                raise VectorError(
                    f"The vector was trained on {self.metadata.model or 'another model'} (fingerprint "
                    f"{self.metadata.fingerprint}), this model's fingerprint is {got}: load that model."
                )

    # -- algebra (vectors/algebra.py)

    def __add__(self, other: SteeringVector) -> SteeringVector:
        return algebra.add(self, other) if isinstance(other, SteeringVector) else NotImplemented

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return algebra.add(self, -other) if isinstance(other, SteeringVector) else NotImplemented

    def __mul__(self, factor: float) -> SteeringVector:
        return algebra.scaled(self, factor) if isinstance(factor, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        return algebra.scaled(self, -1.0)

    def as_static(self) -> SteeringVector:
        """The same change as ``static`` vectors.

        Raises:
            VectorError: if it is not the same at every position.
        """
        return algebra.as_static(self)

    def at(self, *layers: int | str) -> SteeringVector:
        """The part of it that stands at these layers or hook points.

        Raises:
            VectorError: if it has none there.
        """
        return algebra.at(self, layers)

    def norms(self) -> dict[str, float]:
        """Hook point -> L2 norm of its direction, in the units of the residual stream.

        Interventions that are the same at every position: of what is added. Others: of the parameters in which the
        change is linear (b of ``tokenwise``, the direction of ``gated``).
        """
        return algebra.norms(self)

    def norm(self) -> float:
        """L2 norm over all hook points together."""
        return sum(value**2 for value in self.norms().values()) ** 0.5

    def cos(self, other: SteeringVector) -> dict[str, float]:
        """Hook point -> cosine between the two directions, at the hook points that both have.

        Raises:
            VectorError: if they share none, or their directions differ in size.
        """
        return algebra.cosines(self, other)

    def digest(self) -> str:
        """16 hex digits of the numbers, settings, hook points and token mask: equal for vectors that do the same."""
        return algebra.digest(self)

    def random_like(self, seed: int) -> SteeringVector:
        """The control: random directions, each tensor with the norm of the one that it replaces."""
        return algebra.random_like(self, seed)

    def with_mask(self, token_mask: TokenMask | str) -> SteeringVector:
        """The same vector at other positions."""
        metadata = algebra.changed(self, f"token mask {token_mask}")
        return replace(self, token_mask=str(token_mask), metadata=metadata)

    # -- files (vectors/files.py, vectors/hub.py)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder. A reader, or a crash, at any moment finds the old vector or the new one, never a mixture.

        Raises:
            VectorError: if the folder can't be written.
        """
        return files.save(self, folder)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, revision: str | None = None, allow_code: bool = False
    ) -> SteeringVector:
        """Read a folder, or a hub repository ``org/name`` (at a branch, tag or commit).

        Args:
            allow_code: let the file name the code of its intervention (``package.module:Class``); by default it may
                only name an installed plugin.

        Raises:
            VectorError: if a file is missing, damaged, of another format version, has numbers that are not finite, or
                names code.
        """
        return files.load(hub.fetch(str(source), revision), str(source), allow_code)

    def push_to_hub(self, repo_id: str, private: bool = False, message: str = "Steering vector") -> str:
        """Upload tensors, config and card to a hub repository, made if it is missing; returns its address.

        Raises:
            VectorError: if the hub refuses, or can't be reached.
        """
        return hub.push(self, repo_id, private, message)
