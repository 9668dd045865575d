"""Files are whole or absent, and an old run is never overwritten."""

import os

import pytest

from steerkit.errors import SteerkitError
from steerkit.files import atomic_path, ensure_folder, set_aside, write_json, write_text


def test_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    write_text(tmp_path / "a" / "x.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a" / "x.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path / "a") == ["x.txt"]
    assert (tmp_path / "a" / "x.txt").read_text() == "old"
    with pytest.raises(ValueError):
        write_json(tmp_path / "a" / "x.txt", {"x": float("nan")})
    assert (tmp_path / "a" / "x.txt").read_text() == "old"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SteerkitError, match=r"Can't write .*x.txt: No space left on device."):
        write_text(tmp_path / "x.txt", "new")
    assert os.listdir(tmp_path) == []


def test_written_files_are_readable_by_others(tmp_path):
    write_text(tmp_path / "x", "é")
    assert (tmp_path / "x").read_bytes() == "é".encode()
    assert (tmp_path / "x").stat().st_mode & 0o044


def test_folders(tmp_path):
    assert ensure_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerkitError, match="Can't write to folder"):
        ensure_folder(tmp_path / "file" / "b")


def test_set_aside_finds_a_free_name(tmp_path):
    run = tmp_path / "run"
    assert set_aside(run) is None
    run.mkdir()
    assert set_aside(run) is None  # empty: nothing to lose
    for number in (1, 2):
        run.mkdir(exist_ok=True)
        (run / "x").write_text(str(number))
        assert set_aside(run) == tmp_path / f"run.{number}"
    assert (tmp_path / "run.1" / "x").read_text() == "1" and not run.exists()
