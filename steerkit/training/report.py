"""The table at the end of ``steerkit fit``: base, steered and controls on problems that training never saw."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

from steerkit.baselines import WeightAdapter
from steerkit.errors import SteerkitError
from steerkit.evaluation.arms import Arm, Evaluation, Progress, Protocol, evaluate
from steerkit.evaluation.openings import Opening, rank_openings
from steerkit.evaluation.results import write_results
from steerkit.training.data import PromptDataModule
from steerkit.training.members import Member, member_dir
from steerkit.training.module import SteeringModule
from steerkit.training.policy import trained_parameters

log = logging.getLogger(__name__)

ARMS = ("base", "steered", "random", "prefix")


@dataclass
class ReportConfig:
    """What ``fit`` measures when training is over.

    Args:
        arms: any of base, steered, random (norm-matched random vector), prefix (the base with its best one-token
            opening prefilled, chosen on the validation split). An empty list turns the report off.
        temperatures: 0 is greedy.
        k: samples a problem at temperatures above 0.
        openings: candidates for ``prefix``: the base's likeliest first tokens.
        seed: of the samples; of the random vector with the training seed added, so that each run has its own.
        split: of the problems. Choose settings on ``validation``, and use ``test`` once.
    """

    arms: list[str] = field(default_factory=lambda: list(ARMS))
    temperatures: list[float] = field(default_factory=lambda: [0.0, 1.0])
    k: int = 2
    openings: int = 6
    seed: int = 1
    split: Literal["validation", "test"] = "test"

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if self.openings < 1:
            raise SteerkitError(f"report.openings must be at least 1, got {self.openings}.")
        if unknown:
            raise SteerkitError(f"Unknown report arm {unknown[0]!r}: choose from {', '.join(ARMS)}.")


@dataclass(frozen=True)
class Report:
    """What was measured and where it was written."""

    evaluation: Evaluation
    openings: list[Opening]
    path: Path


def final_report(
    module: SteeringModule,
    data: PromptDataModule,
    config: ReportConfig,
    run_dir: Path,
    command: str,
    progress: Progress | None = None,
) -> Report:
    """Measure the arms on the test split (or validation, if asked); write ``results.json`` and ``samples.parquet`` to
    the run folder.
    """
    module.configure_model()
    assert module.loaded is not None
    loaded, settings = module.loaded, module.settings
    protocol = Protocol(
        tuple(config.temperatures), config.k, settings.max_tokens, config.seed, sampler=settings.sampler
    )
    adapter = cast(WeightAdapter | None, module.policy.adapter)
    vectors = [] if adapter else [module.steering_vector(member=m) for m in range(len(module.members))]
    openings: list[Opening] = []
    arms = []
    for name in config.arms:
        if name == "base":
            arms.append(Arm("base"))
        elif name == "steered" and adapter is not None:
            arms.append(Arm("steered", facts=facts(module, module.members[0]), model=module.policy))
        elif name == "steered":
            arms += [
                Arm(_named("steered", member), vector, facts=facts(module, member))
                for member, vector in zip(module.members, vectors, strict=True)
            ]
        elif name == "random":
            if not vectors:
                log.warning("No random row: %s is no vector.", module.intervention_name)
            arms += [
                Arm(
                    _named("random", member),
                    vector.random_like(config.seed + member.seed),
                    facts={"sweep": dict(member.axes)},
                )
                for member, vector in zip(module.members, vectors, strict=bool(vectors))
            ]
        else:
            validation = data.examples("validation")
            openings = rank_openings(loaded, validation, protocol, module.template, config.openings, module.judge)
            if not openings:
                log.warning("No printable opening among the base's likeliest first tokens: no prefix row.")
                continue
            arms.append(Arm(f"prefix {openings[0].text!r}", assistant_prefix=openings[0].text))
    evaluation = evaluate(
        loaded,
        arms,
        data.examples(config.split),
        protocol,
        module.template,
        data.split_name(config.split),
        progress,
        module.judge,
        # What is right or wrong alone has nothing to say beside the accuracy.
        None if module.rubric.names == ["verifiable"] else module.rubric,
    )
    extra: dict[str, Any] = {
        "steps": module.last_step,
        "intervention": module.intervention_name,
        "vector_norms": vectors[0].norms() if len(vectors) == 1 else {},
        "openings": [{"text": o.text, "probability": o.probability, "accuracy": o.accuracy} for o in openings],
    }
    place = str(run_dir / (adapter.folder if adapter else "sweep" if module.sweep.on else "vector"))
    path = write_results(run_dir, evaluation, loaded.name, place, settings.seed, command, extra)
    for member, vector in zip(module.members, vectors, strict=bool(vectors)):
        if member.name:
            folder = member_dir(run_dir, member)
            own = Evaluation(*([x for x in part if _is_of(x["arm"], member)] for part in _parts(evaluation)))
            norms = extra | {"vector_norms": vector.norms(), "sweep": dict(member.axes)}
            write_results(folder, own, loaded.name, str(folder / "vector"), member.seed, command, norms)
    return Report(evaluation, openings, path)


def facts(module: SteeringModule, member: Member) -> dict[str, Any]:
    """The columns of a result row that tell how a policy was made."""
    adapter = cast(WeightAdapter | None, module.policy.adapter)
    parameters = [p for _, group in trained_parameters(member.policy) for p in group]
    seconds = module.seconds_per_step
    found: dict[str, Any] = {
        "train_seed": member.seed,
        "lr": member.lr if isinstance(member.lr, float | int) else json.dumps(member.lr),
        "trainable_params": sum(p.numel() for p in parameters),
        "optimizer_bytes": sum(2 * p.numel() * p.element_size() for p in parameters),  # AdamW: two moments
        "seconds_per_step": median(seconds) if seconds else None,  # in a sweep, of all its policies together
        "kept_aside_bytes": adapter.kept_aside_bytes() if adapter is not None else 0,
    }
    if member.name:
        found["sweep"] = dict(member.axes)
        failed = module.run_state.failed.get(module.members.index(member))
        found |= {} if failed is None else {"failed": failed}
    return found


def _named(arm: str, member: Member) -> str:
    return f"{arm} {member.name}".rstrip()


def _is_of(arm: str, member: Member) -> bool:
    """Whether a row or sample belongs into a member's own results: its own arms, and those of the base."""
    return arm in (_named("steered", member), _named("random", member), "base") or arm.startswith("prefix")


def _parts(evaluation: Evaluation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return evaluation.rows, evaluation.samples
