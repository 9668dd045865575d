"""LoRA and full fine-tuning behind the same door as a vector; PEFT and autograd as truths."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from steerkit.baselines import Full, Lora
from steerkit.errors import SteerkitError
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, SamplingParams, completion_log_probs
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import tiny_model
from tests.helpers import prompts, tokenizer

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
TOK = tokenizer()


def noise(adapter: torch.nn.Module, std: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)


@pytest.mark.parametrize("build", [Full.build, lambda base: Lora.build(base, rank=3, targets=["down_proj", "q_proj"])])
def test_the_contract(build):
    base = tiny_model("llama")
    plain = base(IDS).logits
    model = SteeredModel(base, adapter=build(base))
    assert torch.equal(model(IDS).logits, plain), "an untrained baseline is the base"
    noise(model.adapter)
    trained = model(IDS).logits
    assert (trained - plain).abs().max() > 0.01
    assert torch.equal(base(IDS).logits, plain), "outside a scope the base is untouched"
    with model.disabled():
        assert torch.equal(model(IDS).logits, plain)
    with model.applied():
        assert torch.equal(base(IDS).logits, trained)
    torch.testing.assert_close(model.logits(model.hidden_states(IDS)), trained, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_full_gradient_is_autograd_s(tied):
    """Also through the unembedding, and once for tied weights."""
    base = tiny_model("llama", tie_word_embeddings=tied, vocab_size=300)
    twin = copy.deepcopy(base).requires_grad_(True)
    model = SteeredModel(base, adapter=Full.build(base))
    prompt, completion = [40, 41, 42], [50, 51, 52, 53]
    completion_log_probs(model, [Branches(prompt, [completion])], 0).sum().backward()
    ids = torch.tensor([prompt + completion])
    log_probs = twin(ids).logits.log_softmax(-1)[0, 2:-1]
    log_probs.gather(-1, torch.tensor(completion)[:, None]).sum().backward()
    truth = {name.replace(".", "/"): p.grad for name, p in twin.named_parameters()}
    weights = model.adapter.weights
    assert set(weights) == set(truth)
    for name, parameter in weights.items():
        torch.testing.assert_close(parameter.grad, truth[name], atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in base.parameters())


def test_full_keeps_the_base_aside_and_saves_a_checkpoint(tmp_path):
    base = tiny_model("llama")
    size = sum(p.numel() * 4 for p in base.parameters())
    model = SteeredModel(base, adapter=Full.build(base))
    noise(model.adapter)
    assert model.adapter.kept_aside_bytes() == size
    model.adapter.save(tmp_path / "model", base, TOK, "tiny")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_full_in_16_bit_trains_32_bit_weights():
    base = tiny_model("llama").to(torch.bfloat16)
    model = SteeredModel(base, adapter=Full.build(base))
    assert {p.dtype for p in model.adapter.parameters()} == {torch.float32}
    model(IDS).logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.adapter.parameters())
    with torch.no_grad():
        before = model(IDS).logits
        for p in model.adapter.parameters():
            p.add_(0.05)
        assert not torch.equal(model(IDS).logits, before), "the 16-bit working copy follows the weights"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
def test_lora_is_peft_s(tmp_path):
    base = tiny_model("llama")
    reference = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"]))
    model = SteeredModel(base, adapter=Lora.build(base, rank=2, targets=["down_proj"]))
    noise(model.adapter)
    model.adapter.save(tmp_path / "adapter", base, TOK, "tiny")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter", is_trainable=True)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)
    assert sum(p.numel() for p in model.adapter.parameters()) == sum(
        p.numel() for p in reference.parameters() if p.requires_grad
    )
    model(IDS).logits.square().sum().backward()
    loaded(IDS).logits.square().sum().backward()
    theirs = [p.grad for p in loaded.parameters() if p.requires_grad]
    ours = [p.grad for _, p in base.named_parameters() if p.requires_grad]
    for mine, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [Full.build, lambda base: Lora.build(base, rank=4)])
def test_sampler_and_trainer_agree(build):
    base = tiny_model("llama", vocab_size=len(TOK), eos_token_id=TOK.eos_token_id, max_position_embeddings=128)
    model = SteeredModel(base, adapter=build(base))
    noise(model.adapter)
    groups = TransformersSampler().sample(model, TOK, prompts(TOK), 2, SamplingParams(1.0, 5), seed=0)
    with torch.no_grad():
        trainer = completion_log_probs(
            model, [Branches(g.prompt_ids, [r.token_ids for r in g.rollouts]) for g in groups], TOK.pad_token_id
        )
    sampled = torch.tensor([x for g in groups for r in g.rollouts for x in r.logprobs])
    torch.testing.assert_close(trainer, sampled, atol=2e-5, rtol=0)


def test_targets_that_are_not_there():
    with pytest.raises(SteerkitError, match="LoRA can't be placed"):
        Lora.build(tiny_model("llama"), targets=["nothing_here"])
