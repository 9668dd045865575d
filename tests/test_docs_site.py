"""The site builds without a warning, needs no network and has every public name; errors.md quotes the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from documentation import ROOT, fill
from transformers import AutoModelForCausalLM

from steerkit import errors
from steerkit.analysis.result import AnalysisResult

OUTSIDE = re.compile(r"""<(?:script|img|link|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//""")
ROOMS = sorted(path.stem for path in (ROOT / "docs" / "api").glob("*.md") if path.stem not in ("README", "steerkit"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", "docs/mkdocs/mkdocs.yml"]
    environment = {"NO_MKDOCS_2_WARNING": "1", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(
        [*build, "-d", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return folder


def test_the_site_needs_no_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        assert not OUTSIDE.search(page.read_text(encoding="utf-8")), page


def test_the_reference_has_every_public_name(site: Path) -> None:
    rooms = [path.parent.name for path in (ROOT / "steerkit").glob("*/__init__.py")]
    internal = {"commands", "zoo"}  # the command line's own, and one function that a plugin name stands for
    assert set(ROOMS) == set(rooms) - internal
    for module in ["steerkit", *(f"steerkit.{room}" for room in ROOMS)]:
        page = (site / "api" / module.rpartition(".")[2] / "index.html").read_text(encoding="utf-8")
        names = set(getattr(import_module(module), "__all__", ())) - {"__version__"}
        shown = {found.rpartition(".")[2] for found in re.findall(r'id="(steerkit\.[\w.]+)"', page)}
        missing = sorted(names - shown)
        assert not missing, (module, missing)


def test_the_tutorial_is_a_page(site: Path) -> None:
    page = (site / "tutorial" / "index.html").read_text(encoding="utf-8")
    assert "<h1" in page and "SteeringVector" in page and "[markdown]" not in page


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a vector there: it trains one."""
    fill(tmp_path, vectors=False)
    monkeypatch.chdir(tmp_path)
    source = (ROOT / "docs" / "tutorial.py").read_text(encoding="utf-8")
    assert source.count("[:64]") == 1 and source.count("[:8]") == 2
    source = source.replace("[:64]", "[:4]").replace("[:8]", "[:2]")
    exec(compile(source, "tutorial.py", "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    assert shown.count("95 % interval") == 3 and "base:" in shown and "steered:" in shown
    for folder in ("tutorial_lens", "tutorial_patching"):
        assert AnalysisResult.load(tmp_path / "runs" / folder).rows
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "tutorial_folded").config.mlp_bias


def messages() -> list[str]:
    """The texts of the package's sources, what an f-string fills in as a ``…``."""
    found = []
    for path in (ROOT / "steerkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_errors_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    named = {n for n, v in vars(errors).items() if isinstance(v, type) and v.__module__ == errors.__name__}
    special = {kind.__name__ for kind in errors.TrainingError.__subclasses__() if kind.__module__ == errors.__name__}
    assert set(re.findall(r"^## `(\w+)`", text, re.MULTILINE)) == named - special
    assert all(f"(`{name}`)" in text for name in special)
    tables = text.partition("## `SteerkitError`")[2].partition("## It runs")[0]
    rows = re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE)
    quoted = [quote for row in rows for quote in re.split("(?<=`), (?=`)", row)]
    assert len(quoted) > 40
    code = messages()
    for quote in quoted:
        pieces = [piece for piece in quote.strip("`").split("…") if piece.strip(" :.()',")]
        assert pieces and any(all(piece in message for piece in pieces) for message in code), quote
