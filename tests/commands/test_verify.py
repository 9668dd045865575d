"""``steerkit verify``: verdicts, agreement, faults, rate; mistakes in one line."""

import json
from pathlib import Path

import pytest

from steerkit.cli import main
from steerkit.rewards import Verifiable

CASES = [
    {"gold": "5", "completion": r"\boxed{5}", "expected": True},
    {"gold": "5", "completion": r"\boxed{6}", "expected": "wrong"},
    {"gold": 7, "completion": r"\boxed{7}", "expected": "correct"},
    {"gold": "1/2", "completion": r"\boxed{0.5}", "expected": False},
    {"gold": "!?", "completion": r"\boxed{5}"},
    {"gold": "\ud8005", "completion": "\0\udfff"},
]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_verdicts_agreement_faults_and_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "verdicts.jsonl"
    assert main(["verify", "--input", write(tmp_path / "cases.jsonl", CASES), "--out", str(out), "--limit", "2"]) == 0
    said = capsys.readouterr().out
    assert "6 answers: 3 correct, 2 wrong, 1 fault (gold_unparsable 1)." in said
    assert "Agreement with 'expected': 3 of 4 (75.0 %)." in said
    assert "answers/s (start-up not counted)" in said
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if line[0] == "│"]
    assert [row[:3] for row in table] == [["4", "correct", "wrong"], ["5", "fault", ""]], "disagreements, then faults"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "wrong", "correct", "correct", "fault", "wrong"]
    assert [row["agrees"] for row in rows] == [True, True, True, False, None, None]
    assert rows[5]["completion"] == "\0\udfff"


def test_recorded_faults_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "faults.jsonl"
    reward = Verifiable({"name": "math", "timeout": 60, "extract": ["boxed", "hash"]}, replay_file=path)
    try:
        reward.verdicts(["#### 5", r"\boxed{6}"], ["!?", "1/0"])
    finally:
        reward.close()
    text = path.read_text().replace("gold_unparsable", "timeout", 1).replace('"gold": "!?"', '"gold": "5"')
    path.write_text(text)  # as if the verifier had failed then, and did not now
    assert main(["verify", "--replay", str(path), "--out", str(tmp_path / "now.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "recorded" in said
    assert "2 answers: 1 correct, 0 wrong, 1 fault (gold_unparsable 1)." in said
    rows = [json.loads(line) for line in (tmp_path / "now.jsonl").read_text().splitlines()]
    assert [(row["reason"], row["reason_now"]) for row in rows] == [
        ("timeout", "equal"),  # found after ####: the recorded settings were used
        ("gold_unparsable", "gold_unparsable"),
    ]
    assert main(["verify", "--replay", str(path), "--verifier", "exact"]) == 0
    assert "1 fault" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "No file"),
        ("", [], "has no rows"),
        ("nonsense\n", [], "is not JSON"),
        ('["a"]\n', [], "expected an object"),
        ('{"completion": "x"}\n', [], "row 1: the field 'gold' must be a text, got None"),
        ('{"gold": "5", "completion": "x"}\n{"gold": "5"}\n', [], "row 2: the field 'completion' must be a text"),
        ('{"gold": true, "completion": "x"}\n', [], "'gold' must be a text, got True"),
        ('{"gold": "5", "completion": "x", "expected": "maybe"}\n', [], "'expected' must be true, false"),
        ('{"gold": "5", "completion": "x", "expected": 1}\n', [], "'expected' must be true, false"),
        ('{"gold": "5", "completion": "x", "expected": [1]}\n', [], "'expected' must be true, false"),
        ('{"gold": "5", "completion": "x"}\n', ["--verifier", "maths"], "No verifier named 'maths'"),
        ('{"gold": "5", "completion": "x"}\n', ["--limit", "-1"], "limit must be at least 0"),
        ('{"gold": "5", "completion": "x"}\n', ["--replay", "y"], "either --input FILE or --replay FILE"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, options: list[str], message: str
) -> None:
    path = tmp_path / "cases.jsonl"
    if content is not None:
        path.write_text(content)
    assert main(["verify", "--input", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_faults_of_several_verifiers_need_to_be_told_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"gold": "5", "completion": "x", "reason": "crash", "verifier": name} for name in ("math", "exact")]
    assert main(["verify", "--replay", write(tmp_path / "faults.jsonl", rows)]) == 2
    assert "give --verifier" in capsys.readouterr().err
