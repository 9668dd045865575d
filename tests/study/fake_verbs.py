"""Verbs that take no time, in the place of steerkit's, for tests of the work list's processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

BOOT = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from steerkit.study.serve import serve; from fake_verbs import main; "
    "serve(main, given['words'], given['trusted'])"
)


def main(argv):
    """``write FILE``, ``fail``, ``raise``, ``crash``, ``sleep FILE``: appends its process id to FILE, then waits."""
    verb, *rest = argv
    if verb == "write":
        with Path(rest[0]).open("a") as file:
            file.write(f"{os.getpid()}\n")
        print("written")
    elif verb == "fail":
        print("steerkit fail: it can't be done.")
        return 2
    elif verb == "raise":
        raise ZeroDivisionError("of a plugin")
    elif verb == "crash":
        os._exit(3)
    else:
        Path(rest[0]).write_text(str(os.getpid()))
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            Path(rest[0]).write_text("saved")
            return 130
    return 0
