"""The contract of a prompt data set (entry-point group ``steerkit.datasets``)."""

from __future__ import annotations

from typing import Literal, Protocol, get_args, runtime_checkable

from steerkit.types import Example

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@runtime_checkable
class PromptDataset(Protocol):
    """Problems with gold answers.

    An implementation promises: the same settings give the same examples in the same order, ids are unique within
    a split, no problem and no answer is empty, and no problem is in two splits.
    """

    def load(self, split: Split) -> list[Example]:
        """All examples of ``split``.

        Raises:
            DataError: if the data set can't be read, has no such split, or the split is empty.
        """
        ...


@runtime_checkable
class WrittenCompletions(Protocol):
    """What a data set may offer besides: completions of several kinds for its problems, to be contrasted
    (``steerkit extract``).
    """

    completion_kinds: tuple[str, ...]

    def completion(self, example: Example, kind: str) -> str:
        """The text of one completion of ``example``; the same arguments give the same text.

        Raises:
            DataError: for an unknown kind, or an example that is not this data set's.
        """
        ...
