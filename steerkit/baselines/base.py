"""The contract of a weight adapter: a trainable change of the base's weights that can be switched on and off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Self = TypeVar("Self", bound="WeightAdapter")


class WeightAdapter(nn.Module, ABC):
    """A baseline of group ``steerkit.interventions``: ``SteeredModel`` switches it on in its scopes, so that rollouts,
    update, ``disabled()`` and the reports work as with a vector.

    Its parameters are what is trained; the base's own weights stay untouched while it is off.
    """

    folder: str = "adapter"
    """Where a run keeps what ``save`` wrote, beside ``results.json``."""
    keeps_weights: bool = False
    """Whether the base's own weights still run while it is on, beside what it adds."""

    @abstractmethod
    def enable(self) -> None:
        """Let the base compute with the trained weights."""

    @abstractmethod
    def disable(self) -> None:
        """Give the base back, bit for bit."""

    @abstractmethod
    def save(self, folder: Path, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        """Write it in the format that other tools read.

        Args:
            model: the base's name or folder.
        """

    def kept_aside_bytes(self) -> int:
        """Memory beside the base, the trained parameters and their optimiser."""
        return 0
