"""What each arm's completions begin with, counted in the samples themselves."""

from __future__ import annotations

import numpy as np

from steerkit.analysis.plots import Heatmap
from steerkit.study.report.arms import falling, ordered
from steerkit.study.report.blocks import Block
from steerkit.study.report.read import Study

SHOWN = 6
"""Tokens."""
NAMED = 3
"""Arms that the caption names."""


def first_tokens(study: Study) -> Block | None:
    """Arms x first tokens, at the highest temperature; None where the samples don't say."""
    counts = _counts(study)
    totals: dict[str, float] = {}
    for shares in counts.values():
        for token, share in shares.items():
            totals[token] = totals.get(token, 0.0) + share
    top = sorted(totals, key=lambda token: -totals[token])[:SHOWN]
    if not top:
        return None
    finding = []
    for name in [n for n in counts if n == "base" or (study.arm(n) or {}).get("role") == "steering"][:NAMED]:
        token = max(counts[name], key=lambda k: counts[name][k])
        finding.append(
            f"{study.label(name)}: {100 * counts[name][token]:.0f} % of the completions begin with ‘{token}’."
        )
    picture = Heatmap(
        f"First generated token, temperature {falling(study)[0]}",
        [[counts[name].get(token, 0.0) for token in top] for name in counts],
        [study.label(name) for name in counts],
        [token[:12] for token in top],
        unit="share of completions",
        limits=(0.0, 1.0),
    )
    return Block(
        [picture],
        finding,
        f"Rows are arms, columns the {len(top)} tokens that completions begin with most often.",
        "Counted in the samples of all arms",
        study.command,
        [study.samples_file],
    )


def _counts(study: Study) -> dict[str, dict[str, float]]:
    """Arm -> token -> share of its completions."""
    samples, t = study.samples, falling(study)[0]
    if samples is None or samples.first_token is None:
        return {}
    texts = study.results.get("first_tokens") or {}
    found = {}
    for arm in ordered(study):
        rows = samples.of(arm["arm"], t)
        tokens, n = np.unique(samples.first_token[rows].astype(str), return_counts=True)
        if len(tokens):
            shares = (n / n.sum()).tolist()
            found[arm["arm"]] = {str(texts.get(k, k)): s for k, s in zip(tokens.tolist(), shares, strict=True)}
    return found
