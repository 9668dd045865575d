r"""Seconds of ``steerkit --help`` and of ``import steerkit`` in a new process.

    python benchmarks/startup.py [--form full|short|smoke]

The files are in the page cache (one run before is not counted). import_seconds takes the interpreter's own start away:
it is the time between the first and the last line of a process that only imports.
"""

from __future__ import annotations

import subprocess
import sys
import time

from common import Report, Row, arguments

HELP_LIMIT, IMPORT_LIMIT = 1.0, 0.3
IMPORT = "import time; began = time.perf_counter(); import steerkit; print(time.perf_counter() - began)"


def help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "steerkit", "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def import_seconds() -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    options = arguments(__doc__)
    report = Report("startup", options)
    runs = {"full": 11, "short": 5, "smoke": 1}[options.form]
    for name, measure, limit in (
        ("help_seconds", help_seconds, HELP_LIMIT),
        ("import_seconds", import_seconds, IMPORT_LIMIT),
    ):
        measure()
        report.add(Row.of(name, [(measure(), limit) for _ in range(runs)], "s", False, note="theirs: the target"))


if __name__ == "__main__":
    main()
