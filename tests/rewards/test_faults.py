"""What happens to a verifier's faults: the reward, the counters, and the file that replays them."""

import json
from pathlib import Path

import pytest

from steerkit.errors import SteerkitError
from steerkit.rewards import Rubric, Verifiable
from steerkit.rewards.faults import MAX_CHARS, MAX_FAULTS, FaultLog
from steerkit.types import Example, Rollout, RolloutGroup, Verdict
from steerkit.verifiers import Verifier


class Fragile(Verifier):
    """Fails on a completion that names a failure."""

    def verify(self, completion: str, answer: str) -> Verdict:
        if completion.partition(":")[0] in ("timeout", "crash", "memory", "error", "gold_unparsable", "own reason"):
            return Verdict("fault", completion)
        return Verdict("correct", "equal") if completion == answer else Verdict("wrong", "not_equal")


def groups(texts: list[list[str]]) -> list[RolloutGroup]:
    return [
        RolloutGroup(Example(f"p{k}", "?", "5"), "?", (1,), tuple(Rollout((1,), (0.0,), "stop", text) for text in row))
        for k, row in enumerate(texts)
    ]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_a_fault_leaves_its_group_or_counts_as_wrong() -> None:
    texts = [["5", "timeout", "6", "5"]]
    dropped = Rubric([Verifiable(Fragile())]).score(groups(texts))
    assert dropped.valid.tolist() == [[True, False, True, True]]
    assert dropped.total[dropped.valid].tolist() == [1.0, -1.0, 1.0]
    assert dropped.total.isnan().tolist() == [[False, True, False, False]]
    punished = Rubric([Verifiable(Fragile(), on_fault="wrong")]).score(groups(texts))
    assert punished.valid.all()
    assert punished.total.tolist() == [[1.0, -1.0, -1.0, 1.0]]


def test_causes_are_counted_under_either_policy() -> None:
    texts = ["timeout", "timeout", "error: ValueError", "own reason", "gold_unparsable", "5"]
    for policy in ("drop", "wrong"):
        reward = Verifiable(Fragile(), on_fault=policy)  # type: ignore[arg-type]
        rubric = Rubric([reward])
        rubric.score(groups([texts]))
        rubric.score(groups([["crash", "5"]]))
        assert reward.fault_counts == {"timeout": 2, "error": 2, "gold_unparsable": 1, "crash": 1}
        assert rubric.fault_counts == reward.fault_counts
        assert sum(reward.counts.values()) == 8


def test_the_pairs_are_written_after_each_call_that_met_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "faults.jsonl"
    reward = Verifiable({"name": "steerkit.verifiers:ExactVerifier", "extract": "text"}, replay_file=path)
    reward.verifier = Fragile()
    reward.verdicts(["5", "6"], ["5", "5"])
    assert not path.exists()
    reward.verdicts(["timeout", "5", "crash\0\ud800é"], ["5", "5", "7"])
    reward.verdicts(["crash:"], ["8"])
    assert [(fault["gold"], fault["reason"]) for fault in read(path)] == [("5", "timeout"), ("8", "crash:")]
    assert {json.dumps(fault["verifier"]) for fault in read(path)} == {
        '{"name": "steerkit.verifiers:ExactVerifier", "extract": "text"}'
    }
    odd = "error\0\ud800é"
    reward.faults.add("\udfff", odd, "error")
    reward.faults.write()
    assert (read(path)[-1]["completion"], read(path)[-1]["gold"]) == (odd, "\udfff")


def test_the_log_is_bounded() -> None:
    log = FaultLog("math")
    for number in range(MAX_FAULTS + 3):
        log.add(str(number), "x" * (MAX_CHARS + 1) + r"\boxed{5}", "timeout")
    assert len(log.records) == MAX_FAULTS
    assert log.dropped == 3
    assert log.records[0]["gold"] == "3"
    assert log.records[0]["completion"].endswith(r"\boxed{5}")
    assert len(log.records[0]["completion"]) == MAX_CHARS
    assert log.records[0]["cut"] == 10


def test_a_resumed_run_keeps_the_earlier_faults(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    for number in range(3):  # three processes, one after the other
        Verifiable(Fragile(), replay_file=path).verdicts(["timeout", "crash"], [str(number)] * 2)
    assert [fault["gold"] for fault in read(path)] == ["0", "0", "1", "1", "2", "2"]
    path.write_text("something else")
    Verifiable(Fragile(), replay_file=path).verdicts(["timeout"], ["3"])
    assert [fault["gold"] for fault in read(path)] == ["3"]
    assert (tmp_path / "faults.1.jsonl").read_text() == "something else"


def test_ranks_do_not_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FaultLog()
    log.add("5", "x", "crash")
    assert log.write() is None
    assert log.write(tmp_path / "faults.jsonl") == tmp_path / "faults.jsonl"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert log.write(tmp_path / "faults.jsonl") == tmp_path / "faults.rank1.jsonl"
    monkeypatch.setenv("RANK", "3")
    assert log.write(tmp_path / "faults.jsonl") == tmp_path / "faults.rank3.jsonl"


def test_a_rubric_gives_each_verifier_a_file_of_its_own(tmp_path: Path) -> None:
    def brevity(completions: list[str], **_: object) -> list[float]:
        return [0.0] * len(completions)

    first, second = Verifiable(Fragile()), Verifiable(Fragile())
    rubric = Rubric([brevity, first])
    rubric.record_faults(tmp_path / "faults.jsonl")
    assert first.faults.path == tmp_path / "faults.jsonl"
    two = Rubric([{"name": "verifiable", "label": "a"}, {"name": "verifiable", "label": "b"}])
    two.record_faults(tmp_path / "faults.jsonl")
    assert [two[label].faults.path.name for label in "ab"] == ["faults.jsonl", "faults.b.jsonl"]  # type: ignore[attr-defined]
    assert second.faults.path is None


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reward = Verifiable(Fragile(), replay_file=tmp_path / "file" / "faults.jsonl")
    with pytest.raises(SteerkitError, match="Can't write"):
        reward.verdicts(["timeout"], ["5"])
