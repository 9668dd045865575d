"""``steerkit evaluate``: accuracy of a model and its vectors on a data set or on benchmark suites."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from steerkit.commands.console import check_base, command_line, prepare, progress_display
from steerkit.commands.parsing import Parser
from steerkit.datasets import PromptTemplate, dataset_name, open_dataset, subset
from steerkit.datasets.suites import SETS, SUITES, load_suite
from steerkit.errors import DataError, SteerkitError
from steerkit.evaluation.arms import Arm, Evaluation, Protocol
from steerkit.evaluation.journal import Journal
from steerkit.evaluation.protocols import PRESETS, Preset, find_preset, resolve, verifier_of
from steerkit.evaluation.results import results_table, write_results
from steerkit.evaluation.resume import evaluation_settings, finished_record
from steerkit.evaluation.rows import MEAN
from steerkit.evaluation.seen import seen_problems
from steerkit.evaluation.suite import FAULTS, Suite, measure
from steerkit.files import output_folder
from steerkit.models import LoadedModel, load_model
from steerkit.rollouts.prompting import context_length
from steerkit.types import Example
from steerkit.vectors import SteeringVector


def build_parser() -> Parser:
    """The options of ``steerkit evaluate``; each can also stand in a YAML file given by ``--config``."""
    parser = Parser(prog="steerkit evaluate", description=__doc__)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add("--model", required=True, help="zoo name or plugin, local folder, or hub id")
    add("--vector", nargs="*", default=[], help="folder or hub id of a steering vector; several allowed")
    add("--suite", nargs="+", type=str, default=None, help=f"suites ({', '.join(SUITES)}) or sets: {', '.join(SETS)}")
    add(
        "--data",
        type=str | dict,
        default=None,
        help="data set plugin, file, or hub id; default: what the first vector was trained on, else arithmetic",
    )
    add("--data_root", type=str | None, default=None, help="folder where relative data paths start, and suites lie")
    add("--split", default="test", choices=["train", "validation", "test"], help="of --data; suites are test sets")
    add(
        "--limit",
        type=int | None,
        default=argparse.SUPPRESS,
        help="problems at most of each set; null for all (default: 256 of --data, all of a suite)",
    )
    add("--protocol", type=str | None, default=None, help=f"preset that flags override: {', '.join(PRESETS)}")
    add("--temperature", nargs="+", type=float, default=None, help="0 is greedy; default: the protocol's, else 0 1")
    add("--k", type=int | None, default=None, help="samples a problem at temperatures above 0; default 1")
    add("--top_p", type=float, default=1.0, help="draw from the likeliest tokens that have this probability together")
    add("--top_k", type=int, default=0, help="draw from this many likeliest tokens; 0: from all")
    add("--seeds", type=int | None, default=None, help="sampling seeds, each with k samples; default 1")
    add("--max_tokens", type=int | None, default=None, help="default: the protocol's, the vector's, else 128")
    add("--seed", type=int, default=1, help="of the samples and the bootstrap")
    add("--verifier", type=str | dict | None, default=None, help="default: what the vector was trained with, else math")
    add("--sampler", type=str | dict, default="fast")
    add("--batch_tokens", type=int | None, default=65536, help="tokens (prompts and answers) decoded at once")
    add("--random_control", type=bool, default=False, help="add a norm-matched random vector's row")
    add("--train_data", nargs="+", type=str, default=[], help="flag problems seen in these; default: the vectors' own")
    add(
        "--template",
        type=PromptTemplate | None,
        default=None,
        help="default: the vector's, else the paper's prompt",
    )
    add("--force", action="store_true", help="accept a base with another fingerprint than a vector's")
    add("--dtype", default="auto")
    add("--device", type=str | None, default=None, help="default: cuda if there is one, else cpu")
    add("--trust_remote_code", type=bool, default=False)
    add("--format", default="steerkit", choices=["steerkit", "lm-eval"], help="lm-eval: its files too, in OUT/lm-eval")
    add("--restart", type=bool, default=False, help="set what is in --out aside and measure anew")
    add("--out", required=True, help="folder for results.json and samples.parquet; a killed evaluation goes on there")
    return parser


def default_device() -> str:
    """``cuda``, ``mps`` or ``cpu``: what this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def arms_of(paths: Sequence[str], random_control: bool, seed: int) -> list[Arm]:
    """The base, and one arm (and on demand its control) for each vector."""
    arms = [Arm("base")]
    for path in paths:
        vector = SteeringVector.from_pretrained(path)
        suffix = "" if len(paths) == 1 else f" {path}"
        receipts = vector.metadata.receipts
        facts = {
            "train_seed": receipts.get("seed"),
            "lr": receipts.get("lr"),
            "trainable_params": sum(t.numel() for tensors in vector.tensors.values() for t in tensors.values()),
        }
        arms.append(Arm(f"steered{suffix}", vector, facts=facts))
        if random_control:
            arms.append(Arm(f"random{suffix}", vector.random_like(seed)))
    return arms


def problem_sets(options: Namespace, preset: Preset, receipts: Mapping[str, Any]) -> dict[str, list[Example]]:
    """Name -> problems, by ``--suite``, else ``--data``, else the preset's suite, else the vector's data set."""
    if options.suite is not None and options.data is not None:
        raise SteerkitError("Give --suite or --data, not both.")
    suite = options.suite or ([preset.suite] if preset.suite and options.data is None else None)
    if suite is not None:
        if options.split != "test":
            raise SteerkitError(f"Benchmark suites are test sets: --split {options.split} needs --data.")
        limit = options.get("limit")
        return {name: subset(rows, limit) for name, rows in load_suite(suite, options.data_root).items()}
    spec = options.data or receipts.get("dataset_spec") or "arithmetic"
    try:
        examples: list[Example] = open_dataset(spec, options.data_root).load(options.split)
    except DataError as error:
        if options.data is None and "dataset_spec" in receipts:
            raise DataError(f"{error} (The vector was trained on {dataset_name(spec)}: give --data_root.)") from error
        raise
    if not examples:
        raise DataError(f"The {options.split} split of {spec!r} is empty.")
    return {dataset_name(spec): subset(examples, options.get("limit", 256))}


