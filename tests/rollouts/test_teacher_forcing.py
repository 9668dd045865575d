"""Shared prompts against one plain full pass a row, in value and gradient, over families."""

import pytest
import torch

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, completion_log_probs, completion_log_probs_and_entropies, micro_batches
from steerkit.testing import FAMILIES, randomize, tiny_model

GROUPS = [
    Branches([5, 6, 7, 8, 9], [[10, 11, 12], [13], [14, 15, 16, 17, 18, 19]]),
    Branches([20, 21], [[22, 23]]),
    Branches([30, 31, 32], [[33], [34, 35, 36, 37]]),
]


def plain(model, temperature):
    """One unpadded full pass for each row, through the full logits."""
    found = []
    for group in GROUPS:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt, *completion]])
            log_probs = torch.log_softmax(model(ids).logits[0].float() / temperature, -1)
            found += [log_probs[len(group.prompt) + t - 1, token] for t, token in enumerate(completion)]
    return torch.stack(found)


@pytest.mark.parametrize("layers", [[0, 1, 2], [1], [2]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradient_equal_separate_full_passes(family, layers):
    built = Static.build([HookPoint(k) for k in layers], 32)
    for seed, item in enumerate(built.values()):
        randomize(item, seed, std=0.2)
    model = SteeredModel(tiny_model(family), built)
    parameters = [item.vector for item in built.values()]
    shared, expected = completion_log_probs(model, GROUPS, 0, 0.7), plain(model, 0.7)
    assert torch.allclose(shared, expected, atol=1e-4)
    weights = torch.linspace(-1, 1, len(shared))
    got = torch.autograd.grad((weights * shared).sum(), parameters)
    want = torch.autograd.grad((weights * expected).sum(), parameters)
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0.01
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_entropies_are_those_of_the_predicting_positions():
    built = Static.build([HookPoint(1)], 32)
    randomize(built[HookPoint(1)], 0, std=0.5)
    model = SteeredModel(tiny_model("qwen2"), built)
    log_probs, entropies = completion_log_probs_and_entropies(model, GROUPS, 0, 0.7)
    assert torch.equal(log_probs, completion_log_probs(model, GROUPS, 0, 0.7))
    expected = []
    for group in GROUPS:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt, *completion]])
            logits = model(ids).logits[0, len(group.prompt) - 1 : -1].float() / 0.7
            expected.append(torch.distributions.Categorical(logits=logits).entropy())
    assert torch.allclose(entropies, torch.cat(expected), atol=1e-4)


def test_single_token_completions_need_no_second_pass():
    model = SteeredModel(tiny_model("llama"), Static.build([HookPoint(1)], 32))
    model.counter.reset()
    values = completion_log_probs(model, [Branches([5, 6], [[7], [8]])], 0)
    assert model.counter.forward_calls == 1 and values.shape == (2,)


def test_micro_batches_lose_nothing_and_respect_the_budget():
    batches = list(micro_batches(GROUPS, 12))
    seen = sorted((index, k) for batch in batches for index, picks in batch for k in picks)
    assert seen == [(g, k) for g, group in enumerate(GROUPS) for k in range(len(group.completions))]
    assert len(batches) > 2
    for batch in batches:
        n = sum(len(picks) for _, picks in batch)
        widest = max(len(GROUPS[i].prompt) for i, _ in batch)
        longest = max(len(GROUPS[i].completions[k]) for i, picks in batch for k in picks)
        assert len(batch) * widest + n * longest <= 12 or n == 1
    assert len(list(micro_batches(GROUPS, 10_000))) == 1
    assert list(micro_batches([], 10)) == []
