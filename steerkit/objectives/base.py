"""The contract of an objective: how rewards become a loss."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch


@runtime_checkable
class Objective(Protocol):
    """Turns the rewards of G groups into advantages, and advantages into a loss.

    The trainer calls ``advantages`` once a step, over all groups; then ``loss`` once per micro-batch, with the
    completion tokens of that micro-batch laid flat, and adds up the gradients. So ``loss`` must be a sum over
    its tokens divided by ``n_tokens``, never a mean over what it was given.

    Flags, read before the step, say what the trainer has to compute:

    - ``needs_reference``: log-probabilities of the same tokens under the base model (vectors disabled);
    - ``needs_entropy``: the policy's entropy at every completion token, with gradient. False unless the
      objective says otherwise.
    """

    needs_entropy: ClassVar[bool] = False

    @property
    def needs_reference(self) -> bool:
        """True if ``loss`` uses ``ref_logprobs``."""
        ...

    def advantages(self, rewards: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """[G, K] float advantages from [G, K] rewards; 0 where ``valid`` [G, K] bool is False (NaN reward)."""
        ...

    def loss(
        self,
        logprobs: torch.Tensor,
        advantages: torch.Tensor,
        n_tokens: int,
        ref_logprobs: torch.Tensor | None = None,
        entropies: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A scalar to minimise.

        Args:
            logprobs: [N] nats, with gradient, of the completion tokens of this micro-batch.
            advantages: [N] each token's advantage (that of its rollout).
            n_tokens: number of completion tokens of the *global* batch: all micro-batches of all devices.
            ref_logprobs: [N] nats under the base model; given if ``needs_reference``.
            entropies: [N] nats, with gradient; given if ``needs_entropy``.
        """
        ...
