"""Decoding steps with fewer calls, against the reference sampler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerkit.baselines import Lora
from steerkit.hookpoints import SITES, HookPoint
from steerkit.interventions import Bias, Gated, LowRank, Projected, Static, Tokenwise
from steerkit.models import SteeredModel
from steerkit.models.stacked import stack
from steerkit.rollouts import SamplingParams, acceleration
from steerkit.rollouts.direct import Direct, steps_directly
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.suffix import kept_layers
from steerkit.testing import randomize, tiny_model
from tests.rollouts.test_fast_sampler import TOK, compare, policy, problems

DIRECT = ("llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "smollm3", "starcoder2")  # experts run as they are


@pytest.fixture
def steps(monkeypatch):
    """How many direct steps were made."""
    made, step = [], Direct.step

    def counted(self, ids):
        made.append(len(ids))
        return step(self, ids)

    monkeypatch.setattr(Direct, "step", counted)
    return made


def with_drawn_biases(model):
    """Zero biases and scales of one would hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    for _name, weight in model.base.named_parameters():
        if weight.dim() == 1:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize("family", DIRECT)
@pytest.mark.parametrize("pack", ["auto", "never", "small"])
def test_equals_the_reference(family, pack, steps, monkeypatch):
    if pack == "small":  # weights as small as these are packed, and prompts run as they do with AVX-512
        monkeypatch.setattr(acceleration, "WORTH_PACKING", 0)
        monkeypatch.setattr(acceleration, "ONEDNN_UPDATE", True)
    model = with_drawn_biases(policy(family))
    assert steps_directly(model)
    steps.clear()
    compare(model, problems(9), FastSampler(max_rows=7, pack="never" if pack == "never" else "auto"))
    assert len(steps) > 20
    assert model.counter.complete
    assert "forward" not in {name for module in model.base.modules() for name in module.__dict__}


@pytest.mark.parametrize(
    "family", ["gemma2", "gpt2", "olmo", "olmo2", "granite", "phi3", "gpt_neox", "ministral3", "stablelm", "smollm3"]
)
def test_what_differs_is_decoded_as_before(family):
    """By its family, its names, or the probe: olmo has llama's names, and clips large queries; of smollm3's blocks the
    fourth has no rotary embedding."""
    settings = {"olmo": {"clip_qkv": 50.0}, "smollm3": {"num_hidden_layers": 4}}
    extra = settings.get(family, {})
    model = policy(family, **extra)
    assert not steps_directly(model)
    compare(model, problems(5), FastSampler(max_rows=9))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("mask", ["all", "not_first_generated"])
def test_steered_at_each_site(site, mask, steps):
    for cls in (Static, Gated, Tokenwise, LowRank, Projected, Bias):
        if site not in cls.sites:
            continue
        base = policy(mask=mask).base
        needed = {"d_inner": 64} if "d_inner" in cls.needs else {}
        points = [HookPoint(1, site), HookPoint(2, site)]
        model = SteeredModel(base, cls.build(points, 32, **needed), token_mask=mask)
        for item in model.interventions.values():
            randomize(item)
        steps.clear()
        compare(model, problems(4), FastSampler(max_rows=6))
        assert steps, cls.__name__


def test_policies_of_their_own(steps):
    """Rows of several policies, and the streams that each of them keeps."""
    base = policy().base
    members = []
    for layer, cls in ((0, Gated), (1, Gated)):
        items = cls.build([HookPoint(layer)], 32)
        randomize(items[HookPoint(layer)], seed=layer)
        members.append(SteeredModel(base, items))
    model = stack(members)
    prompts = [replace(prompt, policy=k % 2) for k, prompt in enumerate(problems(6))]
    params = SamplingParams(1.0, 12, keep_layers=kept_layers(model))
    together = FastSampler().sample(model, TOK, prompts, 2, params, 0)
    assert steps
    for k, member in enumerate(members):
        own = SamplingParams(1.0, 12, keep_layers=kept_layers(member))
        alone = FastSampler().sample(member, TOK, [replace(p, policy=0) for p in prompts[k::2]], 2, own, 0)
        for a, b in zip(alone, together[k::2], strict=True):
            for x, y in zip(a.rollouts, b.rollouts, strict=True):
                assert x.token_ids == y.token_ids
                torch.testing.assert_close(x.stream, y.stream, atol=1e-5, rtol=1e-5)


def test_weights_that_change_are_read_again():
    model = policy()
    compare(model, problems(3), FastSampler())
    with torch.no_grad():
        for name, weight in model.base.named_parameters():
            if "q_proj" in name or "up_proj" in name:
                weight.mul_(1.5)
    compare(model, problems(3), FastSampler())


def test_hooks_of_others_are_called(steps):
    """An analyzer's hook on a block, its attention or its MLP; one on a map that is joined keeps the steps away."""
    model, seen = policy(), []
    block = model.layout.block_list(model.base)[0]
    for module in (block, block.self_attn, block.mlp, block.mlp.down_proj, block.input_layernorm):
        module.register_forward_hook(lambda module, _args, _output: seen.append(type(module).__name__))
    compare(model, problems(2), FastSampler())
    assert len(steps) and len(set(seen)) == 5
    steps.clear()
    block.self_attn.q_proj.register_forward_hook(lambda _module, _args, output: output * 1.1)
    compare(model, problems(2), FastSampler())
    assert not steps
    other = policy()
    other.base.register_forward_hook(lambda _module, _args, _output: seen.append("base"))
    compare(other, problems(2), FastSampler())
    assert not steps and "base" in seen


def test_a_baseline_changes_weights_where_no_copy_stands(steps):
    base = tiny_model("llama", vocab_size=len(TOK), eos_token_id=TOK.eos_token_id)
    adapter = Lora(base, rank=2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05)
    compare(SteeredModel(base, {}, adapter=adapter), problems(3), FastSampler())
    assert not steps


def test_a_broken_step_leaves_the_model_as_it_was():
    model = policy(cls=Static)
    before = model(torch.arange(5)[None]).logits

    class Broken(RuntimeError):
        pass

    def fail(_module, _args, output):
        if output.shape[1] == 1:
            raise Broken
        return output

    handle = model.layout.block_list(model.base)[2].register_forward_hook(fail)
    with pytest.raises(Broken):
        FastSampler().sample(model, TOK, problems(3), 2, SamplingParams(1.0, 4), 0)
    handle.remove()
    torch.testing.assert_close(model(torch.arange(5)[None]).logits, before, rtol=0, atol=0)
    assert "forward" not in {name for module in model.base.modules() for name in module.__dict__}
