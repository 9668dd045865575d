"""Sentences about each analyzer's result, made from its rows: what stands out, beside its control."""

from __future__ import annotations

from collections.abc import Callable

from steerkit.analysis import composition, path_patching
from steerkit.analysis.plots.default import of_what
from steerkit.analysis.result import AnalysisResult
from steerkit.study.report import captions_tokens as tokens
from steerkit.study.report.words import beside_control, largest, listed, number, sign_of, with_interval


def caption(result: AnalysisResult) -> list[str]:
    """What its numbers say; of an unknown analyzer its first rows."""
    return _CAPTIONS.get(result.analyzer, _plain)(result) or ["No number was found for a caption."]


def _plain(result: AnalysisResult) -> list[str]:
    shown = [row for row in result.rows if row["value"] is not None][:3]
    return [f"{of_what(row)}: {row['metric']} {beside_control(row)}." for row in shown]


_VARIANTS = {
    "skip-attn": "without attention's part",
    "skip-mlp": "without the MLP's",
    "skip-layer": "without the block's",
    "only-attn": "with attention's alone",
    "only-mlp": "with the MLP's alone",
    "only-residual": "with the residual's alone",
}


def _path_patching(result: AnalysisResult) -> list[str]:
    found = []
    for name in result.vectors:
        kept = {r["variant"]: r for r in result.find(vector=name, metric=path_patching.KEPT) if r["value"] is not None}
        parts = [f"{words} {with_interval(kept[v])}" for v, words in _VARIANTS.items() if v in kept]
        if parts:
            found.append(f"{name}: of the effect there stays, {', '.join(parts)}.")
        accuracy = {r["variant"]: r for r in result.find(vector=name, metric=path_patching.ACCURACY)}
        if {"vanilla", "steered"} <= accuracy.keys():
            found.append(f"{name}: accuracy is {with_interval(accuracy['vanilla'])} without the vector and "
                         f"{with_interval(accuracy['steered'])} with it.")  # fmt: skip
    return found


def _attention_shift(result: AnalysisResult) -> list[str]:
    tops = [(name, largest(result.find(vector=name))) for name in result.vectors]
    return [f"{name} moves attention most at layer {r['layer']}: {beside_control(r)}." for name, r in tops if r]


def _persistence(result: AnalysisResult) -> list[str]:
    found = []
    for name in dict.fromkeys(row["vector"] for row in result.rows):
        parts = []
        for metric in ("Diff-Diff", "Diff-Vector", "Diff-Own"):
            rows = result.find(vector=name, metric=f"{metric}, mean over later layers")
            row = next((r for r in rows if r["steered_layer"] == "each"), rows[0] if rows else None)
            if row is not None and row["value"] is not None:
                parts.append(f"{metric} {beside_control(row)}")
        if parts:
            found.append(f"{name}, mean over later layers: {'; '.join(parts)}.")
    return found


def _diff_sae(result: AnalysisResult) -> list[str]:
    found = []
    ranked = [r for r in result.rows if r["metric"] == "active rate, right - wrong" and r["value"] is not None]
    if ranked:
        right = sum(row["value"] > 0 for row in ranked)
        found.append(f"Of the {len(ranked)} listed features {right} are more active in right completions, "
                     f"{len(ranked) - right} in wrong ones. The first is feature {ranked[0]['feature']}: "
                     f"{beside_control(ranked[0])}.")  # fmt: skip
    for row in result.find(metric="accuracy, edited - steered"):
        random = with_interval(row, "control", "control_ci95")
        found.append(f"Feature {row['feature']} {row['run']} changes the accuracy by {with_interval(row)}: "
                     f"{sign_of(row['ci95'])}. Random features change it by {random}.")  # fmt: skip
    return found


def _transfer(result: AnalysisResult) -> list[str]:
    to = result.settings.get("recipient") or "the donor itself"
    parts = [f"{row['arm']} {with_interval(row)}" for row in result.find(metric="accuracy")]
    found = [f"Accuracy on {to}: {', '.join(parts)}."]
    gains = [r for r in result.find(metric="normalised gain") if r["value"] is not None]
    if gains:
        shares = "; ".join(f"{row['arm']} {beside_control(row)}" for row in gains)
        return [*found, f"Share of its own vector's gain: {shares}."]
    return [*found, "There is no gain of a vector of its own to compare with."]


def _composition(result: AnalysisResult) -> list[str]:
    found = []
    for scale in dict.fromkeys(row["scale"] for row in result.rows):
        pairs = [row for row in result.find(metric=composition.GAIN, scale=scale) if row["value"] is not None]
        best = largest(pairs)
        if best is not None:
            more, less = (sum(sign_of(row["ci95"]) == words for row in pairs) for words in ("a gain", "a loss"))
            found.append(f"At scale {scale:g}, by their intervals, {more} of {len(pairs)} pairs gain over their better "
                         f"half and {less} lose. The best is {best['vectors']}: normalised gain "
                         f"{with_interval(best)}.")  # fmt: skip
    alone = {row["vectors"]: row for row in result.find(metric=composition.ACCURACY, scale=1.0)}
    ends = [f"{name} {with_interval(alone[name])}" for name in ("base", "all together", "joint") if name in alone]
    return [*found, f"Accuracy at scale 1: {listed(ends)}."] if ends else found


def _geometry(result: AnalysisResult) -> list[str]:
    cosines = result.find(metric="cosine")
    between = [row for row in cosines if row.get("other") is not None]
    found = []
    top = largest(between or cosines, lambda row: abs(row["value"]))
    if top is not None:
        names = f"{top['vector']} and {top['other']}" if top.get("other") else str(top["vector"])
        places = " and ".join(dict.fromkeys((top["point"], top["other_point"])))
        found.append(f"The most alike directions: {names} at {places}, cosine {beside_control(top)}.")
    for row in result.find(metric="stable rank"):
        found.append(f"Stable rank of {row['vector']}: {beside_control(row)}.")
    longest = largest(result.find(metric="norm / residual norm"))
    if longest is not None:
        found.append(f"The longest is {longest['vector']} at {longest['point']}: {number(longest['value'])} times the "
                     "stream's own length.")  # fmt: skip
    return found


_CAPTIONS: dict[str, Callable[[AnalysisResult], list[str]]] = {
    "attention_shift": _attention_shift, "composition": _composition, "diff_sae": _diff_sae,
    "first_token": tokens.first_token, "geometry": _geometry, "logit_lens": tokens.logit_lens,
    "path_patching": _path_patching, "persistence": _persistence, "token_language": tokens.token_language,
    "token_scale": tokens.token_scale, "transfer": _transfer,
}  # fmt: skip
