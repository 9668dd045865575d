"""The journal: what is on disk survives; what was cut off is not believed; other settings are refused."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from steerkit.errors import SteerkitError
from steerkit.evaluation.journal import Journal, differences, sample_key

SETTINGS = {"model": "m", "k": 2, "arms": {"base": {"vector": None}}}


def record(number: int, **changes: Any) -> dict[str, Any]:
    facts = {"arm": "base", "set": "s", "temperature": 1.0, "seed": 3, "id": f"p{number}", "sample": 0}
    return facts | {"completion": f"text {number}", "logprob": -0.1234567890123456} | changes


def written(folder: Path, *batches: list[dict[str, Any]]) -> None:
    with Journal(folder, SETTINGS) as journal:
        for batch in batches:
            journal.write(batch)


def reread(folder: Path) -> list[dict[str, Any]]:
    with Journal(folder, SETTINGS) as journal:
        found = list(journal.records())
        assert journal.done == set(map(sample_key, found))
        return found


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("samples-*.jsonl"))


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    text = "line\nbreak, lone surrogate \ud800, \x00 and é"
    written(tmp_path, [record(0), record(1, completion=text)], [record(1, completion="not taken: it is there")])
    assert [r["id"] for r in reread(tmp_path)] == ["p0", "p1"]
    written(tmp_path, [record(2)])
    assert len(shards(tmp_path)) == 2
    found = reread(tmp_path)
    assert [r["id"] for r in found] == ["p0", "p1", "p2"]
    assert found[1]["completion"] == text and found[0]["logprob"] == record(0)["logprob"]  # to the last bit


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_torn_last_line_is_left_out_and_kept_apart(tmp_path: Path, cut: int) -> None:
    written(tmp_path, [record(0), record(1)])
    lines = shards(tmp_path)[0].read_text().splitlines(keepends=True)
    shards(tmp_path)[0].write_text(lines[0] + lines[1][:cut])
    assert [r["id"] for r in reread(tmp_path)] == ["p0"]
    written(tmp_path, [record(1)])
    assert [r["id"] for r in reread(tmp_path)] == ["p0", "p1"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    written(tmp_path, [record(0), record(1)])
    for broken in ("{not json}\n", '{"arm": "base"}\n', "[1]\n"):
        shards(tmp_path)[0].write_text(broken + json.dumps(record(1)) + "\n")
        with pytest.raises(SteerkitError, match=r"samples-00000.jsonl:1 is damaged"):
            reread(tmp_path)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    other = SETTINGS | {"k": 8, "arms": {"base": {"vector": "abc"}}}
    Journal(tmp_path, other).close()
    written(tmp_path, [record(0)])  # nothing was sampled under the other settings: they are forgotten
    with pytest.raises(SteerkitError, match=r"k: 2 there, 8 here; arms.base.vector: null there, abc here") as caught:
        Journal(tmp_path, other)
    assert "--restart true" in str(caught.value) and "\n" not in str(caught.value)
    Journal(tmp_path, SETTINGS).close()  # the refusal left the lock free


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(tmp_path, SETTINGS), pytest.raises(SteerkitError, match="Another process"):
        Journal(tmp_path, SETTINGS)
    Journal(tmp_path, SETTINGS).close()


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(tmp_path, SETTINGS) as journal:
        journal.write([record(0)])
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(SteerkitError, match=r"No space left.*1 samples are safe"):
                journal.write([record(1)])
    assert "p0" in [r["id"] for r in reread(tmp_path)]


def test_samples_without_settings_are_not_believed(tmp_path: Path) -> None:
    written(tmp_path, [record(0)])
    (tmp_path / "journal" / "settings.json").unlink()
    with pytest.raises(SteerkitError, match="no settings.json"):
        reread(tmp_path)
    (tmp_path / "journal" / "settings.json").write_text("{")
    with pytest.raises(SteerkitError, match="damaged"):
        reread(tmp_path)


def test_differences_are_few_and_short() -> None:
    assert differences(SETTINGS, dict(SETTINGS)) == ""
    assert differences({"t": [0, 1]}, {"t": (0, 1)}) == ""  # JSON has no tuples
    many = differences({}, {str(n): n for n in range(9)})
    assert many.count("there") == 4 and many.endswith("and 5 more")
    assert len(differences({"x": "a" * 500}, {"x": "b" * 500})) < 160
