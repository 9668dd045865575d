"""Policies that share a batch: each does what it does alone, in samples, log-probabilities and gradients."""

from __future__ import annotations

import pytest
import torch
from helpers import prompts, tokenizer

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, LowRank, Projected, Static, Tokenwise
from steerkit.models import SteeredModel
from steerkit.models.stacked import stack
from steerkit.objectives import RLOO, leave_one_out_advantages
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.suffix import kept_layers
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import randomize, tiny_model
from steerkit.training.step import accumulate_gradients

TOK = tokenizer()
KINDS = [(Static, {}), (Gated, {}), (Tokenwise, {"d_inner": 64}), (Projected, {"rank": 3}), (LowRank, {"rank": 2})]
PLACES = ([2], [0], [0, 1, 2], [1])


def policies(family="llama", cls=Static, settings=None, mask="all", places=PLACES):
    """Each with hook points and numbers of its own, on one base in double precision: rounding flips no sample."""
    base = tiny_model(family, vocab_size=len(TOK), max_position_embeddings=256, eos_token_id=TOK.eos_token_id)
    if family != "gemma2":  # its attention's softmax is in float32, where double's mask of a padded row is infinite
        base = base.double()
    found = []
    for number, layers in enumerate(places):
        items = cls.build([HookPoint(k, cls.sites[0]) for k in layers], 32, **(settings or {}))
        for item in dict.fromkeys(items.values()):
            randomize(item, 7 * number + len(found))
        found.append(SteeredModel(base, items, token_mask=mask))
    return found


def tagged(batch, policy, seed=None):
    return [EncodedPrompt(p.example, p.text, p.ids, p.segments, policy, seed) for p in batch]


@pytest.mark.parametrize("sampler", [FastSampler(), FastSampler(max_rows=7), TransformersSampler()])
@pytest.mark.parametrize(("cls", "settings"), KINDS)
def test_samples_of_each_policy_alone(sampler, cls, settings):
    alone, params, batch = policies(cls=cls, settings=settings), SamplingParams(1.0, 12), prompts(TOK)
    together = [p for number in range(len(alone)) for p in tagged(batch, number, seed=number % 2)]
    groups = sampler.sample(stack(alone), TOK, together, 3, params, seed=99)
    for number, model in enumerate(alone):
        own = sampler.sample(model, TOK, batch, 3, params, seed=number % 2)
        shared = [group for group in groups if group.policy == number]
        for one, other in zip(own, shared, strict=True):
            assert [r.token_ids for r in one.rollouts] == [r.token_ids for r in other.rollouts]
            for a, b in zip(one.rollouts, other.rollouts, strict=True):
                torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-6, rtol=1e-6)
    # They do differ from each other: else the test shows nothing.
    assert len({tuple(r.token_ids for g in groups if g.policy == n for r in g.rollouts) for n in (0, 2)}) == 2


@pytest.mark.parametrize("mask", ["all", "first_generated", "not_first_generated"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize(("cls", "settings"), KINDS)
def test_gradients_of_each_policy_alone(family, cls, settings, mask):
    if cls is Tokenwise:
        settings = {"d_inner": 128 if family == "gpt2" else 64}
    alone, params, batch = policies(family, cls, settings, mask), SamplingParams(1.0, 8), prompts(TOK)
    both = stack(alone)
    params = SamplingParams(1.0, 8, keep_layers=kept_layers(both))
    generator = torch.Generator().manual_seed(0)
    together = [p for number in range(len(alone)) for p in tagged(batch, number)]
    groups = FastSampler().sample(both, TOK, together, 3, params, seed=5)
    rewards = torch.rand(len(groups), 3, generator=generator)
    advantages = leave_one_out_advantages(rewards)
    counts = [sum(len(r.token_ids) for g in groups if g.policy == n for r in g.rollouts) for n in range(len(alone))]
    accumulate_gradients(both, RLOO(), groups, advantages, counts, TOK.pad_token_id, 1.0, 200)
    shared = [[p.grad.clone() for p in model.parameters() if p.requires_grad] for model in alone]
    for number, model in enumerate(alone):
        model.zero_grad()
        own = [(k, group) for k, group in enumerate(groups) if group.policy == number]
        rows = torch.stack([advantages[k] for k, _ in own])
        reference = [EncodedPrompt(group.example, group.prompt, group.prompt_ids, group.segments) for _, group in own]
        again = TransformersSampler().sample(model, TOK, reference, 3, SamplingParams(1.0, 8), seed=5)
        assert [r.token_ids for g in again for r in g.rollouts] == [r.token_ids for _, g in own for r in g.rollouts]
        accumulate_gradients(model, RLOO(), again, rows, counts[number], TOK.pad_token_id, 1.0, 10_000)
        for a, b in zip(shared[number], [p.grad for p in model.parameters() if p.requires_grad], strict=True):
            assert b.abs().max() > 1e-6
            exact = 1e-7 if model.dtype == torch.float64 else 1e-5
            torch.testing.assert_close(a, b, atol=exact, rtol=100 * exact)


def test_a_policy_without_hook_points_is_the_base():
    (model,) = policies(places=([0, 2],))
    bare = SteeredModel(model.base)
    both, batch, params = stack([model, bare]), prompts(TOK), SamplingParams(0.0, 10)
    groups = FastSampler().sample(both, TOK, [*tagged(batch, 0), *tagged(batch, 1)], 1, params, 0)
    for number, alone in enumerate((model, bare)):
        own = FastSampler().sample(alone, TOK, batch, 1, params, 0)
        assert [g.rollouts[0].token_ids for g in own] == [g.rollouts[0].token_ids for g in groups if g.policy == number]


@pytest.mark.parametrize("sampler", [FastSampler(), TransformersSampler()])
def test_a_stack_of_one_is_that_policy(sampler):
    (alone,), batch, params = policies(places=([0, 2],)), prompts(TOK), SamplingParams(1.0, 8)
    together = stack([alone])
    assert together.points == alone.points and together.points_of(0) == alone.points
    own, shared = (sampler.sample(model, TOK, batch, 2, params, 3) for model in (alone, together))
    assert [r.token_ids for g in own for r in g.rollouts] == [r.token_ids for g in shared for r in g.rollouts]
    advantages = torch.tensor([[1.0, -1.0]] * len(batch))
    accumulate_gradients(together, RLOO(), shared, advantages, 100, TOK.pad_token_id, 1.0, 200)
    assert all(p.grad.abs().max() > 1e-6 for p in alone.parameters() if p.requires_grad)


def test_what_can_not_share_a_batch():
    first, second = policies(places=([0], [1]))
    with pytest.raises(SteerkitError, match="one base and one token mask"):
        stack([first, SteeredModel(first.base, second.interventions, token_mask="prompt")])
    with pytest.raises(SteerkitError, match="one kind of intervention"):
        stack([first, SteeredModel(first.base, Gated.build([HookPoint(0)], 32))])
    with pytest.raises(SteerkitError, match="at least one"):
        stack([])
    with pytest.raises(SteerkitError, match="whose each row is"):
        stack([first, second])(torch.zeros(2, 3, dtype=torch.long))
