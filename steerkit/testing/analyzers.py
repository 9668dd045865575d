"""The contract of an analyzer (``analysis/base.py``): one record, the same from both engines, the model left alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from steerkit import registry
from steerkit.analysis.base import Analyzer, check_final
from steerkit.analysis.plots import draw
from steerkit.analysis.result import AnalysisResult
from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, find_layout
from steerkit.models.sites import inner_width
from steerkit.rollouts import EncodedPrompt
from steerkit.testing.checks import Check, assert_all, label, made
from steerkit.testing.samplers import tiny_tokenizer
from steerkit.testing.steering import randomize, tiny_model
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

TOLERANCE = 1e-4
"""Relative difference of a number between the two engines (fp32)."""
INTERVENTIONS = ("static", "tokenwise", "gated", "projected", "lowrank", "bias")
RESERVED = {
    "config", "model", "vector", "prompts", "data_root", "split", "limit", "template", "engine", "seed", "batch_tokens",
    "dtype", "device", "trust_remote_code", "figures", "force", "restart", "out",
}  # fmt: skip
"""Options of ``steerkit analyze``: no setting may have such a name."""
MASKS = ("first_generated", "not_first_generated", "prompt", "generated", "last_prompt:2", "segment:problem")


def check_analyzer(target: Any, *, family: str = "llama", drawn: bool = True, **settings: Any) -> None:
    """The analyzer contract, on a tiny random model with random vectors.

    Args:
        target: a class, an object, or a plugin's name.
        family: of the tiny model (``tiny_model``).
        drawn: draw the figures too, which takes most of the time and does not depend on the family.
        settings: of a class; choose small ones.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    assert_all(label(target), analyzer_checks(target, family=family, drawn=drawn, **settings))


def analyzer_checks(target: Any, *, family: str = "llama", drawn: bool = True, **settings: Any) -> list[Check]:
    """The promises, for ``check_analyzer`` and for the shell."""
    contract = _Contract(made("analyzers", target, settings), family, drawn)
    return [
        Check("a dataclass with a name, whose settings are JSON values", contract.shape),
        Check("rows with n, interval and control; positions stated", contract.record),
        Check("the nnsight engine and the batched one give the same numbers", contract.engines),
        Check("the same seed gives the same numbers", contract.seeds),
        Check("works with every intervention and every token mask", contract.kinds),
        Check("saved, read back, and drawn from the folder alone", contract.saved),
        Check("a run that was cut off goes on and gives the same numbers", contract.resumes),
        Check("a vector that does not fit is refused", contract.misfit),
        Check("the model is left as it was", contract.left),
    ]


