"""Tokenwise is PEFT's rank-1 LoRA on down_proj with alpha = r = 1: the same logits, the same policy gradient."""

from __future__ import annotations

import pytest
import torch
from helpers import prompts, tokenizer
from peft import LoraConfig, get_peft_model

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Tokenwise
from steerkit.models import SteeredModel
from steerkit.objectives import RLOO
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import randomize, tiny_model
from steerkit.training.step import accumulate_gradients

# PEFT asks transformers for it.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")

LAYERS, TEMPERATURE = (0, 2), 0.7
DOWN = {"llama": "mlp.down_proj", "qwen2": "mlp.down_proj", "gemma2": "mlp.down_proj", "gpt2": "mlp.c_proj"}
ADVANTAGES = torch.tensor([[1.5, -0.5, -1.0], [0.0, 0.75, -0.75]])
TOK = tokenizer()


def pair(family: str):
    """The same random a and b in steerkit and in PEFT, at layers 0 and 2."""
    settings = {"vocab_size": len(TOK), "eos_token_id": TOK.eos_token_id}
    base, twin = tiny_model(family, **settings), tiny_model(family, **settings)
    inner = 128 if family == "gpt2" else 64
    items = Tokenwise.build([HookPoint(layer, "down_proj") for layer in LAYERS], 32, d_inner=inner)
    for seed, item in enumerate(items.values()):
        randomize(item, seed, std=0.2)
    steered = SteeredModel(base, items)
    names = [f"{steered.layout.blocks}.{layer}.{DOWN[family]}" for layer in LAYERS]
    config = LoraConfig(r=1, lora_alpha=1, target_modules=names, fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM")
    wrapped = get_peft_model(twin, config).eval()
    layers = [wrapped.base_model.model.get_submodule(name) for name in names]
    with torch.no_grad():
        for layer, item in zip(layers, items.values(), strict=True):
            layer.lora_A.default.weight.copy_(item.a[None])
            layer.lora_B.default.weight.copy_(item.b[:, None])
    return steered, wrapped, layers


def policy_gradient_loss(model, groups, n_tokens):
    """-(1 / tokens) sum_i A_i log pi(y_i | x), one rollout at a time through the full logits."""
    total = torch.zeros(())
    for group, advantages in zip(groups, ADVANTAGES.tolist(), strict=True):
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            ids = torch.tensor([[*group.prompt_ids, *rollout.token_ids]])
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0] / TEMPERATURE, -1)
            tokens = torch.tensor(rollout.token_ids)
            total = total - advantage * log_probs[len(group.prompt_ids) - 1 : -1].gather(1, tokens[:, None]).sum()
    return total / n_tokens


@pytest.mark.parametrize("family", DOWN)
def test_the_policy_gradient_is_that_of_rank_1_lora(family):
    steered, wrapped, layers = pair(family)
    groups = TransformersSampler().sample(steered, TOK, prompts(TOK), 3, SamplingParams(TEMPERATURE, 9), seed=1)
    n_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    stats = accumulate_gradients(steered, RLOO(), groups, ADVANTAGES, n_tokens, TOK.pad_token_id, TEMPERATURE, 10_000)

    loss = policy_gradient_loss(wrapped, groups, n_tokens)
    loss.backward()
    assert stats.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    for layer, item in zip(layers, steered.interventions.values(), strict=True):
        for ours, theirs in (
            (item.a.grad, layer.lora_A.default.weight.grad[0]),
            (item.b.grad, layer.lora_B.default.weight.grad[:, 0]),
        ):
            assert theirs.abs().max() > 1e-3, "a gradient of nothing would show nothing"
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", DOWN)
def test_the_logits_are_those_of_rank_1_lora(family):
    steered, wrapped, _ = pair(family)
    ids = torch.randint(3, len(TOK), (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
        assert (expected - steered.base(ids).logits).abs().max() > 0.01
        torch.testing.assert_close(steered(ids).logits, expected, atol=1e-5, rtol=0)


def test_another_alpha_is_another_gradient():
    """The comparison can fail: alpha = 2 doubles PEFT's change."""
    steered, wrapped, layers = pair("llama")
    for layer in layers:
        layer.set_scale("default", 2.0)
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert (wrapped(input_ids=ids).logits - steered(ids).logits).abs().max() > 1e-3
