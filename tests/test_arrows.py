"""Imports inside steerkit point one way; the heavy libraries stay in their rooms.

A room is a folder or a file directly under steerkit/. Imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "steerkit"

BOTTOM = {"errors", "types", "hookpoints", "token_masks", "files", "runtime", "registry"}
ROLLOUTS = BOTTOM | {"interventions", "models", "datasets"}
EVALUATION = ROLLOUTS | {"rollouts", "vectors", "rewards", "verifiers"}
UPPER = EVALUATION | {"evaluation", "objectives", "baselines"}
STUDY = UPPER | {"training", "analysis", "exporters", "extraction"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "hookpoints": {"errors", "types"},
    "files": {"errors"},
    "runtime": {"errors"},
    "registry": {"errors", "types"},
    "token_masks": {"errors", "registry"},
    "baselines": BOTTOM | {"models"},
    "interventions": BOTTOM,
    "models": BOTTOM | {"interventions"},
    "vectors": BOTTOM | {"interventions", "models"},
    "datasets": BOTTOM,
    "verifiers": BOTTOM,
    "rewards": BOTTOM | {"verifiers"},
    "objectives": BOTTOM,
    "rollouts": ROLLOUTS,
    "extraction": ROLLOUTS | {"rollouts", "vectors"},
    "evaluation": EVALUATION,
    "training": UPPER,
    "analysis": UPPER,
    "exporters": UPPER,
    "study": STUDY | {"doctor"},  # its memory estimate
    "doctor": ROLLOUTS | {"rollouts", "testing"},
    # cli.py dispatches, commands/ holds one file a verb: one room in two places.
    "commands": STUDY | {"study", "doctor", "testing", "__init__"},
    "cli": STUDY | {"study", "commands", "__init__"},
    "__main__": {"cli"},
    # Reached through its entry point only (no room lists it, so no cycle can close): the corpus is built on the
    # arithmetic problems, and the build script measures what it built.
    "zoo": EVALUATION | {"evaluation"},
    # The checks that plugin authors run, in their tests and by `steerkit plugins check`; the doctor runs some too.
    "testing": UPPER | {"analysis", "exporters"},
    # Names are loaded lazily from anywhere; the imports there are for type checkers.
    "__init__": STUDY,
}
"""Room -> the rooms that it may import; itself always, and ``from steerkit import __version__``."""

ROOM_OF_LIBRARY = {
    "lightning": {"training", "cli", "commands"},
    "pytorch_lightning": set[str](),
    "nnsight": {"analysis", "doctor"},
    "entrypoints": {"registry"},
}
"""Library -> the only rooms that may import it."""


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; ``from a import b`` gives ``a.b``; importlib.import_module("a") gives a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def offences(package: Path) -> list[str]:
    """``file:line: what is wrong``, one for each forbidden import below ``package`` (a folder named steerkit)."""
    found = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        room = parts[0]
        if room not in MAY_IMPORT:
            found.append(f"{file}:1: the room {room!r} is new: say in tests/test_arrows.py what it may import")
            continue
        dotted = ".".join([package.name, *parts[:-1]])
        for line, name in imports(ast.parse(file.read_text(encoding="utf-8"), str(file)), dotted):
            top, _, rest = name.partition(".")
            if top == package.name:
                target = rest.split(".")[0] or "__init__"
                if target not in MAY_IMPORT:
                    target = "__init__"  # a public name: `from steerkit import SteeringVector`
                if target in MAY_IMPORT[room] | {room} or rest == "__version__":
                    continue
                allowed = ", ".join(sorted(MAY_IMPORT[room])) or "nothing of steerkit"
                found.append(f"{file}:{line}: {room} imports {name}; it may import {allowed}")
            elif room not in ROOM_OF_LIBRARY.get(top, {room}):
                rooms = ", ".join(sorted(ROOM_OF_LIBRARY[top])) or "no room (write lightning)"
                found.append(f"{file}:{line}: {room} imports {name}; {top} belongs to {rooms}")
    return found


def test_imports_point_one_way() -> None:
    wrong = offences(PACKAGE)
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    waiting = dict(MAY_IMPORT)
    while waiting:
        free = [room for room, below in waiting.items() if not (below - {room}) - set(order)]
        assert free, f"a cycle among {sorted(waiting)}"
        order += free
        for room in free:
            del waiting[room]


@pytest.mark.parametrize(
    ("path", "text", "offence"),
    [
        ("errors.py", "\nfrom steerkit.types import Example\n", "errors.py:2: errors imports steerkit.types.Example"),
        ("models/load.py", "def f():\n    import steerkit.vectors\n", "load.py:2: models imports steerkit.vectors"),
        ("models/load.py", "from steerkit import rollouts", "load.py:1: models imports steerkit.rollouts"),
        ("models/load.py", "from ..rollouts.base import Sampler", "load.py:1: models imports steerkit.rollouts.base"),
        ("models/__init__.py", "from .. import rollouts", "__init__.py:1: models imports steerkit.rollouts"),
        ("models/load.py", "from steerkit import SteeringVector", "load.py:1: models imports steerkit.SteeringVector"),
        (
            "analysis/lens.py",
            "import importlib\nimportlib.import_module('steerkit.training')",
            "lens.py:2: analysis imports",
        ),
        ("evaluation/run.py", "import lightning.pytorch as pl", "run.py:1: evaluation imports lightning.pytorch;"),
        (
            "models/nns.py",
            "from nnsight import NNsight",
            "nns.py:1: models imports nnsight.NNsight; nnsight belongs to",
        ),
        ("cli.py", "import entrypoints", "cli.py:1: cli imports entrypoints; entrypoints belongs to registry"),
        ("zoo/build.py", "from steerkit.training import fit", "build.py:1: zoo imports steerkit.training.fit"),
        ("evaluation/run.py", "from steerkit.zoo import corpus", "run.py:1: evaluation imports steerkit.zoo.corpus"),
        ("attic.py", "", "attic.py:1: the room 'attic' is new"),
    ],
)
def test_an_offence_is_named_with_its_line(tmp_path: Path, path: str, text: str, offence: str) -> None:
    file = tmp_path / "steerkit" / path
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    (found,) = offences(tmp_path / "steerkit")
    assert offence in found


def test_allowed_imports_pass(tmp_path: Path) -> None:
    file = tmp_path / "steerkit" / "training" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import torch\nimport lightning as L\nfrom steerkit import __version__\nfrom steerkit.rollouts import sample\n"
        "from . import callbacks\nfrom .callbacks import Save\nfrom ..vectors import SteeringVector\n",
        encoding="utf-8",
    )
    assert offences(tmp_path / "steerkit") == []
