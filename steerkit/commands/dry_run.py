"""``steerkit fit --dry_run``: what a run would take and what it would miss, from its config; no weights are loaded."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from steerkit.commands.dry_run_rewards import rewards_row
from steerkit.commands.evaluate import default_device
from steerkit.datasets import open_dataset
from steerkit.datasets.records import Records
from steerkit.doctor import Batch, Row
from steerkit.doctor.memory import Costs, device_memory, size
from steerkit.errors import SteerkitError
from steerkit.models.load import ModelError
from steerkit.models.stand_in import Weight, load_config, load_tokenizer, weight
from steerkit.rollouts import EncodedPrompt
from steerkit.rollouts.acceleration import WORTH_PACKING
from steerkit.rollouts.footprint import tokens_within
from steerkit.runtime import debugging
from steerkit.testing.families import TINY_FAMILIES
from steerkit.testing.samplers import tiny_tokenizer
from steerkit.testing.steering import tiny_model
from steerkit.training import PromptDataModule, SteeringModule
from steerkit.training.forecast import Cost, Trained, made_up_prompts, one_step, step_cost, trained
from steerkit.training.memory import KEPT_SHARE, budget_bytes

PROMPT_TOKENS = 128
"""Of a prompt, where the real ones can't be encoded."""
SEEN = 256
"""Training problems whose length is looked at."""


@dataclass
class _Plan:
    """What is known so far; each check adds to it."""

    model: SteeringModule
    data: PromptDataModule
    config: Mapping[str, Any]
    arguments: Sequence[str]
    device: torch.device
    shape: Any = None
    dtype: torch.dtype = torch.float32
    tokenizer: Any = None
    found: bool = False
    """The data set."""
    prompts: list[EncodedPrompt] = field(default_factory=list)
    policy: Trained | None = None
    weight: Weight | None = None

    @property
    def length(self) -> int:
        return int(self.config["dry_run_length"] or self.model.params.max_tokens)


def dry_run(model: SteeringModule, data: PromptDataModule, config: Mapping[str, Any], arguments: Sequence[str]) -> int:
    """Print one row a question; 0 if all is there, 1 if something is missing.

    Args:
        arguments: of ``fit``, ``--dry_run`` among them.
    """
    from rich.console import Console

    from steerkit.commands.doctor import table

    rows = examine(model, data, config, arguments)
    Console().print(table(rows, f"{model.settings.base} on {data.set_name}: nothing is trained"))
    missing = [row.name for row in rows if row.status == "fail"]
    print(f"Not ready: {', '.join(missing)}." if missing else "Ready.")
    return 1 if missing else 0


def examine(
    model: SteeringModule, data: PromptDataModule, config: Mapping[str, Any], arguments: Sequence[str]
) -> list[Row]:
    """The rows; those of memory and time have figures (bytes, seconds)."""
    accelerator = config["trainer"]["accelerator"]
    device = torch.device("cpu" if accelerator == "cpu" else default_device())
    plan = _Plan(model, data, config, arguments, device)
    with _quiet_weights():
        return [row for name, check in _CHECKS.items() for row in _rows(name, check, plan)]


def _rows(name: str, check: Callable[[_Plan], Row | Iterator[Row]], plan: _Plan) -> list[Row]:
    try:
        found = check(plan)
        return [found] if isinstance(found, Row) else list(found)
    except Exception as error:  # a crash in one check is that check's failure, as with the doctor
        if debugging():
            raise
        kind = "" if isinstance(error, SteerkitError) else f"{type(error).__name__}: "
        return [Row(name, "fail", f"{kind}{' '.join(str(error).split())[:400]}")]


def _base(plan: _Plan) -> Row:
    options = plan.model.settings
    try:
        plan.shape = load_config(options.base, options.trust_remote_code)
    except ModelError as error:
        raise SteerkitError(
            f"{error} A folder with its config.json (and tokenizer) is enough here: --model.base FOLDER."
        ) from None
    plan.dtype = _dtype(options.dtype, plan.shape, plan.device)
    plan.policy = trained(plan.model, plan.shape, plan.dtype)
    base = plan.policy.base.base
    plan.weight = weight(base)
    text = plan.shape.get_text_config()
    kind = str(plan.dtype).removeprefix("torch.")
    return Row(
        "base", "pass",
        f"{plan.shape.model_type}, {text.num_hidden_layers} blocks x {text.hidden_size}, {plan.weight.parameters:,} "
        f"parameters, {kind} on {plan.device}: {size(plan.weight.total)}",
    )  # fmt: skip


