"""Whether a vector works through the first generated token: changes by position, substitutions, accuracy (C3).

arXiv 2509.06608: the last layer's vector substitutes the first generated token, and the base with that token
prefilled recovers most of its gain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from steerkit.analysis.accuracy import Judge
from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.next_token import NONE, Opening, along
from steerkit.analysis.openings import Arms, best_opening, likeliest, single_token, trained_opening
from steerkit.analysis.parts import Part
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import by_problem, row
from steerkit.analysis.texts import Text, of_groups
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

DISTANCE = "total variation of the next token, steered against base"
CHANGE = "probability of the generated token, steered - base"
MOVED = "share of positions where the likeliest token is another one"
OPENING = "probability of the first generated token"
PLACES = {"first": slice(0, 1), "other": slice(1, None)}


@final
@dataclass(frozen=True)
class FirstToken(Analyzer):
    """Does a vector work through the first generated token: changes by position, substitutions, accuracy.

    Args:
        token: text of the one token that is prefilled behind the prompt; empty: the one that ``retrained`` was trained
            behind, else that of ``validation``, else the one whose probability at the first position the vector
            raises most.
        validation: data set or file, on whose validation split the token is chosen: of the base's likeliest first
            tokens the one with the best accuracy when prefilled.
        retrained: folder or hub id of a vector trained on prompts with the token prefilled (``steerkit fit`` with
            ``--model.template.assistant_prefix``); adds its row.
        temperatures: of the completions that are judged; 0 is greedy.
        k: completions of a prompt at temperatures above 0.
        max_tokens: length limit of completions, the prefilled token among them.
        controls: norm-matched random vectors; the first is also decoded.
        top: first tokens and pairs that are listed.
        verifier: of the completions.
        sampler: of the completions.
    """

    name: ClassVar[str] = "first_token"
    needs_answers: ClassVar[bool] = True

    token: str = ""
    validation: str | dict[str, Any] = ""
    retrained: str = ""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 1.0])
    k: int = 4
    max_tokens: int = 96
    controls: int = 2
    top: int = 8
    verifier: str | dict[str, Any] = "math"
    sampler: str = "fast"

    def __post_init__(self) -> None:
        at_least_one(self, "k", "controls", "top")
        if self.max_tokens < 2:
            raise SteerkitError(f"max_tokens must be at least 2, got {self.max_tokens}.")
        if not self.temperatures or min(self.temperatures) < 0:
            raise SteerkitError(f"temperatures must be 0 (greedy) or more, got {self.temperatures}.")

    def inputs(self) -> Mapping[str, str]:
        return {} if self._again is None else {"retrained": self._again.digest()}

    @cached_property
    def _again(self) -> SteeringVector | None:
        return SteeringVector.from_pretrained(self.retrained) if self.retrained else None

    def analyze(self, work: Work) -> Findings:
        asked, why = self._asked(work)
        base = Opening(work, "base", None)
        rows = self._openings(work, "base", base, [])
        arrays: dict[str, Array] = {}
        pairs: list[dict[str, Any]] = []
        said: list[str] = []
        with Judge(work, self.verifier) as judge:
            for name, vector in work.vectors.items():
                controls = {f"{name}, control {k}": one for k, one in enumerate(work.controls(vector, self.controls))}
                texts = of_groups(work.generations(name, vector, 1, 1.0, self.max_tokens, self.sampler))
                found = along(work, name, vector, texts)
                random = [along(work, label, control, texts) for label, control in controls.items()]
                rows += _changes(work, name, texts, found, random)
                arrays[name] = _curve(texts, found, random, work.seed)
                pairs += self._pairs(work, name, found)
                opening = Opening(work, name, vector)
                rise = opening.mean() - base.mean()
                token = likeliest(work, rise) if asked is None else asked
                others = [Opening(work, label, control) for label, control in controls.items()]
                rows += self._openings(work, name, opening, others, (token,))
                arms = Arms(work, judge, self.temperatures, self.k, self.max_tokens, self.sampler)
                rows += arms.rows(name, vector, token, likeliest(work, base.mean()), self._again)
                said.append(f"{work.readout.token(token)} for {name} ({why})")
        notes = [
            f"Prompts: {_template_in_words(work)}.",
            "first: the position that predicts the first generated token (the prompt's last); other: all later ones. "
            "Base and steered run read the vector's own completions (temperature 1). Control: norm-matched random "
            "vectors on the same tokens.",
            "Pairs: the base's likeliest token -> the one whose probability rises most, where the likeliest one is "
            "another under the vector.",
            f"Prefilled token: {'; '.join(said)}. It counts as one of max_tokens, and as a part of what is judged.",
            "first only, not first: the vector at the first position alone, at all but that, whatever its own mask. "
            "Control of an accuracy: the same with a norm-matched random vector; of the base with a token prefilled: "
            "with the base's own likeliest first token prefilled.",
            "Share of the gain: (arm - base) / (vector - base), problems resampled in pairs; no interval where the "
            "vector's gain may be 0.",
        ]  # fmt: skip
        if self._again is None:
            notes.append(
                "No vector retrained on the prefilled prompt (--retrained): steerkit fit with the vector's config and "
                "--model.template.assistant_prefix TOKEN trains one."
            )
        return Findings(rows, "positions that predict generated tokens", arrays, {"pairs": pairs}, notes)

    def _asked(self, work: Work) -> tuple[int | None, str]:
        """The prefilled token (None: each vector has its own), and why that one."""
        behind = None if self._again is None else trained_opening(work, self._again, self.retrained)
        if self.token and behind not in (None, self.token):
            raise SteerkitError(f"token is {self.token!r}, and {self.retrained} was trained behind {behind!r}.")
        if self.token or behind:
            return single_token(work, self.token or str(behind)), "asked for" if self.token else "the retrained one's"
        if self.validation:
            return best_opening(work, self.validation, self.max_tokens, self.verifier, self.sampler)
        return None, "it rises most at the first position"

    def _openings(
        self, work: Work, name: str, opening: Opening, random: Sequence[Opening], more: Sequence[int] = ()
    ) -> list[dict[str, Any]]:
        """The likeliest first tokens, and those of ``more``."""
        best = opening.mean().topk(min(self.top, work.readout.vocabulary)).indices.tolist()
        tokens = list(dict.fromkeys([*best, *more]))
        values = opening.of(tokens)
        control = torch.stack([one.of(tokens) for one in random]).mean(0) if random else None
        return [
            row(OPENING, values[:, k].tolist(), None if control is None else control[:, k].tolist(), work.seed,
                vector=name, token=work.readout.token(token), token_id=token)
            for k, token in enumerate(tokens)
        ]  # fmt: skip

    def _pairs(self, work: Work, name: str, found: Part) -> list[dict[str, Any]]:
        table = []
        for place, columns in PLACES.items():
            ends = (found[key][:, columns].flatten().tolist() for key in ("favourite", "boosted"))
            counts = Counter(pair for pair in zip(*ends, strict=True) if pair[0] != NONE)
            n = int((~found["distance"][:, columns].isnan()).sum())
            for (one, other), count in counts.most_common(self.top):
                table.append(
                    {"vector": name, "position": place, "would be": work.readout.token(one),
                     "boosted": work.readout.token(other), "count": count, "positions": n}
                )  # fmt: skip
        return table

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.first_token import panels

        return panels(result)


def _changes(work: Work, name: str, texts: Sequence[Text], found: Part, random: Sequence[Part]) -> list[dict[str, Any]]:
    ids = [text.id for text in texts]
    rows = []
    for metric, key in ((DISTANCE, "distance"), (CHANGE, "change"), (MOVED, "moved")):
        for place, columns in PLACES.items():
            values, *control = (by_problem(_mean(part[key][:, columns]), ids) for part in (found, *random))
            rows.append(row(metric, values, sum(control) / len(control), work.seed, vector=name, position=place))
    return rows


def _mean(values: Tensor) -> list[float]:
    """[texts] means over the positions there are; NaN where there is none."""
    found: list[float] = values.nanmean(-1).tolist() if values.shape[1] else [float("nan")] * len(values)
    return found


def _curve(texts: Sequence[Text], found: Part, random: Sequence[Part], seed: int) -> Array:
    """[number, S] the distance at each step, over the problems whose completion is that long."""
    ids = [text.id for text in texts]
    control = torch.stack([part["distance"] for part in random]).mean(0)
    numbers = []
    for step in range(control.shape[1]):
        own, others = (
            row("", by_problem(part[:, step].tolist(), ids), seed=seed) for part in (found["distance"], control)
        )
        numbers.append([own["value"], *(own["ci95"] or (None, None)), others["value"], own["n"]])
    table = np.array(numbers, dtype=np.float64).reshape(-1, 5).T
    return as_array(table, ("number", "step"), DISTANCE, number=["value", "low", "high", "control", "n"])


def _template_in_words(work: Work) -> str:
    if work.template is None:
        return "handed in encoded, so their template is not known here"
    facts = {key: value for key, value in work.template.to_dict().items() if value not in ("", [], None)}
    return f"template {facts.pop('style')}" + "".join(f", {key} {value!r}" for key, value in facts.items())
