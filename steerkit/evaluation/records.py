"""From rollouts to verdicts, to one flat record a sample, to one row of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.evaluation.at_k import maj_at_k, pass_at_k
from steerkit.evaluation.metrics import accuracy_interval, avg_at_k, mean_interval, value_interval
from steerkit.rewards import Rubric
from steerkit.rewards.verifiable import Verifiable
from steerkit.types import RolloutGroup, Verdict
from steerkit.verifiers import fault_cause
from steerkit.verifiers.boxed import last_boxed

_VALUES = {"correct": 1.0, "wrong": 0.0, "fault": np.nan}


def judge_groups(judge: Verifiable, groups: Sequence[RolloutGroup]) -> list[list[Verdict]]:
    """``[N][K]`` verdicts, by the same path as the training reward."""
    flat = [(group, rollout) for group in groups for rollout in group.rollouts]
    verdicts = judge.verdicts(
        [rollout.text for _, rollout in flat],
        [group.example.answer for group, _ in flat],
        [rollout.finish_reason for _, rollout in flat],
    )
    remaining = iter(verdicts)
    return [[next(remaining) for _ in group.rollouts] for group in groups]


def correct_table(verdicts: Sequence[Sequence[Verdict]]) -> NDArray[np.float64]:
    """[N, K] of 1 (correct), 0 (wrong), NaN (fault)."""
    return np.array([[_VALUES[verdict.status] for verdict in row] for row in verdicts])


def sample_records(
    groups: Sequence[RolloutGroup], verdicts: Sequence[Sequence[Verdict]], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One flat record a sample: JSON values, the columns of ``samples.parquet``."""
    return [
        {
            **facts,
            "id": group.example.id,
            "source": group.example.source,
            "problem": group.example.problem,
            "sample": index,
            "answer": group.example.answer,
            "completion": rollout.text,
            "verdict": verdict.status,
            "reason": verdict.reason,
            "extracted": verdict.extracted,
            "finish_reason": rollout.finish_reason,
            "tokens": len(rollout.token_ids),
            "first_token": rollout.token_ids[0] if rollout.token_ids else None,
            "logprob": float(sum(rollout.logprobs)),
        }
        for group, row in zip(groups, verdicts, strict=True)
        for index, (rollout, verdict) in enumerate(zip(group.rollouts, row, strict=True))
    ]


def with_rewards(rubric: Rubric, groups: Sequence[RolloutGroup], records: Sequence[list[dict[str, Any]]]) -> None:
    """Give each group's records (K of them) the column ``reward``: the rubric's sum; None where it has no opinion."""
    for k in {len(group.rollouts) for group in groups}:
        chosen = [index for index, group in enumerate(groups) if len(group.rollouts) == k]
        totals = rubric.score([groups[index] for index in chosen]).total.tolist()
        for index, row in zip(chosen, totals, strict=True):
            for record, total in zip(records[index], row, strict=True):
                record["reward"] = None if np.isnan(total) else total


def by_problem(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Problem id -> its samples, both in the order they come."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        found.setdefault(sample["id"], []).append(sample)
    return found


def verdict_table(samples: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """[N, K] of 1, 0 and NaN (a fault, or a sample that is not there), problems in the order they come."""
    rows = list(by_problem(samples).values())
    table = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = [_VALUES[sample["verdict"]] for sample in row]
    return table


def summarise(samples: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The measured columns of one result row, from the records of one arm, set and temperature.

    ``pass_at_k`` (for k = 1, 2, 4... up to the number of samples) and ``maj_at_k`` are there where a problem has
    several samples. ``boxed`` is the share of completions that hold a closed box, cut-off ones included;
    ``first_tokens`` are the five most frequent first token ids with their shares. Where every sample is a fault,
    ``accuracy`` and ``ci95`` are None. ``reward`` is there if the samples were scored by rewards.
    """
    table = verdict_table(samples)
    judged = not np.isnan(table).all()
    interval = accuracy_interval(table, seed) if judged else None
    count = len(samples)
    first = Counter(sample["first_token"] for sample in samples)
    row: dict[str, Any] = {
        "k": table.shape[1],
        "n": table.shape[0],
        "accuracy": interval.mean if interval else None,
        "ci95": [interval.low, interval.high] if interval else None,
        "mean_tokens": float(np.mean([sample["tokens"] for sample in samples])),
        "faults": sum(sample["verdict"] == "fault" for sample in samples),
        "fault_causes": fault_causes(samples),
        "truncated": sum(sample["finish_reason"] == "length" for sample in samples),
        "no_box": sum(sample["reason"] == "no_box" for sample in samples),
        "boxed": sum(last_boxed(sample["completion"]) is not None for sample in samples) / count,
        "first_tokens": [[token, n / count] for token, n in first.most_common(5)],
    }
    if table.shape[1] > 1 and judged:
        row |= _several(samples, table, seed)
    return row | _mean_reward(samples, seed)


def _mean_reward(samples: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """``reward`` and its interval over problems, where the samples have one; None if it had no opinion anywhere, or
    broke on the way: a mean over what came before would be another one.
    """
    scored = sum("reward" in sample for sample in samples)
    if not scored:
        return {}
    if scored < len(samples):
        return {"reward": None, "reward_ci95": None}
    given = [[s["reward"] for s in row if s["reward"] is not None] for row in by_problem(samples).values()]
    means = np.array([np.mean(row) if row else np.nan for row in given])
    if np.isnan(means).all():
        return {"reward": None, "reward_ci95": None}
    interval = value_interval(means, seed)
    ends = None if np.isnan(interval.low) else [interval.low, interval.high]
    return {"reward": interval.mean, "reward_ci95": ends}


def fault_causes(samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Faults of the verifier by cause (``steerkit.verifiers.FAULT_CAUSES``), the most frequent first."""
    faults = (fault_cause(sample["reason"]) for sample in samples if sample["verdict"] == "fault")
    return dict(Counter(sorted(faults)).most_common())


def _several(samples: Sequence[Mapping[str, Any]], table: NDArray[np.float64], seed: int) -> dict[str, Any]:
    answers = [[_answer(sample) for sample in row] for row in by_problem(samples).values()]
    majority = mean_interval(maj_at_k(answers, table), seed)
    passes: dict[str, float] = {}
    k = 1
    while k <= table.shape[1]:
        values = pass_at_k(table, k)
        if not np.isnan(values).all():
            passes[str(k)] = float(np.nanmean(values))
        k *= 2
    return {"pass_at_k": passes, "maj_at_k": majority.mean, "maj_ci95": [majority.low, majority.high]}


def _answer(sample: Mapping[str, Any]) -> str | None:
    """A cut-off completion has no vote, whatever box it holds: the reward calls it wrong."""
    return None if sample["finish_reason"] == "length" else sample["extracted"]


def accuracy(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over problems of the share of right samples; None if every sample is a fault."""
    shares = mean_share(samples)
    return None if np.isnan(shares).all() else float(np.nanmean(shares))


def mean_share(samples: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """[N] share of right samples a problem."""
    return avg_at_k(verdict_table(samples))
