"""How much memory a training step takes: what can be is measured on a few tokens, the rest is arithmetic.

    sampling = weights + cache + logits of the rows + one block's activations of the prompts
    update   = weights + saved activations of a micro-batch + logits of a chunk (+ allocator)
    step     = the larger of the two (the cache is freed before the update)

- weights: bytes of all parameters and buffers, as they are stored (quantised ones too).
- cache: rows x tokens x bytes a token, measured on this model's own cache at two lengths (so grouped heads, latent
  attention and running states need no rule), times 1 + 2 / blocks: a block's cache is copied when a token is appended.
- logits of the rows: rows x vocabulary x (bytes of the base's dtype + 4 fp32 copies: log-probabilities, probabilities,
  their sum, and one to spare).
- saved activations: what autograd keeps for the backward pass, measured at two lengths with vectors on all blocks, and
  extrapolated as a T + b T^2 a row, plus what a completion keeps of its prompt (measured too), plus one block's worth
  in passing. A micro-batch holds at most ``micro_batch_tokens`` padded tokens.
- logits of a chunk: its rows (``models.logprobs.chunk_rows``) x vocabulary x (bytes of its dtype + 4 fp32 copies).
- allocator: on a CPU only, where freed pieces between those that are kept can't be used again.

Left out: the process itself (0.5 to 1 GB with torch; a CUDA context), the vectors and their optimiser (kilobytes),
what a GPU's caching allocator wastes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.doctor.rows import Finding, Status
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.models.caching import has_running_state
from steerkit.models.layout import text_config
from steerkit.models.logprobs import chunk_rows
from steerkit.rollouts import Branches, micro_batches
from steerkit.rollouts.footprint import PROBES, Saved, saved_for_backward

if TYPE_CHECKING:
    from steerkit.doctor.subject import Subject

HEAP = 0.8
"""What the C library's heap takes on top in an update on a CPU, at most (measured: docs/doctor.md)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One training step."""

    prompts: int = 8
    k: int = 16
    """Samples a prompt."""
    prompt_tokens: int = 128
    max_tokens: int = 128
    max_rows: int = 256
    """The sampler's: sequences decoded at once."""
    micro_batch_tokens: int = 16384
    """The trainer's: padded tokens in one forward and backward pass."""
    asked: bool = False
    """Whether the user named any of these: only then does it fail if the device is too small."""

    def __post_init__(self) -> None:
        for name in ("prompts", "k", "prompt_tokens", "max_tokens", "max_rows", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise SteerkitError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured on the model; bytes."""

    weights: int
    cache_per_token: float
    cache_fixed: float
    """A row's running state, whatever its length."""
    saved: Saved
    blocks: int
    vocabulary: int
    itemsize: int
    chunk: int
    """Rows of logits that are alive at a time in the update."""
    shared_prompts: bool
    on_cpu: bool

    def sampling(self, batch: Batch) -> dict[str, float]:
        """The parts of the memory while sampling."""
        prompts = min(batch.prompts, max(1, batch.max_rows // batch.k))
        rows = prompts * batch.k
        length = batch.prompt_tokens + batch.max_tokens
        row = self.cache_per_token * length + self.cache_fixed
        return {
            "weights": self.weights,
            "cache": rows * row * (1 + 2 / self.blocks),
            "logits": rows * self.vocabulary * (self.itemsize + 16),
            "prefill": prompts * self.saved.row(batch.prompt_tokens) / self.blocks,
        }

    def update(self, batch: Batch) -> dict[str, float]:
        """The parts of the memory in the largest micro-batch, all completions being as long as they may."""
        group = Branches([0] * batch.prompt_tokens, [[0] * batch.max_tokens] * batch.k)
        largest, chunk = 0.0, 0
        for batch_ in micro_batches([group] * batch.prompts, batch.micro_batch_tokens, self.shared_prompts):
            rows = sum(len(picks) for _, picks in batch_)
            length = batch.prompt_tokens + batch.max_tokens
            if self.shared_prompts:
                # A completion's tokens attend to the whole row.
                answer = self.saved.row(batch.max_tokens, length) + self.saved.per_shared * batch.prompt_tokens
                saved = len(batch_) * self.saved.row(batch.prompt_tokens) + rows * answer
            else:
                saved = rows * self.saved.row(length)
            largest, chunk = max(largest, saved), max(chunk, min(self.chunk, rows * batch.max_tokens))
        parts = {
            "weights": self.weights,
            "activations": largest * (1 + 1 / self.blocks),
            "logits": chunk * self.vocabulary * (self.itemsize + 16),
        }
        if self.on_cpu:
            parts["allocator"] = HEAP * (parts["activations"] + parts["logits"])
        return parts


def measure(subject: Subject) -> Costs:
    """Two forward passes with gradients and two with a cache."""
    points = [HookPoint(layer) for layer in range(subject.bare.n_layers)]
    model = SteeredModel(subject.base, Static.build(points, subject.bare.d_model), subject.layout)
    flat = subject.ids.flatten()
    rows = [flat.repeat(1 + length // len(flat))[:length][None] for length in PROBES]
    cached = subject.no_grad(lambda: [_cache_bytes(model, ids) for ids in rows])
    short, long = PROBES
    per_token = (cached[1] - cached[0]) / (long - short)
    tensors = {t.data_ptr(): t for t in [*subject.base.parameters(), *subject.base.buffers()]}
    return Costs(
        weights=sum(t.numel() * t.element_size() for t in tensors.values()),
        cache_per_token=per_token,
        cache_fixed=max(0.0, cached[0] - per_token * short),
        saved=saved_for_backward(model, flat, subject.pad_id),
        blocks=subject.bare.n_layers,
        vocabulary=int(text_config(subject.base).vocab_size),
        itemsize=subject.base.dtype.itemsize,
        chunk=chunk_rows(model),
        shared_prompts=not has_running_state(subject.base),
        on_cpu=subject.base.device.type == "cpu",
    )


def memory(subject: Subject) -> Finding:
    """The estimate for the batch that was asked for, against what the device has."""
    costs, batch = measure(subject), subject.batch
    phases = {"sampling": costs.sampling(batch), "update": costs.update(batch)}
    peak = max(sum(parts.values()) for parts in phases.values())
    room = device_memory(subject.base.device)
    told = "; ".join(
        f"{name} {size(sum(parts.values()))} ({', '.join(f'{part} {size(n)}' for part, n in parts.items())})"
        for name, parts in phases.items()
    )
    asked = f"{batch.prompts} x {batch.k} samples of {batch.prompt_tokens} + {batch.max_tokens} tokens"
    figures: dict[str, Any] = {"peak": peak, "device": room, **phases, "batch": asked}
    if room is not None and peak > room:
        fits = _fitting(costs, batch, room)
        advice = f"It would fit with {fits}." if fits else "Not even a small batch fits: take a 16-bit --dtype."
        status: Status = "fail" if batch.asked else "note"
        return Finding(status, f"{asked}: {told}; the device has {size(room)}", advice, figures)
    return Finding("pass", f"{asked}: {told}", figures=figures)


def _fitting(costs: Costs, batch: Batch, room: int) -> str | None:
    """The largest halvings of the two settings that bound memory, so that the batch fits; None if none does."""
    rows, tokens = batch.max_rows, batch.micro_batch_tokens
    while rows > batch.k and sum(costs.sampling(replace(batch, max_rows=rows)).values()) > room:
        rows //= 2
    while tokens > 1 and sum(costs.update(replace(batch, micro_batch_tokens=tokens)).values()) > room:
        tokens //= 2
    small = replace(batch, max_rows=rows, micro_batch_tokens=tokens)
    if max(sum(costs.sampling(small).values()), sum(costs.update(small).values())) > room:
        return None
    changed = [f"the sampler's max_rows: {rows}"] * (rows != batch.max_rows)
    changed += [f"model.micro_batch_tokens: {tokens}"] * (tokens != batch.micro_batch_tokens)
    return " and ".join(changed)


def speed(subject: Subject) -> Finding:
    """Two timed passes: a rough lower bound of a step's time."""
    batch = subject.batch

    def timed() -> tuple[float, float]:
        began = _clock(subject)
        output = subject.steered(subject.ids, torch.ones_like(subject.ids), use_cache=True)
        middle = _clock(subject)
        mask = torch.ones(len(subject.ids), subject.ids.shape[1] + 1, dtype=torch.long, device=subject.base.device)
        subject.steered(subject.ids[:, -1:], mask, past_key_values=output.past_key_values, use_cache=True)
        return middle - began, _clock(subject) - middle

    full, step = subject.no_grad(timed)
    waves = -(-batch.prompts // max(1, batch.max_rows // batch.k))
    least = waves * batch.max_tokens * step
    found = (
        f"{subject.ids.numel()} tokens in {full:.2g} s, a decoding step of {len(subject.ids)} rows in {step:.2g} s: "
        f"sampling this batch takes {least:.2g} s or more"
    )
    return Finding("note", found, figures={"forward_s": full, "decode_step_s": step, "sampling_at_least_s": least})


def size(n: float) -> str:
    """Bytes for people: 1 GB = 10^9 bytes."""
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def device_memory(device: torch.device) -> int | None:
    """Bytes of the device (of the machine, for a CPU), or None where it can't be asked."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _cache_bytes(model: SteeredModel, ids: Tensor) -> int:
    output = model(ids, torch.ones_like(ids), use_cache=True, logits_to_keep=1)
    return sum(t.numel() * t.element_size() for layer in output.past_key_values.layers for t in _tensors(vars(layer)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _clock(subject: Subject) -> float:
    if subject.base.device.type == "cuda":
        torch.cuda.synchronize(subject.base.device)
    return time.perf_counter()
