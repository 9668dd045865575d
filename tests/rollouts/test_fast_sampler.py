"""The fast sampler draws what the reference draws, whatever joins, leaves or moves in its cache."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Static
from steerkit.models import SteeredModel
from steerkit.rollouts import EncodedPrompt, SamplingParams, direct, fast_sampler
from steerkit.rollouts.beginnings import common_prefix
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.prefill import PromptStore
from steerkit.rollouts.shared_attention import shares_prompts
from steerkit.rollouts.slab_cache import SlabCache
from steerkit.rollouts.suffix import kept_layers
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import randomize, tiny_model
from steerkit.types import Example
from tests.helpers import tokenizer

TOK = tokenizer()


@pytest.fixture(params=["direct", "shared", "slab"])
def cache(request, monkeypatch):
    """Both of its caches, the one where samples share their prompt and the one for families that can't; and with the
    first also the steps that go by the family's modules.
    """
    if request.param == "shared":
        monkeypatch.setattr(direct, "steps_directly", lambda model: False)
    if request.param == "slab":
        monkeypatch.setattr(fast_sampler, "shares_prompts", lambda model, length: False)
    return request.param


def policy(family="llama", mask="all", cls=Static, **overrides) -> SteeredModel:
    settings = {"vocab_size": len(TOK), "eos_token_id": TOK.eos_token_id, "max_position_embeddings": 128} | overrides
    base = tiny_model(family, **settings)
    base.generation_config.eos_token_id = list(range(20, 40))  # an end every few tokens: rows leave at all times
    items = cls.build([HookPoint(1)], 32)
    randomize(next(iter(items.values())))
    return SteeredModel(base, items, token_mask=mask)


def problems(n: int) -> list[EncodedPrompt]:
    lengths = [3 + 7 * k % 11 for k in range(n)]
    return [
        EncodedPrompt(Example(f"p{k}", "x", "1"), "x", tuple(40 + (k * 13 + t) % 50 for t in range(length)))
        for k, length in enumerate(lengths)
    ]


def compare(model, prompts, sampler, k=3, temperature=1.0, max_tokens=16, seed=0):
    params = SamplingParams(temperature, max_tokens)
    truth = TransformersSampler(64).sample(model, TOK, prompts, k, params, seed)
    got = sampler.sample(model, TOK, prompts, k, params, seed)
    for expected, found in zip(truth, got, strict=True):
        assert (found.example, found.prompt_ids) == (expected.example, expected.prompt_ids)
        for a, b in zip(expected.rollouts, found.rollouts, strict=True):
            assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
            torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=2e-5, rtol=0)
    return got


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", "phi3", "qwen3", "gemma2", "mistral", "opt"])
def test_equals_the_reference(family, cache):
    extra = {"sliding_window": 8} if family in ("gemma2", "mistral") else {}
    if family == "opt":
        extra = {"ffn_dim": 64, "word_embed_proj_dim": 32}
    model = policy(family, **extra)
    groups = compare(model, problems(9), FastSampler(max_rows=7))
    lengths = {len(r.token_ids) for g in groups for r in g.rollouts}
    assert len(lengths) > 4, "rows must end at different times, else nothing joins or leaves"
    assert model.counter.complete
    windowed = family in ("gemma2", "mistral")
    assert shares_prompts(model, 30) != windowed


@pytest.mark.parametrize("max_rows", [1, 3, 4, 8, 27, 256])
def test_any_number_of_rows(max_rows, cache):
    compare(policy(), problems(9), FastSampler(max_rows=max_rows))


@pytest.mark.parametrize(("most", "passes"), [(1, 9), (26, 5), (8192, 1)])
def test_prompts_run_in_passes_that_memory_allows(most, passes, cache, monkeypatch):
    calls = []
    prefill = fast_sampler.prefill
    monkeypatch.setattr(fast_sampler, "PREFILL_TOKENS", most)
    monkeypatch.setattr(fast_sampler, "prefill", lambda *arguments: calls.append(1) or prefill(*arguments))
    compare(policy(), problems(9), FastSampler())
    assert len(calls) == passes


@pytest.mark.parametrize("mask", ["prompt", "generated", "first_generated", "not_first_generated", "last_prompt:2"])
def test_masks(mask, cache):
    compare(policy(mask=mask, cls=Gated), problems(6), FastSampler(max_rows=6))


def test_prompts_are_kept_while_the_model_is_unchanged(cache, monkeypatch):
    """The same samples, bit for bit, from half of the passes; outside the block, and for other prompts, anew."""
    passes, model, sampler = [], policy(), FastSampler()
    real = fast_sampler.prefill
    monkeypatch.setattr(fast_sampler, "prefill", lambda *given: passes.append(1) or real(*given))
    prompts, calls = problems(6), [(0.0, 1), (1.0, 3)]

    def draw(shown=prompts):
        return [sampler.sample(model, TOK, shown, k, SamplingParams(t, 12), seed=2) for t, k in calls]

    alone = draw()
    fewer = draw(prompts[:5])
    assert len(passes) == 4
    with sampler.unchanged_model():
        assert draw() == alone and len(passes) == 5
        assert draw() == alone and len(passes) == 5
        assert draw(prompts[:5]) == fewer and len(passes) == 6
    with torch.no_grad():
        for item in model.interventions.values():
            item.vector.mul_(-3)
    with sampler.unchanged_model():
        assert draw() != alone and len(passes) == 7
    monkeypatch.setattr(PromptStore.__init__, "__defaults__", (1000,))  # no room
    with sampler.unchanged_model():
        draw()
    assert len(passes) == 9


def test_greedy_and_cut_off(cache):
    compare(policy(), problems(5), FastSampler(max_rows=4), k=1, temperature=0.0, max_tokens=5)
    groups = compare(policy(), problems(5), FastSampler(max_rows=6), max_tokens=2)
    assert any(r.finish_reason == "length" for g in groups for r in g.rollouts)


def test_long_runs_shift_the_columns(monkeypatch):
    """Many more prompts than fit at once: the columns run out and are given back."""
    shifts = []
    advance = SlabCache.advance

    def counted(self):
        before = self.column
        advance(self)
        shifts.append(self.column < before + 1)

    monkeypatch.setattr(SlabCache, "advance", counted)
    monkeypatch.setattr(fast_sampler, "shares_prompts", lambda model, length: False)
    compare(policy(), problems(40), FastSampler(max_rows=6))
    assert sum(shifts) >= 2


def test_the_cache_is_gone_when_the_samples_are_there(cache, monkeypatch):
    """Not when the garbage collector comes by: an evaluation of many arms would hold several caches."""
    layers, model = [], policy()
    shares_prompts(model, 30), direct.steps_directly(model)  # probes, with caches of their own
    kind = SlabCache if cache == "slab" else fast_sampler.SharedPromptCache
    join = kind.join

    def spied(self, *arguments):
        join(self, *arguments)
        layers.extend(weakref.ref(layer) for layer in self.layers)

    monkeypatch.setattr(kind, "join", spied)
    gc.disable()
    try:
        FastSampler().sample(model, TOK, problems(3), 2, SamplingParams(1.0, 4), 0)
        assert layers and not any(layer() for layer in layers)
    finally:
        gc.enable()


def test_a_small_token_budget_means_few_rows():
    compare(policy(), problems(6), FastSampler(token_budget=60))


def test_models_that_it_can_t_do_are_left_to_the_reference(monkeypatch):
    model = policy()
    monkeypatch.setattr(fast_sampler, "supported", lambda model: False)
    monkeypatch.setattr(fast_sampler, "_Decoder", None)
    compare(model, problems(4), FastSampler())


def test_packed_weights_and_grouped_attention(monkeypatch):
    """Weights large enough to be packed, grouped heads; both are undone afterwards."""
    from steerkit.rollouts import acceleration

    monkeypatch.setattr(acceleration, "WORTH_PACKING", 1)
    model = policy(num_attention_heads=4, num_key_value_heads=2)
    ids = torch.tensor([[40, 41, 42]])
    before = model(ids).logits
    compare(model, problems(5), FastSampler())
    compare(model, problems(5), FastSampler(pack="never"))
    assert torch.equal(model(ids).logits, before)
    assert model.base.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.base.modules())


def test_changed_weights_are_packed_anew(monkeypatch):
    from steerkit.rollouts import acceleration

    monkeypatch.setattr(acceleration, "WORTH_PACKING", 1)
    model = policy()
    compare(model, problems(2), FastSampler())
    with torch.no_grad():
        model.base.model.layers[0].mlp.up_proj.weight.mul_(-2)
    compare(model, problems(2), FastSampler())


@pytest.mark.parametrize("settings", [{"max_rows": 0}, {"token_budget": 0}, {"pack": "sometimes"}])
def test_bad_settings(settings):
    with pytest.raises(SteerkitError):
        FastSampler(**settings)


def test_nothing_to_sample():
    assert FastSampler().sample(policy(), TOK, [], 2, SamplingParams(), 0) == []


@pytest.mark.parametrize(
    "family", ["gemma2", "gpt2", "qwen3_moe", "olmo2", "cohere", "gemma3_text", "smollm3", "starcoder2"]
)
def test_prompts_are_shared_in_more_families(family):
    model = policy(family)
    assert shares_prompts(model, 30)
    compare(model, problems(7), FastSampler(max_rows=9))


@pytest.mark.parametrize("family", ["falcon", "stablelm", "deepseek_v3", "gpt_neo"])
def test_families_that_attend_in_their_own_way_are_found(family):
    """By the probe; their prompts stand in each sample's rows."""
    model = policy(family)
    assert not shares_prompts(model, 30)
    compare(model, problems(7), FastSampler(max_rows=9))


