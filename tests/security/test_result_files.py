"""A stranger's results: compared, or refused in one line; nothing is run, nothing is written but where it was asked."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from steerkit.cli import main

GOOD = {
    **{"arm": "base", "set": "s", "temperature": 0.0, "seed": 0, "id": "1", "problem": "p", "sample": 0},
    **{"verdict": "correct", "completion": "c"},
}
ODD = st.sampled_from([None, "../../x", "é", "", 3, -1, 2.5, float("inf"), float("nan"), True, [1], {"a": 1}, b"\xff"])


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # each example is a command: shrinking would take minutes
)
@given(changes=st.dictionaries(st.sampled_from(sorted(GOOD)), ODD, max_size=2), n=st.integers(0, 3))
def test_any_samples(tmp_path_factory, changes, n):
    folder = tmp_path_factory.mktemp("results")
    rows = [GOOD | changes | ({} if "id" in changes else {"id": str(k)}) for k in range(n)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    assert main(["compare", str(folder), str(folder), "--out", str(folder / "out")]) in (0, 2)
    assert {path.name for path in folder.iterdir()} <= {"samples.parquet", "out"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"verdict": "right"}, "row 2: 'verdict' can't be 'right'"),
        ({"id": 7}, "row 1: 'id' can't be 7"),
        ({"temperature": float("nan")}, "row 2: 'temperature' can't be nan"),
    ],
    ids=str,
)
def test_odd_values_are_named(tmp_path, capsys, changes, message):
    first = GOOD if isinstance(next(iter(changes.values())), str | float) else GOOD | changes
    parquet.write_table(pa.Table.from_pylist([first, GOOD | changes]), tmp_path / "samples.parquet")
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_recorded_faults_name_no_code(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verifier = {"name": "subprocess:Popen", "args": ["touch", "owned"]}
    Path("faults.jsonl").write_text(json.dumps({"gold": "1", "completion": "x", "verifier": verifier}))
    assert main(["verify", "--replay", "faults.jsonl"]) == 2
    assert "names code to run, 'subprocess:Popen'" in capsys.readouterr().err
    assert not Path("owned").exists()
