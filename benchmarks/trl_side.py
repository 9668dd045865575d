"""The rival's RL step: TRL's ``RLOOTrainer`` on a PEFT LoRA, driven by its own training loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer
from workload import Workload

from steerkit.types import RolloutGroup


@dataclass
class Clock:
    """Seconds of each step of TRL's, in the order they ran."""

    steps: list[float] = field(default_factory=list)
    generation: list[float] = field(default_factory=list)

    @property
    def updates(self) -> list[float]:
        """The step without its generation."""
        return [step - made for step, made in zip(self.steps, self.generation, strict=True)]


class TimedRLOO(RLOOTrainer):  # type: ignore[misc]
    """``RLOOTrainer`` with a clock; the update can be given completions that were sampled elsewhere."""

    clock: Clock
    given: list[RolloutGroup] | None = None
    """What the update learns from, in place of what ``generate`` made (which is timed all the same): the two sides'
    updates see the same tokens."""
    expected_ids: list[list[int]]

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
        if [list(ids) for ids in prompt_ids] != self.expected_ids:
            raise SystemExit("TRL was given other prompts than steerkit.")
        began = time.perf_counter()
        made = super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        self.clock.generation.append(time.perf_counter() - began)
        if {len(ids) for ids in made} != {self.max_completion_length}:
            raise SystemExit("TRL's completions do not have their full length.")
        if self.given is None:
            return made
        return [list(rollout.token_ids) for group in self.given for rollout in group.rollouts]


class _Steps(TrainerCallback):  # type: ignore[misc]
    def __init__(self, clock: Clock, before: Callable[[], None]) -> None:
        self.clock, self.before = clock, before

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before()
        self.began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.steps.append(time.perf_counter() - self.began)


def trl_trainer(
    work: Workload,
    rewards: Sequence[float],
    steps: int,
    before_step: Callable[[], None] = lambda: None,
    checkpointing: bool = False,
    parts: int = 1,
) -> TimedRLOO:
    """A trainer of ``steps`` steps on the workload's prompts, all of them in each step.

    LoRA r = 1 on every down_proj; beta 0, so neither side has a KL term and no reference pass is made; one
    generation and one update a step, all samples in one batch unless in `parts`; fp32.

    Args:
        rewards: of the G K samples, prompt by prompt.
        before_step: called before each step, outside its time.
        checkpointing: gradient checkpointing, TRL's default: less memory, more time.
        parts: gradient accumulation, for a machine that can't hold the activations of all samples at once.
    """
    form, loaded = work.form, work.loaded
    clock = Clock()
    # As workload.never_stopping: no completion ends early, and no logits processor is needed for it.
    never = [loaded.base.config.vocab_size + 1]

    def reward(prompts: list[str], **_: Any) -> list[float]:
        return list(rewards)

    config = RLOOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl"),
        per_device_train_batch_size=form.prompts * form.k // parts,
        gradient_accumulation_steps=parts,
        num_generations=form.k,
        max_completion_length=form.tokens,
        max_steps=steps,
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=checkpointing,
        shuffle_dataset=False,
        generation_kwargs={"eos_token_id": never},
        bf16=False,
        fp16=False,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = TimedRLOO(
        model=loaded.base,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in work.prompts]),
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(r=1, lora_alpha=1, target_modules=["down_proj"], task_type="CAUSAL_LM"),
        callbacks=[_Steps(clock, before_step)],
    )
    trainer.eos_token_ids = never  # by which TRL cuts what was generated
    trainer.clock = clock
    trainer.expected_ids = [list(prompt.ids) for prompt in work.prompts for _ in range(form.k)]
    return trainer


def trained(trainer: TimedRLOO) -> int:
    """Parameters that TRL trains."""
    return sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
