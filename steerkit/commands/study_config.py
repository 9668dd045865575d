"""A study's config: from options and YAML, entry by entry, so that a mistake is one line with its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from steerkit.commands.parsing import Parser
from steerkit.errors import SteerkitError
from steerkit.study.config import AnalysisConfig, ArmConfig, ChoiceConfig, RecipientConfig, StudyConfig
from steerkit.study.values import merged

if TYPE_CHECKING:
    from jsonargparse import Namespace

CONFIG = "study.yaml"
SECTIONS: Mapping[str, type] = {"arms": ArmConfig, "analyses": AnalysisConfig, "recipients": RecipientConfig}


def read_config(options: Namespace) -> StudyConfig:
    """The study that options and config file describe, the quick form where it was asked for.

    Raises:
        SteerkitError: one line, with the place.
    """
    plain = {key: value for key, value in options.as_dict().items() if key != "config"}
    given = _sections(plain)
    config = StudyConfig.read(given)
    quick = _sections(merged(plain, plain["quick_changes"]))
    short = StudyConfig.read(quick)  # always: a mistake there shows before the study is needed in a hurry
    return short if options.quick else config


def _sections(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the entries of each section checked, and their defaults filled in."""
    if not plain.get("base"):
        raise SteerkitError("Give --base: the model that is studied.")
    if not plain.get("arms"):
        raise SteerkitError("Give --arms: a study without arms measures nothing.")
    result = {key: value for key, value in plain.items() if key not in ("quick", "quick_changes")}
    for section, kind in SECTIONS.items():
        parser = Parser(prog="steerkit study")
        parser.add_class_arguments(kind)
        entries = {key: entry for key, entry in (plain.get(section) or {}).items() if entry is not None}
        result[section] = {}
        for key, entry in entries.items():
            try:
                result[section][key] = parser.parse_object(entry).as_dict()
            except SteerkitError as error:
                raise SteerkitError(f"{section}.{key}: {error}") from None
    choice = Parser(prog="steerkit study")
    choice.add_class_arguments(ChoiceConfig)
    try:
        result["choice"] = choice.parse_object(dict(plain.get("choice") or {})).as_dict()
    except SteerkitError as error:
        raise SteerkitError(f"choice: {error}") from None
    return result


def saved_config(out: Path) -> StudyConfig:
    """Of the study that lies in a folder.

    Raises:
        SteerkitError: there is none.
    """
    path = out / CONFIG
    try:
        return StudyConfig.read(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise SteerkitError(f"{out} holds no study ({CONFIG}: {' '.join(str(error).split())}).") from None
