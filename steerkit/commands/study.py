"""``steerkit study``: arms, controls, analyses, verdicts and a report, as one work list that a kill can't harm.

Everything in it is a command of steerkit: ``items.json`` in ``--out`` lists them, and the report shows each beside its
figure. The same command goes on with what is missing.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from steerkit import registry
from steerkit.commands.console import command_line, prepare
from steerkit.commands.parsing import Parser
from steerkit.errors import SteerkitError, Stopped
from steerkit.files import ensure_folder, remove_unfinished, set_aside, write_text
from steerkit.study.config import (
    AnalysisConfig,
    ArmConfig,
    ChoiceConfig,
    RecipientConfig,
    StudyConfig,
    merged,
    refuse_untyped_code,
)
from steerkit.study.items import WorkList

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from steerkit.models import LoadedModel
    from steerkit.study.plan import Plan, Planner

CONFIG = "study.yaml"
SECTIONS: Mapping[str, type] = {"arms": ArmConfig, "analyses": AnalysisConfig, "recipients": RecipientConfig}


def build_parser() -> Parser:
    """The options of ``steerkit study``; those of the study itself usually stand in a YAML file given by
    ``--config``."""
    parser = Parser(prog="steerkit study", description=__doc__)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with the study")
    add("--out", required=True, help="folder of the study; a killed one goes on there")
    add("--quick", action="store_true", help="the short form: what the config's 'quick' makes other")
    add("--dry_run", action="store_true", help="check, print the items with expected time and memory, and stop")
    add("--workers", type=int | None, default=None, help="processes; default: one a core")
    add("--report_only", action="store_true", help="verdicts and report again, from what is in --out")
    add("--restart", type=bool, default=False, help="set what is in --out aside and begin anew")
    add("--name", type=str, default="study", help="what the report calls it")
    add("--base", type=str | None, default=None, help="zoo name or plugin, local folder, or hub id")
    add("--fit", type=dict[str, Any], default={}, help="settings of every steerkit fit")
    add("--arms", type=dict[str, dict[str, Any] | None], default={}, help="name -> arm; docs/study.md")
    add("--seeds", type=list[int], default=[0, 1, 2], help="training seeds")
    add("--temperatures", type=list[float], default=[0.0, 1.0], help="of the test samples")
    parser.add_class_arguments(ChoiceConfig, "choice")
    add("--analyze", type=dict[str, Any], default={}, help="flags of every steerkit analyze")
    add("--analyses", type=dict[str, dict[str, Any] | None], default={}, help="name -> analysis; docs/study.md")
    add("--recipients", type=dict[str, dict[str, Any] | None], default={}, help="name -> other base, for transfer")
    add("--screen", type=dict[str, Any] | None, default=None, help="flags of an evaluate of training problems, first")
    add("--claims", type=dict[str, Any], default={}, help="the rules of the verdicts; docs/claims.md")
    add("--quick_changes", type=dict[str, Any], default={}, help="what is other with --quick: merged, null removes")
    add("--data_root", type=str | None, default=None, help="folder where relative data paths start")
    return parser


def run(verb: str, arguments: Sequence[str]) -> int:
    """Check and plan; do (or go on doing) what is to do; assemble, judge, report."""
    options = build_parser().parse_args(list(arguments))
    prepare()
    out = Path(options.out)
    if options.report_only:
        return _report(out, _read_config(out))
    config = read_config(options)
    refuse_untyped_code(config)
    _check_rules(config)
    workers = options.workers if options.workers is not None else max(1, os.cpu_count() or 1)
    if workers < 1:
        raise SteerkitError(f"workers must be at least 1, got {workers}.")
    loaded, prompt_tokens = _base_and_data(config)
    planner = _planner(config, out, loaded, prompt_tokens)
    _check_fits(config, loaded, prompt_tokens)
    if options.dry_run:
        _say_plan(planner.plan, workers, full=True)
        from steerkit.doctor.memory import size
        from steerkit.study.cost import memory_of

        each = memory_of(loaded, config, prompt_tokens)
        print(f"Memory: about {size(each)} a worker, {size(workers * each)} for {workers}.")
        return 0
    if options.restart:
        set_aside(out)
    ensure_folder(out)
    with _alone(out):
        _same_study(out, config)
        remove_unfinished(out)
        _write_files(out, config, planner.plan)
        work = WorkList.open(out, planner.plan.items)
        _say_plan(planner.plan, workers)
        _work(work, planner, workers, arguments)
        _finish(out, config, planner, work, loaded, command_line(verb, arguments))
    return 0 if not work.failed else 1


def read_config(options: Namespace) -> StudyConfig:
    """The study that options and config file describe, the quick form where it was asked for.

    Raises:
        SteerkitError: one line, with the place.
    """
    plain = {key: value for key, value in options.as_dict().items() if key != "config"}
    given = _sections(plain)
    config = StudyConfig.read(given)
    quick = _sections(merged(plain, plain["quick_changes"]))
    short = StudyConfig.read(quick)  # always: a mistake there shows before the study is needed in a hurry
    return short if options.quick else config


def _sections(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the entries of each section checked, and their defaults filled in."""
    if not plain.get("base"):
        raise SteerkitError("Give --base: the model that is studied.")
    if not plain.get("arms"):
        raise SteerkitError("Give --arms: a study without arms measures nothing.")
    result = {key: value for key, value in plain.items() if key not in ("quick", "quick_changes")}
    for section, kind in SECTIONS.items():
        parser = Parser(prog="steerkit study")
        parser.add_class_arguments(kind)
        entries = {key: entry for key, entry in (plain.get(section) or {}).items() if entry is not None}
        result[section] = {}
        for key, entry in entries.items():
            try:
                result[section][key] = parser.parse_object(entry).as_dict()
            except SteerkitError as error:
                raise SteerkitError(f"{section}.{key}: {error}") from None
    choice = Parser(prog="steerkit study")
    choice.add_class_arguments(ChoiceConfig)
    try:
        result["choice"] = choice.parse_object(dict(plain.get("choice") or {})).as_dict()
    except SteerkitError as error:
        raise SteerkitError(f"choice: {error}") from None
    return result


