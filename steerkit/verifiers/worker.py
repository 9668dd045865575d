"""The child process of ``pool.py``: reads a frame, calls one function, writes a frame, until its input ends.

A frame is a 4-byte big-endian length and that many bytes of ASCII JSON (escapes carry null bytes and lone
surrogates). Only the standard library is imported here; the function brings what it needs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

HEADER = struct.Struct(">I")
CPU_GRACE_SECONDS = 5


def encode(message: object) -> bytes:
    """One frame. ``message`` is anything JSON can hold."""
    body = json.dumps(message, ensure_ascii=True).encode("ascii")
    return HEADER.pack(len(body)) + body


def read_frame(stream: BinaryIO) -> Any:
    """The next message of an unbuffered ``stream``; None at its end, also where it ends inside a frame."""
    header = _read_exactly(stream, HEADER.size)
    if header is None:
        return None
    body = _read_exactly(stream, HEADER.unpack(header)[0])
    return None if body is None else json.loads(body)


def _read_exactly(stream: BinaryIO, size: int) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < size:
        chunk = stream.read(size - len(chunks))
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)


def load(spec: str) -> Callable[[str, str], tuple[str, str]]:
    """The function named ``package.module:function``; the module's ``prepare()`` is called first if it has one."""
    module_name, _, name = spec.partition(":")
    module = importlib.import_module(module_name)
    function: Callable[[str, str], tuple[str, str]] = getattr(module, name)
    prepare = getattr(module, "prepare", None)
    if prepare is not None:
        prepare()
    return function


def limit_memory(megabytes: int) -> None:
    """Bounds the address space where the platform can; elsewhere the wall clock is the only bound."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, hard))


def limit_cpu(seconds: float) -> None:
    """Bounds the processor time from now on: an answer that spins must not outlive a parent that was killed."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + CPU_GRACE_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main(spec: str, memory_mb: int) -> None:
    """Serves ``{"args": [candidate, gold], "timeout": s}`` with ``{"status", "reason"}`` until input ends."""
    # The function may print: keep the two pipes for frames alone and send prints away.
    incoming, outgoing = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    logging.disable(logging.CRITICAL)
    limit_memory(memory_mb)
    try:
        function = load(spec)
    except Exception as error:  # the parent raises it: a missing module is not one answer's fault
        _write(outgoing, {"failed": f"{type(error).__name__}: {error}"})
        return
    _write(outgoing, {"ready": True})
    while (request := read_frame(incoming)) is not None:
        limit_cpu(request["timeout"])
        try:
            status, reason = function(*request["args"])
            reply = {"status": status, "reason": reason}
        except MemoryError:
            _write(outgoing, {"status": "fault", "reason": "memory", "failure": "memory"})
            sys.exit(1)  # what is left of the heap can't be trusted; the parent starts another worker
        except Exception as error:
            reply = {"status": "fault", "reason": f"error: {type(error).__name__}", "failure": "error"}
        _write(outgoing, reply)


def _write(stream: BinaryIO, message: object) -> None:
    view = memoryview(encode(message))
    while view:
        view = view[stream.write(view) :]
