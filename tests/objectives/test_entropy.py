"""Entropy minimisation: the plugin, its contract, and that its gradient makes a distribution surer."""

import pytest
import torch

from steerkit import registry
from steerkit.errors import SteerkitError
from steerkit.objectives import Entropy
from steerkit.testing import check_objective


def test_keeps_the_contract():
    check_objective("entropy")


def test_is_the_plugin_and_gives_no_advantages():
    objective = registry.build("objectives", "entropy")
    assert isinstance(objective, Entropy) and objective.needs_entropy and not objective.needs_reference
    rewards = torch.tensor([[1.0, -1.0], [float("nan"), 2.0]])
    assert torch.equal(objective.advantages(rewards, ~rewards.isnan()), torch.zeros(2, 2))


def test_gradient_of_a_softmax():
    """dH/dz_j = -p_j (log p_j + H), a hand-derived truth; a step against it lowers the entropy."""
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    Entropy().loss(torch.zeros(1), torch.zeros(1), 4, entropies=entropy[None]).backward()
    p = logits.detach().softmax(0)
    torch.testing.assert_close(logits.grad, -p * (p.log() + entropy.detach()) / 4)
    after = torch.distributions.Categorical(logits=logits.detach() - logits.grad).entropy()
    assert after < entropy


def test_bad_input():
    with pytest.raises(SteerkitError, match="entropies, got None"):
        Entropy().loss(torch.zeros(1), torch.zeros(1), 4)
    with pytest.raises(SteerkitError, match="n_tokens"):
        Entropy().loss(torch.zeros(1), torch.zeros(1), 0, entropies=torch.zeros(1))
