"""``steerkit fit | validate | test | predict``: Lightning's CLI around SteeringModule and PromptDataModule."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, redirect_stdout
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from steerkit import registry
from steerkit.commands.console import command_line, prepare, progress_display
from steerkit.commands.parsing import FullHelp, OneLineErrors, ShortHelp
from steerkit.commands.training_help import ABOUT, COMMON, TITLES
from steerkit.commands.trust import code_in
from steerkit.errors import SteerkitError, Stopped
from steerkit.evaluation.results import results_table, versions, write_samples
from steerkit.files import ensure_folder, output_folder, remove_unfinished, set_aside
from steerkit.hookpoints import in_words
from steerkit.training import PromptDataModule, SteeringModule
from steerkit.training.callbacks import MemberFiles, RunCheckpoints, SampleTable, SteeringProgressBar, VectorWriter
from steerkit.training.checkpoints import CheckpointFiles, newest_checkpoint, read_checkpoint, set_later_aside
from steerkit.training.distributed import PeerLost, ToldElsewhere
from steerkit.training.logs import MetricsFile
from steerkit.training.members import Sweep
from steerkit.training.policy import trained_parameters
from steerkit.training.receipts import card_rows, residual_norms
from steerkit.training.recovery import stops
from steerkit.training.report import ReportConfig, final_report
from steerkit.training.sharding import ShardedBase
from steerkit.training.sweep_plot import plot_sweep
from steerkit.training.update import check_minibatches

RUN_FILES = {
    *("config.yaml", "metrics.csv", "checkpoints", "tensorboard", "vector", "adapter", "model"),
    *("results.json", "samples.parquet", "predictions.parquet", "faults.jsonl", "sweep", "sweep.png"),
}
"""What a run folder holds: a folder with none of it is no run's, and stays where it is."""


class DryRun(Exception):
    """Not an error: everything has been parsed and built, and nothing is to be trained."""

    def __init__(self, model: SteeringModule, data: PromptDataModule, config: Any) -> None:
        super().__init__()
        self.model, self.data, self.config = model, data, config


class TrainingParser(ShortHelp, OneLineErrors, LightningArgumentParser):
    """Lightning's parser with a help that fits two screens, and complaints of one line."""

    common, titles = COMMON, TITLES


