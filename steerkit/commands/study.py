"""``steerkit study``: arms, controls, analyses, verdicts and a report, as one work list that a kill can't harm.

Everything in it is a command of steerkit: ``items.json`` in ``--out`` lists them, and the report shows each beside its
figure. The same command goes on with what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.commands.console import command_line, prepare
from steerkit.commands.parsing import Parser
from steerkit.commands.study_checks import base_and_data, check_commands, check_rules, make_planner, write_files
from steerkit.commands.study_config import CONFIG, read_config, saved_config
from steerkit.errors import SteerkitError, Stopped
from steerkit.files import ensure_folder, remove_unfinished, set_aside
from steerkit.study.config import ChoiceConfig, StudyConfig
from steerkit.study.items import WorkList
from steerkit.study.values import refuse_untyped_code

if TYPE_CHECKING:
    from steerkit.models import LoadedModel
    from steerkit.study.plan import Plan, Planner


def build_parser() -> Parser:
    """The options of ``steerkit study``; those of the study itself usually stand in a YAML file given by
    ``--config``."""
    parser = Parser(prog="steerkit study", description=__doc__)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with the study")
    add("--out", required=True, help="folder of the study; a killed one goes on there")
    add("--quick", action="store_true", help="the short form: with the config's quick_changes laid over the rest")
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
        return _report(out, saved_config(out))
    config = read_config(options)
    refuse_untyped_code(config.record())
    check_rules(config)
    workers = options.workers if options.workers is not None else max(1, os.cpu_count() or 1)
    if workers < 1:
        raise SteerkitError(f"workers must be at least 1, got {workers}.")
    if (out / CONFIG).is_file() and not options.dry_run:
        with _alone(out):  # said before the base is loaded and the data read
            if not options.restart:
                _same_study(out, config)
    loaded, lengths = base_and_data(config)
    planner = make_planner(config, out, loaded, lengths)
    check_commands(config, loaded, lengths)
    if options.dry_run:
        _say_plan(planner.plan, workers, full=True)
        from steerkit.doctor.memory import size
        from steerkit.study.cost import memory_of

        each = memory_of(loaded, config, lengths)
        print(f"Memory: about {size(each)} a worker, {size(workers * each)} for {workers}.")
        return 0
    if options.restart and out.is_dir():
        with _alone(out):
            pass  # nobody works there
        set_aside(out)
    ensure_folder(out)
    with _alone(out):
        _same_study(out, config)
        remove_unfinished(out)
        write_files(out, config, planner.plan)
        work = WorkList.open(out, planner.plan.items)
        _say_plan(planner.plan, workers)
        _work(work, planner, workers, arguments)
        _finish(out, config, planner, work, loaded, command_line(verb, arguments))
    return 0 if not work.failed else 1


def _same_study(out: Path, config: StudyConfig) -> None:
    """A folder is one study's: other settings would mix results.

    Raises:
        SteerkitError: naming what differs, or for a folder that holds something else.
    """
    from steerkit.evaluation.journal import differences

    if (out / CONFIG).is_file():
        there = saved_config(out).record()
        if found := differences(there, config.record()):
            raise SteerkitError(
                f"{out} holds a study of other settings ({found}): give another --out, or set it aside with "
                f"--restart true."
            )
    elif {entry.name for entry in out.iterdir()} - {"lock"}:
        raise SteerkitError(f"--out {out} holds other files and no study: give another folder.")


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
    print(f"Wrote {out / 'results.json'}, {out / 'samples.parquet'} and {page}.")


def _text(loaded: LoadedModel, token: int) -> str:
    return str(loaded.tokenizer.decode([token]))


def _report(out: Path, config: StudyConfig) -> int:
    """Assemble, judge and report what there is."""
    import json

    refuse_untyped_code(config.record())
    check_rules(config)
    loaded, lengths = base_and_data(config)
    planner = make_planner(config, out, loaded, lengths)
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
