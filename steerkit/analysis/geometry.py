"""Lengths and angles of vectors, against the residual stream that they are added to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from steerkit import registry
from steerkit.analysis.base import Analyzer
from steerkit.analysis.gates import read_places
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import row
from steerkit.analysis.texts import of_prompts
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector
from steerkit.vectors.algebra import directions

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel


@final
@dataclass(frozen=True)
class Geometry(Analyzer):
    """Norms against residual norms, cosines between layers, seeds and methods, stable rank.

    Args:
        positions: token mask of the positions at which the residual stream's norm is taken.
        controls: random vectors behind each control value.
    """

    name: ClassVar[str] = "geometry"

    positions: str = "all"
    controls: int = 200

    def __post_init__(self) -> None:
        TokenMask(self.positions)
        if self.controls < 2:
            raise SteerkitError(f"controls must be at least 2, got {self.controls}.")

    def analyze(self, work: Work) -> Findings:
        points = sorted({HookPoint(p.layer) for vector in work.vectors.values() for p in vector.tensors})
        residual = self._residual_norms(work, points)
        flat = {name: directions(vector) for name, vector in work.vectors.items()}
        rows: list[dict[str, Any]] = []
        for name, of_one in flat.items():
            rows += self._norm_rows(name, work, of_one, residual)
            rows += self._rank_rows(name, of_one, work.seed)
            rows += self._layer_rows(name, of_one, work.seed)
        for first, second in combinations(flat, 2):
            rows += self._pair_rows(first, second, flat, work.seed)
        labels, cosines = _cosine_table(flat)
        arrays: dict[str, Array] = {
            "residual_norms": as_array(
                torch.stack([residual[p] for p in points]), ("hook point", "prompt"),
                "mean L2 norm of the residual stream", **{"hook point": [str(p) for p in points]},
            ),
            "cosines": as_array(cosines, ("direction", "other"), "cosine", direction=labels, other=labels),
        }  # fmt: skip
        notes = [
            "Norm: of the direction (of b for token-wise vectors). The ratio takes what is really added: for vectors "
            "that depend on the token, its mean norm over the positions, each hook point alone.",
            "Norms and angles between given vectors are exact: n = 1, no interval. A ratio's interval is over prompts.",
            "Control of a cosine: mean absolute cosine of random directions of the same width; of a stable rank: that "
            "of random rows of the same norms. A norm has no control: the controls are norm-matched.",
        ]
        return Findings(rows, f"residual norms at the positions of the token mask {self.positions!r}, prompts only",
                        arrays, notes=notes)  # fmt: skip

    def _residual_norms(self, work: Work, points: list[HookPoint]) -> dict[HookPoint, Tensor]:
        """Hook point -> [prompts] mean norm of the base's stream at the chosen positions."""
        texts = of_prompts(work.prompts)
        found = {point: torch.zeros(len(texts)) for point in points}
        done = 0
        for batch in work.batches(texts):
            chosen = batch.select(self.positions)
            trace = work.engine.run(batch, read=points)
            for point in points:
                norms = trace[point].float().norm(dim=-1)
                for row_, index in enumerate(batch.indices):
                    found[point][index] = norms[row_][chosen[row_]].mean().cpu()
            done += len(batch.texts)
            work.progress("residual norms", done, len(texts))
        return found

    def _norm_rows(
        self, name: str, work: Work, flat: dict[HookPoint, Tensor], residual: dict[HookPoint, Tensor]
    ) -> list[dict[str, Any]]:
        vector = work.vectors[name]
        constant = registry.resolve("interventions", vector.intervention).constant
        measured = {} if constant else self._added_norms(work, vector)
        rows = []
        for point, direction in flat.items():
            keys: dict[str, Any] = {"vector": name, "point": str(point)}
            size = float(direction.norm())
            added = measured.get(point, size)
            rows.append(row("norm", size, seed=work.seed, **keys))
            stream = residual[HookPoint(point.layer)]
            rows.append(row("norm / residual norm", (added / stream).tolist(), seed=work.seed, **keys))
        return rows

    def _added_norms(self, work: Work, vector: SteeringVector) -> dict[HookPoint, Tensor]:
        """Hook point -> [prompts] mean norm of what a vector that depends on the token adds there, steered there alone:
        all of them on the base's own stream, so one run serves all."""
        plugin: type[Intervention] = registry.resolve("interventions", vector.intervention)
        texts, items = of_prompts(work.prompts), vector.to_interventions()
        places = {point: read_places(plugin, point) for point in vector.tensors}
        found = {point: torch.zeros(len(texts)) for point in places}
        for batch in work.batches(texts):
            chosen = batch.select(self.positions)
            trace = work.engine.run(batch, read=[place for of_point in places.values() for place in of_point])
            for point, of_point in places.items():
                stream = torch.stack([trace[place] for place in of_point]).sum(0)
                norms = items[point].to(stream.device).delta(stream).detach().float().norm(dim=-1)
                for row_, index in enumerate(batch.indices):
                    found[point][index] = norms[row_][chosen[row_]].mean().cpu()
        return found

    def _rank_rows(self, name: str, flat: dict[HookPoint, Tensor], seed: int) -> list[dict[str, Any]]:
        table = _stack(flat)
        if table is None or len(table) < 2:
            return []
        generator = torch.Generator().manual_seed(seed)
        lengths = table.norm(dim=1, keepdim=True)
        control = [
            stable_rank(_unit(torch.randn(table.shape, generator=generator, dtype=torch.float64)) * lengths)
            for _ in range(min(self.controls, 50))
        ]
        return [
            row("stable rank", stable_rank(table), control, seed, vector=name),
            row("stable rank of unit rows", stable_rank(_unit(table)), seed=seed, vector=name),
        ]

    def _layer_rows(self, name: str, flat: dict[HookPoint, Tensor], seed: int) -> list[dict[str, Any]]:
        """Cosine of each pair of neighbouring layers of one vector."""
        rows = []
        for (point, one), (after, other) in zip(list(flat.items())[:-1], list(flat.items())[1:], strict=True):
            if one.shape == other.shape:
                keys = {"vector": name, "point": str(point), "other_point": str(after)}
                rows.append(row("cosine", _cosine(one, other), self._random_cosines(len(one), seed), seed, **keys))
        return rows

    def _pair_rows(
        self, first: str, second: str, flat: dict[str, dict[HookPoint, Tensor]], seed: int
    ) -> list[dict[str, Any]]:
        """Cosine of two vectors (seeds, methods) where both stand at one hook point, else at one layer."""
        rows = []
        for point, one in flat[first].items():
            same = [p for p in flat[second] if p == point] or [p for p in flat[second] if p.layer == point.layer]
            for other_point in same[:1]:
                other = flat[second][other_point]
                if one.shape == other.shape:
                    keys = {"vector": first, "other": second, "point": str(point), "other_point": str(other_point)}
                    control = self._random_cosines(len(one), seed)
                    rows.append(row("cosine", _cosine(one, other), control, seed, **keys))
        return rows

    def _random_cosines(self, width: int, seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        pairs = _unit(torch.randn(self.controls, 2, width, generator=generator, dtype=torch.float64))
        return (pairs[:, 0] * pairs[:, 1]).sum(-1).abs().tolist()

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.geometry import panels

        return panels(result)


def stable_rank(table: Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm: 1 for one common direction, L for L orthogonal ones."""
    values = torch.linalg.svdvals(table)
    top = float(values[0]) ** 2
    return float(values.square().sum()) / top if top else float("nan")


def _stack(flat: dict[HookPoint, Tensor]) -> Tensor | None:
    """[layers, D], if all directions have one width."""
    return torch.stack(list(flat.values())) if len({len(d) for d in flat.values()}) == 1 else None


def _unit(table: Tensor) -> Tensor:
    return table / table.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def _cosine(one: Tensor, other: Tensor) -> float:
    lengths = float(one.norm() * other.norm())
    return float(one @ other) / lengths if lengths else float("nan")


def _cosine_table(flat: dict[str, dict[HookPoint, Tensor]]) -> tuple[list[str], list[list[float]]]:
    """Names and cosines of all directions with all; NaN between directions of different widths."""
    many = len(flat) > 1
    items = [
        (f"{name} {point.layer}" if many else str(point), direction)
        for name, of_one in flat.items()
        for point, direction in of_one.items()
    ]
    nan = float("nan")
    table = [[_cosine(a, b) if a.shape == b.shape else nan for _, b in items] for _, a in items]
    return [label for label, _ in items], table
