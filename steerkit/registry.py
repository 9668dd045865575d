"""Plugins by name: the only file that knows the package `entrypoints`.

A plugin is a class or a function that a distribution advertises in the entry-point group ``steerkit.<kind>``.
steerkit's own members are advertised the same way, so built-in and foreign plugins travel one road. A spec may
also be ``package.module:Name`` or ``path/to/file.py:Name``, so that one function needs no package.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

from steerkit.errors import PluginError, SteerkitError

_FILE_PREFIX = "steerkit_file_"
"""Of the module names that files given as ``path.py:Name`` get."""

KINDS = (
    "models",
    "interventions",
    "datasets",
    "rewards",
    "verifiers",
    "objectives",
    "samplers",
    "analyzers",
    "exporters",
)
"""The plugin kinds; the entry-point group of a kind is ``steerkit.<kind>``."""


_typed: tuple[tuple[str, ...], ...] = ()
"""Command lines of the open ``code_named_by`` blocks, the outer one first."""
_trusted = False


@contextmanager
def code_named_by(words: Sequence[str], trusted: bool = False) -> Iterator[None]:
    """While it is open, ``resolve`` imports no code that one of these words does not name: the rest of what it is
    given comes from files (configs, vectors, results), and a stranger's file must not choose what is run.

    Installed plugins are always found by their names. Outside such a block everything is resolved: there a program
    calls, which could import the code itself. A block inside another (a command that a study calls) can only take
    away: both must name the code.

    Args:
        words: the command line.
        trusted: the user said that the files are to be trusted (``--allow_code``).
    """
    global _typed, _trusted
    before = _typed, _trusted
    _typed, _trusted = (*_typed, tuple(words)), trusted and (_trusted or not _typed)
    try:
        yield
    finally:
        _typed, _trusted = before


def trusted() -> bool:
    """Whether the user said ``--allow_code``."""
    return _trusted


def may_import(spec: str, from_file: bool = False) -> bool:
    """Whether ``package.module:Name`` or ``file.py:Name`` may be imported (see ``code_named_by``).

    Args:
        from_file: ``spec`` is known to stand in a file; outside of ``code_named_by`` that alone says no.
    """
    if not _typed:
        return not from_file
    return _trusted or all(any(spec in word for word in words) for words in _typed)


def refuse_code(spec: str, place: str) -> PluginError:
    """The error for code that may not be imported.

    Args:
        place: what names it, e.g. ``a file``.
    """
    return PluginError(f"{place} names code to run, {spec!r}: if you trust it, repeat the command with --allow_code.")


@dataclass(frozen=True, slots=True)
class Entry:
    """One advertised plugin; nothing of it has been imported."""

    kind: str
    name: str
    target: str
    """``package.module:Name``, as the distribution wrote it (perhaps unparsable)."""
    distribution: str
    version: str
    """Empty if the installed metadata does not tell."""

    @property
    def origin(self) -> str:
        """``steerkit 0.1.0``"""
        return f"{self.distribution} {self.version}".strip()


def group_of(kind: str) -> str:
    """The entry-point group of ``kind``.

    Raises:
        PluginError: if there is no such kind.
    """
    if kind not in KINDS:
        raise PluginError(f"No plugin kind {kind!r}.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    return f"steerkit.{kind}"


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` (with a leading space), or nothing if no option is near."""
    near = get_close_matches(str(word), [str(option) for option in options], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def entries(kind: str) -> list[Entry]:
    """All plugins of one kind, in name order, without importing any; equal names of two distributions are both here.

    Raises:
        PluginError: if there is no such kind, or an installed entry_points.txt can't be read.
    """
    return _entries(group_of(kind), kind)


def problems() -> list[str]:
    """What is wrong with the installed plugins, one line each: name clashes and unparsable targets."""
    lines = []
    for kind in KINDS:
        found = entries(kind)
        for name in sorted({entry.name for entry in found}):
            try:
                _parse(_only(kind, name, [entry for entry in found if entry.name == name]))
            except PluginError as error:
                lines.append(str(error))
    return lines


def resolve(kind: str, spec: str) -> Any:
    """The class or function that ``spec`` names; imports it.

    Args:
        kind: one of ``KINDS``.
        spec: a plugin's name, ``package.module:Name`` or ``path/to/file.py:Name`` (relative to the working directory).

    Raises:
        PluginError: if it is missing, ambiguous, unparsable, fails to import, or may not be imported
            (``code_named_by``).
    """
    group = group_of(kind)
    if not isinstance(spec, str) or not spec.strip():
        raise PluginError(f"Expected the name of one of the {kind} (or 'package.module:Name'), got {spec!r}.")
    spec = spec.strip()
    found = entries(kind)
    named = [entry for entry in found if entry.name == spec]
    if named:
        return _load(_only(kind, spec, named))
    if ":" in spec:
        if not may_import(spec):
            raise refuse_code(spec, "A file")
        place, _, name = spec.rpartition(":")  # the last colon: a Windows path has one of its own
        if place.endswith(".py"):
            return _attribute(_import_file(place, spec), name, spec)
        return _attribute(_import(place, spec), name, spec)
    raise PluginError(_missing(kind, group, spec, found))


def build(kind: str, spec: str | Mapping[str, Any], **extra: Any) -> Any:
    """Make the object that ``spec`` describes: ``name`` or ``{name: ..., setting: value, ...}``.

    Args:
        kind: one of ``KINDS``.
        spec: what ``resolve`` accepts, or a mapping with that under ``name`` and the settings beside it.
        extra: settings from the caller; one that ``spec`` sets too is refused.

    Raises:
        PluginError: as ``resolve``; also for an unknown, missing or twice-given setting.
    """
    if isinstance(spec, Mapping):
        settings = {str(key): value for key, value in spec.items() if key != "name"}
        if "name" not in spec:
            raise PluginError(f"Settings for one of the {kind} need a 'name', got only {sorted(settings)}.")
        name = spec["name"]
    else:
        name, settings = spec, {}
    target = resolve(kind, name)
    twice = sorted(settings.keys() & extra.keys())
    if twice:
        raise PluginError(
            f"{name!r} ({group_of(kind)}): {', '.join(twice)} is set by steerkit itself; drop it from the settings."
        )
    return instantiate(target, {**settings, **extra}, f"{name!r} ({group_of(kind)})")


def instantiate(target: Callable[..., Any], settings: Mapping[str, Any], label: str) -> Any:
    """``target(**settings)`` after checking the names of the settings against its signature.

    Args:
        label: how errors call the target, e.g. ``'length' (steerkit.rewards)``.

    Raises:
        PluginError: for an unknown or missing setting, naming the accepted ones. Errors inside ``target`` pass through.
    """
    if not callable(target):
        raise PluginError(f"{label} is a {type(target).__name__}, not a class or a function: it can't be built.")
    try:
        signature = inspect.signature(target)
    except ValueError:  # some C functions have none: let the call itself complain
        return target(**settings)
    parameters = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in parameters]
    accepted = f"Settings: {', '.join(names)}." if names else "It takes no settings."
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [] if takes_any else [key for key in settings if key not in names]
    if unknown:
        raise PluginError(f"{label} has no setting {unknown[0]!r}.{did_you_mean(unknown[0], names)} {accepted}")
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in settings]
    if missing:
        raise PluginError(f"{label} needs the setting{'s' * (len(missing) > 1)} {', '.join(missing)}. {accepted}")
    return target(**settings)


