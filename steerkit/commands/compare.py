"""``steerkit compare A B``: the paired difference of two evaluations, and the samples that flipped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.commands.console import command_line
from steerkit.commands.parsing import PlainParser
from steerkit.errors import SteerkitError
from steerkit.files import output_folder

if TYPE_CHECKING:
    from rich.table import Table

    from steerkit.evaluation.compare import Difference


def build_parser() -> PlainParser:
    """The options of ``steerkit compare``."""
    parser = PlainParser(prog="steerkit compare", description=__doc__)
    parser.add_argument("a", help="folder of the first evaluation (samples.parquet)")
    parser.add_argument("b", help="folder of the second one; differences are B minus A")
    parser.add_argument(
        "--arms", nargs=2, metavar=("A", "B"), help="compare this arm of A with this arm of B; default: equal names"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N flipped samples")
    parser.add_argument("--out", help="folder for compare.json and flips.parquet")
    return parser


def run(verb: str, arguments: Sequence[str]) -> int:
    """Compare, print the table and some flipped samples, write them on demand."""
    options = build_parser().parse_args(arguments)
    if options.show < 0:
        raise SteerkitError(f"--show must be 0 or more, got {options.show}.")

    with output_folder(options.out) if options.out else nullcontext() as out:
        return _run(options, out, verb, command_line(verb, arguments))


def _run(options: argparse.Namespace, out: Path | None, verb: str, command: str) -> int:
    from rich.console import Console

    from steerkit.evaluation.compare import compare, read_samples
    from steerkit.evaluation.results import write_samples
    from steerkit.files import write_json

    arms = tuple(options.arms) if options.arms else None
    found = compare(read_samples(options.a), read_samples(options.b), arms, options.seed)
    for line in found.left_out:
        print(f"steerkit {verb}: {line}", file=sys.stderr)
    Console().print(_table(found.rows, f"B ({options.b}) minus A ({options.a})"))
    for flip in found.flips[: options.show]:
        print(_flip_text(flip))
    if out is not None:
        record: dict[str, Any] = {"a": options.a, "b": options.b, "rows": [row.record() for row in found.rows]}
        record |= {"left_out": found.left_out, "seed": options.seed, "command": command}
        write_json(out / "compare.json", record)
        print(f"Wrote {out / 'compare.json'}", end="")
        if found.flips:
            write_samples(out / "flips.parquet", found.flips)
            print(f" and {out / 'flips.parquet'} ({len(found.flips)} samples)", end="")
        else:
            Path(out / "flips.parquet").unlink(missing_ok=True)  # of an earlier comparison
            print("; no verdict differs", end="")
        print(".")
    return 0


def _table(rows: Sequence[Difference], title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, padding=(0, 1), show_edge=False)
    table.collapse_padding = True
    for name in ("arm", "set"):
        table.add_column(name, no_wrap=True)
    for name in ("T", "n", "A %", "B %", "B - A", "95 % interval", "gained", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        arm = " > ".join(dict.fromkeys(row.arms))
        if previous is not None and arm != previous:
            table.add_section()
        cells = (
            arm if arm != previous else "",
            row.set,
            f"{row.temperature:g}",
            str(row.n),
            f"{100 * row.a:.1f}",
            f"{100 * row.b:.1f}",
            f"{100 * row.interval.mean:+.1f}",
            f"{100 * row.interval.low:+.1f} to {100 * row.interval.high:+.1f}",
            str(row.gained),
            str(row.lost),
        )
        table.add_row(*map(Text, cells))
        previous = arm
    return table


def _flip_text(flip: dict[str, Any]) -> str:
    """One flipped sample, for reading."""
    head = f"{flip['set']} {flip['id']}, temperature {flip['temperature']:g}, sample {flip['sample']} (seed "
    lines = ["", f"== {head}{flip['seed']}): {flip['verdict_a']} -> {flip['verdict_b']}", str(flip["problem"])]
    lines += [f"gold: {flip['answer']}"]
    for side in ("a", "b"):
        lines += [
            f"-- {side.upper()} ({flip[f'arm_{side}']}, {flip[f'verdict_{side}']}):",
            str(flip[f"completion_{side}"]),
        ]
    return "\n".join(lines)
