"""Answers that a verifier failed on, kept so that the failure can be run again (``steerkit verify --replay``)."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

from steerkit.files import set_aside_file, write_text

MAX_FAULTS = 500
"""The latest faults are kept; ``dropped`` counts the earlier ones."""
MAX_CHARS = 20_000
"""Of a completion: its end, where the answer stands."""


class FaultLog:
    """The latest faults, in memory and, once ``path`` is set, in a JSON Lines file that is always whole.

    A record has ``gold``, ``completion``, ``reason``, ``verifier`` (its spec, or None where an object was given) and
    ``cut`` (characters left out at the completion's start).
    """

    def __init__(self, verifier: Any = None) -> None:
        self.verifier = verifier
        self.records: deque[dict[str, Any]] = deque(maxlen=MAX_FAULTS)
        self.dropped = 0
        self.path: Path | None = None
        self._met: set[Path] = set()

    def add(self, gold: str, completion: str, reason: str) -> None:
        self.dropped += len(self.records) == MAX_FAULTS
        kept = completion[-MAX_CHARS:]
        self.records.append(
            {
                "gold": gold,
                "completion": kept,
                "reason": reason,
                "verifier": self.verifier,
                "cut": len(completion) - len(kept),
            }
        )

    def write(self, path: str | Path | None = None) -> Path | None:
        """Write the records to ``path`` (default: ``self.path``); None where neither is given.

        Processes of one run must not write one file: those of rank 1 and up write ``faults.rank1.jsonl``.

        Raises:
            SteerkitError: the file can't be written.
        """
        target = Path(path) if path is not None else self.path
        if target is None:
            return None
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
        if rank != "0":
            target = target.with_name(f"{target.stem}.rank{rank}{target.suffix}")
        if target not in self._met:  # a resumed run goes on with the file of the run that it resumes
            self._met.add(target)
            earlier = _records(target)
            self.dropped += max(0, len(earlier) + len(self.records) - MAX_FAULTS)
            self.records = deque([*earlier, *self.records], maxlen=MAX_FAULTS)
        # Escapes carry null bytes and lone surrogates, which UTF-8 could not.
        write_text(target, "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in self.records))
        return target


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of an earlier file; one that holds something else is set aside, not overwritten."""
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        rows = [None]
    if all(isinstance(row, dict) and {"gold", "completion"} <= row.keys() for row in rows):
        return rows
    set_aside_file(path)
    return []
