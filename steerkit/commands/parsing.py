"""Parsers of the verbs: a mistake is one line with the nearest name, no option can be abbreviated, long help on demand.

An abbreviation would let a typo pass (``--trainer.max_step`` as ``--trainer.max_steps``), and change its meaning when
an option is added.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import jsonargparse

from steerkit.errors import SteerkitError
from steerkit.registry import did_you_mean

if TYPE_CHECKING:
    _Base = argparse.ArgumentParser
else:
    _Base = object

_KEY = re.compile(r'^Parser key "(?P<key>[^"]*)"(?: element \d+)?:\s*(?P<rest>.*)', re.DOTALL)
_UNION = re.compile(r"Subtypes: \[?(?P<types>.*?)\]?\s*\n.*Given value: (?P<value>.*)$", re.DOTALL)
_OF_GROUP = re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'")
_UNKNOWN = re.compile(r"(?:does not accept option|Option|Key) '(?P<key>[^']+)'(?: is not (?:accepted|expected))?")
_FLAG = re.compile(r"^unrecognized arguments: (?P<flag>--?[\w.+-]+)")
_EXPECTED = re.compile(r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)$", re.DOTALL)
_INNER = re.compile(r'Parser key "(?P<key>[\w.]+)":\s*(?P<rest>Expected an? [^\n]*)')
_CHOICE = re.compile(r"invalid choice: '(?P<value>[^']*)' \(choose from (?P<choices>.*)\)")
_REQUIRED = re.compile(r"^the following arguments are required: (?P<names>.*)$")
_NAMES = {"NoneType": "null", "str": "text", "int": "whole number", "float": "number", "bool": "true or false"}


class OneLineErrors(_Base):
    """Mix-in for a parser: its complaints become a ``SteerkitError``, which the command line prints in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong, and the nearest name."""
        if not getattr(self, "exit_on_error", True):  # jsonargparse tries one type after another in such a parser
            super().error(message, ex)  # type: ignore[call-arg]
        parser = getattr(ex, "subcommand_parser", None) or _of_verb(self)
        options = [option for option in parser._option_string_actions if option.startswith("--")]
        raise SteerkitError(f"{explained(message, options)} See {_verb(parser)} --help.") from None


class Parser(OneLineErrors, jsonargparse.ArgumentParser):
    """``jsonargparse.ArgumentParser`` with complaints of one line."""


class PlainParser(OneLineErrors, argparse.ArgumentParser):
    """``argparse.ArgumentParser`` with complaints of one line."""


def explained(message: str, options: Iterable[str]) -> str:
    """A parser's complaint in one line, without the parser's own terms.

    Args:
        message: of argparse or jsonargparse, perhaps of many lines.
        options: the parser's option strings, from which the nearest to an unknown one is suggested.
    """
    options = [option for option in options if not option.endswith(".help")]
    plain = [option.lstrip("-") for option in options]
    if flag := _FLAG.match(message):
        return f"{_sentence(message)}{_near(flag['flag'], options)}"
    if required := _REQUIRED.match(message):
        missing = [name for name in required["names"].split(", ") if "=" not in name]  # key=value: none is needed
        names = [f"--{name}" if name in plain else name if name.startswith("-") else name.upper() for name in missing]
        return f"Give {' and '.join(names)}."
    if choice := _CHOICE.search(message):
        hint = did_you_mean(choice["value"], choice["choices"].replace("'", "").split(", "))
        return f"{_sentence(message)}{hint}"
    key, rest = "", message
    while found := _KEY.match(rest):
        key, rest = found["key"] or key, found["rest"]
    if outside := _OF_GROUP.search(rest):
        name = f"{outside['group']}.{outside['key']}"
        return f"There is no setting {name!r}.{_near(name, plain)}"
    if unknown := _UNKNOWN.search(rest):
        name = unknown["key"] if not key or unknown["key"].startswith(f"{key}.") else f"{key}.{unknown['key']}"
        return f"There is no setting {name!r}.{_near(name, plain)}"
    if inner := _INNER.search(rest):
        return explained(f'Parser key "{key}.{inner["key"]}": {inner["rest"]}', options)
    if union := _UNION.search(rest):
        return f"{key or 'The value'} must be one of: {_types(union['types'])}; got {union['value'].strip()!r}."
    if expected := _EXPECTED.search(rest):
        return f"{key or 'The value'} must be {_a(_types(expected['type']))}; got {expected['value'].strip()!r}."
    return _sentence(f"{key}: {rest}" if key else rest)


def _types(text: str) -> str:
    """Python's names of types, for readers of YAML."""
    text = re.sub(r"<class '([\w.]+)'>", lambda match: match[1].rpartition(".")[2], text)
    text = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", lambda match: match[1].replace(", ", " or "), text)
    return re.sub(r"\b(NoneType|str|int|float|bool)\b(?!\[)", lambda match: _NAMES[match[1]], text)


