import math

import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.objectives import RLOO, Objective, kl_penalty, leave_one_out_advantages, policy_gradient_loss

NAN = math.nan


def test_hand_computed_advantages() -> None:
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 2.0, 3.0, 6.0]])
    expected = torch.tensor([[2.0, -2 / 3, -2 / 3, -2 / 3], [-8 / 3, -4 / 3, 0.0, 4.0]])
    torch.testing.assert_close(leave_one_out_advantages(rewards), expected)


def test_invalid_samples_leave_their_group() -> None:
    rewards = torch.tensor([[1.0, NAN, -1.0, -1.0], [NAN, NAN, 5.0, NAN], [NAN] * 4, [1.0, 0.0, NAN, NAN]])
    expected = torch.tensor([[2.0, 0.0, -1.0, -1.0], [0.0] * 4, [0.0] * 4, [1.0, -1.0, 0.0, 0.0]])
    torch.testing.assert_close(leave_one_out_advantages(rewards, ~rewards.isnan()), expected)


@pytest.mark.parametrize("value", [0.1, -1.0, 1e-7, 1e6 / 3])
@pytest.mark.parametrize("k", [2, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(value: float, k: int) -> None:
    assert leave_one_out_advantages(torch.full((3, k), value)).eq(0).all()


def test_equals_the_plain_formula() -> None:
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    plain = torch.stack([rewards[:, i] - rewards[:, [j for j in range(8) if j != i]].mean(1) for i in range(8)], 1)
    torch.testing.assert_close(leave_one_out_advantages(rewards), plain)


def test_bad_rewards_are_refused() -> None:
    with pytest.raises(SteerkitError, match="K >= 2"):
        leave_one_out_advantages(torch.ones(3, 1))
    with pytest.raises(SteerkitError, match="K >= 2"):
        leave_one_out_advantages(torch.ones(3))
    with pytest.raises(SteerkitError, match="shape of rewards"):
        leave_one_out_advantages(torch.ones(3, 2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(SteerkitError, match="NaN though"):
        leave_one_out_advantages(torch.tensor([[1.0, NAN]]))


def test_gradient_is_the_softmax_policy_gradient() -> None:
    """For one softmax, d log pi(y) / d logits = onehot(y) - pi."""
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    actions = torch.tensor([0, 2, 2, 5])
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    policy_gradient_loss(logits.log_softmax(0)[actions], advantages, n_tokens=10).backward()
    pi = logits.detach().softmax(0)
    expected = torch.zeros(6, dtype=torch.float64)
    for action, advantage in zip(actions.tolist(), advantages.tolist(), strict=True):
        onehot = torch.zeros(6, dtype=torch.float64)
        onehot[action] = 1
        expected -= advantage * (onehot - pi) / 10
    torch.testing.assert_close(logits.grad, expected)


def test_micro_batches_add_up() -> None:
    logprobs, advantages = -torch.arange(1.0, 7.0), torch.tensor([1.0, 1.0, -2.0, 0.5, 0.0, 3.0])
    ref = logprobs + 0.1
    objective = RLOO(kl_coefficient=0.3)
    whole = objective.loss(logprobs, advantages, 6, ref)
    parts = [objective.loss(logprobs[s], advantages[s], 6, ref[s]) for s in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(whole, sum(parts, torch.tensor(0.0)))


def test_loss_by_hand_and_its_refusals() -> None:
    loss = policy_gradient_loss(torch.tensor([-1.0, -2.0]), torch.tensor([2.0, -1.0]), 4)
    assert loss.item() == pytest.approx(-(2 * -1 + -1 * -2) / 4)
    assert policy_gradient_loss(torch.zeros(0), torch.zeros(0), 4).item() == 0
    with pytest.raises(SteerkitError, match="one advantage per token"):
        policy_gradient_loss(torch.zeros(3), torch.zeros(2), 3)
    with pytest.raises(SteerkitError, match="n_tokens"):
        policy_gradient_loss(torch.zeros(0), torch.zeros(0), 0)


def test_kl_penalty() -> None:
    logprobs, ref = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0])
    expected = torch.tensor([0.0, math.exp(-1) + 1 - 1, math.exp(1) - 1 - 1])
    torch.testing.assert_close(kl_penalty(logprobs, ref), expected)


def test_kl_penalty_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(2)
    policy, reference = (torch.randn(5, dtype=torch.float64, generator=generator).log_softmax(0) for _ in range(2))
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_penalty(policy, reference)).sum(), exact)


def test_rloo_is_an_objective() -> None:
    plain, with_kl = RLOO(), RLOO(kl_coefficient=0.5)
    assert isinstance(plain, Objective)
    assert not plain.needs_reference and not plain.needs_entropy and with_kl.needs_reference
    torch.testing.assert_close(plain.advantages(torch.tensor([[1.0, -1.0]])), torch.tensor([[2.0, -2.0]]))
    logprobs, zero, ref = torch.tensor([-1.0, -1.0]), torch.zeros(2), torch.tensor([-2.0, -1.0])
    assert plain.loss(logprobs, zero, 2, ref).item() == 0
    assert with_kl.loss(logprobs, zero, 2, ref).item() == pytest.approx(0.5 * math.exp(-1) / 2)
    with pytest.raises(SteerkitError, match="ref_logprobs"):
        with_kl.loss(logprobs, zero, 2)
    with pytest.raises(SteerkitError, match="kl_coefficient"):
        RLOO(kl_coefficient=-1)
