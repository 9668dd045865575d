"""Token masks as sets of positions: hand-written truths."""

from __future__ import annotations

import pytest

from steerkit.errors import SteerkitError
from steerkit.token_masks import NAMES, TokenMask

# A prompt of 4 tokens, positions 0 .. 3; position 3 predicts the first generated token.
PROMPT = {
    "all": "1111",
    "prompt": "1110",
    "generated": "0001",
    "first_generated": "0001",
    "not_first_generated": "1110",
    "last_prompt:1": "0001",
    "last_prompt:3": "0111",
    "last_prompt:9": "1111",
    "segment:problem": "0110",
    "segment:system": "1000",
    "segment:role_tags": "0001",
    "segment:few_shot": "0000",
}
GENERATED = {"all", "generated", "not_first_generated"}
SEGMENTS = ("system", "problem", "problem", "role_tags")


@pytest.mark.parametrize("spec", PROMPT)
def test_positions(spec):
    mask = TokenMask(spec)
    assert "".join(str(int(on)) for on in mask.prompt_positions(4, SEGMENTS)) == PROMPT[spec]
    assert mask.generated == (spec in GENERATED)
    assert mask.everywhere == (spec == "all")


def test_the_first_generated_token_and_all_but_it_are_a_partition():
    first, rest = TokenMask("first_generated"), TokenMask("not_first_generated")
    assert [a != b for a, b in zip(first.prompt_positions(5), rest.prompt_positions(5), strict=True)] == [True] * 5
    assert first.generated != rest.generated
    prompt, generated = TokenMask("prompt"), TokenMask("generated")
    assert [a != b for a, b in zip(prompt.prompt_positions(5), generated.prompt_positions(5), strict=True)] == [
        True
    ] * 5
    assert prompt.generated != generated.generated


def test_a_prompt_of_one_token():
    assert {name: TokenMask(name).prompt_positions(1) for name in NAMES} == {
        "all": [True],
        "prompt": [False],
        "generated": [True],
        "first_generated": [True],
        "not_first_generated": [False],
    }


@pytest.mark.parametrize(
    "spec, message",
    [
        ("firts_generated", "Did you mean 'first_generated'"),
        ("last_prompt:0", "Unknown token mask"),
        ("last_prompt", "Unknown token mask"),
        ("segment:sytem", "Unknown prompt segment 'sytem'. Did you mean 'system'"),
        ("", "Unknown token mask"),
    ],
)
def test_bad_masks(spec, message):
    with pytest.raises(SteerkitError, match=message):
        TokenMask(spec)


def test_a_segment_mask_needs_the_segments():
    with pytest.raises(SteerkitError, match="needs the segment of each prompt token"):
        TokenMask("segment:problem").prompt_positions(4)
