"""The puzzles can be solved, the verifier can't be fooled, the reward grades, and all three keep their contracts."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from steerkit_countdown.puzzles import SPLITS, Countdown, draw_puzzle
from steerkit_countdown.reward import CountdownReward
from steerkit_countdown.verifier import CountdownVerifier

from steerkit.errors import DataError, SteerkitError
from steerkit.testing import check_dataset, check_reward, check_verifier
from steerkit.types import Verdict

ANSWER = "numbers=3,6,7,3; target=24"


def judge(box: str, answer: str = ANSWER) -> tuple[str, str]:
    verdict = CountdownVerifier().verify(f"So \\boxed{{{box}}}.", answer)
    return verdict.status, verdict.reason


def test_contracts() -> None:
    check_dataset(Countdown, n=64, n_eval=16, verifier=CountdownVerifier())
    check_verifier(
        CountdownVerifier,
        right=[(r"\boxed{(7-3)*6}", ANSWER), (r"no \boxed{1}, but \boxed{6*(7-3)}", ANSWER)],
        wrong=[(r"\boxed{24}", ANSWER), (r"\boxed{7*3}", ANSWER), ("(7-3)*6", ANSWER)],
    )
    check_reward(CountdownReward, examples=Countdown(n=4, n_eval=1).load("train"))


@pytest.mark.parametrize("n_numbers", [2, 3, 4, 6])
def test_every_drawn_solution_is_right(n_numbers: int) -> None:
    rng, verifier, found = random.Random(n_numbers), CountdownVerifier(), 0
    for _ in range(2000):
        puzzle = draw_puzzle(rng, n_numbers, 20, 99)
        if puzzle is None:
            continue
        found += 1
        # Two independent truths: Python's own arithmetic (we wrote the text), and the verifier.
        assert eval(puzzle.solution) == puzzle.target and puzzle.target not in puzzle.numbers
        assert verifier.verify(rf"\boxed{{{puzzle.solution}}}", puzzle.answer).correct
        assert all(str(number) in puzzle.text for number in (*puzzle.numbers, puzzle.target))
    assert found > 200


def test_splits_share_no_hand_of_numbers() -> None:
    data = Countdown(n=400, n_eval=100)
    hands = {split: {tuple(sorted(e.columns["numbers"])) for e in data.load(split)} for split in SPLITS}
    assert not hands["train"] & hands["test"] and not hands["train"] & hands["validation"]
    assert not hands["validation"] & hands["test"]


def test_seeds_and_sizes() -> None:
    assert Countdown(seed=1).load("test") != Countdown(seed=2).load("test")
    assert Countdown(n_eval=5).load("test") == Countdown(n_eval=50).load("test")[:5]
    assert {len(e.columns["numbers"]) for e in Countdown(n=20, n_numbers=5).load("train")} == {5}


def test_bad_settings() -> None:
    with pytest.raises(DataError, match="n_numbers must be at least 2, got 1"):
        Countdown(n_numbers=1)
    with pytest.raises(DataError, match="countdown has train, validation, test"):
        Countdown().load("dev")
    with pytest.raises(DataError, match=r"only \d+ test puzzles found with 2 numbers up to 2"):
        Countdown(n_numbers=2, max_number=2, max_target=4).load("test")
    with pytest.raises(SteerkitError, match="max_chars"):
        CountdownVerifier(max_chars=0)


RIGHT = ["(7-3)*6", " 6 * (7 - 3) ", "7*3+3", r"(7-3) \times 6", "(7−3)×6", r"\left(7-3\right)\cdot 6 = 24", "-(3-7)*6"]
WRONG = {
    "24": "bad_number",
    "3*3*3-3": "bad_number",
    "9" * 190: "bad_number",
    "7*6": "not_equal",
    "6/(3-3)": "division_by_zero",
    "": "empty_box",
    "1+" * 150: "too_long",
    "6**2": "unparsable",
    "7//3": "unparsable",
    "(7-3)*6=25": "unparsable",
    "x=24": "unparsable",
    "7-3)*6": "unparsable",
    "(7)(3)": "unparsable",
    "7 3": "unparsable",
    "--3": "unparsable",
    "٣*6": "unparsable",
    "[7][0]": "unparsable",
    "__import__('os')": "unparsable",
    "(" * 99 + "3" + ")" * 99: "not_equal",
    "(" * 199: "unparsable",
    "-" * 199: "unparsable",
    "7*6\0": "unparsable",
}


@pytest.mark.parametrize("box", RIGHT)
def test_right(box: str) -> None:
    assert judge(box) == ("correct", "equal")


@pytest.mark.parametrize("box", WRONG)
def test_wrong(box: str) -> None:
    assert judge(box) == ("wrong", WRONG[box])


def test_fractions_on_the_way_are_exact() -> None:
    for box in ("6/(1-3/4)", r"\frac{6}{1-\frac{3}{4}}", r"6 \div (1 - \dfrac{3}{4})"):
        assert judge(box, "numbers=1,3,4,6; target=24") == ("correct", "equal")
    assert judge("8/(3-8/3)", "numbers=3,3,8,8; target=24") == ("correct", "equal")


@pytest.mark.parametrize(
    "gold", ["", "24", "numbers=3; target=24", "numbers=3,x; target=24", "numbers=3,4; target=1.5"]
)
def test_an_answer_that_is_no_puzzle_is_a_fault(gold: str) -> None:
    assert judge("3*4", gold) == ("fault", "gold_unparsable")


def test_the_numbers_of_an_expression_are_a_sub_multiset() -> None:
    """Against a count by hand over random expressions."""
    rng = random.Random(0)
    for _ in range(300):
        used = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
        legal = not Counter(used) - Counter([3, 1, 4, 3])
        status, reason = judge("+".join(map(str, used)), f"numbers=3,1,4,3; target={sum(used)}")
        assert (status, reason) == (("correct", "equal") if legal else ("wrong", "bad_number"))


def test_grades() -> None:
    texts = [r"\boxed{(7-3)*6}", r"\boxed{24}", r"\boxed{7*6}", r"\boxed{?}", "24", r"\boxed{(7-3)*6}", r"\boxed{1}"]
    columns = {"answer": [ANSWER] * 6 + ["none"], "finish_reason": ["stop"] * 5 + ["length", "stop"]}
    reward = CountdownReward()
    assert reward(["p"] * 7, texts, [[1]] * 7, **columns) == [1.0, 0.1, 0.1, 0.0, 0.0, 0.0, None]
    assert reward.last_verdicts[0] == Verdict("correct", "equal", "(7-3)*6")
    assert CountdownReward(2, 1, -1, "wrong")(["p"] * 7, texts, [[1]] * 7, **columns) == [2, 1, 1, -1, -1, -1, -1]
