"""Does a vector work on another model? Copied, norm-matched, or mapped where the streams differ (C8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerkit import registry
from steerkit.analysis.accuracy import Judge, accuracy_row, ratio_row
from steerkit.analysis.base import Analyzer, at_least_one, left_as_found
from steerkit.analysis.engine import make_engine
from steerkit.analysis.result import AnalysisResult, Findings
from steerkit.analysis.statistics import row
from steerkit.analysis.stream_maps import matched_layer, moved, procrustes_map, rescaled, ridge_map
from steerkit.analysis.texts import of_prompts
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.models import fingerprint, load_model
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel


@final
@dataclass(frozen=True)
class Transfer(Analyzer):
    """Accuracy of a recipient model with the donor's vector, and its share of the gain of the recipient's own.

    ``--model`` is the donor, for which the vector was trained.

    Args:
        recipient: zoo name or plugin, folder, or hub id; empty: the donor itself.
        own: the recipient's own vector (folder or hub id); without it there is no normalised gain.
        samples: completions of each prompt.
        temperature: of the samples; 0 is greedy.
        max_tokens: their length limit.
        ridge: penalty of the ridge map, against the mean variance of the donor's stream.
        controls: random vectors with the norms of the norm-matched copy.
        sampler: of the completions.
        verifier: that judges them.
    """

    name: ClassVar[str] = "transfer"
    needs_answers: ClassVar[bool] = True
    n_vectors: ClassVar[tuple[int, int | None]] = (1, 1)

    recipient: str = ""
    own: str = ""
    samples: int = 4
    temperature: float = 1.0
    max_tokens: int = 96
    ridge: float = 0.01
    controls: int = 3
    sampler: str = "transformers"
    verifier: str = "math"

    def __post_init__(self) -> None:
        at_least_one(self, "samples", "max_tokens", "controls")
        if not self.ridge > 0 or self.temperature < 0:
            raise SteerkitError(f"ridge must be above 0 and temperature 0 or more, got {self.ridge} and "
                                f"{self.temperature}.")  # fmt: skip

    def inputs(self) -> Mapping[str, str]:
        return {"own": SteeringVector.from_pretrained(self.own).digest()} if self.own else {}

    def analyze(self, work: Work) -> Findings:
        ((name, vector),) = work.vectors.items()
        with self._recipient(work) as other:
            own = self._own(vector, other)
            arms, notes = self._arms(work, other, vector)
            random = [arms["norm_matched"].random_like(work.seed * 1_000_003 + k) for k in range(self.controls)]
            print_of = fingerprint(other.loaded.base)
            with Judge(work, self.verifier) as judge:

                def measured(arm: str, steering: SteeringVector | None) -> NDArray[np.float64]:
                    label = f"recipient {print_of}, {arm}"
                    k = 1 if self.temperature == 0 else self.samples
                    groups = other.generations(label, steering, k, self.temperature, self.max_tokens, self.sampler)
                    return judge.shares(label, groups)

                base = measured("base", None)
                chance = np.stack([measured(f"random {k}", one) for k, one in enumerate(random)]).mean(0)
                shares = {"own": measured("own", own)} if own is not None else {}
                shares |= {arm: measured(arm, steering) for arm, steering in arms.items()}
        rows = [accuracy_row("accuracy", base, seed=work.seed, vector=name, arm="base")]
        rows.append(accuracy_row("accuracy", chance, seed=work.seed, vector=name, arm="random"))
        for arm, values in shares.items():
            rows.append(accuracy_row("accuracy", values, chance, work.seed, vector=name, arm=arm))
            rows.append(row("accuracy - base", (values - base).tolist(), (chance - base).tolist(), work.seed,
                            vector=name, arm=arm))  # fmt: skip
        if own is not None:
            by_chance = ratio_row("normalised gain", chance - base, shares["own"] - base, work.seed, vector=name)
            for arm in arms:
                found = ratio_row("normalised gain", shares[arm] - base, shares["own"] - base, work.seed, vector=name,
                                  arm=arm)  # fmt: skip
                rows.append(found | {"control": by_chance["value"], "control_ci95": by_chance["ci95"]})
            for arm, steering in arms.items():
                rows += _cosines(name, arm, steering, own, work.seed)
        notes += [
            "Recipient: " + (f"{self.recipient} ({print_of})" if self.recipient else "the donor itself") + ". "
            "Layers are matched by relative depth: "
            + ", ".join(f"{a} -> {b}" for a, b in _places(work, other, vector).items()) + ".",
            "norm_matched, ridge, procrustes and random have one length: the donor's norm times recipient's mean "
            "residual norm / donor's. Control and random: the mean over random vectors of these lengths.",
            "Normalised gain: (arm - base) / (own - base), the problems resampled in pairs; no interval where own - "
            "base may be 0.",
            "Maps are learned from both models' streams on the prompts' tokens, without answers or completions.",
        ]  # fmt: skip
        return Findings(rows, f"maps and norms: all prompt positions; accuracy: completions at temperature "
                        f"{self.temperature:g}, each vector at its own token mask", notes=notes)  # fmt: skip

    @contextmanager
    def _recipient(self, work: Work) -> Iterator[Work]:
        """The same work on the recipient."""
        if not self.recipient:
            yield work
            return
        base = work.loaded.base
        loaded = load_model(self.recipient, dtype=base.dtype, device=base.device)
        if loaded.tokenizer.get_vocab() != work.loaded.tokenizer.get_vocab():
            raise SteerkitError(
                f"{self.recipient} has another tokenizer than {work.loaded.name}: maps need both models to read "
                "the same tokens."
            )
        with left_as_found(loaded.base), make_engine(work.engine.name, loaded) as engine:
            yield replace(work, loaded=loaded, engine=engine)

    def _own(self, vector: SteeringVector, other: Work) -> SteeringVector | None:
        if not self.own:
            return None if self.recipient else vector
        own = SteeringVector.from_pretrained(self.own)
        try:
            own.check_fits(other.loaded.base)
        except VectorError as error:
            raise VectorError(f"own: {error}") from None
        return own

    def _arms(self, work: Work, other: Work, vector: SteeringVector) -> tuple[dict[str, SteeringVector], list[str]]:
        """Name -> the vector for the recipient."""
        constant = registry.resolve("interventions", vector.intervention).constant
        same_width = work.d_model == other.d_model
        if not constant and not same_width:
            raise SteerkitError(f"{vector.intervention!r} vectors depend on the token, and such a gate can't be mapped "
                                f"to another width ({work.d_model} to {other.d_model}).")  # fmt: skip
        vector = vector.as_static() if constant else vector
        places = _places(work, other, vector)
        ours = self._streams(work, "donor", sorted({p.layer for p in places}))
        theirs = self._streams(other, "recipient", sorted({p.layer for p in places.values()}))
        ratio = {
            point: float(theirs[target.layer].norm(dim=-1).mean() / ours[point.layer].norm(dim=-1).mean())
            for point, target in places.items()
        }
        arms: dict[str, SteeringVector] = {}
        if same_width:
            arms["copy"] = moved(vector, places, other.d_model)
            arms["norm_matched"] = moved(rescaled(vector, ratio), places, other.d_model)
        if not constant:
            return arms, ["The vector depends on the token, so its gate is copied and not mapped."]
        for kind in ("ridge", "procrustes"):
            tensors = {}
            for point, named in vector.tensors.items():
                x, y = ours[point.layer], theirs[places[point].layer]
                matrix = ridge_map(x, y, self.ridge) if kind == "ridge" else procrustes_map(x, y)
                image = named["vector"].double() @ matrix
                length = float(named["vector"].norm()) * ratio[point]
                tensors[point] = {"vector": (image * (length / image.norm().clamp_min(1e-30))).float()}
            arms[kind] = moved(replace(vector, tensors=tensors), places, other.d_model)
        if not same_width:  # the controls need lengths; the copy does not exist
            return {"norm_matched": arms["ridge"], **arms}, ["No copy between widths: norm_matched is the ridge map."]
        return arms, []

    def _streams(self, work: Work, whose: str, layers: list[int]) -> dict[int, Tensor]:
        """Layer -> [n, D] the stream that leaves it, at all tokens of all prompts."""

        def compute() -> dict[str, Tensor]:
            texts, points = of_prompts(work.prompts), [HookPoint(layer) for layer in layers]
            found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(texts) for layer in layers}
            done = 0
            for batch in work.batches(texts):
                trace = work.engine.run(batch, read=points)
                for b, index in enumerate(batch.indices):
                    for point in points:
                        found[point.layer][index] = batch.unpad(trace[point], b).float().cpu()
                done += len(batch.texts)
                work.progress(f"streams of the {whose}", done, len(texts))
            return {str(layer): torch.cat(parts) for layer, parts in found.items()}

        part = work.part(f"streams of the {whose}, {layers}", compute)
        return {layer: part[str(layer)] for layer in layers}

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.transfer import panels

        return panels(result)


def _places(work: Work, other: Work, vector: SteeringVector) -> dict[HookPoint, HookPoint]:
    return {
        point: HookPoint(matched_layer(point.layer, work.n_layers, other.n_layers), point.site)
        for point in vector.tensors
    }


def _cosines(name: str, arm: str, steering: SteeringVector, own: SteeringVector, seed: int) -> list[dict[str, Any]]:
    """With the recipient's own vector, where both stand."""
    try:
        cosines = steering.cos(own)
    except VectorError:  # at no common hook point
        return []
    return [row("cosine with own", value, seed=seed, vector=name, arm=arm, point=p) for p, value in cosines.items()]
