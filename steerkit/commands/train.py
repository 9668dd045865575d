"""``steerkit fit | validate | test | predict``: Lightning's CLI around SteeringModule and PromptDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from steerkit.commands.console import command_line, prepare, progress_display
from steerkit.errors import SteerkitError
from steerkit.evaluation.results import results_table, write_samples
from steerkit.files import ensure_folder, set_aside, set_aside_file
from steerkit.hookpoints import HookPoint
from steerkit.training import PromptDataModule, SteeringModule
from steerkit.training.callbacks import SampleTable, SteeringProgressBar, VectorWriter
from steerkit.training.report import ReportConfig, final_report


class SteerkitCLI(LightningCLI):
    """LightningCLI with a run folder: config, metrics, checkpoints, vector, results and samples live there."""

    command = "steerkit"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", default="runs/latest", help="folder of this run; an older run is set aside")
        parser.add_argument("--vector_every", type=int, default=20, help="steps between writes of run_dir/vector")
        parser.add_argument("--samples_every", type=int, default=20, help="steps between sample tables; 0: none")
        parser.add_argument("--data_root", type=str | None, default=None, help="folder where relative data paths start")
        parser.add_dataclass_arguments(ReportConfig, "report")
        parser.set_defaults(
            {
                "trainer.devices": 1,
                "trainer.log_every_n_steps": 1,
                "trainer.num_sanity_val_steps": 0,
                "trainer.val_check_interval": 20,
                "trainer.check_val_every_n_epoch": None,  # count validation intervals in steps of the run
                "trainer.enable_model_summary": False,  # says nothing of hook points; before_fit does
            }
        )
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config["data_root"] is not None:
            config["data"]["data_root"] = config["data_root"]
        if str(config["trainer"].get("precision") or "").endswith("-true"):
            raise SteerkitError("trainer.precision would cast the rollouts too: use model.dtype: bfloat16.")
        for name, least in (("vector_every", 1), ("samples_every", 0)):
            if config[name] < least:
                raise SteerkitError(f"{name} must be at least {least}, got {config[name]}.")

    def _option(self, name: str) -> Any:
        return self.config[self.subcommand][name]

    @property
    def run_dir(self) -> Path:
        return Path(self._option("run_dir"))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config[self.subcommand]
        fitting = self.subcommand == "fit"
        ensure_folder(self.run_dir)
        if config["trainer"].get("logger") is None:
            loggers: Any = False
            if fitting:
                loggers = [CSVLogger(self.run_dir, "", ""), TensorBoardLogger(self.run_dir, "tensorboard", "")]
            kwargs["logger"] = loggers
        if config["trainer"].get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(self.run_dir)
        trainer = super().instantiate_trainer(**kwargs)
        if fitting:
            trainer.callbacks[:] = self._callbacks(trainer.callbacks)  # type: ignore[attr-defined]
        return trainer

    def _callbacks(self, given: list[Callback]) -> list[Callback]:
        config = self.config_init[self.subcommand]
        asked = config["trainer"].get("callbacks") or []
        asked = asked if isinstance(asked, list) else [asked]
        default = [c for c in given if type(c) is ModelCheckpoint and c not in asked]
        kept = [c for c in given if c not in default and not (isinstance(c, ProgressBar) and c not in asked)]
        ours: list[Callback] = [
            VectorWriter(self.run_dir / "vector", self.receipts, config["vector_every"]),
            SampleTable(config["samples_every"]),
        ]
        wanted = config["trainer"].get("enable_progress_bar") is not False
        if wanted and not any(isinstance(c, ProgressBar) for c in kept):
            ours.append(SteeringProgressBar())
        if default:  # Lightning's own, at the end of each epoch: ours are in the run folder, every few steps
            every = config["vector_every"]
            ours.append(ModelCheckpoint(self.run_dir / "checkpoints", save_last=True, every_n_train_steps=every))
        # Checkpoints come last (Lightning's rule), so that they see what the others did.
        return sorted([*kept, *ours], key=lambda callback: isinstance(callback, ModelCheckpoint))

    def receipts(self) -> dict[str, Any]:
        """What the vector's card says of its making."""
        settings = self.model.settings
        return {
            "command": self.command,
            "dataset": self.datamodule.set_name,
            "dataset_spec": self.datamodule.spec,
            "steps": self.trainer.global_step,
            "prompts_per_step": self.datamodule.prompts_per_step,
            "samples_per_prompt": settings.samples_per_prompt,
            "temperature": settings.temperature,
            "lr": settings.lr,
            "seed": settings.seed,
            "objective": settings.objective,
            "rewards": settings.rewards,
        }

    def before_fit(self) -> None:
        """Load everything, so that a mistake shows before a step is made or an old run moved; say what is trained."""
        if self.trainer.world_size > 1:
            raise SteerkitError("fit runs on one device so far: set trainer.devices to 1.")
        resume = self._option("ckpt_path")
        if resume == "last" and not (self.run_dir / "checkpoints" / "last.ckpt").exists():
            raise SteerkitError(f"No checkpoint to resume from: {self.run_dir}/checkpoints/last.ckpt does not exist.")
        self.model.trainer = self.trainer
        self.model.configure_model()
        report = self.config_init[self.subcommand]["report"]
        for split in ("train", "validation", "test") if report.arms else ("train",):
            self.datamodule.examples(split)
        if resume:
            set_aside_file(self.run_dir / "metrics.csv")  # the logger would delete it
        else:
            aside = set_aside(self.run_dir)
            if aside is not None:
                print(f"{self.run_dir} held an earlier run: moved to {aside}.")
            ensure_folder(self.run_dir)
        policy, spec = self.model.policy, self.model.settings.intervention
        frozen = sum(p.numel() for p in policy.base.parameters())
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        name = spec if isinstance(spec, str) else spec.get("name", "static")
        print(
            f"{self.model.settings.base}: {policy.n_layers} layers x {policy.d_model}, {frozen:,} frozen parameters. "
            f"Training {trained:,} numbers ({name} at {_places(policy.points, policy.n_layers)}).",
            flush=True,
        )

    def after_fit(self) -> None:
        """Write the vector, measure the arms, print the table."""
        if not self.trainer.is_global_zero:
            return
        self.model.to(self.trainer.strategy.root_device)  # Lightning's teardown moved it to the CPU
        self.model.steering_vector(self.receipts()).save_pretrained(self.run_dir / "vector")
        config = self.config_init[self.subcommand]["report"]
        if not config.arms:
            return
        with progress_display() as progress:
            report = final_report(self.model, self.datamodule, config, self.run_dir, self.command, progress)
        from rich.console import Console

        steps = self.trainer.global_step
        title = f"{self.model.settings.base} on {self.datamodule.set_name}, test split, after {steps} steps"
        console = Console()
        console.print(results_table(report.evaluation.rows, title))
        print(f"Wrote {report.path}, {self.run_dir / 'vector'} and {self.run_dir / 'samples.parquet'}.")

    def after_predict(self) -> None:
        """Write ``predictions.parquet``."""
        records = [record for batch in self.trainer.predict_loop.predictions for record in batch]
        write_samples(self.run_dir / "predictions.parquet", records)
        print(f"Wrote {len(records)} completions to {self.run_dir / 'predictions.parquet'}.")


def _places(points: Sequence[HookPoint], n_layers: int) -> str:
    if len(points) == n_layers:
        return f"all {n_layers} layers"
    return ", ".join(map(str, points[:4])) + (f" and {len(points) - 4} more" if len(points) > 4 else "")


def run(verb: str, arguments: Sequence[str]) -> int:
    """Parse the config and run one of Lightning's verbs."""
    prepare()
    SteerkitCLI.command = command_line(verb, arguments)
    try:
        _run_lightning(verb, arguments)
    except (MisconfigurationException, FileNotFoundError) as error:
        raise SteerkitError(" ".join(str(error).split())) from error
    return 0


def _run_lightning(verb: str, arguments: Sequence[str]) -> None:
    SteerkitCLI(
        SteeringModule,
        PromptDataModule,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfigCallback if verb == "fit" else None,
        save_config_kwargs={"overwrite": True},
        args=[verb, *arguments],
        parser_kwargs={"prog": "steerkit"},
    )
