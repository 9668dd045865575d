"""Segments of a rendered prompt, token by token."""

from __future__ import annotations

from itertools import groupby

import pytest

from steerkit.datasets import PromptTemplate, prompt_segments
from steerkit.errors import SteerkitError
from tests.helpers import tokenizer

TOK = tokenizer()


def pieces(template: PromptTemplate, problem: str) -> list[tuple[str, str]]:
    """(segment, decoded text) runs."""
    text = template.render(TOK, problem)
    ids = template.encode(TOK, text)
    names = prompt_segments(TOK, template, problem, text)
    assert len(names) == len(ids)
    runs = groupby(zip(names, ids, strict=True), key=lambda item: item[0])
    return [(name, TOK.decode([i for _, i in group]).strip()) for name, group in runs]


def test_chat_prompt():
    template = PromptTemplate(system="Be brief.", suffix=" Answer:", assistant_prefix="To")
    found = pieces(template, "Tom has 12 apples.")
    assert [name for name, _ in found] == ["role_tags", "system", "role_tags", "problem", "role_tags", "prefill"]
    texts = dict(found)
    assert (
        texts["system"] == "Be brief." and texts["problem"] == "Tom has 12 apples. Answer:" and texts["prefill"] == "To"
    )


def test_few_shot_that_repeats_the_problem():
    """The problem is the last occurrence, the example keeps its own label."""
    template = PromptTemplate(system="", few_shot=[{"problem": "Tom has 12.", "completion": "It is 12."}])
    found = [item for item in pieces(template, "Tom has 12.") if item[0] != "role_tags"]
    assert found == [("few_shot", "Tom has 12."), ("few_shot", "It is 12."), ("problem", "Tom has 12.")]


def test_plain_prompt():
    template = PromptTemplate(style="plain", system="Think.", prefix="Q: ", suffix="\nA:")
    found = pieces(template, "Tom has 12 apples.")
    assert [name for name, _ in found if name != "role_tags"] == ["system", "problem"]
    assert found[-1] == ("problem", "Q: Tom has 12 apples.\nA:")


def test_a_template_that_changes_the_problem():
    with pytest.raises(SteerkitError, match="segments are unknown"):
        prompt_segments(TOK, PromptTemplate(system=""), "Tom", "something else")
