"""From a config to the work list: arms to fits and choices. The analyses are in ``plan_analyses``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.registry import did_you_mean, trusted
from steerkit.study.arms import Arm, expand, is_full, layers_of, rate_of
from steerkit.study.config import ArmConfig, StudyConfig
from steerkit.study.cost import Base, Costs, fit_config
from steerkit.study.items import Item
from steerkit.study.values import merged

SEVERAL = {"evaluate": ("vector", "suite", "temperature", "train_data"), "analyze": ("vector",)}
"""Verb -> options that take several words; elsewhere a list is one word of JSON."""


@dataclass
class Plan:
    """What will be done, and what will not."""

    items: list[Item] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """YAML files that the commands read: path relative to the study's folder -> content."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """``{"what", "reason"}``."""


class Planner:
    """Makes the plan of one study.

    Args:
        out: the study's folder, as the commands name it.
        base: facts of the model: how many layers, how large.
        costs: seconds expected of a fit.
    """

    def __init__(self, config: StudyConfig, out: Path, base: Base, costs: Costs) -> None:
        self.config, self.out, self.base, self.costs = config, out, base, costs
        self.arms = {arm.name: arm for arm in expand(config, base.n_layers)}
        self.aliases = {alias: arm.name for arm in self.arms.values() for alias in arm.aliases}
        self.plan = Plan()

    def find(self, name: str, place: str) -> Arm:
        """The arm of a name or alias.

        Raises:
            SteerkitError: there is none.
        """
        name = self.aliases.get(name, name)
        if name not in self.arms:
            names = [*self.arms, *self.aliases]
            raise SteerkitError(f"{place}: there is no arm {name!r}.{did_you_mean(name, names)} "
                                f"Arms: {', '.join(self.arms)}.")  # fmt: skip
        return self.arms[name]

    def screen(self) -> None:
        """The base's success rate on training problems."""
        if self.config.screen is None:
            return
        model, data = self.config.fit.get("model", {}), self.config.fit.get("data", {})
        flags: dict[str, Any] = {"model": self.config.base, "data": data.get("dataset"), "split": "train"}
        flags |= {name: model[name] for name in ("template", "max_tokens", "dtype") if name in model}
        flags |= self.config.screen
        self.add(Item("screen", "screen", self.argv("evaluate", [], flags, "screen"), "screen", [],
                      self.costs.screen(flags)))  # fmt: skip

    def fits(self) -> None:
        """Choices, the runs that they compare, and the final runs; an arm after those that it depends on."""
        waiting = {key: arm for key, arm in self.config.arms.items() if arm.row is None}
        placed: set[str] = set()
        while waiting:
            free = [key for key, arm in waiting.items() if self._depends_on(key, arm) <= placed]
            if not free:
                raise SteerkitError(f"arms: {', '.join(waiting)} wait for each other (lr_of, opening_of).")
            for key in free:
                self._fits_of(key, waiting.pop(key))
                placed.add(key)

    def _depends_on(self, key: str, arm: ArmConfig) -> set[str]:
        found = set()
        if arm.lr_of is not None:
            found.add(self.find(arm.lr_of, f"arms.{key}.lr_of").key)
        if arm.opening_of is not None:
            found.add(str(self.config.arms[arm.opening_of].of))
        return found

    def _fits_of(self, key: str, arm: ArmConfig) -> None:
        file = f"arms/{key}/fit.yaml"
        self.plan.files[file] = self.fit_file(arm)
        choosing = arm.grid is not None and self.config.choice.enabled
        if choosing:
            self._choice_of(key, arm)
        needs = [*self.screened(), *([f"{key}/choice"] if choosing else []), *self._needs_rate_of(key, arm)]
        opening = self.opening_of(arm)
        needs += self.opening_first(arm)
        seeds = arm.seeds or self.config.seeds
        report: dict[str, Any] = {"split": "test", "temperatures": self.config.temperatures}
        if arm.each_layer is not None:
            overrides: dict[str, Any] = {
                "sweep.layers": arm.each_layer,
                "sweep.seeds": seeds,
                "model.lr": self.rate(key, arm),
            }
            overrides |= {"report.arms": ["steered"], **under("report", report)}
            self.fit(f"{key}/final", file, overrides, needs, seeds[0], len(self.layers(arm)) * len(seeds), report)
            return
        for number, seed in enumerate(seeds):
            rows = self.rows_of(key, number == 0)
            overrides = {"model.lr": self.rate(key, arm), **opening, "report.arms": rows, **under("report", report)}
            self.fit(f"{key}/seed{seed}", file, overrides, needs, seed, 1, report, len(rows), is_full(arm))
            for name, other in self.config.arms.items():
                if other.row == "prefix" and other.of == key and number == 0:
                    about = {"opening": f"arms/{key}/seed{seed}/results.json"}
                    self.add(Item(f"{name}/opening", "choose", [], f"arms/{name}/choice.json", [f"{key}/seed{seed}"],
                                  about=about))  # fmt: skip

    def _choice_of(self, key: str, arm: ArmConfig) -> None:
        if arm.each_layer is None:
            needs = [*self.screened(), *self.opening_first(arm)]
            self.choose_rate(key, f"arms/{key}/fit.yaml", arm.grid or [], arm.last, needs, self.opening_of(arm),
                             is_full(arm))  # fmt: skip
            return
        overrides, report = self._comparison()
        self.fit(f"{key}/choose", f"arms/{key}/fit.yaml",
                 {"sweep.layers": arm.each_layer, "sweep.lrs": arm.grid, **overrides}, self.screened(),
                 self.config.choice.seed, len(self.layers(arm)) * len(arm.grid or ()), report)  # fmt: skip
        about = {"layers": {}, "results": f"arms/{key}/choose/results.json",
                 "temperature": self.config.choice.temperature}  # fmt: skip
        self.add(Item(f"{key}/choice", "choose", [], f"arms/{key}/choice.json", [f"{key}/choose"], about=about))

    def choose_rate(self, key: str, file: str, grid: Sequence[float], last: float, needs: list[str],
                    more: Mapping[str, Any], full: bool = False, root: str = "arms/") -> None:  # fmt: skip
        """Add the runs that compare the rates of a grid, and the choice.

        Args:
            key: ``KEY/choose/RATE`` and ``KEY/choice`` are their ids, and under ``root`` their folders.
            file: config of the runs, one of ``plan.files``.
            last: the last layer's rate as a multiple of the others'.
            more: flags of the runs.
            full: they train all weights.
        """
        overrides, report = self._comparison()
        places = {f"{lr:g}": f"{key}/choose/{lr:g}" for lr in grid}
        for lr, id_ in zip(grid, places.values(), strict=True):
            flags = {"model.lr": json.dumps(rate_of(lr, last)), **more, **overrides}
            self.fit(id_, file, flags, needs, self.config.choice.seed, 1, report, full=full, root=root)
        about = {"grid": {lr: f"{root}{id_}/results.json" for lr, id_ in places.items()}, "last": last,
                 "temperature": self.config.choice.temperature}  # fmt: skip
        self.add(Item(f"{key}/choice", "choose", [], f"{root}{key}/choice.json", list(places.values()), about=about))

    def _comparison(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Flags of the runs that compare rates, and their report."""
        choice = self.config.choice
        report = {"split": "validation", "temperatures": [choice.temperature], "k": choice.k}
        overrides = {"report.arms": ["steered"], **under("report", report)}
        if choice.max_steps is not None:
            overrides["trainer.max_steps"] = choice.max_steps
        return overrides, report

    def fit(self, id_: str, file: str, overrides: Mapping[str, Any], needs: list[str], seed: int, policies: int,
            report: Mapping[str, Any], rows: int = 1, full: bool = False, root: str = "arms/") -> None:  # fmt: skip
        """Add one ``steerkit fit`` with a config of ``plan.files``; its run folder is ``root`` and its id."""
        flags = {"seed_everything": seed, **overrides, "run_dir": self.out / f"{root}{id_}"}
        config = self.plan.files[file]
        if "trainer.max_steps" in overrides:
            config = merged(config, {"trainer": {"max_steps": overrides["trainer.max_steps"]}})
        expected = self.costs.fit(config, policies, report, rows, full)
        kind: Any = "sweep" if policies > 1 else "fit"
        argv = self.argv("fit", ["--config", str(self.out / file)], flags, None)
        self.add(Item(id_, kind, argv, f"{root}{id_}", needs, expected))

    def fit_file(self, arm: ArmConfig, base: str | None = None) -> dict[str, Any]:
        """The config of an arm's fits."""
        content = merged(fit_config(self.config, arm), {"model": {"base": base or self.config.base}})
        if self.config.screen is not None:
            content = merged(content, {"data": {"screen": str(self.out / "screen" / "samples.parquet")}})
        if self.config.data_root is not None:
            content["data_root"] = self.config.data_root
        return content

    def rate(self, key: str, arm: ArmConfig) -> str:
        """The learning rate of an arm's final runs, as a word; chosen on the way where the config says so."""
        if arm.lr_of is not None:
            owner = self.find(arm.lr_of, f"arms.{key}.lr_of")
            config = owner.config
            if config.grid is not None and self.config.choice.enabled:
                return f"<rate of {owner.name}>"
            return json.dumps(rate_of(_stated(owner.key, config), config.last))
        if arm.grid is not None and self.config.choice.enabled:
            return f"<rate of {key}>"
        return json.dumps(rate_of(_stated(key, arm), arm.last))

    def _needs_rate_of(self, key: str, arm: ArmConfig) -> list[str]:
        if arm.lr_of is None or not self.config.choice.enabled:
            return []
        owner = self.find(arm.lr_of, f"arms.{key}.lr_of")
        return [f"{owner.key}/choice"] if owner.config.grid is not None else []

    def opening_first(self, arm: ArmConfig) -> list[str]:
        """The item that an arm waits for which is trained behind an opening."""
        return [f"{arm.opening_of}/opening"] if arm.opening_of else []

    def opening_of(self, arm: ArmConfig) -> dict[str, str]:
        """Its template as a flag, with the opening that is found on the way."""
        if arm.opening_of is None:
            return {}
        template = dict(fit_config(self.config, arm).get("model", {}).get("template") or {})
        template["assistant_prefix"] = str(template.get("assistant_prefix", "")) + f"<opening of {arm.opening_of}>"
        return {"model.template": json.dumps(template, ensure_ascii=False)}

    def rows_of(self, key: str, first: bool) -> list[str]:
        """Rows that an arm's fit measures: its own, and those that other arms take from it."""
        asked = {arm.row for arm in self.config.arms.values() if arm.of == key}
        found = ["base"] if "base" in asked and first else []
        found += ["steered", *(["random"] if "random" in asked else [])]
        return found + (["prefix"] if "prefix" in asked and first else [])

    def layers(self, arm: ArmConfig) -> list[int]:
        return layers_of(arm, self.base.n_layers)

    def screened(self) -> list[str]:
        return ["screen"] if self.config.screen is not None else []

    def argv(self, verb: str, words: list[str], flags: Mapping[str, Any], out: str | None) -> list[str]:
        """Words of a command; values that are no text as JSON."""
        result = [verb, *words]
        for name, value in flags.items():
            if value is None:
                continue
            if isinstance(value, list) and name in SEVERAL.get(verb, ()):
                result += [f"--{name}", *map(str, value)]
            else:
                result += [f"--{name}", str(value) if isinstance(value, str | Path) else json.dumps(value)]
        if self.config.data_root is not None and verb != "fit":
            result += ["--data_root", self.config.data_root]
        return [*result, *(["--out", str(self.out / out)] if out else []), *["--allow_code"] * trusted()]

    def add(self, item: Item) -> None:
        if any(item.id == other.id for other in self.plan.items):
            raise SteerkitError(f"Two items of the study are called {item.id!r}: rename an arm or an analysis.")
        self.plan.items.append(item)


def _stated(key: str, arm: ArmConfig) -> float:
    if arm.lr is None:
        raise SteerkitError(f"arms.{key} has no 'lr', and nothing is chosen: give one.")
    return arm.lr


def under(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as flags of their section."""
    return {f"{section}.{name}": value for name, value in values.items()}
