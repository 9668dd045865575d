"""What an analysis found, as one record: numbers with their intervals and controls, and all that they depend on.

A folder holds ``analysis.json`` (schema 1), ``arrays.safetensors`` and a parquet file for each table. Figures are made
from these files alone (``plots.draw``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit.analysis.statistics import ROW_KEYS, without_nan
from steerkit.errors import SteerkitError
from steerkit.evaluation.results import write_samples
from steerkit.files import atomic_path, write_json

SCHEMA = 1
FILE = "analysis.json"


@dataclass(frozen=True)
class Array:
    """A named tensor of a result."""

    values: Tensor
    axes: tuple[str, ...]
    """What each dimension counts: ``("layer", "token")``."""
    about: str = ""
    """What the numbers are, with their unit."""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Axis -> the names of its steps (the layers, the tokens), where they have names."""


@dataclass(frozen=True)
class Findings:
    """What a subclass of ``Analyzer`` returns."""

    rows: Sequence[Mapping[str, Any]]
    """Made by ``statistics.row``."""
    positions: str
    """At which token positions the numbers were taken, in words."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Name -> rows of a parquet file: for what is long (tokens, texts)."""
    notes: Sequence[str] = ()
    """What a reader must know: why there is no control, what was left out."""

    def __post_init__(self) -> None:
        if not self.positions:
            raise SteerkitError("An analyzer must state its token positions, got an empty text.")
        for number, row in enumerate(self.rows):
            missing = [key for key in ROW_KEYS if key not in row]
            if missing:
                raise SteerkitError(f"Row {number} lacks {', '.join(missing)}: make rows by steerkit.analysis.row.")
        for name, array in self.arrays.items():
            if len(array.axes) != array.values.dim():
                raise SteerkitError(
                    f"Array {name!r} has {array.values.dim()} dimensions and names {len(array.axes)} axes."
                )


@dataclass(frozen=True)
class AnalysisResult:
    """``Findings``, and where they come from."""

    analyzer: str
    """Its plugin name, or its class's where it has none."""
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    positions: str
    arrays: Mapping[str, Array]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    notes: Sequence[str]
    model: Mapping[str, Any]
    """name, fingerprint, dtype, device, n_layers, d_model"""
    vectors: Mapping[str, Mapping[str, Any]]
    """Name -> digest, intervention, token_mask, points, norms, the model it was trained on, the command."""
    prompts: Mapping[str, Any] | None
    """n, digest, template (None where they came encoded), source; None if the analyzer needs none."""
    engine: str
    seed: int
    command: str
    versions: Mapping[str, str]
    seconds: float
    """Wall time; of the last process, where a killed run went on."""
    identity: Mapping[str, Any]
    """All that the numbers depend on: equal for equal results."""

    def find(self, **keys: Any) -> list[Mapping[str, Any]]:
        """The rows with these values, e.g. ``find(vector="v", layer=3)``."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in keys.items())]

    def save(self, folder: str | Path) -> Path:
        """Write the numbers (no figures: ``plots.draw``); returns the path of ``analysis.json``, written last.

        Raises:
            SteerkitError: if the folder can't be written.
        """
        from safetensors.torch import save

        target = Path(folder)
        if self.arrays:
            tensors = {name: array.values.contiguous() for name, array in self.arrays.items()}
            with atomic_path(target / "arrays.safetensors") as temporary:
                temporary.write_bytes(save(tensors))
        for name, table in self.tables.items():
            write_samples(target / f"{name}.parquet", [dict(row) for row in table])
        record: dict[str, Any] = {"schema": SCHEMA}
        for name, value in vars(self).items():
            if name == "arrays":
                value = {
                    key: {"shape": list(a.values.shape), "axes": list(a.axes), "about": a.about, "labels": a.labels}
                    for key, a in self.arrays.items()
                }
            elif name == "tables":
                value = {key: {"file": f"{key}.parquet", "rows": len(table)} for key, table in self.tables.items()}
            record[name] = value
        write_json(target / FILE, without_nan(record))
        return target / FILE

    @classmethod
    def load(cls, folder: str | Path) -> AnalysisResult:
        """Read what ``save`` wrote.

        Raises:
            SteerkitError: if it is not there, damaged, or of another schema.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(folder) / FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA:
                raise SteerkitError(f"{path} has schema {record['schema']}, this steerkit reads {SCHEMA}.")
            described = record.pop("arrays")
            tensors = load_file(Path(folder) / "arrays.safetensors") if described else {}
            arrays = {
                name: Array(tensors[name], tuple(facts["axes"]), facts["about"], facts["labels"])
                for name, facts in described.items()
            }
            tables = {name: _read_table(Path(folder) / facts["file"]) for name, facts in record.pop("tables").items()}
            return cls(arrays=arrays, tables=tables, **{k: v for k, v in record.items() if k != "schema"})
        except FileNotFoundError as error:
            raise SteerkitError(f"{folder} is not the folder of an analysis: there is no {error.filename}.") from None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise SteerkitError(f"{folder}: damaged analysis ({' '.join(str(error).split())}).") from None


def as_array(values: Any, axes: Sequence[str], about: str = "", **labels: Sequence[str]) -> Array:
    """An ``Array`` of a tensor, a numpy array or nested lists, as fp32 (whole numbers stay whole)."""
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(values)
    return Array(tensor.float() if tensor.is_floating_point() else tensor, tuple(axes), about, labels)


def _read_table(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path.name}: {error}") from None
    return rows
