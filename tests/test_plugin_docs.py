"""docs/plugins.md is run as it stands: its files are written, its commands run in order, their output compared."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the page's fenced blocks."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def commands(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of a console block; a line ``...`` in the output stands for any lines."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def matches(expected: str, got: str) -> bool:
    """Equal but for runs of spaces; a line ``...`` stands for any lines, and ``...`` in a line for any text."""
    pattern = ""
    for line in expected.strip().splitlines():
        plain = " ".join(line.split())
        pattern += r"(?:.*\n)*" if plain == "..." else re.escape(plain).replace(r"\.\.\.", ".*") + r"\n"
    printed = "".join(" ".join(line.split()) + "\n" for line in got.strip().splitlines())
    return re.fullmatch(pattern, printed) is not None


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This interpreter's commands; pip installs into a folder beside the work, which Python and steerkit find."""
    site = tmp_path / "site"
    return {
        **os.environ,
        "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": str(site),
        "PIP_TARGET": str(site),
        "PIP_NO_INDEX": "1",  # a network would be a mistake, not a help
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.timeout(900)  # twelve seconds of work; the limit is for a machine that has other things to do
def test_the_page_works_as_written(tmp_path: Path, environment: dict[str, str]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    ran = []
    for language, text in blocks():
        if language == "console":
            for command, expected in commands(text):
                arguments = shlex.split(command)
                done = subprocess.run(
                    arguments, cwd=work, env=environment, text=True, timeout=600,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
                ending = f"[exit code {done.returncode}]\n" if done.returncode else ""
                assert matches(expected, done.stdout + ending), f"$ {command}\n{done.stdout}{ending}"
                ran.append(arguments[0])
        elif language in ("python", "toml", "yaml"):
            name = text.partition("\n")[0].removeprefix("# ")
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text(text, encoding="utf-8")
    assert {"steerkit", "pip", "python"} <= set(ran) and len(ran) >= 7
    assert sorted(path.name for path in (tmp_path / "site").glob("*.dist-info")) == ["steerkit_brevity-0.1.0.dist-info"]
    assert (work / "run" / "vector" / "steering.safetensors").is_file()


def test_every_block_is_of_a_kind_that_the_test_knows() -> None:
    assert {language for language, _ in blocks()} == {"python", "toml", "yaml", "console", "sh"}
    named = [text.partition("\n")[0] for language, text in blocks() if language in ("python", "toml", "yaml")]
    assert all(re.fullmatch(r"# [\w./-]+\.(py|toml|yaml)", name) for name in named), named


def test_the_comparison_can_fail() -> None:
    assert matches("a  b\n...\nlast ...\n", "a b\nx\ny\nlast 3 s\n")
    assert matches("a\n...\nb\n", "a\nb\n")
    assert not matches("a\nb\n", "a\nc\n")
    assert not matches("", "an error\n")
    assert not matches("8 checks, all pass.\n", "8 checks, 1 failed.\n[exit code 1]\n")


def test_the_page_names_the_real_checks() -> None:
    """Its table and its list of kinds against the code."""
    import steerkit.testing
    from steerkit.testing.checks import CONTRACTS

    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `steerkit\.(\w+)` \|", text, re.MULTILINE)) == set(CONTRACTS)
    assert set(re.findall(r"`(check_\w+)`", text)) <= set(steerkit.testing.__all__)
