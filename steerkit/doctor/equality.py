"""Checks that one computation, done in different ways, gives the same numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from steerkit.doctor.rows import Finding
from steerkit.doctor.subject import PREFILL, TEXTS, largest, worst_gap
from steerkit.rollouts import Branches, EncodedPrompt, Sampler, SamplingParams, completion_log_probs
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing.equalities import Triples, cached, generated, left_padded, single_rows
from steerkit.types import Example

if TYPE_CHECKING:
    from steerkit.doctor.subject import Subject

SIGNAL = 4.0
"""An error must move the logits by at least this many tolerances."""
NATS = {torch.float32: 0.05, torch.float16: 0.5, torch.bfloat16: 0.5}
"""What training itself tolerates between sampler and trainer (``training.parity.TOLERANCE``)."""

_WHOSE = {
    "batch": "Rows of a batch change each other: this model can't be batched; look for a bug in its modelling code.",
    "padded": (
        "The model doesn't mask left padding or ignores position_ids: use transformers' own modelling code for this "
        "family, or a family that takes padding; training on padded batches would be wrong."
    ),
    "cached": (
        "The model's KV cache doesn't give the full pass: update transformers, or use its own modelling code; every "
        "sampled token would come from other numbers than the ones that are trained."
    ),
}


def alone(subject: Subject) -> Finding:
    """The base without steering: its own noise, against which steering is judged."""
    noise = subject.noise
    shown = ", ".join(f"{name} {value:.1g}" for name, value in noise.items())
    wrong = [name for name, value in noise.items() if not value <= subject.ceiling]
    found = f"{shown} of the largest logit ({largest(subject.plain):.3g})"
    figures = {"noise": finite(noise), "largest_logit": largest(subject.plain), "ceiling": subject.ceiling}
    if wrong:
        advice = " ".join(_WHOSE[name] for name in wrong)
        return Finding("fail", f"{found}; at most {subject.ceiling:.1g} can be rounding", advice, figures)
    return Finding("pass", found, figures=figures)


def sensitive(subject: Subject) -> Finding:
    """An error would show: steering, and a shift by one position, move the logits by far more than the tolerance."""
    limit = SIGNAL * subject.tolerance * largest(subject.plain)
    shifted = subject.no_grad(lambda: subject.steered(subject.ids.roll(1, 1)).logits)
    moved = {
        "steering": _least(subject.full, subject.plain),
        "shift": _least(shifted, subject.full),
    }
    found = ", ".join(f"{name} moves logits by {value:.2g}" for name, value in moved.items())
    figures = {"moved": finite(moved), "needed": limit}
    if not min(moved.values()) > limit:
        advice = "Differences drown in rounding: examine it with --dtype float32; is it a trained model?"
        return Finding("fail", f"{found}; needed: {limit:.2g}", advice, figures)
    return Finding("pass", f"{found} (tolerance {subject.tolerance * largest(subject.full):.2g})", figures=figures)


def padded(subject: Subject) -> Finding:
    """Left-padded = unpadded, steered."""
    return _judged(subject, left_padded(subject.steered, subject.ids, subject.full, subject.pad_id), _WHOSE["padded"])


def cached_steps(subject: Subject) -> Finding:
    """Prefill and token by token = one full pass, steered."""
    return _judged(subject, cached(subject.steered, subject.ids, subject.full, PREFILL), _WHOSE["cached"])


def single(subject: Subject) -> Finding:
    """A row alone = the row in a batch, steered."""
    return _judged(subject, single_rows(subject.steered, subject.ids, subject.full), _WHOSE["batch"])


def disabled(subject: Subject) -> Finding:
    """``disabled()`` = the base, bit for bit; and no hook outlives its scope."""

    def same() -> tuple[bool, bool]:
        with subject.steered.disabled():
            inside = subject.steered(subject.ids).logits
        after = subject.base(input_ids=subject.ids).logits
        return torch.equal(inside, subject.plain), torch.equal(after, subject.plain)

    inside, after = subject.no_grad(same)
    if inside and after:
        return Finding("pass", "bit for bit, inside the scope and after it")
    where = "inside disabled()" if not inside else "after a steered pass"
    return Finding(
        "fail",
        f"other logits {where}",
        "Does the base give the same bits twice? Turn off non-deterministic kernels and dropout; else report a bug.",
    )


def generate(subject: Subject) -> Finding:
    """``base.generate`` under ``applied()``: the counter saw every token, the logits are those of a full pass."""
    new, rows, length = 4, *subject.ids.shape
    judged = _judged(subject, generated(subject.steered, subject.ids, new), _WHOSE["cached"])
    counter = subject.steered.counter
    expected = rows * (length + new - 1)
    figures = {"tokens": counter.tokens, "steered": counter.total, "expected_tokens": expected}
    if counter.tokens != expected or not counter.complete:
        found = f"{counter.total} of {expected} x {counter.layers} positions were steered"
        advice = "generate() runs the blocks in another way (compiled, or assisted decoding): sample through steerkit."
        return Finding("fail", found, advice, figures)
    found = f"{counter.total} of {expected} x {counter.layers} positions steered; {judged.found}"
    return Finding(judged.status, found, judged.advice, {**judged.figures, **figures})


def sampled(subject: Subject) -> Finding:
    """Log-probabilities of sampled tokens = those of the trainer's pass over the same tokens."""
    return _parity(subject, TransformersSampler())


