"""The contract of a prompt data set (``datasets/base.py``): seeded, disjoint splits, nothing empty."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

from steerkit.datasets.base import SPLITS, Split
from steerkit.datasets.splits import normalised_key
from steerkit.errors import DataError
from steerkit.testing.checks import Check, assert_all, label, made
from steerkit.types import Example

RESERVED = {"id", "problem", "answer", "source", "finish_reason", "prompts", "completions", "completion_ids"}
"""Columns that steerkit itself hands to rewards: a data set's own of that name would be lost."""


def check_dataset(target: Any, *, splits: Sequence[Split] = SPLITS, verifier: Any = None, **settings: Any) -> None:
    """The data set contract.

    Args:
        target: a class, an object, or a plugin's name.
        splits: those that it has; training and its report need all three.
        verifier: one that must understand the gold answers.
        settings: of a class.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    assert_all(label(target), dataset_checks(target, splits=splits, verifier=verifier, **settings))


def dataset_checks(
    target: Any, *, splits: Sequence[Split] = SPLITS, verifier: Any = None, **settings: Any
) -> list[Check]:
    """The promises, for ``check_dataset`` and for the shell."""
    contract = _Contract(target, settings, splits, verifier)
    checks = [
        Check(f"{', '.join(splits)} hold examples", contract.filled),
        Check("ids are unique in a split", contract.ids),
        Check("no problem and no answer is empty", contract.texts),
        Check("columns have names of their own", contract.columns),
        Check("the same settings give the same examples in the same order", contract.repeatable),
        Check("no problem is in two splits", contract.disjoint),
        Check("an unknown split is a DataError", contract.unknown),
    ]
    if verifier is not None:
        checks.append(Check("the verifier understands the gold answers", contract.understood))
    return checks


class _Contract:
    def __init__(self, target: Any, settings: dict[str, Any], splits: Sequence[Split], verifier: Any) -> None:
        self.target, self.settings, self.splits, self.verifier = target, settings, splits, verifier
        self.dataset = made("datasets", target, settings)

    @cached_property
    def loaded(self) -> dict[Split, list[Example]]:
        return {split: self.dataset.load(split) for split in self.splits}

    def filled(self) -> None:
        for split, examples in self.loaded.items():
            assert isinstance(examples, list) and examples, (
                f"{split}: expected a list of examples, got {examples!r:.80}"
            )
            strange = [example for example in examples if not isinstance(example, Example)]
            assert not strange, f"{split}: expected Example, got {strange[0]!r:.80}"

    def ids(self) -> None:
        for split, examples in self.loaded.items():
            ids = [example.id for example in examples]
            twice = next((item for item in ids if ids.count(item) > 1), None) if len(set(ids)) < len(ids) else None
            assert twice is None, f"{split}: two examples have the id {twice!r}"

    def texts(self) -> None:
        for split, examples in self.loaded.items():
            for example in examples:
                for name in ("id", "problem", "answer"):
                    value = getattr(example, name)
                    sound = isinstance(value, str) and value.strip()
                    assert sound, f"{split}, {example.id!r}: {name} is {value!r:.80}, expected a text"

    def columns(self) -> None:
        taken = {key for examples in self.loaded.values() for example in examples for key in example.columns} & RESERVED
        assert not taken, f"rewards would not see {', '.join(sorted(taken))}: steerkit's own column has that name"

    def repeatable(self) -> None:
        again = made("datasets", self.target, self.settings)
        for split, examples in self.loaded.items():
            assert again.load(split) == examples, f"{split}: loaded again, it differs"

    def disjoint(self) -> None:
        home: dict[str, tuple[Split, str]] = {}
        for split, examples in self.loaded.items():
            for example in examples:
                place, first = home.setdefault(normalised_key(example.problem), (split, example.id))
                assert place == split, f"{first} ({place}) and {example.id} ({split}) have the same problem"

    def unknown(self) -> None:
        try:
            self.dataset.load(cast(Split, "no such split"))
        except DataError:
            return
        raise AssertionError("load('no such split'): expected a DataError")

    def understood(self) -> None:
        verifier = made("verifiers", self.verifier, {})
        for split, examples in self.loaded.items():
            golds = [example.answer for example in examples[:256]]
            verdicts = verifier.verify_many([r"\boxed{0}"] * len(golds), golds)
            faults = [(e.id, v.reason) for e, v in zip(examples, verdicts, strict=False) if v.status == "fault"]
            assert not faults, f"{split}: {len(faults)} of {len(golds)} gold answers are faults, the first {faults[0]}"
