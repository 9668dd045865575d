"""Callbacks: the vector on disk at all times, a progress bar, and a few completions to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar

from steerkit.training.module import SteeringModule


class VectorWriter(Callback):
    """Keeps ``folder`` up to date with the current vector: every ``every`` steps, at the end, and when a run breaks.

    A step with a loss or gradient that isn't finite never reaches the parameters, so what is written is good.
    """

    def __init__(self, folder: str | Path, receipts: Callable[[], dict[str, Any]], every: int = 20) -> None:
        self.folder, self.receipts, self.every = Path(folder), receipts, every

    def _write(self, module: L.LightningModule) -> None:
        steering = cast(SteeringModule, module)
        if steering.loaded is not None:
            steering.steering_vector(self.receipts()).save_pretrained(self.folder)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self._write(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and trainer.global_step > 0:
            self._write(pl_module)


class SteeringProgressBar(RichProgressBar):
    """Lightning's bar, which counts to the end of the run: there is one long epoch, so epoch numbers say nothing."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"


class SampleTable(Callback):
    """Prints a few sampled completions every ``every`` steps: reward numbers alone hide what a policy does."""

    def __init__(self, every: int = 20, n: int = 3) -> None:
        self.every, self.n = every, n

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or self.every < 1 or trainer.global_step % self.every:
            return
        from rich.console import Console
        from rich.table import Table

        module = cast(SteeringModule, pl_module)
        table = Table(title=f"Samples at step {trainer.global_step}", title_justify="left", show_lines=True)
        for column in ("problem", "completion", "answer", "verdict"):
            table.add_column(column)
        for index, group in enumerate(module.last_groups[: self.n]):
            verdict = module.last_verdicts[index][0] if module.last_verdicts else None
            text = group.rollouts[0].text
            shown = text if len(text) <= 400 else text[:400] + "..."
            said = f"{verdict.status} ({verdict.reason})" if verdict else "-"
            table.add_row(*map(_plain, (group.example.problem, shown, group.example.answer, said)))
        Console(stderr=True).print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
