"""``import steerkit`` stays light: the heavy libraries load when a name that needs them is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import steerkit

HEAVY = ("torch", "transformers", "lightning", "nnsight", "datasets", "numpy")


def loaded_by(code: str) -> list[str]:
    """Which of the heavy libraries a fresh interpreter holds after running ``code``."""
    report = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(eval(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import steerkit",
        "import steerkit; dir(steerkit); steerkit.__version__",
        "import steerkit; steerkit.HookPoint, steerkit.Example, steerkit.Verdict, steerkit.SteerkitError",
        "import steerkit.registry; steerkit.registry.problems()",
        "import steerkit.datasets",
    ],
)
def test_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == []


def test_the_check_sees_a_heavy_library() -> None:
    assert loaded_by("import numpy") == ["numpy"]


def test_every_public_name_is_listed_and_has_a_home() -> None:
    assert set(steerkit.__all__) == {*steerkit._HOME, "__version__"}
    assert set(steerkit.__all__) <= set(dir(steerkit))


@pytest.mark.parametrize("name", steerkit.__all__)
def test_public_name_loads(name: str) -> None:
    assert getattr(steerkit, name) is not None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        _ = steerkit.load_modle
