"""SteeringModule: the LightningModule that trains interventions on a frozen base with a policy-gradient objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch

from steerkit import registry
from steerkit.datasets import PromptTemplate
from steerkit.errors import SteerkitError
from steerkit.evaluation import AvgAtK
from steerkit.evaluation.arms import correct_table, judge_groups, sample_records
from steerkit.models import LoadedModel, fingerprint, load_model
from steerkit.rewards import Rubric, Verifiable
from steerkit.rollouts import EncodedPrompt, Sampler, SamplingParams, encode_prompts, fold_seed, without_streams
from steerkit.training import memory, saving
from steerkit.training.checkpoints import check_same_keys
from steerkit.training.distributed import Processes
from steerkit.training.failed import FailedMembers
from steerkit.training.members import (
    Member,
    MemberAccuracy,
    Sweep,
    accuracy_key,
    build_members,
    optimizer_groups,
    together,
)
from steerkit.training.metrics import StepTable, mean_metrics, step_metrics
from steerkit.training.parity import check_parity
from steerkit.training.recovery import stops
from steerkit.training.schedule import check_schedule
from steerkit.training.sharding import check_shardable, loading_device, shard, spreads
from steerkit.training.state import RunState
from steerkit.training.update import update
from steerkit.types import Example, RolloutGroup
from steerkit.vectors import SteeringVector

PREFIXES = ("policy.steering.", "policy.adapter.")
"""State-dict keys of what is trained; the base's weights are never in a checkpoint."""

IN_THE_BAR = ("reward", "accuracy", "length", "tok/s")
"""Metrics that the progress bar shows."""


