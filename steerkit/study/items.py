"""The work list: commands with what they need, on disk in ``items.json``; done is what has a marker."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steerkit.errors import SteerkitError
from steerkit.files import write_json

Kind = Literal["screen", "fit", "sweep", "choose", "analyze"]
State = Literal["waiting", "running", "done", "failed"]
FILE = "items.json"


@dataclass
class Item:
    """One thing to do: a command of steerkit, or (kind ``choose``) a choice among results."""

    id: str
    kind: Kind
    argv: list[str]
    """Words after ``steerkit``; ``<rate of ARM>`` and ``<opening of ARM>`` stand for what is chosen on the way. Empty
    for a choice."""
    out: str
    """Folder of its results, relative to the study's; for a choice, its file."""
    needs: list[str] = field(default_factory=list)
    expected: float = 0.0
    """Seconds on one core."""
    about: dict[str, Any] = field(default_factory=dict)
    """What a choice chooses among."""
    state: State = "waiting"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the processor: more than a busy machine tells."""
    started: float | None = None
    """Unix time of its last start."""
    error: str = ""

    @property
    def soft(self) -> bool:
        """A choice is made among those of its needs that did not fail."""
        return self.kind == "choose"

    @property
    def command(self) -> str:
        """As one could type it."""
        return command(self.argv)

    @property
    def log(self) -> str:
        """File of its output, relative to the study's folder; beside the results, where a command may rename its
        folder."""
        return f"logs/{self.id.replace('/', '_')}.log"


def command(argv: Sequence[str]) -> str:
    """``steerkit fit ...``; empty where there is none."""
    return shlex.join(["steerkit", *argv]) if argv else ""


class WorkList:
    """Items in the order of the plan, and the file that tells how far they are.

    A command's marker ``markers/ID.json`` is written after its results are, with the words that it was called by: an
    item is done if there is one, and called by other words it is done anew.
    """

    def __init__(self, folder: Path, items: Iterable[Item], sessions: Sequence[Mapping[str, Any]] = ()) -> None:
        self.folder = folder
        self.items = {item.id: item for item in items}
        self.sessions: list[dict[str, Any]] = [dict(session) for session in sessions]
        """``{"started": Unix time, "seconds", "threads": of a process}`` of each time the study was worked on."""

    @classmethod
    def open(cls, folder: Path, items: Iterable[Item]) -> WorkList:
        """With the states and times of an earlier session, where there was one."""
        found = cls(folder, items)
        path = folder / FILE
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            found.sessions = list(record.get("sessions", []))
            for old in record["items"]:
                item = found.items.get(old["id"])
                if item is not None and item.kind != "choose":
                    item.seconds, item.started = old["seconds"], old["started"]
        return found

    def restore(self) -> None:
        """Take states, words and errors from ``items.json``: what was done then, for a report of it."""
        path = self.folder / FILE
        if not path.is_file():
            raise SteerkitError(f"{self.folder} holds no study that was begun: there is no {FILE}.")
        for old in json.loads(path.read_text(encoding="utf-8"))["items"]:
            item = self.items.get(old["id"])
            if item is not None:
                item.argv, item.error = old["argv"], old["error"]
                item.seconds, item.cpu_seconds = old["seconds"], old["cpu_seconds"]
                item.state = "waiting" if old["state"] == "running" else old["state"]

    def finished(self, item: Item, argv: Sequence[str]) -> bool:
        """Whether the command was called by these words, and ended well."""
        path = self.marker(item)
        if not path.is_file():
            return False
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["argv"] != list(argv):
            return False
        item.seconds, item.cpu_seconds = record["seconds"], record["cpu_seconds"]
        return True

    def mark(self, item: Item) -> None:
        """It is done."""
        write_json(self.marker(item), {"id": item.id, "argv": item.argv, "seconds": item.seconds,
                                        "cpu_seconds": item.cpu_seconds})  # fmt: skip

    def marker(self, item: Item) -> Path:
        return self.folder / "markers" / f"{item.id.replace('/', '_')}.json"

    def ready(self) -> list[Item]:
        """What can be started, the longest way to the end first; what can't any more is failed on the way."""
        found = []
        for item in self.items.values():
            if item.state != "waiting":
                continue
            states = {need: self.items[need].state for need in item.needs}
            if any(state in ("waiting", "running") for state in states.values()):
                continue
            bad = [need for need, state in states.items() if state == "failed"]
            if bad and (not item.soft or len(bad) == len(states)):
                item.state, item.error = "failed", f"needs {bad[0]}, which failed"
                return self.ready()  # what needs this one can't be done either
            found.append(item)
        ways = self.ways()
        return sorted(found, key=lambda item: -ways[item.id])

    def ways(self) -> dict[str, float]:
        """Item -> expected seconds from its start to the end of all that waits for it."""
        after: dict[str, list[str]] = {name: [] for name in self.items}
        for item in self.items.values():
            for need in item.needs:
                after[need].append(item.id)
        found: dict[str, float] = {}
        for name in reversed(list(self.items)):  # the plan names an item after what it needs
            found[name] = self.items[name].expected + max((found[n] for n in after[name]), default=0.0)
        return found

    def save(self) -> None:
        """Rewrite ``items.json``."""
        keys = ("id", "kind", "argv", "needs", "out", "state", "seconds", "cpu_seconds", "started", "error")
        rows = [{key: getattr(item, key) for key in keys} | {"log": item.log} for item in self.items.values()]
        write_json(self.folder / FILE, {"items": rows, "sessions": self.sessions})

    def count(self, *states: State) -> int:
        return sum(item.state in states for item in self.items.values())

    @property
    def failed(self) -> list[dict[str, str]]:
        return [{"id": item.id, "error": item.error} for item in self.items.values() if item.state == "failed"]
