"""The analyzer contract: the built-in ones keep it, a third party's does, and each promise can break."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from steerkit import registry
from steerkit.analysis import AnalysisResult, Analyzer, Findings, Geometry, as_array, draw, of_prompts, row
from steerkit.cli import main
from steerkit.errors import DataError, SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.testing import check_analyzer
from steerkit.testing.analyzers import _Contract, analyzer_checks
from steerkit.testing.checks import failure

PAGE = Path(__file__).parents[2] / "docs" / "analyzers" / "README.md"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_geometry_keeps_it(family):
    check_analyzer(Geometry, family=family, drawn=family == "llama", controls=4)


# -- a third party's analyzer, as the documentation has it


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The class of docs/analyzers/README.md in a distribution of its own."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    text = next(block for block in blocks if "class Shift" in block)
    (tmp_path / "their_shift.py").write_text(text, encoding="utf-8")
    info = tmp_path / "steerkit_shift-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steerkit-shift\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[steerkit.analyzers]\nshift = their_shift:Shift\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("their_shift", None)


def test_a_third_partys_analyzer(plugin, capsys):
    assert "steerkit_shift" in {entry.distribution for entry in registry.entries("analyzers")}
    assert main(["plugins", "check", "shift", "controls=2"]) == 0
    assert "all pass" in capsys.readouterr().out
    assert main(["analyze"]) == 0
    assert "shift            How far a vector moves the residual stream that leaves a layer. (steerkit_shift 0.3)" in (
        capsys.readouterr().out
    )
    contract = _Contract(registry.resolve("analyzers", "shift")(layer=0, controls=2), "llama")
    found = contract.run("nnsight")
    # At its own layer a static vector moves the stream by its own norm; so does a norm-matched control.
    for name, vector in contract.vectors().items():
        (got,) = found.find(vector=name)
        assert got["value"] == pytest.approx(vector.norms()["layers.0.output"], rel=1e-5) and got["n"] == 4
        assert got["control"] == pytest.approx(got["value"], rel=1e-5)


# -- each promise can break


@dataclass(frozen=True)
class Good(Analyzer):
    """Mean of the last layer's shift."""

    name: ClassVar[str] = "good"
    how: str = "good"

    def analyze(self, work):
        if self.how == "changes":
            with torch.no_grad():
                next(iter(work.loaded.base.parameters())).mul_(1.01)
        if self.how == "hooks":
            work.loaded.base.register_forward_hook(lambda *_: None)
        rows = []
        for name, vector in work.vectors.items():
            work.progress("shift", 1, 2)
            values = []
            for batch in work.batches(of_prompts(work.prompts)):
                gap = work.engine.run(batch, vector, [HookPoint(2)])[HookPoint(2)]
                values += (gap * batch.mask[..., None]).sum((1, 2)).tolist()
            if self.how == "engine" and work.engine.name == "nnsight":
                values = [value + 1 for value in values]
            if self.how == "random":
                values = [value + float(torch.rand(())) for value in values]
            if self.how == "masks" and vector.token_mask != "all":
                raise SteerkitError("masks are not for me.")
            if self.how == "interventions" and vector.intervention != "static":
                raise SteerkitError("static only.")
            rows.append(row("shift", values, [0.0, 0.0], vector=name))
        if self.how == "interval":
            rows[0]["ci95"] = [1e9, 2e9]
        if self.how == "uncontrolled":
            rows = [{**one, "control": None, "control_ci95": None} for one in rows]
        return Findings(rows, "all")

    def panels(self, result):
        return [] if self.how == "undrawn" else super().panels(result)


@pytest.mark.parametrize(
    ("how", "promise"),
    [
        ("changes", "the same seed gives"),
        ("hooks", "the model is left"),
        ("engine", "the nnsight engine and the batched one"),
        ("random", "the same seed gives"),
        ("masks", "works with every intervention and every token mask"),
        ("interventions", "works with every intervention and every token mask"),
        ("interval", "rows with n, interval and control"),
        ("uncontrolled", "rows with n, interval and control"),
        ("undrawn", "saved, read back, and drawn"),
    ],
)
def test_each_promise_can_break(how, promise):
    (check,) = [check for check in analyzer_checks(Good, how=how) if check.name.startswith(promise)]
    assert failure(check) is not None


def test_the_good_one_is_good():
    check_analyzer(Good)


@dataclass(frozen=True)
class Reserved(Good):
    seed: int = 0


class NoDataclass(Analyzer):
    name: ClassVar[str] = "no"

    def analyze(self, work):
        raise NotImplementedError


def test_shapes_that_are_refused():
    assert "['seed'] have names of options" in str(failure(analyzer_checks(Reserved)[0]))
    assert "must be a dataclass" in str(failure(analyzer_checks(NoDataclass)[0]))
    with pytest.raises(SteerkitError, match="must state its token positions"):
        Findings([], "")
    with pytest.raises(SteerkitError, match="Row 0 lacks n, ci95"):
        Findings([{"metric": "m", "value": 1.0}], "all")
    with pytest.raises(SteerkitError, match="'a' has 2 dimensions and names 1 axes"):
        Findings([], "all", {"a": as_array(torch.zeros(2, 2), ("layer",))})


