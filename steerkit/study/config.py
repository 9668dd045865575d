"""What a study is: arms, seeds, grids of learning rates, analyses, rules; read from one YAML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from steerkit.errors import SteerkitError
from steerkit.registry import did_you_mean
from steerkit.study.values import digest

Role = Literal["base", "steering", "baseline", "control"]
ROWS = ("base", "random", "prefix")
OWN = {
    "fit": {"run_dir", "seed_everything", "ckpt_path", "sweep", "data_root", "config"},
    "fit.report": {"arms", "temperatures", "split"},
    "fit.model": {"base", "lr"},
}
"""Settings of ``steerkit fit`` that the study sets by itself."""


@dataclass(frozen=True)
class ArmConfig:
    """One row of the comparison, or one row a layer.

    Args:
        label: what tables call it; ``{layer}`` stands for the layer of ``each_layer``.
        role: base, steering, baseline or control.
        model: settings of ``fit.model`` that are other for this arm.
        grid: learning rates; the best on validation (seed ``choice.seed``) is taken.
        lr: the rate where nothing is chosen (``choice.enabled: false``, or no grid).
        lr_of: the arm whose rate is taken, chosen or not.
        last: the last layer's rate as a multiple of the others'.
        each_layer: a vector at each of these layers alone (``all``, or a list): a sweep, an arm a layer.
        name: of the arms of ``each_layer``.
        row: no training: a row that the fit of arm ``of`` measures beside its own: base, random or prefix.
        of: see ``row``.
        opening_of: the ``prefix`` arm whose opening is put before every completion, in training too.
        seeds: training seeds, if not the study's.
    """

    label: str = ""
    role: Role = "steering"
    model: dict[str, Any] = field(default_factory=dict)
    grid: list[float] | None = None
    lr: float | None = None
    lr_of: str | None = None
    last: float = 1.0
    each_layer: str | list[int] | None = None
    name: str = "static_{layer}"
    row: Literal["base", "random", "prefix"] | None = None
    of: str | None = None
    opening_of: str | None = None
    seeds: list[int] | None = None


@dataclass(frozen=True)
class AnalysisConfig:
    """One analyzer on some arms.

    Args:
        analyzer: plugin name; default: the entry's own name.
        arms: whose vectors; the name of an ``each_layer`` arm stands for all its layers.
        together: all vectors in one analysis, else one analysis a vector.
        seeds: training seeds whose vectors are taken, together; default: the first.
        options: flags of ``steerkit analyze NAME``, over those of ``analyze``; ``<vector of ARM>`` stands for another
            arm's vector of the same seed (and makes it one analysis a seed).
        recipients: of the study's ``recipients``; each is an analysis of its own, with its own vector.
        if_installed: leave it out, and say so, where the analyzer is not installed.
        seconds: expected of each vector (of all, where they are analysed together), on one core.
    """

    analyzer: str = ""
    arms: list[str] = field(default_factory=list)
    together: bool = False
    seeds: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    recipients: list[str] = field(default_factory=list)
    if_installed: bool = False
    seconds: float = 60.0


@dataclass(frozen=True)
class RecipientConfig:
    """Another base, for transfer; it is left out, and that is said, where it is neither a plugin nor a folder.

    Args:
        base: zoo name or plugin, local folder.
        like: the arm whose settings train the recipient's own vector.
        lr: rate of that training; default: the arm's.
        grid: rates to choose from on the recipient's validation problems, in fits of ``choice.max_steps`` as for an
            arm; else ``lr``.
        max_steps: of that training; default: the arm's.
    """

    base: str
    like: str
    lr: float | None = None
    grid: list[float] | None = None
    max_steps: int | None = None


@dataclass(frozen=True)
class ChoiceConfig:
    """How learning rates are chosen.

    Args:
        enabled: choose; else each arm takes its ``lr``.
        seed: training seed of the runs that are compared.
        temperature: of the validation samples.
        k: validation samples a problem.
        max_steps: training steps of the runs that are compared; default: as many as the final runs have.
    """

    enabled: bool = True
    seed: int = 0
    temperature: float = 1.0
    k: int = 2
    max_steps: int | None = None


@dataclass(frozen=True)
class StudyConfig:
    """A study.

    Args:
        base: zoo name or plugin, local folder, or hub id.
        fit: settings of every ``steerkit fit``.
        arms: name -> arm.
        name: of the study.
        seeds: training seeds.
        temperatures: of the test samples.
        choice: how learning rates are chosen.
        analyze: flags of every ``steerkit analyze``.
        analyses: name -> analysis.
        recipients: name -> other base, for transfer.
        screen: flags of a ``steerkit evaluate`` of the base on training problems, done first; what it always or never
            solves is not trained on.
        claims: the rules of the verdicts, fixed before the run.
        data_root: folder where relative data paths start.
    """

    base: str
    fit: dict[str, Any]
    arms: dict[str, ArmConfig]
    name: str = "study"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    temperatures: list[float] = field(default_factory=lambda: [0.0, 1.0])
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)
    analyze: dict[str, Any] = field(default_factory=dict)
    analyses: dict[str, AnalysisConfig] = field(default_factory=dict)
    recipients: dict[str, RecipientConfig] = field(default_factory=dict)
    screen: dict[str, Any] | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    data_root: str | None = None

    def __post_init__(self) -> None:
        axes: dict[str, list[Any]] = {"seeds": self.seeds, "temperatures": self.temperatures}
        for name, values in axes.items():
            if not values or len(set(values)) < len(values):
                raise SteerkitError(f"{name} needs one or more different values, got {values}.")
        for place, own in OWN.items():
            section: Any = {"fit": self.fit}
            for part in place.split("."):
                section = section.get(part) if isinstance(section, Mapping) else None
            for key in sorted(own & set(section or ())):
                raise SteerkitError(f"{place}.{key}: the study sets it by itself; leave it out.")
        for name, arm in self.arms.items():
            _check_arm(name, arm, self)
        for name, one in self.analyses.items():
            _check_analysis(name, one, self)
        for name, other in self.recipients.items():
            _check_name("A recipient", name)
            _known(f"recipients.{name}.like", other.like, self.trained)
            _check_grid(f"recipients.{name}", other.grid)

    @property
    def trained(self) -> list[str]:
        """The arms that are trained."""
        return [name for name, arm in self.arms.items() if arm.row is None]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> StudyConfig:
        """From the plain values that ``record()`` gives, or a parser.

        Raises:
            SteerkitError: for settings that don't go together.
        """
        values = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        made: dict[str, Any] = {"arms": ArmConfig, "analyses": AnalysisConfig, "recipients": RecipientConfig}
        for name, kind in made.items():
            values[name] = {key: kind(**one) for key, one in (values.get(name) or {}).items()}
        values["choice"] = ChoiceConfig(**(values.get("choice") or {}))
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def digest(self) -> str:
        """16 hex digits of all that the numbers and verdicts depend on."""
        return digest(self.record())

    def rules_digest(self) -> str:
        """16 hex digits of the rules alone."""
        return digest(self.claims)


def _known(place: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise SteerkitError(f"{place}: there is no arm {name!r}.{did_you_mean(name, names)} Arms: {', '.join(names)}.")


def _check_name(what: str, name: str) -> None:
    if not name or not all(c.isalnum() or c in "_-." for c in name) or name.startswith("."):
        raise SteerkitError(f"{what}'s name is a folder's: letters, digits, '_', '-' and '.', got {name!r}.")


def _check_grid(place: str, grid: list[float] | None) -> None:
    if grid is not None and (not grid or len({f"{lr:g}" for lr in grid}) < len(grid)):  # folders are named so
        raise SteerkitError(f"{place}.grid needs one or more different rates, got {grid}.")


def _check_arm(name: str, arm: ArmConfig, study: StudyConfig) -> None:
    place = f"arms.{name}"
    _check_name("An arm", name)
    if (arm.row is None) != (arm.of is None):
        raise SteerkitError(f"{place}: 'row' and 'of' go together.")
    if arm.of is not None:
        _known(f"{place}.of", arm.of, study.trained)
        if study.arms[arm.of].each_layer is not None:
            raise SteerkitError(f"{place}.of: {arm.of} is one arm a layer; name an arm that is one run a seed.")
        return
    _check_grid(place, arm.grid)
    if arm.lr_of is not None:
        if arm.grid is not None or arm.lr is not None:
            raise SteerkitError(f"{place}: it takes the rate of {arm.lr_of}: leave 'grid' and 'lr' out.")
        if arm.lr_of in study.arms and study.arms[arm.lr_of].lr_of is not None:
            raise SteerkitError(f"{place}.lr_of: {arm.lr_of} takes another's rate itself: name that one.")
    elif arm.lr is None and not (arm.grid and study.choice.enabled):
        raise SteerkitError(f"{place} has no learning rate: give 'grid', 'lr' or 'lr_of'.")
    if arm.opening_of is not None:
        _known(f"{place}.opening_of", arm.opening_of, [n for n, a in study.arms.items() if a.row == "prefix"])
    if arm.each_layer is not None:
        if "{layer}" not in arm.name:
            raise SteerkitError(f"{place}.name must hold {{layer}}, got {arm.name!r}.")
        if arm.last != 1.0 or "layers" in arm.model or arm.opening_of:
            raise SteerkitError(f"{place}: each_layer goes without 'last', 'model.layers' and 'opening_of'.")
    if arm.seeds is not None and not arm.seeds:
        raise SteerkitError(f"{place}.seeds is empty: leave it out, or name some.")


def _check_analysis(name: str, one: AnalysisConfig, study: StudyConfig) -> None:
    place = f"analyses.{name}"
    if not one.arms:
        raise SteerkitError(f"{place}.arms is empty: name the arms whose vectors are analysed.")
    for other in one.recipients:
        if other not in study.recipients:
            raise SteerkitError(f"{place}: there is no recipient {other!r}.{did_you_mean(other, study.recipients)}")
    for key in ("model", "vector", "out", "config", "data_root"):
        if key in one.options or key in study.analyze:
            raise SteerkitError(f"{place}.options.{key}: the study sets it by itself; leave it out.")
