"""Both ways of an update's products, whichever this machine's processor would take."""

from __future__ import annotations

import pytest
import torch

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, acceleration, completion_log_probs
from steerkit.testing import randomize, tiny_model


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_products_by_onednn_have_the_gradient_of_plain_ones(family, monkeypatch):
    model = SteeredModel(tiny_model(family, vocab_size=90), Static.build([HookPoint(0), HookPoint(2)], 32))
    for item in model.interventions.values():
        randomize(item)
    branches = [Branches(range(5, 25), [list(range(30, 60)), list(range(40, 50))]), Branches([3, 4], [[5, 6, 7]])]
    calls = []
    product = acceleration._product
    monkeypatch.setattr(acceleration, "_product", lambda *arguments: calls.append(1) or product(*arguments))
    found = []
    for by_onednn in (False, True):
        monkeypatch.setattr(acceleration, "ONEDNN_UPDATE", by_onednn)
        with acceleration.accelerated_update(model):
            log_probs = completion_log_probs(model, branches, 0)
            (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
        assert bool(calls) == by_onednn
        vectors = [item.vector for item in model.interventions.values()]
        found.append([log_probs.detach(), *(vector.grad.clone() for vector in vectors)])
        for vector in vectors:
            vector.grad = None
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
