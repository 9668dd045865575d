"""``steerkit verify``: judges answers from a file, or runs recorded verifier faults again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerkit import registry
from steerkit.commands.parsing import Parser
from steerkit.datasets.readers import read_source
from steerkit.errors import SteerkitError
from steerkit.files import write_text
from steerkit.types import Verdict
from steerkit.verifiers import Verifier, fault_cause

CHUNK = 256
EXPECTED = {
    True: "correct",
    False: "wrong",
    "correct": "correct",
    "wrong": "wrong",
    "true": "correct",
    "false": "wrong",
}
STYLES = {"correct": "green", "wrong": "red", "fault": "yellow"}


def build_parser() -> Parser:
    """The options of ``steerkit verify``."""
    parser = Parser(prog="steerkit verify", description=__doc__)
    parser.add_argument("--input", type=str | None, default=None, help="cases: gold, completion, and perhaps expected")
    parser.add_argument(
        "--replay", type=str | None, default=None, help="faults.jsonl of a run: judge these pairs again"
    )
    parser.add_argument(
        "--verifier",
        type=str | dict | None,
        default=None,
        help="plugin name, or {name: math, timeout: 5, extract: [boxed, hash]}; default: math, or the replay's own",
    )
    parser.add_argument("--limit", type=int, default=20, help="rows of the table, disagreements and faults first")
    parser.add_argument("--out", type=str | None, default=None, help="JSON Lines file for all verdicts")
    return parser


def run(verb: str, arguments: Sequence[str]) -> int:
    """Judge, print the table and the sums, write the verdicts."""
    options = build_parser().parse_args(list(arguments))
    if (options.input is None) == (options.replay is None):
        raise SteerkitError("Give either --input FILE or --replay FILE.")
    if options.limit < 0:
        raise SteerkitError(f"limit must be at least 0, got {options.limit}.")
    cases = read_cases(options.input or options.replay)
    spec = options.verifier
    if spec is None:
        spec = "math" if options.replay is None else _recorded_verifier(cases)
    verifier: Verifier = registry.build("verifiers", spec)
    with verifier:
        verdicts, seconds = judge(verifier, cases)
    rows = [_row(case, verdict) for case, verdict in zip(cases, verdicts, strict=True)]
    _print_table(rows, options.limit)
    print(summary(rows, seconds))
    if options.out is not None:
        write_text(options.out, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
        print(f"Wrote {options.out}.")
    return 0


def read_cases(path: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines, JSON, CSV or parquet file.

    Raises:
        SteerkitError: there is no such file, it has no rows, or a row lacks a field or has an odd one.
    """
    if not Path(path).is_file():
        raise SteerkitError(f"No file {path}: give a file with the fields gold and completion.")
    cases = [case for table in read_source(path, None, None, None).values() for case in table]
    if not cases:
        raise SteerkitError(f"{path} has no rows.")
    for number, case in enumerate(cases, start=1):
        for field in ("gold", "completion"):
            if isinstance(case.get(field), int) and not isinstance(case[field], bool):
                case[field] = str(case[field])
            if not isinstance(case.get(field), str):
                raise SteerkitError(
                    f"{path}, row {number}: the field '{field}' must be a text, got {case.get(field)!r:.60}."
                )
        said = case.get("expected")
        said = said.lower() if isinstance(said, str) else said
        if said is not None and not (isinstance(said, bool | str) and said in EXPECTED):
            raise SteerkitError(
                f"{path}, row {number}: 'expected' must be true, false, correct or wrong, got {case['expected']!r:.60}."
            )
        case["expected"] = None if said is None else EXPECTED[said]
    return cases


def _recorded_verifier(cases: Sequence[dict[str, Any]]) -> Any:
    """The one verifier that the faults were recorded with."""
    specs = [json.loads(spec) for spec in dict.fromkeys(json.dumps(case.get("verifier")) for case in cases)]
    if len(specs) > 1:
        raise SteerkitError("The faults come from several verifiers: give --verifier.")
    return specs[0] or "math"


def judge(verifier: Verifier, cases: Sequence[dict[str, Any]]) -> tuple[list[Verdict], float]:
    """The verdicts and the seconds that they took, the start of the verifier's processes not counted."""
    from rich.console import Console
    from rich.progress import track

    verifier.warm()
    verifier.wait()
    verdicts: list[Verdict] = []
    start = time.perf_counter()
    console = Console(stderr=True)
    chunks = range(0, len(cases), CHUNK)
    for at in track(chunks, "Judging", console=console, transient=True, disable=not console.is_terminal):
        chunk = cases[at : at + CHUNK]
        verdicts += verifier.verify_many([case["completion"] for case in chunk], [case["gold"] for case in chunk])
    return verdicts, time.perf_counter() - start


def _row(case: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    expected = case["expected"]
    return {
        **case,
        "verdict": verdict.status,
        "reason_now" if "reason" in case else "reason": verdict.reason,
        "extracted": verdict.extracted,
        "agrees": None if expected is None else verdict.status == expected,
    }


def _reason(row: dict[str, Any]) -> str:
    return str(row.get("reason_now", row.get("reason")))


def summary(rows: Sequence[dict[str, Any]], seconds: float) -> str:
    """Counts, faults per cause, agreement and rate, in a few lines."""
    counts = Counter(row["verdict"] for row in rows)
    causes = Counter(fault_cause(_reason(row)) for row in rows if row["verdict"] == "fault")
    said = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
    lines = [
        f"{len(rows):,} answers: {counts['correct']:,} correct, {counts['wrong']:,} wrong, "
        f"{counts['fault']:,} fault{'s' * (counts['fault'] != 1)}{f' ({said})' if said else ''}."
    ]
    judged = [row for row in rows if row["agrees"] is not None]
    if judged:
        agreed = sum(row["agrees"] for row in judged)
        lines.append(f"Agreement with 'expected': {agreed:,} of {len(judged):,} ({100 * agreed / len(judged):.1f} %).")
    lines.append(f"{seconds:.2f} s, {len(rows) / max(seconds, 1e-9):,.0f} answers/s (start-up not counted).")
    return "\n".join(lines)


def _print_table(rows: Sequence[dict[str, Any]], limit: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if limit == 0:
        return
    # Stable: in each class the file's order stays.
    order = sorted(range(len(rows)), key=lambda k: (rows[k]["agrees"] is not False, rows[k]["verdict"] != "fault"))
    replayed = any("reason_now" in row for row in rows)
    table = Table(title=f"{min(limit, len(rows))} of {len(rows):,} answers", title_justify="left")
    for column in ("row", "verdict", "expected", "gold", "answer", "reason", *(["recorded"] if replayed else [])):
        table.add_column(column, justify="right" if column == "row" else "left", overflow="ellipsis", no_wrap=True)
    for k in order[:limit]:
        row = rows[k]
        cells = [str(k + 1), row["verdict"], row["expected"] or "", _short(row["gold"]), _short(row["extracted"])]
        cells += [_reason(row), *([str(row.get("reason", ""))] if replayed else [])]
        style = "bold red" if row["agrees"] is False else STYLES[row["verdict"]]
        table.add_row(*(Text(cell, style=style if index == 1 else "") for index, cell in enumerate(cells)))
    Console().print(table)


def _short(text: str) -> str:
    """One printable line of at most 40 characters."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= 40 else line[:39] + "…"
