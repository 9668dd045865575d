"""The transformers sampler against teacher forcing, the exact distribution, and transformers' own greedy decoding."""

import math

import pytest
import torch
from helpers import prompts, tokenizer

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, SamplingParams, completion_log_probs
from steerkit.rollouts.sampler import draw_tokens
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import tiny_model

FAMILIES = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")


def steered(family: str, tok, scale: float = 0.3):
    base = tiny_model(family, vocab_size=len(tok), eos_token_id=tok.eos_token_id)
    model = SteeredModel(base, {})
    interventions = Static.build([HookPoint(layer) for layer in range(model.n_layers)], model.d_model)
    generator = torch.Generator().manual_seed(0)
    for item in interventions.values():
        item.vector.data = scale * torch.randn(model.d_model, generator=generator)
    return SteeredModel(base, interventions)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_log_probabilities_equal_a_teacher_forced_pass(family):
    tok = tokenizer()
    model = steered(family, tok)
    groups = TransformersSampler().sample(model, tok, prompts(tok), 4, SamplingParams(0.8, 12), seed=3)
    rows = [Branches(group.prompt_ids, [rollout.token_ids for rollout in group.rollouts]) for group in groups]
    expected = completion_log_probs(model, rows, tok.pad_token_id, temperature=0.8)
    sampled = torch.tensor([x for group in groups for rollout in group.rollouts for x in rollout.logprobs])
    assert torch.allclose(sampled, expected.detach(), atol=2e-4)
    with model.disabled():
        unsteered = completion_log_probs(model, rows, tok.pad_token_id, temperature=0.8)
    assert (unsteered - expected).abs().max() > 0.05, "steering must matter for this test to mean anything"


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_same_seed_same_samples_whatever_the_batch(family):
    tok = tokenizer()
    model = steered(family, tok)
    texts = ("Tom has 12 apples.", "Anna gives Tom 3 more. How many?", "12+3=", "Anna")
    params = SamplingParams(1.0, 16)
    together = TransformersSampler().sample(model, tok, prompts(tok, texts), 4, params, seed=5)
    alone = TransformersSampler(max_rows=1).sample(model, tok, prompts(tok, texts), 4, params, seed=5)
    fewer = TransformersSampler().sample(model, tok, prompts(tok, texts)[:1], 2, params, seed=5)
    for a, b in zip(together, alone, strict=True):
        assert [r.token_ids for r in a.rollouts] == [r.token_ids for r in b.rollouts]
    assert [r.token_ids for r in fewer[0].rollouts] == [r.token_ids for r in together[0].rollouts[:2]]
    other = TransformersSampler().sample(model, tok, prompts(tok, texts), 4, params, seed=6)
    assert [r.token_ids for g in other for r in g.rollouts] != [r.token_ids for g in together for r in g.rollouts]


def test_greedy_equals_transformers_generate():
    tok = tokenizer()
    model = steered("llama", tok)
    group = TransformersSampler().sample(model, tok, prompts(tok)[:1], 1, SamplingParams(0.0, 10), seed=0)[0]
    with model.applied(), torch.no_grad():
        ids = torch.tensor([group.prompt_ids])
        out = model.base.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=tok.pad_token_id
        )
    assert group.rollouts[0].token_ids == tuple(out[0, ids.shape[1] :].tolist())


def test_steering_is_counted_on_every_decoded_token():
    tok = tokenizer()
    model = steered("llama", tok)
    batch = prompts(tok)
    model.counter.reset()
    groups = TransformersSampler().sample(model, tok, batch, 1, SamplingParams(1.0, 8), seed=0)
    width = max(len(p.ids) for p in batch)
    assert model.counter.complete
    longest = max(len(r.token_ids) for g in groups for r in g.rollouts)
    assert model.counter.forward_calls == longest  # prefill gives the first token; the last is never fed back
    assert model.counter.tokens >= 2 * width + longest - 1


