"""Contrast sets: two completions of each problem, as token ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerkit.datasets import PromptTemplate, Records, open_dataset, subset
from steerkit.datasets.base import Split, WrittenCompletions
from steerkit.datasets.readers import read_source
from steerkit.errors import DataError, SteerkitError
from steerkit.models import LoadedModel, SteeredModel
from steerkit.rollouts import EncodedPrompt, Sampler, SamplingParams, encode_prompts
from steerkit.rollouts.prompting import context_length
from steerkit.types import Example

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(what runs, how many are done, of how many)."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One side of a pair: a prompt and one completion of it."""

    ids: tuple[int, ...]
    """[S] prompt and completion."""
    start: int
    """Index of the completion's first token, an opening that was given included; at least 1. S: a prompt alone."""
    given: int = 0
    """Tokens of the completion that were given to the model before it sampled the rest."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """n pairs: ``positive[i]`` and ``negative[i]`` complete the same problem."""

    positive: list[Branch]
    negative: list[Branch]
    dropped: int = 0
    """Problems left out, since a side did not fit into the model's context."""
    same_prompt: bool = True
    """The model is given the same on both sides, so the residual streams differ behind the prompt only."""

    def __len__(self) -> int:
        return len(self.positive)


@dataclass(frozen=True, slots=True)
class TextPairs:
    """Written completions, as text."""

    examples: list[Example]
    texts: list[tuple[str, str]]
    """The (positive, negative) completion of each problem."""
    kinds: tuple[str, str]
    """What they are called in their source."""
    from_file: bool
    """A file of pairs and not a data set that one could be measured on."""


def load_pairs(
    spec: str | Mapping[str, Any],
    data_root: str | None,
    split: Split,
    n: int | None,
    seed: int,
    kinds: tuple[str | None, str | None],
) -> TextPairs:
    """Problems with their positive and negative completions.

    Args:
        spec: a data set with ``completion`` (``datasets.base.WrittenCompletions``), of which ``split`` is taken; or a
            file with the columns ``problem`` and the two kinds (by default ``positive`` and ``negative``), of which all
            rows are.
        n: problems at most.
        kinds: of the positive and the negative completions.

    Raises:
        DataError: if the data set has no such kinds, or the file no such columns.
    """
    dataset = open_dataset(spec, data_root)
    if isinstance(dataset, WrittenCompletions):
        if None in kinds:
            known = ", ".join(dataset.completion_kinds)
            raise DataError(f"Say which completions to contrast, by --positive and --negative: {spec!r} has {known}.")
        chosen = (str(kinds[0]), str(kinds[1]))
        _check_different(chosen)
        examples = subset(dataset.load(split), n, seed)
        texts = [(dataset.completion(e, chosen[0]), dataset.completion(e, chosen[1])) for e in examples]
        return TextPairs(examples, texts, chosen, False)
    path = spec if isinstance(spec, str) else spec.get("path", spec.get("name"))
    if not isinstance(dataset, Records) or not isinstance(path, str):
        raise DataError(
            f"{spec!r} has no written completions to contrast: give a file with the columns problem, positive and "
            "negative, or two openings (--positive_prefix, --negative_prefix)."
        )
    chosen = (kinds[0] or "positive", kinds[1] or "negative")
    _check_different(chosen)
    examples = subset(_read_rows(path, data_root, chosen), n, seed)
    return TextPairs(examples, [(e.columns[chosen[0]], e.columns[chosen[1]]) for e in examples], chosen, True)


def _check_different(kinds: tuple[str, str]) -> None:
    if kinds[0] == kinds[1]:
        raise DataError(f"Positive and negative are both {kinds[0]!r}: there is nothing to contrast.")


def _read_rows(path: str, data_root: str | None, kinds: tuple[str, str]) -> list[Example]:
    rows = [row for table in read_source(path, data_root, None, None).values() for row in table]
    if not rows:
        raise DataError(f"{path} holds no rows.")
    for number, row in enumerate(rows):
        for column in ("problem", *kinds):
            if column not in row:
                raise DataError(f"{path}, row {number}: no column {column!r}; it has {', '.join(map(str, row))}.")
            if not isinstance(row[column], str) or not row[column]:
                raise DataError(f"{path}, row {number}: {column!r} must be a text, got {row[column]!r:.40}.")
    return [Example(f"{path}/{number:05d}", row["problem"], "", path, row) for number, row in enumerate(rows)]


