"""What the reading of an answer can raise."""

from __future__ import annotations


class Unreadable(ValueError):
    """The text is no answer that this package can read: another reader may try, or the answer is wrong."""
