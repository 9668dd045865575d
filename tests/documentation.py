"""The fenced blocks of README.md, docs/ and the plugins' READMEs, and the folder that their commands are run in.

``sh`` is what a reader types, ``console`` a transcript of a run (its ``$`` lines were typed), ``text`` neither. A block
of Python, YAML, TOML or JSON whose first line is ``# path/file`` is a file that the page has its reader write.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steerkit import registry
from steerkit.datasets.suites import SETS
from steerkit.hookpoints import HookPoint
from steerkit.models import fingerprint, load_model
from steerkit.vectors import SteeringVector, VectorMetadata

ROOT = Path(__file__).parents[1]
LANGUAGES = {"sh", "console", "text", "python", "yaml", "toml", "json"}
PLACEHOLDERS = {
    "MODEL": "tiny-reasoner",
    "VECTOR": "runs/quickstart/vector",
    "DIR": "data",
    "FOLDER": "data",
    "CONFIG": "configs/quickstart.yaml",
}
"""What a page leaves to its reader -> what the test takes."""
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|toml|json))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    """Its page's path in the repository."""
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is, by its first line."""
        found = _FILE.match(self.text)
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """Its command lines: continued lines joined, lists of commands (``&&``) taken apart, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        elif self.language != "sh":
            return []
        bare = [re.sub(r"(^|\s+)# .*", "", line) for line in lines]
        return [" ".join(part.split()) for line in bare for part in line.split(" && ") if part.strip()]


def pages() -> list[Path]:
    """README, docs but for reports that a command wrote, and the READMEs of plugins and benchmarks."""
    docs = [page for page in (ROOT / "docs").rglob("*.md") if not page.match("docs/results/*/*.md")]
    others = [*sorted((ROOT / "plugins").glob("*/README.md")), ROOT / "benchmarks" / "README.md"]
    return [ROOT / "README.md", *sorted(docs), *others]


def blocks() -> list[Block]:
    """All blocks, page by page; and of each config the command that its first lines name."""
    found = []
    for config in [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "plugins").glob("*/*.yaml")]:
        lines = [line[2:] for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("# steerkit ")]
        found.append(Block(config.relative_to(ROOT).as_posix(), "sh", "\n".join(lines)))
    for page in pages():
        name = page.relative_to(ROOT).as_posix()
        found += [Block(name, *match) for match in _BLOCK.findall(page.read_text(encoding="utf-8"))]
    return found


def words(command: str) -> list[str]:
    """A command's words, placeholders filled in."""
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]


def write_files(found: list[Block], folder: Path) -> None:
    """The files that a page has its reader write; ``MODEL`` in them is the placeholder, too."""
    for block in found:
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(re.sub(r"\bMODEL\b", PLACEHOLDERS["MODEL"], block.text), encoding="utf-8")


def link_repository(folder: Path) -> None:
    """The configs and plugins of the repository, as from its root."""
    for name in ("configs", "plugins"):
        (folder / name).symlink_to(ROOT / name)


def fill(folder: Path, vectors: bool = True) -> None:
    """What a reader has who comes to a page: the repository's configs, vectors, benchmark sets, a second model."""
    link_repository(folder)
    for place, vector in _vectors() if vectors else ():
        vector.save_pretrained(folder / "runs" / place / "vector")
    for name in SETS:
        _write_rows(folder / "data" / f"{name}.jsonl", _problems(2))
    _write_rows(folder / "problems.jsonl", _problems(40))
    fault: dict[str, Any] = {"gold": "1", "completion": "\\boxed{1}", "reason": "timeout", "verifier": "math", "cut": 0}
    _write_rows(folder / "runs" / "latest" / "faults.jsonl", [fault])
    shutil.copytree(registry.resolve("models", "tiny-reasoner")(), folder / "siblings" / "seed1")


def _problems(n: int) -> list[dict[str, Any]]:
    return [{"id": str(k), "problem": f"What is {k} + 1?", "answer": str(k + 1)} for k in range(n)]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _vectors() -> Iterator[tuple[str, SteeringVector]]:
    """Random vectors under the names that the pages give trained ones."""
    loaded = load_model("tiny-reasoner")
    shape = (loaded.base.config.hidden_size, loaded.base.config.num_hidden_layers)
    receipts = {"dataset": "arithmetic", "dataset_spec": {"name": "arithmetic", "n": 64, "n_eval": 8}, "max_tokens": 8}
    metadata = VectorMetadata("tiny-reasoner", fingerprint(loaded.base), *shape, receipts)
    noise = torch.Generator().manual_seed(0)

    def numbers(*size: int) -> torch.Tensor:
        return 0.5 * torch.randn(*size, generator=noise)

    layers = {"first": [0], "middle": [3], "tiny_middle": [3], "penultimate": [4], "last": [5], "tiny_last": [5]}
    for place, where in {**layers, **dict.fromkeys(("quickstart", "all", "seed1", "asked"), range(6))}.items():
        tensors = {HookPoint(layer): {"vector": numbers(shape[0])} for layer in where}
        yield place, SteeringVector("static", tensors, {}, metadata)
    inner = loaded.base.config.intermediate_size
    points = [HookPoint(layer, "down_proj") for layer in range(6)]
    tensors = {point: {"a": 0.01 * numbers(inner), "b": numbers(shape[0])} for point in points}
    yield "tokenwise", SteeringVector("tokenwise", tensors, {"d_inner": inner}, metadata)
