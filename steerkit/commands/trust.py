"""What a config file may not do by itself: name code to run, or a place outside the working directory to write to.

Its author may be a stranger. What the command line says is the user's own; ``--allow_code`` trusts the files, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from steerkit import registry
from steerkit.errors import SteerkitError

WRITTEN = ("run_dir", "out", "default_root_dir", "replay_file")
"""Options that name a place to write to."""
MAX_BYTES = 2**20
MAX_VALUES = 100_000
"""A few lines of YAML can stand for billions of values, by aliases of aliases."""

_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
_IN_FILE = re.compile(r"^[^\s:]+\.py:[A-Za-z_]\w*$")


def check_configs(arguments: Sequence[str], allow_code: bool = False) -> None:
    """Look through the files that ``--config`` names, and the files that these name.

    What isn't there is left to the parser to complain about.

    Raises:
        SteerkitError: naming what the file may not say, or where it isn't YAML.
    """
    for position, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option in ("--config", "-c"):
            given = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            _check_file(given, arguments, allow_code, set())


def code_in(tree: Any) -> Iterator[str]:
    """Code that a parsed config names (``class_path``, dotted names among the trainer's settings, ``file.py:Name``)."""
    for keys, value in _leaves(tree):
        imported = "trainer" in keys and keys[-1] not in WRITTEN and _DOTTED.match(str(value)) is not None
        imported = imported and _readable(str(value)) is None  # a file of settings is looked through by itself
        if "class_path" in keys or imported or _IN_FILE.match(str(value)):
            yield str(value)


def _check_file(name: str, arguments: Sequence[str], allow_code: bool, seen: set[Path]) -> None:
    path = _readable(name)
    if path is None or path in seen:
        return
    seen.add(path)
    try:
        tree = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        if len(seen) == 1:  # the file that was named, not a value that is a file's name
            raise SteerkitError(f"{name} is not YAML: {_reason(error)}.") from None
        return
    except (RecursionError, ValueError):  # ValueError: a date that is none
        return
    if not isinstance(tree, dict):
        return
    if (count := _size(tree, {})) > MAX_VALUES:
        raise SteerkitError(f"{name} stands for {count:,} values or more: a config has no more than {MAX_VALUES:,}.")
    for spec in code_in(tree):
        if not (allow_code or registry.may_import(spec)):
            raise registry.refuse_code(spec, name)
    for keys, value in _leaves(tree):
        if keys and keys[-1] in WRITTEN and isinstance(value, str):
            _check_place(name, keys[-1], value, arguments)
        if isinstance(value, str):
            _check_file(value, arguments, allow_code, seen)  # the parser takes a group's settings from a file, too


def _reason(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{' '.join(str(problem or error).split())}{where}"


def _check_place(name: str, option: str, value: str, arguments: Sequence[str]) -> None:
    typed = any(re.match(rf"--([\w.]+\.)?{option}(=|$)", argument) for argument in arguments)
    here = Path.cwd().resolve()
    try:
        inside = here in Path(value).expanduser().resolve().parents
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, no such home
        inside = False
    if not typed and not inside:
        shown = value[:200]
        raise SteerkitError(
            f"{name}: {option} {shown!r} is not inside the working directory: give --{option} on the command line."
        )


def _readable(name: str) -> Path | None:
    try:
        path = Path(name).expanduser().resolve()
        return path if path.is_file() and path.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, no such home
        return None


def _size(node: Any, known: dict[int, int]) -> int:
    """Values that the tree has once its aliases are written out; a tree inside itself has more than any bound."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # while its parts are counted
        parts = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _leaves(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict):
        for key, part in node.items():
            yield from _leaves(part, (*keys, *str(key).split(".")))
    elif isinstance(node, list):
        for part in node:
            yield from _leaves(part, keys)
    else:
        yield keys, node
