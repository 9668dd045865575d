"""What a contract is made of: named checks that run one by one, so that a shell can print a line for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from steerkit import registry
from steerkit.errors import PluginError

CONTRACTS = {
    "models": "steerkit.testing.models:model_checks",
    "interventions": "steerkit.testing.interventions:intervention_checks",
    "datasets": "steerkit.testing.datasets:dataset_checks",
    "rewards": "steerkit.testing.rewards:reward_checks",
    "verifiers": "steerkit.testing.verifiers:verifier_checks",
    "objectives": "steerkit.testing.objectives:objective_checks",
    "samplers": "steerkit.testing.samplers:sampler_checks",
    "analyzers": "steerkit.testing.analyzers:analyzer_checks",
    "exporters": "steerkit.testing.exporters:exporter_checks",
}
"""Plugin kind -> the function ``(target, **settings) -> list[Check]``; a kind that is not here has no contract yet."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise of a contract."""

    name: str
    """The promise, in a few words."""
    run: Callable[[], None]
    """Raises where it is broken, with what was expected and what came."""


def contract(kind: str) -> Callable[..., list[Check]]:
    """The function that lists the checks of a plugin kind.

    Raises:
        PluginError: if there is no such kind, or it has no contract.
    """
    registry.group_of(kind)
    if kind not in CONTRACTS:
        raise PluginError(f"There is no contract for {kind} yet; kinds with one: {', '.join(CONTRACTS)}.")
    module, _, name = CONTRACTS[kind].partition(":")
    function: Callable[..., list[Check]] = getattr(import_module(module), name)
    return function


def failure(check: Check) -> str | None:
    """Runs one check; None if it passes, else what is wrong, in one line."""
    try:
        check.run()
    except Exception as error:  # a plugin's code may fail in any way
        text = " ".join(str(error).split())
        return text if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {text}".strip(": ")
    return None


def assert_all(label: str, checks: Iterable[Check]) -> None:
    """Runs the checks in order.

    Raises:
        AssertionError: at the first that fails, naming it.
    """
    for check in checks:
        try:
            check.run()
        except Exception as error:
            raise AssertionError(f"{label}: {check.name}: {error}") from error


def made(kind: str, target: Any, settings: Mapping[str, Any]) -> Any:
    """The plugin's object: ``target`` is a name, a class, a function that makes one, or the object itself.

    A reward may be a plain function: that is the object.

    Raises:
        PluginError: for an unknown name or setting, or settings for an object that is made already.
    """
    target = registry.resolve(kind, target) if isinstance(target, str) else target
    if inspect.isclass(target) or (inspect.isroutine(target) and kind != "rewards"):
        return registry.instantiate(target, settings, label(target))
    if settings:
        raise PluginError(f"{label(target)} is made already and takes no settings, got {', '.join(settings)}.")
    return target


def label(target: Any) -> str:
    """What messages call a plugin: its name, or that of its class."""
    return target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
