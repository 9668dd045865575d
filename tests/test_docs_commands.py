"""The commands and Python blocks of README.md and docs/: run, but smaller, or parsed.

The blocks of a page that a reader works through are run in order, each command once, in one folder that begins with
what ``documentation.fill`` puts there. ``steerkit`` commands run in this process with ``SMALLER`` behind them;
``PARSED_ONLY`` says which are not run, and why. ``docs/plugins.md`` is run word for word by test_plugin_docs.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from documentation import LANGUAGES, ROOT, Block, blocks, fill, link_repository, words, write_files

from steerkit import registry
from steerkit.cli import VERBS, main
from steerkit.commands.study import build_parser
from steerkit.commands.study_config import read_config
from steerkit.study.claims import parse_rules

RUN = ("README.md", "docs/quickstart.md", "docs/howto/", "docs/interventions/", "docs/analyzers/", "docs/evaluation.md")
RUN += ("docs/exporters.md", "docs/controls.md", "docs/verifiers.md", "docs/survival.md", "docs/doctor.md")
"""Pages whose blocks are run; the commands of the other pages are the long runs whose figures they report."""
PARSED_ONLY = {
    r"--trainer\.strategy": "starts two processes, as tests/training/test_distributed.py does",
    r"--protocol sinii2025": "reads its sets from the hub",
    r"--device cuda": "needs a GPU",
    r"tiny_(middle|last)\.yaml .*--run_dir runs/(first|middle|penultimate|last)": "two of the six like it are run",
    r"smollm2": "needs plugins/steerkit-smollm2, real problems, vectors that train for a quarter of an hour",
    r"--sweep\.layers": "tests/training/test_sweep.py trains sweeps",
    r"configs/tiny_sweep\.yaml$": "18 policies are too many for a test; its page has a smaller one",
}
"""Regular expression of a steerkit command on a page that is run -> why it is not."""
if "study" in VERBS:
    PARSED_ONLY["^steerkit study"] = "minutes to an hour; tests/study runs small ones"
NOT_OURS = {
    r"make (test|bench|docs)$": "the target is there; make test runs this file",
    r"source ": "the shell's",
    r"(llama/bin/)?pip install ": "installs; the paths and extras that it names are there",
    r"python -m (venv|pytest|steerkit\.zoo\.build) ": "module and paths are there; tests/zoo builds a smaller model",
    r"python benchmarks/": "minutes to hours; its options are in its source",
    r"(vllm|llama-cli|hf) ": "another program, which need not be here",
}
"""Regular expression of another command that is not run -> why. What is in neither table is run by the shell."""
FIT = "--trainer.max_steps 1 --trainer.accelerator cpu --trainer.enable_progress_bar false --samples_every 0"
FIT += " --data.prompts_per_step 2 --data.n_validation 2 --data.n_test 2 --report.k 1 --report.openings 1"
FIT += " --report.temperatures [1.0] --model.samples_per_prompt 8 --model.max_tokens 24 --model.warmup_steps 0"
SMALLER = {
    "fit": FIT,
    "evaluate": "--limit 1 --max_tokens 8 --k 2 --temperature 1",
    "extract": "--n 4 --max_tokens 8",
    "chat": "--max_tokens 8",
    "analyze": "--limit 2 --engine batched",
    "analyze logit_lens": "--max_tokens 8 --streams 2 --controls 2",
    "analyze first_token": "--max_tokens 8 --k 1 --controls 1 --temperatures [1.0]",
    "analyze persistence": "--max_tokens 8",
    "analyze path_patching": "--max_tokens 4 --controls 1",
    "analyze attention_shift": "--max_tokens 8 --controls 1",
    "analyze composition": "--max_tokens 4 --k 1 --scales [1.0]",
    "analyze diff_sae": "--max_tokens 24 --samples 4 --steps 3 --latents 16 --features 1 --controls 1",
    "analyze token_language": "--max_tokens 8 --controls 1",
    "analyze token_scale": "--max_tokens 8 --controls 1",
    "analyze transfer": "--max_tokens 8 --samples 1 --controls 1",
}
"""Verb, or verb and name -> options that make it small; the last of an option counts."""

MISTAKES = "docs/errors.md"
"""Its transcript shows a mistake."""
BLOCKS = blocks()
PAGES = sorted({block.page for block in BLOCKS})
RUN_PAGES = [page for page in PAGES if page.startswith(RUN)]


def of(page: str) -> list[Block]:
    return [block for block in BLOCKS if block.page == page]


def why_not(command: str, table: dict[str, str]) -> str | None:
    """The table's first pattern that the command matches."""
    return next((pattern for pattern in table if re.search(pattern, command)), None)