def _read_config(out: Path) -> StudyConfig:
    path = out / CONFIG
    try:
        return StudyConfig.read(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise SteerkitError(f"{out} holds no study ({CONFIG}: {' '.join(str(error).split())}).") from None


def _check_rules(config: StudyConfig) -> None:
    """Before anything is run: a rule with a mistake is no rule."""
    from importlib import import_module
    from importlib.util import find_spec

    if config.claims and find_spec("steerkit.study.claims") is not None:
        import_module("steerkit.study.claims").parse_rules(config.claims)


def _base_and_data(config: StudyConfig) -> tuple[LoadedModel, int]:
    """The base and the mean length of training prompts; a mistake in either shows now."""
    from steerkit.commands.evaluate import default_device
    from steerkit.datasets import PromptTemplate, open_dataset
    from steerkit.models import load_model

    data, model = config.fit.get("data", {}), config.fit.get("model", {})
    source = open_dataset(data.get("dataset", "arithmetic"), config.data_root)
    examples = {split: source.load(split) for split in ("train", "validation")}
    test = data.get("test_dataset")
    examples["test"] = (source if test is None else open_dataset(test, config.data_root)).load("test")
    for split, found in examples.items():
        if not found:
            raise SteerkitError(f"The {split} split of the study's data is empty.")
    loaded = load_model(config.base, dtype=model.get("dtype", "auto"), device=default_device())
    template = PromptTemplate.from_dict(model.get("template") or {})
    shown = [template.render(loaded.tokenizer, example) for example in examples["train"][:16]]
    lengths = [len(template.encode(loaded.tokenizer, text)) for text in shown]
    return loaded, round(sum(lengths) / len(lengths))


def _planner(config: StudyConfig, out: Path, loaded: LoadedModel, prompt_tokens: int) -> Planner:
    from steerkit.study.cost import Costs, core_speed, describe
    from steerkit.study.plan import Planner
    from steerkit.study.plan_analyses import add_analyses

    base = describe(loaded, prompt_tokens)
    planner = Planner(config, out, base, Costs(base, core_speed()))
    planner.screen()
    planner.fits()
    add_analyses(planner)
    return planner


def _check_fits(config: StudyConfig, loaded: LoadedModel, prompt_tokens: int) -> None:
    """Let the verbs' own parsers read each command once, so that a typo shows before an hour of work.

    Raises:
        SteerkitError: the verb's own line.
    """
    from steerkit.commands import analyze, train

    with tempfile.TemporaryDirectory() as name:
        planner = _planner(config, Path(name), loaded, prompt_tokens)
        _write_files(Path(name), config, planner.plan)
        seen = set()
        for item in planner.plan.items:
            arm = item.id.split("/")[0]
            try:
                if item.kind == "analyze":
                    target = registry.resolve("analyzers", item.argv[1])
                    words = [word for word in item.argv[2:] if word != "--allow_code"]
                    parsed = analyze.build_parser(target).parse_args(words)
                    registry.instantiate(
                        target, {f.name: parsed[f.name] for f in dataclasses.fields(target)}, target.name
                    )
                elif item.kind in ("fit", "sweep") and arm not in seen:
                    seen.add(arm)
                    words = [_readable(word) for word in item.argv[1:] if word != "--allow_code"]
                    with redirect_stdout(io.StringIO()):
                        train.run("fit", [*words, "--print_config"])
            except SteerkitError as error:
                raise SteerkitError(f"{item.id}: {error}") from None
            except SystemExit:
                pass  # --print_config ends this way


def _readable(word: str) -> str:
    """A number in the place of a rate that is not chosen yet."""
    return "0.1" if word.startswith("<rate of ") else word


def _same_study(out: Path, config: StudyConfig) -> None:
    """A folder is one study's: other settings would mix results.

    Raises:
        SteerkitError: naming what differs, or for a folder that holds something else.
    """
    from steerkit.evaluation.journal import differences

    if (out / CONFIG).is_file():
        there = _read_config(out).record()
        if found := differences(there, config.record()):
            raise SteerkitError(
                f"{out} holds a study of other settings ({found}): give another --out, or set it aside with "
                f"--restart true."
            )
    elif {entry.name for entry in out.iterdir()} - {"lock"}:
        raise SteerkitError(f"--out {out} holds other files and no study: give another folder.")


def _write_files(out: Path, config: StudyConfig, plan: Plan) -> None:
    for name, content in {CONFIG: config.record(), **plan.files}.items():
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != text:
            write_text(out / name, text)


def _say_plan(plan: Plan, workers: int, full: bool = False) -> None:
    """How many items, how long; with ``full`` each of them."""
    from steerkit.study.run import clock, time_left

    work = WorkList(Path(), plan.items)
    if full:
        for item in plan.items:
            what = item.command or f"choose {'an opening' if 'opening' in item.about else 'a learning rate'}"
            print(f"{item.id}  ({clock(item.expected)})\n    {what}" if item.command else f"{item.id}\n    {what}")
    kinds = {"screen": "screen", "fit": "fits", "sweep": "sweeps", "choose": "choices", "analyze": "analyses"}
    counts = ", ".join(f"{n} {name}" for kind, name in kinds.items() if (n := _count(plan, kind)))
    print(
        f"{len(plan.items)} items ({counts}), about {clock(time_left(work, workers))} on {workers} "
        f"process{'es' * (workers > 1)}.",
        flush=True,
    )
    for one in plan.left_out:
        print(f"Left out: {one['what']} ({one['reason']}).", flush=True)


def _count(plan: Plan, kind: str) -> int:
    return sum(item.kind == kind for item in plan.items)


def _work(work: WorkList, planner: Planner, workers: int, arguments: Sequence[str]) -> None:
    from steerkit.study.run import Runner

    threads = max(1, (os.cpu_count() or 1) // workers)
    runner = Runner(work, planner.arms, workers, threads, arguments, lambda line: print(line, flush=True))
    try:
        runner.run()
    except Stopped as stop:
        done = f"{work.count('done')} of {len(work.items)} items are done"
        raise Stopped(stop.signum, f"stopped by {stop.cause}; {done}: the same command goes on.") from None


def _finish(out: Path, config: StudyConfig, planner: Planner, work: WorkList, loaded: LoadedModel, command: str
            ) -> None:  # fmt: skip
    from steerkit.study.finish import finish
    from steerkit.study.record import assemble

    record = assemble(out, config, planner.arms, planner.plan, work, lambda token: _text(loaded, token), command)
    verdicts, page = finish(out, record, config.claims)
    for verdict in verdicts:
        print(f"{verdict['claim']}: {verdict['outcome']}  ({verdict['title']})")
    for one in work.failed:
        print(f"Failed: {one['id']}: {one['error']}")
    print(f"Wrote {out / 'results.json'} and {out / 'samples.parquet'}" + (f", {page}." if page else "."))


def _text(loaded: LoadedModel, token: int) -> str:
    return str(loaded.tokenizer.decode([token]))


def _report(out: Path, config: StudyConfig) -> int:
    """Assemble, judge and report what there is."""
    import json

    refuse_untyped_code(config)
    _check_rules(config)
    loaded, prompt_tokens = _base_and_data(config)
    planner = _planner(config, out, loaded, prompt_tokens)
    with _alone(out):
        work = WorkList.open(out, planner.plan.items)
        work.restore()
        record = json.loads((out / "results.json").read_text()) if (out / "results.json").is_file() else {}
        _finish(out, config, planner, work, loaded, record.get("command", ""))
    return 0


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder: two studies in one would both do each item.

    Raises:
        SteerkitError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with open(out / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SteerkitError(f"Another process works on {out}: wait for it, or give another --out.") from None
        except OSError:  # a file system without locks
            pass
        yield
