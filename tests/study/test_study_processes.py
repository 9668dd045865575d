"""The processes of a work list: what fails, crashes, is interrupted or left without a parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_verbs import BOOT

from steerkit.errors import Stopped
from steerkit.study import Item, WorkList
from steerkit.study.run import Runner


def item(name: str, *argv: str, needs: tuple[str, ...] = ()) -> Item:
    return Item(name, "fit", list(argv), name, list(needs), 1.0)


def runner(folder, items, workers=1, said=None) -> Runner:
    say = (said if said is not None else []).append
    return Runner(WorkList.open(folder, items), {}, workers, 1, ["study"], say, BOOT)


def test_one_process_does_many_items_and_outlives_what_fails(tmp_path):
    target, said = str(tmp_path / "written"), []
    items = [
        item("a", "write", target),
        item("bad", "fail"),
        item("worse", "raise"),
        item("after_bad", "write", target, needs=("bad",)),
        item("b", "write", target, needs=("a",)),
    ]
    run = runner(tmp_path, items, said=said)
    run.run()
    first, second = (tmp_path / "written").read_text().split()
    assert first == second and int(first) != os.getpid()
    failed = {one["id"]: one["error"] for one in run.work.failed}
    assert failed["bad"] == "steerkit fail: it can't be done."
    assert failed["worse"].endswith("ZeroDivisionError: of a plugin")
    assert failed["after_bad"] == "needs bad, which failed"
    assert (tmp_path / "logs/a.log").read_text() == "written\n"
    assert sum("FAILED" in line for line in said) == 2 and any("left" in line for line in said)
    record = json.loads((tmp_path / "items.json").read_text())
    assert [one["state"] for one in record["items"]] == ["done", "failed", "failed", "failed", "done"]
    # Again: what is done is not done again, what failed is tried again.
    run = runner(tmp_path, [item("a", "write", target), item("bad", "write", target)])
    run.run()
    assert run.work.count("done") == 2 and len((tmp_path / "written").read_text().split()) == 3
    # Called by other words, it is another item.
    runner(tmp_path, [item("a", "write", target, "again")]).run()
    assert len((tmp_path / "written").read_text().split()) == 4


def test_a_crash_fails_its_item_alone(tmp_path):
    target = str(tmp_path / "written")
    run = runner(tmp_path, [item("a", "crash"), item("b", "write", target)])
    run.run()
    assert run.work.failed == [{"id": "a", "error": "its process ended (exit code 3); exit code 3"}]
    assert run.work.items["b"].state == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_items_save_and_wait(tmp_path, number):
    note = tmp_path / "note"
    run = runner(tmp_path, [item("a", "sleep", str(note)), item("b", "write", str(tmp_path / "b"))])

    def stop():
        while not note.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped) as stopped:
        run.run()
    assert stopped.value.signum == number and note.read_text() == "saved"
    record = json.loads((tmp_path / "items.json").read_text())
    assert [one["state"] for one in record["items"]] == ["waiting", "waiting"]
    assert not (tmp_path / "markers").exists()


def test_a_process_ends_with_its_parent(tmp_path):
    """SIGKILL gives the parent no time to end it: it must see by itself, in the middle of a command."""
    note = tmp_path / "note"
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from test_study_processes import item, runner; "
        f"from pathlib import Path; runner(Path({str(tmp_path)!r}), [item('a', 'sleep', {str(note)!r})]).run()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    worker = int(note.read_text())
    parent.kill()
    parent.wait()
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # an orphan's init may not reap it at once
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
