"""REINFORCE with a leave-one-out baseline (Ahmadian et al., arXiv 2402.14740), as arXiv 2509.06608 uses it.

No clipping, no division by the standard deviation, and on-policy samples no ratio: where they come from another policy,
the trainer multiplies the advantages by importance weights.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from steerkit.errors import SteerkitError


def leave_one_out_advantages(rewards: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """A_i = r_i - mean of the other valid rewards of the group.

    Args:
        rewards: [G, K] float; may be NaN where not valid.
        valid: [G, K] bool; None takes all for valid.

    Returns:
        [G, K] in the dtype of ``rewards``: 0 for an invalid sample, for a group with fewer than two valid ones,
        and (exactly) for a group whose rewards are all equal.

    Raises:
        SteerkitError: K < 2, shapes differ, or a valid reward is NaN.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise SteerkitError(
            f"RLOO needs rewards [G, K] with K >= 2 samples a prompt (the others are the baseline), "
            f"got {list(rewards.shape)}; set the number of samples to 2 or more."
        )
    mask = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid.bool()
    if mask.shape != rewards.shape:
        raise SteerkitError(f"valid must have the shape of rewards {list(rewards.shape)}, got {list(mask.shape)}.")
    if rewards[mask].isnan().any():
        raise SteerkitError("A reward is NaN though its sample is marked valid; mark it invalid to drop it.")
    # Relative to one of the group's own rewards, so that equal rewards give 0 without rounding.
    some = torch.where(mask, rewards, -torch.inf).amax(dim=1, keepdim=True)
    shifted = torch.where(mask, rewards - some, 0.0)
    count = mask.sum(dim=1, keepdim=True)
    others = (shifted.sum(dim=1, keepdim=True) - shifted) / (count - 1).clamp(min=1)
    keep = mask & (count >= 2)
    return torch.where(keep, shifted - others, 0.0)


def policy_gradient_loss(logprobs: torch.Tensor, advantages: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """-(1 / n_tokens) sum_i A_i log pi_i: its gradient is the policy gradient, its value means nothing.

    Args:
        logprobs: [N] nats, with gradient: completion tokens, flat.
        advantages: [N] per token; no gradient flows through them.
        n_tokens: completion tokens of the global batch (so micro-batches and devices simply add up).
    """
    if logprobs.shape != advantages.shape:
        raise SteerkitError(
            f"Expected one advantage per token, got logprobs {list(logprobs.shape)} and "
            f"advantages {list(advantages.shape)}."
        )
    if n_tokens < 1:
        raise SteerkitError(f"n_tokens must be at least 1, got {n_tokens}: the batch has no completion tokens.")
    return -(advantages.detach() * logprobs).sum() / n_tokens


def kl_penalty(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """[N] Schulman's k3 estimate of KL(policy || reference) per token: r - 1 - log r with r = pi_ref / pi.

    Never negative, unbiased over samples of the policy (http://joschu.net/blog/kl-approx.html). ``ref_logprobs``
    get no gradient.
    """
    log_ratio = ref_logprobs.detach() - logprobs
    return log_ratio.exp() - log_ratio - 1


class RLOO:
    """The papers' objective.

    Args:
        kl_coefficient: weight of the KL penalty to the base model, averaged over the global batch's tokens.
            0 in arXiv 2509.06608 (no reference pass at all), 0.01 in the first version of arXiv 2505.18706.
    """

    needs_entropy: ClassVar[bool] = False

    def __init__(self, kl_coefficient: float = 0.0) -> None:
        if not kl_coefficient >= 0:
            raise SteerkitError(f"kl_coefficient must be 0 or more, got {kl_coefficient}.")
        self.kl_coefficient = kl_coefficient

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def advantages(self, rewards: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """[G, K], see ``leave_one_out_advantages``."""
        return leave_one_out_advantages(rewards, valid)

    def loss(
        self,
        logprobs: torch.Tensor,
        advantages: torch.Tensor,
        n_tokens: int,
        ref_logprobs: torch.Tensor | None = None,
        entropies: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scalar, see ``Objective.loss``; ``entropies`` are not used.

        Raises:
            SteerkitError: ``kl_coefficient`` is above 0 and ``ref_logprobs`` is None.
        """
        loss = policy_gradient_loss(logprobs, advantages, n_tokens)
        if not self.needs_reference:
            return loss
        if ref_logprobs is None:
            raise SteerkitError(f"kl_coefficient is {self.kl_coefficient}, so the loss needs ref_logprobs, got None.")
        return loss + self.kl_coefficient * kl_penalty(logprobs, ref_logprobs).sum() / n_tokens
