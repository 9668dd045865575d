"""Of which language the tokens are that a vector makes likelier or less likely, layer by layer (C5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.differences import mean_difference, problems
from steerkit.analysis.lexicon import LEXICON
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import array_intervals, row
from steerkit.analysis.texts import Text, of_groups
from steerkit.analysis.token_classes import NO_LANGUAGE, classify
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

Whose = Literal["base", "steered"]
FOREIGN = "foreign"
RISING, FALLING = "share of the rising tokens", "share of the falling tokens"
LIFT = "mean change of the class's logits (standard deviations of the vocabulary)"
MASS = "lens probability of the class, steered - base"
METRICS = (RISING, FALLING, LIFT, MASS)


@final
@dataclass(frozen=True)
class TokenLanguage(Analyzer):
    """Tokens whose logit rises or falls at each layer, by script and language, against random vectors.

    Args:
        top: rising and falling tokens that are counted for each problem and layer.
        positions: token mask of the positions that are averaged over.
        texts: whose completions (temperature 1) all runs are made on: ``base`` or ``steered``.
        max_tokens: their length limit.
        home: the class that is not foreign; foreign is every language but it.
        lexicon: class -> words that belong to it, before the lists that come with steerkit.
        controls: norm-matched random vectors.
        sampler: of the completions.
    """

    name: ClassVar[str] = "token_language"

    top: int = 50
    positions: str = "generated"
    texts: Whose = "base"
    max_tokens: int = 48
    home: str = "english"
    lexicon: dict[str, list[str]] | None = None
    controls: int = 4
    sampler: str = "transformers"

    def __post_init__(self) -> None:
        TokenMask(self.positions)
        if self.texts not in ("base", "steered"):
            raise SteerkitError(f"texts must be 'base' or 'steered', got {self.texts!r}.")
        at_least_one(self, "top", "max_tokens", "controls")

    def analyze(self, work: Work) -> Findings:
        classes = classify(work.loaded.tokenizer, work.readout.vocabulary, self.lexicon)
        kinds = sorted(set(classes), key=lambda kind: (kind in NO_LANGUAGE, kind))
        languages = [kind for kind in kinds if kind not in NO_LANGUAGE]
        if self.home not in {*kinds, *LEXICON, *(self.lexicon or {})}:
            raise SteerkitError(f"The vocabulary has no token of class {self.home!r}: home must be one of "
                                f"{', '.join(languages)}.")  # fmt: skip
        foreign = [kind for kind in languages if kind != self.home]
        member = _membership(classes, kinds, foreign).to(work.loaded.base.device)  # [V, C]
        names = [*kinds, *([FOREIGN] if foreign else [])]
        rows: list[dict[str, Any]] = []
        tables: dict[str, list[dict[str, Any]]] = {"tokens": [], "classes": _class_table(work, classes, kinds)}
        arrays: dict[str, Array] = {}
        for name, vector in work.vectors.items():
            whose = vector if self.texts == "steered" else None
            label = name if self.texts == "steered" else "base"
            texts = of_groups(work.generations(label, whose, 1, 1.0, self.max_tokens, self.sampler))
            base = self._masses(work, f"{label}, base", None, texts, member)
            values, mean = self._measure(work, name, vector, texts, member, base)
            of_controls = [
                self._measure(work, f"{name}, control {k}", control, texts, member, base)[0]
                for k, control in enumerate(work.controls(vector, self.controls))
            ]
            control = {metric: torch.stack([one[metric] for one in of_controls]).nanmean(0) for metric in METRICS}
            for metric in METRICS:
                rows += _rows(metric, name, names, values[metric], control[metric], work.seed)
                arrays[f"{metric} {name}"] = _array(metric, names, values[metric], control[metric], work.seed)
            tables["tokens"] += self._tokens(work, name, mean, classes)
        share = member.float().mean(0).tolist()
        rows += [row("share of the vocabulary", value, kind=kind) for kind, value in zip(names, share, strict=True)]
        notes = [
            f"Rising and falling: the {min(self.top, len(classes))} tokens with the largest and smallest score of the "
            "induced difference (its mean over the problem's positions) through the final norm's gain and the "
            "unembedding.",
            "Probability: softmax of the lens at each layer, which norms the stream; base and steered, each position.",
            "Control: norm-matched random vectors in the same places, on the same tokens. Intervals: over problems.",
            "Classes: Unicode script, and word lists for Latin letters. The vocabulary's shares are exact. "
            f"{FOREIGN}: {', '.join(foreign) or 'no class'}.",
        ]
        where = f"the token mask {self.positions!r} of prompt and completion of the {self.texts} model at temperature 1"
        return Findings(rows, where, arrays, tables, notes)

    def _measure(
        self,
        work: Work,
        name: str,
        vector: SteeringVector,
        texts: Sequence[Text],
        member: Tensor,
        base: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Metric -> [N, L, C], NaN at layers where nothing differs; and the [L, D] mean difference."""
        mean, _ = mean_difference(work, name, vector, texts, work.outputs(), self.positions)
        mass = self._masses(work, name, vector, texts, member)
        shape = (*mean.shape[:2], member.shape[1])
        found = {metric: torch.full(shape, float("nan")) for metric in METRICS}
        sizes = member.sum(0).clamp_min(1)
        top = min(self.top, len(member))
        for problem in range(len(mean)):
            scores = work.readout.scores(mean[problem].to(member.device))  # [L, V]
            spread = scores.std(-1, keepdim=True)
            differs = mean[problem].any(-1)
            for metric, sign in ((RISING, 1.0), (FALLING, -1.0)):
                chosen = (sign * scores).topk(top).indices
                found[metric][problem] = member[chosen].mean(1).cpu()
            standard = (scores - scores.mean(-1, keepdim=True)) / spread.clamp_min(1e-30)
            found[LIFT][problem] = (standard @ member / sizes).cpu()
            found[MASS][problem] = mass[problem] - base[problem]
            for metric in METRICS:
                found[metric][problem, ~differs] = float("nan")
        return found, mean.mean(0)

    def _masses(
        self, work: Work, label: str, vector: SteeringVector | None, texts: Sequence[Text], member: Tensor
    ) -> Tensor:
        """[N, L, C] the lens's probability of each class, mean over the chosen positions of each problem."""

        def compute() -> dict[str, Tensor]:
            order = {problem: index for index, problem in enumerate(problems(texts))}
            points = work.outputs()
            sums = torch.zeros(len(order), len(points), member.shape[1], dtype=torch.float64)
            counts = torch.zeros(len(order), dtype=torch.float64)
            done = 0
            for batch in work.batches(texts):
                chosen = batch.select(self.positions)
                trace = work.engine.run(batch, vector, points)
                for b, text in enumerate(batch.texts):
                    for layer, point in enumerate(points):
                        probabilities = work.readout.logits(trace[point][b][chosen[b]]).softmax(-1)
                        sums[order[text.id], layer] += (probabilities @ member).sum(0).double().cpu()
                    counts[order[text.id]] += int(chosen[b].sum())
                done += len(batch.texts)
                work.progress(f"lens probabilities, {label}", done, len(texts))
            return {"mass": (sums / counts[:, None, None]).float()}

        mass: Tensor = work.part(f"masses {label}, {self.positions}, {len(texts)} texts", compute)["mass"]
        return mass

    def _tokens(self, work: Work, name: str, mean: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The rising and falling tokens of the difference averaged over problems, at each layer."""
        found = []
        for layer in range(work.n_layers):
            if not bool(mean[layer].any()):
                continue
            scores = work.readout.scores(mean[layer].to(work.readout.weight.device)).cpu()
            for side, sign in (("rising", 1.0), ("falling", -1.0)):
                chosen = (sign * scores).topk(min(self.top, len(scores))).indices.tolist()
                for rank, token in enumerate(chosen):
                    found.append({
                        "vector": name, "layer": layer, "side": side, "rank": rank + 1, "token_id": token,
                        "token": work.readout.token(token), "kind": classes[token], "score": float(scores[token]),
                    })  # fmt: skip
        return found

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.token_language import panels

        return panels(result)


def _membership(classes: Sequence[str], kinds: Sequence[str], foreign: Sequence[str]) -> Tensor:
    """[V, C] 1 where a token is of a class; the last column: foreign, if there is any."""
    index = torch.tensor([kinds.index(kind) for kind in classes])
    member = torch.nn.functional.one_hot(index, len(kinds)).float()
    if not foreign:
        return member
    chosen = torch.tensor([float(kind in foreign) for kind in kinds])
    return torch.cat([member, (member @ chosen)[:, None]], 1)


def _class_table(work: Work, classes: Sequence[str], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Class, its tokens, and some of them."""
    found: list[dict[str, Any]] = []
    for kind in kinds:
        ids = [index for index, name in enumerate(classes) if name == kind]
        step = max(1, len(ids) // 12)
        examples = [work.readout.token(index) for index in ids[::step][:12]]
        found.append({"kind": kind, "tokens": len(ids), "share": len(ids) / len(classes), "examples": examples})
    return found


def _rows(
    metric: str, name: str, kinds: Sequence[str], values: Tensor, control: Tensor, seed: int
) -> list[dict[str, Any]]:
    found = []
    for layer in range(values.shape[1]):
        if bool(values[:, layer].isnan().all()):
            continue  # below the lowest steered layer nothing differs
        for c, kind in enumerate(kinds):
            keys: Mapping[str, Any] = {"vector": name, "layer": layer, "kind": kind}
            found.append(row(metric, values[:, layer, c].tolist(), control[:, layer, c].tolist(), seed, **keys))
    return found


def _array(metric: str, kinds: Sequence[str], values: Tensor, control: Tensor, seed: int) -> Array:
    """[number, layer, class]"""
    mean, low, high = (torch.from_numpy(part) for part in array_intervals(values.numpy(), seed))
    return as_array(
        torch.stack([mean, low, high, control.nanmean(0).double()]), ("number", "layer", "class"), metric,
        **{"number": ["mean", "low", "high", "control"], "class": list(kinds)},
    )  # fmt: skip
