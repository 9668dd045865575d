"""The contracts of rewards, verifiers and data sets: the built-in ones pass, and each promise can be broken."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from steerkit.datasets.arithmetic import Arithmetic
from steerkit.errors import DataError, PluginError, SteerkitError
from steerkit.registry import KINDS
from steerkit.rewards import Reward, Verifiable
from steerkit.testing import check_dataset, check_reward, check_verifier, checks
from steerkit.testing.checks import Check, contract, failure
from steerkit.testing.datasets import dataset_checks
from steerkit.testing.rewards import reward_checks
from steerkit.testing.verifiers import verifier_checks
from steerkit.types import Example, Verdict
from steerkit.verifiers import ExactVerifier, MathVerifier, Verifier


def broken(checks: list[Check]) -> list[str]:
    """Names of the promises that are not kept."""
    return [check.name for check in checks if failure(check) is not None]


# -- rewards


def length(completions: list[str], **columns: Any) -> list[float | None]:
    return [None if not text else 1 / len(text) for text in completions]


async def slow(completions: list[str], **columns: Any) -> list[float | None]:
    return length(completions)


def test_good_rewards() -> None:
    check_reward(length)
    check_reward(slow)
    check_reward(Verifiable, verifier="exact", correct=2)
    check_reward(Verifiable(ExactVerifier()))
    check_reward("steerkit.rewards.controls:Random", seed=3)
    check_reward("steerkit.rewards.controls:Format")


def infinite(completions: list[str], **columns: Any) -> list[float]:
    return [float("inf")] * len(completions)


def silent(completions: list[str], **columns: Any) -> list[None]:
    return [None] * len(completions)


def pops(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(completions.pop())) for _ in range(len(completions))][::-1]


def narrow(completions: list[str], answer: list[str]) -> list[float]:
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


def drawn(completions: list[str], **columns: Any) -> list[float]:
    return [random.random() for _ in completions]


def ranked(completions: list[str], **columns: Any) -> list[float]:
    order = sorted(completions)
    return [float(order.index(text)) for text in completions]


def fails_on_nothing(completions: list[str], **columns: Any) -> list[float]:
    longest = max(map(len, completions))
    return [0.5 if longest >= 0 else 0.0] * len(completions)


class Closes(Reward):
    def __call__(self, prompts: list[str], completions: list[str], *args: Any, **columns: Any) -> list[float | None]:
        if self.__dict__.get("closed"):
            raise RuntimeError("closed")
        return [1.0] * len(completions)

    def close(self) -> None:
        self.closed = True


ONE_NUMBER = "a finite number or None for each completion"
REWARDS = {
    infinite: ONE_NUMBER,
    silent: "an opinion on some completion",
    pops: "its arguments stay as they were",
    narrow: "TRL can call it: every column and trainer_state, log_extra, log_metric by keyword",
    drawn: "the same batch gives the same numbers",
    ranked: "a number depends on the samples of its own prompt alone",
    fails_on_nothing: "an empty batch gives an empty list",
    Closes: "works again after warm() and close()",
}


@pytest.mark.parametrize("reward", REWARDS)
def test_broken_rewards(reward: Any) -> None:
    found = broken(reward_checks(reward))
    assert REWARDS[reward] in found, found
    if reward not in (infinite, drawn, pops):  # these break more than one promise
        assert found == [REWARDS[reward]]
    with pytest.raises(AssertionError, match=getattr(reward, "__name__", "")):
        check_reward(reward)


def test_a_judge_that_changes_its_mind_is_allowed_on_demand() -> None:
    check_reward(drawn, deterministic=False)


def test_a_reward_that_reads_columns_needs_problems_that_have_them() -> None:
    def level(completions: list[str], level: list[int], **columns: Any) -> list[float]:
        return [float(item) for item in level]

    assert ONE_NUMBER in broken(reward_checks(level))
    check_reward(level, examples=[Example("a", "Hard?", "yes", "toy", {"level": 3})])


def test_settings_are_for_classes() -> None:
    with pytest.raises(PluginError, match="length is made already and takes no settings, got n"):
        check_reward(length, n=3)
    with pytest.raises(PluginError, match="has no setting 'corect'. Did you mean 'correct'"):
        check_reward(Verifiable, corect=1)


# -- verifiers


def test_good_verifiers() -> None:
    check_verifier(ExactVerifier)
    check_verifier("steerkit.verifiers.exact:ExactVerifier", right=[("two  words", "two words")], extract="text")
    with MathVerifier(workers=1, timeout=120.0) as verifier:
        check_verifier(verifier, right=[(r"\boxed{\frac12}", "0.5")], wrong=[(r"\boxed{3}", "0.5")])


class Careful(Verifier):
    """Keeps every promise; the mutants below each break one."""

    def verify(self, completion: str, answer: str) -> Verdict:
        found = "\\boxed{" + answer + "}" in completion
        return Verdict("correct" if found else "wrong", "equal" if found else "not_equal")


class Lenient(Careful):
    def verify(self, completion: str, answer: str) -> Verdict:
        return Verdict("correct", "equal")


class Strict(Careful):
    def verify(self, completion: str, answer: str) -> Verdict:
        return Verdict("wrong", "not_equal")


class Raises(Careful):
    def verify(self, completion: str, answer: str) -> Verdict:
        float(answer)
        return super().verify(completion, answer)


class NoReason(Careful):
    def verify(self, completion: str, answer: str) -> Verdict:
        return Verdict(super().verify(completion, answer).status)


class Unbounded(Careful):
    def verify(self, completion: str, answer: str) -> Verdict:
        return Verdict(super().verify(completion, answer).status, "why", completion)


class Shuffles(Careful):
    def verify_many(self, completions: Any, answers: Any) -> list[Verdict]:
        return super().verify_many(completions, answers)[::-1]


class Remembers(Careful):
    asked = 0

    def verify_many(self, completions: Any, answers: Any) -> list[Verdict]:
        self.asked += len(completions) > 0
        return [Verdict("wrong", f"asked {self.asked} times") for _ in super().verify_many(completions, answers)]


class Truncates(Careful):
    def verify_many(self, completions: Any, answers: Any) -> list[Verdict]:
        return [self.verify(*pair) for pair in zip(completions, answers, strict=False)]


class Once(Careful):
    closed = False

    def verify(self, completion: str, answer: str) -> Verdict:
        assert not self.closed
        return super().verify(completion, answer)

    def close(self) -> None:
        self.closed = True


VERIFIERS: dict[type[Verifier], str] = {
    Lenient: "wrong answers are wrong",
    Strict: "right answers are correct",
    Raises: "odd completions and odd gold answers get a verdict",
    NoReason: "odd completions and odd gold answers get a verdict",
    Unbounded: "odd completions and odd gold answers get a verdict",
    Shuffles: "verify_many is verify, in order",
    Remembers: "the same question gets the same verdict",
    Truncates: "lists of unequal length are refused",
    Once: "works again after close()",
}


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_broken_verifiers(verifier: type[Verifier]) -> None:
    check_verifier(Careful)
    found = broken(verifier_checks(verifier))
    assert VERIFIERS[verifier] in found, found
    with pytest.raises(AssertionError, match=verifier.__name__):
        check_verifier(verifier)


def test_a_slow_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerkit.testing.verifiers.SECONDS", 0.05)

    class Quadratic(Careful):
        def verify(self, completion: str, answer: str) -> Verdict:
            if len(completion) > 10_000:
                sum(range(10**6 * 3))
            return super().verify(completion, answer)

    assert broken(verifier_checks(Quadratic)) == ["a completion of 1,000,000 characters is judged within 0.05 s"]


def test_gold_answers_of_a_data_set() -> None:
    class Numbers(Careful):
        def verify(self, completion: str, answer: str) -> Verdict:
            sound = answer.strip().isdigit()
            return super().verify(completion, answer) if sound else Verdict("fault", "gold_unparsable")

    names = [check.name for check in verifier_checks(Numbers, examples=Arithmetic(n=4).load("train"))]
    assert "the gold answers are understood" in names and "right answers are correct" not in names
    check_verifier(Numbers, examples=Arithmetic(n=4).load("train"))
    words = [Example("w", "Who?", "Anna", "toy")]
    assert broken(verifier_checks(Numbers, examples=words)) == ["the gold answers are understood"]


# -- data sets


def test_good_datasets(tmp_path: Path) -> None:
    check_dataset(Arithmetic, n=64, n_eval=16, verifier=ExactVerifier())
    rows = [f'{{"problem": "What is {k}+{k}?", "answer": "{2 * k}"}}\n' for k in range(60)]
    (tmp_path / "sums.jsonl").write_text("".join(rows))
    check_dataset("records", path=str(tmp_path / "sums.jsonl"), split_by_hash=[0.6, 0.2, 0.2], verifier="exact")


class Sums:
    """Keeps every promise; the mutants below each break one."""

    def load(self, split: str) -> list[Example]:
        if split not in ("train", "validation", "test"):
            raise DataError(f"no split {split}")
        start = {"train": 0, "validation": 10, "test": 20}[split]
        return [Example(f"{split}/{k}", f"What is {k}+1?", str(k + 1)) for k in range(start, start + 10)]


def changed(**fields: Any) -> type[Sums]:
    """Sums with the second example of each split changed."""

    class Changed(Sums):
        def load(self, split: str) -> list[Example]:
            examples = super().load(split)
            old = {name: getattr(examples[1], name) for name in ("id", "problem", "answer", "source", "columns")}
            new = {name: value(split) if callable(value) else value for name, value in fields.items()}
            examples[1] = Example(**{**old, **new})
            return examples

    return Changed


class Empty(Sums):
    def load(self, split: str) -> list[Example]:
        return [] if split == "test" else super().load(split)


class AnySplit(Sums):
    def load(self, split: str) -> list[Example]:
        return super().load(split if split in ("validation", "test") else "train")


class Unseeded(Sums):
    def load(self, split: str) -> list[Example]:
        return random.sample(super().load(split), 10)


DATASETS: list[tuple[Any, str]] = [
    (Empty, "train, validation, test hold examples"),
    (changed(id=lambda split: f"{split}/{ {'train': 0, 'validation': 10, 'test': 20}[split] }"), "ids are unique"),
    (changed(answer=" "), "no problem and no answer is empty"),
    (changed(answer=3), "no problem and no answer is empty"),
    (changed(columns={"prompts": 1}), "columns have names of their own"),
    (changed(problem="What is 1 + 1 ?"), "no problem is in two splits"),
    (Unseeded, "the same settings give the same examples in the same order"),
    (AnySplit, "an unknown split is a DataError"),
]


@pytest.mark.parametrize(("dataset", "promise"), DATASETS)
def test_broken_datasets(dataset: Any, promise: str) -> None:
    check_dataset(Sums)
    found = broken(dataset_checks(dataset))
    assert len(found) == 1 and found[0].startswith(promise), found
    with pytest.raises(AssertionError, match=dataset.__name__):
        check_dataset(dataset)


def test_a_verifier_that_does_not_understand_the_answers() -> None:
    class Puzzled(Careful):
        def verify(self, completion: str, answer: str) -> Verdict:
            return Verdict("fault", "gold_unparsable")

    assert broken(dataset_checks(Sums, verifier=Puzzled())) == ["the verifier understands the gold answers"]
    with pytest.raises(AssertionError, match="30 of 30|10 of 10 gold answers are faults"):
        check_dataset(Sums, verifier=Puzzled())


# -- the frame


def test_kinds_without_a_contract(monkeypatch) -> None:
    assert set(checks.CONTRACTS) == set(KINDS)
    monkeypatch.delitem(checks.CONTRACTS, "exporters")
    with pytest.raises(PluginError, match="no contract for exporters yet; kinds with one: models, interventions"):
        contract("exporters")
    with pytest.raises(SteerkitError, match="Did you mean 'rewards'"):
        contract("reward")


def test_failure_is_one_line() -> None:
    def lines() -> None:
        raise ValueError("one\n  two")

    def bare() -> None:
        raise AssertionError

    assert failure(Check("x", lines)) == "ValueError: one two"
    assert failure(Check("x", bare)) == "AssertionError"
    assert failure(Check("x", lambda: None)) is None
