"""The errors that steerkit raises on bad input.

Each message is one line: what was expected, what came, what to do. The command line prints it and
exits with code 2 (``--debug`` shows the traceback).
"""

from __future__ import annotations


class SteerkitError(Exception):
    """Base of all errors that a user can mend; also raised for a bad setting."""


class PluginError(SteerkitError):
    """A plugin is missing, ambiguous, or fails to load."""


class ModelError(SteerkitError):
    """A base model can't be loaded, or its blocks can't be found."""


class DataError(SteerkitError):
    """A data set is missing, empty, or lacks a column."""


class VectorError(SteerkitError):
    """A steering vector's file is damaged, or does not fit the model."""


class TrainingError(SteerkitError):
    """Training can't go on (NaN loss); what was learned before is kept."""


class BrokenPolicy(TrainingError):
    """The loss of one policy is not finite; no parameter was changed."""

    def __init__(self, text: str, policy: int) -> None:
        """
        Args:
            policy: its number among those that share the run.
        """
        self.policy = policy
        super().__init__(text)


class NotFinite(TrainingError):
    """The vector of the latest step makes the model's outputs NaN or infinite: it is not worth keeping."""


class Stopped(BaseException):
    """A signal asked the process to end.

    Not an ``Exception``: no plugin's ``except Exception`` may swallow it, and Lightning's handling of
    ``KeyboardInterrupt`` would end the process before anything is said.
    """

    def __init__(self, signum: int, text: str = "") -> None:
        """
        Args:
            signum: 2 is Ctrl-C, 15 SIGTERM.
            text: what was saved and how to go on; the command line prints it.
        """
        self.signum = int(signum)
        super().__init__(text or self.cause)

    @property
    def cause(self) -> str:
        """``Ctrl-C`` or ``SIGTERM``."""
        return {2: "Ctrl-C", 15: "SIGTERM"}.get(self.signum, f"signal {self.signum}")

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130, 143."""
        return 128 + self.signum
