"""The policies that a run trains: usually one; a sweep trains many as rows of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint, parse_layers
from steerkit.models import LoadedModel, SteeredModel
from steerkit.models.stacked import stack
from steerkit.training.policy import build_policy, parameter_groups
from steerkit.vectors import SteeringVector


@dataclass(frozen=True)
class Sweep:
    """Axes of a sweep; each combination is a policy of its own, with its own prompts, samples, rewards, optimiser state
    and results, equal to a run of its own with the same seed. No axis: one policy.

    Args:
        layers: a vector at each of these layers alone: ``all``, or a list. Default: ``model.layers``, in one policy.
        seeds: of the rollouts, the order of problems and the initial parameters; default: the run's seed.
        lrs: learning rates in place of ``model.lr``.
        scales: multiples of the vector that ``model.vector`` starts from.
    """

    layers: str | list[int | str] | None = None
    seeds: list[int] | None = None
    lrs: list[float] | None = None
    scales: list[float] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "seeds", "lrs", "scales"):
            values = getattr(self, name)
            if isinstance(values, list) and (not values or len({str(v) for v in values}) < len(values)):
                raise SteerkitError(f"sweep.{name} needs one or more different values, got {values}.")

    @property
    def on(self) -> bool:
        """Whether there is any axis."""
        return any(getattr(self, name) is not None for name in ("layers", "seeds", "lrs", "scales"))


@dataclass(frozen=True)
class Member:
    """One policy of a run."""

    name: str
    """Its folder and its name in results; empty where the run has one policy."""
    policy: SteeredModel
    lr: float | dict[str, float]
    seed: int
    axes: Mapping[str, Any]
    """Its place on the sweep's axes."""


def build_members(
    loaded: LoadedModel, sweep: Sweep, settings: Mapping[str, Any], seed: int, lr: float | dict[str, float]
) -> tuple[str, list[Member]]:
    """(name of the intervention, its policies).

    Args:
        settings: of ``build_policy``: intervention, layers, site, token_mask, vector.
        seed: where the sweep names none.
        lr: where the sweep names none.

    Raises:
        SteerkitError: for settings that don't go together.
    """
    if sweep.layers is not None and (settings["layers"] != "all" or settings["vector"]):
        raise SteerkitError("sweep.layers says where the vectors stand: leave model.layers and model.vector out.")
    if sweep.scales is not None and not settings["vector"]:
        raise SteerkitError("sweep.scales multiplies a vector: say which by model.vector.")
    n_layers = len(SteeredModel(loaded.base, {}, loaded.layout).layout.block_list(loaded.base))
    layers = None if sweep.layers is None else [p.layer for p in parse_layers(sweep.layers, n_layers, "output")]
    axes_of: list[Sequence[Any]] = [axis or [None] for axis in (layers, sweep.seeds, sweep.lrs, sweep.scales)]
    members, kind = [], ""
    for layer, member_seed, rate, scale in product(*axes_of):
        axes = {"layer": layer, "seed": member_seed, "lr": rate, "scale": scale}
        axes = {axis: value for axis, value in axes.items() if value is not None}
        own = {**settings, "layers": settings["layers"] if layer is None else layer}
        start = seed if member_seed is None else member_seed
        # A function of the seed alone: not of what drew random numbers before, or of the other policies.
        with torch.random.fork_rng(devices=[d for d in (loaded.base.device,) if d.type == "cuda"]):
            torch.manual_seed(start)
            kind, policy = build_policy(loaded, **own)
        if scale is not None:
            policy = _scaled(policy, kind, scale)
        name = "_".join(f"{axis}{value:g}" for axis, value in axes.items())
        rates = _rates(lr if rate is None else rate, policy, n_layers, sweep.on)
        members.append(Member(name, policy, rates, start, axes))
    return kind, members


def together(members: Sequence[Member]) -> SteeredModel:
    """The model that samples and trains all of them."""
    return stack([member.policy for member in members])


def optimizer_groups(members: Sequence[Member]) -> Iterator[dict[str, Any]]:
    """The optimiser's parameter groups, member after member."""
    for member in members:
        yield from parameter_groups(member.policy, member.lr)


def _scaled(policy: SteeredModel, kind: str, scale: float) -> SteeredModel:
    vector = scale * SteeringVector.from_interventions(kind, policy.interventions, token_mask=policy.token_mask)
    return SteeredModel(policy.base, vector.to_interventions(), policy.layout, policy.token_mask)


def _rates(
    lr: float | dict[str, float], policy: SteeredModel, n_layers: int, sweeping: bool
) -> float | dict[str, float]:
    """In a sweep, rates by layer are for the layers that a policy has; the others' don't matter to it."""
    if not sweeping or not isinstance(lr, dict):
        return lr
    site = policy.points[0].site if policy.points else "output"
    own = set(policy.points)
    return {key: value for key, value in lr.items() if key == "default" or HookPoint.parse(key, n_layers, site) in own}


def trained(policy: SteeredModel) -> list[nn.Parameter]:
    """What the optimiser moves."""
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def member_dir(run_dir: Path, member: Member) -> Path:
    """Where a sweep's member has its vector, metrics and results; the run's own folder where there is one policy."""
    return run_dir / "sweep" / member.name if member.name else run_dir


def accuracy_key(temperature: float) -> str:
    """The key of a temperature's metric: module names may not hold a dot."""
    return f"T{temperature:g}".replace(".", "_")


class MemberAccuracy:
    """Right and judged samples of each member of a sweep in the validation that is running."""

    def __init__(self) -> None:
        self._tables: dict[float, list[Tensor]] = {}

    def update(self, temperature: float, table: Tensor) -> None:
        """Add [members, problems] of 1 (correct), 0 (wrong) and NaN (fault)."""
        self._tables.setdefault(temperature, []).append(table.cpu())

    def take(self, stage: str) -> list[dict[str, float]]:
        """Metrics of each member, under the names that Lightning logs; forgets them."""
        means = {t: torch.cat(parts, dim=1).nanmean(dim=1).tolist() for t, parts in self._tables.items()}
        self._tables = {}
        count = len(next(iter(means.values()), []))
        return [{f"{stage}/accuracy@T={t:g}": values[m] for t, values in means.items()} for m in range(count)]
