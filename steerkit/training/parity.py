"""Sampler and trainer must give one token one log-probability: a probe before the first step, and its diagnosis.

A policy-gradient step weighs log-probabilities of the trainer's full pass with samples of the sampler's cached
decoding; where the two disagree the gradient is of another policy, and nothing else tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from steerkit.errors import TrainingError
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, EncodedPrompt, Sampler, SamplingParams, completion_log_probs
from steerkit.rollouts.transformers_sampler import TransformersSampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOLERANCE = {True: 0.05, False: 0.5}
"""Largest difference (nats) of a token's log-probability between sampler and trainer: fp32 base, 16-bit base."""
APPROXIMATE = 1.0
"""The same for a sampler that says it is approximate: importance weights make up for what is not a fault."""
_TOKENS = 8
_PROMPTS = 4
_VISIBLE = 0.2
"""Nats by which the probe's steering changes some log-probability: enough to see that it is missing."""


def check_parity(
    policy: SteeredModel,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    params: SamplingParams,
) -> float:
    """Sample a few tokens under random steering and compare; the policy is put back as it was.

    Args:
        prompts: one of each policy first, where several share a batch.

    Returns:
        The largest difference in nats.

    Raises:
        TrainingError: if it is above ``TOLERANCE``, with the part that differs.
    """
    probe = _Probe(policy, tokenizer, _one_each(prompts), replace(params, max_tokens=min(_TOKENS, params.max_tokens)))
    limit = TOLERANCE[policy.dtype == torch.float32] if sampler.exact else APPROXIMATE
    with probe.steering():
        gap = probe.gap(sampler)
        if gap <= limit:
            return gap
        cause = probe.cause(sampler, limit)
    raise TrainingError(
        f"Sampler and trainer disagree: log-probabilities of the same tokens differ by {gap:.3g} nats. {cause}"
    )


def _one_each(prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    first = {prompt.policy: prompt for prompt in reversed(prompts)}
    chosen = list(first.values())[:_PROMPTS]
    rest = [prompt for prompt in prompts if prompt not in chosen]
    return chosen + rest[: max(0, 2 - len(chosen))]


class _Probe:
    def __init__(
        self,
        policy: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[EncodedPrompt],
        params: SamplingParams,
    ) -> None:
        self.policy, self.tokenizer, self.prompts, self.params = policy, tokenizer, prompts, params

    @contextmanager
    def steering(self) -> Iterator[None]:
        """Random parameters, large enough to change what is predicted. Weights (LoRA, full) stay as they are."""
        parameters = [] if self.policy.adapter is not None else list(self.policy.steering.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
        try:
            with torch.no_grad():
                for scale in (0.01, 0.1, 1.0, 10.0) if parameters else ():
                    for parameter, old, new in zip(parameters, before, noise, strict=True):
                        parameter.copy_(old + scale * new)
                    if self._visible():
                        break
            yield
        finally:
            with torch.no_grad():
                for parameter, old in zip(parameters, before, strict=True):
                    parameter.copy_(old)

    def _visible(self) -> bool:
        rows = [Branches(p.ids, [p.ids[-1:] * 2], p.segments, policy=p.policy) for p in self.prompts]
        steered = completion_log_probs(self.policy, rows, self._pad, self.params.temperature)
        with self.policy.disabled():
            base = completion_log_probs(self.policy, rows, self._pad, self.params.temperature)
        return float((steered - base).abs().max()) > _VISIBLE

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def gap(self, sampler: Sampler, policy: SteeredModel | None = None, keep: bool = True) -> float:
        policy = policy or self.policy
        prompts = self.prompts if policy is self.policy else [replace(p, policy=0) for p in self.prompts]
        params = self.params if keep and policy is self.policy else replace(self.params, keep_layers=())
        groups = sampler.sample(policy, self.tokenizer, prompts, 2, params, seed=0)
        worst = 0.0
        for group in groups:  # one by one: streams of different blocks don't mix, and padding is probed as well
            with torch.no_grad():
                branches = Branches.of(group, range(len(group.rollouts)))
                trainer = completion_log_probs(policy, [branches], self._pad, params.temperature)
            own = torch.tensor([x for rollout in group.rollouts for x in rollout.logprobs], device=trainer.device)
            worst = max(worst, float((trainer - own).abs().max()))
        return worst

    def cause(self, sampler: Sampler, limit: float) -> str:
        """One sentence: the part that makes the difference, and what to do."""
        name = type(sampler).__name__
        if self.params.keep_layers and self.gap(sampler, keep=False) <= limit:
            return "It comes from the residual stream that rollouts keep: set memory_budget low to do without it."
        reference = TransformersSampler()
        if type(sampler) is not TransformersSampler and self.gap(reference, keep=False) <= limit:
            return f"It comes from the sampler {name}: set sampler: transformers."
        bare = SteeredModel(self.policy.base, {}, self.policy.layout)
        if self.policy.adapter is None and self.gap(reference, bare) > limit:
            return (
                "The base alone differs: its cached decoding is not its full pass (steerkit doctor tells more). Try "
                "another dtype or attention implementation."
            )
        return "The base alone agrees: the intervention is not the same in cached decoding as in a full pass."
