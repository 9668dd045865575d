from __future__ import annotations

import pytest
import torch
from torch import nn

from steerkit.errors import VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention, Static
from steerkit.models import SteeredModel
from steerkit.testing import check_intervention, tiny_model


class RankOne(Intervention):
    """A well-behaved one with a setting and a delta of its own shape, to try the contract on."""

    def __init__(self, d_model, gain=1.0):
        super().__init__(d_model, gain=gain)
        self.gain = gain
        self.a = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))

    def delta(self, hidden):
        return self.gain * (hidden.float() @ self.a)[..., None] * self.b


class NotIdentity(RankOne):
    def delta(self, hidden):
        return super().delta(hidden) + 1.0


class LooksAround(RankOne):
    def delta(self, hidden):
        return super().delta(hidden.mean(1, keepdim=True))


class Casts(RankOne):
    def _apply(self, fn, recurse=True):
        return nn.Module._apply(self, fn, recurse)


class ForgetsSettings(RankOne):
    def __init__(self, d_model, gain=1.0):
        super().__init__(d_model, gain)
        self.settings = {}


class LeaksThroughMask(RankOne):
    def forward(self, hidden, positions=None, read=None, gain=1.0):
        steered = super().forward(hidden)
        return (
            steered if positions is None else steered * positions[..., None] + hidden * ~positions[..., None] * 1.0001
        )


class Idle(RankOne):
    def delta(self, hidden):
        return self.b.expand(hidden.shape) + 0 * self.a.detach()


@pytest.mark.parametrize("cls, settings", [(Static, {}), (RankOne, {"gain": 2.0})])
def test_contract(cls, settings):
    check_intervention(cls, **settings)


@pytest.mark.parametrize(
    "cls, message",
    [
        (NotIdentity, "identity"),
        (LooksAround, "its own position"),
        (Casts, "stay fp32"),
        (ForgetsSettings, "give the intervention back"),
        (LeaksThroughMask, "bit-identical"),
        (Idle, "no gradient reaches"),
    ],
)
def test_contract_catches(cls, message):
    with pytest.raises(AssertionError, match=message):
        check_intervention(cls, gain=3.0)


def test_static_adds_its_vector():
    static = Static(3)
    assert static.settings == {}
    static.vector.data = torch.tensor([1.0, -2.0, 0.5])
    hidden = torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    assert static(hidden).tolist() == [[[2.0, -1.0, 1.5], [1.0, -2.0, 0.5]]]
    assert static(hidden, torch.tensor([[False, True]])).tolist() == [[[1.0, 1.0, 1.0], [1.0, -2.0, 0.5]]]


def test_masked_positions_keep_minus_zero_and_ignore_nan():
    static = Static(1)
    static.vector.data.fill_(float("nan"))
    out = static(torch.tensor([[[-0.0]]]), torch.tensor([[False]]))
    assert torch.signbit(out).item() and out.item() == 0.0


@pytest.mark.parametrize("width", [0, -3])
def test_width_must_be_positive(width):
    with pytest.raises(VectorError, match="positive d_model"):
        Static(width)


def test_shared_parameters_are_one_instance():
    class Shared(RankOne):
        @classmethod
        def build(cls, points, d_model, **settings):
            return dict.fromkeys(points, cls(d_model, **settings))

    model = SteeredModel(tiny_model("llama"), Shared.build([HookPoint(0), HookPoint(2)], 32))
    assert len([p for p in model.parameters() if p.requires_grad]) == 2
    assert len(model.points) == 2


def test_gradient_equals_that_of_a_trainable_bias():
    """The bias of the MLP's down projection is the same object (arXiv 2505.18706): autograd must agree."""
    ids = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    biased = tiny_model("llama", mlp_bias=True)
    model = SteeredModel(tiny_model("llama", mlp_bias=True), Static.build([HookPoint(i) for i in range(3)], 32))
    with torch.no_grad():
        for layer, item in enumerate(model.interventions.values()):
            item.vector.copy_(torch.randn(32, generator=torch.Generator().manual_seed(layer)) * 0.3)
            biased.model.layers[layer].mlp.down_proj.bias += item.vector

    def loss(logits):
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    loss(model(ids).logits).backward()
    loss(biased(ids).logits).backward()
    for layer, item in enumerate(model.interventions.values()):
        expected = biased.model.layers[layer].mlp.down_proj.bias.grad
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(item.vector.grad, expected, atol=1e-5, rtol=0)