def _tokenizer(plan: _Plan) -> Row:
    options = plan.model.settings
    try:
        plan.tokenizer = load_tokenizer(options.base, options.trust_remote_code)
    except ModelError as error:
        return Row("tokenizer", "fail", f"{error} Prompts are counted as {PROMPT_TOKENS} tokens.")
    if plan.model.template.style == "chat" and not plan.tokenizer.chat_template:
        raise SteerkitError("It has no chat template: set model.template.style to plain.")
    return Row("tokenizer", "pass", f"{len(plan.tokenizer):,} tokens" + (
        ", with a chat template" if plan.tokenizer.chat_template else ""))  # fmt: skip


def _data(plan: _Plan) -> Row:
    data = plan.data
    wanted = dict.fromkeys(
        ("train", "validation", *((plan.config["report"].split,) if plan.config["report"].arms else ()))
    )
    try:
        sizes = {split: len(data.examples(split)) for split in wanted}
    except SteerkitError as error:
        raise SteerkitError(
            f"{error} Without a network: put a copy of the repository in a folder DIR, and give --data_root DIR."
        ) from None
    plan.found = True
    told = ", ".join(f"{split} {n:,}" for split, n in sizes.items())
    steps = int(plan.config["trainer"]["max_steps"])
    passes = steps * data.prompts_per_step / sizes["train"]
    return Row("data", "pass", f"{told}" + (f"; {steps} steps are {passes:.2g} passes" if steps > 0 else ""))


def _prompts(plan: _Plan) -> Row:
    most = plan.model.params.max_tokens
    if not plan.found or plan.tokenizer is None:
        plan.prompts = made_up_prompts(PROMPT_TOKENS)
        return Row("prompts", "note", f"not seen: counted as {PROMPT_TOKENS} tokens, completions as {plan.length}")
    template, examples = plan.model.template, plan.data.examples("train")[:SEEN]
    texts = [template.render(plan.tokenizer, example) for example in examples]
    ids = [template.encode(plan.tokenizer, text) for text in texts]
    plan.prompts = [EncodedPrompt(e, t, tuple(i)) for e, t, i in zip(examples, texts, ids, strict=True)]
    lengths = sorted(map(len, ids))
    context = _context(plan.shape)
    room = None if context is None else context - most
    long = 0 if room is None else sum(n > room for n in lengths)
    told = f"{sum(lengths) / len(lengths):.0f} tokens, at most {lengths[-1]} (of {len(lengths)} seen)"
    if room is not None and room < 1:
        raise SteerkitError(f"max_tokens {most} leaves no room for a prompt: the model's context is {context} tokens.")
    if long:
        told += f"; {long} leave less than {most} tokens of the context of {context} and are left out"
        plan.prompts = [prompt for prompt in plan.prompts if len(prompt.ids) <= (room or 0)]
        if not plan.prompts:
            raise SteerkitError(told)
    return Row("prompts", "note" if long else "pass", told)


def _trained(plan: _Plan) -> Row:
    policy = plan.policy
    if policy is None:
        return Row("trained", "skipped", "needs 'base'")
    many = f" in {policy.policies} policies" if policy.policies > 1 else ""
    share = policy.numbers / max(1, plan.weight.parameters if plan.weight else 1) / policy.policies
    told = f"{policy.numbers:,} numbers{many} ({share:.2g} of the base); with gradient and AdamW's state "
    return Row("trained", "pass", told + size(_optimiser(policy)))


