"""The journal of an evaluation: each sample is on disk as soon as it is judged, so a killed run goes on.

``FOLDER/journal/`` holds ``settings.json`` (what is measured, and how) and one ``samples-NNNNN.jsonl`` for each
process that worked on it. At the end the samples become ``samples.parquet`` and the journal is removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from steerkit.errors import SteerkitError
from steerkit.files import ensure_folder, write_json

Key = tuple[str, str, float, int, str, int]
"""(arm, set, temperature, seed, problem id, sample)."""


def sample_key(record: Mapping[str, Any]) -> Key:
    """What a sample is drawn by: no two records of one evaluation share it."""
    return (
        record["arm"],
        record["set"],
        float(record["temperature"]),
        int(record["seed"]),
        record["id"],
        int(record["sample"]),
    )


class Journal:
    """Samples of one evaluation on disk; leaving the ``with`` block closes the files and lets another process in.

    Args:
        folder: the evaluation's folder; the journal lies in ``journal`` below it.
        settings: JSON values that decide the samples. A journal of other settings is refused.

    Raises:
        SteerkitError: the journal there is of other settings (the message says which), is damaged, is in use by
            another process, or the folder can't be written to.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder) / "journal"
        ensure_folder(self.folder)
        self._lock = self._locked()
        try:
            self._check(settings)
            self.done: set[Key] = set()
            """Keys of the samples on disk."""
            for record in self.records():
                self.done.add(sample_key(record))
        except BaseException:
            self.close()
            raise
        self._shard: TextIO | None = None

    def _locked(self) -> TextIO | None:
        """Held while the process lives, and gone with it, however it ends."""
        try:
            import fcntl
        except ImportError:  # no such locks on Windows: two processes there are the user's business
            return None
        file = (self.folder / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SteerkitError(
                f"Another process is writing to {self.folder}: wait for it, or give another --out."
            ) from None
        except OSError:  # a file system without locks
            file.close()
            return None
        return file

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            if any(self._shards()):
                raise SteerkitError(f"{self.folder} has samples but no settings.json: give another --out.")
            write_json(path, settings)
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SteerkitError(f"{path} is damaged ({error}): give another --out.") from None
        different = differences(there, settings)
        if different and not any(shard.stat().st_size for shard in self._shards()):
            write_json(path, settings)  # nothing was sampled: nothing is lost
        elif different:
            raise SteerkitError(
                f"{self.folder.parent} holds an unfinished evaluation with other settings ({different}): "
                f"repeat its command to go on with it, give another --out, or set it aside with --restart true."
            )

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("samples-*.jsonl"))

    def records(self) -> Iterator[dict[str, Any]]:
        """Every sample on disk once, in the order of writing; a last line that was cut off is left out."""
        seen: set[Key] = set()
        for shard in self._shards():
            for record in _read(shard):
                key = sample_key(record)
                if key not in seen:
                    seen.add(key)
                    yield record

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append and sync; samples that are there already are left out.

        Raises:
            SteerkitError: if the disk refuses; what was written before stays.
        """
        fresh = [record for record in records if sample_key(record) not in self.done]
        if not fresh:
            return
        # ASCII escapes: a completion may hold lone surrogates, which UTF-8 has no bytes for.
        text = "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in fresh)
        try:
            if self._shard is None:
                self._shard = self._next_shard()
            self._shard.write(text)
            self._shard.flush()
            os.fsync(self._shard.fileno())
        except OSError as error:
            raise SteerkitError(
                f"Can't write to {self.folder}: {error.strerror or error}. {len(self.done)} samples are safe there: "
                f"mend it, and the same command goes on."
            ) from error
        self.done.update(map(sample_key, fresh))

    def _next_shard(self) -> TextIO:
        """A file of this process's own: it never appends to a line that another one left half written."""
        shards = self._shards()
        number = int(shards[-1].stem.rpartition("-")[2]) + 1 if shards else 0
        return (self.folder / f"samples-{number:05d}.jsonl").open("x", encoding="ascii")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None and not self.done:
            self.discard(self.folder.parent)  # nothing to go on from

    def close(self) -> None:
        """Close the files; the journal stays."""
        for file in (getattr(self, "_shard", None), self._lock):
            if file is not None:
                file.close()
        self._shard = self._lock = None

    @staticmethod
    def discard(folder: str | Path) -> None:
        """Delete the journal of an evaluation, when its samples are in ``samples.parquet``."""
        if (Path(folder) / "journal").is_dir():
            shutil.rmtree(Path(folder) / "journal")


def _read(shard: Path) -> Iterator[dict[str, Any]]:
    with shard.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # the process was killed while it wrote this line
                return
            try:
                record = json.loads(line)
                sample_key(record)
            except (ValueError, KeyError, TypeError):
                raise SteerkitError(
                    f"{shard}:{number} is damaged: remove that line (its sample is drawn again), or set the "
                    f"evaluation aside with --restart true."
                ) from None
            yield record


_SHOWN = 4


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """``k: 1 there, 4 here; seed: ...`` for the settings that differ; empty if none does."""
    found = list(_different(there, json.loads(json.dumps(here)), ""))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _different(there: Any, here: Any, name: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            yield from _different(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
    elif there != here:
        yield f"{name}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
