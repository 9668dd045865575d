"""Sums, multiples, norms and random controls of steering vectors; all of them give new values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.errors import PluginError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.vectors import limits

if TYPE_CHECKING:
    from steerkit.interventions.base import Intervention
    from steerkit.vectors.value import SteeringVector, VectorMetadata


_HOW_TO_MEASURE = ("prompt", "max_tokens", "dataset", "dataset_spec", "rewards")
"""Receipts by which ``steerkit evaluate`` sets prompt, length, problems and verifier: a sum keeps those of both."""


def _plugin(vector: SteeringVector) -> type[Intervention]:
    return limits.plugin_of(vector)


def scaled(vector: SteeringVector, factor: float) -> SteeringVector:
    """``factor`` times the change that the vector makes.

    Raises:
        VectorError: for a factor that is not finite, or an intervention that does not say in what its change is linear.
    """
    if not math.isfinite(factor):
        raise VectorError(f"A vector can't be multiplied by {factor}.")
    linear = _plugin(vector).scale_by
    if not linear:
        raise VectorError(f"{vector.intervention!r} does not declare scale_by, so it can't be multiplied by a number.")
    tensors = {
        point: {name: t * factor if name in linear else t for name, t in named.items()}
        for point, named in vector.tensors.items()
    }
    return replace(vector, tensors=tensors, metadata=changed(vector, f"times {factor:g}"))


def changed(vector: SteeringVector, how: str) -> VectorMetadata:
    """Where the changed vector comes from. What the old one was measured to do is no fact of the new one."""
    receipts = {key: value for key, value in vector.metadata.receipts.items() if key != "results"}
    before = receipts.get("changed")
    receipts["changed"] = [*(before if isinstance(before, list) else []), how]
    return replace(vector.metadata, receipts=receipts)


def add(first: SteeringVector, second: SteeringVector) -> SteeringVector:
    """Both changes at once. At a hook point that both have, both must be the same at every position (static,
    projected...).

    Raises:
        VectorError: if they differ in width or token mask, or meet at a hook point where their sum has no such form.
    """
    if first.metadata.d_model != second.metadata.d_model:
        raise VectorError(
            f"Vectors of width {first.metadata.d_model} and {second.metadata.d_model} can't be added: "
            "they are made for different models."
        )
    if first.token_mask != second.token_mask:
        raise VectorError(
            f"One vector acts on {first.token_mask!r}, the other on {second.token_mask!r}: "
            "give both one token mask (with_mask) before you add them."
        )
    ours, theirs = first.metadata.receipts, second.metadata.receipts
    parents = {key: ours[key] for key in _HOW_TO_MEASURE if key in ours and ours[key] == theirs.get(key)}
    parents["sum_of"] = [_origin(first), _origin(second)]
    same_base = first.metadata.fingerprint == second.metadata.fingerprint
    metadata = replace(first.metadata, receipts=parents, fingerprint=first.metadata.fingerprint if same_base else "")
    if _plugin(first).constant and _plugin(second).constant:
        first, second = as_static(first), as_static(second)
        tensors = {point: dict(named) for point, named in first.tensors.items()}
        for point, named in second.tensors.items():
            tensors[point] = {
                "vector": tensors[point]["vector"] + named["vector"] if point in tensors else named["vector"]
            }
        return replace(first, tensors=tensors, metadata=metadata)
    shared = sorted(first.tensors.keys() & second.tensors.keys())
    if shared:
        raise VectorError(
            f"Both vectors act at {shared[0]}, and {first.intervention!r} + {second.intervention!r} has no common form "
            "there."
        )
    if first.intervention != second.intervention or dict(first.settings) != dict(second.settings):
        raise VectorError(
            f"A vector file holds one kind of intervention: {first.intervention!r} {dict(first.settings)} and "
            f"{second.intervention!r} {dict(second.settings)} can't be added."
        )
    return replace(first, tensors={**first.tensors, **second.tensors}, metadata=metadata)


def _origin(vector: SteeringVector) -> dict[str, object]:
    return {"points": [str(p) for p in vector.tensors], "norm": vector.norm(), **dict(vector.metadata.receipts)}


def as_static(vector: SteeringVector) -> SteeringVector:
    """The same change as ``static`` vectors (a down_proj bias stays at its site)."""
    if vector.intervention == "static":
        return vector
    if not _plugin(vector).constant:
        raise VectorError(f"{vector.intervention!r} is not the same at every position, so it is no static vector.")
    nothing = torch.zeros(1, 1, vector.metadata.d_model)
    with torch.no_grad():
        tensors = {
            point: {"vector": item.delta(nothing).expand(1, 1, -1)[0, 0].clone()}
            for point, item in vector.to_interventions().items()
        }
    return replace(vector, intervention="static", settings={}, tensors=tensors)


def at(vector: SteeringVector, layers: Sequence[int | str]) -> SteeringVector:
    """The part at some layers; interventions that share parameters become ``static``."""
    n_layers = vector.metadata.n_layers or None
    chosen = {}
    for spec in layers:
        asked = HookPoint.parse(spec, n_layers)
        found = [p for p in vector.tensors if (p == asked if "." in str(spec) else p.layer == asked.layer)]
        if not found:
            raise VectorError(f"The vector has no hook point at {spec}: it has {', '.join(map(str, vector.tensors))}.")
        chosen.update(dict.fromkeys(found))
    whole = as_static(vector) if _plugin(vector).constant else vector
    metadata = changed(vector, f"only {', '.join(map(str, chosen))}")
    return replace(whole, tensors={point: whole.tensors[point] for point in chosen}, metadata=metadata)


def directions(vector: SteeringVector) -> dict[HookPoint, Tensor]:
    """Hook point -> flat float64 direction: what is added, or the parameters in which the change is linear."""
    plugin = _plugin(vector)
    if plugin.constant:
        vector = as_static(vector)
        plugin = _plugin(vector)
    return {
        point: torch.cat(
            [t.double().flatten() for name, t in named.items() if name in plugin.scale_by or not plugin.scale_by]
        )
        for point, named in vector.tensors.items()
    }


def norms(vector: SteeringVector) -> dict[str, float]:
    """See ``SteeringVector.norms``; without the plugin installed, of all the tensors together."""
    try:
        _plugin(vector)
    except PluginError:  # a stranger's vector can still be looked at and saved again
        return {
            str(point): math.sqrt(sum(float(t.double().square().sum()) for t in named.values()))
            for point, named in vector.tensors.items()
        }
    return {str(point): float(direction.norm()) for point, direction in directions(vector).items()}


def cosines(first: SteeringVector, second: SteeringVector) -> dict[str, float]:
    ours, theirs = directions(first), directions(second)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise VectorError("The vectors share no hook point, so they have no angle.")
    found = {}
    for point in shared:
        if ours[point].shape != theirs[point].shape:
            raise VectorError(
                f"{point}: directions of {len(ours[point])} and {len(theirs[point])} numbers have no angle."
            )
        length = float(ours[point].norm() * theirs[point].norm())
        found[str(point)] = float(ours[point] @ theirs[point]) / length if length else float("nan")
    return found


def digest(vector: SteeringVector) -> str:
    facts = [vector.intervention, json.dumps(dict(vector.settings), default=str), vector.token_mask]
    found = hashlib.sha256("\n".join(facts).encode())
    for point, named in sorted(vector.tensors.items()):
        for name, tensor in sorted(named.items()):
            found.update(f"{point}/{name} {list(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def random_like(vector: SteeringVector, seed: int) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[tuple[str, bytes], Tensor] = {}

    def control(name: str, tensor: Tensor) -> Tensor:
        # A parameter that hook points share (the basis of ``lowrank``) gets one control, which they share too.
        key = (name, tensor.numpy().tobytes())
        if key not in drawn:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            drawn[key] = (noise * (tensor.double().norm() / noise.norm())).float()
        return drawn[key]

    tensors = {p: {n: control(n, t) for n, t in named.items()} for p, named in vector.tensors.items()}
    receipts = {"random_control_of": dict(vector.metadata.receipts), "control_seed": seed}
    return replace(vector, tensors=tensors, metadata=replace(vector.metadata, receipts=receipts))
