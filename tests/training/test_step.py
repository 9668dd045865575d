"""The RLOO update against a hand-written reference, and against PEFT's gradient of a trainable down_proj bias."""

import math

import peft
import pytest
import torch
from helpers import prompts, tokenizer

from steerkit.errors import TrainingError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.objectives import RLOO, Entropy, leave_one_out_advantages
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import randomize, tiny_model
from steerkit.training.step import accumulate_gradients, clip_gradients

TEMPERATURE = 0.7
REWARDS = torch.tensor([[1.0, -1.0, -1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, -1.0]])
TEXTS = ("Tom has 12 apples.", "Anna", "Anna gives Tom 3 more. How many?")


@pytest.fixture(scope="module")
def setting():
    tok = tokenizer()
    base = tiny_model("llama", vocab_size=len(tok), eos_token_id=tok.eos_token_id, mlp_bias=True)
    model = SteeredModel(base, Static.build([HookPoint(k) for k in range(3)], 32))
    groups = TransformersSampler().sample(model, tok, prompts(tok, TEXTS), 4, SamplingParams(TEMPERATURE, 9), seed=1)
    return tok, model, groups


def reference_loss(base, groups):
    """Mission section 1, word for word, one rollout at a time through the full logits."""
    n_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    total = torch.zeros(())
    for group, rewards in zip(groups, REWARDS.tolist(), strict=True):
        for i, rollout in enumerate(group.rollouts):
            others = [r for j, r in enumerate(rewards) if j != i]
            advantage = rewards[i] - sum(others) / len(others)
            ids = torch.tensor([[*group.prompt_ids, *rollout.token_ids]])
            log_probs = torch.log_softmax(base(ids).logits[0] / TEMPERATURE, -1)
            for t, token in enumerate(rollout.token_ids):
                total = total - advantage * log_probs[len(group.prompt_ids) + t - 1, token]
    return total / n_tokens


def steerkit_gradients(setting, micro_batch_tokens=10_000, objective=None):
    tok, model, groups = setting
    for parameter in model.parameters():
        parameter.grad = None
    n_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    stats = accumulate_gradients(
        model,
        objective or RLOO(),
        groups,
        leave_one_out_advantages(REWARDS),
        n_tokens,
        tok.pad_token_id,
        TEMPERATURE,
        micro_batch_tokens,
    )
    return stats, [item.vector.grad.clone() for item in model.interventions.values()]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_loss_and_gradient_equal_the_reference_and_peft(setting):
    _, model, groups = setting
    stats, gradients = steerkit_gradients(setting)
    tuned = tiny_model("llama", vocab_size=model.base.config.vocab_size, eos_token_id=1, mlp_bias=True)
    # PEFT trains the biases; its own adapter starts at zero and changes nothing.
    wrapped = peft.get_peft_model(tuned, peft.LoraConfig(r=1, target_modules=["down_proj"], bias="all"))
    wrapped.eval()
    loss = reference_loss(wrapped, groups)
    loss.backward()
    biases = [p for name, p in wrapped.named_parameters() if "down_proj" in name and name.endswith("bias")]
    assert len(biases) == len(gradients) == 3
    assert stats.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    for bias, gradient in zip(biases, gradients, strict=True):
        assert gradient.abs().max() > 1e-3
        assert torch.allclose(bias.grad, gradient, atol=1e-5)


