"""What the benchmarks share: alternating runs, ratios pair by pair, what ran where, one JSON file a script.

Every ratio is written so that larger is better: rates as ours over theirs (or over the limit), times and memory as
theirs over ours, seconds as target over measured.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from steerkit import files

RESULTS = Path(__file__).parent / "results"
THREADS = 2
PACKAGES = ("steerkit", "torch", "transformers", "trl", "peft", "accelerate", "nnsight", "lightning", "numpy")
TARGETS = {
    "rollouts_vs_generate": 3.0,
    "rollouts_vs_linear_limit": 0.6,
    "rollouts_natural_stops": 4.0,
    "step_vs_trl": 5.0,
    "update_middle_vs_trl": 8.0,
    "update_last_vs_trl": 20.0,
    "sweep_vs_separate": 4.0,
    "peak_memory_vs_trl": 5.0,
    "lens_vs_nnsight": 3.0,
    "patching_vs_nnsight": 3.0,
    "help_seconds": 1.0,
    "import_seconds": 1.0,
}
"""By the name of the row. A name with more behind it (``@tiny-reasoner``) has no target of its own."""


@dataclass(frozen=True)
class Form:
    """How large a benchmark is."""

    name: str
    prompts: int
    k: int
    tokens: int
    runs: int
    """Pairs of runs."""
    trl_runs: int
    """Of pairs that hold a TRL step, which takes minutes."""


SIZES = {"smollm2-135m-instruct": (8, 8, 64), "tiny-reasoner": (16, 16, 96)}
"""Prompts, samples a prompt, tokens a completion."""
RUNS = {"full": (5, 3), "short": (2, 1), "smoke": (1, 1)}


def form_of(name: str, model: str) -> Form:
    """``full``: what the README reports; ``short``: the same sizes, fewer runs; ``smoke``: does the script work."""
    prompts, k, tokens = (2, 2, 8) if name == "smoke" else SIZES.get(model, (8, 8, 64))
    return Form(name, prompts, k, tokens, *RUNS[name])


def arguments(description: str | None, models: Sequence[str] = (), **more: Any) -> argparse.Namespace:
    """The command line of a script: ``--form``, ``--models``, ``--out``; ``more``: option -> default value."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=sorted(RUNS), default="full")
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default: results/, for smoke: not written")
    if models:
        parser.add_argument("--models", nargs="+", default=list(models))
    for option, default in more.items():
        parser.add_argument(f"--{option}", type=type(default), default=default)
    options = parser.parse_args()
    if options.out is None and options.form != "smoke":
        options.out = RESULTS
    return options


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    ratio: float
    """Median of the ratios of the pairs."""
    target: float | None
    median_a: float
    """Ours."""
    median_b: float
    """Theirs, the limit, or the target."""
    unit: str
    runs: list[list[float]]
    """[a, b] of each pair, in the order they ran."""
    model: str = ""
    note: str = ""

    def renamed(self, name: str) -> Row:
        """The same under another name, with that name's target."""
        return replace(self, name=name, target=TARGETS.get(name))

    @classmethod
    def of(
        cls, name: str, pairs: Sequence[Sequence[float]], unit: str, rate: bool, model: str = "", note: str = ""
    ) -> Row:
        """A row of (ours, theirs) pairs; ``rate``: more is better."""
        ratios = [a / b if rate else b / a for a, b in pairs]
        label = name if not model or model == HEADLINE else f"{name}@{model}"
        return cls(
            label,
            statistics.median(ratios),
            TARGETS.get(label),
            statistics.median(a for a, _ in pairs),
            statistics.median(b for _, b in pairs),
            unit,
            [[float(a), float(b)] for a, b in pairs],
            model,
            note,
        )


HEADLINE = "smollm2-135m-instruct"
"""The model of the rows that have a target."""


def alternate(a: Callable[[], float], b: Callable[[], float], runs: int) -> list[tuple[float, float]]:
    """A B A B ...: what each returned, pair by pair."""
    return [(a(), b()) for _ in range(runs)]


def threads(form: str) -> int:
    """One in the smoke form, which runs beside other work: threads that wait for each other would stall."""
    return 1 if form == "smoke" else THREADS


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call; garbage of earlier work is collected before."""
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@dataclass
class Report:
    """The rows of a script, printed as they come and written together."""

    name: str
    options: argparse.Namespace
    rows: list[Row] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else was measured: series of plots, settings."""
    load: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])

    def __post_init__(self) -> None:
        lists = [f"{key} {value}" for key, value in versions().items()]
        form = self.options.form
        print(f"{self.name} ({form}): {machine()['cpu']}, {threads(form)} threads; {', '.join(lists)}")
        print(f"| {'row':44} | ratio | target | {'ours':>10} | {'theirs':>10} | unit | pairs |")
        print("|---|---|---|---|---|---|---|", flush=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        target = "" if row.target is None else f"{row.target:g}"
        print(
            f"| {row.name:44} | {row.ratio:.2f} | {target} | {row.median_a:10.4g} | {row.median_b:10.4g} | {row.unit} "
            f"| {len(row.runs)} |",
            flush=True,
        )
        self.write()

    def write(self) -> None:
        """``{"schema": 1, "machine": ..., "versions": ..., "rows": [...]}``, replaced as a whole after each row."""
        if self.options.out is None:
            return
        self.options.out.mkdir(parents=True, exist_ok=True)
        record = {
            "schema": 1,
            "form": self.options.form,
            "machine": machine()
            | {"threads": threads(self.options.form), "load_average": [*self.load, os.getloadavg()[0]]},
            "versions": versions(),
            "rows": [asdict(row) for row in self.rows],
            **self.extra,
        }
        files.write_json(self.options.out / f"{self.name}.json", record)


def machine() -> dict[str, Any]:
    """What the figures were measured on. A load average far above 0 before the start says that other work ran."""
    cpu, flags = platform.processor() or platform.machine(), ""
    memory = 0.0
    if Path("/proc/cpuinfo").exists():
        found = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
            if key.strip() in ("model name", "flags")
        }
        cpu, flags = found.get("model name", cpu), found.get("flags", "")
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "vector": next((name for name in ("avx512f", "avx2") if name in flags.split()), ""),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> Mapping[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
