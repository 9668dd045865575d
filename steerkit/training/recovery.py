"""Ctrl-C and SIGTERM: what there is gets saved, then the process ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from steerkit.errors import Stopped


class StopSignals:
    """Turns Ctrl-C and SIGTERM into ``Stopped``, but never while the state is between two steps.

    Only the first signal counts: what follows is saving, which a second one must not break. The handlers stand
    inside ``with stops:``; everything else works without them, too.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        """Several processes stop together, at a point where they meet: the handler only notes the signal."""
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received, self.deferred, self._held = None, False, False
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def install(self) -> None:
        """Set the handlers again: Lightning puts its own in front, which in several processes broadcasts from inside
        the handler, whatever other exchange it interrupts.
        """
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = signum
        if not (self._held or self.deferred):
            raise Stopped(signum)

    def check(self) -> None:
        """Raise ``Stopped`` if a signal came that could not be raised then.

        Raises:
            Stopped: as it says.
        """
        if self.received is not None and not self.deferred:
            raise Stopped(self.received)

    def hold(self) -> None:
        """From now on a signal waits for ``release``: a step is being finished."""
        self._held = True

    def release(self) -> None:
        """Let signals through again.

        Raises:
            Stopped: if one came meanwhile.
        """
        self._held = False
        self.check()


stops = StopSignals()
"""Of this process."""
