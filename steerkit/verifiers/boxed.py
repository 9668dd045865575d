r"""The last ``\boxed{...}`` of a text.

The conventions are those of the MATH data set (Hendrycks et al., arXiv 2103.03874): the box that starts last
counts, ``\fbox`` is a box too, and ``\boxed 5`` without braces runs to the end of its formula.
"""

from __future__ import annotations

import re

_COMMANDS = (r"\boxed", r"\fbox")
# An escaped character is consumed as a pair, so that the braces of \{ and \} don't count.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_END_OF_FORMULA = re.compile(r"\$|\\\)|\\\]|\n|\Z")


def last_boxed(text: str) -> str | None:
    r"""The content of the box that starts last in ``text``, stripped; None without a box or if it is not closed.

    Time is linear in ``len(text)``. Nested boxes: the inner one starts last, so it is the one returned.

    >>> last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    start = _last_command(text)
    if start is None:
        return None
    while start < len(text) and text[start] in " \t\n":
        start += 1
    if start == len(text):
        return None
    if text[start] != "{":
        end = _END_OF_FORMULA.search(text, start)
        return (text[start : end.start()].strip() or None) if end else None
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : match.start()].strip()
    return None


def _last_command(text: str) -> int | None:
    """The index behind the last box command, or None. ``\\boxedminipage`` is another command, not a box."""
    best: int | None = None
    for command in _COMMANDS:
        at = text.rfind(command)
        while at != -1:
            behind = at + len(command)
            if not text[behind : behind + 1].isalpha():
                best = behind if best is None else max(best, behind)
                break
            at = text.rfind(command, 0, at)
    return best
