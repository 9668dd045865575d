"""What a training step will take, before any weights are there: measured on a random model of the same widths.

The stand-in has the family, widths and vocabulary of the real model and two depths; sampling and update are run on it
by the trainer's own code. Both are linear in the number of blocks (sampling in all of them, the update in those that
the gradient reaches), so two depths give the real one. Where the whole batch would take long, part of it is timed and
extrapolated by its tokens: attention's growth with the length is left out then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from steerkit.errors import SteerkitError
from steerkit.models import LoadedModel, SteeredModel, find_layout
from steerkit.models.caching import has_running_state
from steerkit.models.logprobs import chunk_rows
from steerkit.models.stand_in import on_meta, stand_in
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.rollouts.footprint import PROBES, Saved, saved_for_backward
from steerkit.training import memory
from steerkit.training.members import build_members, together
from steerkit.training.policy import build_policy, trained_parameters
from steerkit.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steerkit.training.module import SteeringModule

DEPTHS = (2, 8)
PATIENCE = 4e12
"""Floating-point operations of a timed step on the deeper stand-in: half a minute of two CPU cores."""
MOST_TOKENS = 65_536
"""Of a timed step: small models are slowed by the number of their operations, not by the size."""
REPEATS, REPEAT_S = 3, 10.0
"""A stand-in's step is timed so often at most, and not again after so many seconds; the fastest counts."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What would be trained."""

    numbers: int
    policies: int
    lowest: int
    """Lowest steered layer; -1: the weights themselves."""
    adapter: bool
    base: SteeredModel
    """On the meta device."""


def trained(module: SteeringModule, config: Any, dtype: torch.dtype) -> Trained:
    """The policy on a model without numbers.

    Raises:
        SteerkitError: for settings that don't fit the model.
    """
    options = module.settings
    base = on_meta(config, dtype)
    loaded = LoadedModel(base, None, find_layout(base, options.layout), str(options.base))  # type: ignore[arg-type]
    where = {name: options[name] for name in ("intervention", "layers", "site", "token_mask", "vector")}
    _, members = build_members(loaded, module.sweep, where, options.seed, options.lr)
    numbers = sum(p.numel() for m in members for _, group in trained_parameters(m.policy) for p in group)
    adapter = members[0].policy.adapter is not None
    lowest = -1 if adapter else min(point.layer for m in members for point in m.policy.points)
    return Trained(numbers, len(members), lowest, adapter, together(members[:1]))


@dataclass(frozen=True, slots=True)
class Cost:
    """A step of the real model; seconds and bytes."""

    sampling_s: float
    update_s: float
    saved: Saved
    cache_per_token: float
    cache_fixed: float
    chunk: int
    """Rows of logits that are alive at a time in the update."""
    shared_prompts: bool
    timed: str
    """On what it was measured, in words."""


@dataclass(frozen=True, slots=True)
class _Probe:
    blocks: int
    reached: int
    sampling_s: float
    update_s: float
    saved: Saved
    cache_per_token: float
    cache_fixed: float
    chunk: int
    shared_prompts: bool


def step_cost(
    module: SteeringModule,
    config: Any,
    policy: Trained,
    prompts: Sequence[EncodedPrompt],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    room: float | None = None,
) -> Cost:
    """Measure two stand-ins and extrapolate.

    Args:
        prompts: of one step (of one policy).
        length: tokens of a completion.
        room: bytes that a stand-in may take; a shallower one is taken where the usual one needs more.

    Raises:
        SteerkitError: if not even a shallow one fits.
    """
    depth = int(config.get_text_config().num_hidden_layers)
    deep = min(depth, DEPTHS[1])
    per_block, rest = _sizes(policy.base, depth)
    while room is not None and deep > 3 and (per_block * deep + rest) * dtype.itemsize > room:
        deep -= 1
    least = (per_block * deep + rest) * dtype.itemsize
    if room is not None and least > room:
        raise SteerkitError(f"A stand-in of {deep} blocks takes {least / 1e9:.1f} GB, more than this device spares "
                            f"({room / 1e9:.1f} GB): memory and time can't be measured here.")  # fmt: skip
    k = int(module.settings.samples_per_prompt)
    part, tokens = _affordable(prompts, k, length, 2.0 * (per_block * deep + rest))
    reached = depth - 1 - policy.lowest
    # The whole model, steered as it will be, needs no second depth.
    depths = [deep] if deep == depth and policy.lowest <= 0 else sorted({min(2, deep), deep})
    probes = [_probe(module, config, n, policy, part, tokenizer, tokens, dtype, device) for n in depths]
    whole = sum(len(p.ids) for p in prompts) + len(prompts) * k * length
    timed = sum(len(p.ids) for p in part) + len(part) * k * tokens
    scale = policy.policies * whole / timed

    def at(name: str, x: int, by: str) -> float:
        values = [(getattr(probe, by), _get(probe, name)) for probe in probes]
        (x0, y0), (x1, y1) = values[0], values[-1]
        return y1 if x1 == x0 else max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0))

    saved = Saved(*(at(f"saved.{name}", reached, "reached") for name in ("per_token", "per_square", "per_shared")))
    told = f"random models of the same widths with {' and '.join(str(probe.blocks) for probe in probes)} blocks"
    if scale > policy.policies:
        told += f", {len(part)} x {k} samples of {tokens} tokens"
    return Cost(
        scale * at("sampling_s", depth, "blocks"), scale * at("update_s", reached, "reached"), saved,
        at("cache_per_token", depth, "blocks"), at("cache_fixed", depth, "blocks"),
        probes[-1].chunk, probes[-1].shared_prompts, told,
    )  # fmt: skip


