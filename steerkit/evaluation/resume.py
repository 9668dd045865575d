"""Whose results lie in the output folder: a finished evaluation, an unfinished one, or another command's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerkit.datasets import PromptTemplate
from steerkit.errors import SteerkitError
from steerkit.evaluation.arms import Arm, Protocol
from steerkit.evaluation.journal import differences
from steerkit.evaluation.suite import FAULTS
from steerkit.files import set_aside, set_aside_file
from steerkit.models import LoadedModel, fingerprint
from steerkit.types import Example


def evaluation_settings(
    loaded: LoadedModel,
    arms: Sequence[Arm],
    sets: Mapping[str, Sequence[Example]],
    protocol: Protocol,
    prompt: PromptTemplate,
) -> dict[str, Any]:
    """All that the samples depend on, as JSON values: two evaluations of equal settings draw the same samples."""
    return {
        "model": loaded.name,
        "fingerprint": fingerprint(loaded.base),
        "dtype": str(loaded.base.dtype).removeprefix("torch."),
        "device": loaded.base.device.type,
        "arms": {
            arm.name: {"vector": arm.vector.digest() if arm.vector else None, "prefix": arm.assistant_prefix}
            for arm in arms
        },
        "problems": {name: len(examples) for name, examples in sets.items()},
        "problems_digest": _digest(sets),
        "prompt": prompt.to_dict(),
        "temperatures": list(protocol.temperatures),
        "k": protocol.k,
        "k_of": dict(protocol.k_of),
        "seed": protocol.seed,
        "seeds": protocol.seeds,
        "max_tokens": protocol.max_tokens,
        "verifier": protocol.verifier if isinstance(protocol.verifier, str) else dict(protocol.verifier),
        "sampler": protocol.sampler if isinstance(protocol.sampler, str) else dict(protocol.sampler),
        "batch_tokens": protocol.batch_tokens,
        **({"top_p": protocol.top_p, "top_k": protocol.top_k} if (protocol.top_p, protocol.top_k) != (1.0, 0) else {}),
    }


def _digest(sets: Mapping[str, Sequence[Example]]) -> str:
    digest = hashlib.sha256()
    for name, examples in sets.items():
        for example in examples:
            digest.update(json.dumps([name, example.id, example.problem, example.answer]).encode())
    return digest.hexdigest()[:16]


def finished_record(out: Path, settings: Mapping[str, Any], restart: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """Make ``out`` ready: its ``results.json`` if that is of these settings, else None and nothing in the way.

    Finished results of other settings, and with ``restart`` whatever is there, are renamed, never overwritten.

    Returns:
        The record, and a line for each thing that was set aside.

    Raises:
        SteerkitError: ``out`` holds results that ``steerkit evaluate`` did not write (a training run's, say).
    """
    path = out / "results.json"
    if restart:
        return None, _aside(out, "--restart true")
    if not path.is_file():
        return None, []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        there = record["settings"]
    except (ValueError, KeyError, TypeError):
        raise SteerkitError(
            f"{path} is not of steerkit evaluate (a training run's folder?): give another --out, or --restart true to "
            f"set the results there aside."
        ) from None
    different = differences(there, settings)
    if different:
        return None, _aside(out, different)
    return (record if (out / "samples.parquet").is_file() else None), []


def _aside(out: Path, why: str) -> list[str]:
    files = [set_aside_file(out / name) for name in ("results.json", "samples.parquet", FAULTS)]
    names = [path.name for path in (*files, set_aside(out / "journal")) if path is not None]
    return [f"{out} held an evaluation with other settings ({why}): now in {', '.join(names)}."] if names else []
