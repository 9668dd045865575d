"""The contracts, and what ablation means: projections, reflections, and the base's weights edited by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from steerkit_ablation import Ablation

from steerkit.hookpoints import HookPoint
from steerkit.models import SteeredModel
from steerkit.testing import check_intervention, check_model_contract, randomize, tiny_model
from steerkit.vectors import SteeringVector

NAME = "steerkit_ablation:Ablation"


def made(alpha: float, d_model: int = 16, seed: int = 0) -> Ablation:
    item = Ablation(d_model, seed)
    with torch.no_grad():
        item.direction.mul_(3.0)  # the length must not matter
        item.alpha.fill_(alpha)
    return item


def test_contract() -> None:
    check_intervention(Ablation)
    check_intervention(Ablation, seed=4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_steered_model_contract(family: str) -> None:
    items = Ablation.build([HookPoint(0), HookPoint(2)], 32)
    for seed, item in enumerate(items.values()):
        randomize(item, seed)
    check_model_contract(SteeredModel(tiny_model(family), items))


def test_removes_reflects_and_keeps_the_rest() -> None:
    hidden = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(Ablation(16).direction.detach(), dim=0)
    along = hidden @ unit
    for alpha, left in ((1.0, 0.0), (0.25, 0.75), (2.0, -1.0), (-1.0, 2.0)):
        steered = made(alpha)(hidden).detach()
        torch.testing.assert_close(steered @ unit, left * along, atol=1e-5, rtol=1e-5)
        across = steered - (steered @ unit).unsqueeze(-1) * unit
        torch.testing.assert_close(across, hidden - along.unsqueeze(-1) * unit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(2.0)(hidden).norm(dim=-1), hidden.norm(dim=-1))  # a reflection keeps lengths


def test_ablating_after_the_last_block_is_projecting_its_output() -> None:
    """Another road to the same logits: (I - u u^T) h by hand, then the base's own final norm and unembedding."""
    base = tiny_model("llama")
    item = made(1.0, 32)
    model = SteeredModel(base, {HookPoint(2): item})
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        stream: list[torch.Tensor] = []
        handle = base.model.layers[2].register_forward_hook(
            lambda module, args, out: stream.append(out[0] if isinstance(out, tuple) else out)
        )
        base(ids)
        handle.remove()
        unit = torch.nn.functional.normalize(item.direction, dim=0)
        projected = stream[0] @ (torch.eye(32) - torch.outer(unit, unit))
        torch.testing.assert_close(model(ids).logits, base.lm_head(base.model.norm(projected)), atol=1e-5, rtol=1e-5)


def test_seeds_give_directions_of_length_one() -> None:
    one, two = Ablation(16, seed=0), Ablation(16, seed=1)
    assert one.direction.norm().item() == pytest.approx(1) and not torch.equal(one.direction, two.direction)
    assert torch.equal(one.direction, Ablation(16, seed=0).direction)


def test_both_parameters_learn_once_alpha_is_off_zero() -> None:
    item, hidden = Ablation(16), torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    item(hidden).square().sum().backward()
    assert item.alpha.grad is not None and item.alpha.grad.abs().item() > 0
    assert item.direction.grad is not None and not item.direction.grad.any()  # a direction not removed has no gradient
    item = made(0.1)
    item(hidden).square().sum().backward()
    assert item.direction.grad is not None and item.direction.grad.norm() > 1e-3


def test_vector_file(tmp_path: Path) -> None:
    items = {HookPoint(layer): made(0.7, 32, seed=layer) for layer in (0, 2)}
    base, ids = tiny_model("llama"), torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        expected = SteeredModel(base, items)(ids).logits
        SteeringVector.from_interventions(NAME, items).save_pretrained(tmp_path / "vector")
        again = SteeringVector.from_pretrained(tmp_path / "vector", allow_code=True).steer(base)
        torch.testing.assert_close(again(ids).logits, expected)
        assert not torch.allclose(expected, base(ids).logits, atol=1e-3)
