"""Every `steerkit` command in README, docs and configs is one that the parsers take."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from steerkit import registry
from steerkit.cli import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]
CONFIGS = [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "plugins").glob("*/*.yaml"))]
BLOCK = re.compile(r"^```(sh|console)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIGHT = {"plugins"}
"""Verbs whose parser depends on their arguments."""


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """(where it stands, its words) of each documented command."""
    found = []
    for page in PAGES:
        for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            lines = block.replace("\\\n", " ").splitlines()
            typed = lines if language == "sh" else [line[2:] for line in lines if line.startswith("$ ")]
            found += [(page.name, line) for line in typed]
    for config in CONFIGS:
        lines = config.read_text(encoding="utf-8").splitlines()
        found += [(config.name, line.removeprefix("# ")) for line in lines if line.startswith("# steerkit ")]
    ours = [(where, line) for where, line in found if line.startswith("steerkit ")]
    return [(where, tuple(shlex.split(line, comments=True))) for where, line in ours]


COMMANDS = commands()


def test_they_are_found() -> None:
    named = {words[1] for _, words in COMMANDS}
    # `validate`, `test` and `predict` have the settings of `fit`.
    assert named >= set(VERBS) - {"validate", "test", "predict"}, sorted(set(VERBS) - named)
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("place", sorted({where for where, _ in COMMANDS}))
def test_they_parse(place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    for words in dict.fromkeys(words for where, words in COMMANDS if where == place):
        verb, arguments = words[1], [word for word in words[2:] if word not in ("--debug", "--allow_code")]
        if verb in LIGHT or "--help" in arguments:
            continue
        module = import_module(VERBS[verb][0])
        if verb in ("fit", "validate", "test", "predict"):
            files = [value for flag, value in pairwise(arguments) if flag == "--config"]
            if all((ROOT / file).is_file() for file in files):  # a page may have its reader write one
                with pytest.raises(SystemExit) as stop:
                    main([verb, *arguments, "--print_config"])
                assert stop.value.code == 0, words
            continue
        if verb == "analyze":  # the options are those of the analyzer
            if arguments and not arguments[0].startswith("-"):
                module.build_parser(registry.resolve("analyzers", arguments[0])).parse_args(arguments[1:])
            continue
        module.build_parser().parse_args(arguments)
    capsys.readouterr()