# -- what the base class refuses, keeps and reads again


def test_bad_input_is_refused_in_one_line():
    contract = _Contract(Geometry(controls=2), "llama")
    run, loaded, prompts = contract.analyzer.run, contract.loaded, contract.prompts
    with pytest.raises(SteerkitError, match=r"No engine 'nnsigt'. Did you mean 'nnsight'\?"):
        run(loaded, contract.vector(), prompts, engine="nnsigt")
    with pytest.raises(DataError, match="geometry needs prompts, got none"):
        run(loaded, contract.vector())
    with pytest.raises(VectorError, match="geometry takes 1 or more vectors, got 0"):
        run(loaded, {}, prompts)
    with pytest.raises(VectorError, match="wide: The vector is 40 wide .* the model 32"):
        run(loaded, {"wide": contract.vector(width=40)}, prompts)
    shallow = contract.vector().at(2)
    from dataclasses import replace

    deep = replace(shallow, tensors={HookPoint(7): shallow.tensors[HookPoint(2)]})
    with pytest.raises(VectorError, match=r"v: layers.7.output is outside the model: it has layers 0 to 2"):
        run(loaded, {"v": deep}, prompts)

    @dataclass(frozen=True)
    class Judge(Good):
        needs_answers: ClassVar[bool] = True

    unanswered = [replace(p, example=replace(p.example, answer="")) for p in prompts]
    with pytest.raises(DataError, match="good measures accuracy, and prompt 'check/0' has no answer"):
        Judge().run(loaded, contract.vector(), unanswered)


def test_a_folder_of_other_settings(tmp_path):
    contract = _Contract(Good(), "llama")
    first = contract.run(folder=tmp_path / "a")
    assert contract.run(folder=tmp_path / "a").seconds == first.seconds  # read, not run
    second = contract.run(folder=tmp_path / "a", seed=1)
    assert second.seed == 1 and AnalysisResult.load(tmp_path / "a.1").seed == 0  # set aside, not lost
    contract.run(folder=tmp_path / "a", seed=1, restart=True)
    assert AnalysisResult.load(tmp_path / "a.2").seed == 1


def test_parts_of_other_settings_are_refused(tmp_path):
    from steerkit.analysis.parts import Parts

    Parts(tmp_path, {"seed": 0}).get("one", lambda: {"x": torch.ones(2), "names": ("a", "b")})
    with pytest.raises(SteerkitError, match="unfinished analysis with other settings .seed: 0 there, 1 here"):
        Parts(tmp_path, {"seed": 1})
    again = Parts(tmp_path, {"seed": 0})
    kept = again.get("one", lambda: pytest.fail("computed again"))
    assert kept["x"].tolist() == [1.0, 1.0] and kept["names"] == ["a", "b"]
    (file,) = (tmp_path / "parts").glob("*.safetensors")
    file.write_bytes(b"damaged")
    with pytest.raises(SteerkitError, match="is damaged .* delete it"):
        again.get("one", dict)


def test_what_a_failure_leaves(tmp_path):
    """Nothing, unless a part is finished, from which the next run goes on; what was there stays."""

    @dataclass(frozen=True)
    class Failing(Good):
        parts: int = 0

        def analyze(self, work):
            for number in range(self.parts):
                work.part(f"part {number}", lambda: {"x": torch.ones(1)})
            raise SteerkitError("no.")

    contract = _Contract(Failing(), "llama")

    def fails(parts, folder, **changed):
        with pytest.raises(SteerkitError, match="no"):
            Failing(parts=parts).run(contract.loaded, contract.vector(), contract.prompts, folder=folder, **changed)

    fails(0, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "own.txt").write_text("mine")
    fails(0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]
    fails(1, tmp_path / "a")
    kept = sorted(path.suffix for path in (tmp_path / "a" / "parts").iterdir())
    assert kept == [".json", ".safetensors"]
    fails(1, tmp_path / "a")  # gone on with, and still there
    assert len(list((tmp_path / "a" / "parts").iterdir())) == 2
    fails(0, tmp_path / "a", restart=True)
    assert (tmp_path / "a.1" / "parts").is_dir() and not (tmp_path / "a").exists()


def test_a_damaged_result_is_one_line(tmp_path):
    with pytest.raises(SteerkitError, match="not the folder of an analysis"):
        AnalysisResult.load(tmp_path)
    (tmp_path / "analysis.json").write_text("{")
    with pytest.raises(SteerkitError, match="damaged analysis"):
        draw(tmp_path)
    (tmp_path / "analysis.json").write_text('{"schema": 9}')
    with pytest.raises(SteerkitError, match="has schema 9, this steerkit reads 1"):
        AnalysisResult.load(tmp_path)
