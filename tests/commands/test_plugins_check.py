"""`steerkit plugins check`: a line for each promise, and an exit code that a script can use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from steerkit.cli import main
from steerkit.testing.checks import CONTRACTS

GOOD = """
def good(completions, **columns):
    return [float(len(text) % 7) for text in completions]
"""
BAD = """
def bad(completions, **columns):
    return [1.0]
"""
PUZZLES = """
from steerkit.errors import DataError
from steerkit.types import Example, Verdict
from steerkit.verifiers import Verifier

STARTS = {"train": 0, "validation": 100, "test": 200}


class Puzzles:
    def __init__(self, n=5):
        self.n = n

    def load(self, split):
        if split not in STARTS:
            raise DataError("no such split")
        numbers = range(STARTS[split], STARTS[split] + self.n)
        return [Example(f"{split}/{k}", f"Say {k}.", f"say={k}", "puzzles", {"number": k}) for k in numbers]


class Judge(Verifier):
    def verify(self, completion, answer):
        if not answer.startswith("say="):
            return Verdict("fault", "gold_unparsable")
        right = f"boxed{{{answer[4:]}}}" in completion
        return Verdict("correct" if right else "wrong", "equal" if right else "not_equal")


def reward(completions, number, **columns):
    return [float(str(k) in text) for k, text in zip(number, completions)]
"""
ENTRY_POINTS = """
[steerkit.datasets]
puzzles = puzzles_plugin:Puzzles
[steerkit.verifiers]
puzzles = puzzles_plugin:Judge
[steerkit.rewards]
puzzles = puzzles_plugin:reward
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rewards in files, and a distribution of three plugins of one name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD + BAD)
    site = tmp_path / "site"
    (site / "puzzles_plugin-1.0.dist-info").mkdir(parents=True)
    (site / "puzzles_plugin-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "puzzles_plugin.py").write_text(PUZZLES)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "puzzles_plugin", raising=False)
    return tmp_path


def check(*arguments: str) -> int:
    try:
        return main(["plugins", "check", *arguments])
    except SystemExit as stop:  # argparse's own refusals
        return int(stop.code or 0)


def test_a_good_one_passes_line_by_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("mine.py:good", "--kind", "rewards") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rewards mine.py:good" and lines[-1] == "8 checks, all pass."
    assert len(lines) == 10 and all(line.startswith("  pass  ") for line in lines[1:-1])


def test_a_bad_one_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("mine.py:bad", "--kind", "rewards") == 1
    out = capsys.readouterr().out
    assert (
        "FAIL  a finite number or None for each completion: SteerkitError: Reward 'checked' returned 1 items for 16"
        in out
    )
    assert "checks, " in out.splitlines()[-1] and "failed." in out.splitlines()[-1]
    # The one mistake breaks several promises, and is told once.
    assert out.count("returned 1 items for 16") == 1
    assert "an opinion on some completion: as in 'a finite number or None for each completion'" in out


def test_settings_are_read_as_yaml(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("arithmetic", "n=12", "--kind", "datasets", "n_eval=4") == 0
    assert check("verifiable", "verifier={name: exact, extract: boxed}", "wrong=0") == 0
    assert "all pass" in capsys.readouterr().out
    assert check("exact", "--right", "two  words", "two words", "--wrong", "three", "two", "extract=text") == 0


def test_one_name_of_several_kinds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ("--right", r"\boxed{3}", "say=3", "--wrong", "3", "say=3")
    assert check("puzzles", "--data", "puzzles", *pairs, "--verifier", "puzzles") == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.endswith(" puzzles")] == [
        "datasets puzzles",
        "rewards puzzles",
        "verifiers puzzles",
    ]
    assert "the gold answers are understood" in out and "right answers are correct" in out
    assert "the verifier understands the gold answers" in out
    assert check("puzzles", "--kind", "datasets", "n=3") == 0
    assert check("puzzles", "--kind", "rewards") == 1  # without its data set's columns
    assert "pass" in capsys.readouterr().out
    assert check("puzzles", "--kind", "verifiers", "--right", r"\boxed{4}", "say=3") == 1


@pytest.mark.parametrize(
    ("arguments", "lesson"),
    [
        (["exat"], "No plugin named 'exat'. Did you mean 'exact'?"),
        (["mine.py:good"], "Say what 'mine.py:good' is: --kind models | "),
        (["mine.py:god", "--kind", "rewards"], "Did you mean 'good'"),
        (["exact", "extract=sideways"], "extract must be 'boxed' or 'text', got 'sideways'."),
        (["exact", "extrct=text"], "has no setting 'extrct'. Did you mean 'extract'"),
        (["exact", "text"], "A setting is written key=value, got 'text'."),
        (["exact", "extract={"], "The value of 'extract' can't be read as YAML"),
        (["exact", "right=1"], "The setting 'right' has the name of an option"),
        (["puzzles", "n=3"], "is the name of one of the datasets and one of the rewards and one of the verifiers"),
        (["exact", "--data", "puzles"], "Did you mean 'puzzles'"),
        (["static", "--kind", "exporters"], "No exporter named 'static'"),
        (["static", "--kind", "reward"], "invalid choice: 'reward'"),
        ([], "Give NAME."),
    ],
)
def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], lesson: str) -> None:
    assert check(*arguments) == 2
    captured = capsys.readouterr()
    assert lesson in captured.err and not captured.out


def test_the_list_stays_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--kind", "datasets"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["KIND", "NAME", "CLASS", "DISTRIBUTION", "VERSION"]
    assert ["datasets", "puzzles", "puzzles_plugin:Puzzles", "puzzles_plugin", "1.0"] in lines


@pytest.mark.parametrize("kind", ["datasets", "verifiers"])
def test_light_kinds_need_no_torch(kind: str) -> None:
    name = {"datasets": "arithmetic", "verifiers": "exact"}[kind]
    code = (
        "import sys; from steerkit.cli import main; "
        f"code = main(['plugins', 'check', '{name}', '--kind', '{kind}']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_is_there() -> None:
    from steerkit.testing.checks import contract

    assert all(callable(contract(kind)) for kind in CONTRACTS)
