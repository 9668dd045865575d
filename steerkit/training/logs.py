"""``metrics.csv``: a row a step, on disk at once, and gone on with when a run is resumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from steerkit.errors import SteerkitError
from steerkit.files import write_text


class MetricsFile(Logger):
    """Lightning's CSVLogger would keep a hundred steps in memory, which a kill loses, and delete the file on resume.

    Args:
        folder: of ``metrics.csv``.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row.

        Raises:
            SteerkitError: if the file can't be written.
        """
        row = {key: _text(value) for key, value in metrics.items()} | {"step": str(step or 0)}
        if set(row) - set(self._columns):  # the validation's columns come with the first validation
            self._write([*read_rows(self.path), row])
            return
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(self._lines([row]))
        except OSError as error:
            raise SteerkitError(f"Can't write {self.path}: {error.strerror or error}.") from error

    @rank_zero_only
    def go_on_from(self, step: int, validation_due: bool = False) -> None:
        """Keep the rows of what a checkpoint knows of; the steps after it are made again.

        Args:
            step: optimiser steps that the checkpoint holds; their rows are 0 .. step - 1.
            validation_due: the validation after the last of them is made again, too.
        """
        kept = []
        for row in read_rows(self.path):
            number = int(row["step"])
            validation = any(key.startswith("val/") and value for key, value in row.items())
            if number < step and not (validation and validation_due and number == step - 1):
                kept.append(row)
        if self.path.exists():
            self._write(kept)

    def _write(self, rows: list[dict[str, str]]) -> None:
        self._columns = sorted({key for row in rows for key in row} | set(self._columns))
        write_text(self.path, self._lines(rows, header=True))

    def _lines(self, rows: list[dict[str, str]], header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics file, without a last one that was cut off; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = csv.DictReader(io.StringIO(text, newline=""))
    whole = [row for row in rows if None not in row and None not in row.values()]
    return [row for row in whole if str(row.get("step", "")).isdigit()]


def _text(value: Any) -> str:
    return str(value.item() if hasattr(value, "item") else value)
