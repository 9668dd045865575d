"""From what a user writes (a plugin's name, a file, a hub id, a mapping) to a prompt data set."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerkit import registry
from steerkit.datasets.base import PromptDataset
from steerkit.errors import DataError

_RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def open_dataset(spec: str | Mapping[str, Any], data_root: str | None = None) -> PromptDataset:
    """The data set that ``spec`` names; nothing is read yet.

    Args:
        spec: a plugin of group ``steerkit.datasets`` (or ``module:Name``), ``{name: ..., **settings}``, a file or
            folder of records, or a hub id ``org/name``. ``{path: ...}`` without a name means ``records``.
        data_root: folder where relative paths start; handed to data sets that take it.

    Raises:
        PluginError: for an unknown plugin or setting.
        DataError: if ``data_root`` is no folder.
    """
    if data_root is not None and not Path(data_root).is_dir():
        raise DataError(f"data_root {data_root} is not a folder.")
    settings = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    if "name" not in settings:
        settings = {"name": "records", **settings}
    name = str(settings["name"])
    plugins = {entry.name for entry in registry.entries("datasets")}
    root = Path(data_root or ".")
    is_path = name.endswith(_RECORD_SUFFIXES) or (root / name).exists() or ("/" in name and ":" not in name)
    if name not in plugins and is_path:
        settings = {**settings, "name": "records", "path": name}
    target = registry.resolve("datasets", str(settings["name"]))
    if data_root is not None and "data_root" in inspect.signature(target).parameters:
        settings.setdefault("data_root", data_root)
    opened: PromptDataset = registry.build("datasets", settings)
    return opened


def dataset_name(spec: str | Mapping[str, Any]) -> str:
    """A short name for results: the plugin's, or the files' (``mawps+asdiv``)."""
    settings = spec if isinstance(spec, Mapping) else {"name": spec}
    paths = settings.get("path", settings.get("name", "records"))
    items = paths if isinstance(paths, list) else [paths]
    return "+".join(Path(str(item["path"] if isinstance(item, Mapping) else item)).stem for item in items)
