"""Process-wide settings that a command makes once, before any tensor work."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

_debug = False

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks instead of handing them back to the kernel; True where it took effect.

    A training step on the CPU frees and asks again for the same large tensors. By default glibc maps and unmaps each
    of them, and in virtual machines the page faults cost more than the arithmetic: a step of the tiny reasoner's
    pre-training fell from 2.4 s to 0.47 s (docs/architecture.md). The peak memory stays the same; it is given back
    when the process ends. Other C libraries and systems are left alone; ``STEERKIT_KEEP_MEMORY=0`` turns it off.
    """
    if not sys.platform.startswith("linux") or os.environ.get("STEERKIT_KEEP_MEMORY") == "0":
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has no mallopt
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(key, value) == 1 for key, value in settings)


def release_freed_memory() -> None:
    """Hand freed blocks back to the kernel now: what ``keep_freed_memory`` keeps is of no use to a command of other
    shapes, and a process that runs one command after another would grow with each."""
    gc.collect()
    if sys.platform.startswith("linux"):
        import ctypes

        with suppress(AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def set_debug(on: bool) -> None:
    """``--debug``: let every error through, with its traceback."""
    global _debug
    _debug = on


def debugging() -> bool:
    """Whether ``--debug`` was given."""
    return _debug
