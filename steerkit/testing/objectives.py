"""The contract of an objective (``objectives/base.py``): flags that tell the truth, and losses that add up."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from steerkit.objectives import Objective
from steerkit.testing.checks import Check, assert_all, label, made

TOLERANCE = 1e-9
"""Relative; the numbers are float64."""


def check_objective(target: Any, **settings: Any) -> None:
    """The objective contract.

    Args:
        target: a class, an object, or a plugin's name.
        settings: of a class.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    assert_all(label(target), objective_checks(target, **settings))


def objective_checks(target: Any, **settings: Any) -> list[Check]:
    """The promises, for ``check_objective`` and for the shell."""
    contract = _Contract(made("objectives", target, settings))
    return [
        Check("has advantages, loss and the two flags", contract.shape),
        Check("advantages are [G, K], finite, and 0 where a sample is invalid", contract.advantages),
        Check("what an invalid sample was rewarded does not matter", contract.invalid),
        Check("the loss is a finite scalar with a gradient", contract.loss),
        Check("the loss is a sum over tokens divided by n_tokens", contract.scale),
        Check("micro-batches add up, in value and gradient", contract.additive),
        Check("no gradient flows into advantages or reference log-probabilities", contract.constants),
        Check("needs_reference and needs_entropy say what the loss uses", contract.flags),
    ]


class _Contract:
    def __init__(self, objective: Any) -> None:
        self.objective = objective
        generator = torch.Generator().manual_seed(0)
        self.n = 12
        self.values = {
            "logprobs": -torch.rand(self.n, generator=generator, dtype=torch.float64) * 3 - 0.1,
            "advantages": torch.randn(self.n, generator=generator, dtype=torch.float64),
            "ref_logprobs": -torch.rand(self.n, generator=generator, dtype=torch.float64) * 3 - 0.1,
            "entropies": torch.rand(self.n, generator=generator, dtype=torch.float64) * 3 + 0.1,
        }

    def run(self, rows: Any = None, n_tokens: int = 20, **changed: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some tokens, and the tensors that went in; all ask for a gradient."""
        rows = slice(None) if rows is None else rows
        given = {key: value[rows].clone().requires_grad_() for key, value in self.values.items()}
        sent: dict[str, Any] = dict(given)
        if not self.objective.needs_reference:
            sent["ref_logprobs"] = None
        if not self.objective.needs_entropy:
            sent["entropies"] = None
        loss = self.objective.loss(n_tokens=n_tokens, **{**sent, **changed})
        return loss, given

    def shape(self) -> None:
        assert isinstance(self.objective, Objective), "expected needs_reference, needs_entropy, advantages() and loss()"
        for flag in ("needs_reference", "needs_entropy"):
            value = getattr(self.objective, flag)
            assert isinstance(value, bool), f"{flag}: expected True or False, got {value!r:.80}"

    def advantages(self) -> None:
        rewards = torch.tensor([[1.0, -1.0, -1.0, 0.5], [1.0, 1.0, 1.0, 1.0], [math.nan, 2.0, -1.0, math.nan]])
        before, valid = rewards.clone(), ~rewards.isnan()
        got = self.objective.advantages(rewards, valid)
        assert got.shape == rewards.shape, f"expected {list(rewards.shape)}, got {list(got.shape)}"
        assert got.is_floating_point() and bool(got.isfinite().all()), f"expected finite floats, got {got.tolist()}"
        assert not got[~valid].any(), f"invalid samples have the advantages {got[~valid].tolist()}, expected 0"
        assert torch.equal(rewards.nan_to_num(9.0), before.nan_to_num(9.0)), "the rewards were changed in place"
        without = self.objective.advantages(rewards[:2])
        assert torch.equal(without, self.objective.advantages(rewards[:2], valid[:2])), "no mask = a mask of True"

    def invalid(self) -> None:
        rewards, valid = torch.tensor([[1.0, -1.0, 7.0], [0.0, 3.0, 1.0]]), torch.ones(2, 3, dtype=torch.bool)
        valid[0, 2] = False
        first = self.objective.advantages(rewards, valid)
        rewards[0, 2] = math.nan
        second = self.objective.advantages(rewards, valid)
        assert torch.equal(first, second), f"{first.tolist()}, and with NaN there {second.tolist()}"

    def loss(self) -> None:
        loss, given = self.run()
        assert loss.shape == (), f"expected a scalar, got {list(loss.shape)}"
        assert bool(loss.isfinite()), f"the loss is {loss.item()}"
        assert loss.requires_grad, "the loss has no gradient"
        loss.backward()
        source = given["logprobs"].grad if given["logprobs"].grad is not None else given["entropies"].grad
        assert source is not None and bool(source.isfinite().all()) and bool(source.any()), (
            "no gradient reaches the log-probabilities or the entropies"
        )

    def scale(self) -> None:
        few, many = self.run(n_tokens=20)[0].item(), self.run(n_tokens=60)[0].item()
        assert math.isclose(few * 20, many * 60, rel_tol=TOLERANCE, abs_tol=TOLERANCE), (
            f"loss x n_tokens is {few * 20:g} with 20 and {many * 60:g} with 60: divide by n_tokens, once"
        )

    def additive(self) -> None:
        whole, given = self.run()
        whole.backward()
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(1))
        total, gradients = 0.0, {key: torch.zeros(self.n, dtype=torch.float64) for key in ("logprobs", "entropies")}
        for rows in order.split(5):
            part, pieces = self.run(rows)
            part.backward()
            total += part.item()
            for key, gradient in gradients.items():
                piece = pieces[key].grad
                gradient[rows] = torch.zeros(len(rows), dtype=torch.float64) if piece is None else piece
        assert math.isclose(total, whole.item(), rel_tol=TOLERANCE, abs_tol=TOLERANCE), (
            f"three micro-batches sum to {total:g}, the whole gives {whole.item():g}"
        )
        for key, gradient in gradients.items():
            expected = given[key].grad
            reached = torch.zeros_like(gradient) if expected is None else expected
            gap = float((gradient - reached).abs().max())
            assert gap <= TOLERANCE, f"the gradients of {key} differ by up to {gap:g}"

    def constants(self) -> None:
        loss, given = self.run()
        loss.backward()
        for key in ("advantages", "ref_logprobs"):
            gradient = given[key].grad
            assert gradient is None or not gradient.any(), f"a gradient flows into {key}: use .detach()"

    def flags(self) -> None:
        expected = self.run()[0].item()
        for flag, key in (("needs_reference", "ref_logprobs"), ("needs_entropy", "entropies")):
            other = self.values[key] + 0.5
            changed: dict[str, Any] = {key: other}
            got = self.run(**changed)[0].item()
            same = math.isclose(got, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            if getattr(self.objective, flag):
                assert not same, f"{flag} is True, but other {key} leave the loss as it is"
            else:
                assert same, f"{flag} is False, but {key} change the loss from {expected:g} to {got:g}"
