"""How the completions of an update are put into micro-batches: like lengths together, within a number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from steerkit.rollouts.beginnings import common_prefix

if TYPE_CHECKING:
    from steerkit.rollouts.prompt_pass import Branches

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


_PROMPT_SHARE = 3
"""Prompts that wait for the completions of several micro-batches take at most 1 / 3 of the tokens."""


def prompt_batches(groups: Sequence[Branches], token_budget: int) -> Iterator[tuple[list[int], int]]:
    """Groups whose prompts run together, before their completions in several micro-batches.

    Yields:
        (group indices, tokens that are left for a micro-batch of their completions). Prompts of like length go
        together; one that is too long alone goes alone.
    """
    order = sorted(range(len(groups)), key=lambda g: len(groups[g].prompt))
    chosen: list[int] = []
    for index in [*order, None]:
        longer = [*chosen, index] if index is not None else chosen
        if chosen and (index is None or _prompt_tokens(groups, longer) > token_budget // _PROMPT_SHARE):
            yield chosen, max(1, token_budget - _prompt_tokens(groups, chosen))
            longer = [index] if index is not None else []
        chosen = longer


def _prompt_tokens(groups: Sequence[Branches], chosen: Sequence[int]) -> int:
    """Padded; what they begin with in common once."""
    prompts = [groups[g].prompt for g in chosen]
    width = max(map(len, prompts))
    common = common_prefix(prompts) if len(prompts) > 1 else 0
    return common + len(prompts) * (width - common)


def micro_batches(
    groups: Sequence[Branches], token_budget: int, shared_prompts: bool = True, apart: bool = False
) -> Iterator[Pieces]:
    """Split groups into batches of at most about ``token_budget`` padded tokens.

    A row is as long as the longest of its batch, so completions of like length go together, where the padding that is
    spared costs more than the prompts that run once more.

    Args:
        shared_prompts: False for families with a running state, where each completion runs with its own prompt.
        apart: the prompts ran before (``prompt_batches``) and cost nothing here.

    Yields:
        Lists of (group index, completion indices). A group that is too large alone is split by its completions,
        sorted by length; a single completion over the budget goes alone.
    """
    whole = [(g, list(range(len(group.completions)))) for g, group in enumerate(groups)]
    cost = _apart_cost if apart else _cost if shared_prompts else _separate_cost
    for pieces in _by_length(groups, apart) if shared_prompts else [whole]:
        yield from _within(groups, pieces, token_budget, cost)


def _by_length(groups: Sequence[Branches], apart: bool) -> Iterator[Pieces]:
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
                if not apart and g not in prompts:
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
    groups: Sequence[Branches],
    chosen: Iterable[tuple[int, list[int]]],
    budget: int,
    cost: Callable[[int, int, int, int], int],
) -> Iterator[Pieces]:
    """Batches of these completions within the budget, prompts of like length together."""
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


def _apart_cost(prompts: int, prompt_width: int, completions: int, completion_width: int) -> int:
    return _cost(0, prompt_width, completions, completion_width)


def _separate_cost(prompts: int, prompt_width: int, completions: int, completion_width: int) -> int:
    return completions * (prompt_width + completion_width)
