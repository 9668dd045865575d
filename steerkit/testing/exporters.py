"""What steerkit asks of an exporter: it reproduces the steered model, sees when it doesn't, and loses nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit import registry
from steerkit.errors import PluginError, SteerkitError, VectorError
from steerkit.exporters import Exporter
from steerkit.exporters.base import probe_logits
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, find_layout, fingerprint
from steerkit.models.sites import inner_width
from steerkit.testing.checks import Check, assert_all, label, made
from steerkit.testing.samplers import tiny_tokenizer
from steerkit.testing.steering import randomize, tiny_model
from steerkit.vectors import SteeringVector, VectorMetadata

LAYERS = (1, 2)
"""Of the vector: llama.cpp, for one, knows none at block 0."""


def exporter_checks(
    target: Any, *, intervention: str = "static", family: str = "llama", **settings: Any
) -> list[Check]:
    """The promises.

    Args:
        target: a class, an object, or a plugin's name.
        intervention: of the vector that is exported, one that the target can express.
        family: of the tiny model that it steers.
        settings: of the class.

    Raises:
        PluginError: if it is no Exporter, or has no such setting.
    """
    exporter = made("exporters", target, settings)
    if not isinstance(exporter, Exporter):
        raise PluginError(f"{label(target)} is no Exporter.")
    contract = _Contract(exporter, intervention, family)
    return [
        Check("it has a name, and says whether it writes a folder or a file", contract.named),
        Check(f"what it writes, read back, reproduces a tiny {family} steered by {intervention}", contract.reproduces),
        Check("its comparison fails for another vector", contract.notices),
        Check("it refuses a token mask that it can't express, and leaves nothing", contract.masks),
        Check("what is at the path stays", contract.keeps),
        Check("the base model stays as it was", contract.base_untouched),
    ]


def check_exporter(target: Any, **settings: Any) -> None:
    """Run all of them.

    Raises:
        AssertionError: at the first promise that is not kept.
    """
    assert_all(label(target), exporter_checks(target, **settings))


class _Contract:
    def __init__(self, exporter: Exporter, intervention: str, family: str) -> None:
        self.exporter, self.intervention = exporter, intervention
        base = tiny_model(family)
        self.loaded = LoadedModel(base, tiny_tokenizer(), find_layout(base), f"tiny {family}")

    @cached_property
    def vector(self) -> SteeringVector:
        plugin, base = registry.resolve("interventions", self.intervention), self.loaded.base
        needed = {"d_inner": inner_width(base, self.loaded.layout, 0)} if "d_inner" in plugin.needs else {}
        items = plugin.build([HookPoint(k, plugin.sites[0]) for k in LAYERS], base.config.hidden_size, **needed)
        for seed, item in enumerate(items.values()):
            randomize(item, seed)
        metadata = VectorMetadata(self.loaded.name, fingerprint(base), 0, base.config.num_hidden_layers)
        return SteeringVector.from_interventions(self.intervention, items, metadata)

    @contextmanager
    def place(self) -> Iterator[Path]:
        """Where nothing is yet; afterwards nothing may be beside it."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "out"
            beside = sorted(path.name for path in Path(folder).iterdir() if path.name != "out")
            assert not beside, f"left beside the path: {', '.join(beside)}"

    def named(self) -> None:
        name, form = getattr(self.exporter, "name", None), getattr(self.exporter, "form", None)
        assert isinstance(name, str) and name, f"expected a class attribute name, got {name!r}"
        assert form in ("folder", "file"), f"form is 'folder' or 'file', got {form!r}"

    def reproduces(self) -> None:
        with self.place() as out:
            report = self.exporter.export(self.vector, self.loaded, out)
            assert out.is_dir() if self.exporter.form == "folder" else out.is_file(), f"no {self.exporter.form} there"
            assert not out.is_dir() or any(out.iterdir()), "the folder is empty"
            assert isinstance(report.wrote, str) and report.wrote, f"write returns words, got {report.wrote!r}"
            found = report.comparison
            assert found is not None and 0 <= found.difference <= found.allowed, f"{found}"

    def notices(self) -> None:
        other = -1.0 * self.vector
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "out"
            if self.exporter.form == "folder":
                place.mkdir()
            self.exporter.write(self.vector, self.loaded, place)
            try:
                found = self.exporter.compare(other, self.loaded, place)
            except SteerkitError:
                return
        assert not found.difference <= found.allowed, f"the file of v passes for -v: {found}"

    def masks(self) -> None:
        with self.place() as out:
            try:
                self.exporter.export(self.vector.with_mask("first_generated"), self.loaded, out)
            except VectorError:
                assert not out.exists(), "refused, but something is there"
            else:
                raise AssertionError("a vector for the first generated token was written as one for every position")

    def keeps(self) -> None:
        with self.place() as out:
            out.mkdir()
            (out / "thesis.txt").write_text("mine")
            for path in (out, out / "thesis.txt"):
                try:
                    self.exporter.export(self.vector, self.loaded, path)
                except SteerkitError:
                    pass
                else:
                    raise AssertionError("it wrote to a path where something was")
                assert (out / "thesis.txt").read_text() == "mine", "it changed what was there"

    def base_untouched(self) -> None:
        before, logits = self._weights(), probe_logits(self.loaded.base)
        with self.place() as out:
            self.exporter.export(self.vector, self.loaded, out)
        after = self._weights()
        changed = [n for n, tensor in before.items() if n not in after or not torch.equal(tensor, after[n])]
        assert not changed and len(before) == len(after), f"other parameters: {', '.join(changed) or 'new ones'}"
        assert torch.equal(probe_logits(self.loaded.base), logits), "the base's logits changed"

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.loaded.base.state_dict().items()}
