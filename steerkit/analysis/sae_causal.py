"""Does a feature cause right answers? It is ablated and amplified while decoding, against random active features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steerkit.analysis.accuracy import Judge, accuracy_row
from steerkit.analysis.edited_decoding import StreamEdit, sample_edited
from steerkit.analysis.sae import Sae
from steerkit.analysis.sae_features import Ranking
from steerkit.analysis.statistics import row
from steerkit.analysis.work import Work
from steerkit.hookpoints import HookPoint
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.vectors import SteeringVector


@dataclass(frozen=True)
class Setting:
    """How the test is run."""

    point: HookPoint
    difference: bool
    """The SAE reads h steered - h base."""
    samples: int
    max_tokens: int
    amplify: float


def edit_feature(sae: Sae, feature: int, factor: float, difference: bool) -> StreamEdit:
    """The stream with the feature's activation multiplied by ``factor`` (0 ablates it); the SAE's error stays."""

    def edit(hidden: Tensor, base: Tensor | None) -> Tensor:
        read = hidden.float() - base.float() if difference and base is not None else hidden.float()
        part = sae.encode(read)[:, feature, None] * sae.w_dec[feature]
        return hidden.float() + (factor - 1.0) * part

    return edit


def run(
    work: Work,
    name: str,
    vector: SteeringVector,
    sae: Sae,
    setting: Setting,
    prompts: Sequence[EncodedPrompt],
    judge: Judge,
    features: Sequence[int],
    controls: Sequence[int],
    ranking: Ranking,
) -> list[dict[str, Any]]:
    """Accuracies of the base, the steered model, and with each feature ablated and amplified, with paired changes."""
    sae = sae.to(work.loaded.base.device)
    sizes = (setting.samples, 1.0, setting.max_tokens)
    steered = judge.shares("steered", work.generations(f"{name}, held out", vector, *sizes, prompts=prompts))
    base = judge.shares("base", work.generations("base, held out", None, *sizes, prompts=prompts))
    rows = [
        accuracy_row("accuracy", shares, seed=work.seed, vector=name, run=run)
        for run, shares in (("base", base), ("steered", steered))
    ]

    def edited(feature: int, what: str, factor: float) -> NDArray[np.float64]:
        label = f"feature {feature} {what}"
        edit = edit_feature(sae, feature, factor, setting.difference)
        groups = sample_edited(
            work, label, vector, setting.point, edit, setting.difference, prompts, setting.samples,
            SamplingParams(1.0, setting.max_tokens),
        )  # fmt: skip
        return judge.shares(label, groups)

    for what, factor in (("ablated", 0.0), ("amplified", setting.amplify)):
        random = np.stack([edited(feature, what, factor) for feature in controls])  # [controls, N]
        mean = np.nanmean(random, axis=0) if not np.isnan(random).all(0).any() else random.mean(0)
        for feature, shares in zip(controls, random, strict=True):
            keys: dict[str, Any] = {"vector": name, "run": f"{what}, random feature", "feature": feature,
                    "active_rate": float(ranking.rates[feature])}  # fmt: skip
            rows.append(accuracy_row("accuracy", shares, seed=work.seed, **keys))
        for feature in features:
            shares = edited(feature, what, factor)
            keys = {"vector": name, "run": what, "feature": feature, "active_rate": float(ranking.rates[feature])}
            rows.append(accuracy_row("accuracy", shares, mean, work.seed, **keys))
            rows.append(row("accuracy, edited - steered", (shares - steered).tolist(), (mean - steered).tolist(),
                            work.seed, **keys))  # fmt: skip
    return rows