def _step(plan: _Plan) -> Iterator[Row]:
    """Memory and time: one measurement serves both."""
    if plan.policy is None or plan.weight is None:
        yield Row("memory", "skipped", "needs 'base'")
        yield Row("time", "skipped", "needs 'base'")
        return
    module, device = plan.model, plan.device
    process = _resident()
    room = device_memory(device)
    prompts = one_step(plan.prompts or made_up_prompts(PROMPT_TOKENS), plan.data.prompts_per_step)
    tokenizer = plan.tokenizer if plan.tokenizer is not None else tiny_tokenizer()
    cost = step_cost(module, plan.shape, plan.policy, prompts, tokenizer, plan.length, plan.dtype, device,
                     None if room is None else room / 3)  # fmt: skip
    parts = _memory(plan, cost, prompts, process)
    peak = {phase: sum(of_phase.values()) for phase, of_phase in parts.items()}
    told = "; ".join(
        f"{phase} {size(peak[phase])} ({', '.join(f'{name} {size(n)}' for name, n in of_phase.items())})"
        for phase, of_phase in parts.items()
    )
    fits = room is None or max(peak.values()) <= room
    told += f"; peak {size(max(peak.values()))}, the device has {size(room) if room else 'an unknown amount'}"
    advice = "" if fits else "Lower memory_budget, the sampler's max_rows or max_tokens; or take a larger device."
    figures = {"peak": max(peak.values()), "room": room, **parts}
    yield Row("memory", "pass" if fits else "fail", told, advice, figures)
    seconds = cost.sampling_s + cost.update_s
    steps = int(plan.config["trainer"]["max_steps"])
    whole = f"; {steps} steps {_duration(seconds * steps)}" if steps > 0 else ""
    per = "all" if not plan.config["dry_run_length"] else "asked"
    lengths = f"completions of {plan.length} tokens" + (" (the most)" if per == "all" else "")
    yield Row(
        "time", "note",
        f"{_duration(seconds)} a step (sampling {_duration(cost.sampling_s)}, update {_duration(cost.update_s)}){whole}"
        f", without judging, validation and the report; {lengths}; timed on {cost.timed}",
        figures={"step_s": seconds, "sampling_s": cost.sampling_s, "update_s": cost.update_s},
    )  # fmt: skip


