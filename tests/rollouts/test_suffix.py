"""The update from the kept stream: the same log-probabilities and gradients as the whole model's, for less work."""

from __future__ import annotations

import pytest
import torch

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Static, Tokenwise
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, SamplingParams, completion_log_probs
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.suffix import SuffixCache, keep_stream, kept_layers, suffix_states
from steerkit.testing import randomize, tiny_model
from tests.helpers import prompts, tokenizer

IDS = torch.randint(3, 97, (3, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 8, [0] * 3 + [1] * 5, [0, 1, 1, 1, 1, 1, 1, 1]])
POSITIONS = (MASK.cumsum(-1) - 1).clamp(min=0)


def policy(family, points, cls=Static, mask="all", **overrides) -> SteeredModel:
    settings = {"d_inner": 64} if cls is Tokenwise else {}
    items = cls.build([HookPoint.parse(p) for p in points], 32, **settings)
    for seed, item in enumerate(items.values()):
        randomize(item, seed)
    return SteeredModel(tiny_model(family, **overrides), items, token_mask=mask)


def kept_layer_of(model):
    (layer,) = kept_layers(model)
    return layer


def both(model, layer):
    """(whole pass, pass from the kept stream) with their gradients."""
    with torch.no_grad(), model.disabled(), keep_stream(model, layer) as kept:
        model.hidden_states(IDS, MASK, POSITIONS)
    results = []
    for run in (
        lambda: model.hidden_states(IDS, MASK, POSITIONS),
        lambda: suffix_states(model, layer, kept[-1], MASK, POSITIONS, SuffixCache(layer + 1), None),
    ):
        model.zero_grad()
        states = run()
        real = states[MASK.bool()]
        real.square().sum().backward()
        gradients = [p.grad.clone() for item in model.interventions.values() for p in item.parameters()]
        results.append((real.detach(), gradients))
    return results


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gpt_neox", "mistral"])
@pytest.mark.parametrize("points", [["layers.2.output"], ["layers.1.output"], ["layers.0.output", "layers.2.output"]])
@pytest.mark.parametrize("cls", [Static, Gated])
def test_same_states_and_gradients(family, points, cls):
    model = policy(family, points, cls)
    layer = kept_layer_of(model)
    assert layer == HookPoint.parse(points[0]).layer
    (states, gradients), (again, twice) = both(model, layer)
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients, twice, strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


def test_sites_inside_a_block_keep_the_layer_below():
    model = policy("llama", ["layers.1.attn_output", "layers.2.output"], Gated)
    assert kept_layer_of(model) == 0
    (states, gradients), (again, twice) = both(model, 0)
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients, twice, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
    assert kept_layer_of(policy("llama", ["layers.0.down_proj"], Tokenwise)) is None


def test_the_stream_is_kept_before_it_is_steered():
    model = policy("llama", ["layers.1.output"])
    with torch.no_grad(), keep_stream(model, 1) as kept:
        with model.disabled():
            model.hidden_states(IDS, MASK, POSITIONS)
        with model.applied():
            model.base(input_ids=IDS, attention_mask=MASK, position_ids=POSITIONS)
            with keep_stream(model, 1) as late:
                model.base(input_ids=IDS, attention_mask=MASK, position_ids=POSITIONS)
    assert len(kept) == 3 and torch.equal(kept[0], kept[1]) and torch.equal(kept[0], late[0])
    assert not any(m._forward_hooks for m in model.base.modules())


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "opt"])
def test_families_that_can_t_be_cut_are_found_out(family):
    """gemma scales embeddings, gpt2 and opt add positions to them; the last layer needs no cut."""
    extra = {"ffn_dim": 64, "word_embed_proj_dim": 32} if family == "opt" else {}
    assert kept_layer_of(policy(family, ["layers.1.output"], **extra)) is None
    model = policy(family, ["layers.2.output"], **extra)
    assert kept_layer_of(model) == 2
    (states, _), (again, _) = both(model, 2)
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-5)


def test_blocks_of_two_kinds_are_left_alone():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = policy("qwen2", ["layers.0.output"], use_sliding_window=True, sliding_window=4, layer_types=kinds)
    assert kept_layer_of(model) is None


def test_disabled_is_the_base():
    model = policy("llama", ["layers.1.output"])
    with torch.no_grad(), model.disabled():
        with keep_stream(model, 1) as kept:
            truth = model.hidden_states(IDS, MASK, POSITIONS)
        again = suffix_states(model, 1, kept[-1], MASK, POSITIONS, SuffixCache(2), None)
    torch.testing.assert_close(again[MASK.bool()], truth[MASK.bool()], atol=1e-5, rtol=1e-5)


def test_cached_pieces_equal_the_whole():
    model = policy("llama", ["layers.1.output"])
    with torch.no_grad():
        with model.disabled(), keep_stream(model, 1) as kept:
            model.hidden_states(IDS, MASK, POSITIONS)
        truth = model.hidden_states(IDS, MASK, POSITIONS)
        cache, pieces = SuffixCache(2), []
        for start, end in ((0, 5), (5, 8)):
            piece = kept[-1][:, start:end], MASK[:, :end], POSITIONS[:, start:end]
            pieces.append(suffix_states(model, 1, *piece, cache, None))
    torch.testing.assert_close(torch.cat(pieces, 1)[MASK.bool()], truth[MASK.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gpt_neox"])
@pytest.mark.parametrize("points, mask, cls", [
    (["layers.2.output"], "all", Static),
    (["layers.1.output"], "first_generated", Static),
    (["layers.1.output", "layers.2.output"], "not_first_generated", Gated),
    (["layers.1.down_proj"], "generated", Tokenwise),
    (["layers.0.output", "layers.1.attn_output"], "prompt", Gated),
])  # fmt: skip
def test_recorded_rollouts_give_the_gradient_of_the_whole_model(family, points, mask, cls):
    """The sampler keeps the stream, the update starts from it: same log-probabilities, same gradient."""
    tok = tokenizer()
    shape = {"vocab_size": len(tok), "eos_token_id": tok.eos_token_id, "max_position_embeddings": 128}
    model = policy(family, points, cls, mask, **shape)
    model.base.generation_config.eos_token_id = list(range(20, 90))  # an end every few tokens
    texts = ("Tom has 12 apples.", "Anna gives Tom 3 more. How many?", "Tom", "Anna has 3.")
    layer = kept_layer_of(model)
    assert layer is not None
    params = SamplingParams(1.0, 12, keep_layers=(layer,))
    groups = FastSampler(max_rows=7).sample(model, tok, prompts(tok, texts), 3, params, seed=0)
    lengths = {len(r.token_ids) for g in groups for r in g.rollouts}
    assert min(lengths) <= 2 and len(lengths) >= 3, "short ones too: they have no token to be fed"
    results = []
    for keep in (True, False):
        branches = [Branches.of(g, range(3)) for g in groups]
        if not keep:
            branches = [Branches(b.prompt, b.completions, b.segments) for b in branches]
        assert all((b.stream is not None) == keep for b in branches)
        model.zero_grad()
        log_probs = completion_log_probs(model, branches, tok.pad_token_id)
        (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
        results.append(
            (log_probs.detach(), [p.grad.clone() for i in model.interventions.values() for p in i.parameters()])
        )
    sampled = torch.tensor([x for g in groups for r in g.rollouts for x in r.logprobs])
    torch.testing.assert_close(results[0][0], sampled, atol=2e-5, rtol=0)
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert mask == "prompt" or a.abs().max() > 1e-4
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)
