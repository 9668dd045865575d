"""``results.json``, ``samples.parquet`` and the table on the screen."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.evaluation.arms import Evaluation
from steerkit.files import atomic_path, write_json

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
PACKAGES = ("steerkit", "torch", "transformers", "lightning", "math-verify", "numpy")


def versions() -> dict[str, str]:
    """Python's and the packages' versions: what a number depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {package: metadata.version(package) for package in PACKAGES}


def write_results(
    folder: str | Path,
    evaluation: Evaluation,
    model: str,
    vector: str | None,
    seed: int,
    command: str,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write ``results.json`` and ``samples.parquet`` atomically; returns the path of the former."""
    target = Path(folder)
    write_samples(target / "samples.parquet", evaluation.samples)
    record = {"schema": SCHEMA, "model": model, "vector": vector, "rows": evaluation.rows}
    record |= {"versions": versions(), "seed": seed, "command": command, **(extra or {})}
    write_json(target / "results.json", record)
    return target / "results.json"


def write_samples(path: str | Path, samples: Sequence[dict[str, Any]]) -> None:
    """One row a sample; lone surrogates (a model can produce them) become replacement characters."""
    import pyarrow as pa
    from pyarrow import parquet

    clean = [{k: _utf8(v) if isinstance(v, str) else v for k, v in sample.items()} for sample in samples]
    with atomic_path(path) as temporary:
        parquet.write_table(pa.Table.from_pylist(clean), temporary)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def results_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Accuracy in percent with its 95 % interval: a row for each arm and temperature, by set where there are several.

    ``seen`` is the number of problems that stand in the training data; the column is there if it is not 0 or unknown.
    ``reward`` is the mean of a run's own rewards, where they were asked for.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    several = len({row["set"] for row in rows}) > 1
    seen = any(row.get("seen_in_training") for row in rows)
    # Plain text cells (a vector's name may hold brackets), and a box narrow enough for 80 columns.
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, padding=(0, 1), show_edge=False)
    for name in ("set", "arm")[not several :]:
        table.add_column(name, no_wrap=True)
    rewarded = any("reward" in row for row in rows)
    more = [*["reward"] * rewarded, *["seen"] * seen]
    table.collapse_padding = several or bool(more)
    for name in ("T", "acc. %", "95 % interval", "n x k", "tokens", "cut", "faults", *more):
        table.add_column(name, justify="right", no_wrap=True)
    previous: dict[str, Any] | None = None
    for row in rows:
        groups = ("set", "arm") if several else ("arm",)
        same = [previous is not None and row[name] == previous[name] for name in groups]
        if previous is not None and not same[0]:
            table.add_section()
        names = [row[name] if not all(same[: index + 1]) else "" for index, name in enumerate(groups)]
        more = [*[_reward(row)] * rewarded, *[str(row.get("seen_in_training", ""))] * seen]
        table.add_row(*map(Text, [*names, *_cells(row), *more]))
        previous = row
    return table


def _reward(row: dict[str, Any]) -> str:
    return "-" if row.get("reward") is None else f"{row['reward']:.3f}"


def _cells(row: dict[str, Any]) -> list[str]:
    k = f" x {row['k']}" if row["k"] is not None else ""
    seeds = f" x {len(row['sample_seeds'])}" if row.get("sample_seeds") and row["k"] is not None else ""
    known = row["accuracy"] is not None
    return [
        f"{row['temperature']:g}",
        f"{100 * row['accuracy']:.1f}" if known else "-",
        f"{100 * row['ci95'][0]:.1f} - {100 * row['ci95'][1]:.1f}" if known else "-",
        f"{row['n']}{k}{seeds}",
        f"{row['mean_tokens']:.1f}",
        str(row["truncated"]),
        str(row["faults"]),
    ]
