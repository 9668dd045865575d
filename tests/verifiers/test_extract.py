import time

import pytest

from steerkit.verifiers import extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 42", "42"),
        ("a\n#### 41\nno:\n #### 42 \nend", "42"),
        ("x #### 42", None),
        ("#### 41\nx #### 42", "41"),
        ("####", ""),
        ("no mark", None),
        ("x ####\n" * 3 + "#### 5", "5"),
    ],
)
def test_hash(text: str, answer: str | None) -> None:
    assert extract_answer(text, ["hash"]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("the final answer is: $\\frac{1}{2}$, I hope.", "\\frac{1}{2}"),
        ("The answer is 41. No, the answer is \\(42\\).", "42"),
        ("**Answer:** 42", "42"),
        ("Answer: $$x+1$$ done", "x+1"),
        ("The answer is 3.5 apples. Next", "3.5 apples"),
        ("The answer is **42**.", "42"),
        ("answer = 7\nmore", "7"),
        ("The answer", None),
        ("The answering machine is 5", None),
        ("My answer is it", "it"),
    ],
)
def test_phrase(text: str, answer: str | None) -> None:
    assert extract_answer(text, ["phrase"]) == answer


def test_a_later_form_counts_only_where_the_earlier_ones_find_nothing() -> None:
    text = "The answer is 1.\n#### 2\n\\boxed{3}"
    assert extract_answer(text) == "3"
    assert extract_answer(text, ["phrase", "boxed"]) == "1"
    assert extract_answer(text, ["hash", "phrase"]) == "2"
    assert extract_answer("nothing", ["boxed", "hash", "phrase"]) is None


@pytest.mark.parametrize(
    "text", ["#### " * 200_000, "####\n" * 200_000, "x####\n" * 160_000, "answer is " * 100_000, "answer" + " " * 10**6]
)
def test_a_million_characters_take_linear_time(text: str) -> None:
    start = time.process_time()  # CPU time: a busy machine does not count
    extract_answer(text, ["boxed", "hash", "phrase"])
    assert time.process_time() - start < 3  # quadratic time would be hours
