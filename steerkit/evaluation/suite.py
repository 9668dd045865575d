"""Measuring arms on one or more sets of problems: what is sampled, in which order and in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steerkit import registry
from steerkit.datasets import PromptTemplate
from steerkit.errors import DataError, SteerkitError
from steerkit.evaluation.journal import Journal, Key, sample_key
from steerkit.evaluation.judging import BackgroundJudge
from steerkit.evaluation.rows import result_rows
from steerkit.models import LoadedModel, SteeredModel
from steerkit.rewards import Rubric
from steerkit.rewards.verifiable import Verifiable
from steerkit.rollouts import EncodedPrompt, Sampler, SamplingParams, encode_prompts
from steerkit.types import Example

if TYPE_CHECKING:
    from steerkit.evaluation.arms import Arm, Protocol

FAULTS = "faults.jsonl"
Progress = Callable[[str, int, int], None]
"""Called with (what is running, samples done, samples in all)."""


@dataclass
class Suite:
    """Sets of problems that are measured together.

    Args:
        sets: name -> problems, in the order of the result rows.
        seen: name -> ids of the problems that training saw; None: not known.
    """

    sets: Mapping[str, Sequence[Example]]
    seen: Mapping[str, frozenset[str]] | None = None
    too_long: dict[str, int] = field(default_factory=dict)
    """name -> problems left out since their prompt does not fit the context; filled by ``fit``."""

    def fit(self, loaded: LoadedModel, arms: Sequence[Arm], protocol: Protocol, prompt: PromptTemplate) -> Suite:
        """The problems whose prompt fits the context in every arm, so that all arms answer the same ones.

        Raises:
            DataError: for a set without problems, and one of which no prompt fits (all such sets are named).
        """
        kept: dict[str, list[Example]] = {}
        empty: dict[str, DataError] = {}
        for name, examples in self.sets.items():
            rest = list(examples)
            try:
                for opening in dict.fromkeys(arm.assistant_prefix for arm in arms):
                    template = prompt.with_opening(opening)
                    fitting = encode_prompts(loaded.base, loaded.tokenizer, template, rest, protocol.max_tokens, "drop")
                    rest = [encoded.example for encoded in fitting]
            except DataError as error:
                empty[name] = error
            kept[name] = rest
        if empty:
            if len(self.sets) == 1:
                raise next(iter(empty.values()))
            raise DataError(
                f"No problem of {', '.join(empty)} fits the model's context with max_tokens {protocol.max_tokens}: "
                f"lower it, or leave these sets out (--suite {' '.join(n for n in kept if n not in empty)})."
            )
        too_long = {name: len(self.sets[name]) - len(rest) for name, rest in kept.items()}
        return Suite(kept, self.seen, too_long)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of the sampler decodes: problems of one set, for one arm, temperature and seed."""

    set: str
    indices: tuple[int, ...]
    """Into the set's problems, in order of prompt length."""
    k: int
    """Samples a problem."""


def plan_batches(
    name: str, prompts: Sequence[EncodedPrompt], k: int, max_tokens: int, budget: int | None, max_rows: int | None
) -> list[Batch]:
    """Problems in order of prompt length, as many a batch as the budget allows (one at least).

    A function of the set alone, not of what is done already: a resumed run decodes the same batches, so that its
    numbers are those of an uninterrupted run to the last bit.

    Args:
        budget: tokens of a batch: rows x (longest prompt + ``max_tokens``). None: the whole set is one batch (the
            sampler divides it as it likes).
        max_rows: rows that the sampler decodes at once, if it has such a limit.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    if budget is None:
        return [Batch(name, tuple(order), k)]
    batches: list[Batch] = []
    batch: list[int] = []
    for index in order:
        rows = (len(batch) + 1) * k
        tokens = rows * (len(prompts[index].ids) + max_tokens)  # the order makes this one the longest
        if batch and (tokens > budget or (max_rows is not None and rows > max_rows)):
            batches.append(Batch(name, tuple(batch), k))
            batch = []
        batch.append(index)
    return [*batches, Batch(name, tuple(batch), k)]


def measure(
    loaded: LoadedModel,
    arms: Sequence[Arm],
    suite: Suite,
    protocol: Protocol,
    prompt: PromptTemplate,
    progress: Progress | None = None,
    judge: Verifiable | None = None,
    journal: Journal | None = None,
    rewards: Rubric | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sample, judge and summarise every arm on every set with the same random numbers.

    Args:
        suite: problems that fit (``Suite.fit``).
        judge: a verifier that is already running (it stays open); None starts the protocol's and closes it.
        journal: keeps each sample on disk; what it has already is not sampled again.
        rewards: what the samples are scored by besides (column ``reward``).

    Returns:
        The result rows and the sample records, both in a fixed order.
    """
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SteerkitError(f"Two arms are named {twice!r}: rows and samples go by that name.")
    models = [arm.on(loaded) for arm in arms]  # first of all, so that a vector that doesn't fit costs nothing
    # What the verifier fails on is kept beside the results, to be judged again (steerkit verify --replay).
    replay = None if journal is None else journal.folder.parent / FAULTS
    own = None if judge else Verifiable(protocol.verifier, replay_file=replay)
    judge = judge or own
    assert judge is not None
    kept: dict[Key, dict[str, Any]] = {}

    def keep(records: list[dict[str, Any]]) -> None:
        if journal is not None:
            journal.write(records)
        else:
            kept.update((sample_key(record), record) for record in records)

    counter = _Counter(progress, arms, suite, protocol)
    try:
        with BackgroundJudge(judge, keep, rewards) as background:
            for arm, model in zip(arms, models, strict=True):
                _measure_arm(loaded, arm, model, suite, protocol, prompt, background, counter, journal)
    finally:
        if own is not None:
            own.close()
    if journal is not None:
        kept = {sample_key(record): record for record in journal.records()}
    samples = [kept[key] for key in sample_keys(arms, suite, protocol)]
    for sample in samples:
        seen = None if suite.seen is None else sample["id"] in suite.seen.get(sample["set"], ())
        sample["seen_in_training"] = seen
    return result_rows(arms, list(suite.sets), protocol, samples, suite.too_long), samples


