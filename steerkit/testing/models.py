"""What steerkit asks of a base model: it loads, it pads, and steering it gives the same numbers however it is run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from steerkit import registry
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import LoadedModel, SteeredModel, load_model
from steerkit.testing.checks import Check
from steerkit.testing.steering import TOLERANCE, check_model_contract, randomize


def model_checks(target: str, **settings: Any) -> list[Check]:
    """The promises, for the shell.

    Args:
        target: a plugin's name (a folder and a hub id will do as well).
        settings: of ``load_model``.
    """
    contract = _Contract(target, settings)
    checks = [
        Check("it loads, and its blocks are found", contract.loads),
        Check("its tokenizer pads on the left and has an end", contract.tokenizer),
        Check("steered, it is the same padded, cached, masked and in a batch", contract.steered),
    ]
    if contract.function is not None:
        checks.insert(0, Check("its function returns the folder of a checkpoint", contract.folder))
    return checks


class _Contract:
    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self.settings = name, settings
        plugins = [entry.name for entry in registry.entries("models")]
        self.function = registry.resolve("models", name) if name in plugins else None

    @cached_property
    def loaded(self) -> LoadedModel:
        loaded: LoadedModel = registry.instantiate(load_model, {"spec": self.name, **self.settings}, self.name)
        return loaded

    def folder(self) -> None:
        assert self.function is not None
        folder = self.function()
        assert isinstance(folder, str) and Path(folder).is_dir(), f"expected an existing folder, got {folder!r:.200}"

    def loads(self) -> None:
        assert self.loaded.layout

    def tokenizer(self) -> None:
        tokenizer = self.loaded.tokenizer
        assert tokenizer.padding_side == "left", f"pads on the {tokenizer.padding_side}"
        assert tokenizer.pad_token_id is not None and tokenizer.eos_token_id is not None, "no pad or no end token"
        assert tokenizer.encode("12 + 3"), "no tokens for '12 + 3'"

    def steered(self) -> None:
        bare = SteeredModel(self.loaded.base, {}, self.loaded.layout)
        points = [HookPoint(layer) for layer in sorted({0, bare.n_layers // 2, bare.n_layers - 1})]
        items = Static.build(points, bare.d_model)
        for seed, item in enumerate(items.values()):
            randomize(item, seed)
        # Real models are deeper and their logits larger than those of tiny ones: rounding grows with both.
        check_model_contract(SteeredModel(self.loaded.base, items, self.loaded.layout), TOLERANCE * 30)
