"""Writing a file so that a reader, or a crash, never meets half of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steerkit.errors import SteerkitError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed, on failure removed.

    Raises:
        SteerkitError: if the file can't be written (rights, a full disk); what was there before stays.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide a result from the user's group
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise SteerkitError(f"Can't write {target}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The new name must outlive a power cut, too; where folders can't be opened (Windows) that is up to the system."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_unfinished(folder: str | Path) -> None:
    """Delete what a killed process left half-written below ``folder``: the temporary files of ``atomic_path``."""
    for path in Path(folder).rglob(".*.tmp"):
        with suppress(OSError):
            path.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, record: Any) -> None:
    """Write ``record`` as indented JSON, whole or not at all; NaN is refused (it is no JSON)."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def ensure_folder(path: str | Path) -> Path:
    """Make the folder, and see that it can be written to, before any work is put into its content.

    Raises:
        SteerkitError: in one line, with the folder's name and the system's reason.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise SteerkitError(
            f"Can't write to folder {folder}: {reason}. Give another one, or mend its rights."
        ) from None
    return folder


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """``ensure_folder`` for a block of work: if the block fails, folders that it made and left empty are removed.

    Raises:
        SteerkitError: as ``ensure_folder``.
    """
    folder = Path(path)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield ensure_folder(folder)
    except BaseException:
        for place in made:  # the deepest first
            with suppress(OSError):  # not empty: what is in it stays
                place.rmdir()
        raise


def set_aside(folder: str | Path) -> Path | None:
    """Rename a folder that has something in it to the first free ``folder.N``, so that a new run loses nothing."""
    path = Path(folder)
    if not path.is_dir() or not any(path.iterdir()):
        return None
    return _renamed(path, path.name)


def set_aside_file(path: str | Path) -> Path | None:
    """Rename ``metrics.csv``, where there is one, to the first free ``metrics.N.csv``."""
    file = Path(path)
    return _renamed(file, file.stem, file.suffix) if file.is_file() else None


def _renamed(path: Path, stem: str, suffix: str = "") -> Path:
    number = 1
    while (aside := path.with_name(f"{stem}.{number}{suffix}")).exists():
        number += 1
    path.rename(aside)
    return aside


def replace_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Fill a folder beside ``folder`` by ``write``, then put it in its place: a reader meets the old one or the new
    one.

    Raises:
        SteerkitError: if it can't be written; what was there before stays.
    """
    target = Path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
            fresh = Path(name) / "new"
            fresh.mkdir()
            write(fresh)
            if target.exists():  # a folder can't be renamed over another: the old one is aside for a moment
                target.rename(Path(name) / "old")
            fresh.rename(target)
    except OSError as error:
        raise SteerkitError(f"Can't write {target}: {error.strerror or error}.") from error
