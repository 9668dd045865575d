"""Out of memory on the device: smaller micro-batches, the same gradient. The error is injected; a CPU has none."""

import logging

import pytest
import torch
from helpers import prompts, tokenizer
from runs import fit, numbers, write_run

from steerkit.errors import SteerkitError, TrainingError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.objectives import RLOO, leave_one_out_advantages
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.footprint import saved_for_backward
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import tiny_model
from steerkit.training import memory, step

TEXTS = ("Tom has 12 apples.", "Anna gives Tom 3 more. How many?", "12+3")


def too_large(original, tokens):
    """As a device that has no room for more than this many tokens in an update."""

    def wrapped(model, ids, *arguments, **keywords):
        if torch.is_grad_enabled() and ids.shape[0] * ids.shape[1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
        return original(model, ids, *arguments, **keywords)

    return wrapped


@pytest.fixture(scope="module")
def setting():
    tok = tokenizer()
    base = tiny_model("llama", vocab_size=len(tok), eos_token_id=tok.eos_token_id)
    model = SteeredModel(base, Static.build([HookPoint(k) for k in range(3)], 32))
    groups = TransformersSampler().sample(model, tok, prompts(tok, TEXTS), 4, SamplingParams(1.0, 9), seed=1)
    return tok, model, groups


def gradients(setting, micro_batch_tokens):
    tok, model, groups = setting
    for parameter in model.parameters():
        parameter.grad = None
    rewards = torch.tensor([[1.0, -1, -1, 1], [1, 1, -1, 1], [-1, -1, -1, 1]])
    n_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    stats, used = memory.add_gradients(
        model,
        RLOO(),
        groups,
        leave_one_out_advantages(rewards),
        n_tokens,
        tok.pad_token_id,
        1.0,
        micro_batch_tokens,
        torch.Tensor.backward,
    )
    return torch.cat([item.vector.grad for item in model.interventions.values()]), stats, used


def test_the_gradient_is_that_of_an_undisturbed_step(setting, monkeypatch, caplog):
    whole, stats, used = gradients(setting, 400)
    assert used == 400
    monkeypatch.setattr(SteeredModel, "hidden_states", too_large(SteeredModel.hidden_states, 40))
    with caplog.at_level(logging.WARNING):
        pieces, again, used = gradients(setting, 400)
    assert used < 100 and "Out of memory: micro_batch_tokens goes from 400 to" in caplog.text
    assert again.trained_rows == stats.trained_rows == 12 and again.loss == pytest.approx(stats.loss, abs=1e-6)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-5)


def test_gradients_of_a_cut_attempt_are_dropped(setting, monkeypatch):
    """The third micro-batch fails after two have left their part."""
    whole = gradients(setting, 400)[0]
    calls, original = [], step.token_log_probs

    def third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(*arguments)

    monkeypatch.setattr(step, "token_log_probs", third)
    pieces, _, used = gradients(setting, 60)
    assert used == 30 and len(calls) > 6
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-5)


def test_nothing_smaller_is_left(setting, monkeypatch):
    monkeypatch.setattr(SteeredModel, "hidden_states", too_large(SteeredModel.hidden_states, 1))
    with pytest.raises(TrainingError, match=r"Out of memory, and micro_batch_tokens \d+ can't be less .*2.00 GiB"):
        gradients(setting, 400)
    with pytest.raises(TrainingError, match="micro_batch_tokens 400 can't be less"):
        tok, model, groups = setting
        advantages = torch.ones(3, 4)
        backward = torch.Tensor.backward
        memory.add_gradients(model, RLOO(), groups, advantages, 99, tok.pad_token_id, 1.0, 400, backward, retry=False)


def test_a_run_goes_on_with_smaller_batches_in_sampling_and_update(tmp_path, monkeypatch, caplog):
    write_run(tmp_path, rewards=("vowels",), max_steps=3)
    monkeypatch.chdir(tmp_path)
    assert fit("--run_dir", "whole", "--model.sampler", '{"name": "transformers", "max_rows": 64}') == 0
    with monkeypatch.context() as patch:
        patch.setattr(SteeredModel, "hidden_states", too_large(SteeredModel.hidden_states, 400))
        calls, original = [], TransformersSampler._decode

        def decode(self, model, tok, batch, k, *rest):
            if len(batch) * k > 8:
                calls.append(len(batch) * k)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return original(self, model, tok, batch, k, *rest)

        patch.setattr(TransformersSampler, "_decode", decode)
        assert fit("--model.sampler", '{"name": "transformers", "max_rows": 64}') == 0
    assert calls and "the sampler's max_rows goes from 64 to 8" in caplog.text
    assert "micro_batch_tokens goes from" in caplog.text
    torch.testing.assert_close(numbers(tmp_path / "run"), numbers(tmp_path / "whole"), atol=1e-4, rtol=1e-4)


def test_a_budget_bounds_the_micro_batches_and_the_kept_stream():
    tok = tokenizer()
    model = SteeredModel(
        tiny_model("llama", vocab_size=len(tok), max_position_embeddings=256), {HookPoint(1): Static(32)}
    )
    batch = prompts(tok)
    params = SamplingParams(1.0, 20)
    longest = max(len(prompt.ids) for prompt in batch) + 20
    saved = saved_for_backward(model, torch.tensor(batch[0].ids), tok.pad_token_id)
    roomy, tight = memory.Budget(1.0), memory.Budget(4e-5)
    assert roomy.micro_batch_tokens(model, batch, 20, tok.pad_token_id, 16384) == 16384
    tokens = tight.micro_batch_tokens(model, batch, 20, tok.pad_token_id, 16384)
    assert 0.8 * 3e4 < tokens * saved.row(longest) / longest <= 3e4  # three quarters of 40,000 bytes
    # The stream: 32 numbers of 4 bytes at each position, a quarter of the budget.
    assert roomy.keeping(model, batch, 4, params).keep_layers == (1,)
    assert tight.keeping(model, batch, 4, params).keep_layers == ()


@pytest.mark.parametrize("gigabytes", [0, -1.0, float("nan")])
def test_a_budget_is_positive(gigabytes):
    with pytest.raises(SteerkitError, match="memory_budget must be above 0"):
        memory.Budget(gigabytes)
