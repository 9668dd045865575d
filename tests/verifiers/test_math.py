import threading
import time
from collections.abc import Iterator

import pytest

from steerkit.errors import SteerkitError
from steerkit.types import Verdict
from steerkit.verifiers import MathVerifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=2, timeout=60.0) as verifier:
        verifier.warm()
        yield verifier


def box(text: str) -> str:
    return rf"The answer is $\boxed{{{text}}}$."


EQUAL = [
    ("5", "5"),
    ("007", "7"),
    ("1/2", "0.5"),
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\frac{1}{3}", "0.333333"),
    ("10,000", "10000"),
    ("10000", r"10{,}000"),
    ("10000", r"10,\!000"),
    ("1,234.5", "1234.5"),
    ("1000000", "10^6"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("5", r"5\text{ cm}"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("5", "5."),
    ("5.", "5"),
    (r"30^\circ.", "30"),
    (r"50\%", "0.5"),
    (r"90^\circ", "90"),
    ("1,2", "2,1"),
    (r"\text{(C)}", "C"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"16 \pi", "16π"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
]


def test_equal_forms(verifier: MathVerifier) -> None:
    verdicts = verifier.verify_many([box(found) for _, found in EQUAL], [gold for gold, _ in EQUAL])
    wrong = [(pair, verdict) for pair, verdict in zip(EQUAL, verdicts, strict=True) if verdict.status != "correct"]
    assert wrong == []


WRONG = [
    ("5", "6", "not_equal"),
    (r"\frac{1}{3}", "0.33", "not_equal"),
    ("(1,2)", "[1,2]", "not_equal"),
    ("1,2,3", "123", "not_equal"),
    ("5", "four", "not_equal"),
    ("5", "six or so", "not_equal"),
    ("5", "5 or 6", "not_equal"),
    ("5", "", "empty_box"),
    ("5", "!?", "unparsable"),
    ("5", "1" * 3000, "too_long"),
    ("5", "\ud800\0", "unparsable"),
]


def test_wrong_answers(verifier: MathVerifier) -> None:
    verdicts = verifier.verify_many([box(found) for _, found, _ in WRONG], [gold for gold, _, _ in WRONG])
    assert [(verdict.status, verdict.reason) for verdict in verdicts] == [("wrong", reason) for *_, reason in WRONG]


def test_only_the_last_box_counts(verifier: MathVerifier) -> None:
    assert verifier.verify(r"\boxed{4}, no, \boxed{5}", "5") == Verdict("correct", "equal", "5")
    assert verifier.verify(r"\boxed{5}, no, \boxed{4}", "5") == Verdict("wrong", "not_equal", "4")
    assert verifier.verify("The answer is 5.", "5") == Verdict("wrong", "no_box")
    assert verifier.verify(r"\boxed{5", "5").reason == "no_box"


@pytest.mark.parametrize("gold", ["", "!?", "1/0", r"\frac{2}"])
def test_a_gold_that_is_no_mathematics_is_a_fault_whatever_the_answer(verifier: MathVerifier, gold: str) -> None:
    for found in ("12", gold or "x"):
        verdict = verifier.verify(box(found), gold)
        assert (verdict.status, verdict.reason) == ("fault", "gold_unparsable")


def test_plain_integers_need_no_process() -> None:
    verifier = MathVerifier()
    assert verifier.verify(box("-042"), "-42").correct
    assert verifier.verify(box("9" * 1000), "9" * 1000).correct
    assert not verifier.pool.counts


def test_an_answer_that_hangs_is_killed_once_for_all_its_copies() -> None:
    with MathVerifier(workers=1, timeout=3.0) as verifier:
        verdicts = verifier.verify_many([box("9^{9^{9^{9}}}")] * 16 + [box("1+1")], ["5"] * 16 + ["2"])
    # Sympy may refuse it or hang on it; it must not be right, and the others must not suffer.
    assert all(not verdict.correct for verdict in verdicts[:16])
    assert verdicts[16].correct
    assert verifier.pool.counts["timeout"] <= 1


def test_a_million_characters_are_bounded(verifier: MathVerifier) -> None:
    start = time.process_time()
    texts = [box("(" * 10**6), "x" * 10**6, r"\boxed{" * 150_000, "0" * 10**6 + box("1+1")]
    verdicts = verifier.verify_many(texts, ["2"] * 4)
    assert time.process_time() - start < 5
    assert [verdict.reason for verdict in verdicts] == ["too_long", "no_box", "no_box", "equal"]
    assert len(verdicts[0].extracted) == 500


def test_other_places_of_the_answer_are_off_by_default() -> None:
    completions = ["48 / 2 = 24\n#### 24", "So the answer is $24$.", r"\boxed{24}" + "\n#### 25"]
    with MathVerifier() as boxed, MathVerifier(extract=["boxed", "hash", "phrase"]) as three:
        assert [v.reason for v in boxed.verify_many(completions, ["24"] * 3)] == ["no_box", "no_box", "equal"]
        assert [v.reason for v in three.verify_many(completions, ["24"] * 3)] == ["equal"] * 3
    with MathVerifier(extract=["hash", "boxed"]) as hash_first:  # the order is the priority
        assert hash_first.verify(completions[2], "24").reason == "not_equal"
    for wrong in ([], ["boxed", "boxed"], ["box"], "text"):
        with pytest.raises(SteerkitError, match="extract must list some of boxed, hash, phrase"):
            MathVerifier(extract=wrong)  # type: ignore[arg-type]


def test_wait_leaves_all_workers_ready() -> None:
    with MathVerifier(workers=2) as verifier:
        verifier.wait()
        assert all(slot._ready for slot in verifier.pool._slots)
        assert verifier.verify(box("1+1"), "2").correct


def test_works_from_a_thread(verifier: MathVerifier) -> None:
    results: list[Verdict] = []
    thread = threading.Thread(target=lambda: results.append(verifier.verify(box(r"\frac{2}{4}"), "0.5")))
    thread.start()
    thread.join()
    assert results[0].correct


def test_verdicts_can_be_written_as_utf8(verifier: MathVerifier) -> None:
    assert verifier.verify(box("a\ud800"), "5").extracted.encode() == b"a?"


def test_lists_of_unequal_length_are_refused(verifier: MathVerifier) -> None:
    with pytest.raises(SteerkitError, match="one answer per completion"):
        verifier.verify_many(["a"], [])