def test_the_attention_is_put_back():
    model = policy()
    compare(model, problems(3), FastSampler())
    assert model.base.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3", "gpt_neox"])
def test_the_same_seed_at_any_batch(family):
    """At batch 1, 8 and 64: the same tokens; and where one differs, its draw was at a boundary."""
    model, params = policy(family), SamplingParams(1.0, 16)
    samples = [FastSampler(max_rows=rows).sample(model, TOK, problems(16), 8, params, seed=3) for rows in (1, 8, 64)]
    flat = [[r for group in groups for r in group.rollouts] for groups in samples]
    same = sum(a.token_ids == b.token_ids for other in flat[1:] for a, b in zip(flat[0], other, strict=True))
    assert same >= 0.999 * 2 * len(flat[0]) and len(flat[0]) == 128


def with_beginning(prompts, n, segments=("system", "problem")):
    """The same prompts behind ``n`` tokens that all have in common."""
    common = tuple(60 + t % 30 for t in range(n))
    return [
        EncodedPrompt(p.example, p.text, common + p.ids, (segments[0],) * n + (segments[1],) * len(p.ids))
        for p in prompts
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3", "falcon", "mistral"])
def test_what_prompts_begin_with_is_run_once(family):
    """Worked examples before each problem: one row of them is run, whatever comes behind."""
    model, beginning = policy(family, **({"sliding_window": 8} if family == "mistral" else {})), 23
    seen = []
    model.base.get_input_embeddings().register_forward_hook(lambda _m, given, _o: seen.append(tuple(given[0].shape)))
    prompts = with_beginning(problems(7), beginning)
    compare(model, prompts, FastSampler(max_rows=9))  # probes are made
    seen.clear()
    FastSampler().sample(model, TOK, prompts, 3, SamplingParams(1.0, 4), 0)
    if family == "mistral":  # its window is shorter than the prompts
        assert seen[0][0] == 7
    else:
        assert seen[0][0] == 1 and seen[0][1] >= beginning and seen[1][0] == 7 and seen[1][1] < 14


@pytest.mark.parametrize(
    "mask", ["prompt", "generated", "first_generated", "not_first_generated", "last_prompt:9", "segment:system"]
)
def test_masks_behind_a_common_beginning(mask, cache):
    compare(policy(mask=mask, cls=Gated), with_beginning(problems(6), 20), FastSampler())


@pytest.mark.parametrize("points", [[0], [1], [2], [1, 2]])
def test_streams_of_a_common_beginning(points):
    items = Gated.build([HookPoint(k) for k in points], 32)
    for seed, item in enumerate(items.values()):
        randomize(item, seed)
    model = SteeredModel(policy().base, items)
    params = SamplingParams(1.0, 6, keep_layers=kept_layers(model))
    prompts = with_beginning(problems(6), 20)
    shared = FastSampler().sample(model, TOK, prompts, 2, params, 0)
    alone = [FastSampler().sample(model, TOK, [prompt], 2, params, 0)[0] for prompt in prompts]
    for one, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(one.stream, other.stream, atol=1e-5, rtol=1e-5)
        assert len(one.stream) == len(one.prompt_ids)


def test_common_prefixes():
    assert common_prefix([(1, 2, 3), (1, 2, 4)]) == 2
    assert common_prefix([(1, 2), (1, 2)]) == 1  # one token of each is left to be run
    assert common_prefix([(5,), (5, 6)]) == 0


@pytest.mark.parametrize(
    "sampler",
    [FastSampler(max_rows=96), FastSampler(), TransformersSampler(256)],
    ids=["few rows", "fast", "transformers"],
)
@pytest.mark.parametrize("params", [SamplingParams(0.9, 2), SamplingParams(0.7, 2, top_k=8)], ids=["whole", "top_k"])
def test_chi_square_of_whole_completions(params, sampler, cache):
    """Completions of two tokens, end-of-sequence included, against the probabilities of plain forward passes."""
    from scipy.stats import chi2

    model, n, classes = policy(), 6000, 5
    prompt = problems(2)[1]
    groups = sampler.sample(model, TOK, [problems(2)[0], prompt], n, params, 11)  # beside another prompt's samples
    vocab, ends = len(TOK), {*range(20, 40), TOK.eos_token_id}
    rows = torch.cat([torch.tensor(prompt.ids).expand(vocab, -1), torch.arange(vocab)[:, None]], 1)
    with model.applied(), torch.no_grad():
        logits = model.base(rows).logits.double()[:, -2:] / params.temperature
    if params.top_k:
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[..., -1:], float("-inf"))
    first, second = logits[0, 0].softmax(-1), logits[:, 1].softmax(-1)
    expected = torch.zeros(vocab, classes + 1, dtype=torch.float64)
    for token in range(vocab):
        if token in ends:
            expected[token, classes] = first[token]  # nothing comes after it
        else:
            expected[token, :classes].index_add_(0, torch.arange(vocab) % classes, first[token] * second[token])
    counts = torch.zeros_like(expected)
    for rollout in groups[1].rollouts:
        ids = rollout.token_ids
        counts[ids[0], ids[1] % classes if len(ids) > 1 else classes] += 1
    assert (counts[expected == 0] == 0).all() and counts.sum() == n
    rare = expected * n < 5
    seen, wanted = (torch.cat([table[~rare], table[rare].sum()[None]]) for table in (counts, n * expected))
    seen, wanted = seen[wanted > 1], wanted[wanted > 1]
    assert len(wanted) > 15
    assert chi2.sf(float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1) > 1e-3