class _Contract:
    def __init__(self, analyzer: Any, family: str, drawn: bool = True) -> None:
        self.analyzer: Analyzer = analyzer
        self.drawn = drawn
        base = tiny_model(family)
        self.loaded = LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")
        self.prompts = [
            EncodedPrompt(Example(f"check/{index}", "text", "15"), "text", ids, ("role_tags",) + ("problem",) * (n - 1))
            for index, ids in enumerate([(5, 6, 7), (8, 9), (9, 10, 11, 12, 13), (15, 16, 5, 6)])
            for n in [len(ids)]
        ]

    def vector(self, intervention: str = "static", seed: int = 0, mask: str = "all", width: int = 0) -> SteeringVector:
        """At the first and the last layer."""
        cls = registry.resolve("interventions", intervention)
        d_model = width or int(self.loaded.base.config.get_text_config().hidden_size)
        needs = {"d_inner": inner_width(self.loaded.base, self.loaded.layout, 0)} if cls.needs else {}
        items = cls.build([HookPoint(0, cls.sites[0]), HookPoint(2, cls.sites[0])], d_model, **needs)
        for item in items.values():
            randomize(item, seed, std=0.3)
        metadata = VectorMetadata("tiny", d_model=d_model, n_layers=3)
        return SteeringVector.from_interventions(intervention, items, metadata, mask)

    def vectors(self, **changed: Any) -> dict[str, SteeringVector]:
        least, most = self.analyzer.n_vectors
        count = max(least, 1) if most == 1 else max(least, 2)
        return {f"v{seed}": self.vector(seed=seed, **changed) for seed in range(count)}

    def run(self, engine: str = "batched", **changed: Any) -> AnalysisResult:
        vectors = changed.pop("vectors", None) or self.vectors()
        return self.analyzer.run(self.loaded, vectors, self.prompts, engine=engine, batch_tokens=16, **changed)

    @cached_property
    def result(self) -> AnalysisResult:
        return self.run()

    def shape(self) -> None:
        assert isinstance(self.analyzer, Analyzer), f"expected an Analyzer, got {type(self.analyzer).__name__}"
        check_final(type(self.analyzer))
        again = type(self.analyzer)(**self.analyzer.settings)
        assert again.settings == self.analyzer.settings, "settings must build the analyzer again"
        taken = sorted(RESERVED & self.analyzer.settings.keys())
        assert not taken, f"the settings {taken} have names of options of `steerkit analyze`"

    def record(self) -> None:
        assert self.result.rows, "no rows"
        for number, row in enumerate(self.result.rows):
            for key in ("ci95", "control_ci95"):
                ends = row[key]
                assert ends is None or (len(ends) == 2 and ends[0] <= ends[1]), f"row {number}: {key} is {ends}"
            if row["ci95"] is not None and row["value"] is not None:
                low, high = row["ci95"]
                slack = 1e-6 * max(1.0, abs(low), abs(high))
                assert low - slack <= row["value"] <= high + slack, (
                    f"row {number}: {row['value']} is outside {row['ci95']}"
                )
            assert isinstance(row["n"], int), f"row {number}: n is {row['n']!r}"
        controlled = any(row["control"] is not None for row in self.result.rows)
        assert controlled or self.result.notes, "no row has a control, and no note says why"
        json.dumps(self.result.rows, allow_nan=False)

    def engines(self) -> None:
        _same(self.run("nnsight"), self.result, "nnsight and batched")

    def seeds(self) -> None:
        _same(self.run(), self.result, "two runs", tolerance=0.0)

    def kinds(self) -> None:
        """Each intervention with another mask: six runs instead of twelve."""
        for name, mask in zip(INTERVENTIONS, MASKS, strict=True):
            with _named(f"{name} with mask {mask}"):
                self.run(vectors=self.vectors(intervention=name, mask=mask))

    def saved(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.result.save(folder)
            _same(AnalysisResult.load(folder), self.result, "read back", tolerance=0.0)
            if not self.drawn:
                return
            drawn = draw(folder, self.analyzer)
            assert drawn.images, "no panel was drawn"
            for path in (drawn.page, *drawn.images):
                assert Path(path).stat().st_size > 500, f"{path} is empty"

    def resumes(self) -> None:
        """Cut off at the first and at the third call of ``progress``, then run to the end in the same folder."""
        with tempfile.TemporaryDirectory() as folder:
            for limit in (1, 3):
                with _cut(limit) as progress:
                    self.run(folder=folder, progress=progress)
            _same(self.run(folder=folder), self.result, "cut off and gone on", tolerance=0.0)
            assert not (Path(folder) / "parts").exists(), "parts must go when the result is saved"
            again = self.run(folder=folder, progress=_refuse)
            _same(again, self.result, "finished and asked for again", tolerance=0.0)

    def misfit(self) -> None:
        width = int(self.loaded.base.config.get_text_config().hidden_size)
        wrong = {name: self.vector(seed=k, width=width + 8) for k, name in enumerate(self.vectors())}
        try:
            self.run(vectors=wrong)
        except VectorError as error:
            assert str(width + 8) in str(error), f"the error names no width: {error}"
        else:
            raise AssertionError(f"a vector of width {width + 8} was accepted by a model of width {width}")

    def left(self) -> None:
        base = self.loaded.base
        base.requires_grad_(True)
        before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
        attention = base.config._attn_implementation
        for engine in ("nnsight", "batched"):
            self.run(engine)
            assert all(p.requires_grad for p in base.parameters()), f"{engine}: requires_grad was changed"
            assert base.config._attn_implementation == attention, f"{engine}: the attention implementation was changed"
            for name, module in base.named_modules():
                hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
                assert not hooks and "forward" not in vars(module), f"{engine}: {name} still carries a hook"
            for name, parameter in base.named_parameters():
                assert torch.equal(parameter, before[name]), f"{engine}: {name} was changed"
        base.requires_grad_(False)


class _CutOff(BaseException):
    pass


@contextmanager
def _cut(limit: int) -> Iterator[Any]:
    """A progress callback that ends the run at its ``limit``-th call; a run that is shorter is fine too."""
    calls = 0

    def progress(_label: str, _done: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= limit:
            raise _CutOff

    with suppress(_CutOff):
        yield progress


def _refuse(what: str, done: int, total: int) -> None:
    raise AssertionError(f"a finished analysis was run again: {what} {done}/{total}")


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except SteerkitError as error:
        raise AssertionError(f"{what}: {error}") from error


def _same(one: AnalysisResult, other: AnalysisResult, what: str, tolerance: float = TOLERANCE) -> None:
    assert len(one.rows) == len(other.rows), f"{what}: {len(one.rows)} rows and {len(other.rows)}"
    for number, (first, second) in enumerate(zip(one.rows, other.rows, strict=True)):
        for key in first.keys() | second.keys():
            a, b = first.get(key), second.get(key)
            assert _close(a, b, tolerance), f"{what}: row {number}, {key}: {a} and {b}"
    assert one.arrays.keys() == other.arrays.keys(), f"{what}: other arrays"
    for name, array in one.arrays.items():
        a, b = array.values.double(), other.arrays[name].values.double()
        assert a.shape == b.shape, f"{what}: {name} is {list(a.shape)} and {list(b.shape)}"
        scale = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
        gap = float((a.nan_to_num() - b.nan_to_num()).abs().max()) if a.numel() else 0.0
        assert gap <= tolerance * max(1.0, scale), f"{what}: {name} differs by {gap:g}"


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return all(_close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return bool(a == b)