def test_finish_reasons_and_lengths():
    tok = tokenizer()
    base = tiny_model("llama", vocab_size=len(tok), eos_token_id=tok.eos_token_id)
    with torch.no_grad():  # an unembedding that always says end-of-sequence after any token
        base.lm_head.weight.zero_()
    model = SteeredModel(base, {})
    groups = TransformersSampler().sample(model, tok, prompts(tok), 64, SamplingParams(1.0, 6), seed=0)
    for rollout in (r for g in groups for r in g.rollouts):
        stopped = rollout.token_ids[-1] == tok.eos_token_id
        assert rollout.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(rollout.token_ids) == 6
        assert tok.eos_token_id not in rollout.token_ids[:-1]
        assert all(math.isclose(x, -math.log(len(tok)), abs_tol=1e-4) for x in rollout.logprobs)


def test_draws_follow_the_distribution():
    logits = torch.tensor([[2.0, 0.0, -1.0, float("-inf"), 1.0]]).expand(20000, -1)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for temperature in (1.0, 0.5):
        ids, log_probs = draw_tokens(logits, u, SamplingParams(temperature))
        expected = torch.softmax(logits[0] / temperature, -1)
        counts = torch.bincount(ids, minlength=5) / 20000
        assert torch.allclose(counts, expected, atol=1e-3)
        assert counts[3] == 0
        assert torch.allclose(log_probs, expected.log()[ids], atol=1e-5)
    extreme = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw_tokens(logits[:2], extreme, SamplingParams(1.0))[0].tolist() == [0, 4]


def expected_of(logits, params):
    """By sorting: the rule in its plainest form."""
    probabilities = torch.softmax(logits.double() / params.temperature, -1)
    order = probabilities.argsort(descending=True)
    if params.top_k:
        order = order[: params.top_k]
    kept = probabilities[order] / probabilities[order].sum()
    order = order[(kept.cumsum(0) - kept) < params.top_p]
    chosen = torch.zeros_like(probabilities)
    chosen[order] = probabilities[order] / probabilities[order].sum()
    return chosen


@pytest.mark.parametrize("size", [5, 256, 700, 3 * 256])
@pytest.mark.parametrize("params", [SamplingParams(1.0), SamplingParams(0.7, top_p=0.6), SamplingParams(1.3, top_k=20)])
def test_chi_square_of_draws(size, params):
    """Random uniforms against the exact distribution, large vocabularies and truncation included."""
    generator = torch.Generator().manual_seed(size)
    logits = 2 * torch.randn(size, generator=generator)
    logits[size // 2] = float("-inf")
    n = 60_000
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    ids, log_probs = draw_tokens(logits.expand(n, -1), u, params)
    expected = expected_of(logits, params)
    counts = torch.bincount(ids, minlength=size).double()
    assert (counts[expected == 0] == 0).all()
    # Rare tokens together, so that each cell has enough.
    rare = expected * n < 10
    cells = (
        torch.cat([counts[~rare], counts[rare].sum()[None]]),
        torch.cat([expected[~rare], expected[rare].sum()[None]]),
    )
    used = cells[1] * n > 1
    statistic = ((cells[0] - n * cells[1])[used].square() / (n * cells[1][used])).sum()
    from scipy.stats import chi2

    freedom = int(used.sum()) - 1  # none where the nucleus is one token: then the zeros above say it all
    assert not freedom or chi2.sf(float(statistic), freedom) > 1e-3
    exact = torch.log_softmax(logits.double() / params.temperature, -1)[ids]
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [7, 256, 1000])
def test_a_draw_never_leaves_the_support(size):
    logits = torch.full((2, size), float("-inf"))
    logits[:, 3], logits[:, min(size - 2, 5)] = 0.0, 1.0
    extreme = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw_tokens(logits, extreme, SamplingParams())[0].tolist() == [3, min(size - 2, 5)]


@pytest.mark.parametrize("bad", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_bad_truncation(bad):
    with pytest.raises(SteerkitError, match=next(iter(bad))):
        SamplingParams(1.0, **bad)


def test_bad_settings():
    with pytest.raises(SteerkitError, match="temperature"):
        SamplingParams(-1.0)
    with pytest.raises(SteerkitError, match="max_tokens"):
        SamplingParams(1.0, 0)
    with pytest.raises(SteerkitError, match="max_rows"):
        TransformersSampler(0)
