"""``steerkit --help`` and ``steerkit plugins`` answer without loading torch and its kin."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lightning", "nnsight", "datasets", "numpy")
SUBCOMMANDS = ("fit", "validate", "test", "predict", "evaluate", "extract", "chat", "doctor", "plugins")
CALL = f"""
import sys
from steerkit.cli import main
try:
    code = main({{argv!r}})
except SystemExit as stop:  # argparse leaves this way after --help
    code = stop.code or 0
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, f"loaded: {{{{heavy}}}}"
sys.exit(code)
"""


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_every_subcommand_and_loads_nothing_heavy() -> None:
    words = python("-c", CALL.format(argv=["--help"])).replace(",", " ").replace("{", " ").replace("}", " ").split()
    assert [name for name in SUBCOMMANDS if name not in words] == []


def test_plugins_lists_the_built_in_ones_and_loads_nothing_heavy() -> None:
    words = python("-c", CALL.format(argv=["plugins"])).split()
    assert [name for name in ("static", "arithmetic", "verifiable", "rloo") if name not in words] == []


@pytest.mark.parametrize("argument", ["--help", "plugins"])
def test_python_dash_m(argument: str) -> None:
    # The same entry point, started as a module.
    assert "steerkit" in python("-m", "steerkit", argument).lower()


def test_a_reader_that_has_seen_enough():
    """``steerkit plugins | head -1``: no traceback."""
    command = f"{sys.executable} -m steerkit plugins | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout == "KIND      " and done.stderr == ""
