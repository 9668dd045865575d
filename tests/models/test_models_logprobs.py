from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel, token_log_probs, token_log_probs_and_entropies
from steerkit.testing import tiny_model

N, D, V = 23, 32, 97


def inputs(family="gemma2"):
    model = SteeredModel(tiny_model(family), Static.build([HookPoint(0)], D))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    return model, hidden, torch.randint(V, (N,), generator=generator), torch.randn(N, generator=generator)


def plain(model, hidden, targets, temperature):
    return torch.log_softmax(model.logits(hidden).float() / temperature, -1).gather(-1, targets[:, None]).squeeze(-1)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_size", [1, 7, 23, 100])
def test_value_and_gradient(chunk_size, temperature, trainable):
    model, hidden, targets, weights = inputs()
    head = model.base.lm_head.weight.requires_grad_(trainable)
    wanted = [hidden, head] if trainable else [hidden]
    expected = plain(model, hidden, targets, temperature)
    got = token_log_probs(model, hidden, targets, temperature, chunk_size)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted)
    for mine, theirs in zip(torch.autograd.grad((got * weights).sum(), wanted), expected_grads, strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def plain_entropy(model, hidden, temperature):
    """By the definition: -sum p log p."""
    log_p = torch.log_softmax(model.logits(hidden).float() / temperature, -1)
    return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_entropies_value_and_gradient(chunk_size, temperature, trainable):
    model, hidden, targets, weights = inputs()
    head = model.base.lm_head.weight.requires_grad_(trainable)
    wanted = [hidden, head] if trainable else [hidden]
    log_probs, entropies = token_log_probs_and_entropies(model, hidden, targets, temperature, chunk_size)
    expected = plain(model, hidden, targets, temperature), plain_entropy(model, hidden, temperature)
    torch.testing.assert_close(log_probs, expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(entropies, expected[1], atol=1e-5, rtol=1e-5)
    # Weights of its own for each output, so that a slope at the wrong place shows.
    other = weights.flip(0)
    got = torch.autograd.grad((log_probs * weights + entropies * other).sum(), wanted, retain_graph=True)
    want = torch.autograd.grad((expected[0] * weights + expected[1] * other).sum(), wanted, retain_graph=True)
    for mine, theirs in zip(got, want, strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    alone, its_truth = (torch.autograd.grad((h * other).sum(), hidden)[0] for h in (entropies, expected[1]))
    assert its_truth.abs().max() > 0.01
    torch.testing.assert_close(alone, its_truth, atol=1e-5, rtol=1e-5)


def test_entropy_of_known_distributions():
    model, hidden, targets, _ = inputs("llama")
    flat = token_log_probs_and_entropies(model, torch.zeros(1, D), targets[:1])[1]
    assert flat.item() == pytest.approx(torch.log(torch.tensor(float(V))).item(), rel=1e-6)
    sure = token_log_probs_and_entropies(model, hidden * 1e4, targets)[1]
    assert sure.abs().max() < 1e-2


class Largest(TorchDispatchMode):
    """The most vocabulary rows that any operation, forward or backward, puts out."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, torch.Tensor) and item.dim() > 1 and item.shape[-1] == V:
                self.rows = max(self.rows, item.numel() // V)
        return out


@pytest.mark.parametrize("function", [token_log_probs, token_log_probs_and_entropies])
@pytest.mark.parametrize("trainable", [False, True])
def test_no_tensor_of_all_logits_exists(trainable, function):
    model, _, targets, _ = inputs("llama")
    # The head itself is [V, D], and its gradient too: only its transpose ends in V, with D rows, so N is above D here.
    model.base.lm_head.weight.requires_grad_(trainable)
    hidden, targets = torch.randn(200, D, requires_grad=True), targets.repeat(9)[:200]
    with Largest() as seen:
        out = function(model, hidden, targets, 1.0, chunk_size=40)
        (sum(out) if isinstance(out, tuple) else out).sum().backward()
    assert seen.rows == 40
    with Largest() as seen:
        plain(model, hidden, targets, 1.0).sum().backward()
    assert seen.rows == 200


def test_gradient_reaches_the_vector_through_hidden_states():
    model, _, _, _ = inputs("llama")
    ids = torch.randint(3, V, (2, 6), generator=torch.Generator().manual_seed(3))
    vector = model.interventions[HookPoint(0)].vector
    hidden = model.hidden_states(ids)[:, :-1].flatten(0, 1)
    token_log_probs(model, hidden, ids[:, 1:].flatten(), 1.0, 4).sum().backward()
    got, vector.grad = vector.grad, None
    torch.log_softmax(model(ids).logits[:, :-1], -1).gather(-1, ids[:, 1:, None]).sum().backward()
    torch.testing.assert_close(got, vector.grad, atol=1e-5, rtol=1e-5)


def test_no_grad_empty_and_half_precision():
    model, hidden, targets, _ = inputs("llama")
    with torch.no_grad():
        assert not token_log_probs(model, hidden, targets).requires_grad
    assert token_log_probs(model, hidden[:0], targets[:0]).shape == (0,)
    assert [t.shape for t in token_log_probs_and_entropies(model, hidden[:0], targets[:0])] == [(0,), (0,)]
    model.to(torch.bfloat16)
    half = hidden.detach().bfloat16().requires_grad_()
    got = token_log_probs(model, half, targets, 1.0, 5)
    got.sum().backward()
    assert got.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(got, plain(model, half, targets, 1.0))


@pytest.mark.parametrize("temperature, chunk_size", [(0.0, 4), (-1.0, 4), (1.0, 0)])
def test_bad_settings(temperature, chunk_size):
    model, hidden, targets, _ = inputs("llama")
    with pytest.raises(SteerkitError, match="temperature > 0 and chunk_size >= 1"):
        token_log_probs(model, hidden, targets, temperature, chunk_size)


def test_bad_shapes():
    model, hidden, targets, _ = inputs("llama")
    with pytest.raises(SteerkitError, match=r"hidden \[N, D\]"):
        token_log_probs(model, hidden, targets[:-1])
