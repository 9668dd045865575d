"""The contract of exporters: the built-in ones and the one in the docs pass, each promise can break."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from steerkit.cli import main
from steerkit.errors import PluginError
from steerkit.exporters import Comparison, ExportReport, Gguf
from steerkit.testing import check_exporter
from steerkit.testing.checks import CONTRACTS, contract, failure
from steerkit.testing.exporters import exporter_checks

PAGE = Path(__file__).parents[2] / "docs" / "exporters.md"


def broken(target: Any, **settings: Any) -> list[str]:
    return [check.name for check in exporter_checks(target, **settings) if failure(check) is not None]


@pytest.mark.parametrize("name", ["folded", "gguf", "peft"])
def test_the_built_in_ones(name: str) -> None:
    check_exporter(name)


def test_another_intervention_and_family() -> None:
    check_exporter("peft", intervention="tokenwise")
    check_exporter("folded", family="gpt2")


def test_the_one_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "Numpy" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy_file.py").write_text(code)
    assert main(["plugins", "check", "numpy_file.py:Numpy", "--kind", "exporters"]) == 0
    assert "6 checks, all pass." in capsys.readouterr().out


class Blind(Gguf):
    def compare(self, vector: Any, loaded: Any, place: Path) -> Comparison:
        return Comparison("nothing", 0.0, 1.0)


class Half(Gguf):
    def write(self, vector: Any, loaded: Any, place: Path) -> str:
        return super().write(0.5 * vector, loaded, place)


class Overwrites(Gguf):
    def export(self, vector: Any, loaded: Any, out: str | Path, check: bool = True) -> ExportReport:
        if Path(out).is_file():
            Path(out).unlink()
        return super().export(vector, loaded, out, check)


class AnyMask(Gguf):
    def export(self, vector: Any, loaded: Any, out: str | Path, check: bool = True) -> ExportReport:
        return super().export(vector.with_mask("all"), loaded, out, check)


class Litters(Gguf):
    def write(self, vector: Any, loaded: Any, place: Path) -> str:
        (place.parent / "log.txt").write_text("x")
        return super().write(vector, loaded, place)


class LeavesIt(Gguf):
    def compare(self, vector: Any, loaded: Any, place: Path) -> Comparison:
        next(iter(loaded.base.parameters())).data.add_(1.0)
        return super().compare(vector, loaded, place)


class Nameless(Gguf):
    name = ""


REPRODUCES = "what it writes, read back, reproduces a tiny llama steered by static"
BASE = "the base model stays as it was"


@pytest.mark.parametrize(
    ("target", "promises"),
    [
        (Blind, ["its comparison fails for another vector"]),
        (Half, [REPRODUCES, BASE]),
        (Overwrites, ["what is at the path stays"]),
        (AnyMask, ["it refuses a token mask that it can't express, and leaves nothing"]),
        (Litters, [REPRODUCES, BASE]),
        (LeavesIt, [BASE]),
        (Nameless, ["it has a name, and says whether it writes a folder or a file"]),
    ],
)
def test_each_promise_can_break(target: Any, promises: list[str]) -> None:
    assert broken(target) == promises


def test_a_kind_without_a_contract_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CONTRACTS, "exporters")
    with pytest.raises(PluginError, match="There is no contract for exporters yet; kinds with one: models, "):
        contract("exporters")


def test_what_is_no_exporter() -> None:
    with pytest.raises(PluginError, match="is no Exporter"):
        exporter_checks(dict)
    with pytest.raises(PluginError):
        exporter_checks("foldedd")
