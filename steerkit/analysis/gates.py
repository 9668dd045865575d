"""How far a vector's gate is open at each token, and the gates that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steerkit import registry
from steerkit.analysis.texts import Text
from steerkit.analysis.work import Work
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.vectors import SteeringVector
from steerkit.vectors.algebra import directions
from steerkit.vectors.limits import build


def gate_names(vector: SteeringVector) -> tuple[str, ...]:
    """The parameters that decide how long the change is at a token; none for vectors that are the same everywhere."""
    plugin = registry.resolve("interventions", vector.intervention)
    if plugin.constant or not plugin.scale_by:
        return ()
    return tuple(name for name in next(iter(vector.tensors.values())) if name not in plugin.scale_by)


def untrained_gate(vector: SteeringVector) -> SteeringVector:
    """The same directions behind the gate that training started from."""
    fresh = build(vector)
    names = gate_names(vector)
    tensors = {
        point: {name: fresh[point].state_dict()[name] if name in names else t for name, t in named.items()}
        for point, named in vector.tensors.items()
    }
    return replace(vector, tensors=tensors)


def shuffled_gate(vector: SteeringVector, seed: int) -> SteeringVector:
    """The same directions behind a gate whose numbers stand in another order (norm and distribution stay)."""
    generator = torch.Generator().manual_seed(seed)
    names = gate_names(vector)

    def shuffled(tensor: Tensor) -> Tensor:
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)

    tensors = {
        point: {name: shuffled(t) if name in names else t for name, t in named.items()}
        for point, named in vector.tensors.items()
    }
    return replace(vector, tensors=tensors)


def added_sizes(
    work: Work, name: str, vector: SteeringVector, variants: Mapping[str, SteeringVector], texts: Sequence[Text]
) -> dict[str, Tensor]:
    """What each variant adds at each token of the model that ``vector`` steers; a part of the analysis.

    All variants read the same stream, so only their gates differ.

    Args:
        variants: name -> a vector with the hook points of ``vector``.

    Returns:
        Variant -> [P, N] fp32 signed L2 norm of what it adds (negative: against its direction; 0 where the token mask
        leaves the token out), for P hook points and the N tokens of all texts, one text after another; and
        ``residual`` [P, N], the norm of the residual stream that leaves the block.
    """

    def compute() -> dict[str, Tensor]:
        points = list(vector.tensors)
        starts = torch.tensor([0, *(len(text.ids) for text in texts)]).cumsum(0).tolist()
        device = work.loaded.base.device
        built = {key: {p: i.to(device) for p, i in v.to_interventions().items()} for key, v in variants.items()}
        along = {key: {p: _direction(d, work.d_model, device) for p, d in directions(v).items()}
                 for key, v in variants.items()}  # fmt: skip
        found = {key: torch.zeros(len(points), starts[-1]) for key in (*variants, "residual")}
        done = 0
        for batch in work.batches(texts):
            chosen = batch.select(vector.token_mask)
            trace = work.engine.run(batch, vector, [HookPoint(point.layer) for point in points])
            streams = _what_is_read(work, batch, vector, points)
            for index, point in enumerate(points):
                sizes = {"residual": trace[HookPoint(point.layer)].float().norm(dim=-1)}
                for key, items in built.items():
                    delta = items[point].delta(streams[point]).detach().float()
                    signed = delta.norm(dim=-1)
                    if (direction := along[key][point]) is not None:
                        signed = signed * torch.where(delta @ direction < 0, -1.0, 1.0)
                    sizes[key] = signed.expand(chosen.shape).masked_fill(~chosen, 0.0)
                for key, values in sizes.items():
                    for row, text in enumerate(batch.indices):
                        found[key][index, starts[text] : starts[text + 1]] = batch.unpad(values, row).cpu()
            done += len(batch.texts)
            work.progress(f"scale, {name}", done, len(texts))
        return found

    return work.part(f"sizes {name}, {', '.join(variants)}, {len(texts)} texts", compute)


def _direction(direction: Tensor, width: int, device: torch.device) -> Tensor | None:
    """[D], or None where the change is linear in something that is no direction of the stream."""
    return direction.float().to(device) if len(direction) == width else None


def _what_is_read(
    work: Work, batch: Any, vector: SteeringVector, points: Sequence[HookPoint]
) -> dict[HookPoint, Tensor]:
    """Hook point -> what its intervention is given, [B, T, ...], in the model steered below it."""
    plugin: type[Intervention] = registry.resolve("interventions", vector.intervention)
    if plugin.constant or plugin.reads == "nothing":
        return {point: torch.zeros(*batch.ids.shape, work.d_model, device=batch.ids.device) for point in points}

    if plugin.reads == "module_input":  # which its own steering does not change: one run serves all
        inputs = {point: read_places(plugin, point)[0] for point in points}
        trace = work.engine.run(batch, vector, list(inputs.values()))
        return {point: trace[place] for point, place in inputs.items()}

    def alone(point: HookPoint) -> Tensor:
        """By a run without it: engines read after steering."""
        places = read_places(plugin, point)
        below = {p: named for p, named in vector.tensors.items() if p < point}
        trace = work.engine.run(batch, replace(vector, tensors=below) if below else None, places)
        return torch.stack([trace[place] for place in places]).sum(0)

    found = {points[-1]: alone(points[-1])}
    together = _read_at_once(work, batch, vector, points)
    last = together.get(points[-1])
    if last is not None and _alike(last, found[points[-1]]):
        return together
    return found | {point: alone(point) for point in points[:-1]}


def _read_at_once(
    work: Work, batch: Any, vector: SteeringVector, points: Sequence[HookPoint]
) -> dict[HookPoint, Tensor]:
    """The same for blocks' outputs by one run: a block's output before it is steered is what came in, what attention
    and what the MLP added. Empty where that can't be read; families that scale the sum are told by their last block."""
    if any(point.site != "output" for point in vector.tensors):
        return {}
    parts = {p: [HookPoint(p.layer, site) for site in ("input", "attn_output", "mlp_output")] for p in points}
    try:
        trace = work.engine.run(batch, vector, [place for places in parts.values() for place in places])
    except SteerkitError:  # the family has no such place
        return {}
    return {point: sum((trace[place] for place in places[1:]), trace[places[0]]) for point, places in parts.items()}


def _alike(got: Tensor, truth: Tensor) -> bool:
    tolerance = 1e-4 if truth.dtype in (torch.float32, torch.float64) else 3e-2
    return bool((got - truth).abs().max() <= tolerance * truth.abs().max().clamp_min(1e-30))


def read_places(plugin: type[Intervention], point: HookPoint) -> list[HookPoint]:
    """The places whose sum an intervention reads. They are read in a run without it: engines read after steering."""
    if plugin.reads == "module_input":
        if point.site != "down_proj":
            raise SteerkitError(f"{point}: what a module is given can be read at down_proj only.")
        return [HookPoint(point.layer, "down_input")]
    inner = {"output": ("output",), "attn_output": ("input", "attn_output"),
             "mlp_output": ("input", "attn_output", "mlp_output")}  # fmt: skip
    if point.site not in inner:
        raise SteerkitError(f"{point}: the stream there can't be read; sites: {', '.join(inner)}.")
    return [HookPoint(point.layer, site) for site in inner[point.site]]
