"""What a model may write as an answer is anything: the readers in this process end, and never raise another error.

Comparing by math-verify happens in workers that are killed (tests/verifiers/test_pool.py, test_hostile.py).
"""

import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from steerkit.types import Verdict
from steerkit.verifiers.answers import Unreadable, read, same
from steerkit.verifiers.boxed import last_boxed
from steerkit.verifiers.extract import extract_answer
from steerkit.verifiers.math import MathVerifier

FORMS = ("boxed", "hash", "phrase")
MANY = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PIECES = [
    *(r"\boxed{", r"\boxed", r"\fbox{", "{", "}", "####", "The answer is", "answer:", "\n", "$", r"\(", r"\)"),
    *(r"\frac{1}{2}", r"\dfrac", r"\sqrt", "^", "_", r"\text{cm}", r"\left(", r"\right]", ",", ";", "=", r"\pm", "%"),
    *(
        "1",
        "12",
        "-3",
        ".5",
        "1e9",
        "9**9**9",
        "x",
        "\0",
        "\ud800",
        "\u202e",
        "٣",
        "½",
        "∞",
        "(",
        ")",
        "[",
        "|",
        "&",
        r"\\",
    ),
    *(r"\begin{pmatrix}", r"\end{pmatrix}", "3:45", "2^{100}", r"\cdot", "!", "'", '"', "\\"),
]
ANSWERS = st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@MANY
@given(text=ANSWERS)
@example(text=r"\boxed{" * 2000)
@example(text="{" * 5000)
def test_extraction(text):
    for form in FORMS:
        found = extract_answer(text, [form])
        assert found is None or (found in text and found == found.strip())


@MANY
@given(before=ANSWERS, content=st.text(st.characters(exclude_characters="{}\\"), max_size=20))
def test_the_last_box_is_found(before, content):
    assert last_boxed(before + r"\boxed{" + content + "}") == content.strip()


@MANY
@given(text=ANSWERS)
@example(text="(" * 3000)
@example(text="2^" * 500 + "2")
@example(text="9**9**9**9")
@example(text=r"\frac" * 500)
def test_the_strict_reader(text):
    began = time.process_time()
    try:
        answer = read(text)
        assert same(answer, answer) in (True, False)
    except (Unreadable, RecursionError):  # the worker takes both for an answer that it can't read
        pass
    assert time.process_time() - began < 5


class NoPool:
    """Stands for the workers, which are not asked for what the parent can judge."""

    def __init__(self):
        self.asked = []

    def map(self, pairs):
        self.asked += pairs
        return [("wrong", "not_equal")] * len(pairs)

    def close(self):
        pass


@pytest.fixture
def verifier():
    verifier = MathVerifier(extract=FORMS)
    verifier.pool.close()
    verifier.pool = NoPool()
    return verifier


@MANY
@given(pairs=st.lists(st.tuples(ANSWERS, ANSWERS), max_size=4))
@example(pairs=[("\\boxed{" + "9" * 5000 + "}", "9" * 5000)])
@example(pairs=[("\\boxed{٣}", "3")])
def test_the_verifiers_own_part(verifier, pairs):
    """One verdict an answer, in order; the text that it keeps is short and can be written to a file."""
    verdicts = verifier.verify_many([completion for completion, _ in pairs], [gold for _, gold in pairs])
    assert len(verdicts) == len(pairs)
    for verdict, (completion, _) in zip(verdicts, pairs, strict=True):
        assert isinstance(verdict, Verdict) and verdict.status in ("correct", "wrong", "fault")
        assert len(verdict.extracted.encode("utf-8")) <= 2000
        if extract_answer(completion, FORMS) is None:
            assert verdict == Verdict("wrong", "no_box")


def test_a_few_through_real_workers():
    cases = [
        (r"\boxed{\frac{2}{4}}", "1/2"),
        (r"\boxed{\ud800\0}", "2"),
        (r"\boxed{9**9**9**9}", "3"),
        ("nothing", "4"),
    ]
    with MathVerifier(workers=1, timeout=10) as verifier:
        verdicts = verifier.verify_many([case for case, _ in cases], [gold for _, gold in cases])
    assert verdicts[0].status == "correct"
    assert all(verdict.status in ("wrong", "fault") for verdict in verdicts[1:])
