"""What of a block carries a vector's effect: parts of the block from the vanilla run, the rest steered, and back (C4).

arXiv 2509.06608 (skip-attn, skip-layer in the last block); the general form and its sources are in ``patches``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from steerkit.analysis.accuracy import Judge, accuracy_row, ratio_row
from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.parts import Part
from steerkit.analysis.patched_decoding import decode
from steerkit.analysis.patches import VARIANTS, Patch, block_patches, path_patch, shared_cast
from steerkit.analysis.result import AnalysisResult, Findings
from steerkit.analysis.statistics import by_problem, row
from steerkit.analysis.texts import Text, of_groups
from steerkit.analysis.variants import tiled
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.rollouts import SamplingParams
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

KL = "KL(steered || variant) (nats a token)"
CHANGE = "probability of the steered run's token, variant - steered"
KEPT = "share of the effect kept, 1 - KL(steered || variant) / KL(steered || vanilla)"
ACCURACY = "accuracy"


@final
@dataclass(frozen=True)
class PathPatching(Analyzer):
    """Which part of a block carries the effect: attention, q, k, v, a head, the MLP, the residual, or any path.

    Args:
        block: whose parts are patched.
        variants: which of attn, q, k, v, heads, groups, mlp, mlp-direct, residual, layer.
        inverse: also each variant the other way round (the part steered, the rest vanilla).
        paths: direct paths besides, as in 'layers.3.attn_output -> layers.5.q'.
        positions: token mask of the positions that KL and probabilities are taken at.
        max_tokens: length limit of completions.
        accuracy: also decode under each patch and judge; prompts then need answers.
        temperature: of that decoding; 0 is greedy.
        controls: norm-matched random vectors, patched in the same way on the same tokens; the first is decoded, too.
        top: tokens listed for each variant, those whose probability it changes most.
        verifier: of the completions.
        sampler: of the steered completions.
    """

    name: ClassVar[str] = "path_patching"

    block: int = -1
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    inverse: bool = True
    paths: list[str] = field(default_factory=list)
    positions: str = "generated"
    max_tokens: int = 96
    accuracy: bool = True
    temperature: float = 0.0
    controls: int = 2
    top: int = 8
    verifier: str | dict[str, Any] = "math"
    sampler: str = "fast"

    def __post_init__(self) -> None:
        TokenMask(self.positions)
        at_least_one(self, "max_tokens", "controls", "top")
        if self.temperature < 0:
            raise SteerkitError(f"temperature must be 0 (greedy) or more, got {self.temperature}.")
        if not self.variants and not self.paths:
            raise SteerkitError("Nothing to patch: give variants, paths, or both.")

    @property
    def needs_answers(self) -> bool:  # type: ignore[override]
        return self.accuracy

    def analyze(self, work: Work) -> Findings:
        block = HookPoint.parse(self.block, work.n_layers).layer
        patches, notes = block_patches(work.loaded, block, self.variants, self.inverse)
        for spec in self.paths:
            patches += [path_patch(work.loaded, spec, way) for way in ((False, True) if self.inverse else (False,))]
        rows: list[dict[str, Any]] = []
        table: list[dict[str, Any]] = []
        with Judge(work, self.verifier) as judge:
            for name, vector in work.vectors.items():
                groups = work.generations(name, vector, 1, self.temperature, self.max_tokens, self.sampler)
                texts = of_groups(groups)
                found = self._forced(work, name, vector, patches, texts)
                random = [
                    self._forced(work, f"{name}, control {k}", control, patches, texts)
                    for k, control in enumerate(work.controls(vector, self.controls))
                ]
                rows += self._rows(work, name, patches, texts, found, random)
                table += self._tokens(work, name, patches, found)
                if self.accuracy:
                    rows += self._accuracies(work, judge, name, vector, patches)
        notes += [
            f"Variants of block {block}. skip-X: the steered run with X of the vanilla run; only-X: the vanilla run "
            "with X of the steered one. Both runs read the same tokens.",
            "KL, probabilities: on the steered model's own completions. Control: norm-matched random vectors patched "
            "in the same way on the same tokens, each against its own steered run.",
            "Accuracy: decoding under the patch. At each token the vanilla, the steered and the patched run read the "
            "completion so far, and the patched run's logits choose the next token; a completion that is cut off is "
            "wrong. Control: the first random vector.",
            "The share of the effect kept has no interval where KL(steered || vanilla) may be 0, and no control.",
        ]
        where = f"the token mask {self.positions!r} of prompt and steered completion (temperature {self.temperature:g})"
        return Findings(rows, where, tables={"tokens": table}, notes=notes)

    def _forced(
        self, work: Work, label: str, vector: SteeringVector, patches: Sequence[Patch], texts: Sequence[Text]
    ) -> dict[str, Tensor]:
        """kl, change: [variants, texts], the mean over positions; shift: [variants, V], variant - vanilla."""
        last = HookPoint(work.n_layers - 1)
        names = _names(patches)

        def compute() -> Part:
            device = work.loaded.base.device
            copies = shared_cast(patches, 1, device).rows
            kl = torch.full((len(names), len(texts)), float("nan"), dtype=torch.float64)
            change, shift = kl.clone(), torch.zeros(len(names), work.readout.vocabulary, dtype=torch.float64)
            done = seen = 0
            for batch in work.batches(texts, copies):
                n = len(batch.texts)
                cast = shared_cast(patches, n, device, vector)
                wide = tiled(batch, copies)
                hidden = work.engine.run(
                    wide,
                    vector,
                    [last],
                    cast.edits(patches),
                    steered_rows=cast.steered(patches, device),
                    growth=cast.growth,
                )[last]
                chosen = batch.select(self.positions) & (batch.targets >= 0)
                rows = [cast.roles[0]["vanilla"], cast.roles[0]["steered"], *(r["patched"] for r in cast.roles)]
                for k, index in enumerate(batch.indices):
                    if not bool(chosen[k].any()):
                        continue
                    targets = batch.targets[k][chosen[k]][:, None]
                    vanilla, steered = (_logs(work, hidden[r[k]][chosen[k]]) for r in rows[:2])
                    share, before = steered.exp(), vanilla.exp().sum(0)
                    for v, r in enumerate(rows):
                        log = (vanilla, steered)[v] if v < 2 else _logs(work, hidden[r[k]][chosen[k]])
                        kl[v, index] = float((share * (steered - log)).sum(-1).mean())
                        probability = log.exp()
                        change[v, index] = float((probability - share).gather(1, targets).mean())
                        shift[v] += (probability.sum(0) - before).double().cpu()
                    seen += len(targets)
                done += n
                work.progress(f"patching, {label}", done, len(texts))
            return {"kl": kl, "change": change, "shift": (shift / max(seen, 1)).float()}

        return work.part(f"patched {label}, {len(texts)} texts", compute)

    def _rows(
        self,
        work: Work,
        name: str,
        patches: Sequence[Patch],
        texts: Sequence[Text],
        found: dict[str, Tensor],
        random: Sequence[dict[str, Tensor]],
    ) -> list[dict[str, Any]]:
        ids = [text.id for text in texts]
        rows = []

        def of(part: dict[str, Tensor], key: str, v: int) -> Any:
            return by_problem(part[key][v].tolist(), ids)

        for v, variant in enumerate(_names(patches)):
            for metric, key in ((KL, "kl"), (CHANGE, "change")):
                control = sum(of(part, key, v) for part in random) / len(random)
                rows.append(row(metric, of(found, key, v), control, work.seed, vector=name, variant=variant))
            rows.append(
                ratio_row(KEPT, of(found, "kl", v), of(found, "kl", 0), work.seed, 1.0, -1.0, vector=name,
                          variant=variant)
            )  # fmt: skip
        return rows

    def _tokens(
        self, work: Work, name: str, patches: Sequence[Patch], found: dict[str, Tensor]
    ) -> list[dict[str, Any]]:
        table = []
        for v, variant in enumerate(_names(patches)):
            for side, sign in (("risen", 1.0), ("fallen", -1.0)):
                best = (sign * found["shift"][v]).topk(min(self.top, found["shift"].shape[1])).indices.tolist()
                for rank, token in enumerate(best, start=1):
                    value = float(found["shift"][v, token])
                    if sign * value > 0:
                        table.append(
                            {"vector": name, "variant": variant, "side": side, "rank": rank, "token_id": token,
                             "token": work.readout.token(token), "probability, variant - vanilla": value}
                        )  # fmt: skip
        return table

    def _accuracies(
        self, work: Work, judge: Judge, name: str, vector: SteeringVector, patches: Sequence[Patch]
    ) -> list[dict[str, Any]]:
        params = SamplingParams(self.temperature, self.max_tokens)
        random = work.controls(vector, 1)[0]
        found: dict[str, Any] = {}
        for label, one in ((name, vector), (f"{name}, control", random)):
            vanilla = work.generations("base", None, 1, self.temperature, self.max_tokens, self.sampler)
            own = work.generations(label, one, 1, self.temperature, self.max_tokens, self.sampler)
            groups = [vanilla, own, *decode(work, label, one, patches, params)]
            flat = [group for of_variant in groups for group in of_variant]
            found[label] = judge.shares(label, flat).reshape(len(groups), len(work.prompts))
        of_vector, of_random = found.values()
        return [
            accuracy_row(ACCURACY, of_vector[v], of_random[v], work.seed, vector=name, variant=variant)
            for v, variant in enumerate(_names(patches))
        ]

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.path_patching import panels

        return panels(result)


def _logs(work: Work, hidden: Tensor) -> Tensor:
    """[n, D] streams behind the last block -> [n, V] log-probabilities."""
    return torch.log_softmax(work.readout.logits(hidden), -1)


def _names(patches: Sequence[Patch]) -> list[str]:
    return ["vanilla", "steered", *(patch.name for patch in patches)]