def _memory(plan: _Plan, cost: Cost, prompts: Sequence[EncodedPrompt], process: float) -> dict[str, dict[str, float]]:
    """Phase -> part -> bytes."""
    module, policy, own = plan.model, plan.policy, plan.weight
    assert policy is not None and own is not None
    options, most, k = module.settings, module.params.max_tokens, int(module.settings.samples_per_prompt)
    text = plan.shape.get_text_config()
    longest = max(len(prompt.ids) for prompt in prompts)
    mean = round(sum(len(prompt.ids) for prompt in prompts) / len(prompts))
    budget = budget_bytes(module.budget.gigabytes, plan.device)
    micro = min(int(options.micro_batch_tokens), tokens_within(cost.saved, (1 - KEPT_SHARE) * budget, longest + most))
    rows = int(getattr(module.sampler, "max_rows", 256))
    count = len(prompts) * policy.policies
    batch = Batch(count, k, mean, most, rows, micro)
    on_cpu = plan.device.type == "cpu"
    costs = Costs(
        own.total, cost.cache_per_token, cost.cache_fixed, cost.saved, int(text.num_hidden_layers),
        int(text.vocab_size), plan.dtype.itemsize, cost.chunk, cost.shared_prompts, on_cpu,
    )  # fmt: skip
    extra: dict[str, float] = {"process": process} if on_cpu else {}
    if on_cpu and plan.dtype == torch.float32 and getattr(module.sampler, "pack", "never") == "auto":
        packed = sum(n for numbers, n in own.linear.items() if numbers >= WORTH_PACKING)
        if not (policy.adapter and policy.numbers >= own.parameters // 2):  # full fine-tuning is not packed
            extra["packed weights"] = packed
    extra["trained"] = _optimiser(policy)
    kept = sum(len(p.ids) + k * most for p in prompts) * policy.policies * int(text.hidden_size) * plan.dtype.itemsize
    if policy.lowest > 0 and kept <= KEPT_SHARE * budget:
        extra["kept streams"] = kept
    return {name: {**of_phase, **extra} for name, of_phase in
            (("sampling", costs.sampling(batch)), ("update", costs.update(batch)))}  # fmt: skip


def _rewards(plan: _Plan) -> Row:
    return rewards_row(plan.model.rubric, plan.data.examples("train")[:2] if plan.found else [])


def _tiny(plan: _Plan) -> Row:
    """One step of ``fit`` itself on a tiny random model of the family, with this config's template and data."""
    family = plan.shape.model_type if plan.shape is not None else None
    if family not in TINY_FAMILIES:
        return Row("one step", "note" if family else "skipped", f"no tiny model of family {family!r} is known: not run"
                   if family else "needs 'base'")  # fmt: skip
    from steerkit.commands.train import run

    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        logging.disable(logging.ERROR)
        try:
            run("fit", _tiny_arguments(plan, Path(folder)))
        finally:
            logging.disable(logging.NOTSET)
        with open(Path(folder) / "run" / "metrics.csv", newline="", encoding="utf-8") as file:
            last = [row for row in csv.DictReader(file) if row.get("grad_norm")][-1]
    gradient = float(last["grad_norm"])
    what = "its own template and data" if plan.found and plan.tokenizer is not None else "made-up prompts"
    told = (
        f"{plan.model.settings.intervention} on a random {family} of 3 blocks x 32, {what}, random reward: gradient "
        f"{gradient:.2g}, log-probabilities of sampler and trainer within {float(last['logprob_gap']):.1g}"
    )
    return Row("one step", "pass" if gradient > 0 else "fail", told)


def _tiny_arguments(plan: _Plan, folder: Path) -> list[str]:
    """This command's own, with what must be smaller behind (the last one wins)."""
    options, data = plan.model.settings, plan.data
    tokenizer = plan.tokenizer if plan.tokenizer is not None else tiny_tokenizer()
    tiny = tiny_model(
        plan.shape.model_type, vocab_size=max(97, len(tokenizer)), max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    tiny.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    smaller: dict[str, Any] = {
        "run_dir": folder / "run", "ckpt_path": None, "samples_every": 0,
        "model.base": folder / "tiny", "model.dtype": "float32", "model.vector": None, "model.lr": 0.01,
        "model.layers": "all" if options.layers == "all" else 0, "model.samples_per_prompt": 4, "model.max_tokens": 8,
        "model.rewards": "random", "data.prompts_per_step": 2, "data.n_validation": 2, "data.screen": None,
        "trainer.max_steps": 1, "trainer.max_epochs": None, "trainer.devices": 1, "trainer.num_nodes": 1,
        "trainer.accelerator": "cpu", "trainer.strategy": "auto", "trainer.precision": None,
        "trainer.limit_val_batches": 0, "trainer.enable_progress_bar": False, "report.arms": [],
        **{f"sweep.{axis}": None for axis in ("layers", "seeds", "lrs", "scales")},
    }  # fmt: skip
    if not plan.found:
        smaller |= {"data.dataset": "arithmetic", "data.test_dataset": None}
    elif isinstance(open_dataset(data.spec, data.data_root), Records):
        spec = dict(data.spec) if isinstance(data.spec, Mapping) else {"path": data.spec}
        smaller["data.dataset"] = spec | {"limit": 64}
    if plan.tokenizer is None:
        smaller["model.template"] = {"style": "plain"}
    words = [word for word in plan.arguments if word != "--dry_run" and not word.startswith("--dry_run=")]
    for key, value in smaller.items():
        words.append(f"--{key}={value if isinstance(value, str | Path) else json.dumps(value)}")
    return words


_CHECKS: dict[str, Callable[[_Plan], Row | Iterator[Row]]] = {
    "base": _base,
    "tokenizer": _tokenizer,
    "data": _data,
    "prompts": _prompts,
    "trained": _trained,
    "memory": _step,
    "rewards": _rewards,
    "one step": _tiny,
}


def _optimiser(policy: Trained) -> float:
    """Numbers, gradient and AdamW's two states, fp32."""
    return 16.0 * policy.numbers


def _dtype(asked: str, shape: Any, device: torch.device) -> torch.dtype:
    """As ``load_model`` would take it."""
    if asked != "auto":
        found = getattr(torch, asked, None)
        if not isinstance(found, torch.dtype):
            raise SteerkitError(f"Unknown dtype {asked!r}: write auto, float32, bfloat16 or float16.")
        return found
    saved = shape.get_text_config().dtype or shape.dtype
    return torch.float32 if device.type == "cpu" or not isinstance(saved, torch.dtype) else saved


def _context(shape: Any) -> int | None:
    text = shape.get_text_config() if shape is not None else None
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if isinstance(getattr(text, name, None), int):
            return int(getattr(text, name))
    return None


def _resident() -> float:
    """Bytes of this process, which has loaded what training loads, but no model."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 6e8
    import os

    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def _quiet_weights() -> Iterator[None]:
    """transformers tells of every model that it makes."""
    loggers = [logging.getLogger(name) for name in ("transformers", "steerkit")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
