"""How the completions of an update are put into micro-batches: like lengths together, within a number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerkit.rollouts.teacher_forcing import Branches

Pieces = list[tuple[int, list[int]]]
"""(group, some of its completions)"""

_CACHE_SHARE = 8
"""A completion's copy of its prompt's keys and values takes about 1/8 of the memory of the prompt's activations."""
_CALL = 256
"""What one more micro-batch costs beside its tokens, in tokens: the calls of some hundred operations, and matrix
products of fewer rows.
"""
_MOST_LENGTHS = 64
"""Lengths that are told apart when micro-batches are cut."""


def micro_batches(groups: Sequence[Branches], token_budget: int, shared_prompts: bool = True) -> Iterator[Pieces]:
    """Split groups into batches of at most about ``token_budget`` padded tokens.

    A row is as long as the longest of its batch, so completions of like length go together, where the padding that is
    spared costs more than the prompts that run once more.

    Args:
        shared_prompts: False for families with a running state, where each completion runs with its own prompt.

    Yields:
        Lists of (group index, completion indices). A group that is too large alone is split by its completions,
        sorted by length; a single completion over the budget goes alone.
    """
    whole = [(g, list(range(len(group.completions)))) for g, group in enumerate(groups)]
    for pieces in _by_length(groups) if shared_prompts else [whole]:
        yield from _within(groups, pieces, token_budget, shared_prompts)


def _by_length(groups: Sequence[Branches]) -> Iterator[Pieces]:
    """The completions from short to long, cut where that makes the padded tokens of all parts fewest."""
    rows = sorted((len(row), g, k) for g, group in enumerate(groups) for k, row in enumerate(group.completions))
    ends = _ends([length for length, _, _ in rows])
    best, cuts = [0], [0]  # of the rows up to each end: the fewest tokens, and the end that the last part begins at
    found = {0: 0}
    for end in ends:
        found[end] = len(best)
        best.append(-1)
        cuts.append(0)
    for start in [0, *ends[:-1]]:
        prompts: set[int] = set()
        tokens, at = _CALL, start
        for end in ends[found[start] :]:
            for _, g, _ in rows[at:end]:
                if g not in prompts:
                    prompts.add(g)
                    tokens += len(groups[g].prompt)
            at = end
            total = best[found[start]] + tokens + (end - start) * rows[end - 1][0]
            if best[found[end]] < 0 or total < best[found[end]]:
                best[found[end]], cuts[found[end]] = total, start
    parts, end = [], len(rows)
    while end:
        start = cuts[found[end]]
        parts.append(rows[start:end])
        end = start
    for part in reversed(parts):
        pieces: dict[int, list[int]] = {}
        for _, g, k in part:
            pieces.setdefault(g, []).append(k)
        yield sorted(pieces.items())


def _ends(lengths: Sequence[int]) -> list[int]:
    """Where sorted lengths may be cut: behind the last of a length, at most ``_MOST_LENGTHS`` places."""
    ends = [k for k in range(1, len(lengths)) if lengths[k] > lengths[k - 1]]
    step = -(-len(ends) // _MOST_LENGTHS) or 1
    return [*ends[step - 1 :: step], *([len(lengths)] if lengths else [])]


def _within(
    groups: Sequence[Branches], chosen: Iterable[tuple[int, list[int]]], budget: int, shared: bool
) -> Iterator[Pieces]:
    """Batches of these completions within the budget, prompts of like length together."""
    cost = _cost if shared else _separate_cost
    pieces: Pieces = []
    for index, picks in sorted(chosen, key=lambda piece: len(groups[piece[0]].prompt)):
        prompt, completions = groups[index].prompt, groups[index].completions
        piece: list[int] = []
        for k in sorted(picks, key=lambda k: len(completions[k])):
            if piece and cost(1, len(prompt), len(piece) + 1, len(completions[k])) > budget:
                pieces.append((index, piece))
                piece = []
            piece.append(k)
        if piece:
            pieces.append((index, piece))
    batch: Pieces = []
    prompt_width = completion_width = n_completions = 0
    for index, piece in pieces:
        longest = max(len(groups[index].completions[k]) for k in piece)
        widths = max(prompt_width, len(groups[index].prompt)), max(completion_width, longest)
        size = cost(len(batch) + 1, widths[0], n_completions + len(piece), widths[1])
        if batch and size > budget:
            yield batch
            batch, n_completions = [], 0
            widths = len(groups[index].prompt), longest
        batch.append((index, piece))
        prompt_width, completion_width = widths
        n_completions += len(piece)
    if batch:
        yield batch


def _cost(prompts: int, prompt_width: int, completions: int, completion_width: int) -> int:
    """Padded tokens of both passes, the completions' copies of the prompts' keys and values included."""
    return prompts * prompt_width + completions * (completion_width + prompt_width // _CACHE_SHARE)


def _separate_cost(prompts: int, prompt_width: int, completions: int, completion_width: int) -> int:
    return completions * (prompt_width + completion_width)
