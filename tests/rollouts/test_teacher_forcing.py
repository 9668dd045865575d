"""Shared prompts against one plain full pass a row, in value and gradient, over families."""

from dataclasses import replace

import pytest
import torch

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Static
from steerkit.models import SteeredModel, token_log_probs, token_log_probs_and_entropies
from steerkit.models.positions import mask_positions
from steerkit.rollouts import (
    Branches,
    completion_log_probs,
    micro_batches,
    prompt_pass,
)
from steerkit.rollouts.beginnings import shared_tokens
from steerkit.rollouts.suffix import keep_stream, kept_layers
from steerkit.rollouts.teacher_forcing import predicting_states
from steerkit.testing import FAMILIES, randomize, tiny_model
from steerkit.token_masks import TokenMask

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
    log_probs, entropies = token_log_probs_and_entropies(model, *predicting_states(model, GROUPS, 0), 0.7)
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


def few_shot(n=23):
    """The groups behind ``n`` tokens that all prompts have in common."""
    common = [40 + t % 30 for t in range(n)]
    return [
        Branches([*common, *g.prompt], g.completions, ("system",) * n + ("problem",) * len(g.prompt)) for g in GROUPS
    ]


def gradients(model, groups):
    model.zero_grad()
    log_probs = completion_log_probs(model, groups, 0)
    (torch.linspace(-1, 1, len(log_probs)) * log_probs).sum().backward()
    return log_probs.detach(), [p.grad.clone() for item in model.interventions.values() for p in item.parameters()]


def with_and_without(model, groups, monkeypatch):
    """The same numbers with the beginning run once and with each prompt whole; returns (rows, T) of the calls."""
    calls, results = [], []
    owner = model.base.get_submodule(model.layout.blocks.rpartition(".")[0])

    def note(_module, args, kwargs):
        (given,) = [x for x in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1]) if x is not None]
        calls.append(tuple(given.shape[:2]))

    handle = owner.register_forward_pre_hook(note, with_kwargs=True)
    for shared in (True, False):
        with monkeypatch.context() as patch:
            if not shared:
                patch.setattr(prompt_pass, "shared_tokens", lambda *_: 0)
            results.append(gradients(model, groups))
    handle.remove()
    (values, grads), (expected, wanted) = results
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    for a, b in zip(grads, wanted, strict=True):
        assert b.abs().max() > 2e-4
        torch.testing.assert_close(a, b, atol=2e-6 + 1e-4 * float(b.abs().max()), rtol=0)
    return calls


MASKS = ["all", "prompt", "segment:system", "first_generated", "last_prompt:2"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cls", [Static, Gated])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "falcon"])
def test_what_prompts_begin_with_is_run_once(family, cls, mask, monkeypatch):
    """Worked examples before each prompt: the same log-probabilities and gradients as with whole prompts."""
    extra = {"ffn_dim": 64, "word_embed_proj_dim": 32} if family == "opt" else {}
    built = cls.build([HookPoint(k) for k in (0, 1)], 32)
    for seed, item in enumerate(built.values()):
        randomize(item, seed, std=0.2)
    model = SteeredModel(tiny_model(family, **extra), built, token_mask=mask)
    calls = with_and_without(model, few_shot(), monkeypatch)
    assert calls[:2] == [(1, 23), (3, 5)] and calls[3] == (3, 28)


@pytest.mark.parametrize("points", [[1], [2], [1, 2]], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox"])
def test_kept_streams_of_a_common_beginning(family, points, monkeypatch):
    built = Gated.build([HookPoint(k) for k in points], 32)
    for seed, item in enumerate(built.values()):
        randomize(item, seed, std=0.2)
    model = SteeredModel(tiny_model(family), built)
    (layer,) = kept_layers(model)
    groups = []
    for group in few_shot():
        rows = []
        for completion in group.completions:
            with torch.no_grad(), model.disabled(), keep_stream(model, layer) as kept:
                model.hidden_states(torch.tensor([[*group.prompt, *completion]]))
            rows.append(kept[-1][0])
        n = len(group.prompt)
        streams = [row[n:-1] for row in rows]
        groups.append(replace(group, stream=rows[0][:n], streams=streams, layer=layer))
    with_and_without(model, groups, monkeypatch)
    plain = [Branches(group.prompt, group.completions, group.segments) for group in groups]
    for a, b in zip(gradients(model, groups)[1], gradients(model, plain)[1], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_where_a_common_beginning_is_not_shared():
    groups = few_shot()
    ids = [group.prompt for group in groups]

    def tokens(model, steered=None, policies=(0, 0, 0), columns=34):
        return shared_tokens(model, ids, policies, steered, columns)

    plain = SteeredModel(tiny_model("llama"))
    assert tokens(plain) == 23
    assert tokens(plain, policies=(0, 1, 0)) == 0
    assert tokens(SteeredModel(tiny_model("bloom"))) == 0  # its positions come from the mask
    sliding = SteeredModel(tiny_model("mistral", sliding_window=33))
    assert tokens(sliding) == 0 and tokens(sliding, columns=33) == 23
    local = SteeredModel(tiny_model("gpt_neo", window_size=33))
    assert tokens(local) == 0
    # The last 4 tokens of a prompt: in two of the three they begin in what all have in common, and not at one place.
    masks = [
        mask_positions(TokenMask(f"last_prompt:{n}"), list(map(len, ids)), [()] * 3, 28, plain.device) for n in (2, 4)
    ]
    assert tokens(plain, masks[0]) == 23 and tokens(plain, masks[1]) == 0
    assert shared_tokens(plain, [ids[0][:7], ids[1][:7]], (0, 0), None, 20) == 0  # too little


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


@pytest.mark.parametrize("common", [0, 23])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_gradients_that_wait_at_the_prompts(family, common):
    """Three backward passes of completions and one through the prompts are one through all."""
    model = SteeredModel(tiny_model(family), Static.build([HookPoint(0), HookPoint(2)], 32))
    for seed, item in enumerate(model.interventions.values()):
        randomize(item, seed, std=0.2)
    groups = few_shot(common) if common else GROUPS
    parts = [[(0, [0, 2])], [(0, [1]), (2, [0])], [(1, [0]), (2, [1])]]
    found = []
    for apart in (False, True):
        model.zero_grad()
        prompts = prompt_pass.PromptPass(model, groups, 0, apart)
        assert bool(prompts.waiting) == apart
        for part in parts:
            log_probs = token_log_probs(model, *prompts.states(part))
            (torch.linspace(-1, 1, len(log_probs)) * (1 + log_probs)).sum().backward(retain_graph=not apart)
        prompts.backward()
        found.append([item.vector.grad.clone() for item in model.interventions.values()])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
