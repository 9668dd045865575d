"""``steerkit analyze NAME``: what vectors do inside a model; numbers, controls and figures in one folder.

``steerkit analyze`` lists the analyzers, ``steerkit analyze NAME --help`` shows one's settings, and
``steerkit analyze --redraw DIR`` makes the figures of a saved analysis again.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from steerkit import registry
from steerkit.analysis.base import Analyzer, check_final
from steerkit.analysis.plots import draw
from steerkit.analysis.plots.default import compact_rows
from steerkit.analysis.prompts import read_prompts
from steerkit.analysis.result import AnalysisResult
from steerkit.commands.console import check_base, command_line, prepare, progress_display
from steerkit.commands.evaluate import default_device
from steerkit.commands.parsing import Parser
from steerkit.datasets import PromptTemplate
from steerkit.errors import SteerkitError, VectorError
from steerkit.files import output_folder
from steerkit.models import load_model
from steerkit.types import Example
from steerkit.vectors import SteeringVector


def build_parser(target: type[Analyzer]) -> Parser:
    """The options of ``steerkit analyze NAME``: those of every analyzer, and its own settings."""
    about = inspect.cleandoc(target.__doc__ or "").partition("\n\nArgs:")[0]  # each setting has its own line below
    parser = Parser(prog=f"steerkit analyze {target.name}", description=about)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add("--model", required=True, help="zoo name or plugin, local folder, or hub id")
    add(
        "--vector",
        nargs="+",
        action="extend",
        type=str,
        default=[],
        help="folder or hub id of a steering vector, or NAME=folder; several allowed",
    )
    add(
        "--prompts",
        type=str | dict,
        default=None,
        help="data set plugin, file, or hub id; default: what the first vector was trained on, else arithmetic",
    )
    add("--data_root", type=str | None, default=None, help="folder where relative data paths start")
    add("--split", default="test", choices=["train", "validation", "test"], help="of --prompts")
    add("--limit", type=int | None, default=32, help="prompts at most; null for all")
    add("--template", type=PromptTemplate | None, default=None, help="default: the vector's, else the paper's prompt")
    add("--engine", default="nnsight", choices=["nnsight", "batched"], help="the same numbers; batched is faster")
    add("--seed", type=int, default=0, help="of controls, samples and bootstraps")
    add("--batch_tokens", type=int, default=8192, help="padded tokens of one forward pass, about")
    add("--force", action="store_true", help="accept a base with another fingerprint than a vector's")
    add("--dtype", default="auto")
    add("--device", type=str | None, default=None, help="default: cuda if there is one, else cpu")
    add("--trust_remote_code", type=bool, default=False)
    add("--figures", type=bool, default=True, help="also draw; steerkit analyze --redraw OUT does it later")
    add("--restart", type=bool, default=False, help="set what is in --out aside and analyse anew")
    add("--out", required=True, help="folder of the result; a killed analysis goes on there")
    parser.add_class_arguments(target)
    return parser


def run(verb: str, arguments: Sequence[str]) -> int:
    """Analyse (or go on analysing), save, draw, and print the rows."""
    if arguments and arguments[0] == "--redraw":
        if len(arguments) != 2:
            raise SteerkitError("Give one folder: steerkit analyze --redraw DIR.")
        return _say_drawn(draw(arguments[1]).page)
    if not arguments or arguments[0].startswith("-"):
        return _list(verb, arguments)
    target = registry.resolve("analyzers", arguments[0])
    if not (isinstance(target, type) and issubclass(target, Analyzer)):
        raise SteerkitError(f"{arguments[0]} is no subclass of steerkit.analysis.Analyzer.")
    check_final(target)
    parser = build_parser(target)
    options = parser.parse_args(list(arguments[1:]))
    options = parser.instantiate(options)
    prepare()
    analyzer = _made(target, options)
    with output_folder(options.out) as out:
        return _run(analyzer, options, out, command_line(verb, arguments))


def _run(analyzer: Analyzer, options: Namespace, out: Path, command: str) -> int:
    if options.batch_tokens < 1:
        raise SteerkitError(f"batch_tokens must be at least 1, got {options.batch_tokens}.")
    vectors = load_vectors(options.vector)
    examples: list[Example] = []
    source = ""
    if analyzer.needs_prompts:
        receipts = next(iter(vectors.values())).metadata.receipts if vectors else {}
        spec = options.prompts or receipts.get("dataset_spec") or "arithmetic"
        examples, source = read_prompts(spec, options.split, options.limit, options.data_root, analyzer.needs_answers)
    loaded = load_model(
        options.model,
        dtype=options.dtype,
        device=options.device or default_device(),
        trust_remote_code=options.trust_remote_code,
    )
    for name, vector in vectors.items():
        try:
            check_base(vector, loaded.base, options.force)
        except VectorError as error:
            raise VectorError(f"{name}: {error}") from None
    try:
        with progress_display() as progress:
            result = analyzer.run(
                loaded, vectors, examples, engine=options.engine, seed=options.seed, folder=out,
                template=options.template, source=source, batch_tokens=options.batch_tokens, progress=progress,
                command=command, restart=options.restart,
            )  # fmt: skip
    except KeyboardInterrupt:
        if (out / "parts").exists():
            print(f"What is finished is in {out / 'parts'}: the same command goes on from there.")
        raise
    _show(result)
    print(f"Wrote {out / 'analysis.json'} ({result.seconds:.1f} s).")
    return _say_drawn(draw(out, analyzer).page) if options.figures else 0


def load_vectors(specs: Sequence[str]) -> dict[str, SteeringVector]:
    """Name -> vector, from ``NAME=folder`` or folders, which are named by their last parts that differ.

    Raises:
        VectorError: if one can't be read.
        SteerkitError: for two of one name.
    """
    pairs = [(name, place) if sep else ("", spec) for spec in specs for name, sep, place in [spec.partition("=")]]
    plain = [Path(place).parts for name, place in pairs if not name]
    found: dict[str, SteeringVector] = {}
    for name, place in pairs:
        label = name or _short_name(Path(place).parts, plain)
        if label in found:
            raise SteerkitError(f"Two vectors are named {label!r}: write --vector NAME=folder.")
        found[label] = SteeringVector.from_pretrained(place)
    return found


def _short_name(parts: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    """``last`` for runs/last/vector: the folder's own name says nothing where training wrote it."""
    kept = parts[:-1] if len(parts) > 1 and parts[-1] == "vector" else parts
    rest = [other[:-1] if len(other) > 1 and other[-1] == "vector" else other for other in others]
    for length in range(1, len(kept) + 1):
        if sum(other[-length:] == kept[-length:] for other in rest) == 1:
            return "/".join(kept[-length:])
    return "/".join(kept)