class SteerkitCLI(LightningCLI):
    """LightningCLI with a run folder: config, metrics, checkpoints, vector, results and samples live there."""

    command = "steerkit"
    running: SteerkitCLI | None = None
    """What a signal or an error has stopped: the constructor does all the work."""
    ended = ExitStack()
    """What is done when the run is over."""

    def _parse_ckpt_path(self) -> None:
        """Lightning would take settings from the checkpoint, over what config and command line say."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--help_all", action=FullHelp, help="show every setting (the trainer's too), and exit")
        add("--run_dir", type=str, default="runs/latest", help="folder of this run; an older run is set aside")
        add("--vector_every", type=int, default=20, help="steps between writes of the vector and a checkpoint")
        add("--samples_every", type=int, default=20, help="steps between sample tables; 0: none")
        add("--data_root", type=str | None, default=None, help="folder where relative data paths start")
        add(
            "--dry_run", action="store_true", help="fit: memory and time of a step, and what is missing; trains nothing"
        )
        add("--dry_run_length", type=int | None, default=None, help="tokens of a completion that --dry_run counts with")
        parser.add_dataclass_arguments(ReportConfig, "report")
        parser.add_dataclass_arguments(Sweep, "sweep")
        parser.set_defaults(
            {
                "trainer.devices": 1,
                "trainer.log_every_n_steps": 1,
                "trainer.num_sanity_val_steps": 0,
                "trainer.use_distributed_sampler": False,  # the data module deals the problems out
                "trainer.val_check_interval": 20,
                "trainer.check_val_every_n_epoch": None,  # count validation intervals in steps of the run
                "trainer.enable_model_summary": False,  # says nothing of hook points; before_fit does
            }
        )
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")

    def before_instantiate_classes(self) -> None:
        SteerkitCLI.running = self
        config = self.config[self.subcommand]
        for spec in code_in({"trainer": config["trainer"].as_dict()}):
            if not registry.may_import(spec):
                raise registry.refuse_code(spec, "A config file")
        _refuse_empty("", config, dict.fromkeys(("vector_every", "samples_every"), int) | {"run_dir": str})
        for name, kind in (("model", SteeringModule), ("data", PromptDataModule), ("report", ReportConfig)):
            _refuse_empty(f"{name}.", config[name], get_type_hints(kind.__init__))
        config["model"]["sweep"] = config["sweep"]
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
        if config["dry_run"]:
            raise DryRun(self.model, self.datamodule, config)
        fitting = self.subcommand == "fit"
        self.ended.enter_context(output_folder(self.run_dir))
        self.start, self.start_state = self._resume_from()
        step = int(self.start_state.get("step", 0))
        if config["trainer"].get("logger") is None:
            loggers: Any = False
            if fitting:
                # purge_step: TensorBoard forgets the steps that are made again.
                purge: dict[str, Any] = {"purge_step": step} if self.start else {}
                loggers = [MetricsFile(self.run_dir), TensorBoardLogger(self.run_dir, "tensorboard", "", **purge)]
            kwargs["logger"] = loggers
        if config["trainer"].get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(self.run_dir)
        plugins = self.config_init[self.subcommand]["trainer"].get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, CheckpointFiles()]
        trainer = super().instantiate_trainer(**kwargs)
        if fitting:
            trainer.callbacks[:] = self._callbacks(trainer.callbacks)  # type: ignore[attr-defined]
        return trainer

    def _resume_from(self) -> tuple[Path | None, dict[str, Any]]:
        """The checkpoint to go on from, and what steerkit keeps in it; None where there is none yet."""
        asked = self._option("ckpt_path")
        path: Path | None = Path(asked) if asked not in (None, "last", "best", "hpc") else None
        if asked == "last":
            path = newest_checkpoint(self.run_dir / "checkpoints")
            if path is None and self.subcommand != "fit":
                raise SteerkitError(f"No checkpoint in {self.run_dir / 'checkpoints'}.")
        if path is None:
            return None, {}
        content = read_checkpoint(path)
        return path, content.get("steerkit") or {"step": content.get("global_step", 0)}

    def _callbacks(self, given: list[Callback]) -> list[Callback]:
        config = self.config_init[self.subcommand]
        asked = config["trainer"].get("callbacks") or []
        asked = asked if isinstance(asked, list) else [asked]
        default = [c for c in given if type(c) is ModelCheckpoint and c not in asked]  # at the end of each epoch
        kept = [c for c in given if c not in default and not (isinstance(c, ProgressBar) and c not in asked)]
        ours: list[Callback] = [
            VectorWriter(self.run_dir, self.receipts, config["vector_every"]),
            SampleTable(config["samples_every"]),
            MemberFiles(self.run_dir),
        ]
        wanted = config["trainer"].get("enable_progress_bar") is not False
        if wanted and not any(isinstance(c, ProgressBar) for c in kept):
            ours.append(SteeringProgressBar())
        if default:
            ours.append(RunCheckpoints(self.run_dir / "checkpoints", config["vector_every"]))
        # Checkpoints come last (Lightning's rule), so that they see what the others did.
        return sorted([*kept, *ours], key=lambda callback: isinstance(callback, Checkpoint))

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
            "minibatches": settings.minibatches,
            "temperature": settings.temperature,
            "lr": settings.lr,
            "seed": settings.seed,
            "objective": settings.objective,
            "rewards": settings.rewards,
        }

    def before_fit(self) -> None:
        """Load everything, so that a mistake shows before a step is made or an old run moved; say what is trained."""
        sharded = isinstance(self.trainer.strategy, ShardedBase)
        self.datamodule.check_shares(1 if sharded else self.trainer.world_size)
        check_minibatches(self.model.settings.minibatches, self.datamodule.prompts_per_step)
        self.model.trainer = self.trainer
        self.model.configure_model()
        self.model.rubric.record_faults(self.run_dir / "faults.jsonl")
        report = self.config_init[self.subcommand]["report"]
        for split in dict.fromkeys(("train", "validation", report.split)) if report.arms else ("train",):
            self.datamodule.examples(split)
        self.config_init[self.subcommand]["ckpt_path"] = None if self.start is None else str(self.start)
        if not self.trainer.is_global_zero:
            return
        self._prepare_folder()
        policy, name = self.model.policy, self.model.intervention_name
        trained = [p for _, group in trained_parameters(policy) for p in group]
        own = {id(p) for p in trained}
        frozen = sum(p.numel() for p in policy.base.parameters() if id(p) not in own)
        where = f" at {in_words(policy.points, policy.n_layers)}" if policy.points else ""
        mask = "" if policy.token_mask.everywhere else f", token mask {policy.token_mask}"
        count = len(self.model.members)
        name = f"{name}, a sweep of {count} policies" if count > 1 else name
        print(
            f"{self.model.settings.base}: {policy.n_layers} layers x {policy.d_model}, {frozen:,} frozen parameters. "
            f"Training {sum(p.numel() for p in trained):,} numbers ({name}{where}{mask}).",
            flush=True,
        )

    def _prepare_folder(self) -> None:
        """Set an old run aside, or what a resumed run makes again."""
        if self._option("ckpt_path"):
            step = int(self.start_state.get("step", 0))
            inside = self.start is None or self.start.resolve().parent == (self.run_dir / "checkpoints").resolve()
            if inside:
                remove_unfinished(self.run_dir)
                set_later_aside(self.run_dir / "checkpoints", self.start)
                for logger in self.trainer.loggers:
                    if isinstance(logger, MetricsFile):
                        logger.go_on_from(step, bool(self.start_state.get("validation_due")))
                MemberFiles(self.run_dir).go_on_from(
                    self.model.members, step, bool(self.start_state.get("validation_due"))
                )
            print(
                f"Going on from {self.start} (step {step})."
                if self.start
                else f"No checkpoint in {self.run_dir / 'checkpoints'} yet: starting from the beginning."
            )
            return
        there = {entry.name for entry in self.run_dir.iterdir()}
        if there and not there & RUN_FILES:
            raise SteerkitError(f"run_dir {self.run_dir} holds other files and no run: give another folder.")
        aside = set_aside(self.run_dir)
        if aside is not None:
            print(f"{self.run_dir} held an earlier run: moved to {aside}.")
        ensure_folder(self.run_dir)

    def after_fit(self) -> None:
        """Write the vector, measure the arms, print the table.

        The other processes are done, unless the base is spread over them.
        """
        stops.check()
        if self.trainer.is_global_zero:
            self._report(self.run_dir)
        elif isinstance(self.trainer.strategy, ShardedBase):
            with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                self._report(Path(folder))  # each of its forward passes needs all processes

        if broken := self.model.failed.summary():
            print(broken, file=sys.stderr)

    def _report(self, run_dir: Path) -> None:
        self.model.to(self.trainer.strategy.root_device)  # Lightning's teardown moved it to the CPU
        receipts = self.receipts() | {"residual_norms": residual_norms(self.model, self.datamodule)}
        saved = self.model.save_trained(run_dir, receipts)
        config = self.config_init[self.subcommand]["report"]
        if not config.arms:
            print(f"Wrote {saved}.")
            return
        with progress_display() if self.trainer.is_global_zero else nullcontext() as progress:
            report = final_report(self.model, self.datamodule, config, run_dir, self.command, progress)
        receipts |= {"results": card_rows(report.evaluation.rows), "environment": versions()}
        self.model.save_trained(run_dir, receipts)  # again, now that its card can say what it does
        from rich.console import Console

        steps = self.trainer.global_step
        name = self.datamodule.split_name(config.split)
        title = f"{self.model.settings.base} on {name}, {config.split} split, after {steps} steps"
        console = Console()
        console.print(results_table(report.evaluation.rows, title))
        if self.model.sweep.on:
            plot_sweep(report.evaluation.rows, run_dir / "sweep.png")
        print(f"Wrote {report.path}, {saved} and {run_dir / 'samples.parquet'}.")
        if Path(saved).name == "vector":
            given = f"--model {self.model.settings.base} --vector {saved}"
            print(f"Next: steerkit chat {given}")
            print(f"      steerkit analyze logit_lens {given} --out {run_dir / 'lens'}")

    def after_predict(self) -> None:
        """Write ``predictions.parquet``."""
        own = [record for batch in self.trainer.predict_loop.predictions for record in batch]
        parts = self.model.processes.objects(own)
        if not self.trainer.is_global_zero:
            return
        # Dealt out one by one: taken back the same way.
        records = [record for row in zip_longest(*parts) for record in row if record is not None]
        write_samples(self.run_dir / "predictions.parquet", records)
        print(f"Wrote {len(records)} completions to {self.run_dir / 'predictions.parquet'}.")

    def stopped(self, stop: Stopped) -> Stopped:
        """The same, with what was saved and how to go on."""
        step = self.trainer.global_step if hasattr(self, "trainer") else 0
        on = self.command if "--ckpt_path" in self.command else f"{self.command} --ckpt_path last"
        if self.subcommand != "fit" or step == 0:
            return Stopped(stop.signum, f"stopped by {stop.cause}; nothing was trained.")
        done = f"stopped by {stop.cause} after step {step}; {self.run_dir} has its vector and checkpoint."
        return Stopped(stop.signum, f"{done} Go on with: {on}")

    def end_children(self) -> None:
        """The processes that Lightning started for the other devices: they end by themselves, or are ended."""
        trainer = getattr(self, "trainer", None)
        children = getattr(trainer.strategy.launcher, "procs", []) if trainer is not None else []
        until = time.monotonic() + 15
        for child in children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()


def _refuse_empty(prefix: str, values: Any, hints: Mapping[str, Any]) -> None:
    """A line without a value in a config reads as null, which the config parser lets pass everywhere."""
    if values is None:
        raise SteerkitError(f"{prefix.rstrip('.')} is empty: give its settings, or leave it out.")
    for name, hint in hints.items():
        if name in values and values[name] is None and type(None) not in (hint, *get_args(hint)):
            raise SteerkitError(f"{prefix}{name} is empty: give it a value, or leave it out.")


def run(verb: str, arguments: Sequence[str]) -> int:
    """Parse the config and run one of Lightning's verbs."""
    prepare()
    SteerkitCLI.command, SteerkitCLI.running = command_line(verb, arguments), None
    parent = os.getppid()
    try:
        with stops:
            _run_lightning(verb, arguments)
    except DryRun as asked:
        if verb != "fit":
            raise SteerkitError(f"--dry_run belongs to fit, not to {verb}.") from None
        from steerkit.commands.dry_run import dry_run

        return dry_run(asked.model, asked.data, asked.config, arguments)
    except BaseException as error:
        cli = SteerkitCLI.running
        if cli is None or not hasattr(cli, "trainer"):
            return _raise(error, cli)
        if cli.trainer.is_global_zero:
            cli.end_children()
            return _raise(error, cli)
        # Another process says what happened; to Lightning's launcher a child that fails is a reason to kill them all.
        if isinstance(error, ToldElsewhere | Stopped) or (isinstance(error, PeerLost) and os.getppid() == parent):
            return 2 if cli.trainer.strategy.cluster_environment.creates_processes_externally else 0
        return _raise(error, cli)
    return 0


def _raise(error: BaseException, cli: SteerkitCLI | None) -> int:
    if isinstance(error, Stopped) and cli is not None:
        raise cli.stopped(error) from error
    if isinstance(error, MisconfigurationException | OSError):
        raise SteerkitError(" ".join(str(error).split())) from error
    raise error


def _run_lightning(verb: str, arguments: Sequence[str]) -> None:
    with ExitStack() as SteerkitCLI.ended:
        SteerkitCLI(
            SteeringModule,
            PromptDataModule,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfigCallback if verb == "fit" else None,
            save_config_kwargs={"overwrite": True},
            args=[verb, *arguments],
            parser_class=TrainingParser,
            parser_kwargs={"prog": "steerkit", **{name: {"description": text} for name, text in ABOUT.items()}},
        )
