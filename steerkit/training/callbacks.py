"""Callbacks: vector and checkpoints on disk at all times, a progress bar, and a few completions to read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar

from steerkit.errors import NotFinite, SteerkitError
from steerkit.files import ensure_folder
from steerkit.training.checkpoints import KEPT, checkpoint_path, checkpoints
from steerkit.training.logs import MetricsFile
from steerkit.training.members import Member, member_dir
from steerkit.training.module import SteeringModule

log = logging.getLogger(__name__)


class VectorWriter(Callback):
    """Keeps ``run_dir`` up to date with what is trained: every ``every`` steps, at the end, and when a run breaks.

    A step with a loss or gradient that isn't finite never reaches the parameters. A step whose result breaks the model
    (``NotFinite``) is taken back. So what is written last is good.
    """

    def __init__(self, run_dir: str | Path, receipts: Callable[[], dict[str, Any]], every: int = 20) -> None:
        self.run_dir, self.receipts, self.every = Path(run_dir), receipts, every

    def _write(self, module: L.LightningModule, undone: int = 0) -> None:
        steering, receipts = cast(SteeringModule, module), self.receipts()
        if steering.loaded is not None:
            steering.save_trained(
                self.run_dir, receipts | {"steps": receipts["steps"] - undone} if undone else receipts
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self._write(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        undone = isinstance(exception, NotFinite) and cast(SteeringModule, pl_module).run_state.undo_step()
        if trainer.is_global_zero and (undone or can_save(trainer, pl_module)):
            try:
                self._write(pl_module, int(undone))
            except SteerkitError as error:  # what broke the run is to be told, not this
                log.warning("The vector of step %d is not saved: %s", trainer.global_step, error)


def can_save(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether what is in memory is the state after a whole step."""
    return trainer.state.fn == "fit" and trainer.global_step > 0 and not cast(SteeringModule, module).run_state.updating


class RunCheckpoints(Checkpoint):
    """Checkpoints of the run: every ``every`` steps, at the end, and when a run breaks; the newest few are kept.

    Lightning's ModelCheckpoint keeps one, and saves before the step's metrics are on disk.

    Args:
        folder: where they go.
        every: steps between them.
        keep: how many stay.
    """

    def __init__(self, folder: str | Path, every: int = 20, keep: int = KEPT) -> None:
        super().__init__()
        self.folder, self.every, self.keep = Path(folder), every, keep
        self._saved = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = trainer.global_step

    # The step's metrics are logged after on_train_batch_end: the next event is a validation, a batch, or the end.

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # With several processes this needs all of them: only where they end together.
        together = trainer.world_size == 1 or cast(SteeringModule, pl_module).processes.ended
        if not together or not can_save(trainer, pl_module):
            return
        try:
            self._save(trainer)
        except SteerkitError as error:
            log.warning("The checkpoint of step %d is not saved: %s", trainer.global_step, error)

    def _save(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step in (0, self._saved):
            return
        trainer.save_checkpoint(checkpoint_path(self.folder, step))
        self._saved = step
        if trainer.is_global_zero:
            for old in checkpoints(self.folder)[self.keep :]:
                old.unlink(missing_ok=True)


class MemberFiles(Callback):
    """``metrics.csv`` of each policy of a sweep, in its folder."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self._files: list[MetricsFile] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        members = cast(SteeringModule, pl_module).members
        self._files = [
            MetricsFile(ensure_folder(member_dir(self.run_dir, member))) for member in members if member.name
        ]

    def go_on_from(self, members: Sequence[Member], step: int, validation_due: bool) -> None:
        """See ``MetricsFile.go_on_from``."""
        for member in members:
            if member.name:
                MetricsFile(member_dir(self.run_dir, member)).go_on_from(step, validation_due)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._files:
            for number, metrics in cast(SteeringModule, pl_module).member_metrics.items():
                self._files[number].log_metrics(metrics, trainer.global_step - 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = cast(SteeringModule, pl_module).member_accuracy.take("val")
        if trainer.state.fn == "fit":
            for file, metrics in zip(self._files, found, strict=False):
                file.log_metrics(metrics, trainer.global_step - 1)


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
        for column in ("problem", "completion", "gold answer", "verdict"):
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