def smaller(arguments: list[str]) -> list[str]:
    """A steerkit command's words and what makes it small, but not for help and the like."""
    if not arguments or {"--help", "--redraw"} & set(arguments):
        return arguments
    own = [*SMALLER.get(arguments[0], "").split(), *SMALLER.get(" ".join(arguments[:2]), "").split()]
    return [*arguments, *own] if len(arguments) > 1 else arguments


def parse(arguments: list[str]) -> None:
    """The verb's own parser takes the words; a config that they name is there, and valid."""
    verb, rest = arguments[0], [word for word in arguments[1:] if word not in ("--debug", "--allow_code")]
    module = import_module(VERBS[verb][0])
    if verb in ("fit", "validate", "test", "predict"):
        missing = [file for flag, file in pairwise(rest) if flag == "--config" and not Path(file).is_file()]
        assert not missing, missing
        with pytest.raises(SystemExit) as stop:
            main([verb, *rest, "--allow_code", "--print_config"])
        assert stop.value.code == 0, arguments
    elif verb == "plugins":
        if rest[:1] == ["check"]:
            module._check_parser(verb).parse_intermixed_args(rest[1:])
    elif verb == "analyze":  # the options are those of the analyzer
        if rest and not rest[0].startswith("-"):
            module.build_parser(registry.resolve("analyzers", rest[0])).parse_args(rest[1:])
    else:
        module.build_parser().parse_args(rest)


