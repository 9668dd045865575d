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
    finding = [_sentence(study, name, counts[name]) for name in _told(study, counts)]
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


def _told(study: Study, counts: dict[str, dict[str, float]]) -> list[str]:
    """The base, and the steering arms that are furthest from it."""
    base = counts.get("base", {})

    def distance(name: str) -> float:
        return sum(abs(counts[name].get(t, 0.0) - base.get(t, 0.0)) for t in {*counts[name], *base}) / 2

    steering = [name for name in counts if (study.arm(name) or {}).get("role") == "steering"]
    furthest = sorted(steering, key=distance, reverse=True)[: NAMED - 1]
    return [*(["base"] if base else []), *furthest]


def _sentence(study: Study, name: str, shares: dict[str, float]) -> str:
    token = max(shares, key=lambda key: shares[key])
    return f"{study.label(name)}: {100 * shares[token]:.0f} % of the completions begin with ‘{token}’."


def _counts(study: Study) -> dict[str, dict[str, float]]:
    """Arm -> token -> share of its completions."""
    samples, t = study.samples, falling(study)[0]
    if samples is None or samples.first_token is None:
        return {}
    texts = study.results.get("first_tokens") or {}
    found = {}
    for arm in ordered(study):
        known = [token for token in samples.first_token[samples.of(arm["arm"], t)] if token is not None]
        tokens, n = np.unique(known, return_counts=True)
        if len(tokens):
            shares = (n / n.sum()).tolist()
            found[arm["arm"]] = {str(texts.get(k, k)): s for k, s in zip(tokens.tolist(), shares, strict=True)}
    return found
