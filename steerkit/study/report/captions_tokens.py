"""``captions`` of the analyzers that speak of tokens."""

from __future__ import annotations

from steerkit.analysis.result import AnalysisResult
from steerkit.analysis.token_language import FOREIGN, MASS
from steerkit.study.report.words import beside_control, largest, number, with_interval


def logit_lens(result: AnalysisResult) -> list[str]:
    """Of each vector the token that it names most clearly, and that of its effect at the last layer."""
    found = []
    for name in result.vectors:
        table = [
            r for r in result.tables["direct"] if r["vector"] == name and (r["lens"], r["side"]) == ("norm", "top")
        ]
        first = max((r for r in table if r["rank"] == 1), key=lambda r: r["cosine"], default=None)
        if first is not None:
            second = next((r for r in table if r["point"] == first["point"] and r["rank"] == 2), None)
            beside = f" (the next token {number(second['cosine'])})" if second else ""
            beyond = f"{100 * first['random_share_beyond']:.0f} %"
            found.append(f"{name} points most clearly at ‘{first['token']}’, at {first['point']}, with cosine "
                         f"{number(first['cosine'])}{beside}. Of random directions of its norm, {beyond} score their "
                         "own best token higher.")  # fmt: skip
        last = max(result.find(metric="induced top score", vector=name), key=lambda r: r["layer"], default=None)
        if last is not None:
            found.append(f"{name}: what it changes at layer {last['layer']} points at ‘{last['token']}’, score "
                         f"{beside_control(last)}.")  # fmt: skip
    return found


def first_token(result: AnalysisResult) -> list[str]:
    """The change at the first position and at the others; the share of the gain of each part."""
    found = []
    for name in result.vectors:
        of = {r["position"]: r for r in result.find(vector=name) if str(r["metric"]).startswith("total variation")}
        if {"first", "other"} <= of.keys():
            found.append(f"{name} moves the next token's probabilities (total variation) at the first generated "
                         f"position by {beside_control(of['first'])}, at the others by "
                         f"{beside_control(of['other'])}.")  # fmt: skip
        shares = [r for r in result.find(vector=name, metric="share of the vector's gain") if r["value"] is not None]
        for temperature in dict.fromkeys(r["temperature"] for r in shares):
            parts = [f"{r['arm']} {with_interval(r)}" for r in shares if r["temperature"] == temperature]
            found.append(f"{name}: share of its gain at temperature {temperature:g}: {'; '.join(parts)}.")
    return found


def token_language(result: AnalysisResult) -> list[str]:
    """Of foreign and home tokens the change at the last layer, and where it is largest."""
    found = []
    for name in result.vectors:
        rows = result.find(metric=MASS, vector=name)
        for kind in (FOREIGN, str(result.settings["home"])):
            of_kind = [row for row in rows if row["kind"] == kind and row["value"] is not None]
            last = max(of_kind, key=lambda row: row["layer"], default=None)
            most = largest(of_kind, lambda row: abs(row["value"]))
            if last is None or most is None:
                continue
            text = f"{name}, {kind} tokens: at the last layer the lens's probability changes by {beside_control(last)}."
            if most is not last:
                text += f" It changes most at layer {most['layer']}: {with_interval(most)}."
            found.append(text)
    return found


def token_scale(result: AnalysisResult) -> list[str]:
    """The segments with most and least of what is added, against their length."""
    found = []
    for name in result.vectors:
        point = result.arrays[f"shares {name}"].labels["hook point"][-1]
        rows = result.find(metric="share of mass / share of tokens", vector=name, gate="trained", point=point)
        most, least = largest(rows), largest(rows, lambda row: -row["value"])
        if most is None or least is None:
            continue
        if most["value"] - least["value"] < 1e-6:
            found.append(f"{name} adds the same at every token.")
            continue
        found.append(f"{name}: against its length, the segment {most['segment']} gets most, "
                     f"{beside_control(most)}; {least['segment']} gets least, {beside_control(least)}.")  # fmt: skip
    return found