def _measure_arm(
    loaded: LoadedModel,
    arm: Arm,
    model: SteeredModel,
    suite: Suite,
    protocol: Protocol,
    prompt: PromptTemplate,
    background: BackgroundJudge,
    counter: _Counter,
    journal: Journal | None,
) -> None:
    sampler: Sampler = registry.build("samplers", protocol.sampler)
    limits = (protocol.max_tokens, protocol.batch_tokens, getattr(sampler, "max_rows", None))
    template = prompt.with_opening(arm.assistant_prefix)
    masked = model.token_mask.segment is not None
    prompts = {
        name: encode_prompts(
            loaded.base, loaded.tokenizer, template, examples, protocol.max_tokens, "refuse", segments=masked
        )
        for name, examples in suite.sets.items()
    }
    done = journal.done if journal is not None else set()
    with sampler.unchanged_model():
        for temperature in protocol.temperatures:
            params = SamplingParams(temperature, protocol.max_tokens, protocol.top_p, protocol.top_k)
            for seed in protocol.seeds_at(temperature):
                for name, encoded in prompts.items():
                    k = protocol.samples(name, temperature)
                    facts = {"arm": arm.name, "set": name, "temperature": temperature, "seed": seed}
                    for batch in plan_batches(name, encoded, k, *limits):
                        wanted = [
                            (arm.name, name, temperature, seed, encoded[i].example.id, j)
                            for i in batch.indices
                            for j in range(k)
                        ]
                        if all(key in done for key in wanted):
                            counter.skip(arm, temperature, len(wanted))
                            continue
                        chosen = [encoded[i] for i in batch.indices]
                        for _, group in sampler.stream(model, loaded.tokenizer, chosen, k, params, seed):
                            background.put(group, facts)
                            counter.add(arm, temperature, k)


class _Counter:
    """Progress of each arm and temperature, and of the whole where there is more than one."""

    def __init__(self, progress: Progress | None, arms: Sequence[Arm], suite: Suite, protocol: Protocol) -> None:
        self._progress = progress
        self._totals = {
            self._label(arm, temperature): len(protocol.seeds_at(temperature))
            * sum(len(examples) * protocol.samples(name, temperature) for name, examples in suite.sets.items())
            for arm in arms
            for temperature in protocol.temperatures
        }
        self._done = dict.fromkeys(self._totals, 0)

    @staticmethod
    def _label(arm: Arm, temperature: float) -> str:
        return f"{arm.name}, temperature {temperature:g}"

    def skip(self, arm: Arm, temperature: float, count: int) -> None:
        """Samples of an earlier process: shown with the next real ones, so that they don't count as speed."""
        self._done[self._label(arm, temperature)] += count

    def add(self, arm: Arm, temperature: float, count: int) -> None:
        label = self._label(arm, temperature)
        self._done[label] += count
        if self._progress is None:
            return
        if len(self._totals) > 1:
            self._progress("whole evaluation", sum(self._done.values()), sum(self._totals.values()))
        self._progress(label, self._done[label], self._totals[label])


def sample_keys(arms: Sequence[Arm], suite: Suite, protocol: Protocol) -> Iterator[Key]:
    """Every sample of the evaluation, in the order of ``samples.parquet``."""
    for arm in arms:
        for temperature in protocol.temperatures:
            for seed in protocol.seeds_at(temperature):
                for name, examples in suite.sets.items():
                    for example in examples:
                        for sample in range(protocol.samples(name, temperature)):
                            yield arm.name, name, temperature, seed, example.id, sample
