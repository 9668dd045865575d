"""``steerkit doctor``: examine a model before time is put into it; what fails, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from steerkit.commands.console import command_line, prepare, progress_display
from steerkit.commands.evaluate import default_device
from steerkit.commands.parsing import Parser
from steerkit.doctor import CHECKS, Batch, Row, Subject, examine
from steerkit.evaluation.results import versions
from steerkit.files import output_folder, write_json
from steerkit.models.load import load_checkpoint
from steerkit.runtime import debugging

if TYPE_CHECKING:
    from rich.table import Table

_BATCH = {
    "batch": "prompts a step, for the memory estimate",
    "k": "samples a prompt",
    "prompt_tokens": "tokens of a prompt",
    "max_tokens": "tokens of a completion",
    "max_rows": "rows that the sampler decodes at once",
    "micro_batch_tokens": "padded tokens in one pass of the update",
}
_FIELDS = {"batch": "prompts"}
_COLOURS = {"pass": "green", "fail": "bold red", "note": "yellow", "skipped": "dim"}


def build_parser() -> Parser:
    """The options of ``steerkit doctor``."""
    parser = Parser(prog="steerkit doctor", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--model", required=True, help="zoo name or plugin, local folder, or hub id")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--device", type=str | None, default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument(
        "--layout", type=dict[str, str] | None, default=None, help="blocks, norm and unembedding of an unknown family"
    )
    parser.add_argument("--trust_remote_code", type=bool, default=False)
    usual = Batch()
    for name, text in _BATCH.items():
        parser.add_argument(f"--{name}", type=int | None, default=None, help=f"{text} (usually {_field(usual, name)})")
    parser.add_argument("--out", type=str | None, default=None, help="folder for doctor.json")
    return parser


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows for a terminal, with what to do under each failure."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    made.add_column("check", no_wrap=True)
    made.add_column("")
    made.add_column("found", overflow="fold")
    for row in rows:
        found = Text(row.found)
        if row.advice and row.status in ("fail", "note"):
            found.append(f"\n-> {row.advice}", style="bold")
        made.add_row(Text(row.name), Text(row.status, style=_COLOURS[row.status]), found)
    return made


def run(verb: str, arguments: Sequence[str]) -> int:
    """Load the model, run the checks, print the table; 0 if all pass, 1 if one fails."""
    options = build_parser().parse_args(list(arguments))
    prepare()
    asked = {_FIELDS.get(name, name): options[name] for name in _BATCH if options[name] is not None}
    batch = Batch(**asked, asked=bool(asked))
    with nullcontext() if options.out is None else output_folder(options.out) as out:
        return _run(options, batch, out, command_line(verb, arguments))


def _run(options: Namespace, batch: Batch, out: Path | None, command: str) -> int:
    device = options.device or default_device()
    base, tokenizer = load_checkpoint(options.model, options.dtype, device, options.trust_remote_code)
    subject = Subject(base, tokenizer, options.layout, batch)
    rows: list[Row] = []
    with progress_display() as progress:
        for row in examine(subject, CHECKS, debugging()):
            rows.append(row)
            progress("examining", len(rows), len(CHECKS))
    from rich.console import Console

    kind = str(base.dtype).removeprefix("torch.")
    Console().print(table(rows, f"{options.model}: {base.config.model_type}, {kind}, {base.device}"))
    failed = [row.name for row in rows if row.status == "fail"]
    if out is not None:
        record: dict[str, Any] = {
            "model": options.model,
            "command": command,
            "passed": not failed,
            "dtype": kind,
            "device": str(base.device),
            "checks": [asdict(row) for row in rows],
            "environment": versions(),
        }
        write_json(out / "doctor.json", record)
        print(f"Wrote {out / 'doctor.json'}.")
    print(f"{len(failed)} of {len(rows)} checks failed: {', '.join(failed)}." if failed else "All checks passed.")
    return 1 if failed else 0


def _field(batch: Batch, name: str) -> int:
    return int(getattr(batch, _FIELDS.get(name, name)))
