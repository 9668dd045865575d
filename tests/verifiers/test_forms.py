"""The hand-checked forms: expected values were decided by mathematics, before the code saw them."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from steerkit.verifiers import extract_answer
from steerkit.verifiers.equivalence import equivalent

FORMS = [json.loads(line) for line in (Path(__file__).parent / "forms.jsonl").read_text(encoding="utf-8").splitlines()]
CLASSES = list(dict.fromkeys(form["class"] for form in FORMS))


def test_there_are_enough_of_them() -> None:
    assert len(FORMS) >= 300
    assert len(CLASSES) >= 30
    assert all(form["set"] for form in FORMS), "each gold is a real one: the set that it comes from is named"
    assert len({(form["gold"], form["completion"]) for form in FORMS}) == len(FORMS)
    right = Counter(form["expected"] for form in FORMS)
    assert min(right.values()) > len(FORMS) / 3, "about as many wrong answers as right ones"


@pytest.mark.parametrize("name", CLASSES)
def test_forms_of(name: str) -> None:
    wrong = []
    for form in FORMS:
        if form["class"] == name:
            status, reason = equivalent(extract_answer(form["completion"]) or "", form["gold"])
            agrees = status == ("correct" if form["expected"] else "wrong")
            if agrees == form.get("disagrees", False):  # a known disagreement that is gone must be told, too
                wrong.append((form["gold"], form["completion"], form["expected"], status, reason))
    assert wrong == []


def test_known_disagreements_are_few_and_on_the_safe_side() -> None:
    known = [form for form in FORMS if form.get("disagrees")]
    assert len(known) <= len(FORMS) / 200
    assert all(form["expected"] for form in known), "a wrong answer judged correct is never acceptable"


def test_the_page_on_verifiers_lists_forms_that_are_here() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\| `(.+?)` \| `(.+?)` \| (correct|wrong) \|$", page, re.MULTILINE)
    assert len(rows) > 25
    expected = {(form["gold"], form["completion"]): form["expected"] for form in FORMS}
    for gold, answer, math_verify_says in rows:
        assert expected.get((gold, rf"\boxed{{{answer}}}")) is (math_verify_says == "wrong"), (gold, answer)


def test_every_gold_equals_itself() -> None:
    golds = {form["gold"] for form in FORMS}
    assert [gold for gold in golds if equivalent(gold, gold) != ("correct", "equal")] == []