def run(verb: str, arguments: Sequence[str]) -> int:
    """Measure (or go on measuring), print the table, write the results."""
    options = build_parser().parse_args(list(arguments))
    options = build_parser().instantiate(options)
    prepare()
    with output_folder(options.out) as out:
        return _run(options, out, command_line(verb, arguments))


def _run(options: Namespace, out: Path, command: str) -> int:
    preset = find_preset(options.protocol)
    arms = arms_of(options.vector, options.random_control, options.seed)
    receipts = [dict(arm.vector.metadata.receipts) for arm in arms if arm.vector and arm.name.startswith("steered")]
    first: dict[str, Any] = receipts[0] if receipts else {}
    verifier, reason = (options.verifier, "--verifier") if options.verifier is not None else verifier_of(receipts)
    sets = problem_sets(options, preset, first)
    seen = seen_problems(sets, receipts, options.train_data, options.data_root)
    prompt = options.template or PromptTemplate.from_dict(first.get("prompt", {}))
    loaded = load_model(
        options.model,
        dtype=options.dtype,
        device=options.device or default_device(),
        trust_remote_code=options.trust_remote_code,
    )
    other_base = {arm.name: check_base(arm.vector, loaded.base, options.force) for arm in arms if arm.vector}
    flags = {**options.as_dict(), "verifier": verifier}
    protocol, overridden = resolve(preset, flags, context_length(loaded.base), first, list(sets))
    suite = Suite(sets, seen).fit(loaded, arms, protocol, prompt)
    settings = evaluation_settings(loaded, arms, suite.sets, protocol, prompt)
    record, aside = finished_record(out, settings, options.restart)
    for line in aside:
        print(line)
    if record is None:
        with Journal(out, settings) as journal:
            _say(options.protocol, preset, overridden, verifier, reason, suite.too_long)
            evaluation = _measured(loaded, arms, suite, protocol, prompt, journal)
        extra = {
            "protocol": options.protocol,
            "overridden": overridden,
            "verifier": verifier,
            "verifier_from": reason,
            "other_base": {name: text for name, text in other_base.items() if text},
            "settings": settings,
        }
        vector = " ".join(options.vector) or None
        write_results(out, evaluation, options.model, vector, options.seed, command, extra)
        rows, done = evaluation.rows, f"Wrote {out / 'results.json'} and {out / 'samples.parquet'}."
    else:
        rows, done = record["rows"], f"{out / 'results.json'} has these results already: nothing was left to do."
    Journal.discard(out)
    from rich.console import Console

    names = " ".join(options.suite or []) or ", ".join(sets)
    title = f"{options.model}, {names}" if len(sets) > 1 else f"{options.model}, {options.split} split of {names}"
    Console().print(results_table(rows, title))
    print(done)
    causes = ", ".join(f"{cause} {count}" for cause, count in _causes(rows).most_common())
    if causes:
        print(f"The verifier failed on some answers ({causes}): steerkit verify --replay {out / FAULTS}")
    if options.format == "lm-eval":
        _export(out)
    return 0


def _causes(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Faults by cause over all rows but those that average others."""
    total: Counter[str] = Counter()
    for row in rows:
        if row["set"] != MEAN:
            total.update(row.get("fault_causes", {}))
    return total


def _say(
    name: str | None,
    preset: Preset,
    overridden: Sequence[str],
    verifier: str | Mapping[str, Any],
    reason: str,
    too_long: Mapping[str, int],
) -> None:
    if name is not None:
        changed = f" Set by flags instead: {', '.join(overridden)}." if overridden else ""
        print(f"Protocol {name} ({preset.about}).{changed}")
    left_out = ", ".join(f"{count} of {set_}" for set_, count in too_long.items() if count)
    if left_out:
        print(f"Left out, since the prompt leaves no room for the answer: {left_out}.")
    name = verifier if isinstance(verifier, str) else " ".join(f"{key}={value}" for key, value in verifier.items())
    print(f"Verifier: {name} ({reason}).", flush=True)


def _measured(
    loaded: LoadedModel,
    arms: Sequence[Arm],
    suite: Suite,
    protocol: Protocol,
    prompt: PromptTemplate,
    journal: Journal,
) -> Evaluation:
    """Each sample goes to the journal; Ctrl-C, and any other end, leaves what there is for the next time."""
    if journal.done:
        print(f"Goes on from {len(journal.done):,} samples in {journal.folder}.", flush=True)
    try:
        with progress_display() as progress:
            return Evaluation(*measure(loaded, arms, suite, protocol, prompt, progress, journal=journal))
    except KeyboardInterrupt:
        print(f"{len(journal.done):,} samples are in {journal.folder}: the same command goes on from there.")
        raise


def _export(out: Path) -> None:
    import json

    from steerkit.evaluation.compare import read_samples
    from steerkit.evaluation.lm_eval import write_lm_eval

    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for path in write_lm_eval(out / "lm-eval", record, read_samples(out)):
        print(f"Wrote {path} and its samples.")
