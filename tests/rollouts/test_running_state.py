"""Hybrid families, whose layers keep a running state: sampling, training and masks against plain full passes."""

from __future__ import annotations

import pytest
import torch
from helpers import prompts, tokenizer

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.models.caching import has_running_state
from steerkit.rollouts import Branches, SamplingParams, completion_log_probs, micro_batches
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import randomize, tiny_model
from steerkit.testing.families import TINY_FAMILIES

HYBRIDS = [
    family
    for family in ("bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "qwen3_5_text", "qwen3_next")
    if family in TINY_FAMILIES
]
GROUPS = [
    Branches([5, 6, 7, 8, 9], [[10, 11, 12], [13], [14, 15, 16, 17, 18, 19]]),
    Branches([20, 21], [[22, 23]]),
]


def steered(family, mask="all", **overrides):
    items = Static.build([HookPoint(k) for k in range(3)], 32)
    for seed, item in enumerate(items.values()):
        randomize(item, seed, std=0.3)
    return SteeredModel(tiny_model(family, **overrides), items, token_mask=mask)


def plain(model, groups, temperature=1.0):
    """One unpadded full pass for each row, its steered positions written out."""
    found = []
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt, *completion]])
            where = model.token_mask.prompt_positions(len(group.prompt))
            where = torch.tensor([where + [model.token_mask.generated] * len(completion)])
            with model.applied(where):
                log_probs = torch.log_softmax(model(ids).logits[0] / temperature, -1)
            found += [log_probs[len(group.prompt) + t - 1, token] for t, token in enumerate(completion)]
    return torch.stack(found)


def test_which_families_have_a_running_state():
    assert all(has_running_state(tiny_model(family)) for family in HYBRIDS)
    assert not any(has_running_state(tiny_model(family)) for family in ("llama", "gemma2", "mpt"))


@pytest.mark.parametrize("sampler", [TransformersSampler(), FastSampler()], ids=["transformers", "fast"])
@pytest.mark.parametrize("mask", ["all", "generated", "not_first_generated"])
@pytest.mark.parametrize("family", HYBRIDS)
def test_sampled_and_trained_log_probabilities_are_those_of_a_full_pass(family, mask, sampler):
    tok = tokenizer()
    model = steered(family, mask, vocab_size=len(tok), max_position_embeddings=128, eos_token_id=tok.eos_token_id)
    groups = sampler.sample(model, tok, prompts(tok), 3, SamplingParams(0.8, 8), seed=3)
    rows = [Branches(group.prompt_ids, [rollout.token_ids for rollout in group.rollouts]) for group in groups]
    sampled = torch.tensor([x for group in groups for rollout in group.rollouts for x in rollout.logprobs])
    with torch.no_grad():
        truth = plain(model, rows, 0.8)
        torch.testing.assert_close(sampled, truth, atol=2e-4, rtol=0)
        torch.testing.assert_close(completion_log_probs(model, rows, tok.pad_token_id, 0.8), truth, atol=2e-4, rtol=0)
        with model.disabled():
            assert (completion_log_probs(model, rows, tok.pad_token_id, 0.8) - truth).abs().max() > 0.05


@pytest.mark.parametrize("family", HYBRIDS)
def test_value_and_gradient_equal_separate_full_passes(family):
    model = steered(family)
    parameters = [item.vector for item in model.interventions.values()]
    together, expected = completion_log_probs(model, GROUPS, 0, 0.7), plain(model, GROUPS, 0.7)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)
    weights = torch.linspace(-1, 1, len(together))
    got = torch.autograd.grad((weights * together).sum(), parameters)
    want = torch.autograd.grad((weights * expected).sum(), parameters)
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


def test_micro_batches_count_the_prompt_of_each_row():
    groups = [Branches([1] * 50, [[2] * 10] * 4)]
    assert len(list(micro_batches(groups, 200))) == 1  # 50 + 4 * (10 + 50 // 8)
    separate = list(micro_batches(groups, 200, shared_prompts=False))
    assert [len(picks) for batch in separate for _, picks in batch] == [3, 1]
