"""Features of what a vector changes that go with right answers, and whether they cause them (C7).

A TopK SAE on h steered - h base (arXiv 2509.06608's DiffSAE; its settings are not public), or on h steered, or a
published one; then the test that the paper lacks: features are ablated and amplified while decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from steerkit.analysis import sae_causal
from steerkit.analysis.accuracy import Judge
from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.sae import NAMES, Sae, load_sae
from steerkit.analysis.sae_features import rank_features, top_texts
from steerkit.analysis.sae_training import train_sae
from steerkit.analysis.statistics import by_problem, row
from steerkit.analysis.texts import Text, of_groups
from steerkit.analysis.work import Work
from steerkit.errors import DataError, SteerkitError
from steerkit.evaluation.records import correct_table, judge_groups
from steerkit.hookpoints import HookPoint
from steerkit.rewards.verifiable import Verifiable
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

Read = Literal["difference", "steered"]
POSITIONS = "generated"


@final
@dataclass(frozen=True)
class DiffSae(Analyzer):
    """SAE features that go with right answers, and accuracy when they are ablated and amplified while decoding.

    Args:
        layer: whose output is read; the difference that a static vector makes is constant at its own layer.
        activations: ``difference`` (steered - base, on the same tokens) or ``steered``.
        sae: a published SAE in place of a trained one: a folder, or org/name:folder of the hub.
        latents: features of the trained SAE.
        k: features that may be active at one position.
        steps: of its training.
        batch: positions a step.
        lr: learning rate.
        samples: completions of each prompt (temperature 1).
        max_tokens: their length limit.
        held_out: share of the prompts that are kept for the causal test.
        listed: features in the tables.
        features: of these, the first ones that are ablated and amplified.
        amplify: factor on the feature's activation.
        controls: random active features that are ablated and amplified instead.
        shuffles: of the verdicts within each problem, for the chance level of the ranking.
        verifier: that judges the completions.
    """

    name: ClassVar[str] = "diff_sae"
    needs_answers: ClassVar[bool] = True
    n_vectors: ClassVar[tuple[int, int | None]] = (1, 1)

    layer: int = -1
    activations: Read = "difference"
    sae: str = ""
    latents: int = 512
    k: int = 8
    steps: int = 1500
    batch: int = 512
    lr: float = 2e-3
    samples: int = 8
    max_tokens: int = 96
    held_out: float = 0.5
    listed: int = 12
    features: int = 2
    amplify: float = 3.0
    controls: int = 3
    shuffles: int = 50
    verifier: str = "math"

    def __post_init__(self) -> None:
        if self.activations not in ("difference", "steered"):
            raise SteerkitError(f"activations must be 'difference' or 'steered', got {self.activations!r}.")
        at_least_one(
            self,
            "latents",
            "k",
            "steps",
            "batch",
            "samples",
            "max_tokens",
            "listed",
            "features",
            "controls",
            "shuffles",
        )
        if self.k > self.latents:
            raise SteerkitError(f"k must be at most latents, got {self.k} active features of {self.latents}.")
        if not 0 < self.held_out < 1:
            raise SteerkitError(f"held_out must be above 0 and below 1, got {self.held_out}.")

    def analyze(self, work: Work) -> Findings:
        point = HookPoint.parse(self.layer, work.n_layers)
        published = load_sae(self.sae, work.d_model) if self.sae else None  # a misfit shows before anything is run
        if len(work.prompts) < 2:
            raise DataError("diff_sae needs two prompts or more: it tests features on prompts that it kept apart.")
        ((name, vector),) = work.vectors.items()
        kept = min(len(work.prompts) - 1, max(1, round(self.held_out * len(work.prompts))))
        seen, held = work.prompts[:-kept], work.prompts[-kept:]
        groups = work.generations(name, vector, self.samples, 1.0, self.max_tokens, prompts=seen)
        verdicts = work.part(f"verdicts {self.verifier}", lambda: {"table": _judged(groups, self.verifier)})["table"]
        texts = of_groups(groups)
        data, owners = self._activations(work, name, vector, point, texts)
        sae, rows, arrays = self._sae(work, data, published, name)
        activations = _encoded(sae, data)  # [positions, F]
        ids = [text.id for text in texts]
        unexplained = _unexplained(sae, data, activations, owners, ids)
        rows.append(row("fraction of variance unexplained", unexplained, seed=work.seed, vector=name))
        active = float((activations > 0).sum(1).float().mean())
        rows.append(row("active features a position", active, seed=work.seed, vector=name))
        ranking = rank_features(activations, owners, ids, verdicts.flatten(), self.shuffles, work.seed)
        rows += ranking.rows(name, self.listed, work.seed)
        tables = {"features": ranking.table(name, self.listed, sae, activations)}
        tables["texts"] = top_texts(work.readout.token, texts, owners, activations, ranking.order[: self.listed])
        test = sae_causal.Setting(
            point, self.activations == "difference", self.samples, self.max_tokens, self.amplify
        )  # fmt: skip
        with Judge(work, self.verifier) as judge:
            rows += sae_causal.run(
                work, name, vector, sae, test, held, judge, ranking.order[: self.features],
                ranking.random_active(self.controls, self.listed, work.seed), ranking,
            )  # fmt: skip
        notes = [
            f"SAE of {sae.size} features ({sae.activation}{f', k = {sae.k}' if sae.activation == 'topk' else ''}) on "
            f"{'h steered - h base' if self.activations == 'difference' else 'h steered'} at {point}, "
            f"{len(data)} positions of {len(texts)} completions at temperature 1"
            + (f"; from {self.sae} {sae.origin}".rstrip() if self.sae else "") + ".",
            f"Ranked on {len(seen)} prompts: share of a completion's positions at which a feature is active, right - "
            "wrong completions of the same problem, mean over problems that have both; control: the mean of the "
            "feature of that rank when verdicts are shuffled within problems.",
            f"Causal test on the other {len(held)} prompts: the feature's part is taken off the stream, or multiplied "
            f"by {self.amplify:g}, at every step of the decoding (the SAE's error stays); the same random numbers in "
            "all runs; control: random active features, the same way.",
        ]  # fmt: skip
        return Findings(rows, f"the token mask {POSITIONS!r} of steered completions at {point}", arrays, tables, notes)

    def _activations(
        self, work: Work, name: str, vector: SteeringVector, point: HookPoint, texts: Sequence[Text]
    ) -> tuple[Tensor, Tensor]:
        """([positions, D], [positions] which text each is of), in the order of the texts."""

        def compute() -> dict[str, Tensor]:
            found: list[Tensor] = [torch.empty(0)] * len(texts)
            done = 0
            for batch in work.batches(texts):
                chosen = batch.select(POSITIONS)
                values = work.engine.run(batch, vector, [point])[point].float()
                if self.activations == "difference":
                    values = values - work.engine.run(batch, read=[point])[point].float()
                for b, index in enumerate(batch.indices):
                    found[index] = values[b][chosen[b]].cpu()
                done += len(batch.texts)
                work.progress(f"activations, {name}", done, len(texts))
            counts = torch.tensor([len(part) for part in found])
            return {"data": torch.cat(found), "owners": torch.arange(len(texts)).repeat_interleave(counts)}

        part = work.part(f"activations {name} {point}", compute)
        return part["data"], part["owners"]

    def _sae(
        self, work: Work, data: Tensor, published: Sae | None, name: str
    ) -> tuple[Sae, list[dict[str, Any]], dict[str, Array]]:
        if published is not None:
            return published, [], {}

        def compute() -> dict[str, Any]:
            trained = train_sae(
                data.to(work.loaded.base.device), self.latents, self.k, self.steps, self.batch, self.lr, work.seed,
                lambda done, total: work.progress("training the SAE", done, total),
            )  # fmt: skip
            return {name: getattr(trained.sae, name) for name in NAMES} | {
                "steps": trained.steps, "fvu": trained.fvu, "dead": trained.dead,
            }  # fmt: skip

        part = work.part("sae", compute)
        sae = Sae(**{key: part[key] for key in NAMES}, activation="topk", k=self.k)
        axes = {"w_enc": ("dimension", "feature"), "b_enc": ("feature",), "w_dec": ("feature", "dimension"),
                "b_dec": ("dimension",)}  # fmt: skip
        arrays = {f"sae {key}": as_array(part[key], axes[key], f"the SAE's {key}") for key in NAMES}
        curves = torch.tensor([part["fvu"], part["dead"]])
        labels = {"curve": ["fraction of variance unexplained", "share of dead features"]}
        arrays["curves"] = as_array(curves, ("curve", "step"), "training of the SAE", **labels,
                                    step=[str(step) for step in part["steps"]])  # fmt: skip
        rows = [row("dead features at the end of training, share", part["dead"][-1], seed=work.seed, vector=name)]
        return sae, rows, arrays

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.diff_sae import panels

        return panels(result)


def _judged(groups: Sequence[Any], verifier: str) -> Tensor:
    """[N, K] 1 right, 0 wrong, NaN a fault."""
    judge = Verifiable(verifier)
    try:
        return torch.from_numpy(correct_table(judge_groups(judge, groups)))
    finally:
        judge.close()


def _encoded(sae: Sae, data: Tensor) -> Tensor:
    return torch.cat([sae.encode(part) for part in data.split(4096)])


def _unexplained(
    sae: Sae, data: Tensor, activations: Tensor, owners: Tensor, ids: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[N] of each problem: squared error / squared distance from the mean of all positions."""
    errors = (data - sae.decode(activations)).square().sum(1).double()
    spread = (data - data.mean(0)).square().sum(1).double()
    per_text = [torch.zeros(len(ids), dtype=torch.double).index_add_(0, owners, part) for part in (errors, spread)]
    return by_problem((per_text[0] / per_text[1].clamp_min(1e-30)).tolist(), ids)
