"""The vector's card: what it is, how it was made, what it does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerkit.vectors.files import finite
from steerkit.vectors.hub import HUB_ID

if TYPE_CHECKING:
    from steerkit.vectors.value import SteeringVector


_OWN_TABLES = ("residual_norms", "results")
"""Receipts that get a table of their own."""


def card(vector: SteeringVector, place: str) -> str:
    """Model-card front matter, how to load it, norms, results and receipts, as Markdown.

    Args:
        place: folder or hub id from which the vector will be loaded.
    """
    metadata, receipts = vector.metadata, vector.metadata.receipts
    front = {"library_name": "steerkit", "tags": ["steering-vector", "steerkit", vector.intervention]}
    if HUB_ID.match(metadata.model):
        front["base_model"] = metadata.model
    if "dataset" in receipts:
        front["datasets"] = [str(receipts["dataset"])]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"]
    lines += [f"# Steering vector ({vector.intervention}) for {metadata.model or 'an unnamed model'}", ""]
    count = sum(t.numel() for named in vector.tensors.values() for t in named.values())
    lines += [
        f"Width {metadata.d_model}, base fingerprint `{metadata.fingerprint or 'unknown'}`, token mask "
        f"`{vector.token_mask}`, {count:,} numbers.",
        "",
    ]
    lines += _use(metadata.model or "NAME OF THE BASE", place)
    lines += _norms(vector)
    lines += _results(receipts.get("results") or [])
    rest = {key: value for key, value in receipts.items() if key not in _OWN_TABLES}
    if rest:
        lines += ["", "## Receipts", "", "| | |", "|---|---|"]
        for key, value in rest.items():
            text = value if isinstance(value, str) else json.dumps(finite(value), default=str)
            lines.append(f"| {key} | `{_cell(text)}` |")
    return "\n".join(lines) + "\n"


def _use(model: str, place: str) -> list[str]:
    """Python that works when it is pasted where the command ran that wrote the vector."""
    chat = shlex.join(["steerkit", "chat", "--model", model, "--vector", place])
    return [
        "```python",
        "from steerkit import SteeringVector, load_model",
        "",
        f"loaded = load_model({json.dumps(model)})",
        f"vector = SteeringVector.from_pretrained({json.dumps(place)})",
        'ids = loaded.tokenizer("Tom has 12 pens.", return_tensors="pt").input_ids',
        "with vector.applied(loaded.base):",
        "    print(loaded.tokenizer.decode(loaded.base.generate(ids, max_new_tokens=32)[0]))",
        "```",
        "",
        f"With the prompt that it was made for: `{chat}`.",
        "",
    ]


def _norms(vector: SteeringVector) -> list[str]:
    stream = vector.metadata.receipts.get("residual_norms") or {}
    if not stream:
        return ["| hook point | norm |", "|---|---|", *(f"| {p} | {n:.4g} |" for p, n in vector.norms().items())]
    lines = ["| hook point | norm | mean norm of the residual stream there | ratio |", "|---|---|---|---|"]
    for point, norm in vector.norms().items():
        length = stream.get(point)
        lines.append(
            f"| {point} | {norm:.4g} | {length:.4g} | {norm / length:.3g} |"
            if length
            else f"| {point} | {norm:.4g} | | |"
        )
    return lines


def _results(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "## Results",
        "",
        "| arm | set | T | accuracy % | 95 % interval | n x k |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (f"{100 * bound:.1f}" for bound in row["ci95"])
        lines.append(
            f"| {_cell(row['arm'])} | {_cell(row['set'])} | {row['temperature']:g} | {100 * row['accuracy']:.1f} | "
            f"{low} - {high} | {row['n']} x {row['k']} |"
        )
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