def check_other(command: str) -> None:
    """What a command of another program names is there: paths, make targets, extras, a benchmark's options."""
    found = words(command)
    for word in found[1:]:
        if word.startswith(("plugins/", "tests/", "benchmarks/", "configs/")):
            assert (ROOT / word).exists(), (command, word)
    if found[0] == "make":
        assert re.search(rf"^{found[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    for extra in re.findall(r"\.\[(\w+)\]", command):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), command
    if found[:2] == ["python", "-m"]:
        assert find_spec(found[2]) is not None, command
    elif found[0] == "python" and found[1].startswith("benchmarks/"):
        source = (ROOT / found[1]).read_text() + (ROOT / "benchmarks" / "common.py").read_text()
        own = found[2 : found.index("--")] if "--" in found else found[2:]
        assert all(f'"{word}"' in source for word in own if word.startswith("--")), command


def check_study(path: Path) -> None:
    """A study's config, or its rules alone."""
    content = yaml.safe_load(path.read_text())
    if "claims" in content:
        assert parse_rules(content["claims"])
    if "arms" in content:
        assert read_config(build_parser().parse_args(["--config", str(path), "--out", "runs/study"])).arms


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The folder, and the commands that have run in it."""
    place = tmp_path_factory.mktemp("workplace")
    fill(place)
    return place, set()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for parsing: the configs that commands name are there."""
    link_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # of PEFT, which docs/exporters.md tells of
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's way to ask
@pytest.mark.parametrize("page", RUN_PAGES)
def test_a_page_runs(
    page: str,
    workplace: tuple[Path, set[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, done = workplace
    monkeypatch.chdir(folder)
    write_files(of(page), folder)
    module = ModuleType("a_page")  # a dataclass looks its module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in of(page):
        if block.language == "python" and block.file is None:
            exec(compile(block.text, page, "exec"), vars(module))
        for command in block.commands if block.language == "sh" else []:
            if command not in done:
                run(command, folder, capsys)
                done.add(command)
    if page == "docs/analyzers/README.md":  # its test is the whole contract, half a minute; one run here
        loaded, vector, examples = (vars(module)[name] for name in ("loaded", "vector", "examples"))
        found = module.Shift(controls=2).run(loaded, {"v": vector}, examples[:2], engine="batched")
        assert [row["metric"] for row in found.rows] == ["mean L2 shift"]


def run(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run it, or parse it where a table says so."""
    if command == "make quickstart":
        command = "steerkit fit --config configs/quickstart.yaml"
    arguments = words(command)
    if arguments[0] != "steerkit":
        if why_not(command, NOT_OURS):
            return check_other(command)
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        subprocess.run(command, shell=True, check=True, cwd=folder, env={"PATH": path}, timeout=60)
        return None
    if why_not(command, PARSED_ONLY):
        return parse(arguments[1:])
    try:
        code = main(smaller(arguments[1:]))
    except SystemExit as stop:  # --help
        code = stop.code
    shown = capsys.readouterr()
    assert code == 0, f"{command}\n{shown.out[-2000:]}\n{shown.err[-2000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_parses(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the page's run does not try: its YAML, its transcripts, and all of a page that is not run."""
    write_files(of(page), folder)
    fragments = []
    for number, block in enumerate(of(page)):
        if block.language == "python":
            compile(block.text, page, "exec")
        elif block.language == "yaml":
            fragments.append(folder / f"block{number}.yaml")
            fragments[-1].write_text(block.text)
        if page != MISTAKES and (block.language == "console" or page not in RUN_PAGES):
            for command in dict.fromkeys(block.commands):
                arguments = words(command)
                if arguments[0] == "steerkit":
                    parse(arguments[1:])
                elif why_not(command, NOT_OURS):
                    check_other(command)
    of_studies = [path for path in fragments if {"arms", "claims"} & set(yaml.safe_load(path.read_text()))]
    for path in of_studies:
        check_study(path)
    # Each must be a valid config: an unknown key in any of them is refused.
    if fits := [path for path in fragments if path not in of_studies]:
        parse(["fit", *(word for path in fits for word in ("--config", str(path)))])
    capsys.readouterr()


def test_a_mistake_is_answered_as_the_page_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in of(MISTAKES) if block.language == "console"]
    (command,) = block.commands
    assert main(words(command)[1:]) == 2
    assert capsys.readouterr().err == block.text.partition("\n")[2]


def test_the_tables_say_what_is_there() -> None:
    """Every block is of a kind that is looked at, every verb is documented, no exception outlives its command."""
    assert {block.language for block in BLOCKS} <= LANGUAGES
    commands = [command for block in BLOCKS for command in block.commands]
    assert {words(c)[1] for c in commands if c.startswith("steerkit ")} >= set(VERBS) - {"validate", "test", "predict"}
    of_run = [c for block in BLOCKS if block.page in RUN_PAGES and block.language == "sh" for c in block.commands]
    assert all(any(re.search(pattern, c) for c in commands) for pattern in [*PARSED_ONLY, *NOT_OURS])
    assert all(block.commands for block in BLOCKS if block.page.startswith("configs/")), "a config without its command"
    assert sum(c.startswith("steerkit ") and not why_not(c, PARSED_ONLY) for c in of_run) > 50


def test_a_wrong_command_is_seen(folder: Path) -> None:
    from steerkit.errors import SteerkitError

    for wrong in ("evaluate --modell x --out y", "analyze geometry --out y --vektor z", "plugins check x --kin y"):
        with pytest.raises(SteerkitError):
            parse(wrong.split())
    with pytest.raises(AssertionError):
        parse(["fit", "--config", "configs/nope.yaml"])
    for wrong in (
        "pip install -e plugins/none",
        "make nothing",
        "python benchmarks/arms.py --no",
        "pip install '.[no]'",
    ):
        with pytest.raises(AssertionError):
            check_other(wrong)
