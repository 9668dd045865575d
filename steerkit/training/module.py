"""SteeringModule: the LightningModule that trains interventions on a frozen base with a policy-gradient objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, cast

import lightning as L
import torch

from steerkit import registry
from steerkit.datasets import PromptTemplate
from steerkit.errors import SteerkitError, TrainingError
from steerkit.evaluation import AvgAtK
from steerkit.evaluation.arms import correct_table, judge_groups, sample_records
from steerkit.hookpoints import HookPoint, parse_layers
from steerkit.models import LoadedModel, SteeredModel, fingerprint, load_model
from steerkit.rewards import Rubric, Verifiable
from steerkit.rollouts import EncodedPrompt, Sampler, SamplingParams, encode_prompts, fold_seed
from steerkit.training.metrics import step_metrics
from steerkit.training.step import accumulate_gradients, clip_gradients
from steerkit.types import Example, RolloutGroup
from steerkit.vectors import SteeringVector, VectorMetadata

PREFIX = "policy.steering."
"""State-dict keys of what is trained; the base's weights are never in a checkpoint."""

PARITY = {True: 0.05, False: 0.5}
"""Largest difference (nats) of a token's log-probability between sampler and trainer: fp32 base, 16-bit base."""


class SteeringModule(L.LightningModule):
    """On-policy RL of steering vectors (mission: one optimiser step a batch).

    Args:
        base: plugin of group ``steerkit.models``, local folder, or hub id.
        intervention: plugin of group ``steerkit.interventions``, or ``{name: ..., **settings}``.
        layers: ``all``, one layer (negative counts from the end), or a list of layers.
        vector: folder of a steering vector to start from (or to validate); replaces ``intervention`` and ``layers``.
        lr: AdamW's learning rate, or ``{default: 0.05, layers.5.output: 0.5}``: late layers need 10 to 100 times more.
        weight_decay: AdamW's; it would pull the vector back to the base.
        warmup_steps: linear warm-up; constant afterwards.
        grad_clip: the largest global norm of the gradient; 0 turns clipping off.
        objective: plugin of group ``steerkit.objectives``.
        rewards: what a rubric takes: a plugin's name, ``{name: weight}``, or a list of ``{name: ..., weight: ...}``.
        sampler: plugin of group ``steerkit.samplers``.
        samples_per_prompt: K, at least 2 (the other K - 1 are the baseline).
        temperature: of the rollouts; the trained policy is the one at this temperature.
        max_tokens: length limit of a completion; a cut-off one counts as wrong.
        prompt: how a problem is put to the model.
        micro_batch_tokens: padded tokens in one forward and backward pass.
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
        vector: str | None = None,
        lr: float | dict[str, float] = 0.05,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        grad_clip: float = 2.0,
        objective: str | dict[str, Any] = "rloo",
        rewards: str | dict[str, float] | list[str | dict[str, Any]] = "verifiable",
        sampler: str | dict[str, Any] = "transformers",
        samples_per_prompt: int = 16,
        temperature: float = 1.0,
        max_tokens: int = 128,
        prompt: PromptTemplate = PromptTemplate(),  # noqa: B008 (frozen)
        micro_batch_tokens: int = 16384,
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
        self.save_hyperparameters()
        self.settings: Any = self.hparams
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the interventions only
        self.prompt = prompt
        self.params = SamplingParams(temperature, max_tokens)
        self.objective = registry.build("objectives", objective)
        self.sampler: Sampler = registry.build("samplers", sampler)
        self.rubric = Rubric(rewards)
        judges = (self.rubric[name] for name in self.rubric.names)
        self.judge = next((reward for reward in judges if isinstance(reward, Verifiable)), None) or Verifiable()
        self.loaded: LoadedModel | None = None
        self.seconds_per_step: list[float] = []
        self.last_groups: list[RolloutGroup] = []
        self.last_verdicts: Any = None
        self.generated_tokens = 0
        self.last_step = 0
        # A ModuleDict, so that Lightning finds the metrics and moves them; keys may not hold a dot.
        self.accuracy_at = torch.nn.ModuleDict({_key(t): AvgAtK() for t in validation_temperatures})

    # -- the model

    def configure_model(self) -> None:
        """Load the base and place the interventions (Lightning calls this before any use, more than once)."""
        if self.loaded is not None:
            return
        options = self.settings
        loaded = load_model(
            options.base,
            dtype=options.dtype,
            device=self._target_device(),
            trust_remote_code=options.trust_remote_code,
            layout=options.layout,
        )
        if options.vector:
            start = SteeringVector.from_pretrained(options.vector)
            self.intervention_name = start.intervention
            self.policy = start.steer(loaded.base, loaded.layout)
        else:
            spec = options.intervention
            settings = dict(spec) if isinstance(spec, dict) else {"name": spec}
            name = settings.pop("name", "static")
            bare = SteeredModel(loaded.base, {}, loaded.layout)
            points = parse_layers(options.layers, bare.n_layers)
            self.intervention_name = name
            plugin = registry.resolve("interventions", name)
            built = plugin.build(points, bare.d_model, **settings)
            self.policy = SteeredModel(loaded.base, built, loaded.layout)
        self.loaded = loaded

    def _target_device(self) -> torch.device:
        """Where the strategy will put the module: it decides what ``dtype: auto`` means."""
        trainer = self._trainer
        return self.device if trainer is None else trainer.strategy.root_device

    def encode(self, examples: Sequence[Example], long_prompts: Literal["refuse", "drop"]) -> list[EncodedPrompt]:
        """Prompts for this policy."""
        self.configure_model()
        assert self.loaded is not None
        return encode_prompts(
            self.loaded.base, self.loaded.tokenizer, self.prompt, examples, self.params.max_tokens, long_prompts
        )

    def steering_vector(self, receipts: dict[str, Any] | None = None) -> SteeringVector:
        """The current vector as a value, with what is known of its making."""
        self.configure_model()
        assert self.loaded is not None
        metadata = VectorMetadata(
            model=self.loaded.name,
            fingerprint=fingerprint(self.loaded.base),
            d_model=self.policy.d_model,
            n_layers=self.policy.n_layers,
            receipts={"prompt": self.prompt.to_dict(), "max_tokens": self.params.max_tokens, **(receipts or {})},
        )
        return SteeringVector.from_interventions(self.intervention_name, self.policy.interventions, metadata)

    # -- training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rates = learning_rates(self.settings.lr, self.policy.points, self.policy.n_layers)
        groups, seen = [], set()
        for point, intervention in self.policy.interventions.items():
            fresh = [p for p in intervention.parameters() if p not in seen]  # points may share parameters
            seen.update(fresh)
            if fresh:
                groups.append({"params": fresh, "lr": rates[point], "full_lr": rates[point]})
        return torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay)

    def training_step(self, batch: list[EncodedPrompt], batch_idx: int) -> None:
        assert self.loaded is not None
        began = time.perf_counter()
        seed = fold_seed(self.settings.seed, self.global_step)
        groups = self.sampler.sample(
            self.policy, self.loaded.tokenizer, batch, self.settings.samples_per_prompt, self.params, seed
        )
        sampled = time.perf_counter()
        scores = self.rubric.score(groups)
        advantages = self.objective.advantages(scores.total, scores.valid)
        judged = time.perf_counter()
        n_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        optimizer.zero_grad()
        stats = accumulate_gradients(
            self.policy,
            self.objective,
            groups,
            advantages,
            n_tokens,
            self.loaded.tokenizer.pad_token_id,
            self.params.temperature,
            self.settings.micro_batch_tokens,
            self.manual_backward,
        )
        if self.global_step == 0 and stats.logprob_gap > PARITY[self.policy.dtype == torch.float32]:
            raise TrainingError(
                f"Sampler and trainer disagree: log-probabilities of the same tokens differ by {stats.logprob_gap:.3g} "
                "nats. The model's cached or padded decoding is not its full pass; try another dtype or sampler."
            )
        norm = clip_gradients([p for p in self.policy.parameters() if p.requires_grad], self.settings.grad_clip)
        warm = min(1.0, (self.global_step + 1) / max(1, self.settings.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * warm
        optimizer.step()
        done = time.perf_counter()

        self.generated_tokens += n_tokens
        self.last_step = self.global_step
        self.seconds_per_step.append(done - began)
        self.last_groups, self.last_verdicts = groups, scores.verdicts
        metrics = step_metrics(groups, scores, advantages, self.policy)
        bar = {
            "reward": metrics.pop("reward"),
            "accuracy": metrics.pop("accuracy"),
            "length": metrics["completions/mean_length"],
        }
        bar["tok/s"] = n_tokens / (done - began)
        metrics |= {
            "loss": stats.loss,
            "grad_norm": norm,
            "logprob_gap": stats.logprob_gap,
            "num_tokens": float(self.generated_tokens),
            "tokens_per_second": n_tokens / (sampled - began),
            "lr": optimizer.param_groups[0]["lr"],
            "time/rollout": sampled - began,
            "time/verify": judged - sampled,
            "time/update": done - judged,
        }
        self.log_dict(bar, prog_bar=True, batch_size=len(batch))
        self.log_dict(metrics, batch_size=len(batch))

    # -- validation, test, prediction

    def _accuracy_step(self, batch: list[EncodedPrompt], stage: str) -> None:
        assert self.loaded is not None
        for temperature in self.settings.validation_temperatures:
            metric = cast(AvgAtK, self.accuracy_at[_key(temperature)])
            params = SamplingParams(temperature, self.params.max_tokens)
            groups = self.sampler.sample(self.policy, self.loaded.tokenizer, batch, 1, params, self.settings.seed)
            table = correct_table(judge_groups(self.judge, groups))
            metric.update(torch.as_tensor(table, device=self.device, dtype=torch.float32))
            self.log(f"{stage}/accuracy@T={temperature:g}", metric, on_epoch=True, prog_bar=True, batch_size=len(batch))

    def validation_step(self, batch: list[EncodedPrompt], batch_idx: int) -> None:
        self._accuracy_step(batch, "val")

    def test_step(self, batch: list[EncodedPrompt], batch_idx: int) -> None:
        self._accuracy_step(batch, "test")

    def predict_step(self, batch: list[EncodedPrompt], batch_idx: int) -> list[dict[str, Any]]:
        """One sample a problem, with its verdict, as flat records (Lightning can't carry frozen ones)."""
        assert self.loaded is not None
        groups = self.sampler.sample(self.policy, self.loaded.tokenizer, batch, 1, self.params, self.settings.seed)
        return sample_records(groups, judge_groups(self.judge, groups), {"temperature": self.params.temperature})

    # -- Lightning's plumbing

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key.startswith(PREFIX)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = {key for key in checkpoint["state_dict"] if key.startswith(PREFIX)}
        ours = {PREFIX + name for name, _ in self.policy.steering.named_parameters()}
        if saved != ours:
            raise SteerkitError(
                f"The checkpoint holds {', '.join(sorted(saved))}, this config trains {', '.join(sorted(ours))}: "
                "use the config in the run's folder."
            )

    def on_fit_start(self) -> None:
        self.rubric.warm()  # verifier processes start while the first rollouts are sampled

    def teardown(self, stage: str) -> None:
        self.rubric.close()
        self.judge.close()


def _key(temperature: float) -> str:
    return f"T{temperature:g}".replace(".", "_")


def learning_rates(lr: float | dict[str, float], points: Sequence[HookPoint], n_layers: int) -> dict[HookPoint, float]:
    """The learning rate of each hook point; keys of a mapping are ``default`` or any spelling of a hook point.

    Raises:
        SteerkitError: for a negative rate, a hook point that is not trained, or one without a rate.
    """
    given = dict(lr) if isinstance(lr, dict) else {"default": lr}
    default = given.pop("default", None)
    by_point = {HookPoint.parse(key, n_layers): value for key, value in given.items()}
    stray = [str(point) for point in by_point if point not in points]
    if stray:
        raise SteerkitError(f"lr names {stray[0]}, which is not trained: trained are {', '.join(map(str, points))}.")
    rates = {point: by_point.get(point, default) for point in points}
    for point, rate in rates.items():
        if rate is None or not rate >= 0:
            raise SteerkitError(f"lr of {point} must be 0 or more, got {rate}: add 'default' or this hook point to lr.")
    return {point: float(rate) for point, rate in rates.items() if rate is not None}
