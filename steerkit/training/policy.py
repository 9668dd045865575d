"""The policy that is trained: a loaded base with interventions, a vector to start from, or a baseline's adapter."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from steerkit import registry
from steerkit.baselines import WeightAdapter
from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint, parse_layers
from steerkit.interventions import Intervention
from steerkit.models import LoadedModel, SteeredModel
from steerkit.models.sites import inner_width
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector

log = logging.getLogger(__name__)


def build_policy(
    loaded: LoadedModel,
    intervention: str | Mapping[str, Any] = "static",
    layers: str | int | list[int | str] = "all",
    site: str | None = None,
    token_mask: str = "all",
    vector: str | None = None,
) -> tuple[str, SteeredModel]:
    """(name of the intervention, policy).

    Args:
        layers: ``all``, a layer, or a list; a baseline that changes weights has its own settings instead.
        site: of layers given by number; default: the intervention's own.
        vector: folder of a vector to start from; it brings its intervention, layers and token mask. One of another
            base (transferred, or the wrong one) is named in the log.

    Raises:
        SteerkitError: for settings that don't go together.
    """
    if vector:
        start = SteeringVector.from_pretrained(vector)
        if token_mask != "all":
            start = start.with_mask(token_mask)
        policy = start.steer(loaded.base, loaded.layout)
        try:
            start.check_fits(loaded.base, same_base=True)
        except VectorError as error:
            log.warning("model.vector is of another base, and is used all the same: %s", error)
        return start.intervention, policy
    settings: dict[str, Any] = dict(intervention) if isinstance(intervention, Mapping) else {"name": intervention}
    name = str(settings.pop("name", "static"))
    plugin = registry.resolve("interventions", name)
    label = f"{name!r} (steerkit.interventions)"
    if inspect.isclass(plugin) and issubclass(plugin, WeightAdapter):
        if layers != "all" or site is not None or token_mask != "all":
            raise SteerkitError(f"{label} changes weights: layers, site and token_mask don't apply to it.")
        adapter = registry.instantiate(plugin, {**settings, "base": loaded.base}, label)
        return name, SteeredModel(loaded.base, {}, loaded.layout, adapter=adapter)
    if not (inspect.isclass(plugin) and issubclass(plugin, Intervention)):
        raise SteerkitError(f"{label} is neither an Intervention nor a WeightAdapter.")
    bare = SteeredModel(loaded.base, {}, loaded.layout)
    points = parse_layers(layers, bare.n_layers, site or plugin.sites[0])
    for need in plugin.needs:
        if need != "d_inner":
            raise SteerkitError(f"{label} needs {need!r}, which steerkit doesn't know: it knows d_inner.")
        settings.setdefault(need, inner_width(loaded.base, loaded.layout, points[0].layer))
    _check_settings(plugin, settings, label)
    built = plugin.build(points, bare.d_model, **settings)
    return name, SteeredModel(loaded.base, built, loaded.layout, TokenMask(token_mask))


def _check_settings(plugin: type[Intervention], settings: Mapping[str, Any], label: str) -> None:
    """``build`` takes any keyword: a misspelt setting must not end in a traceback."""
    known = [name for name in inspect.signature(plugin.__init__).parameters if name not in ("self", "d_model", "place")]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(plugin.__init__).parameters.values())
    for key in settings:
        if key not in known and not takes_any:
            accepted = f"Settings: {', '.join(known)}." if known else "It takes no settings."
            raise SteerkitError(f"{label} has no setting {key!r}.{registry.did_you_mean(key, known)} {accepted}")


def trained_parameters(policy: SteeredModel) -> Iterator[tuple[HookPoint | None, list[nn.Parameter]]]:
    """What the optimiser gets, each parameter once: by hook point, or all of an adapter's under None."""
    seen: set[int] = set()
    if policy.adapter is not None:
        yield None, list(policy.adapter.parameters())
    for point, intervention in policy.interventions.items():
        fresh = [p for p in intervention.parameters() if id(p) not in seen]  # points may share parameters
        seen.update(map(id, fresh))
        if fresh:
            yield point, fresh


def learning_rates(lr: float | dict[str, float], points: Sequence[HookPoint], n_layers: int) -> dict[HookPoint, float]:
    """The learning rate of each hook point; keys of a mapping are ``default`` or any spelling of a hook point.

    A key that names a layer alone (``-1``, ``layers.5``) stands for the hook point there.

    Raises:
        SteerkitError: for a negative rate, a hook point that is not trained, or one without a rate.
    """
    given = dict(lr) if isinstance(lr, dict) else {"default": lr}
    default = given.pop("default", None)
    by_point = {HookPoint.parse(key, n_layers, _site(points)): value for key, value in given.items()}
    stray = [str(point) for point in by_point if point not in points]
    if stray:
        raise SteerkitError(f"lr names {stray[0]}, which is not trained: trained are {', '.join(map(str, points))}.")
    rates = {point: by_point.get(point, default) for point in points}
    for point, rate in rates.items():
        if rate is None or not rate >= 0:
            raise SteerkitError(f"lr of {point} must be 0 or more, got {rate}: add 'default' or this hook point to lr.")
    return {point: float(rate) for point, rate in rates.items() if rate is not None}


def parameter_groups(policy: SteeredModel, lr: float | dict[str, float]) -> list[dict[str, Any]]:
    """The optimiser's parameter groups; ``full_lr`` is the rate after the warm-up.

    Raises:
        SteerkitError: as ``learning_rates``; also if a baseline, which has no hook points, is given rates by hook
            point.
    """
    if policy.adapter is not None:
        if isinstance(lr, dict):
            raise SteerkitError("This baseline has no hook points: give lr as one number.")
        if not lr >= 0:
            raise SteerkitError(f"lr must be 0 or more, got {lr}.")
        return [{"params": p, "lr": lr, "full_lr": lr} for _, p in trained_parameters(policy)]
    rates = learning_rates(lr, policy.points, policy.n_layers)
    return [
        {"params": parameters, "lr": rates[point], "full_lr": rates[point]}
        for point, parameters in trained_parameters(policy)
        if point is not None
    ]


def _site(points: Sequence[HookPoint]) -> str:
    sites = {point.site for point in points}
    return sites.pop() if len(sites) == 1 else "output"
