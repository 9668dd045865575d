"""``steerkit plugins``: what is installed, without importing any of it; ``steerkit plugins check NAME`` tests one.

The list names kind, name, class, distribution and version. The check runs the contract of the plugin's kind (the same
as ``steerkit.testing``), one line each: exit code 0 if all pass, 1 if one fails, 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from steerkit import registry
from steerkit.commands.parsing import PlainParser
from steerkit.errors import PluginError


def run(verb: str, arguments: Sequence[str]) -> int:
    """List the plugins, or check one."""
    if arguments and arguments[0] == "check":
        return _check(_check_parser(verb).parse_intermixed_args(arguments[1:]))
    if arguments and not arguments[0].startswith("-"):
        raise PluginError(
            f"steerkit {verb} has no {arguments[0]!r}.{registry.did_you_mean(arguments[0], ['check'])} "
            f"Write `steerkit {verb}` for the list, or `steerkit {verb} check NAME`."
        )
    parser = PlainParser(
        prog=f"steerkit {verb}",
        usage=f"steerkit {verb} [--kind KIND] | steerkit {verb} check NAME [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", choices=registry.KINDS, help="list one kind only")
    options = parser.parse_args(arguments)
    kinds = [options.kind] if options.kind else list(registry.KINDS)
    rows = [("KIND", "NAME", "CLASS", "DISTRIBUTION", "VERSION")]
    for kind in kinds:
        rows += [(e.kind, e.name, e.target, e.distribution, e.version) for e in registry.entries(kind)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for problem in registry.problems():
        print(f"steerkit plugins: {problem}", file=sys.stderr)
    return 0


def _check_parser(verb: str) -> PlainParser:
    parser = PlainParser(
        prog=f"steerkit {verb} check", description="Run the contract of a plugin: one line for each promise."
    )
    parser.add_argument("name", help="a plugin's name, package.module:Name, or file.py:Name")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the plugin's settings; values as in YAML")
    parser.add_argument("--kind", choices=registry.KINDS, help="needed unless NAME is an installed plugin of one kind")
    parser.add_argument("--data", help="data set whose problems a reward or a verifier is tried on")
    parser.add_argument("--verifier", help="verifier that must understand a data set's gold answers")
    pair: dict[str, Any] = {"nargs": 2, "metavar": ("COMPLETION", "ANSWER"), "action": "append", "default": []}
    parser.add_argument("--right", **pair, help="a completion that a verifier must call correct, and its gold answer")
    parser.add_argument("--wrong", **pair, help="one that it must call wrong")
    return parser


def _check(options: argparse.Namespace) -> int:
    kinds = _kinds(options.name, options.kind)
    settings = dict(_setting(text) for text in options.settings)
    if settings and len(kinds) > 1:
        kin = " and ".join(f"one of the {kind}" for kind in kinds)
        raise PluginError(f"{options.name!r} is the name of {kin}: say by --kind which one the settings are for.")
    counted = failed = 0
    for kind in kinds:
        passed, broken = _check_kind(kind, options, settings)
        counted, failed = counted + passed + broken, failed + broken
    print(f"{counted} checks, {'all pass' if not failed else f'{failed} failed'}.")
    return 1 if failed else 0


def _check_kind(kind: str, options: argparse.Namespace, settings: dict[str, Any]) -> tuple[int, int]:
    """Prints a line for each check; (passed, failed)."""
    from steerkit.testing.checks import contract, failure

    list_checks = contract(kind)
    if kind in ("models", "exporters"):
        from steerkit.commands.console import prepare  # the libraries' progress bars off

        prepare()
    inputs = _inputs(kind, options)
    clash = sorted(inputs.keys() & settings.keys())
    if clash:
        raise PluginError(f"The setting {clash[0]!r} has the name of an option of this command: write a test instead.")
    checks = list_checks(options.name, **inputs, **settings)
    print(f"{kind} {options.name}")
    broken, said = 0, dict[str, str]()  # reason -> the check that gave it first
    for check in checks:
        reason = failure(check)
        broken += reason is not None
        if reason is None:
            print(f"  pass  {check.name}", flush=True)
            continue
        first = said.setdefault(reason, check.name)  # one mistake can break every promise: it is told once
        print(f"  FAIL  {check.name}: {reason if first == check.name else f'as in {first!r}'}", flush=True)
    return len(checks) - broken, broken


def _inputs(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the contract is tried on, as the user gave it."""
    inputs: dict[str, Any] = {}
    if kind in ("rewards", "verifiers") and options.data:
        from steerkit.datasets import open_dataset

        inputs["examples"] = open_dataset(options.data).load("train")
    if kind == "verifiers":
        inputs |= {"right": [tuple(pair) for pair in options.right], "wrong": [tuple(pair) for pair in options.wrong]}
    if kind == "datasets" and options.verifier:
        inputs["verifier"] = options.verifier
    return inputs


def _kinds(name: str, kind: str | None) -> list[str]:
    """The kinds of plugin that ``name`` is to be checked as."""
    if kind is not None:
        return [kind]
    found: dict[str, list[str]] = {}
    for other in registry.KINDS:
        for entry in registry.entries(other):
            found.setdefault(entry.name, []).append(other)
    if name in found:
        return list(dict.fromkeys(found[name]))
    if ":" in name:
        raise PluginError(f"Say what {name!r} is: --kind {' | '.join(registry.KINDS)}.")
    raise PluginError(f"No plugin named {name!r}.{registry.did_you_mean(name, found)} `steerkit plugins` lists them.")


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise PluginError(f"A setting is written key=value, got {text!r}.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise PluginError(f"The value of {key!r} can't be read as YAML: {' '.join(str(error).split())}") from error
