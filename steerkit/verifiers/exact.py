"""Text equality: the verifier for answers that are words, choices or plain numbers."""

from __future__ import annotations

from typing import Literal, get_args

from steerkit.errors import SteerkitError
from steerkit.types import Verdict
from steerkit.verifiers.base import Verifier, displayed
from steerkit.verifiers.boxed import last_boxed

Extract = Literal["boxed", "text"]


class ExactVerifier(Verifier):
    r"""Correct if the answer text equals the gold text once runs of white space are one space.

    Args:
        extract: ``boxed`` compares the last ``\boxed{}``, ``text`` the whole completion.
    """

    def __init__(self, extract: Extract = "boxed") -> None:
        if extract not in get_args(Extract):
            raise SteerkitError(f"extract must be 'boxed' or 'text', got {extract!r}.")
        self.extract = extract

    def verify(self, completion: str, answer: str) -> Verdict:
        """Reasons: ``equal``, ``not_equal``, ``no_box``."""
        found = last_boxed(completion) if self.extract == "boxed" else completion
        if found is None:
            return Verdict("wrong", "no_box")
        equal = " ".join(found.split()) == " ".join(answer.split())
        return Verdict("correct" if equal else "wrong", "equal" if equal else "not_equal", displayed(found))
