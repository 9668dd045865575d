"""Rollouts at another precision: what is sampled, and how the update weighs it."""

from __future__ import annotations

import pytest
import torch
from helpers import prompts, tokenizer

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.objectives import RLOO
from steerkit.rollouts import Branches, SamplingParams, completion_log_probs
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.testing import randomize, tiny_model
from steerkit.training.step import accumulate_gradients

TOK = tokenizer()


def policy(family="llama"):
    items = Static.build([HookPoint(1)], 32)
    randomize(items[HookPoint(1)])
    base = tiny_model(family, vocab_size=len(TOK), max_position_embeddings=256, eos_token_id=TOK.eos_token_id)
    return SteeredModel(base, items)


def trainer(model, groups):
    with torch.no_grad():
        return completion_log_probs(model, [Branches.of(g, range(len(g.rollouts))) for g in groups], TOK.pad_token_id)


def sampled(groups):
    return torch.tensor([x for group in groups for rollout in group.rollouts for x in rollout.logprobs])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2"])
@pytest.mark.parametrize(("precision", "largest"), [("bfloat16", 0.5), ("int8", 1.5)])
def test_near_the_policy_and_not_equal(family, precision, largest):
    model = policy(family)
    before = model(torch.tensor([[5, 6, 7]])).logits
    groups = FastSampler(precision=precision).sample(model, TOK, prompts(TOK), 4, SamplingParams(1.0, 12), 0)
    gap = (trainer(model, groups) - sampled(groups)).abs()
    assert 1e-4 < gap.max() < largest
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)


def test_the_update_is_that_of_the_weighted_advantages():
    """Importance weights by hand: the gradient of sum_t w_t A log pi_t with w = min(ratio, cap), held fixed."""
    model = policy()
    groups = FastSampler(precision="int8").sample(model, TOK, prompts(TOK), 3, SamplingParams(1.0, 8), 0)
    advantages = torch.tensor([[1.0, -0.5, 0.25], [0.5, -1.0, 2.0]])
    count = len(sampled(groups))
    stats = accumulate_gradients(
        model, RLOO(), groups, advantages, count, TOK.pad_token_id, 1.0, 60, importance_cap=1.01
    )
    found = model.interventions[HookPoint(1)].vector.grad.clone()
    model.zero_grad()
    branches = [Branches.of(group, range(3)) for group in groups]
    log_probs = completion_log_probs(model, branches, TOK.pad_token_id)
    ratio = (log_probs.detach() - sampled(groups)).exp()
    lengths = torch.tensor([len(r.token_ids) for g in groups for r in g.rollouts])
    per_token = advantages.flatten().repeat_interleave(lengths) * ratio.clamp(max=1.01)
    (-(per_token * log_probs).sum() / count).backward()
    torch.testing.assert_close(found, model.interventions[HookPoint(1)].vector.grad, atol=1e-6, rtol=1e-4)
    found = stats.importance.metrics()
    assert found["importance/cut"] == pytest.approx(float((ratio > 1.01).float().mean()))
    assert (
        0 < stats.importance.metrics()["importance/cut"] < 1
        and 0.9 < stats.importance.metrics()["importance/effective"] <= 1
    )


def test_what_can_not_be():
    with pytest.raises(SteerkitError, match="exact, bfloat16, int8"):
        FastSampler(precision="int4")
    with pytest.raises(SteerkitError, match="another precision"):
        FastSampler(precision="bfloat16").sample(policy("lfm2"), TOK, prompts(TOK), 2, SamplingParams(1.0, 4), 0)
