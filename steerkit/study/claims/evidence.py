"""What a study measured, as the rules read it: the samples as tables, the analyses with whose vectors they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.analysis import AnalysisResult
from steerkit.errors import SteerkitError


class Missing(Exception):
    """A rule's number can't be had; the text says why. Never leaves this package: it makes the rule inconclusive."""


@dataclass(frozen=True)
class Analysed:
    """One finished analysis."""

    folder: str
    result: AnalysisResult
    vectors: Mapping[str, tuple[str, int]]
    """Name in the analysis -> (arm, training seed)."""


class Evidence:
    """A study's results.json with what lies around it.

    Args:
        results: the record.
        folder: the study's folder, where relative paths of the record start.
    """

    def __init__(self, results: Mapping[str, Any], folder: str | Path) -> None:
        self.results, self.folder = results, Path(folder)

    @cached_property
    def samples(self) -> Samples:
        """
        Raises:
            Missing: if there are none.
        """
        from pyarrow import ArrowException, parquet

        name = self.results.get("samples")
        if not name:
            raise Missing("the study has no samples")
        try:
            rows = parquet.read_table(
                self.folder / name, columns=["arm", "seed", "temperature", "id", "correct", "first_token"]
            ).to_pylist()
        except (OSError, ArrowException) as error:
            raise Missing(f"{name} can't be read ({' '.join(str(error).split())[:120]})") from None
        return Samples(rows, str(name))

    @cached_property
    def analyses(self) -> list[Analysed]:
        """Those that can be read; what can't be is as if it had not been run."""
        found = []
        for entry in self.results.get("analyses") or []:
            try:
                result = AnalysisResult.load(self.folder / entry["folder"])
            except (SteerkitError, KeyError, TypeError):
                continue
            found.append(Analysed(str(entry["folder"]), result, self._whose(entry, result)))
        return found

    def arm(self, name: str) -> str:
        """The name of an arm. static_first, static_middle, static_penultimate and static_last stand for the arm with a
        static vector at that layer alone, where no arm has that very name.
        """
        arms = {str(arm.get("arm")): arm for arm in self.results.get("arms") or []}
        layers = [layer for arm in arms.values() for layer in arm.get("layers") or [] if isinstance(layer, int)]
        if name in arms or not layers:
            return name
        depth = 1 + max(layers)
        place = {"first": 0, "middle": depth // 2, "penultimate": depth - 2, "last": depth - 1}
        kind, _, where = name.rpartition("_")
        if where in place:
            for other, facts in arms.items():
                if other.rpartition("_")[0] == kind and facts.get("layers") == [place[where]]:
                    return other
        return name

    def _whose(self, entry: Mapping[str, Any], result: AnalysisResult) -> dict[str, tuple[str, int]]:
        """By the vectors' digests; else as the record says."""
        found = {}
        for name, facts in result.vectors.items():
            said = (entry.get("vectors") or {}).get(name)
            if isinstance(said, Mapping):
                found[name] = (str(said["arm"]), int(said["seed"]))
            elif facts.get("digest") in self._digests:
                found[name] = self._digests[facts["digest"]]
            elif len(result.vectors) == 1 and entry.get("arm") is not None:
                found[name] = (str(entry["arm"]), int(entry.get("seed") or 0))
        return found

    @cached_property
    def _digests(self) -> dict[str, tuple[str, int]]:
        from steerkit.vectors import SteeringVector

        found = {}
        for arm in self.results.get("arms") or []:
            for run in arm.get("runs") or []:
                if run.get("vector"):
                    try:
                        digest = SteeringVector.from_pretrained(str(self.folder / run["vector"])).digest()
                    except (SteerkitError, OSError):
                        continue  # an adapter, or gone
                    found[digest] = (str(arm["arm"]), int(run.get("seed") or 0))
        return found


class Samples:
    """Samples of all arms as tables.

    Args:
        rows: arm, seed, temperature, id, correct (None: a fault), first_token.
        source: the file's name.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], source: str) -> None:
        self.source = source
        self._rows: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
        for row in rows:
            self._rows.setdefault((str(row["arm"]), float(row["temperature"])), []).append(row)

    def tables(
        self, arms: Sequence[str], temperature: float, token: int | None = None
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[int]]]:
        """(arm -> [seeds, problems], arm -> its seeds), on the problems that all of them have.

        Args:
            token: the share of samples that begin with this token, in place of the share of right ones.

        Raises:
            Missing: if an arm, or a common problem, is not there.
        """
        by_arm: dict[str, dict[int, dict[str, list[float]]]] = {}
        for arm in arms:
            rows = self._rows.get((arm, float(temperature)))
            if not rows:
                raise Missing(f"no samples of {arm} at temperature {temperature:g}")
            seeds = by_arm.setdefault(arm, {})
            for row in rows:
                value = row["correct"] if token is None else row["first_token"] == token
                if value is not None:
                    seeds.setdefault(int(row["seed"] or 0), {}).setdefault(str(row["id"]), []).append(float(value))
        every = [set(problems) for seeds in by_arm.values() for problems in seeds.values()]
        ids = sorted(set.intersection(*every)) if every else []
        if not ids:
            raise Missing(f"{', '.join(arms)} share no judged problem at temperature {temperature:g}")
        tables = {
            arm: np.array([[np.mean(seeds[seed][name]) for name in ids] for seed in sorted(seeds)])
            for arm, seeds in by_arm.items()
        }
        return tables, {arm: sorted(seeds) for arm, seeds in by_arm.items()}

    def arms(self) -> list[str]:
        """Those with samples."""
        return list(dict.fromkeys(arm for arm, _ in self._rows))