def _get(probe: _Probe, name: str) -> float:
    value: Any = probe
    for part in name.split("."):
        value = getattr(value, part)
    return float(value)


def _sizes(model: SteeredModel, depth: int) -> tuple[float, float]:
    """(numbers in a block, numbers elsewhere)"""
    blocks = sum(p.numel() for block in model.layout.block_list(model.base) for p in block.parameters())
    return blocks / depth, sum(p.numel() for p in model.base.parameters()) - blocks


def _affordable(
    prompts: Sequence[EncodedPrompt], k: int, length: int, per_token: float
) -> tuple[list[EncodedPrompt], int]:
    """Shorter completions, then fewer prompts, until the step can be timed."""
    part, tokens = list(prompts), length

    def too_much() -> bool:
        count = sum(len(p.ids) for p in part) + len(part) * k * tokens
        return 4 * per_token * count > PATIENCE or count > MOST_TOKENS  # sampling once, the update three times

    while too_much() and tokens > 64:
        tokens = max(64, tokens // 2)
    while too_much() and len(part) > 1:
        part = part[: len(part) // 2]
    while too_much() and tokens > 8:
        tokens = max(8, tokens // 2)
    return part, tokens


def _probe(
    module: SteeringModule,
    config: Any,
    blocks: int,
    policy: Trained,
    prompts: Sequence[EncodedPrompt],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
) -> _Probe:
    options = module.settings
    base = stand_in(config, blocks, dtype, device)
    loaded = LoadedModel(base, tokenizer, find_layout(base, options.layout), "stand-in")
    places = "all" if policy.adapter or options.layers == "all" else 0
    _, model = build_policy(loaded, options.intervention, places, options.site, options.token_mask)
    model.to(device)
    cached = [_cache_bytes(model, torch.tensor([[5] * n], device=device)) for n in PROBES]
    per_token = (cached[1] - cached[0]) / (PROBES[1] - PROBES[0])
    pad_id = int(tokenizer.pad_token_id or 0)
    saved = saved_for_backward(model, torch.tensor(prompts[0].ids, device=device), pad_id)
    params = SamplingParams(module.params.temperature, length)
    budget = memory.Budget(module.budget.gigabytes)
    micro = budget.micro_batch_tokens(model, prompts, length, pad_id, int(options.micro_batch_tokens))
    small = SamplingParams(params.temperature, min(4, length))
    _step(module, model, tokenizer, prompts[:1], small, micro, pad_id)  # packs weights, starts threads
    params = budget.keeping(model, prompts, int(options.samples_per_prompt), params)
    timed: list[tuple[float, float]] = []
    while len(timed) < REPEATS and sum(map(sum, timed)) < REPEAT_S:  # a small difference is extrapolated far
        timed.append(_step(module, model, tokenizer, prompts, params, micro, pad_id))
    sampling, update = (min(times) for times in zip(*timed, strict=True))
    lowest = -1 if policy.adapter else 0
    return _Probe(
        blocks, blocks - 1 - lowest, sampling, update, saved, per_token,
        max(0.0, cached[0] - per_token * PROBES[0]), chunk_rows(model), not has_running_state(base),
    )  # fmt: skip


def _step(
    module: SteeringModule,
    model: SteeredModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    params: SamplingParams,
    micro_batch_tokens: int,
    pad_id: int,
) -> tuple[float, float]:
    """Seconds of sampling and of the update, all completions having an advantage."""
    k = int(module.settings.samples_per_prompt)
    began = _clock(model.device)
    groups = memory.sample(module.sampler, model, tokenizer, prompts, k, params, 0)
    middle = _clock(model.device)
    advantages = torch.tensor([[1.0 if j % 2 else -1.0 for j in range(k)] for _ in groups])
    n_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    memory.add_gradients(
        model, module.objective, groups, advantages, n_tokens, pad_id, params.temperature, micro_batch_tokens,
        torch.Tensor.backward,
    )  # fmt: skip
    return middle - began, _clock(model.device) - middle


def _cache_bytes(model: SteeredModel, ids: torch.Tensor) -> int:
    with torch.no_grad():
        output = model(ids, torch.ones_like(ids), use_cache=True, logits_to_keep=1)
    held = [value for layer in output.past_key_values.layers for value in vars(layer).values()]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor))


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def one_step(prompts: Sequence[EncodedPrompt], n: int) -> list[EncodedPrompt]:
    """``n`` of the prompts, repeated as needed, each under an id of its own."""
    chosen = [prompts[k % len(prompts)] for k in range(n)]
    return [replace(prompt, example=replace(prompt.example, id=f"{k}")) for k, prompt in enumerate(chosen)]


def made_up_prompts(tokens: int) -> list[EncodedPrompt]:
    """One prompt of so many tokens, where the real ones can't be had."""
    return [EncodedPrompt(Example("0", "", "1"), "", tuple(5 + k % 50 for k in range(tokens)))]
