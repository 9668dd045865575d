r"""Where the answer stands in a completion: the last ``\boxed{}``, after ``####``, or after "the answer is".

Time is linear in the length of the completion. In each form the last occurrence counts: a policy that names many
answers has given the last one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from steerkit.errors import SteerkitError
from steerkit.verifiers.boxed import last_boxed

Form = Literal["boxed", "hash", "phrase"]

PHRASE_CHARS = 500
"""An answer after "the answer is" ends at its line, its sentence, or here."""
_PHRASE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])", re.IGNORECASE)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?:[.!?](?=\s|\*|\Z)|\n)")


def check_forms(extract: str | Sequence[str]) -> tuple[Form, ...]:
    """The forms in their order.

    Raises:
        SteerkitError: none is given, one is unknown, or one comes twice.
    """
    forms = (extract,) if isinstance(extract, str) else tuple(extract)
    known = get_args(Form)
    if not forms or len(set(forms)) < len(forms) or any(form not in known for form in forms):
        raise SteerkitError(f"extract must list some of {', '.join(known)}, each once, got {list(forms)!r:.80}.")
    return forms  # type: ignore[return-value]


def extract_answer(completion: str, forms: Sequence[Form] = ("boxed",)) -> str | None:
    r"""The answer by the first of ``forms`` that finds one, stripped; None if none does.

    >>> extract_answer("48 / 2 = 24\n#### 24", ["boxed", "hash"])
    '24'
    """
    for form in forms:
        found = _EXTRACT[form](completion)
        if found is not None:
            return found
    return None


def last_hash(text: str) -> str | None:
    """What follows the last ``####`` that starts a line, up to the line's end (GSM8K's form)."""
    at = len(text)
    while (at := text.rfind("####", 0, at)) != -1:
        if not text[text.rfind("\n", 0, at) + 1 : at].strip():
            end = text.find("\n", at)
            return text[at + 4 : len(text) if end == -1 else end].strip()
        at = text.rfind("\n", 0, at) + 1  # the line had something else first: go on with the lines above
    return None


def last_phrase(text: str) -> str | None:
    """What follows the last "answer is", "answer:" or "answer =": a formula in delimiters, or a sentence's rest."""
    ends = [match.end() for match in _PHRASE.finditer(text)]
    if not ends:
        return None
    rest = text[ends[-1] : ends[-1] + PHRASE_CHARS].lstrip(" *:\t\n")
    formula = _MATH.match(rest)
    if formula:
        return next(group for group in formula.groups() if group is not None).strip()
    end = _SENTENCE_END.search(rest)
    return rest[: end.start() if end else len(rest)].strip(" *\t")


_EXTRACT = {"boxed": last_boxed, "hash": last_hash, "phrase": last_phrase}
