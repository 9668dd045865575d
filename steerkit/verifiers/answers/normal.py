r"""One spelling for each thing that LaTeX and Unicode spell in several ways.

Nothing here changes what an answer says: units, letter case, brackets and subscripts stay (dropping them is what
makes ``204_5`` equal to ``204_6`` elsewhere).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_GREEK = {
    chr(code): " \\" + unicodedata.name(chr(code)).rpartition(" ")[2].lower().replace("lamda", "lambda") + " "
    for code in range(0x3B1, 0x3CA)
    if code != 0x3C2  # final sigma
}
_UNICODE = str.maketrans(
    {
        **_GREEK,
        **{"ϕ": r" \varphi ", "Δ": r" \Delta ", "Ω": r" \Omega ", "Σ": r" \Sigma ", "Γ": r" \Gamma ", "Φ": r" \Phi "},
        **dict.fromkeys("−–—‐‑﹣－", "-"),
        **dict.fromkeys("×✕⨯∗·⋅•", r" \cdot "),
        **dict.fromkeys("\u00a0\u2009\u202f\u2007\u2002\u2003\t\r\n", " "),
        **dict.fromkeys("\u200b\ufeff\u2061\u2062", ""),
        **dict.fromkeys("’‘′", "'"),
        **dict.fromkeys('“”"`', ""),
        **{"÷": "/", "⁄": "/", "∕": "/", "＋": "+", "＝": "=", "（": "(", "）": ")", "，": ",", "：": ":", "％": "%"},
        **{"≤": r" \le ", "⩽": r" \le ", "≥": r" \ge ", "⩾": r" \ge ", "≠": r" \ne ", "≈": r" \approx "},
        **{"±": r" \pm ", "∞": r" \infty ", "∪": r" \cup ", "∩": r" \cap ", "∈": r" \in ", "∅": r" \emptyset "},
        **{"√": r"\sqrt ", "ℝ": r"\mathbb{R}", "º": "°", "″": "''", "∖": r" \setminus "},
        **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
        **{"€": r"\euro ", "£": r"\pound ", "¥": r"\yen ", "₹": r"\rupee ", "¢": r"\text{ cents}"},
    }
)
_RUN = re.compile(f"[{_SUPERSCRIPTS}]+|[{_SUBSCRIPTS}]+")
_DIGITS = str.maketrans(_SUPERSCRIPTS + _SUBSCRIPTS, "0123456789+-0123456789")

_MONEY = re.compile(r"\\\$")
_REPLACE: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<!\\)\\[()\[\]]"), " "),  # \( \) \[ \]; not the row break \\[2pt]
    (re.compile(r"\{\\(?:rm|bf|it|sf|text)\s+([^{}]*)\}"), r"\\text{\1}"),
    # Thousands: 10,\!000 and 10{,}000 and 10\,000 have no other meaning; 10,000 is for the reader of lists to decide.
    (re.compile(r"(?<=\d)\s*(?:,\s*\\!|\{,\}(?:\\!)?)\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d)\\[,;:](?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<![\d.,^_{/])(\d{1,3})((?: \d{3})+)(?![\d.,/])"), lambda m: m[1] + m[2].replace(" ", "")),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(\\\\)\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]"), r"\1 "),  # \\[2pt]
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degrees?(?![a-zA-Z])|\^\s*\{?\s*°\s*\}?"), "°"),
    (re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![a-zA-Z]))"), lambda m: "'" * m[0].count("prime")),
    (re.compile(r"\\(?:left|right)\s*\."), " "),
    (re.compile(r"\\(?:[mb]?left|[mb]?right|[bB]igg?[lrm]?|middle|limits|nolimits)(?![a-zA-Z])\s*"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|scriptstyle)(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:hspace|vspace|phantom)\*?\{[^{}]*\}|\\phantom\s*-"), " "),
    (re.compile(r"(?<!\\)\\(?:(?:quad|qquad|thinspace|enspace)(?![a-zA-Z])|[,;:> ])|~"), " "),
    (re.compile(r"(?<![a-zA-Z])(?:np|numpy|math|sympy)\.(?=[a-z])"), ""),
    (re.compile(r"\\(?:approx|simeq|doteq|fallingdotseq)(?![a-zA-Z])|\\sim(?![a-zA-Z])"), r"\\approx "),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
    (re.compile(r"\*\*(?=\S)"), "^"),
]
_OUTER_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}\Z", re.DOTALL)
_TAIL = re.compile(r"(?:(?<!\.)\.(?!\.)|[,;]|\\\\)\s*\Z")


def normalise(text: str) -> str:
    r"""``text`` in one spelling: no math delimiters, sizes or spacing commands, one kind of dash, degree and prime.

    >>> normalise(r"$\left(10{,}000^{\circ}, ½\right)$.")
    '(10000°, \\frac{1}{2})'
    """
    text = text.strip()
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2]  # Markdown's bold
    text = text.translate(_UNICODE)
    text = _RUN.sub(lambda m: ("_" if m[0][0] in _SUBSCRIPTS else "^") + "{" + m[0].translate(_DIGITS) + "}", text)
    text = _MONEY.sub(r"\\dollar ", text)
    # Dollar signs come in pairs around formulas; an odd one before a number is money.
    if text.count("$") % 2:
        text = re.sub(r"\$(?=\s*[\d.])", r"\\dollar ", text, count=1)
    text = text.replace("$", " ")
    for pattern, replacement in _REPLACE:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    box = _OUTER_BOX.match(text)
    if box:
        text = box[1].strip()
    while (shorter := _TAIL.sub("", text)) != text:
        text = shorter
    return text.strip()
