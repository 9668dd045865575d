"""Prompt templates over tokenizers built in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from steerkit.datasets import BOXED, PromptTemplate, fit_to_context
from steerkit.errors import DataError, SteerkitError
from steerkit.types import Example

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
)
DEAF = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML
BROKEN = "{{ raise_exception('this template never works') }}"
WORDS = ["<unk>", "<bos>", "<end>", "<|user|>", "<|system|>", "<|assistant|>", "1", "+", "=", "To", "Q", "A", ":", "\n"]


def tokenizer(template: str | None = None, adds: str = "") -> PreTrainedTokenizerFast:
    """Whitespace words; ``adds`` (``b``, ``e``, ``be``) are the specials that encoding puts around a text."""
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds:
        single = " ".join([*(["<bos>"] if "b" in adds else []), "$A", *(["<end>"] if "e" in adds else [])])
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<bos>", 1), ("<end>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|system|>", "<|assistant|>"],
    )
    made.chat_template = template
    return made


SHOTS = [{"problem": "1 + 1", "completion": "1"}]


def test_the_default_is_the_papers_prompt() -> None:
    assert BOXED == r"Please reason step by step, and put your final answer within \boxed{}."
    text = PromptTemplate().render(tokenizer(CHATML), Example(id="0", problem="1 + 1", answer="2"))
    assert text == f"<|system|>{BOXED}<end><|user|>1 + 1<end><|assistant|>"


def test_chat_with_everything() -> None:
    template = PromptTemplate(system="S", prefix="Q: ", suffix=" =", few_shot=SHOTS, assistant_prefix="To")
    assert template.render(tokenizer(CHATML), "1") == (
        "<|system|>S<end><|user|>Q: 1 + 1 =<end><|assistant|>1<end><|user|>Q: 1 =<end><|assistant|>To"
    )
    assert PromptTemplate(system=None).render(tokenizer(CHATML), "1") == "<|user|>1<end><|assistant|>"


@pytest.mark.parametrize("template", [GEMMA, DEAF])
def test_a_template_without_system_role_gets_it_in_the_first_user_turn(template: str) -> None:
    text = PromptTemplate(system="S.", few_shot=SHOTS).render(tokenizer(template), "1")
    assert text.removeprefix("<bos>") == ("<|user|>S.\n\n1 + 1<end><|assistant|>1<end><|user|>1<end><|assistant|>")


def test_chat_errors() -> None:
    with pytest.raises(SteerkitError, match=r"no chat template .* style to 'plain'"):
        PromptTemplate().render(tokenizer(), "1")
    with pytest.raises(SteerkitError, match="chat template fails on this prompt: this template never works"):
        PromptTemplate().render(tokenizer(BROKEN), "1")
    with pytest.raises(SteerkitError, match="chat template fails on this prompt"):
        PromptTemplate(system=None).render(tokenizer(BROKEN), "1")


def test_plain_adds_nothing_but_blank_lines() -> None:
    template = PromptTemplate("plain", system="S.", prefix="Q: ", suffix="\nA: ", few_shot=SHOTS, assistant_prefix="To")
    assert template.render(tokenizer(), "1 =") == "S.\n\nQ: 1 + 1\nA: 1\n\nQ: 1 =\nA: To"
    assert PromptTemplate("plain", system=None).render(tokenizer(), "1") == "1"


@pytest.mark.parametrize("adds", ["", "b", "be"])
def test_chat_has_the_one_bos_of_its_template(adds: str) -> None:
    template = PromptTemplate(system=None)
    for chat, bos in ((WITH_BOS, [1]), (CHATML, [])):
        made = tokenizer(chat, adds)
        assert template.encode(made, template.render(made, "1 +")) == [*bos, 3, 6, 7, 2, 5]


@pytest.mark.parametrize(("adds", "expected"), [("", [6, 7]), ("b", [1, 6, 7]), ("be", [1, 6, 7]), ("e", [6, 7])])
def test_plain_has_one_bos_if_the_tokenizer_adds_it_and_no_eos(adds: str, expected: list[int]) -> None:
    template = PromptTemplate("plain", system=None)
    assert template.encode(tokenizer(None, adds), "1 +") == expected
    assert template.encode(tokenizer(None, adds), "<bos>1 +") == [1, 6, 7]
    assert template.encode(tokenizer(None, adds), "1 +<end>") == [*expected, 2]  # written by hand: kept, once


def test_round_trip_through_json() -> None:
    template = PromptTemplate("plain", None, "Q: ", "\nA:", SHOTS, "To")
    assert PromptTemplate.from_dict(json.loads(json.dumps(template.to_dict()))) == template
    assert PromptTemplate.from_dict({}) == PromptTemplate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sufix": ""}, "no setting 'sufix'. Did you mean 'suffix'?"),
        ({"style": "chatml"}, "Prompt style 'chatml' is unknown"),
        ({"few_shot": [{"problem": "1", "answer": "1"}]}, "few_shot[0] has the keys ['answer', 'problem']: expected"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SteerkitError) as error:
        PromptTemplate.from_dict(settings)
    assert message in str(error.value)


def test_fit_to_context() -> None:
    encoded = [[1, 2], [1, 2, 3], [1], [1, 2, 3, 4]]
    assert fit_to_context(encoded, 4, "refuse") == ([0, 1, 2, 3], 0)
    assert fit_to_context(encoded, 2, "drop") == ([0, 2], 2)
    with pytest.raises(DataError, match=r"2 of 4 prompts are longer than 2 tokens \(the longest, number 3, has 4\)"):
        fit_to_context(encoded, 2, "refuse")
    with pytest.raises(DataError, match="4 of 4 prompts"):
        fit_to_context(encoded, 0, "drop")
    with pytest.raises(SteerkitError, match="must be 'refuse' or 'drop'"):
        fit_to_context(encoded, 2, "cut")  # type: ignore[arg-type]
    assert fit_to_context([], 2, "refuse") == ([], 0)