def fast_sampled(subject: Subject) -> Finding:
    """The same for the sampler ``fast``."""
    return _parity(subject, FastSampler())


def gradients(subject: Subject) -> Finding:
    """A finite gradient reaches each vector, and nothing else."""
    ids = subject.ids.tolist()
    branches = [Branches(ids[0][:8], [ids[1][:4], ids[2][:4]])]
    parameters = [item.vector for item in subject.steered.interventions.values()]
    with torch.enable_grad():
        total = completion_log_probs(subject.steered, branches, subject.pad_id).sum()
        found = torch.autograd.grad(total, parameters, allow_unused=True)  # type: ignore[arg-type]
    lengths = {
        str(point): None if gradient is None else float(gradient.norm())
        for point, gradient in zip(subject.steered.points, found, strict=True)
    }
    bad = [point for point, length in lengths.items() if not length or not math.isfinite(length)]
    if bad:
        advice = "A kernel without a backward pass, or 16-bit overflow: try --dtype float32 or another attention."
        return Finding("fail", f"none, or not finite, at {', '.join(bad)}", advice)
    shown = ", ".join(f"{point} {length:.2g}" for point, length in lengths.items())
    return Finding("pass", f"norms: {shown}", figures={"gradient_norms": lengths})


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _parity(subject: Subject, sampler: Sampler) -> Finding:
    rows = [tuple(subject.tokenizer(text)["input_ids"][:n]) for text, n in zip(TEXTS[:2], (12, 9), strict=True)]
    prompts = [
        EncodedPrompt(Example(f"doctor{k}", TEXTS[k], ""), TEXTS[k], tuple(map(int, row))) for k, row in enumerate(rows)
    ]
    groups = sampler.sample(subject.steered, subject.tokenizer, prompts, 2, SamplingParams(1.0, 6), seed=0)
    branches = [Branches(group.prompt_ids, [rollout.token_ids for rollout in group.rollouts]) for group in groups]
    trained = subject.no_grad(lambda: completion_log_probs(subject.steered, branches, subject.pad_id))
    rolled = torch.tensor([x for group in groups for rollout in group.rollouts for x in rollout.logprobs])
    gap = float((trained.cpu() - rolled).abs().max())
    # |log softmax(a) - log softmax(b)| is at most 2 max |a - b|.
    limit = min(NATS[subject.dtype], 2 * subject.tolerance * largest(subject.full))
    found = f"{gap:.1g} nats over {len(rolled)} tokens; allowed {limit:.1g}"
    figures = {"gap_nats": gap if math.isfinite(gap) else None, "allowed_nats": limit, "tokens": len(rolled)}
    if not gap <= limit:
        advice = "Sampler and trainer disagree, so RL would be off-policy: try --dtype float32, and see the rows above."
        return Finding("fail", found, advice, figures)
    return Finding("pass", found, figures=figures)


def _judged(subject: Subject, triples: Triples, advice: str) -> Finding:
    unit = largest(subject.full)
    gap = subject.no_grad(lambda: worst_gap(triples)) / unit
    figures = {"gap": gap if math.isfinite(gap) else None, "allowed": subject.tolerance, "largest_logit": unit}
    found = f"{gap:.1g} of the largest logit; allowed {subject.tolerance:.1g}"
    if gap <= subject.tolerance:
        return Finding("pass", found, figures=figures)
    return Finding("fail", found, advice, figures)


def _least(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of each row; the least of the rows."""
    return float((one.float() - other.float()).abs().flatten(1).amax(1).min())
