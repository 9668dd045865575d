"""All that an intervention must keep: its own contract, that of a model steered by it, and its vector file."""

from __future__ import annotations

import inspect
import tempfile
from typing import Any

import torch

from steerkit import registry
from steerkit.errors import PluginError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.models import SteeredModel
from steerkit.models.sites import inner_width
from steerkit.testing.checks import Check, label
from steerkit.testing.steering import check_intervention, check_model_contract, randomize, tiny_model
from steerkit.vectors import SteeringVector


def intervention_checks(target: Any, *, family: str = "llama", **settings: Any) -> list[Check]:
    """The promises, for the shell; in a test, call ``check_intervention`` and ``check_model_contract``.

    Args:
        target: a class, or a plugin's name.
        family: of the tiny model that is steered.
        settings: of the class.

    Raises:
        PluginError: if it is no Intervention, or has no such setting.
    """
    cls = registry.resolve("interventions", target) if isinstance(target, str) else target
    if not (inspect.isclass(cls) and issubclass(cls, Intervention)):
        raise PluginError(f"{label(target)} is no Intervention: baselines that change weights have no contract.")
    contract = _Contract(cls, target if isinstance(target, str) else "", family, settings)
    checks = [
        Check("identity at the start, fp32, local to a position, trainable, saved whole", contract.alone),
        Check(f"steers a tiny {family} the same padded, cached, masked and in a batch", contract.in_model),
    ]
    if contract.name:
        checks.append(Check("a vector file gives it back", contract.file))
    return checks


class _Contract:
    def __init__(self, cls: type[Intervention], name: str, family: str, settings: dict[str, Any]) -> None:
        importable = "<locals>" not in cls.__qualname__ and cls.__module__ != "__main__"
        self.cls, self.settings = cls, settings
        self.name = name or (f"{cls.__module__}:{cls.__qualname__}" if importable else "")
        self.base = tiny_model(family)
        bare = SteeredModel(self.base, {})
        points = [HookPoint(layer, cls.sites[0]) for layer in (0, 2)]
        needed = {"d_inner": inner_width(self.base, bare.layout, 0)} if "d_inner" in cls.needs else {}
        signature = inspect.signature(cls.__init__).parameters
        known = [key for key in signature if key not in ("self", "d_model", "place")]
        for key in settings:  # build takes any keyword: a misspelt setting would end in a traceback
            if key not in known:
                raise PluginError(f"{cls.__name__} has no setting {key!r}.{registry.did_you_mean(key, known)}")
        self.items = cls.build(points, bare.d_model, **{**needed, **settings})
        distinct = {id(item): item for item in self.items.values()}
        for seed, item in enumerate(distinct.values()):
            randomize(item, seed)

    def alone(self) -> None:
        check_intervention(self.cls, **self.settings)

    def in_model(self) -> None:
        check_model_contract(SteeredModel(self.base, self.items))

    @torch.no_grad()
    def file(self) -> None:
        ids = torch.arange(3, 12).unsqueeze(0)
        expected = SteeredModel(self.base, self.items)(ids).logits
        with tempfile.TemporaryDirectory() as folder:
            SteeringVector.from_interventions(self.name, self.items).save_pretrained(folder)
            again = SteeringVector.from_pretrained(folder, allow_code=True).steer(self.base)(ids).logits
        gap = float((again - expected).abs().max())
        assert gap <= 1e-6, f"the logits of the vector that was read differ by {gap:g}"
