r"""Reads short mathematical answers strictly, and says whether two of them are the same.

``read(text)`` understands the whole text or raises ``Unreadable``; ``same(gold, found)`` compares.
"""

from steerkit.verifiers.answers.compare import same
from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.read import read

__all__ = ["Unreadable", "read", "same"]