def _entries(group: str, kind: str) -> list[Entry]:
    paths = list(dict.fromkeys(os.path.abspath(str(path)) for path in sys.path))  # '' is the working directory
    found: dict[tuple[str, str], Entry] = {}
    for name, target, distribution, version in _advertised(tuple((path, _changed(path)) for path in paths)).get(
        group, ()
    ):
        entry = Entry(kind, name, target, distribution, version)
        key = (name, re.sub(r"[-_.]+", "-", distribution).lower())
        seen = found.get(key)
        # One distribution seen twice on sys.path is no clash: the first shadows the later, as for imports.
        if seen is None or (seen.target == entry.target and not seen.version):
            found[key] = entry
    return sorted(found.values(), key=lambda entry: (entry.name, entry.distribution))


def _changed(path: str) -> int:
    """When something was last put into or taken from a folder of ``sys.path`` (ns; 0 if there is no such place)."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=8)
def _advertised(paths: tuple[tuple[str, int], ...]) -> dict[str, list[tuple[str, str, str, str]]]:
    """``{group: [(name, target, distribution, version), ...]}`` of steerkit's groups.

    Kept as long as the folders' times stay as they are: reading the metadata of some fifty distributions takes 30 ms,
    and a vector names its intervention's plugin each time it is used. An installation changes its folder's time; an
    ``entry_points.txt`` that is written over in place is seen by the next process.

    Args:
        paths: of ``sys.path``, each with its ``_changed``.
    """
    import configparser

    import entrypoints

    # Not get_group_all: it hides equal names of one distribution's older metadata, and only warns (without naming
    # the distribution) about entries that can't be parsed. repeated_distro="all" shows an editable install's
    # dist-info beside a stale egg-info; the one with a version is kept by the caller.
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    try:
        for config, distro in entrypoints.iter_files_distros(path=[path for path, _ in paths], repeated_distro="all"):
            for group in filter(config.has_section, map(group_of, KINDS)):
                # raw: a '%' in a target is not configparser interpolation
                for name, target in config.items(group, raw=True):
                    found.setdefault(group, []).append(
                        (name, " ".join(target.split()), distro.name, distro.version or "")
                    )
    except (configparser.Error, UnicodeDecodeError) as error:
        raise PluginError(f"An installed entry_points.txt can't be read: {' '.join(str(error).split())}") from error
    return found


def _only(kind: str, name: str, named: list[Entry]) -> Entry:
    if len(named) > 1:
        owners = " and ".join(f"{entry.origin} ({entry.target})" for entry in named)
        raise PluginError(
            f"Two {kind} are named {name!r} (group {group_of(kind)}): {owners}. Uninstall one, or write "
            f"'package.module:Name' instead of the name."
        )
    return named[0]


def _parse(entry: Entry) -> Any:
    import entrypoints

    try:
        return entrypoints.EntryPoint.from_string(entry.target, entry.name)
    except entrypoints.BadEntryPoint as error:
        raise PluginError(
            f"{entry.origin} advertises {entry.name!r} (group {group_of(entry.kind)}) as {entry.target!r}: "
            f"expected 'package.module:Name'. Mend its entry points and install it again."
        ) from error


def _load(entry: Entry) -> Any:
    parsed = _parse(entry)
    try:
        return parsed.load()
    except SteerkitError:
        raise
    except Exception as error:  # a plugin's module may fail in any way; the cause is kept
        raise PluginError(
            f"{entry.name!r} of {entry.origin} (group {group_of(entry.kind)}) failed to load from {entry.target}: "
            f"{_brief(error)}"
        ) from error


def _import(module: str, spec: str) -> Any:
    try:
        return importlib.import_module(module)
    except SteerkitError:
        raise
    except Exception as error:
        raise PluginError(f"Can't import {module!r} of {spec!r}: {_brief(error)}") from error


def _import_file(place: str, spec: str) -> Any:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"No file {path} (from {spec!r}); write a path that exists, then ':Name'.")
    # A name of its own per file state: two files called reward.py don't meet, and an edited file is read anew.
    state = f"{path}:{path.stat().st_mtime_ns}:{path.stat().st_size}"
    name = f"{_FILE_PREFIX}{path.stem}_{hashlib.sha1(state.encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before running it: dataclasses look their module up
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SteerkitError) or not isinstance(error, Exception):
            raise
        raise PluginError(f"{path} (from {spec!r}) fails on import: {_brief(error)}") from error
    return module


def _attribute(module: Any, name: str, spec: str) -> Any:
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError as error:
        public = [key for key in vars(module) if not key.startswith("_")]
        place = Path(module.__file__).name if module.__name__.startswith(_FILE_PREFIX) else module.__name__
        raise PluginError(f"{place} has no {name!r} (from {spec!r}).{did_you_mean(name, public)}") from error


def _missing(kind: str, group: str, name: str, found: list[Entry]) -> str:
    singular = "analyzer" if kind == "analyzers" else kind[:-1]
    text = f"No {singular} named {name!r} (group {group}).{did_you_mean(name, [entry.name for entry in found])}"
    by_origin: dict[str, list[str]] = {}
    for entry in found:
        by_origin.setdefault(entry.origin, []).append(entry.name)
    if by_origin:
        groups = [f"{', '.join(names)} ({origin})" for origin, names in by_origin.items()]
        text += f" Installed: {', '.join(groups)}."
    else:
        text += " None is installed."
    if not any(entry.distribution == "steerkit" for other in KINDS for entry in entries(other)):
        text += " steerkit's own plugins are not registered: run `pip install -e .` in its folder."
    return text


def _brief(error: BaseException) -> str:
    """The error's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
