"""Slots that are filled from the front: who moves where when some are emptied."""

from __future__ import annotations

from collections.abc import Sequence


def moves_to_front(empty: Sequence[int], n: int) -> list[tuple[int, int]]:
    """(from, to) of each slot that moves, so that the filled ones of 0 .. ``n`` - 1 stand at the front again: the last
    ones go into the gaps.
    """
    gone, moves, end = set(empty), [], n
    for slot in sorted(gone):
        end -= 1
        while end in gone and end > slot:
            end -= 1
        if end <= slot:
            break
        moves.append((end, slot))
    return moves
