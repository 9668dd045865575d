"""Whether a vector works through the first generated token: changes by position, substitutions, accuracy (C3).

arXiv 2509.06608: the last layer's vector substitutes the first generated token, and the base with that token
prefilled recovers most of its gain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerkit.analysis.accuracy import Judge, accuracy_row, ratio_row
from steerkit.analysis.base import Analyzer
from steerkit.analysis.parts import Part
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import by_problem, row
from steerkit.analysis.texts import Text, of_groups
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.rollouts import EncodedPrompt
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

DISTANCE = "total variation of the next token, steered against base"
CHANGE = "probability of the generated token, steered - base"
ACCURACY = "accuracy"
RECOVERED = "share of the vector's gain"


@final
@dataclass(frozen=True)
class FirstToken(Analyzer):
    """Does a vector work through the first generated token: changes by position, substitutions, accuracy.

    Args:
        token: text prefilled in the prompt, one token; empty: the token that the vector raises most at the first position.
        retrained: name of the vector that was trained on the prompt with that token prefilled; empty: none.
        temperatures: of the completions that are judged; 0 is greedy.
        k: completions of a prompt at temperatures above 0.
        max_tokens: length limit of completions.
        controls: norm-matched random vectors; the first is also decoded.
        top: tokens and pairs listed.
        verifier: of the completions.
        sampler: of the completions.
    """

    name: ClassVar[str] = "first_token"
    needs_answers: ClassVar[bool] = True

    token: str = ""
    retrained: str = ""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 1.0])
    k: int = 4
    max_tokens: int = 96
    controls: int = 2
    top: int = 10
    verifier: str | dict[str, Any] = "math"
    sampler: str = "fast"

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise SteerkitError(f"max_tokens must be at least 2, got {self.max_tokens}.")
        for name in ("k", "controls", "top"):
            if getattr(self, name) < 1:
                raise SteerkitError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.temperatures or min(self.temperatures) < 0:
            raise SteerkitError(f"temperatures must be 0 (greedy) or more, got {self.temperatures}.")

    def analyze(self, work: Work) -> Findings:
        if self.retrained and self.retrained not in work.vectors:
            raise SteerkitError(
                f"No vector is named {self.retrained!r} (retrained): there are {', '.join(work.vectors)}."
            )
        vectors = {name: vector for name, vector in work.vectors.items() if name != self.retrained}
        if not vectors:
            raise VectorError("first_token takes a vector beside the retrained one.")
        asked = self._asked(work)
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Array] = {}
        tables: dict[str, list[dict[str, Any]]] = {"pairs": [], "first": []}
        with Judge(work, self.verifier) as judge:
            for name, vector in vectors.items():
                texts = of_groups(work.generations(name, vector, 1, 1.0, self.max_tokens, self.sampler))
                found = self._forced(work, name, vector, texts)
                random = [
                    self._forced(work, f"{name}, control {k}", control, texts)
                    for k, control in enumerate(work.controls(vector, self.controls))
                ]
                rows += self._changes(work, name, texts, found, random)
                tables["pairs"] += self._pairs(work, name, found)
                tables["first"] += self._openings(work, name, found)
                arrays[name] = self._curve(found, random)
                token = asked if asked is not None else int((found["first"][1] - found["first"][0]).argmax())
                rows += self._accuracies(work, judge, name, vector, token)
        notes = [
            "First: the position that predicts the first generated token; other: all later ones. Both runs read the "
            "vector's own completions (temperature 1). Control: norm-matched random vectors on the same tokens.",
            "Pairs: the base's favourite at a position -> the token that the vector raises most there, where the "
            "steered favourite is another one.",
            "first only / not first: the vector at the first position alone / at all but it, whatever its own mask. "
            "prefilled: the token behind the prompt, max_tokens one less. Control of accuracies: the first random "
            "vector in the vector's place; of the prefilled base, the base's own favourite first token prefilled.",
            "The share of the gain has no interval where the vector's gain may be 0.",
        ]  # fmt: skip
        if not self.retrained:
            notes.append("No vector retrained on the prefilled prompt was given (--retrained).")
        return Findings(rows, "positions that predict generated tokens", arrays, tables, notes)

    def _asked(self, work: Work) -> int | None:
        """The id of the setting's token; None: it is to be found."""
        if not self.token:
            return None
        ids = work.loaded.tokenizer.encode(self.token, add_special_tokens=False)
        if len(ids) != 1:
            raise SteerkitError(
                f"token {self.token!r} is {len(ids)} tokens of this model: give one that is a single token."
            )
        return int(ids[0])

    def _forced(self, work: Work, label: str, vector: SteeringVector, texts: Sequence[Text]) -> dict[str, Any]:
        """tv, change: [texts, steps] (NaN behind the end); would, boosted: [texts, steps] ids, -1 where the favourite
        stays; first: [2, V] mean distribution at the first position, base and steered."""
        last = HookPoint(work.n_layers - 1)

        def compute() -> Part:
            steps = max(len(text.ids) - text.prompt_length for text in texts)
            tv = torch.full((len(texts), steps), float("nan"))
            change = tv.clone()
            would = torch.full((len(texts), steps), -1)
            boosted = would.clone()
            first = torch.zeros(2, work.readout.vocabulary, dtype=torch.float64)
            done = 0
            for batch in work.batches(texts):
                runs = [work.engine.run(batch, one, [last])[last] for one in (None, vector)]
                for k, index in enumerate(batch.indices):
                    at = slice(texts[index].prompt_length - 1, -1)
                    base, steered = (
                        torch.softmax(work.readout.logits(batch.unpad(hidden, k)[at]), -1) for hidden in runs
                    )
                    n = len(base)
                    targets = torch.tensor(texts[index].ids[-n:], device=base.device)[:, None]
                    gap = steered - base
                    tv[index, :n] = gap.abs().sum(-1).cpu() / 2
                    change[index, :n] = gap.gather(1, targets)[:, 0].cpu()
                    moved = (base.argmax(-1) != steered.argmax(-1)).cpu()
                    would[index, :n] = torch.where(moved, base.argmax(-1).cpu(), -1)
                    boosted[index, :n] = torch.where(moved, gap.argmax(-1).cpu(), -1)
                    first += torch.stack([base[0], steered[0]]).double().cpu()
                done += len(batch.texts)
                work.progress(f"first token, {label}", done, len(texts))
            return {"tv": tv, "change": change, "would": would, "boosted": boosted, "first": first / len(texts)}

        return work.part(f"first token {label}, {len(texts)} texts", compute)

    def _changes(
        self, work: Work, name: str, texts: Sequence[Text], found: dict[str, Any], random: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        ids = [text.id for text in texts]
        rows = []
        for metric, key in ((DISTANCE, "tv"), (CHANGE, "change")):
            for where, columns in (("first", slice(0, 1)), ("other", slice(1, None))):
                values = by_problem(_mean(found[key][:, columns]), ids)
                control = sum(by_problem(_mean(part[key][:, columns]), ids) for part in random) / len(random)
                rows.append(row(metric, values, control, work.seed, vector=name, position=where))
        return rows

    def _pairs(self, work: Work, name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
        table = []
        for where, columns in (("first", slice(0, 1)), ("other", slice(1, None))):
            would, boosted = (
                found["would"][:, columns].flatten().tolist(),
                found["boosted"][:, columns].flatten().tolist(),
            )
            n = int((~found["tv"][:, columns].isnan()).sum())
            counts = Counter(pair for pair in zip(would, boosted, strict=True) if pair[0] >= 0)
            for (one, other), count in counts.most_common(self.top):
                table.append(
                    {"vector": name, "position": where, "would be": work.readout.token(one),
                     "boosted": work.readout.token(other), "count": count, "positions": n}
                )  # fmt: skip
        return table

    def _openings(self, work: Work, name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
        """The first token's distribution, base and steered: the tokens with most probability in either."""
        first: Tensor = found["first"]
        best = first.max(0).values.topk(min(self.top, first.shape[1])).indices.tolist()
        return [
            {"vector": name, "token_id": token, "token": work.readout.token(token),
             "base probability": float(first[0, token]), "steered probability": float(first[1, token])}
            for token in best
        ]  # fmt: skip

    def _curve(self, found: dict[str, Any], random: Sequence[dict[str, Any]]) -> Array:
        control = torch.stack([part["tv"] for part in random]).mean(0)
        curve = torch.stack([found["tv"].nanmean(0), control.nanmean(0)])
        return as_array(curve, ("run", "step"), DISTANCE, run=["vector", "random vectors"])

    def _accuracies(
        self, work: Work, judge: Judge, name: str, vector: SteeringVector, token: int
    ) -> list[dict[str, Any]]:
        random = work.controls(vector, 1)[0]
        prompts = {True: [self._prefilled(work, p, token) for p in work.prompts], False: list(work.prompts)}
        rows = []
        for temperature in dict.fromkeys(map(float, self.temperatures)):

            def of(label: str, one: SteeringVector | None, given: Sequence[EncodedPrompt], fewer: int) -> Any:
                k = self.k if temperature > 0 else 1  # noqa: B023
                groups = work.generations(
                    f"{label}",
                    one,
                    k,
                    temperature,
                    self.max_tokens - fewer,
                    self.sampler,
                    given,  # noqa: B023
                )
                return judge.shares(f"{label} at {temperature:g}", groups)  # noqa: B023

            shown = work.readout.token(token)
            arms: dict[str, tuple[NDArray[np.float64], Any]] = {
                "base": (of("base", None, prompts[False], 0), None),
                "vector": (of(name, vector, prompts[False], 0), of(f"{name}, random", random, prompts[False], 0)),
            }
            for arm, mask in (("first only", "first_generated"), ("not first", "not_first_generated")):
                pair = [of(f"{label}, {arm}", one.with_mask(mask), prompts[False], 0)
                        for label, one in ((name, vector), (f"{name}, random", random))]  # fmt: skip
                arms[f"vector, {arm}"] = (pair[0], pair[1])
            favourite = self._favourite(work)
            own = [self._prefilled(work, prompt, favourite) for prompt in work.prompts]
            arms[f"base, {shown} prefilled"] = (
                of(f"base, {token} prefilled", None, prompts[True], 1),
                of(f"base, {favourite} prefilled", None, own, 1),
            )
            if self.retrained:
                again = work.vectors[self.retrained]
                arms[f"retrained, {shown} prefilled"] = (
                    of(f"retrained, {token} prefilled", again, prompts[True], 1),
                    of(f"retrained, random, {token} prefilled", work.controls(again, 1, 1)[0], prompts[True], 1),
                )
            base, whole = arms["base"][0], arms["vector"][0]
            for arm, (shares, control) in arms.items():
                keys: dict[str, Any] = {"vector": name, "arm": arm, "temperature": temperature}
                rows.append(accuracy_row(ACCURACY, shares, control, work.seed, **keys))
                if arm not in ("base", "vector"):
                    rows.append(ratio_row(RECOVERED, shares - base, whole - base, work.seed, **keys))
        return rows

    def _favourite(self, work: Work) -> int:
        """The base's most probable first token, by its mean distribution over the prompts."""
        last = HookPoint(work.n_layers - 1)

        def compute() -> Part:
            from steerkit.analysis.texts import of_prompts

            total = torch.zeros(work.readout.vocabulary, dtype=torch.float64)
            for batch in work.batches(of_prompts(work.prompts)):
                hidden = work.engine.run(batch, read=[last])[last][:, -1]
                total += torch.softmax(work.readout.logits(hidden), -1).sum(0).double().cpu()
            return {"favourite": int(total.argmax())}

        return int(work.part("the base's favourite first token", compute)["favourite"])

    def _prefilled(self, work: Work, prompt: EncodedPrompt, token: int) -> EncodedPrompt:
        text = prompt.text + str(work.loaded.tokenizer.decode([token]))
        segments = (*prompt.segments, "prefill") if prompt.segments else ()
        return replace(prompt, text=text, ids=(*prompt.ids, token), segments=segments)

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.first_token import panels

        return panels(result)


def _mean(values: Tensor) -> list[float]:
    """[texts] means over the positions there are; NaN where there is none."""
    found: list[float] = values.nanmean(-1).tolist() if values.shape[1] else [float("nan")] * len(values)
    return found
