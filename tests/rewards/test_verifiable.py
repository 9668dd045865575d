import pytest

from steerkit.errors import SteerkitError
from steerkit.rewards import Verifiable
from steerkit.types import Verdict
from steerkit.verifiers import Verifier


class Oracle(Verifier):
    """Says what the completion says; remembers how many it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls: list[str] = []

    def verify(self, completion: str, answer: str) -> Verdict:
        self.asked.append(completion)
        if completion == "hang":
            return Verdict("fault", "timeout")
        return Verdict("correct", "equal") if completion == answer else Verdict("wrong", "not_equal")

    def warm(self) -> None:
        self.calls.append("warm")

    def close(self) -> None:
        self.calls.append("close")


def test_right_wrong_truncated_and_fault() -> None:
    oracle = Oracle()
    reward = Verifiable(oracle)
    values = reward(
        prompts=["p"] * 4,
        completions=["5", "6", "5", "hang"],
        completion_ids=[[1]] * 4,
        answer=["5"] * 4,
        finish_reason=["stop", "stop", "length", "stop"],
    )
    assert values == [1.0, -1.0, -1.0, None]
    assert [verdict.reason for verdict in reward.last_verdicts] == ["equal", "not_equal", "truncated", "timeout"]
    assert oracle.asked == ["5", "6", "hang"]  # a cut-off completion is not even shown to the verifier
    assert reward.counts == {"equal": 1, "not_equal": 1, "truncated": 1, "timeout": 1}


def test_settings() -> None:
    reward = Verifiable(Oracle(), correct=2, wrong=0, on_fault="wrong")
    assert reward(["p"] * 3, ["5", "6", "hang"], [[1]] * 3, answer=["5"] * 3) == [2, 0, 0]
    with pytest.raises(SteerkitError, match="on_fault"):
        Verifiable(Oracle(), on_fault="ignore")  # type: ignore[arg-type]


def test_the_evaluation_uses_the_same_path() -> None:
    verdicts = Verifiable(Oracle()).verdicts(["5", "5"], ["5", "5"], ["stop", "length"])
    assert verdicts == [Verdict("correct", "equal"), Verdict("wrong", "truncated")]
    with pytest.raises(SteerkitError, match="2 completions, 1 answers"):
        Verifiable(Oracle()).verdicts(["5", "5"], ["5"])


def test_a_missing_answer_column_is_named() -> None:
    with pytest.raises(SteerkitError, match="'answer'"):
        Verifiable(Oracle())(["p"], ["5"], [[1]])


def test_warm_and_close_reach_the_verifier() -> None:
    oracle = Oracle()
    reward = Verifiable(oracle)
    reward.warm()
    reward.close()
    assert oracle.calls == ["warm", "close"]


def test_verifier_by_name_or_settings() -> None:
    whole = Verifiable({"name": "steerkit.verifiers.exact:ExactVerifier", "extract": "text"})
    assert whole(["p"], ["two words"], [[1]], answer=["two  words"]) == [1.0]
    boxed = Verifiable("steerkit.verifiers.exact:ExactVerifier")
    assert boxed(["p"], [r"\boxed{two}"], [[1]], answer=["two"]) == [1.0]
