"""Entropy minimisation without a reward: the control that asks how much of a gain is only confidence.

As EM-FT of Agarwal et al. (arXiv 2505.15134): the entropy of the next token is minimised at every token of the
policy's own samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from steerkit.errors import SteerkitError


class Entropy:
    """The loss is the mean token entropy of the policy's samples; rewards are logged and not used.

    The gradient is the *direct* one: that of each position's entropy through its logits, the sampled prefix held fixed.
    The full gradient of the expected entropy has a second, score-function term (samples move towards prefixes after
    which the policy is sure); it is left out, as in EM-FT. EM-FT averages over each completion's tokens and then over
    completions; here every token of the batch weighs the same, as in ``rloo``.

    The entropy is that of the distribution that is sampled from, softmax(logits / temperature).
    """

    needs_entropy: ClassVar[bool] = True
    needs_reference = False

    def advantages(self, rewards: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """[G, K] zeros: no sample is better than another."""
        return torch.zeros_like(rewards)

    def loss(
        self,
        logprobs: torch.Tensor,
        advantages: torch.Tensor,
        n_tokens: int,
        ref_logprobs: torch.Tensor | None = None,
        entropies: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scalar, nats: the sum of ``entropies`` / ``n_tokens``; the log-probabilities and advantages are not used.

        Raises:
            SteerkitError: ``entropies`` is None, or ``n_tokens`` is below 1.
        """
        if entropies is None:
            raise SteerkitError("The entropy objective's loss needs the tokens' entropies, got None.")
        if n_tokens < 1:
            raise SteerkitError(f"n_tokens must be at least 1, got {n_tokens}: the batch has no completion tokens.")
        return entropies.sum() / n_tokens
