"""A study's folder, read; what is not there or damaged is said, not raised, except for ``results.json`` itself."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.analysis.result import AnalysisResult
from steerkit.errors import SteerkitError
from steerkit.study.claims.estimates import Resampling

SCHEMA = 1
RESULTS = "results.json"


@dataclass(frozen=True)
class Analysed:
    """One entry of ``analyses`` in ``results.json``."""

    record: Mapping[str, Any]
    result: AnalysisResult | None
    error: str = ""
    """Why there is no result."""


@dataclass(frozen=True)
class Study:
    """``results.json`` and what lies beside it."""

    folder: Path
    results: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Study:
        """Read ``results.json``.

        Raises:
            SteerkitError: if it is not there, damaged or of another schema.
        """
        path = Path(folder) / RESULTS
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SteerkitError(f"{folder} is not the folder of a finished study: there is no {RESULTS}.") from None
        except (OSError, ValueError) as error:
            raise SteerkitError(f"{path} is damaged ({error}).") from None
        if not isinstance(results, dict) or results.get("schema") != SCHEMA:
            found = results.get("schema") if isinstance(results, dict) else None
            raise SteerkitError(f"{path} has schema {found}, this steerkit reads {SCHEMA}.")
        return cls(Path(folder), results)

    @property
    def arms(self) -> list[Mapping[str, Any]]:
        """In the study's order."""
        return list(self.results.get("arms") or [])

    @property
    def recipients(self) -> list[Mapping[str, Any]]:
        """The other bases that vectors were put on."""
        return list(self.results.get("recipients") or [])

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Items that failed: ``id``, ``error``."""
        return list(self.results.get("failed") or [])

    @property
    def command(self) -> str:
        """That made the study."""
        return str(self.results.get("command") or "")

    @property
    def samples_file(self) -> str:
        """Below the folder."""
        return str(self.results.get("samples") or "samples.parquet")

    @property
    def draws(self) -> Resampling:
        """How the rules' bootstrap is drawn."""
        return Resampling(**(self.results.get("resampling") or {}))

    @property
    def temperatures(self) -> list[str]:
        """As the keys of ``accuracy``: ``["0", "1"]``."""
        return [f"{t:g}" for t in self.results.get("temperatures") or (0, 1)]

    def arm(self, name: str) -> Mapping[str, Any] | None:
        """The arm of that name or alias."""
        own = (self.results.get("aliases") or {}).get(name, name)
        return next((arm for arm in self.arms if arm["arm"] == own), None)

    def label(self, name: str) -> str:
        """What an arm is called in figures."""
        arm = self.arm(name)
        return str(arm.get("label") or name) if arm else name

    def analyses(self, analyzer: str) -> list[Analysed]:
        """The analyses of that name, in the study's order."""
        return [self._analysed(r) for r in self.results.get("analyses") or [] if r["analyzer"] == analyzer]

    def _analysed(self, record: Mapping[str, Any]) -> Analysed:
        try:
            return Analysed(record, AnalysisResult.load(self.folder / record["folder"]))
        except SteerkitError as error:
            return Analysed(record, None, str(error).replace(f"{self.folder}/", ""))

    @cached_property
    def samples(self) -> Samples | None:
        """The samples of all arms; None if their file is missing or damaged."""
        return Samples.read(self.folder / self.samples_file)

    def curves(self, arm: Mapping[str, Any], column: str) -> list[list[tuple[int, float]]]:
        """Of each of an arm's runs the (step, number) pairs in its ``metrics.csv``; runs without one are left out."""
        found = []
        for run in arm.get("runs") or []:
            path = self.folder / run["curve"] if run.get("curve") else None
            if path is not None and path.is_file():
                pairs = list(_column(path, column))
                found += [pairs] if pairs else []
        return found


def _column(path: Path, column: str) -> Iterator[tuple[int, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                step, value = int(float(row["step"])), float(row[column])
            except (KeyError, TypeError, ValueError):  # rows of a validation leave the training's columns empty
                continue
            if math.isfinite(value):  # NaN: the verifier failed on all of a step's samples
                yield step, value


@dataclass(frozen=True)
class Samples:
    """The columns of ``samples.parquet`` that the report uses."""

    arm: NDArray[Any]
    temperature: NDArray[np.float64]
    id: NDArray[Any]
    correct: NDArray[np.float64]
    first_token: NDArray[Any] | None

    @classmethod
    def read(cls, path: Path) -> Samples | None:
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.read_table(path)
            columns = {name: table[name].to_numpy() for name in ("arm", "temperature", "id", "correct")}
            numbers = {name: columns[name].astype(np.float64) for name in ("temperature", "correct")}
        except (OSError, KeyError, TypeError, ValueError, ArrowException):
            return None
        first = None
        if "first_token" in table.column_names:  # a number, or a text; None where nothing was generated
            first = np.array([None if v is None else str(v) for v in table["first_token"].to_pylist()], dtype=object)
        return cls(columns["arm"], numbers["temperature"], columns["id"], numbers["correct"], first)

    def of(self, arm: str, temperature: str) -> NDArray[np.bool_]:
        """[rows] which rows are of that arm and temperature."""
        picked: NDArray[np.bool_] = (self.arm == arm) & (self.temperature == float(temperature))
        return picked

    def shares(self, arm: str, temperature: str) -> dict[str, float]:
        """Problem -> share of right answers over seeds and samples; samples that the verifier failed on don't count."""
        rows = self.of(arm, temperature) & ~np.isnan(self.correct)
        names, where = np.unique(self.id[rows].astype(str), return_inverse=True)
        means = np.bincount(where, self.correct[rows], len(names)) / np.maximum(np.bincount(where), 1)
        return dict(zip(names.tolist(), means.tolist(), strict=True))
