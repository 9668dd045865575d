"""Answers that are built, or by accident fit, to hang, crash or fool a verifier."""

import random
import resource
import sys
import time
from collections.abc import Iterator

import pytest

from steerkit.verifiers import MathVerifier
from steerkit.verifiers.equivalence import equivalent

HOSTILE = {
    "power towers": ["9^9^9^9", "9**9**9**9", "9^{9^{9^{9}}}", "10^{10^{10}}", "e^{e^{e^{e^{e}}}}", "x^{x^{x^{10^9}}}"],
    "factorial towers": [
        *("99999!", "((((5!)!)!)!)!", r"\binom{10^9}{10^8}"),
        "+".join(f"{k}!" for k in range(4800, 5000)),
    ],
    "huge numbers": [
        *("7" * 1999, "1e99999", "1e5000", r"\sqrt[99999]{2}", r"\sin(10^{10^5})", r"\lfloor e^{1000} \rfloor"),
        "+".join(rf"\frac{{1}}{{10^{{2000}}+{k}}}" for k in range(50)),
    ],
    "large polynomials": ["(x+1)^{99999}", "*".join(f"(x+{k})^{{300}}" for k in range(100)), "x" * 2000, "+x" * 1000],
    "deep nesting": [
        *("(" * 900 + "5" + ")" * 900, "{" * 900 + "6" + "}" * 900, r"\sqrt{" * 200 + "5" + "}" * 200),
        *(r"\frac{1}{1+" * 150 + "x" + "}" * 150, "[(" * 400, r"\left(" * 300, "|" * 1999, "-" * 2000),
    ],
    "LaTeX bombs": [
        *(r"\frac" * 400, r"\frac{" * 300, r"\begin{pmatrix}" * 130, r"\text{" * 300, "\\" * 1999, r"\\" * 900),
        *(r"\def\a{\a\a}\a", r"\input{/etc/passwd}", r"\newcommand{\x}{\x\x}\x", r"\csname" * 200),
    ],
    "giant matrices": [
        r"\begin{pmatrix}" + r"\\".join("&".join("1" * 30) for _ in range(30)) + r"\end{pmatrix}",
        r"\begin{pmatrix}" + "1&" * 900 + r"1\end{pmatrix}",
    ],
    "giant lists": [
        *(
            "1," * 1000,
            " and ".join("5" * 300),
            r"\cup".join(f"({k},{k + 1})" for k in range(190)),
            "<".join("x" * 500),
        ),
        *("=5" * 600, ":".join("12" * 500), r"\pm" * 400),
    ],
    "odd characters": [
        *("5\0", "\0" * 2000, "\ud800", "5\udfff", "\u202e5", "5" + "\u0301" * 500, "🙂" * 500, "\x1b[31m5"),
    ],
    "code": ["__import__('os')", "().__class__", "lambda: 5", "exec('x')", "5 if 1 else 6", "open('/etc/passwd')"],
    "guesses": [
        *("4, 5", "4 or 5", r"5 \text{ or } 6", "5 6", "4=5", "5=4", "4..5", "5?", r"5 \& 6", "not 5", r"\{4,5\}"),
        *(r"5 \pm 1", "[4,6]", "x>4", "5 ] 4", r"\text{5 or 6}", "5 maybe", r"5 \text{ million}", "5;6;7", "4 5"),
    ],
}
GOLDS = ["5", "x+1", r"\frac{1}{3}", "(1,2)", "[0,1)", r"\{1,2\}", r"\text{(B)}", "3:30 p.m.", "204_5", "y=2x+3", "2:5"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answers_are_wrong_and_cheap(kind: str) -> None:
    """In this very process: no exception, no hang; the bound on processor time is far above what is used."""
    start = time.process_time()
    judged = [equivalent(text[:2000], gold) for text in HOSTILE[kind] for gold in GOLDS]
    spent = time.process_time() - start
    assert {status for status, _ in judged} == {"wrong"}
    assert {reason for _, reason in judged} <= {"not_equal", "unparsable"}
    assert spent < 0.2 * len(judged)


def test_random_token_soup_never_raises_and_never_is_right_by_accident() -> None:
    rng = random.Random(0)
    text = r"""\frac \sqrt \text{ \mathrm{ { } ( ) [ ] \{ \} \left( \right) | , ; : . + - * / ^ _ = < > \le \in \cup
    \setminus \pm \cdot \pi e i x y n 0 1 2 12 1,000 2.5 1e5 \infty \emptyset \mathbb{R} \sin \log \ln ^{ _{ ! ' ° %
    \$ $ & \\ \begin{pmatrix} \end{pmatrix} \text{cm} cm and or \text{or} f(x) \langle \lfloor \rfloor \overline{3}
    \binom ~ \, \approx p.m. 3:30 hello \hat \angle ABC \frac{d {dt} million ½ √ ² \ ?"""
    words = text.split()
    statuses = set()
    for k in range(2500):
        soup = rng.choice(["", " "]).join(rng.choice(words) for _ in range(rng.choice([2, 3, 5, 8, 20])))
        statuses.add(equivalent(soup, "123456789")[0])
        if k % 10 == 0:
            equivalent("5", soup[:60])  # a broken gold answer must not raise either
    assert statuses == {"wrong"}


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=2, timeout=60.0) as verifier:
        verifier.wait()
        yield verifier


def test_through_the_pool_each_gets_its_verdict_and_no_worker_is_lost(verifier: MathVerifier) -> None:
    texts = [text[:2000] for kind in HOSTILE.values() for text in kind]
    verdicts = verifier.verify_many(
        [r"\boxed{" + text + "}" for text in texts] + [r"\boxed{1+4}"], ["5"] * (len(texts) + 1)
    )
    assert [verdict.status for verdict in verdicts] == ["wrong"] * len(texts) + ["correct"]
    assert verifier.pool.counts["restarts"] == 0
    assert all(verdict.extracted.encode() is not None for verdict in verdicts)  # can be written as UTF-8


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_long_completions_cost_no_memory_to_speak_of(verifier: MathVerifier) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    long = "a" * 10**6
    texts = [long + r"\boxed{5}", r"\boxed{" + long + "}", r"\boxed{" * 150_000, long]
    verdicts = verifier.verify_many(texts, ["5"] * 4)
    assert [verdict.reason for verdict in verdicts] == ["equal", "too_long", "no_box", "no_box"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_gold_beyond_the_strict_reader_is_compared_by_math_verify(verifier: MathVerifier) -> None:
    answers = [r"\frac{n(n+1)}{2}", r"\frac{n(n-1)}{2}", "!?", "52_8"]
    verdicts = verifier.verify_many([rf"\boxed{{{answer}}}" for answer in answers], [r"\sum_{k=1}^{n} k"] * 4)
    assert [verdict.reason for verdict in verdicts] == ["equal", "not_equal", "unparsable", "unparsable"]


def test_what_hangs_inside_math_verify_is_a_fault_and_its_worker_replaced() -> None:
    with MathVerifier(workers=2, timeout=2.0) as verifier:
        verifier.wait()
        answers = [r"10^{10^{10}}", r"\prod_{k=1}^{10^9} k"]
        verdicts = verifier.verify_many([rf"\boxed{{{answer}}}" for answer in answers], [r"\sum_{k=1}^{n} k"] * 2)
        assert [(verdict.status, verdict.reason) for verdict in verdicts] == [("fault", "timeout")] * 2
        assert verifier.pool.counts["timeout"] == verifier.pool.counts["restarts"] == 2
