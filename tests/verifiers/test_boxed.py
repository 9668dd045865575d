import time

import pytest

from steerkit.verifiers import ExactVerifier, last_boxed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed {5}", "5"),
        ("\\boxed{\n5\n}", "5"),
        (r"\fbox{5}", "5"),
        (r"\fbox{1} \boxed{2}", "2"),
        (r"$\boxed 5$ is it", "5"),
        (r"\(\boxed 12\) is it", "12"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\ {b}}", r"a \\ {b}"),
        (r"\boxed{}", ""),
        (r"\boxedminipage{3} \boxed{4} \boxedtext{5}", "4"),
    ],
)
def test_last_box(text: str, expected: str) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize("text", ["", "5", r"\boxed{5", r"\boxed{1} and \boxed{2", r"\boxed", r"\boxed  ", r"\boxed$"])
def test_no_box(text: str) -> None:
    assert last_boxed(text) is None


@pytest.mark.parametrize("text", [r"\boxed{" * 150_000, r"\boxedx" * 150_000, "{" * 10**6, r"\boxed{" + "{}" * 500_000])
def test_a_million_characters_take_linear_time(text: str) -> None:
    start = time.process_time()  # CPU time: a busy machine does not count
    last_boxed(text)
    assert time.process_time() - start < 3  # quadratic time would be hours


def test_exact_verifier_forgives_white_space_only() -> None:
    boxed, whole = ExactVerifier(), ExactVerifier(extract="text")
    assert boxed.verify(r"it is \boxed{two  apples}", " two apples ").reason == "equal"
    assert boxed.verify(r"\boxed{Two}", "two").reason == "not_equal"
    assert boxed.verify("two", "two").reason == "no_box"
    assert whole.verify("two\n", "two").correct
