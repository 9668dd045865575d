"""Several sets, seeds and arms at once: the plan, the rows, and a run that is stopped and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import checkpoint

from steerkit.datasets import PromptTemplate
from steerkit.errors import DataError, SteerkitError, VectorError
from steerkit.evaluation import Arm, Protocol, evaluate
from steerkit.evaluation.journal import Journal
from steerkit.evaluation.records import summarise
from steerkit.evaluation.suite import Suite, measure, plan_batches
from steerkit.hookpoints import HookPoint
from steerkit.models import load_model
from steerkit.rewards import Rubric
from steerkit.rewards.verifiable import Verifiable
from steerkit.rollouts import EncodedPrompt
from steerkit.types import Example, Verdict
from steerkit.vectors import SteeringVector, VectorMetadata
from steerkit.verifiers import ExactVerifier, Verifier

PLAIN = PromptTemplate(style="plain", system=None)
EXACT = {"name": "exact", "extract": "text"}
SETS = {
    "long": [Example(f"l{k}", f"Tom has {k} apples. " * (k + 1), str(k)) for k in range(5)],
    "short": [Example(f"s{k}", f"{k} apples", str(k)) for k in range(7)],
}
PROTOCOL = Protocol((0.0, 1.0), k=2, max_tokens=4, seed=5, verifier=EXACT, seeds=2, k_of={"long": 3}, batch_tokens=80)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(checkpoint(tmp_path_factory.mktemp("model")), dtype="float32")


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    tensors = {HookPoint(1): {"vector": torch.linspace(-1, 1, 32)}}
    return [Arm("base"), Arm("steered", SteeringVector("static", tensors, {}, VectorMetadata("m", "", 32, 3)))]


class Coin(Verifier):
    """Judges by the text's length alone, so that a random model is right now and then; one problem always faults."""

    def verify(self, completion: str, answer: str) -> Verdict:
        if answer == "3":
            return Verdict("fault", "timeout")
        right = len(completion) % 3 == 0
        return Verdict("correct" if right else "wrong", "equal" if right else "not_equal", completion[:3])


class Patient(Verifiable):
    """Lets the verifier judge cut-off answers too: a random model hardly ever ends one."""

    def verdicts(self, completions: Any, answers: Any, finish_reasons: Any = None) -> list[Verdict]:
        return super().verdicts(completions, answers)


def run(loaded: Any, arms: list[Arm], protocol: Protocol = PROTOCOL, **options: Any) -> Any:
    suite = Suite(SETS).fit(loaded, arms, protocol, PLAIN)
    return measure(loaded, arms, suite, protocol, PLAIN, judge=Patient(Coin()), **options)


@pytest.fixture(scope="module")
def whole(loaded: Any, arms: list[Arm]) -> Any:
    """Rows and samples of an uninterrupted run."""
    return run(loaded, arms)


def prompts(lengths: list[int]) -> list[EncodedPrompt]:
    return [EncodedPrompt(Example(f"p{k}", "x", "1"), "x", tuple(range(n))) for k, n in enumerate(lengths)]


def test_batches_go_by_length_and_keep_the_budget() -> None:
    lengths = [30, 5, 12, 5, 100, 7, 30]
    batches = plan_batches("s", prompts(lengths), k=2, max_tokens=10, budget=160, max_rows=6)
    flat = [index for batch in batches for index in batch.indices]
    assert sorted(flat) == list(range(7)) and [lengths[i] for i in flat] == sorted(lengths)
    for batch in batches:
        tokens = 2 * len(batch.indices) * (max(lengths[i] for i in batch.indices) + 10)
        assert len(batch.indices) == 1 or (tokens <= 160 and 2 * len(batch.indices) <= 6)
    assert [len(batch.indices) for batch in batches] == [3, 2, 1, 1] or len(batches) == 5
    assert len(batches[-1].indices) == 1  # 220 tokens: over the budget, but never left out
    assert len(plan_batches("s", prompts(lengths), 2, 10, None, 6)) == 1


def test_rows_and_samples_are_all_there(whole: Any) -> None:
    rows, samples = whole
    assert [(r["set"], r["arm"], r["temperature"]) for r in rows] == [
        (name, arm, temperature)
        for name in ("long", "short", "mean")
        for arm in ("base", "steered")
        for temperature in (0, 1)
    ]
    # Greedy: one sample and one seed; else k samples of each of two seeds, 3 a problem on "long".
    assert len(samples) == 2 * (5 + 7 + 2 * (5 * 3 + 7 * 2))
    assert {s["seed"] for s in samples if s["temperature"] == 0} == {5}
    assert {s["seed"] for s in samples if s["temperature"] == 1} == {5, 6}
    long = next(r for r in rows if (r["set"], r["arm"], r["temperature"]) == ("long", "base", 1))
    assert (long["n"], long["k"], long["sample_seeds"], long["sample_seed"]) == (5, 3, [5, 6], None)
    assert long["faults"] == 6 and long["fault_causes"] == {"timeout": 6}  # the problem whose answer is 3: every sample
    mean = next(r for r in rows if (r["set"], r["arm"], r["temperature"]) == ("mean", "base", 1))
    assert mean["fault_causes"] == {"timeout": mean["faults"]} and mean["faults"] > 6
    assert set(long["pass_at_k"]) == {"1", "2", "4"} and long["pass_at_k"]["1"] == pytest.approx(long["accuracy"])
    assert long["accuracy"] == pytest.approx(np.mean(long["accuracy_by_seed"]))
    greedy = next(r for r in rows if (r["set"], r["arm"], r["temperature"]) == ("long", "base", 0))
    assert greedy["sample_seed"] == 5 and "pass_at_k" not in greedy


