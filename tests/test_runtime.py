"""Freed memory is kept while a command works, and handed back when it is done."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import re
from pathlib import Path
from steerkit.runtime import keep_freed_memory, release_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

assert keep_freed_memory()
blocks = [bytearray(2**20) for _ in range(400)]
behind = bytearray(2**20)  # the heap can't shrink below it
full = resident()
del blocks
kept = resident()
release_freed_memory()
print(full, kept, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_is_kept_and_then_handed_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    full, kept, released = map(float, done.stdout.split())
    assert full > 400
    assert kept > full - 50
    assert released < full - 300
