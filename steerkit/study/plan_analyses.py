"""The analyses of a study as items: one an arm, or one for several arms together, or one a recipient."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerkit import registry
from steerkit.errors import PluginError, SteerkitError
from steerkit.registry import did_you_mean
from steerkit.study.arms import Arm, is_full, rate_of
from steerkit.study.config import AnalysisConfig, RecipientConfig
from steerkit.study.items import Item
from steerkit.study.plan import Planner, under
from steerkit.study.values import merged

ADAPTERS = ("lora", "full")
"""Interventions that leave weights and no vector."""
_VECTOR = re.compile(r"<vector of ([\w.-]+)>")


def add_analyses(planner: Planner) -> None:
    """Put all analyses behind the fits; what is not installed is named in ``left_out``."""
    installed = [entry.name for entry in registry.entries("analyzers")]
    for name, config in planner.config.analyses.items():
        analyzer = config.analyzer or name
        if ":" not in analyzer and analyzer not in installed:
            if not config.if_installed:
                hint = did_you_mean(analyzer, installed)
                raise SteerkitError(f"analyses.{name}: no analyzer named {analyzer!r}.{hint} "
                                    f"Installed: {', '.join(installed)}.")  # fmt: skip
            planner.plan.left_out.append({"what": name, "reason": f"analyzer {analyzer!r} is not installed"})
            continue
        arms = [arm for given in config.arms for arm in _arms(planner, given, f"analyses.{name}.arms")]
        for group in [arms] if config.together else [[arm] for arm in arms]:
            label = f"{name}-{'-'.join(config.arms) if config.together else group[0].name}"
            seeds = config.seeds or (group[0].config.seeds or planner.config.seeds)[:1]
            apart = any("<vector of " in str(value) for value in config.options.values())
            for part in [[seed] for seed in seeds] if apart else [seeds]:
                own = f"{label}-seed{part[0]}" if len(seeds) > 1 and apart else label
                if not config.recipients:
                    _add(planner, own, analyzer, config, group, part)
                for recipient in config.recipients:
                    _transfer(planner, f"{own}-{recipient}", analyzer, config, group, part, recipient)


def run_of(planner: Planner, arm: Arm, seed: int) -> tuple[str, str]:
    """(id of the fit, folder) of one run of an arm; the folder is relative to the study's."""
    if arm.layer is None:
        return f"{arm.key}/seed{seed}", f"arms/{arm.key}/seed{seed}"
    return f"{arm.key}/final", f"arms/{arm.key}/final/sweep/layer{arm.layer}_seed{seed}"


def _arms(planner: Planner, given: str, place: str) -> list[Arm]:
    """An arm, or all layers of an ``each_layer`` arm."""
    layers = [arm for arm in planner.arms.values() if arm.key == given and arm.layer is not None]
    found = layers or [planner.find(given, place)]
    for arm in found:
        kind = arm.config.model.get("intervention", planner.config.fit.get("model", {}).get("intervention"))
        kind = kind.get("name") if isinstance(kind, dict) else kind
        if arm.config.row is not None or kind in ADAPTERS:
            raise SteerkitError(f"{place}: {arm.name} has no vector to analyse.")
    return found


def _add(planner: Planner, label: str, analyzer: str, config: AnalysisConfig, arms: Sequence[Arm],
         seeds: Sequence[int], more: dict[str, Any] | None = None, needs: Sequence[str] = ()) -> None:  # fmt: skip
    words, wanted, vectors = [], list(needs), {}
    for arm in arms:
        for seed in seeds:
            fit, folder = run_of(planner, arm, seed)
            name = f"{arm.name}_seed{seed}" if len(seeds) > 1 else arm.name
            vectors[name] = {"arm": arm.name, "seed": seed}
            words.append(f"{name}={planner.out / folder / 'vector'}")
            wanted.append(fit)
    flags = {"model": planner.config.base, "vector": words}
    flags |= {**planner.config.analyze, **config.options, **(more or {})}
    for name, value in flags.items():
        found = _VECTOR.fullmatch(value) if isinstance(value, str) else None
        if found is not None:
            arm = planner.find(found[1], f"analyses.{label}.options.{name}")
            fit, folder = run_of(planner, arm, seeds[0])
            flags[name] = str(planner.out / folder / "vector")
            wanted.append(fit)
    argv = planner.argv("analyze", [analyzer], flags, f"analyses/{label}")
    about = {"analyzer": analyzer, "arms": [arm.name for arm in arms], "seed": seeds[0], "vectors": vectors,
             "recipient": (more or {}).get("recipient")}  # fmt: skip
    seconds = config.seconds * (len(words) if not config.together else 1)
    planner.add(Item(label, "analyze", argv, f"analyses/{label}", list(dict.fromkeys(wanted)), seconds, about))


def _transfer(planner: Planner, label: str, analyzer: str, config: AnalysisConfig, arms: Sequence[Arm],
              seeds: Sequence[int], name: str) -> None:  # fmt: skip
    recipient = planner.config.recipients[name]
    if not _there(recipient.base):
        planner.plan.left_out.append({"what": label, "reason": f"{recipient.base} is no installed model and no folder"})
        return
    own = f"recipients/{name}/own"
    if all(item.id != own for item in planner.plan.items):
        _own_vector(planner, name, recipient)
    more = {"recipient": recipient.base, "own": str(planner.out / own / "vector")}
    _add(planner, label, analyzer, config, arms, seeds, more, [own])


def _own_vector(planner: Planner, name: str, recipient: RecipientConfig) -> None:
    """Train the recipient's own, as the arm that it is like was trained, but for what the recipient has of its own."""
    place, key = f"recipients.{name}.like", f"recipients/{name}"
    like = planner.find(recipient.like, place)
    if like.layer is not None or is_full(like.config):
        raise SteerkitError(f"{place}: {recipient.like} is no arm of one vector a seed.")
    file = f"{key}/fit.yaml"
    planner.plan.files[file] = planner.fit_file(like.config, recipient.base)
    if recipient.max_steps is not None:
        steps = {"trainer": {"max_steps": recipient.max_steps}}
        planner.plan.files[file] = merged(planner.plan.files[file], steps)
    owner = like if like.config.lr_of is None else planner.find(like.config.lr_of, place)
    opening = planner.opening_of(like.config)
    needs = [*planner.screened(), *planner.opening_first(like.config)]
    if recipient.grid and planner.config.choice.enabled:
        planner.choose_rate(key, file, recipient.grid, owner.config.last, needs, opening, root="")
        rate, needs = f"<rate of {key}>", [*needs, f"{key}/choice"]
    elif recipient.lr is not None:
        rate = json.dumps(rate_of(recipient.lr, owner.config.last))
    else:
        rate = planner.rate(like.key, like.config)
        needs += [f"{owner.key}/choice"] if rate.startswith("<") else []
    report = {"split": "test", "temperatures": planner.config.temperatures}
    flags = {"model.lr": rate, **opening, "report.arms": ["base", "steered"], **under("report", report)}
    seed = (like.config.seeds or planner.config.seeds)[0]
    planner.fit(f"{key}/own", file, flags, needs, seed, 1, report, 2, root="")


def _there(base: str) -> bool:
    """Whether a model can be had without a download: an installed plugin whose files are there, or a folder."""
    if base in [entry.name for entry in registry.entries("models")]:
        try:
            return Path(str(registry.resolve("models", base)())).is_dir()
        except PluginError:
            return False
    return Path(base).expanduser().is_dir()