def _a(kind: str) -> str:
    return f"a {kind}" if kind in ("number", "whole number") else kind


def _near(name: str, options: Sequence[str]) -> str:
    """A name of another section, or without its section, is near too: ``--lr`` for ``--model.lr``."""
    section, _, last = name.lstrip("-").rpartition(".")
    same = [option for option in options if option.lstrip("-").rpartition(".")[2] == last]
    if same:
        return f" Did you mean {same[0]!r}?"
    # Without the section, which would make the names look more different, or more alike, than they are.
    kin = [option.removeprefix(f"{section}.") for option in options if section and option.startswith(f"{section}.")]
    near = did_you_mean(last, kin)
    return near.replace("mean '", f"mean '{section}.") if near else did_you_mean(name, options)


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!")) else f"{line}."


class FullHelp(argparse._HelpAction):
    """The action of ``--help_all``."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        """Print the help with every setting."""
        parser.full_help = True  # type: ignore[attr-defined]
        super().__call__(parser, *args, **kwargs)


class _ShortFormatter(argparse.HelpFormatter):
    """One spelling of each option, its text, and its default."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, "width": 110, **settings})

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if not name.endswith("+")]
        return ", ".join(names) or super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        shown = default is not None and default is not argparse.SUPPRESS and not isinstance(default, dict)
        text = (action.help or "").rstrip(".").replace("``", "")
        return (text + f" (default: {default})" if shown else text).replace("%", "%%")


class ShortHelp(_Base):
    """Mix-in for a parser of hundreds of options: ``--help`` shows the common ones, ``--help_all`` every one."""

    common: Mapping[str, str] = {}
    """Destinations that the short help shows -> what it says of them; an empty text: what the long help says."""
    titles: Mapping[str, str] = {}
    """How a group's title begins -> what the short help calls the group, in its order."""
    full_help = False

    def format_help(self, *args: Any) -> str:
        """The help, short unless ``--help_all`` asked for it."""
        if self.full_help:
            return super().format_help(*args)
        with self._shortened():
            return super().format_help(*args)

    @contextmanager
    def _shortened(self) -> Iterator[None]:
        """Argparse has no public way to leave options out of one kind of help."""
        texts = [(action, action.help) for action in self._actions]
        groups, titles = list(self._action_groups), [(group, group.title) for group in self._action_groups]
        usage, formatter = self.usage, self.formatter_class
        for action in self._actions:
            if not isinstance(action, argparse._HelpAction):
                action.help = self.common.get(action.dest, argparse.SUPPRESS) or action.help
        starts = list(self.titles)
        rank = {id(g): next((k for k, s in enumerate(starts) if str(g.title).startswith(s)), -1) for g in groups}
        for group in groups:
            group.title = self.titles[starts[rank[id(group)]]] if rank[id(group)] >= 0 else group.title
        self._action_groups.sort(key=lambda group: rank[id(group)] % (len(starts) + 1))
        self.usage = f"{_verb(self)} --config FILE [--SECTION.SETTING VALUE ...]"
        self.formatter_class = _ShortFormatter
        try:
            yield
        finally:
            self.usage, self.formatter_class, self._action_groups[:] = usage, formatter, groups
            for group, title in titles:
                group.title = title
            for action, text in texts:
                action.help = text


def _of_verb(parser: Any) -> Any:
    """The parser of the verb that was called, where the mistake was found in that of all verbs."""
    verbs = getattr(getattr(parser, "_subcommands_action", None), "_name_parser_map", {})
    return next((verbs[word] for word in getattr(parser, "args", ()) if word in verbs), parser)


def _verb(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.prog.replace("[options]", "").split())
