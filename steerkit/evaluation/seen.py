"""Which problems of a test set training has seen, by the hash of the normalised text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from steerkit import registry
from steerkit.datasets import dataset_name, normalised_key, open_dataset
from steerkit.errors import SteerkitError
from steerkit.types import Example

log = logging.getLogger(__name__)


def training_keys(specs: Sequence[str | Mapping[str, Any]], data_root: str | None) -> frozenset[str]:
    """``normalised_key`` of every problem in the train splits of some data sets; a file without splits counts whole.

    Raises:
        SteerkitError: if one can't be opened.
    """
    keys: set[str] = set()
    for spec in specs:
        dataset = open_dataset(_as_training(spec), data_root)
        keys.update(normalised_key(example.problem) for example in dataset.load("train"))
    return frozenset(keys)


def _as_training(spec: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """A data set without splits of its own is a test set unless it is told to be a training set."""
    if isinstance(spec, str):
        if ":" in spec or any(entry.name == spec for entry in registry.entries("datasets")):
            return spec
        return {"path": spec, "unsplit_as": "train"}
    if "path" in spec and "split_by_hash" not in spec:
        return {"unsplit_as": "train", **spec}
    return spec


def seen_problems(
    sets: Mapping[str, Sequence[Example]],
    receipts: Sequence[Mapping[str, Any]],
    train_data: Sequence[str],
    data_root: str | None,
) -> dict[str, frozenset[str]] | None:
    """Set -> ids of the problems that stand in the training data; None if that can't be told (and a log line why).

    A paraphrase, or the same problem with other numbers, is not found. What the base model was pre-trained on is
    not known here either.

    Args:
        receipts: of each vector; they name the data that it was trained on. None of them: nothing was trained.
        train_data: training data sets (files, hub ids, plugins), in place of the receipts'.

    Raises:
        SteerkitError: if ``train_data`` can't be opened.
    """
    if train_data:
        keys = training_keys(train_data, data_root)
    else:
        if not receipts:
            return None
        specs = [record.get("dataset_spec") for record in receipts]
        if any(spec is None for spec in specs):
            log.warning("A vector doesn't say what it was trained on: seen problems aren't flagged (--train_data).")
            return None
        try:
            keys = training_keys([spec for spec in specs if spec is not None], data_root)
        except SteerkitError as error:
            names = ", ".join(dataset_name(spec) for spec in specs if spec is not None)
            log.warning("Seen problems aren't flagged: can't open the training data (%s): %s", names, error)
            return None
    return {
        name: frozenset(example.id for example in examples if normalised_key(example.problem) in keys)
        for name, examples in sets.items()
    }
