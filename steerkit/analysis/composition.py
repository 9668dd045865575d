"""Whether vectors that were trained alone work together: all pairs, all at once, against jointly trained ones (C9).

arXiv 2509.06608: normalised gain of a pair = (acc_ij - max(acc_i, acc_j)) / (acc_all - max(acc_i, acc_j)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit import registry
from steerkit.analysis.accuracy import Judge, accuracy_row, ratio_row
from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.parts import Part
from steerkit.analysis.result import AnalysisResult, Findings, as_array
from steerkit.analysis.statistics import row
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.interventions.summed import Summed
from steerkit.models import SteeredModel
from steerkit.models.stacked import stack
from steerkit.rollouts import SamplingParams
from steerkit.types import Rollout, RolloutGroup
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

ACCURACY = "accuracy"
GAIN = "normalised gain (acc_ij - max) / (acc_all - max)"
MORE = "accuracy of the pair - the better one's alone"
TOGETHER = 8
"""Policies of one batch."""


@dataclass(frozen=True)
class _Policy:
    """Vectors inserted together."""

    name: str
    vectors: tuple[SteeringVector, ...]
    scale: float = 1.0


@final
@dataclass(frozen=True)
class Composition(Analyzer):
    """Do vectors trained alone add up: all pairs and all at once, at scale 1 and rescaled, against a joint one.

    Args:
        joint: name of the vector that was trained jointly; it is in no pair. Empty: there is none, and acc_all is that
            of all vectors together at scale 1.
        scales: factors of the vectors that are inserted together; 1 is always among them.
        temperature: of decoding; 0 is greedy.
        k: completions of a prompt; greedy decoding needs one.
        max_tokens: length limit of completions.
        verifier: of the completions.
        sampler: of the completions.
    """

    name: ClassVar[str] = "composition"
    needs_answers: ClassVar[bool] = True
    n_vectors: ClassVar[tuple[int, int | None]] = (2, None)

    joint: str = ""
    scales: list[float] = field(default_factory=lambda: [1.0, 0.5])
    temperature: float = 0.0
    k: int = 1
    max_tokens: int = 96
    verifier: str | dict[str, Any] = "math"
    sampler: str = "fast"

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise SteerkitError(f"scales must be positive factors, got {self.scales}.")
        at_least_one(self, "k", "max_tokens")

    def analyze(self, work: Work) -> Findings:
        if self.joint and self.joint not in work.vectors:
            raise SteerkitError(f"No vector is named {self.joint!r} (joint): there are {', '.join(work.vectors)}.")
        alone = {name: vector for name, vector in work.vectors.items() if name != self.joint}
        if len(alone) < 2:
            raise VectorError(f"composition takes 2 or more vectors beside the joint one, got {len(alone)}.")
        masks = {vector.token_mask for vector in work.vectors.values()}
        if len(masks) > 1:
            raise VectorError(
                f"Vectors that are inserted together need one token mask, got {', '.join(sorted(masks))}."
            )
        shares = self._shares(work, self._policies(work, alone))
        scales = list(dict.fromkeys([1.0, *map(float, self.scales)]))
        whole = shares[self.joint] if self.joint else shares[_label(alone, 1.0)]
        rows = [accuracy_row(ACCURACY, shares["base"], seed=work.seed, vectors="base", scale=1.0)]
        rows += [
            accuracy_row(ACCURACY, shares[name], shares[f"{name}, random"], work.seed, vectors=name, scale=1.0)
            for name in alone
        ]
        for scale in scales:
            rows.append(
                accuracy_row(
                    ACCURACY, shares[_label(alone, scale)], seed=work.seed, vectors="all together", scale=scale
                )
            )
        if self.joint:
            rows.append(accuracy_row(ACCURACY, shares[self.joint], seed=work.seed, vectors="joint", scale=1.0))
        table = torch.full((len(scales), 3, len(alone), len(alone)), float("nan"))
        for s, scale in enumerate(scales):
            for i, one in enumerate(alone):
                table[s, 0, i, i] = float(np.nanmean(shares[one]))
            for (i, one), (j, other) in combinations(enumerate(alone), 2):
                keys: dict[str, Any] = {"vectors": f"{one} + {other}", "scale": scale}
                pair = shares[_label((one, other), scale)]
                control = None
                if scale == 1.0:
                    control = (shares[f"{one} + random {other}"] + shares[f"{other} + random {one}"]) / 2
                best = max((shares[one], shares[other]), key=lambda of_one: float(np.nanmean(of_one)))
                gain = ratio_row(GAIN, pair - best, whole - best, work.seed, **keys)
                rows += [
                    accuracy_row(ACCURACY, pair, control, work.seed, **keys),
                    row(MORE, pair - best, None if control is None else control - best, work.seed, **keys),
                    gain,
                ]
                table[s, 0, i, j] = table[s, 0, j, i] = float(np.nanmean(pair))
                table[s, 1, i, j] = table[s, 1, j, i] = float(np.nanmean(pair - best))
                table[s, 2, i, j] = table[s, 2, j, i] = float("nan") if gain["value"] is None else gain["value"]
        array = as_array(
            table, ("scale", "number", "vector", "partner"), "pairs inserted together; diagonal: alone",
            scale=[f"{scale:g}" for scale in scales],
            number=["accuracy", "gain over the better one", "normalised gain"],
            vector=list(alone), partner=list(alone),
        )  # fmt: skip
        notes = [
            f"acc_all: {'the jointly trained vector' if self.joint else 'all vectors together at scale 1'}. The "
            "normalised gain has no value where acc_all equals the better one's accuracy, no interval where it may.",
            "Control of a vector alone: a norm-matched random one. Of a pair (scale 1): one of the two replaced by a "
            "norm-matched random one, the mean of both ways.",
            "Intervals: over problems, runs of one problem together; the better one of a pair is chosen on the same "
            "problems.",
            f"Completions at temperature {self.temperature:g}, {self.k} a prompt; a cut-off completion is wrong.",
        ]  # fmt: skip
        return Findings(
            rows, f"each vector's own token mask ({masks.pop()}), while decoding", {"pairs": array}, notes=notes
        )

    def _policies(self, work: Work, alone: Mapping[str, SteeringVector]) -> list[_Policy]:
        """All that is decoded, by name: each vector, each pair, all together, and the controls."""
        random = {name: work.controls(vector, 1, salt)[0] for salt, (name, vector) in enumerate(alone.items())}
        found = [_Policy("base", ()), *(_Policy(name, (vector,)) for name, vector in work.vectors.items())]
        found += [_Policy(f"{name}, random", (vector,)) for name, vector in random.items()]
        for scale in dict.fromkeys([1.0, *map(float, self.scales)]):
            for names in [*combinations(alone, 2), tuple(alone)]:
                found.append(_Policy(_label(names, scale), tuple(alone[name] for name in names), scale))
        for one, other in combinations(alone, 2):
            found.append(_Policy(f"{one} + random {other}", (alone[one], random[other])))
            found.append(_Policy(f"{other} + random {one}", (alone[other], random[one])))
        return list({policy.name: policy for policy in found}.values())  # of two vectors, the pair is all of them

    def _shares(self, work: Work, policies: Sequence[_Policy]) -> dict[str, NDArray[np.float64]]:
        """Policy -> [N] share of right completions of each prompt."""
        for policy in policies:
            _merged(policy)  # vectors that can't be together: said before anything is decoded
        shares: dict[str, NDArray[np.float64]] = {}
        with Judge(work, self.verifier) as judge:
            for start in range(0, len(policies), TOGETHER):
                chosen = policies[start : start + TOGETHER]
                groups = self._decoded(work, chosen, start, len(policies))
                found = judge.shares(f"policies {start} to {start + len(chosen) - 1}", groups)
                shares.update(zip((p.name for p in chosen), found.reshape(len(chosen), -1), strict=True))
        return shares

    def _decoded(self, work: Work, chosen: Sequence[_Policy], start: int, total: int) -> list[RolloutGroup]:
        """Policy after policy the groups of all prompts, as rows of one batch."""
        n = len(work.prompts)
        prompts = [replace(prompt, policy=number) for number in range(len(chosen)) for prompt in work.prompts]

        def compute() -> Part:
            work.engine.release()  # samplers run the model as it is
            loaded = work.loaded
            mask = next(iter(work.vectors.values())).token_mask
            models = [SteeredModel(loaded.base, _merged(policy), loaded.layout, mask) for policy in chosen]
            params = SamplingParams(self.temperature, self.max_tokens)
            k = self.k if self.temperature > 0 else 1
            found: dict[int, RolloutGroup] = {}
            drawer = registry.build("samplers", self.sampler)
            model = stack(models)
            for index, group in drawer.stream(model, loaded.tokenizer, prompts, k, params, work.seed):
                found[index] = group
                work.progress("sampling, policies x prompts", start * n + len(found), total * n)
            texts = [[[r.text, r.finish_reason] for r in found[index].rollouts] for index in range(len(prompts))]
            return {"texts": texts}

        texts = work.part(f"policies {start} to {start + len(chosen) - 1}", compute)["texts"]
        return [
            RolloutGroup(p.example, p.text, p.ids, tuple(Rollout((), (), reason, text) for text, reason in of_prompt))
            for p, of_prompt in zip(prompts, texts, strict=True)
        ]

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.composition import panels

        return panels(result)


def _label(names: Sequence[str] | Mapping[str, Any], scale: float) -> str:
    return f"{' + '.join(names)} x {scale:g}"


def _merged(policy: _Policy) -> dict[HookPoint, Intervention]:
    """Hook point -> the sum of what the vectors add there.

    Raises:
        VectorError: if two of them have no sum at a hook point.
    """
    at: dict[HookPoint, list[Intervention]] = {}
    for vector in policy.vectors:
        for point, item in vector.to_interventions().items():
            at.setdefault(point, []).append(item)
    try:
        return {point: Summed(members, policy.scale) for point, members in at.items()}
    except VectorError as error:
        raise VectorError(f"{policy.name}: {error}") from None