def test_each_number_comes_from_the_samples(whole: Any) -> None:
    rows, samples = whole
    for row in rows:
        if row["set"] == "mean":
            parts = [
                r
                for r in rows
                if r["set"] != "mean" and (r["arm"], r["temperature"]) == (row["arm"], row["temperature"])
            ]
            assert row["accuracy"] == pytest.approx(np.mean([r["accuracy"] for r in parts]))
            assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1] and row["sets"] == ["long", "short"]
            continue
        own = [s for s in samples if all(s[name] == row[name] for name in ("set", "arm", "temperature"))]
        by_id: dict[str, list[bool]] = {}
        for sample in own:
            if sample["verdict"] != "fault":
                by_id.setdefault(sample["id"], []).append(sample["verdict"] == "correct")
        assert row["accuracy"] == pytest.approx(np.mean([np.mean(values) for values in by_id.values()]))
        assert row["mean_tokens"] == pytest.approx(np.mean([s["tokens"] for s in own]))
        assert row["truncated"] == sum(s["finish_reason"] == "length" for s in own)
        assert sum(share for _, share in row["first_tokens"]) <= 1 + 1e-9


def test_a_set_alone_gives_the_samples_that_it_gives_in_a_suite(loaded: Any, arms: list[Arm], whole: Any) -> None:
    alone = evaluate(loaded, arms, SETS["short"], PROTOCOL, PLAIN, "short", judge=Patient(Coin())).samples
    assert alone == [sample for sample in whole[1] if sample["set"] == "short"]


def test_batches_do_not_change_what_is_sampled(loaded: Any, arms: list[Arm], whole: Any) -> None:
    """Up to the rounding of sums: the texts are equal, log-probabilities nearly so."""
    small = whole[1]
    _, large = run(loaded, arms, Protocol((0.0, 1.0), 2, 4, 5, EXACT, seeds=2, k_of={"long": 3}))
    assert [s["completion"] for s in small] == [s["completion"] for s in large]
    np.testing.assert_allclose([s["logprob"] for s in small], [s["logprob"] for s in large], atol=1e-4)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 11])
def test_a_stopped_run_goes_on_where_it_was(
    loaded: Any, arms: list[Arm], whole: Any, tmp_path: Path, after: int
) -> None:
    expected = whole
    calls: list[str] = []

    def progress(label: str, done: int, total: int) -> None:
        calls.append(label)
        if len(calls) == 3 * after:
            raise Stop

    with Journal(tmp_path, {}) as journal, pytest.raises(Stop):
        run(loaded, arms, journal=journal, progress=progress)
    before = {p: p.read_bytes() for p in (tmp_path / "journal").glob("*.jsonl")}
    with Journal(tmp_path, {}) as journal:
        assert 0 < len(journal.done) < len(expected[1])
        assert run(loaded, arms, journal=journal) == expected
    assert all(path.read_bytes() == content for path, content in before.items())
    lines = sum(len(p.read_text().splitlines()) for p in (tmp_path / "journal").glob("*.jsonl"))
    assert lines == len(expected[1])  # none lost, none twice
    with Journal(tmp_path, {}) as journal:  # all is there: nothing is sampled again
        assert run(loaded, arms, journal=journal, progress=lambda *_: pytest.fail("sampled again")) == expected


def test_progress_counts_every_sample(loaded: Any, arms: list[Arm]) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    _, samples = run(loaded, arms, progress=lambda label, done, total: seen.setdefault(label, []).append((done, total)))
    whole = seen.pop("whole evaluation")
    assert whole[-1] == (len(samples), len(samples)) and whole == sorted(whole)
    assert set(seen) == {f"{arm}, temperature {t}" for arm in ("base", "steered") for t in (0, 1)}
    assert all(steps[-1][0] == steps[-1][1] for steps in seen.values())


def test_an_error_of_the_verifier_ends_the_run(loaded: Any, arms: list[Arm]) -> None:
    class Broken(ExactVerifier):
        def verify(self, completion: str, answer: str) -> Verdict:
            raise SteerkitError("the verifier's server is gone")

    suite = Suite(SETS).fit(loaded, arms, PROTOCOL, PLAIN)
    with pytest.raises(SteerkitError, match="server is gone"):
        measure(loaded, arms, suite, PROTOCOL, PLAIN, judge=Patient(Broken("text")))


