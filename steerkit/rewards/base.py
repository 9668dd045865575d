"""The contract of a reward: TRL's signature, so that one function serves both libraries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Reward(ABC):
    """Scores completions. A plain function (sync or async) of the same signature is a reward too.

    ``columns`` has one item per completion: ``answer``, ``finish_reason`` (``stop`` or ``length``), ``id``,
    ``problem``, ``source`` and the data set's own columns. All arguments come by name.
    """

    @abstractmethod
    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """One number per completion; None means "no opinion on this one".

        Args:
            prompts: the rendered prompts, one per completion (repeated for the K samples of a prompt).
            completions: the sampled texts, without special tokens.
            completion_ids: the sampled token ids.
        """

    def warm(self) -> None:  # noqa: B027 - most rewards have nothing to start
        """Starts whatever is slow to start and returns at once, so that sampling hides the cost."""

    def close(self) -> None:  # noqa: B027 - most rewards hold nothing
        """Releases processes and the like."""
