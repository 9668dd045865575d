"""Rows from a file, a folder or the hub: plain dicts, grouped under the source's own split names.

``None`` stands for the split of a source that names none (a single file).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steerkit.datasets.base import Split
from steerkit.errors import DataError

Row = dict[str, Any]
Tables = dict["str | None", list[Row]]
"""Rows by the source's own split name."""

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
}
"""The split names that need no telling."""
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def read_source(path: str, data_root: str | Path | None, config: str | None, revision: str | None) -> Tables:
    """Rows of ``path``, by the first of: a file or folder under ``data_root``, or a hub id.

    Args:
        path: a .jsonl, .json, .csv or .parquet file, a folder of these, or a hub id such as ``openai/gsm8k``.
        data_root: what a relative path starts from; None: the working directory.
        config: the hub data set's configuration (``main``), if it has several.
        revision: the hub data set's commit or tag.

    Raises:
        DataError: if nothing is there, or it can't be read.
    """
    place = Path(data_root or ".").expanduser() / Path(path).expanduser()
    if place.is_file():
        return {None: list(_read_file(place))}
    if place.is_dir():
        # A data set card or a data/ folder: laid out as a hub repository, which the library knows how to read.
        if config is not None or (place / "README.md").is_file() or (place / "data").is_dir():
            return _read_with_library(str(place), config, None)
        return _read_folder(place)
    if place.suffix.lower() in _READERS or not _HUB_ID.match(path):
        raise DataError(f"No data set file {place.resolve()}: write a path that exists under data_root, or a hub id.")
    return _read_with_library(path, config, revision)


def _read_file(path: Path) -> Iterator[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"Can't read {path}: expected a file ending in {', '.join(_READERS)}.")
    try:
        yield from reader(path)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"Can't read {path}: {error}") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(_parse_json(line, f"{path}:{number}"), f"{path}:{number}")


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):  # JSON Lines under the name .json, as the hub often has it
        yield from _read_jsonl(path)
        return
    for number, value in enumerate(_parse_json(text, str(path))):
        yield _row(value, f"{path}, item {number}")


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with named columns, got {type(value).__name__}.")
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines):
            if None in row:
                raise DataError(f"{path}: row {row} has more fields than the header; quote fields that hold commas.")
            yield dict(row)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from pq.ParquetFile(path).read().to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"Can't read {path}: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_folder(folder: Path) -> Tables:
    """Every data file directly in the folder, in name order.

    A file's split is the first word of its name (``train.jsonl``, ``test-00.parquet``) if all have a split's name.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        raise DataError(f"No data file in {folder}: expected files ending in {', '.join(_READERS)}.")
    words = {file: re.split(r"[-_.]", file.stem.lower())[0] for file in files}
    named = [file.name for file, word in words.items() if word in SPLIT_WORDS]
    if named and len(named) < len(files):
        odd = next(file.name for file, word in words.items() if word not in SPLIT_WORDS)
        raise DataError(f"{folder}: {named[0]} names a split and {odd} does not; rename one, or list the files.")
    tables: Tables = {}
    for file, word in words.items():
        tables.setdefault(word if named else None, []).extend(_read_file(file))
    return tables


def _read_with_library(name: str, config: str | None, revision: str | None) -> Tables:
    """A hub id, or a local folder laid out as a hub repository, through the `datasets` library."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # the library raises a dozen kinds, from the network's to the parsers'
        what = "folder" if Path(name).exists() else "hub id (no such file or folder here)"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"Can't load the data set {what} {name!r}: {lines[0]}") from error
    return {str(split): table.to_list() for split, table in loaded.items()}