def test_seen_problems_are_counted_and_told_apart(loaded: Any, arms: list[Arm], whole: Any) -> None:
    assert whole[0][0]["seen_in_training"] is None
    suite = Suite(SETS, {"long": frozenset({"l0", "l1"})}).fit(loaded, arms, PROTOCOL, PLAIN)
    rows, samples = measure(loaded, arms, suite, PROTOCOL, PLAIN, judge=Patient(Coin()))
    assert {s["id"] for s in samples if s["seen_in_training"]} == {"l0", "l1"}
    by_set = {row["set"]: row for row in rows}
    assert (by_set["long"]["seen_in_training"], by_set["short"]["seen_in_training"]) == (2, 0)
    assert "accuracy_unseen" in by_set["long"] and "accuracy_unseen" not in by_set["short"]


def test_a_set_of_faults_alone_has_no_accuracy(loaded: Any, arms: list[Arm]) -> None:
    sets = {"faults": [Example("f", "Tom", "3")], "short": SETS["short"]}
    suite = Suite(sets).fit(loaded, arms, PROTOCOL, PLAIN)
    rows, samples = measure(loaded, arms, suite, PROTOCOL, PLAIN, judge=Patient(Coin()))
    by_set = {row["set"]: row for row in rows}
    assert by_set["faults"]["accuracy"] is None and by_set["mean"]["accuracy"] is None
    assert by_set["short"]["accuracy"] is not None and len(samples) == 2 * (8 + 8 * 4)


def test_bad_input(loaded: Any, arms: list[Arm]) -> None:
    long = {**SETS, "huge": [Example("h", "apples " * 400, "1")], "vast": [Example("v", "apples " * 400, "1")]}
    with pytest.raises(DataError, match=r"No problem of huge, vast fits.*--suite long short"):
        Suite(long).fit(loaded, arms, PROTOCOL, PLAIN)
    part = {**SETS, "part": [Example("h", "apples " * 400, "1"), Example("i", "apples", "1")]}
    assert Suite(part).fit(loaded, arms, PROTOCOL, PLAIN).too_long == {"long": 0, "short": 0, "part": 1}
    with pytest.raises(SteerkitError, match="Two arms are named 'base'"):
        run(loaded, [Arm("base"), Arm("base")])
    wide = SteeringVector("static", {HookPoint(1): {"vector": torch.ones(16)}}, {}, VectorMetadata("m", "", 16, 3))
    with pytest.raises(VectorError, match="wid"):
        run(loaded, [Arm("base"), Arm("wide", wide)], progress=lambda *_: pytest.fail("sampled before the check"))
    for settings in ({"seeds": 0}, {"k_of": {"long": 0}}, {"batch_tokens": 0}):
        with pytest.raises(SteerkitError, match="at least 1"):
            Protocol(**settings)


def test_rewards_stand_beside_the_accuracy(loaded: Any, arms: list[Arm], whole: Any) -> None:
    """One without an opinion on some samples, k of its own for each set and temperature."""

    def length(completions: list[str], id: list[str], **columns: Any) -> list[float | None]:
        return [None if name == "s1" else float(len(text)) for text, name in zip(completions, id, strict=True)]

    rows, samples = run(loaded, arms, rewards=Rubric([length]))
    assert [s | {"reward": None} for s in samples] == [s | {"reward": None} for s in whole[1]]
    for sample in samples:
        assert sample["reward"] == (None if sample["id"] == "s1" else len(sample["completion"]))
    row = next(r for r in rows if (r["set"], r["arm"], r["temperature"]) == ("short", "steered", 1))
    own = [s["reward"] for s in samples if (s["set"], s["arm"], s["temperature"]) == ("short", "steered", 1)]
    known = [value for value in own if value is not None]
    assert len(own) == 28 and len(known) == 24 and row["reward"] == pytest.approx(np.mean(known))
    assert row["reward_ci95"][0] <= row["reward"] <= row["reward_ci95"][1]
    assert "reward" not in whole[0][0]


def test_a_reward_that_breaks_loses_no_sample(
    loaded: Any, arms: list[Arm], whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(completions: list[str], **columns: Any) -> list[float]:
        return [float("inf")] * len(completions)

    rows, samples = run(loaded, arms, rewards=Rubric([breaks]))
    assert rows == whole[0] and samples == whole[1]
    assert sum("No rewards beside the accuracy" in message for message in caplog.messages) == 1


def test_a_mean_reward_is_that_of_all_samples_or_none(whole: Any) -> None:
    """A reward that broke on the way has scored some samples of a row and not the others."""
    samples = [s for s in whole[1] if (s["set"], s["arm"], s["temperature"]) == ("short", "base", 1)]
    half = [s | {"reward": 1.0} if k < 5 else s for k, s in enumerate(samples)]
    assert (summarise(half, 0)["reward"], summarise(half, 0)["reward_ci95"]) == (None, None)
    assert summarise([s | {"reward": 1.0} for s in samples], 0)["reward"] == 1.0
    assert "reward" not in summarise(samples, 0)