def _made(target: type[Analyzer], options: Namespace) -> Analyzer:
    settings = {f.name: options[f.name] for f in dataclasses.fields(target)}  # type: ignore[arg-type]
    made: Analyzer = registry.instantiate(target, settings, f"{target.name!r} (steerkit.analyzers)")
    return made


def _list(verb: str, arguments: Sequence[str]) -> int:
    if arguments and arguments[0] not in ("-h", "--help"):
        raise SteerkitError(f"The analyzer's name comes first: steerkit analyze NAME {arguments[0]} ...")
    print(__doc__.strip().replace("``", ""))
    print("\nAnalyzers:")
    for entry in registry.entries("analyzers"):
        about = (registry.resolve("analyzers", entry.name).__doc__ or "").strip().splitlines()
        origin = "" if entry.distribution == "steerkit" else f" ({entry.origin})"
        print(f"  {entry.name:<16} {about[0] if about else ''}{origin}")
    return 0


def _show(result: AnalysisResult, most: int = 30) -> None:
    """The first rows as aligned columns, and the notes."""
    lines = [("of", "metric", "value (95 % interval)", "n", "control"), *compact_rows(result.rows[:most])]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    print(f"\n{result.analyzer}: {result.model['name']}\n")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    more = len(result.rows) - most
    print()
    for text in [f"{more} more rows in analysis.json." * (more > 0), f"Positions: {result.positions}.", *result.notes]:
        if text:
            print(text)


def _say_drawn(page: str) -> int:
    print(f"Drew {page} and the PNGs beside it in {Path(page).parent / 'figures'}.")
    return 0
