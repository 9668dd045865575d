"""Micro-batches: nothing lost, and the cuts between lengths that leave the fewest padded tokens."""

import random
from itertools import combinations

import pytest

from steerkit.rollouts import Branches, micro_batches
from steerkit.rollouts.packing import _CALL, prompt_batches


def groups_of(lengths, prompts):
    return [Branches([1] * prompt, [[2] * n for n in row]) for prompt, row in zip(prompts, lengths, strict=True)]


def tokens(groups, batch):
    """What a batch costs: its prompts, its rows as long as the longest, and the call."""
    longest = max(len(groups[g].completions[k]) for g, picks in batch for k in picks)
    return _CALL + sum(len(groups[g].prompt) + longest * len(picks) for g, picks in batch)


def fewest(groups):
    """Over all ways to cut the sorted lengths."""
    rows = sorted((len(row), g, k) for g, group in enumerate(groups) for k, row in enumerate(group.completions))
    lengths = sorted({length for length, _, _ in rows})
    totals = []
    for n in range(len(lengths)):
        for inner in combinations(lengths[:-1], n):
            total = 0
            for low, high in zip((0, *inner), (*inner, lengths[-1]), strict=True):
                part = [row for row in rows if low < row[0] <= high]
                total += _CALL + high * len(part) + sum(len(groups[g].prompt) for g in {g for _, g, _ in part})
            totals.append(total)
    return min(totals)


@pytest.mark.parametrize("seed", range(8))
def test_lengths_are_cut_where_it_costs_least(seed):
    drawn = random.Random(seed)
    choices = [3, 9, 10, 40, 90, 150, 160]
    lengths = [[drawn.choice(choices) for _ in range(12)] for _ in range(4)]
    groups = groups_of(lengths, [drawn.randint(5, 60) for _ in lengths])
    batches = list(micro_batches(groups, 10**9))
    assert sorted((g, k) for b in batches for g, picks in b for k in picks) == [
        (g, k) for g in range(4) for k in range(12)
    ]
    assert sum(tokens(groups, batch) for batch in batches) == fewest(groups)
    if seed == 0:
        assert len(batches) > 1
        whole = [(g, list(range(12))) for g in range(4)]
        assert sum(tokens(groups, batch) for batch in batches) < 0.8 * tokens(groups, whole)


def test_equal_lengths_stay_together():
    assert len(list(micro_batches(groups_of([[64] * 8] * 8, [60] * 8), 10**9))) == 1


def test_many_lengths():
    groups = groups_of([list(range(1, 400))], [20])
    batches = list(micro_batches(groups, 10**9))
    assert sorted(k for batch in batches for _, picks in batch for k in picks) == list(range(399))
    assert len(batches) > 3


def test_separate_rows_are_not_cut_by_length():
    groups = groups_of([[2, 300]] * 3, [5, 6, 7])
    assert len(list(micro_batches(groups, 10**9, shared_prompts=False))) == 1


def test_prompts_before_their_completions_take_a_third_of_the_tokens():
    groups = groups_of([[30] * 4] * 6, [20, 40, 30, 10, 50, 200])
    for n, group in enumerate(groups):  # nothing in common
        group.prompt[0] = n + 10
    batches = list(prompt_batches(groups, 300))
    assert batches == [([3, 0, 2], 210), ([1, 4], 200), ([5], 100)]  # by length; the last is too long alone
    assert [chosen for chosen, _ in prompt_batches(groups, 10**9)] == [[3, 0, 2, 1, 4, 5]]
    alike = groups_of([[30]] * 3, [90, 95, 100])
    assert list(prompt_batches(alike, 400)) == [([0, 1, 2], 400 - 89 - 3 * 11)]  # what they begin with, once


def test_prompts_that_ran_before_cost_nothing():
    groups = groups_of([[30] * 4] * 2, [80, 80])
    assert [len(batch) for batch in micro_batches(groups, 340)] == [1, 1]  # 80 + 4 * (30 + 10)
    assert len(list(micro_batches(groups, 340, apart=True))) == 1
