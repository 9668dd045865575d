"""A completion's first token given to the model: which token, and what the base or a vector makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steerkit.analysis.accuracy import Judge, accuracy_row, ratio_row
from steerkit.analysis.parts import Part
from steerkit.analysis.prompts import read_prompts
from steerkit.analysis.statistics import row
from steerkit.analysis.work import Work
from steerkit.datasets import PromptTemplate
from steerkit.errors import DataError, SteerkitError, VectorError
from steerkit.evaluation.arms import Protocol
from steerkit.evaluation.openings import rank_openings
from steerkit.rollouts import EncodedPrompt
from steerkit.types import RolloutGroup
from steerkit.vectors import SteeringVector

ACCURACY = "accuracy"
RECOVERED = "share of the vector's gain"
MORE = "accuracy, retrained - base, both with the token prefilled"
CANDIDATES = 8
"""Of the base's likeliest first tokens, those that are tried on a validation split."""
TRIED_ON = 64
"""Problems at most of that split."""


def single_token(work: Work, text: str) -> int:
    """The id of a text that is one token.

    Raises:
        SteerkitError: if it is none or several.
    """
    ids = work.loaded.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise SteerkitError(f"{text!r} is {len(ids)} tokens of this model, and one is prefilled: give a single token.")
    return int(ids[0])


def likeliest(work: Work, scores: Tensor) -> int:
    """Of [V] scores the best token that can be prefilled: none that ends the text, and none without a text."""
    tokenizer = work.loaded.tokenizer
    special = set(tokenizer.all_special_ids)
    for token in scores.argsort(descending=True).tolist():
        if token < len(tokenizer) and token not in special and tokenizer.decode([token]):
            return int(token)
    raise SteerkitError("The tokenizer has special tokens only: there is none to prefill.")


def trained_opening(work: Work, vector: SteeringVector, place: str) -> str:
    """What stood behind the prompts of a retrained vector, beyond the analysis's own template.

    Raises:
        VectorError: if it was trained without, or on another base than the analysis's vectors.
    """
    try:
        vector.check_fits(work.loaded.base)
    except VectorError as error:
        raise VectorError(f"retrained: {error}") from None
    bases = {one.metadata.fingerprint for one in work.vectors.values()}
    if vector.metadata.fingerprint and "" not in bases and vector.metadata.fingerprint not in bases:
        raise VectorError(f"retrained: {place} was trained on another base than {', '.join(work.vectors)}.")
    prefix = PromptTemplate.from_dict(vector.metadata.receipts.get("prompt", {})).assistant_prefix
    own = work.template.assistant_prefix if work.template else ""
    opening = prefix.removeprefix(own)
    if not opening or not prefix.startswith(own):
        raise VectorError(
            f"retrained: {place} was trained behind {prefix!r}, which adds no token to the prompts here: train it with "
            "--model.template.assistant_prefix TOKEN."
        )
    return opening


def best_opening(
    work: Work, spec: str | dict[str, Any], max_tokens: int, verifier: str | dict[str, Any], sampler: str
) -> tuple[int, str]:
    """(id of the opening with the best accuracy on a validation split, that in words).

    Raises:
        SteerkitError: if the prompts came encoded: then their template isn't known.
    """
    template = work.template
    if template is None:
        raise SteerkitError("validation needs prompts that are examples with a template, and these came encoded.")

    def compute() -> Part:
        examples, source = read_prompts(spec, "validation", TRIED_ON, answers=True)
        work.engine.release()  # samplers run the model as it is
        work.progress("openings on validation", 0, 1)
        protocol = Protocol(max_tokens=max_tokens - 1, seed=work.seed, verifier=verifier, sampler=sampler)
        ranked = rank_openings(work.loaded, examples, protocol, template, CANDIDATES)
        work.progress("openings on validation", 1, 1)
        for best in ranked:
            with suppress(SteerkitError):  # a text that is read as several tokens
                token = single_token(work, best.text)
                break
        else:
            raise DataError("None of the base's likeliest first tokens is a text that could be prefilled.")
        words = f"best of {len(ranked)} on {len(examples)} problems {source}: {best.accuracy:.3g}"
        return {"token": token, "words": words}

    part = work.part(f"opening by {spec}", compute)
    return int(part["token"]), str(part["words"])


