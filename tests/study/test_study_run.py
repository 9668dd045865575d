"""A whole study of a tiny random model; killed and gone on with; with an item that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from studies import settings, study, write

from steerkit.cli import main
from steerkit.vectors import SteeringVector


def record(folder: Path) -> dict:
    return json.loads((folder / "out" / "results.json").read_text())


def markers(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out/markers").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, exit code, markers at the kill) of a study that was killed in the middle of its second fit and gone on
    with; one of its arms is a mistake.
    """
    folder = write(tmp_path_factory.mktemp("whole"), **with_a_mistake())
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = ["study", "--config", "study.yaml", "--out", "out", "--workers", "1", "--allow_code"]
        process = subprocess.Popen([sys.executable, "-m", "steerkit", *words], stdout=subprocess.DEVNULL)
        checkpoints = folder / "out/arms/all/choose/0.2/checkpoints"
        while not (checkpoints.is_dir() and any(checkpoints.iterdir())) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        done = markers(folder)
        yield folder, study(), done
    finally:
        os.chdir(before)


def with_a_mistake() -> dict:
    arms = settings()["arms"] | {"broken": {"lr": 0.1, "model": {"intervention": {"name": "gated", "gate": "nogate"}}}}
    analyses = settings()["analyses"] | {"of_it": {"analyzer": "geometry", "arms": ["broken"]}}
    return {"arms": arms, "analyses": analyses}


def test_it_runs_to_the_end(whole):
    folder, code, _ = whole
    found = record(folder)
    assert code == 1  # something failed
    assert [arm["arm"] for arm in found["arms"]] == ["base", "all", "random_vector", "static_0", "static_2"]
    assert found["failed"][0]["id"] == "broken/seed0" and "nogate" in found["failed"][0]["error"]
    assert found["failed"][1] == {"id": "of_it-broken", "error": "needs broken/seed0, which failed"}
    base, trained, _, first, last = found["arms"]
    assert base["role"] == "base" and base["trainable"] == 0 and base["runs"][0]["row"] == "base"
    assert trained["trainable"] == 96 and trained["layers"] == [0, 1, 2] and trained["optimizer_bytes"] == 768
    assert first["layers"] == [0] and last["aliases"] == ["static_last"]
    assert {row["lr"] for row in trained["choice"]["grid"]} == {0.1, 0.2}
    assert trained["choice"]["ties"] == [0.1, 0.2] and trained["choice"]["lr"] == 0.1  # nothing is right
    assert set(trained["accuracy"]) == {"0", "1"} and trained["accuracy"]["1"]["n"] == 4
    for arm in found["arms"]:
        for run in arm["runs"]:
            assert (folder / "out" / run["folder"] / "results.json").is_file()
            assert run["vector"] is None or (folder / "out" / run["vector"]).is_dir()
            assert run["command"].startswith("steerkit fit --config out/arms/")
    (analysis,) = found["analyses"]
    assert analysis["vectors"]["static_2"] == {"arm": "static_2", "seed": 0}
    assert (folder / "out" / analysis["folder"] / "analysis.json").is_file()
    assert found["test"]["n"] == 4 and found["config_hash"] and found["rules_hash"]


def test_the_samples_are_those_of_the_fits(whole):
    folder, *_ = whole
    rows = pq.read_table(folder / "out" / "samples.parquet").to_pylist()
    assert len(rows) == 5 * 4 * 2  # arms, problems, temperatures
    own = pq.read_table(folder / "out/arms/all/seed0/samples.parquet").to_pylist()
    theirs = {(s["id"], s["temperature"]): s for s in own if s["arm"] == "steered"}
    for row in (row for row in rows if row["arm"] == "all"):
        sample = theirs[row["id"], row["temperature"]]
        assert (row["tokens"], row["first_token"]) == (sample["tokens"], sample["first_token"])
        assert row["correct"] == (sample["verdict"] == "correct")
    lengths = next(arm for arm in record(folder)["arms"] if arm["arm"] == "all")["lengths"]["1"]
    cold = [row["tokens"] for row in rows if row["arm"] == "all" and row["temperature"] == 1.0]
    assert lengths["value"] == pytest.approx(sum(cold) / len(cold), abs=1e-3)