def test_micro_batches_do_not_change_the_gradient(setting):
    whole, pieces = steerkit_gradients(setting), steerkit_gradients(setting, micro_batch_tokens=40)
    assert whole[0].loss == pytest.approx(pieces[0].loss, abs=1e-6)
    for a, b in zip(whole[1], pieces[1], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_groups_without_advantage_cost_no_forward(setting):
    _, model, groups = setting
    model.counter.reset()
    stats, _ = steerkit_gradients(setting)
    assert stats.trained_rows == 8  # the second group's rewards are all equal
    trained = (groups[0], groups[2])
    prompts_width = max(len(group.prompt_ids) for group in trained)
    width = max(len(rollout.token_ids) for group in trained for rollout in group.rollouts)
    assert model.counter.tokens == 2 * prompts_width + 8 * (width - 1)  # each prompt once, not K times
    assert model.counter.complete
    assert stats.logprob_gap < 1e-4


def test_kl_term_uses_the_disabled_base(setting):
    _, model, _ = setting
    zero_vector, _ = steerkit_gradients(setting, objective=RLOO(kl_coefficient=10.0))
    plain, _ = steerkit_gradients(setting)
    assert zero_vector.loss == pytest.approx(plain.loss, abs=1e-5)  # steered = base: KL is 0
    for item in model.interventions.values():
        item.vector.data.fill_(0.3)
    try:
        moved, _ = steerkit_gradients(setting, objective=RLOO(kl_coefficient=10.0))
        without, _ = steerkit_gradients(setting)
        assert moved.loss > without.loss + 0.01
        assert moved.trained_rows == 12  # the KL pulls on every row
    finally:
        for item in model.interventions.values():
            item.vector.data.zero_()


def test_not_finite_is_refused_before_it_reaches_the_parameters(setting):
    _, model, _ = setting
    item = next(iter(model.interventions.values()))
    item.vector.data[0] = math.inf
    try:
        with pytest.raises(TrainingError, match="loss is nan"):
            steerkit_gradients(setting)
    finally:
        item.vector.data.zero_()
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    with pytest.raises(TrainingError, match="norm"):
        clip_gradients([parameter], 2.0)


def test_clipping_and_missing_gradients():
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    a.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([a, b], 2.0) == pytest.approx(5.0)
    assert a.grad.norm() == pytest.approx(2.0, rel=1e-4)
    assert b.grad is not None and not b.grad.any()
    a.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([a, b], 0) == pytest.approx(5.0)
    assert a.grad.norm() == pytest.approx(5.0)


def reference_entropy_loss(base, groups):
    """Mean token entropy through the full logits, one rollout at a time, by the definition -sum p log p."""
    total, n_tokens = torch.zeros(()), 0
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([[*group.prompt_ids, *rollout.token_ids]])
            first = len(group.prompt_ids) - 1
            log_probs = torch.log_softmax(base(ids).logits[0, first:-1] / TEMPERATURE, -1)
            assert len(log_probs) == len(rollout.token_ids)
            total = total - (log_probs.exp() * log_probs).sum()
            n_tokens += len(rollout.token_ids)
    return total / n_tokens


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 40])
def test_entropy_objective_equals_autograd_of_the_full_logits(setting, micro_batch_tokens):
    _, model, groups = setting
    for seed, item in enumerate(model.interventions.values()):
        randomize(item, seed, std=0.3)
    try:
        stats, gradients = steerkit_gradients(setting, micro_batch_tokens, Entropy())
        vectors = [item.vector for item in model.interventions.values()]
        loss = reference_entropy_loss(model, groups)
        expected = torch.autograd.grad(loss, vectors)
    finally:
        for item in model.interventions.values():
            item.vector.data.zero_()
    assert stats.trained_rows == 12  # the group of equal rewards is trained, too
    assert stats.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    for got, want in zip(gradients, expected, strict=True):
        assert want.abs().max() > 1e-3
        assert torch.allclose(got, want, atol=1e-5)


def test_an_objective_may_use_entropies_beside_advantages(setting):
    class Bonus(RLOO):
        needs_entropy = True

        def loss(self, logprobs, advantages, n_tokens, ref_logprobs=None, entropies=None):
            return super().loss(logprobs, advantages, n_tokens) + 0.3 * entropies.sum() / n_tokens

    stats, both = steerkit_gradients(setting, objective=Bonus())
    assert stats.trained_rows == 12
    plain, entropy = steerkit_gradients(setting)[1], steerkit_gradients(setting, objective=Entropy())[1]
    for a, b, c in zip(both, plain, entropy, strict=True):
        assert torch.allclose(a, b + 0.3 * c, atol=1e-6)