@dataclass(frozen=True)
class Arms:
    """Accuracies of a vector at parts of the positions, and of what has the token given.

    Args:
        judge: of the completions.
        temperatures: of the completions; 0 is greedy.
        k: completions of a prompt at temperatures above 0.
        max_tokens: their length limit, a prefilled token among them.
        sampler: a plugin of group ``steerkit.samplers``.
    """

    work: Work
    judge: Judge
    temperatures: Sequence[float]
    k: int
    max_tokens: int
    sampler: str

    def rows(
        self, name: str, vector: SteeringVector, token: int, favourite: int, again: SteeringVector | None
    ) -> list[dict[str, Any]]:
        """Accuracy of each arm, and its share of the vector's gain.

        Args:
            name: the vector's.
            token: that is prefilled.
            favourite: the base's likeliest one, prefilled as control.
            again: the vector that was trained behind ``token``.
        """
        random, shown = self.work.controls(vector, 1)[0], f"{self.work.readout.token(token)} prefilled"
        rows = []
        for temperature in dict.fromkeys(map(float, self.temperatures)):

            def of(label: str, one: SteeringVector | None, prefilled: int | None = None) -> NDArray[np.float64]:
                return self._shares(label, one, temperature, prefilled)  # noqa: B023 (called within the loop)

            base, whole = of("base", None), of(name, vector)
            arms = {"base": (base, None), "vector": (whole, of(f"{name}, random", random))}
            for arm, mask in (("first only", "first_generated"), ("not first", "not_first_generated")):
                arms[f"vector, {arm}"] = (
                    of(f"{name}, {arm}", vector.with_mask(mask)),
                    of(f"{name}, random, {arm}", random.with_mask(mask)),
                )
            arms[f"base, {shown}"] = of("base", None, token), of("base", None, favourite)
            if again is not None:
                other = self.work.controls(again, 1)[0]
                arms[f"retrained, {shown}"] = of("retrained", again, token), of("retrained, random", other, token)
            for arm, (shares, control) in arms.items():
                keys: dict[str, Any] = {"vector": name, "arm": arm, "temperature": temperature}
                rows.append(accuracy_row(ACCURACY, shares, control, self.work.seed, **keys))
                if control is not None and arm != "vector":
                    rows.append(self._recovered(shares - base, control - base, whole - base, keys))
                if control is not None and arm.startswith("retrained"):
                    behind = arms[f"base, {shown}"][0]
                    rows.append(row(MORE, shares - behind, control - behind, self.work.seed, **keys))
        return rows

    def _recovered(
        self, gains: NDArray[np.float64], by_chance: NDArray[np.float64], whole: NDArray[np.float64], keys: Any
    ) -> dict[str, Any]:
        found, control = (ratio_row(RECOVERED, part, whole, self.work.seed, **keys) for part in (gains, by_chance))
        return found | {"control": control["value"], "control_ci95": control["ci95"]}

    def _shares(
        self, label: str, vector: SteeringVector | None, temperature: float, token: int | None
    ) -> NDArray[np.float64]:
        """[N] of each prompt the share of right completions."""
        label = label if token is None else f"{label}, token {token} prefilled"
        prompts = [p if token is None else self._prefilled(p, token) for p in self.work.prompts]
        groups = self.work.generations(
            label, vector, self.k if temperature > 0 else 1, temperature, self.max_tokens - (token is not None),
            self.sampler, prompts,
        )  # fmt: skip
        if token is not None:
            groups = [_said(group, str(self.work.loaded.tokenizer.decode([token]))) for group in groups]
        return self.judge.shares(f"{label} at {temperature:g}", groups)

    def _prefilled(self, prompt: EncodedPrompt, token: int) -> EncodedPrompt:
        text = prompt.text + str(self.work.loaded.tokenizer.decode([token]))
        segments = (*prompt.segments, "prefill") if prompt.segments else ()
        return replace(prompt, text=text, ids=(*prompt.ids, token), segments=segments)


def _said(group: RolloutGroup, opening: str) -> RolloutGroup:
    """The opening is part of what the model says, whoever wrote it."""
    return replace(group, rollouts=tuple(replace(r, text=opening + r.text) for r in group.rollouts))