class SteeringModule(L.LightningModule):
    """On-policy RL of steering vectors, one step a batch.

    Args:
        base: plugin of group ``steerkit.models``, local folder, or hub id.
        intervention: plugin of group ``steerkit.interventions``, or ``{name: ..., **settings}``; also the baselines
            that change weights instead, ``lora`` and ``full``.
        layers: ``all``, one layer (negative counts from the end), or a list of layers.
        site: where in a block: ``output``, ``attn_output``, ``mlp_output``, ``down_proj``; default: the
            intervention's own.
        token_mask: the positions that are steered: ``all``, ``prompt``, ``generated``, ``first_generated``,
            ``not_first_generated``, ``last_prompt:N``, ``segment:NAME``. A mask names the position whose logits predict
            the token.
        vector: folder of a steering vector to start from (or to validate); replaces ``intervention``, ``layers``,
            ``site``.
        sweep: several policies in one run, as rows of one batch.
        lr: AdamW's learning rate, or ``{default: 0.05, layers.5.output: 0.5}``: late layers need 10 to 100 times more.
        betas: AdamW's; a run of few steps may want less than the usual 0.9 of the first.
        weight_decay: AdamW's; it would pull the vector back to the base.
        warmup_steps: linear warm-up of the learning rate.
        decay_steps: the last steps, over which it falls linearly towards 0; 0: constant to the end.
        grad_clip: the largest global norm of the gradient; 0 turns clipping off.
        minibatches: AdamW updates a step, each of a part of the step's problems: large batches are sampled faster, and
            small ones learn as much from fewer samples. 1 is on-policy; from the second update on tokens are weighed by
            importance, at most 2.
        objective: plugin of group ``steerkit.objectives``.
        rewards: what a rubric takes: a plugin's name, ``{name: weight}``, or a list of ``{name: ..., weight: ...}``.
        sampler: plugin of group ``steerkit.samplers``.
        samples_per_prompt: K, at least 2 (the other K - 1 are the baseline).
        temperature: of the rollouts; the trained policy is the one at this temperature.
        max_tokens: length limit of a completion; a cut-off one counts as wrong.
        template: how a problem is put to the model.
        micro_batch_tokens: padded tokens in one forward and backward pass, at most.
        memory_budget: GB (10^9 bytes) for a step's activations; default: 1 on a CPU, else a quarter of the memory.
        validation_temperatures: the validation accuracy is taken at each of these.
        dtype: of the base: ``auto`` (as saved; float32 on a CPU), ``float32``, ``bfloat16``...
        layout: where the blocks are, for a family that steerkit doesn't know.
        trust_remote_code: run modelling code that comes with the checkpoint.
        seed: of the rollouts.
    """

    def __init__(
        self,
        base: str = "tiny-reasoner",
        intervention: str | dict[str, Any] = "static",
        layers: str | int | list[int | str] = "all",
        site: str | None = None,
        token_mask: str = "all",
        vector: str | None = None,
        sweep: Sweep = Sweep(),  # noqa: B008 (frozen)
        lr: float | dict[str, float] = 0.05,
        betas: list[float] = [0.9, 0.999],  # noqa: B006 (never changed; the CLI shows the default)
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay_steps: int = 0,
        grad_clip: float = 2.0,
        minibatches: int = 1,
        objective: str | dict[str, Any] = "rloo",
        rewards: str | dict[str, float] | list[str | dict[str, Any]] = "verifiable",
        sampler: str | dict[str, Any] = "fast",
        samples_per_prompt: int = 16,
        temperature: float = 1.0,
        max_tokens: int = 128,
        template: PromptTemplate = PromptTemplate(),  # noqa: B008 (frozen)
        micro_batch_tokens: int = 16384,
        memory_budget: float | None = None,
        validation_temperatures: list[float] = [0.0, 1.0],  # noqa: B006 (never changed; the CLI shows the default)
        dtype: str = "auto",
        layout: dict[str, str] | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if samples_per_prompt < 2:
            raise SteerkitError(
                f"samples_per_prompt must be at least 2, got {samples_per_prompt}: "
                "RLOO compares the samples of one prompt with each other."
            )
        if temperature <= 0:
            raise SteerkitError(f"temperature must be above 0 in training, got {temperature}: greedy has no gradient.")
        check_schedule(warmup_steps, decay_steps, betas)
        self.save_hyperparameters()
        self.settings: Any = self.hparams
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the interventions only
        self.template, self.sweep = template, sweep
        self.members: list[Member] = []
        self.params = SamplingParams(temperature, max_tokens)
        self.objective = registry.build("objectives", objective)
        self.sampler: Sampler = registry.build("samplers", sampler)
        self.rubric = Rubric(rewards)
        judges = (self.rubric[name] for name in self.rubric.names)
        self.judge = next((reward for reward in judges if isinstance(reward, Verifiable)), None) or Verifiable()
        self.loaded: LoadedModel | None = None
        self.budget = memory.Budget(memory_budget)
        self.run_state = RunState(self.rubric, micro_batch_tokens, self.budget)
        self.last_groups: list[RolloutGroup] = []
        self.last_verdicts: Any = None
        self.processes = Processes()
        self._validated_at = -1
        self._is_spread = self._probed = False
        # A ModuleDict, so that Lightning finds the metrics and moves them; a sweep's members have theirs beside it.
        self.accuracy_at = torch.nn.ModuleDict({accuracy_key(t): AvgAtK() for t in validation_temperatures})
        self.member_metrics: dict[int, dict[str, float]] = {}
        self.member_accuracy = MemberAccuracy()

    # -- the model

    def configure_model(self) -> None:
        """Load the base and place the interventions (Lightning calls this before any use, more than once)."""
        if self.loaded is None:
            options = self.settings
            loaded = load_model(
                options.base,
                dtype=options.dtype,
                device=loading_device(self._trainer, self.device, options.dtype),
                trust_remote_code=options.trust_remote_code,
                layout=options.layout,
            )
            self.fingerprint = fingerprint(loaded.base)
            where = {name: options[name] for name in ("intervention", "layers", "site", "token_mask", "vector")}
            self.intervention_name, self.members = build_members(loaded, self.sweep, where, options.seed, options.lr)
            self.policy = together(self.members)
            self.failed = FailedMembers(self.members, self.run_state)
            self.loaded = loaded
        if spreads(self._trainer) and self._device_mesh is not None and not self._is_spread:
            check_shardable(self.policy, self.sampler)
            shard(self.policy, self._device_mesh["data_parallel"])
            self._is_spread = True

    def encode(self, examples: Sequence[Example], long_prompts: Literal["refuse", "drop"]) -> list[EncodedPrompt]:
        """Prompts for this policy."""
        self.configure_model()
        assert self.loaded is not None
        return encode_prompts(
            self.loaded.base,
            self.loaded.tokenizer,
            self.template,
            examples,
            self.params.max_tokens,
            long_prompts,
            segments=self.policy.token_mask.segment is not None,
        )

    def steering_vector(self, receipts: dict[str, Any] | None = None, member: int = 0) -> SteeringVector:
        """The current vector as a value, with what is known of its making.

        Args:
            member: which of a sweep's policies.

        Raises:
            SteerkitError: if a baseline that changes weights is trained: ``save_trained`` writes that.
        """
        self.configure_model()
        return saving.steering_vector(self, receipts or {}, member)

    def save_trained(self, run_dir: Path, receipts: dict[str, Any]) -> Path:
        """Write what was trained so far into the run's folder: ``vector/``, a baseline's ``adapter/`` or ``model/``, or
        ``sweep/NAME/vector/`` for each policy of a sweep.
        """
        self.configure_model()
        return saving.save_trained(self, run_dir, receipts)

    # -- training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups, options = list(optimizer_groups(self.members)), self.settings
        return torch.optim.AdamW(groups, betas=tuple(options.betas), weight_decay=options.weight_decay)

    def on_fit_start(self) -> None:
        self.rubric.warm()  # verifier processes start while the first rollouts are sampled

    def setup(self, stage: str) -> None:
        trainer, strategy = self.trainer, self.trainer.strategy
        self.processes = Processes(trainer.global_rank, trainer.world_size, strategy.root_device, spreads(trainer))

    def on_train_start(self) -> None:
        if self.processes.size > 1:
            stops.deferred = True  # they stop together, where they meet
        stops.install()
        self.run_state.restore(self.processes.rank)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        stops.release()

    def on_train_end(self) -> None:
        stops.deferred = False
        stops.release()

    def training_step(self, batch: list[EncodedPrompt], batch_idx: int) -> None:
        assert self.loaded is not None
        self.run_state.begin_step()
        processes, began = self.processes, time.perf_counter()
        k, pad_id = self.settings.samples_per_prompt, self.loaded.tokenizer.pad_token_id
        seeds = [fold_seed(member.seed, self.global_step) for member in self.members]
        live = set(self.failed.live)
        batch = [replace(prompt, seed=seeds[prompt.policy]) for prompt in batch if prompt.policy in live]
        with processes.phase():
            params = self.budget.keeping(self.policy, batch, k, self.params)
            if not self._probed:
                stops.hold()  # the probe steers at random: nothing may be saved before it has put the policy back
                check_parity(self.policy, self.sampler, self.loaded.tokenizer, batch, params)
                self._probed = True
                stops.release()
            retry = not processes.mirrored
            groups = memory.sample(self.sampler, self.policy, self.loaded.tokenizer, batch, k, params, seeds[0], retry)
            sampled = time.perf_counter()
            scores = self.rubric.score(groups)
            own = StepTable.of(groups, scores)
        table = StepTable(own.names, processes.gathered(own.values, dim=1))
        # A sweep runs in one process, so there the table's groups are those that were sampled here.
        owners = [[g for g, group in enumerate(groups) if group.policy == p] for p in range(len(self.members))]
        tables = [table] if len(self.members) == 1 else [table.pick(own) for own in owners]
        judged = time.perf_counter()
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        with processes.phase():
            self.failed.check_samples([part["log_prob"] for part in tables])
            advantages = self.objective.advantages(table.rewards, table.valid)
            most = self.run_state.micro_batch_tokens
            tokens = self.budget.micro_batch_tokens(self.policy, batch, self.params.max_tokens, pad_id, most)
        everyone = owners if len(self.members) > 1 else [list(range(len(advantages)))]
        updated = update(self, optimizer, groups, everyone, table["length"].sum(dim=1), advantages, tokens)
        done = time.perf_counter()
        self.run_state.end_step(self.global_step, table.n_tokens, done - began)
        self.last_groups, self.last_verdicts = [without_streams(group) for group in groups], scores.verdicts
        rows = [slice(None)] if len(self.members) == 1 else owners
        self.member_metrics = {
            m: step_metrics(tables[m], advantages[rows[m]], self.members[m].policy)
            | {"grad_norm": updated.grad_norm[m]}
            for m in self.failed.live
        }
        metrics = mean_metrics(list(self.member_metrics.values())) | {
            **updated.importance.metrics(),
            "loss": updated.loss,
            "logprob_gap": updated.logprob_gap,
            "num_tokens": float(self.run_state.generated_tokens),
            "tokens_per_second": table.n_tokens / (sampled - began),
            "tok/s": table.n_tokens / (done - began),
            "lr": optimizer.param_groups[0]["lr"],
            "time/rollout": sampled - began,
            "time/verify": judged - sampled,
            "time/update": done - judged,
        }
        bar = set(IN_THE_BAR) - ({"accuracy"} if scores.verdicts is None else set())  # no reward judges: it is NaN
        for shown in (True, False):
            values = {name: value for name, value in metrics.items() if (name in bar) == shown}
            self.log_dict(values, prog_bar=shown, batch_size=len(batch))

    # -- validation, test, prediction

    def _accuracy_step(self, batch: list[EncodedPrompt], stage: str) -> None:
        assert self.loaded is not None
        tagged = [replace(prompt, policy=p) for p in range(len(self.members)) for prompt in batch]
        with self.sampler.unchanged_model():
            for temperature in self.settings.validation_temperatures:
                self._accuracy_at(temperature, batch, tagged, stage)

    def _accuracy_at(
        self, temperature: float, batch: list[EncodedPrompt], tagged: list[EncodedPrompt], stage: str
    ) -> None:
        assert self.loaded is not None
        metric = cast(AvgAtK, self.accuracy_at[accuracy_key(temperature)])
        params = SamplingParams(temperature, self.params.max_tokens)
        with self.processes.phase():
            if batch:  # with more processes than problems some get none
                groups = self.sampler.sample(self.policy, self.loaded.tokenizer, tagged, 1, params, self.settings.seed)
                table = torch.as_tensor(
                    correct_table(judge_groups(self.judge, groups)), device=self.device, dtype=torch.float32
                )
                metric.update(table)
                if len(self.members) > 1:
                    self.member_accuracy.update(temperature, table.reshape(len(self.members), len(batch)))
        self.log(f"{stage}/accuracy@T={temperature:g}", metric, on_epoch=True, prog_bar=True, batch_size=len(batch))

    def validation_step(self, batch: list[EncodedPrompt], batch_idx: int) -> None:
        self._accuracy_step(batch, "val")

    def test_step(self, batch: list[EncodedPrompt], batch_idx: int) -> None:
        self._accuracy_step(batch, "test")

    def predict_step(self, batch: list[EncodedPrompt], batch_idx: int) -> list[dict[str, Any]]:
        """One sample a problem, with its verdict, as flat records (Lightning can't carry frozen ones)."""
        assert self.loaded is not None
        if not batch:
            return []
        groups = self.sampler.sample(self.policy, self.loaded.tokenizer, batch, 1, self.params, self.settings.seed)
        return sample_records(groups, judge_groups(self.judge, groups), {"temperature": self.params.temperature})

    # -- what a run goes on from

    @property
    def last_step(self) -> int:
        """Optimiser steps made."""
        return self.run_state.step

    @property
    def seconds_per_step(self) -> list[float]:
        """Of the latest steps."""
        return self.run_state.seconds_per_step

    def on_validation_start(self) -> None:
        stops.install()
        stops.release()
        self.run_state.begin_validation()

    def on_validation_end(self) -> None:
        self._validated_at = self.last_step
        self.run_state.end_validation()

    @property
    def validation_due(self) -> bool:
        """Whether a validation follows the step that was made last, and has not been finished."""
        trainer, step = self.trainer, self.last_step
        every = getattr(trainer, "val_check_batch", None)
        if trainer.check_val_every_n_epoch is not None or not trainer.enable_validation or not isinstance(every, int):
            return False
        return step > 0 and step % every == 0 and self._validated_at != step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Interventions, optimiser, counters and random states; never the base."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key.startswith(PREFIXES)}
        endless = self.trainer.max_epochs in (None, -1) and self.trainer.max_steps > 0
        length = float("inf") if endless else self.trainer.num_training_batches
        self.run_state.save(checkpoint, self.processes, length, self.validation_due)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = (checkpoint["state_dict"], self.state_dict())
        check_same_keys(*({key for key in state if key.startswith(PREFIXES)} for state in states))
        self.run_state.load(checkpoint)

    def teardown(self, stage: str) -> None:
        stops.deferred = False
        self.rubric.close()
        self.judge.close()