def test_a_finished_study_does_nothing_again(whole, monkeypatch, capsys):
    folder, *_ = whole
    monkeypatch.chdir(folder)
    before = markers(folder)
    runs = {path: path.stat().st_mtime_ns for path in (folder / "out/arms").rglob("results.json")}
    assert main(["study", "--out", "out", "--report_only"]) == 2  # the config names code
    assert "--allow_code" in capsys.readouterr().err
    assert main(["study", "--out", "out", "--report_only", "--allow_code"]) == 0
    assert "Failed: broken/seed0" in capsys.readouterr().out
    assert markers(folder) == before
    assert runs == {path: path.stat().st_mtime_ns for path in runs}


def test_killed_and_gone_on_with(whole):
    """What was done is not done again; the fit that was cut ends where its command ends when it is typed by hand."""
    folder, _, done = whole
    assert "all_choose_0.1.json" in done and "all_choose_0.2.json" not in done
    assert done.items() <= markers(folder).items() and len(record(folder)["sessions"]) == 2
    cut = next(
        one for one in json.loads((folder / "out/items.json").read_text())["items"] if one["id"] == "all/choose/0.2"
    )
    byhand = [word if word != "out/arms/all/choose/0.2" else "byhand" for word in cut["argv"]]
    assert "--ckpt_path" not in byhand and main(byhand) == 0
    first, second = (folder / place for place in ("out/arms/all/choose/0.2", "byhand"))
    vectors = [SteeringVector.from_pretrained(place / "vector") for place in (first, second)]
    assert vectors[0].digest() == vectors[1].digest() and vectors[0].norm() > 0
    samples = [pq.read_table(place / "samples.parquet").to_pylist() for place in (first, second)]
    assert samples[0] == samples[1]


def test_dry_run_starts_nothing(tmp_path, monkeypatch, capsys):
    recipients = {"other": {"base": "model", "like": "all", "grid": [0.1, 0.2]}}
    analyses = {"transfer": {"arms": ["all"], "recipients": ["other"]}}
    folder = write(tmp_path, recipients=recipients, analyses=analyses)
    monkeypatch.chdir(folder)
    assert study("--dry_run") == 0
    said = capsys.readouterr().out
    assert "12 items (6 fits, 2 sweeps, 3 choices, 1 analyses), about" in said and "Memory: about" in said
    assert "steerkit fit --config out/arms/all/fit.yaml" in said
    assert "steerkit fit --config out/recipients/other/fit.yaml" in said
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a": {"lrr": 1.0}}}, "arms.a: There is no setting 'lrr'. Did you mean 'lr'?"),
        ({"arms": {"a": {"lr": "x"}}}, "arms.a: lr must be"),
        ({"base": "modl"}, "modl"),
        (
            {"fit": {"model": {"max_tokns": 4}}},
            "all/choose/0.1: There is no setting 'model.max_tokns'. Did you mean 'model.max_tokens'?",
        ),
        (
            {"fit": {"data": {"n_tets": 4}}},
            "all/choose/0.1: There is no setting 'data.n_tets'. Did you mean 'data.n_test'? See steerkit fit --help.",
        ),
        ({"fit": {"model": {"rewards": "verifable"}}}, "all/choose/0.1: No reward named 'verifable'"),
        ({"fit": {"model": {"intervention": "tokenwsie"}}}, "all/choose/0.1: No intervention named"),
        ({"analyses": {"geometry": {"arms": ["all"], "options": {"control": 3}}}}, "Did you mean '--controls'"),
        ({"fit": {"data": {"dataset": "arithmetics"}}}, "arithmetics"),
        ({"choice": {"enabld": False}}, "Did you mean 'choice.enabled'"),
        ({"quick_changes": {"arms": {"all": {"grd": [1.0]}}}}, "Did you mean 'grid'"),
    ],
)
def test_mistakes_are_one_line(tmp_path_factory, monkeypatch, capsys, changes, message):
    folder = write(tmp_path_factory.getbasetemp() / "mistakes", **changes)
    monkeypatch.chdir(folder)
    assert study() == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("steerkit study:")]
    assert len(printed) == 1 and message in printed[0], printed
    assert not (folder / "out").exists()


def test_one_folder_is_one_study(whole, monkeypatch, capsys):
    folder, *_ = whole
    monkeypatch.chdir(folder)
    write(folder, **with_a_mistake(), temperatures=[1.0])
    assert study() == 2
    assert "holds a study of other settings (temperatures" in capsys.readouterr().err
    write(folder, **with_a_mistake())
    (folder / "other").mkdir()
    (folder / "other/file").touch()
    assert main(["study", "--config", "study.yaml", "--out", "other", "--allow_code"]) == 2
    assert "holds other files" in capsys.readouterr().err
