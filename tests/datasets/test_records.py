"""Records over files of every kind, folders, and a folder laid out as a hub repository."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from steerkit.datasets import PromptDataset, Records
from steerkit.errors import DataError

Rows = list[dict[str, Any]]
ROWS: Rows = [{"problem": f"What is {n} + 1?", "answer": str(n + 1), "level": n % 3} for n in range(60)]
HASHED = [0.6, 0.2, 0.2]


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_keeps_the_contract(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    assert isinstance(Records("a.jsonl", data_root=str(tmp_path)), PromptDataset)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_every_file_kind_reads_the_same(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ROWS)
    examples = Records(name, data_root=str(tmp_path)).load("test")
    assert [(e.problem, e.answer) for e in examples] == [(row["problem"], row["answer"]) for row in ROWS]
    assert examples[7].id == "a/00007"
    assert examples[7].source == "a"
    assert str(examples[7].columns["level"]) == "1"


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS).rename(tmp_path / "a.json")
    assert len(Records(str(tmp_path / "a.json")).load("test")) == 60


def test_a_file_is_a_test_set_unless_told_otherwise(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", ROWS))
    with pytest.raises(DataError, match=r"train split of .* is empty \(train 0, validation 0, test 60\).*unsplit_as"):
        Records(path).load("train")
    assert len(Records(path, unsplit_as="train").load("train")) == 60


def test_split_by_hash_is_disjoint_and_complete_and_stable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    records = Records(str(path), split_by_hash=HASHED, seed=1)
    parts = {name: {e.problem for e in records.load(name)} for name in ("train", "validation", "test")}
    assert sum(len(part) for part in parts.values()) == len(set.union(*parts.values())) == 60
    more = write(
        tmp_path / "b.jsonl", [{"problem": f"What is {n}+1 ?", "answer": str(n + 1)} for n in range(90, -1, -1)]
    )
    grown = Records([str(path), str(more)], split_by_hash=HASHED, seed=2)
    for name, part in parts.items():
        assert part <= {e.problem for e in grown.load(name)}
    assert grown.counts.duplicates == 60


def test_concatenated_sources_are_deduplicated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jsonl", ROWS[:3])
    write(tmp_path / "b.csv", [{"question": "what is 2+1", "solution": "4"}, {"question": "New?", "solution": "5"}])
    records = Records(["a.jsonl", "b.csv"], data_root=str(tmp_path))
    with caplog.at_level(logging.INFO):
        examples = records.load("test")
    assert [e.id for e in examples] == ["a/00000", "a/00001", "a/00002", "b/00001"]
    assert (records.counts.rows, records.counts.duplicates, records.counts.conflicts) == (5, 1, 1)
    assert "1 repeated problems of a.jsonl, b.csv left out, 1 of them with another answer" in caplog.text
    assert len(Records(["a.jsonl", "b.csv"], data_root=str(tmp_path), drop_duplicates=False).load("test")) == 5


def test_settings_of_one_source(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"q": "One?", "a": "work\n#### 1,000"}, {"q": "Two?", "a": "#### 1 #### 2"}])
    write(tmp_path / "b.jsonl", [{"problem": "Three?", "answer": "3"}])
    source = {
        "path": "a.jsonl",
        "columns": {"problem": "q", "answer": "a"},
        "answer_pattern": r"####\s*(.+?)\s*(?:$|(?=#))",
    }
    examples = Records([source, "b.jsonl"], data_root=str(tmp_path)).load("test")
    assert [e.answer for e in examples] == ["1,000", "2", "3"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"question": "a", "prompt": "b", "answer": "1"}], {}, "both question and prompt could be the problem; say"),
        (
            [{"text": "a", "answer": "1"}],
            {},
            "none is the problem; say which, as in columns={'problem': ...}. Columns: text",
        ),
        ([{"problem": "a", "gold": "1"}], {}, "none is the answer"),
        (ROWS, {"columns": {"answer": "anwser"}}, "columns.answer: no column 'anwser'. Did you mean 'answer'?"),
        (
            ROWS,
            {"where": {"lvel": 1}},
            "where: no column 'lvel'. Did you mean 'level'? Columns: problem, answer, level",
        ),
        (ROWS, {"where": {"level": 9}}, "no row passes where {'level': 9}; values there: {'level': ['0', '1', '2']}"),
        ([{"problem": "a", "answer": ["1"]}], {}, "a, row 0: column 'answer' holds a list; expected text or a number"),
        (
            [{"problem": "a", "answer": "1", "id": "x"}, {"problem": "b", "answer": "1", "id": "x"}],
            {},
            "have the id 'x'",
        ),
        ([], {}, "a holds no rows"),
        ([{"problem": " ", "answer": "1"}], {}, "test split of"),
        ([{"problem": "a", "answer": None}, ROWS[0]], {"on_empty": "refuse"}, "1 of 2 rows of"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: Rows, settings: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as error:
        Records(str(path), **settings).load("test")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_by_hash": [0.5, 0.5]}, "sum 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"unsplit_as": "tset"}, "No split 'tset'. Did you mean 'test'?"),
        ({"splits": {"dev": "train"}}, "No split 'dev'"),
        ({"on_empty": "keep"}, "on_empty must be"),
        ({"answer_pattern": "####"}, "has no group"),
        ({"answer_pattern": "("}, "is not a regular expression"),
        ({"path": []}, "empty list"),
        ({"path": [{"pth": "a"}]}, "no setting 'pth'. Did you mean 'path'?"),
        ({"path": [{"where": {}}]}, "needs a path"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Records(**({"path": "a.jsonl"} | settings))
    assert message in str(error.value)


def test_unknown_split_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No split 'dev'"):
        Records(str(write(tmp_path / "a.jsonl", ROWS))).load("dev")  # type: ignore[arg-type]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No data set file .*absent.jsonl"):
        Records("absent.jsonl", data_root=str(tmp_path)).load("test")
    (tmp_path / "bad.jsonl").write_text('{"problem": "a", "answer": "1"}\n{"problem": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.jsonl:2 is not JSON"):
        Records("bad.jsonl", data_root=str(tmp_path)).load("test")
    (tmp_path / "list.jsonl").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"list.jsonl:1: expected an object with named columns, got list"):
        Records("list.jsonl", data_root=str(tmp_path)).load("test")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"Can't read .*bad.parquet"):
        Records("bad.parquet", data_root=str(tmp_path)).load("test")
    (tmp_path / "bad.csv").write_text("problem,answer\na,1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="more fields than the header"):
        Records("bad.csv", data_root=str(tmp_path)).load("test")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"Can't read .*notes.txt: expected a file ending in .jsonl"):
        Records("notes.txt", data_root=str(tmp_path)).load("test")


def test_rows_and_values_that_are_left_out_or_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        *ROWS[:2],
        {"problem": "", "answer": "1"},
        {"problem": "a", "answer": None},
        {"problem": "b ", "answer": 27.0},
    ]
    records = Records(str(write(tmp_path / "a.jsonl", rows)))
    assert [e.answer for e in records.load("test")] == ["1", "2", "27"]
    assert records.counts.empty == 2
    assert "2 of 5 rows of" in caplog.text and "left out" in caplog.text


def test_where_columns_and_ids(tmp_path: Path) -> None:
    rows = [{"uid": n, "Body": f"p{n}", "gold": n, "kind": "odd" if n % 2 else "even"} for n in range(6)]
    path = str(write(tmp_path / "a.csv", rows))
    columns = {"id": "uid", "problem": "Body", "answer": "gold", "subject": "kind"}
    examples = Records(path, columns=columns, where={"kind": ["odd"], "uid": [1, 3]}).load("test")
    assert [(e.id, e.problem, dict(e.columns)) for e in examples] == [
        ("1", "p1", {"subject": "odd"}),
        ("3", "p3", {"subject": "odd"}),
    ]
    assert [e.id for e in Records(path, columns=columns | {"id": None}).load("test")][:2] == ["a/00000", "a/00001"]


def test_limit_is_a_seeded_choice_that_adding_rows_disturbs_little(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", ROWS))
    chosen = [[e.id for e in Records(path, limit=10, seed=seed).load("test")] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == sorted(chosen[0])
    assert set(chosen[0]) < {e.id for e in Records(path, limit=20, seed=0).load("test")}


def test_folder_of_split_files(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", ROWS[:4])
    write(tmp_path / "set" / "val-00.csv", ROWS[4:6])
    write(tmp_path / "set" / "test.parquet", [*ROWS[3:4], *ROWS[6:8]])
    records = Records("set", data_root=str(tmp_path))
    assert [len(records.load(name)) for name in ("train", "validation", "test")] == [
        3,
        2,
        3,
    ]  # one repeated: test keeps it
    assert records.load("validation")[0].id == "set/val/00000"
    hashed = Records("set", data_root=str(tmp_path), split_by_hash=[1, 0, 0])
    assert len(hashed.load("train")) == 8
    write(tmp_path / "set" / "extra.jsonl", ROWS[:1])
    with pytest.raises(DataError, match=r"test.parquet names a split and extra.jsonl does not"):
        Records("set", data_root=str(tmp_path)).load("train")


def test_folder_without_splits(tmp_path: Path) -> None:
    write(tmp_path / "set" / "algebra.jsonl", ROWS[:4])
    write(tmp_path / "set" / "geometry.jsonl", ROWS[4:6])
    assert len(Records("set", data_root=str(tmp_path)).load("test")) == 6
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="No data file in"):
        Records("none", data_root=str(tmp_path)).load("test")


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `git clone` of a hub data set gives: a card that names configurations, and parquet shards."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    folder = tmp_path / "hub"
    for config, rows in (("main", ROWS), ("extra", ROWS[:6])):
        write(folder / config / "train-00000-of-00002.parquet", rows[: len(rows) // 3])
        write(folder / config / "train-00001-of-00002.parquet", rows[len(rows) // 3 : len(rows) // 2])
        write(folder / config / "test-00000-of-00001.parquet", rows[len(rows) // 2 :])
    card = "---\nconfigs:\n"
    for config, default in (("main", "true"), ("extra", "false")):
        card += f"- config_name: {config}\n  default: {default}\n  data_files:\n"
        card += "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in ("train", "test"))
    (folder / "README.md").write_text(card + "---\n# A set\n", encoding="utf-8")
    return folder


def test_hub_layout(hub_folder: Path) -> None:
    records = Records(str(hub_folder))
    assert [len(records.load(name)) for name in ("train", "test")] == [30, 30]
    assert records.load("train")[0].id == "hub/train/00000"
    with pytest.raises(DataError, match="validation split of"):
        records.load("validation")
    extra = Records(str(hub_folder), config="extra")
    assert [len(extra.load(name)) for name in ("train", "test")] == [3, 3]
    assert len(Records(str(hub_folder), splits={"validation": "train"}).load("validation")) == 30
    assert (
        sum(len(Records(str(hub_folder), split_by_hash=HASHED).load(s)) for s in ("train", "validation", "test")) == 60
    )
    with pytest.raises(DataError, match=r"has no split 'tset'. Did you mean 'test'\? It has train, test"):
        Records(str(hub_folder), splits={"test": "tset"}).load("test")
    with pytest.raises(DataError, match="Can't load the data set folder"):
        Records(str(hub_folder), config="absent").load("test")


def test_hub_id_that_can_not_be_had(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"hub id \(no such file or folder here\) 'a/b': Couldn't reach the Hub$"):
        Records("a/b").load("test")


def test_hub_splits_with_odd_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_list(ROWS[:3])
    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, config, revision))
        return datasets.DatasetDict({"extended": table})

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match=r"has the splits extended: say which to use, as in splits=\{'test': 'extended'\}"
    ):
        Records("a/b").load("test")
    records = Records("a/b", config="main", revision="v1", splits={"test": "extended"})
    assert len(records.load("test")) == 3
    assert asked[-1] == ("a/b", "main", "v1")
