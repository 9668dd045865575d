"""Every built-in intervention keeps the contract; what each one does, by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from steerkit import registry
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Intervention, LowRank, Projected, Tokenwise
from steerkit.testing import check_intervention, randomize

SETTINGS = {
    "static": [{}],
    "bias": [{}],
    "tokenwise": [{}, {"seed": 3}],
    "gated": [{}, {"gate": "softplus"}],
    "projected": [{}, {"rank": 3, "shared": False}],
    "lowrank": [{}, {"rank": 1}],
}
CASES = [(name, settings) for name, many in SETTINGS.items() for settings in many]


def test_the_list_is_complete():
    found = {e.name for e in registry.entries("interventions") if e.distribution == "steerkit"}
    assert found == {*SETTINGS, "lora", "full"}


@pytest.mark.parametrize("name, settings", CASES)
def test_contract(name, settings):
    check_intervention(registry.resolve("interventions", name), **settings)


class ReadsItsNeighbour(Intervention):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.vector = torch.nn.Parameter(torch.zeros(d_model))

    def delta(self, hidden):
        return self.vector * hidden.roll(1, 1)


class ClaimsToBeConstant(Intervention):
    constant = True

    def __init__(self, d_model):
        super().__init__(d_model)
        self.vector = torch.nn.Parameter(torch.zeros(d_model))

    def delta(self, hidden):
        return self.vector * hidden


class ClaimsToBeLinear(Intervention):
    scale_by = ("vector",)

    def __init__(self, d_model):
        super().__init__(d_model)
        self.vector = torch.nn.Parameter(torch.zeros(d_model))

    def delta(self, hidden):
        return self.vector.square() * hidden


@pytest.mark.parametrize(
    "cls, message",
    [
        (ReadsItsNeighbour, "depend on its own position"),
        (ClaimsToBeConstant, "the same at every position"),
        (ClaimsToBeLinear, "scale_by"),
    ],
)
def test_contract_catches(cls, message):
    with pytest.raises(AssertionError, match=message):
        check_intervention(cls)


def test_gated_by_hand():
    item, hidden = Gated(4), torch.tensor([[[3.0, 0.0, 4.0, 0.0]]])
    with torch.no_grad():
        item.vector.copy_(torch.tensor([1.0, 2.0, 0.0, -1.0]))
        item.weight.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0]))
        item.offset.fill_(-1.0)
    gate = torch.sigmoid(torch.tensor(5.0 * 0.6 - 1.0))  # h / |h| = (0.6, 0, 0.8, 0)
    torch.testing.assert_close(item.delta(hidden)[0, 0], gate * item.vector)
    torch.testing.assert_close(item.delta(1000 * hidden), item.delta(hidden))
    soft = Gated(4, gate="softplus")
    soft.load_state_dict(item.state_dict())
    torch.testing.assert_close(soft.scale(hidden)[0, 0], F.softplus(torch.tensor(2.0)))
    assert Gated(4).scale(hidden).item() == 0.5
    with pytest.raises(SteerkitError, match="gate must be 'sigmoid' or 'softplus'"):
        Gated(4, gate="relu")


def test_tokenwise_by_hand():
    item = Tokenwise(2, d_inner=3)
    with torch.no_grad():
        item.a.copy_(torch.tensor([1.0, -1.0, 2.0]))
        item.b.copy_(torch.tensor([10.0, 0.5]))
    inner = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]])
    assert item.scale(inner).tolist() == [[5.0, -1.0]]
    assert item.delta(inner).tolist() == [[[50.0, 2.5], [-10.0, -0.5]]]


def test_tokenwise_starts_as_peft_starts_lora_a():
    item = Tokenwise(8, d_inner=400)
    bound = 400**-0.5
    assert item.a.abs().max() <= bound and item.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert not torch.equal(item.a, Tokenwise(8, d_inner=400, seed=1).a) and not item.b.any()


def test_projected_has_13_numbers_for_all_layers():
    points = [HookPoint(k) for k in range(6)]
    built = Projected.build(points, 128)
    assert len({id(p) for item in built.values() for p in item.parameters()}) == 1
    assert built[points[0]].code.shape == (13,)
    assert not torch.equal(built[points[0]].projection, built[points[1]].projection)
    again = Projected.build(points[1:2], 128)[points[1]]
    assert torch.equal(again.projection, built[points[1]].projection), "a projection belongs to its hook point"
    assert built[points[0]].projection.norm(dim=0).mean().item() == pytest.approx(1.0, abs=0.1)
    with torch.no_grad():
        built[points[0]].code[2] = 2.0
    torch.testing.assert_close(built[points[1]].delta(torch.zeros(1, 1, 128)), 2 * built[points[1]].projection[:, 2])
    alone = Projected.build(points, 128, shared=False)
    assert len({id(p) for item in alone.values() for p in item.parameters()}) == 6


def test_lowrank_is_a_times_b():
    points = [HookPoint(k) for k in range(3)]
    built = LowRank.build(points, 5, rank=2)
    randomize(built[points[0]])
    a = torch.stack([built[p].mix for p in points])
    b = built[points[0]].basis
    s = torch.stack([built[p].delta(torch.zeros(1, 1, 5)) for p in points])
    torch.testing.assert_close(s, a @ b)
    assert torch.linalg.matrix_rank(s) == 2
    assert sum(p.numel() for p in {p for item in built.values() for p in item.parameters()}) == 2 * (3 + 5)