def written_contrast(
    loaded: LoadedModel,
    template: PromptTemplate,
    problems: Sequence[Example | str],
    texts: Sequence[tuple[str, str]],
) -> Contrast:
    """Pairs of written completions.

    A completion's tokens are those behind the longest beginning that prompt and prompt + completion share, so a
    tokenizer that merges across the boundary is served, too.

    Args:
        texts: the (positive, negative) completion of each problem.

    Raises:
        DataError: for an empty completion, or if no pair fits into the model's context.
    """
    room = context_length(loaded.base)
    sides: tuple[list[Branch], list[Branch]] = ([], [])
    for problem, pair in zip(problems, texts, strict=True):
        prompt = template.render(loaded.tokenizer, problem)
        both = [_branch(loaded, template, prompt, text) for text in pair]
        if max(len(branch.ids) for branch in both) <= room:
            for side, branch in zip(sides, both, strict=True):
                side.append(branch)
    return _contrast(*sides, len(problems), room, same_prompt=True)


def _branch(loaded: LoadedModel, template: PromptTemplate, prompt: str, completion: str) -> Branch:
    whole = tuple(template.encode(loaded.tokenizer, prompt + completion))
    start = _shared(template.encode(loaded.tokenizer, prompt), whole)
    if start < 1 or start == len(whole):
        raise DataError(f"The completion {completion!r:.40} adds no token to its prompt (or replaces all of it).")
    return Branch(whole, start)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = zip(first, second, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _contrast(positive: list[Branch], negative: list[Branch], asked: int, room: int, same_prompt: bool) -> Contrast:
    if not positive:
        raise DataError(f"No pair fits into the model's context of {room} tokens.")
    dropped = asked - len(positive)
    if dropped:
        log.warning("%d of %d pairs are longer than the context of %d tokens and were left out.", dropped, asked, room)
    return Contrast(positive, negative, dropped, same_prompt)


def requested_contrast(
    loaded: LoadedModel, template: PromptTemplate, problems: Sequence[Example | str], requests: tuple[str, str]
) -> Contrast:
    """Pairs of prompts alone: each problem with one request behind it, and with another.

    Args:
        requests: such as ``"Please show your steps."`` and ``"Just the answer."``; a space is put before them.

    Raises:
        SteerkitError: if the requests are the same.
        DataError: if no pair fits into the model's context.
    """
    if requests[0] == requests[1]:
        raise SteerkitError(f"Expected two different requests, got {requests[0]!r} twice.")
    room = context_length(loaded.base)
    sides: tuple[list[Branch], list[Branch]] = ([], [])
    for problem in problems:
        text = problem.problem if isinstance(problem, Example) else problem
        asked = [f"{text} {request}".rstrip() for request in requests]
        both = [template.encode(loaded.tokenizer, template.render(loaded.tokenizer, prompt)) for prompt in asked]
        if max(map(len, both)) <= room:
            for side, ids in zip(sides, both, strict=True):
                side.append(Branch(tuple(ids), len(ids)))
    return _contrast(*sides, len(problems), room, same_prompt=False)


def sampled_contrast(
    loaded: LoadedModel,
    template: PromptTemplate,
    examples: Sequence[Example],
    openings: tuple[str, str],
    sampler: Sampler,
    params: SamplingParams,
    seed: int,
    progress: Progress | None = None,
) -> Contrast:
    """Pairs of the base's own samples after two openings; an opening counts to the completion.

    The end-of-sequence token is left out: nothing is generated after it.

    Args:
        openings: of the positive and the negative completion.
        seed: of the samples; the two sides share it.

    Raises:
        SteerkitError: if the openings are the same, or one is empty.
        DataError: if no prompt fits.
    """
    if not all(openings) or openings[0] == openings[1]:
        raise SteerkitError(f"Expected two different openings, neither empty, got {openings[0]!r}, {openings[1]!r}.")
    base = SteeredModel(loaded.base, {}, loaded.layout)
    sides: list[dict[str, Branch]] = []
    for opening in openings:
        prompts = encode_prompts(
            loaded.base, loaded.tokenizer, template.with_opening(opening), examples, params.max_tokens, "drop"
        )
        side: dict[str, Branch] = {}
        for index, group in sampler.stream(base, loaded.tokenizer, prompts, 1, params, seed):
            rollout = group.rollouts[0]
            sampled = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
            side[group.example.id] = _opened(loaded, template, prompts[index], sampled)
            if progress is not None:
                progress(f"samples after {opening!r}", len(side), len(prompts))
        sides.append(side)
    kept = [e.id for e in examples if e.id in sides[0] and e.id in sides[1]]
    positive, negative = ([side[k] for k in kept] for side in sides)
    return _contrast(positive, negative, len(examples), context_length(loaded.base), same_prompt=False)


def _opened(loaded: LoadedModel, template: PromptTemplate, prompt: EncodedPrompt, sampled: tuple[int, ...]) -> Branch:
    plain = template.encode(loaded.tokenizer, template.render(loaded.tokenizer, prompt.example))
    start = _shared(plain, prompt.ids)
    if start < 1 or start == len(prompt.ids):
        raise SteerkitError("An opening adds no token to the prompt: give a longer one.")
    return Branch((*prompt.ids, *sampled), start, len(prompt.ids) - start)
