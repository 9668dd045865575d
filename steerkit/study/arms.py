"""The arms of a study: those of its config, an arm a layer where it says so."""

from __future__ import annotations

from dataclasses import dataclass

from steerkit.errors import SteerkitError
from steerkit.study.config import ArmConfig, StudyConfig

PLACES = {"first": 0, "middle": None, "penultimate": -2, "last": -1}
"""Words that may stand for a layer in an arm's name: ``static_last``."""


@dataclass(frozen=True)
class Arm:
    """One arm of the results: of the config, or one layer of an ``each_layer`` arm."""

    name: str
    key: str
    """In the config."""
    config: ArmConfig
    label: str
    layer: int | None = None
    aliases: tuple[str, ...] = ()


def expand(config: StudyConfig, n_layers: int) -> list[Arm]:
    """The arms of the results, in the config's order."""
    found: list[Arm] = []
    for key, arm in config.arms.items():
        if arm.each_layer is None:
            found.append(Arm(key, key, arm, arm.label or key))
            continue
        words = {word: n_layers // 2 if at is None else at % n_layers for word, at in PLACES.items() if at != -2
                 or n_layers > 1}  # fmt: skip
        for layer in layers_of(arm, n_layers):
            name = arm.name.format(layer=layer)
            label = arm.label.format(layer=layer) if arm.label else name
            aliases = tuple(arm.name.format(layer=word) for word, at in words.items() if at == layer)
            found.append(Arm(name, key, arm, label, layer, aliases))
    names = [arm.name for arm in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SteerkitError(f"Two arms are called {twice!r}.")
    return found


def layers_of(arm: ArmConfig, n_layers: int) -> list[int]:
    """The layers of an ``each_layer`` arm, counted from 0.

    Raises:
        SteerkitError: for one that the model has not.
    """
    asked = arm.each_layer
    if asked == "all":
        return list(range(n_layers))
    layers = [int(layer) for layer in asked] if isinstance(asked, list) else []
    bad = [layer for layer in layers if not -n_layers <= layer < n_layers]
    if bad or not layers:
        raise SteerkitError(f"each_layer must be 'all' or a list of layers of {n_layers}, got {asked}.")
    return [layer % n_layers for layer in layers]


def rate_of(lr: float, last: float) -> float | dict[str, float]:
    """``model.lr``: one number, or another one for the last layer."""
    return lr if last == 1.0 else {"default": lr, "-1": float(f"{lr * last:.6g}")}


def is_full(arm: ArmConfig) -> bool:
    """Whether it trains all weights."""
    kind = arm.model.get("intervention")
    return (kind.get("name") if isinstance(kind, dict) else kind) == "full"
