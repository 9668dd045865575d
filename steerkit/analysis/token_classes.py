"""The class of each token of a vocabulary: the script of its letters, and for Latin letters the language.

=====================  ============================================================================================
class                  tokens
=====================  ============================================================================================
special                special tokens of the tokenizer, and rows of the unembedding that it does not know
english, german...     Latin letters, a word of one of the lists in ``lexicon``, two letters at least; English first;
                       of the others only what begins a word or has four letters (pieces of English words look like
                       short foreign ones)
latin                  Latin letters and none of these: pieces of words, names, code
cyrillic, han, kana,   letters of that script (Unicode character names); pieces of UTF-8 characters count by the
arabic, greek...       letters that their first byte can begin, if these have one script
mixed                  letters of two scripts
digit                  digits and no letter
symbol                 no letter and no digit: punctuation, mathematics, emoji
space                  white space only
bytes                  pieces of UTF-8 characters that may be of any script
=====================  ============================================================================================
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from steerkit.analysis.lexicon import LEXICON

NO_LANGUAGE = ("special", "latin", "mixed", "digit", "symbol", "space", "bytes")
"""Classes that are of no language."""
_NAMES = {"cjk": "han", "hiragana": "kana", "katakana": "kana", "katakana-hiragana": "kana"}
_HIDDEN = "�"


def classify(tokenizer: Any, size: int, extra: Mapping[str, Iterable[str]] | None = None) -> list[str]:
    """[size] the class of each token id.

    Args:
        size: rows of the unembedding.
        extra: class -> more words (lower case); they come before the lists of ``lexicon``.
    """
    words = {word.casefold(): name for name, listed in reversed(LEXICON.items()) for word in listed}
    words |= {word.casefold(): name for name, listed in (extra or {}).items() for word in listed}
    special = set(tokenizer.all_special_ids)
    known = len(tokenizer)
    found = []
    for index in range(size):
        if index in special or index >= known:
            found.append("special")
        else:
            text = str(tokenizer.decode([index], clean_up_tokenization_spaces=False))
            found.append(class_of(text, words) or _of_bytes(str(tokenizer.convert_ids_to_tokens(index))))
    return found


def class_of(text: str, words: Mapping[str, str]) -> str:
    """The class of a token's text; empty if it is a piece of a character.

    Args:
        words: lower-case word -> language.
    """
    scripts = {script for script in map(script_of, text) if script}
    if len(scripts) > 1:
        return "mixed"
    if scripts == {"latin"}:
        letters = text.strip(" \n\t\r▁.,:;!?()[]{}\"'*\\").casefold()
        language = words.get(letters, "latin") if len(letters) > 1 else "latin"
        sure = language not in LEXICON or language == "english" or text[0] in " ▁" or len(letters) > 3
        return language if sure else "latin"
    if scripts:
        (script,) = scripts
        return words.get(text.strip().casefold(), script)
    if _HIDDEN in text or not text:
        return ""
    if text.isspace():
        return "space"
    return "digit" if any(character.isdigit() for character in text) else "symbol"


@cache
def script_of(character: str) -> str:
    """The script of a letter, in lower case; empty for what is no letter (or a letter used as a symbol)."""
    if not character.isalpha() or unicodedata.category(character) == "Lm":  # a modifier: no script of its own
        return ""
    name = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    first = name.partition(" ")[0].lower()
    if first in ("mathematical", "modifier", "double-struck", "script", "black-letter", "circled", ""):
        return ""
    return "latin" if first in ("feminine", "masculine", "micro", "kelvin", "angstrom") else _NAMES.get(first, first)


def _of_bytes(piece: str) -> str:
    """The class of a token that is a piece of a character, by the first byte of its vocabulary entry."""
    hexadecimal = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
    if hexadecimal:
        return _script_of_lead(int(hexadecimal[1], 16))
    first = next((character for character in piece if character not in "Ġ "), "")
    return _script_of_lead(_byte_of().get(first, 0))


@cache
def _script_of_lead(byte: int) -> str:
    """The one script of all letters whose UTF-8 form begins with ``byte``, else ``bytes``."""
    if 0xC2 <= byte <= 0xDF:
        first, last = (byte & 0x1F) << 6, ((byte & 0x1F) << 6) + 0x3F
    elif 0xE0 <= byte <= 0xEF:
        first, last = max(0x800, (byte & 0x0F) << 12), ((byte & 0x0F) << 12) + 0xFFF
    else:
        return "bytes"
    scripts = {script_of(chr(point)) for point in range(first, last + 1)} - {""}
    return scripts.pop() if len(scripts) == 1 else "bytes"


@cache
def _byte_of() -> dict[str, int]:
    """Character -> byte in vocabularies of byte-level BPE (GPT-2's table: printable bytes stand for themselves)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in shown}
    hidden = (byte for byte in range(256) if byte not in shown)
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}
