"""Norms and rotary embeddings in fewer passes, against the models' own code."""

from __future__ import annotations

import pytest
import torch

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, completion_log_probs, fused
from steerkit.testing import randomize, tiny_model

FUSED = {"llama": (2, True), "qwen2": (2, True), "qwen3": (4, True), "mistral": (2, True), "gemma2": (4, True),
         "phi3": (2, True), "gpt_neox": (0, False), "gpt2": (0, False)}  # fmt: skip
"""Family -> (norms of a block that are replaced, whether the rotary embedding is)."""


def policy(family):
    base = tiny_model(family, vocab_size=90)
    model = SteeredModel(base, Static.build([HookPoint(0), HookPoint(1)], 32))
    for item in model.interventions.values():
        randomize(item)
    generator = torch.Generator().manual_seed(1)
    for name, weight in base.named_parameters():  # a scale of ones would hide a mistake
        if "norm" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize("family", FUSED)
def test_the_same_log_probabilities_and_gradients(family, monkeypatch):
    model = policy(family)
    calls = {"norm": 0, "rotary": 0}

    def counted(name, inner):
        def call(*args):
            calls[name] += 1
            return inner(*args)

        return call

    monkeypatch.setattr(fused, "_inverse_rms", counted("norm", fused._inverse_rms))
    monkeypatch.setattr(fused, "turned", counted("rotary", fused.turned))
    branches = [Branches(range(5, 25), [list(range(30, 60)), list(range(40, 50))]), Branches([3, 4], [[5, 6, 7]])]
    found = []
    with fused.fused(model.base):  # the probes
        calls.update(norm=0, rotary=0)
    for on in (False, True):
        with fused.fused(model.base) if on else torch.enable_grad():
            log_probs = completion_log_probs(model, branches, 0)
            (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
        vectors = [item.vector for item in model.interventions.values()]
        found.append([log_probs.detach(), *(vector.grad.clone() for vector in vectors)])
        for vector in vectors:
            vector.grad = None
        if not on:
            assert calls == {"norm": 0, "rotary": 0}
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    norms, rotary = FUSED[family]
    blocks = len(model.layout.block_list(model.base))
    assert len(fused._FOUND[model.base][0]) == (norms * blocks + 1 if norms else 0)
    assert bool(calls["norm"]) == bool(norms) and bool(calls["rotary"]) == rotary
    assert "forward" not in {name for module in model.base.modules() for name in module.__dict__}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradients_by_finite_differences(family):
    base = tiny_model(family, vocab_size=90)
    norm, offset = fused._norms(base)[0]
    norm.weight.requires_grad_(False).copy_(torch.linspace(-1, 1, 32))
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    scale = norm.weight.double() + offset
    assert torch.autograd.gradcheck(lambda x: fused._RmsNorm.apply(x, scale, torch.tensor(1e-5).double()), hidden)
    heads = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    angle = torch.arange(12, dtype=torch.float64).view(1, 1, 3, 4).repeat(1, 1, 1, 2)
    assert torch.autograd.gradcheck(lambda x: fused._Rotary.apply(x, angle.cos(), angle.sin()), heads)


def test_a_norm_that_computes_something_else_stays():
    class OddRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(4)), 1e-6

        def forward(self, hidden):
            return hidden / hidden.abs().mean(-1, keepdim=True) * self.weight

    assert fused._norms(torch.nn.Sequential(OddRMSNorm())) == []


def test_trained_norms_run_as_they_are():
    model = policy("llama")
    norm = fused._norms(model.base)[0][0]
    norm.weight.requires_grad_(True)
    with fused.fused(model.base):
        norm(torch.randn(2, 32)).sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0
