"""The report of a study: self-contained, valid, its numbers those of results.json; what is missing is said in place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import html5lib
import pytest
from study_fixture import ARMS, GAINS, make_study

from steerkit.errors import SteerkitError
from steerkit.study.report import write_report
from steerkit.study.report.analyses import TOPICS
from steerkit.study.report.gains import shares_of_full
from steerkit.study.report.read import Study
from steerkit.study.report.write import LIMIT

HTML = "{http://www.w3.org/1999/xhtml}"


class Made:
    """A study's folder with its report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        self.path = write_report(folder)
        self.page = self.path.read_text(encoding="utf-8")
        self.tree = html5lib.HTMLParser(strict=True).parse(self.page)
        self.text = (folder / "report" / "report.md").read_text(encoding="utf-8")

    def section(self, key: str) -> Any:
        return next(e for e in self.tree.iter(f"{HTML}section") if e.get("id") == key)


def words(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_study(folder)
    return folder


@pytest.fixture(scope="module")
def made(study: Path) -> Made:
    return Made(study)


def changed(study: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the study with other entries in results.json."""
    shutil.copytree(study, folder, ignore=shutil.ignore_patterns("report"))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8")) | changes
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_the_fixture_covers_every_analyzer(study: Path) -> None:
    ran = {
        record["analyzer"] for record in json.loads((study / "results.json").read_text(encoding="utf-8"))["analyses"]
    }
    assert ran | {"first_token"} == {topic.analyzer for topic in TOPICS}


def test_the_page_needs_nothing_else(made: Made) -> None:
    assert made.path == made.folder / "report" / "index.html"
    loads = {"src", "href", "srcset", "poster", "data", "action"}
    for element in made.tree.iter():
        for name, value in element.attrib.items():
            plain = str(name).rpartition("}")[2]
            assert plain not in loads or value.startswith("#"), f"{element.tag} {name}={value}"
        assert element.tag not in (f"{HTML}script", f"{HTML}link", f"{HTML}iframe"), element.tag
    assert "http:" not in made.page and "https:" not in made.page and "@import" not in made.page
    assert not re.search(r"url\((?!#)", made.page)


def test_ids_are_unique_and_links_lead_somewhere(made: Made) -> None:
    ids = [element.get("id") for element in made.tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    links = [element.get("href")[1:] for element in made.tree.iter(f"{HTML}a")]
    assert len(links) > 15 and set(links) <= set(ids)
    uses = set(re.findall(r"url\(#([^)]+)\)", made.page)) | set(re.findall(r'<use href="#([^"]+)"', made.page))
    assert uses and uses <= set(ids)


def test_the_size(made: Made) -> None:
    size = sum(path.stat().st_size for path in (made.folder / "report").rglob("*") if path.is_file())
    assert size < LIMIT <= 4_000_000


def test_too_large_a_report_is_refused(study: Path, tmp_path: Path) -> None:
    verdicts = json.loads((study / "results.json").read_text(encoding="utf-8"))["verdicts"]
    verdicts[0]["possible"] = "x" * 2_000_001  # it stands in the page and in the Markdown
    with pytest.raises(SteerkitError, match=r"over the limit of 4,000,000"):
        write_report(changed(study, tmp_path / "large", verdicts=verdicts, analyses=[]))


def test_a_large_report_shows_fewer_figures(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = json.loads((study / "results.json").read_text(encoding="utf-8"))["analyses"]
    folder = changed(study, tmp_path / "fewer", analyses=[r for r in records if r["analyzer"] == "persistence"])
    whole = Made(folder)
    size = sum(path.stat().st_size for path in (folder / "report").rglob("*") if path.is_file())
    monkeypatch.setattr("steerkit.study.report.write.LIMIT", size - 1)
    part = Made(folder)
    figures = [len(list(page.section("persistence").iter(f"{HTML}figure"))) for page in (whole, part)]
    assert figures[1] == 4 < figures[0] and "more figures: steerkit analyze --redraw" in part.page
    assert sum(path.stat().st_size for path in (folder / "report").rglob("*") if path.is_file()) < size


def test_accuracies_are_those_of_the_record(made: Made) -> None:
    table = next(e for e in made.section("accuracy").iter(f"{HTML}table"))
    rows = {words(row[0]): [words(cell) for cell in row] for row in table.iter(f"{HTML}tr")}
    for arm in made.results["arms"]:
        cells = rows[arm["label"]]
        for column, t in ((1, "0"), (2, "1")):
            record = arm["accuracy"][t]
            assert cells[column] == f"{record['value']:.1f} ({record['low']:.1f} to {record['high']:.1f})"
        assert cells[3] == ", ".join(f"{value:.1f}" for value in arm["accuracy"]["1"]["by_seed"])
    base, full = (
        next(a for a in made.results["arms"] if a["arm"] == name)["accuracy"]["1"] for name in ("base", "full")
    )
    short = words(next(e for e in made.tree.iter(f"{HTML}header")))
    assert f"the base is right in {base['value']:.1f} %" in short
    assert f"full fine-tuning in {full['value']:.1f} %" in short
    assert re.search(r"static, all layers reaches [\d.]+ % of that gain \([\d.]+ to [\d.]+\)", short)


def test_verdicts_are_those_of_the_record(made: Made) -> None:
    shown = {e.get("data-claim"): e for e in made.tree.iter(f"{HTML}article")}
    assert list(shown) == [record["claim"] for record in made.results["verdicts"]]
    for record in made.results["verdicts"]:
        text = words(shown[record["claim"]])
        assert record["outcome"] in text and record["title"] in text
        assert record["power"] in text and record["possible"] in text and record["rule"] in text
        assert f"n = {record['n']}, seeds {record['seeds']}" in text
        if record["estimate"] is None:
            assert "nothing was measured" in text and "–" in text
        else:
            assert f"{record['estimate']:.2f} ({record['low']:.2f} to {record['high']:.2f})" in text
            assert "threshold 0.50; control 0.12" in text
    assert "5eed5" in words(made.section("verdicts"))
    head = words(next(e for e in made.tree.iter(f"{HTML}header")))
    assert "3 of 10 claims reproduced: C3, C6 and C9." in head and "planted false effect came out right" in head


def test_a_planted_effect_that_comes_out_wrong_is_said_at_the_top(study: Path, tmp_path: Path) -> None:
    verdicts = json.loads((study / "results.json").read_text(encoding="utf-8"))["verdicts"]
    verdicts[-1]["outcome"] = "reproduced"
    page = Made(changed(study, tmp_path / "wrong", verdicts=verdicts, analyses=[]))
    head = words(next(e for e in page.tree.iter(f"{HTML}header")))
    assert "planted effects came out wrong (planted_false): trust no verdict here" in head


def test_the_share_of_the_full_gain_by_hand(study: Path, made: Made) -> None:
    rows = {row["arm"]: row for row in shares_of_full(Study.read(study), "1")}
    accuracy = {a["arm"]: a["accuracy"]["1"]["value"] for a in made.results["arms"]}
    for name in ("static_all", "lora_r1", "random_vector"):
        by_hand = (accuracy[name] - accuracy["base"]) / (accuracy["full"] - accuracy["base"])
        assert rows[name]["value"] == pytest.approx(by_hand, abs=1e-5)
        assert rows[name]["ci95"][0] < by_hand < rows[name]["ci95"][1]
    assert set(rows) == {name for name, *_ in ARMS} - {"base", "full"}
    assert f"reaches {100 * rows['static_all']['value']:.1f} % of that gain" in words(made.section("gain"))


def test_no_share_where_full_fine_tuning_gains_nothing(study: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder = changed(study, tmp_path / "flat", analyses=[])
    rows = parquet.read_table(folder / "samples.parquet").to_pylist()
    base = [row for row in rows if row["arm"] == "base"]
    flat = [row for row in rows if row["arm"] != "full"] + [{**row, "arm": "full"} for row in base]
    parquet.write_table(pa.Table.from_pylist(flat), folder / "samples.parquet")
    assert all(row["value"] is None for row in shares_of_full(Study.read(folder), "1"))
    assert words(Made(folder).section("gain")).count("may be 0, so a share of it says nothing (inconclusive)") == 2


def test_every_command_and_data_file_is_shown(made: Made) -> None:
    codes = {words(e) for e in made.tree.iter(f"{HTML}code")}
    commands = [run["command"] for arm in made.results["arms"] for run in arm["runs"]]
    commands += [record["command"] for record in made.results["analyses"]] + [made.results["command"]]
    assert set(commands) <= codes
    assert all(command in made.text for command in commands)
    for record in made.results["analyses"]:
        files = {path.name for path in (made.folder / record["folder"]).iterdir() if path.is_file()}
        assert {f"{record['folder']}/{name}" for name in files} <= codes


def test_every_analyzer_has_its_section_with_figures_and_a_caption(made: Made) -> None:
    for topic in TOPICS:
        section = made.section(topic.analyzer)
        figures = list(section.iter(f"{HTML}figure"))
        assert figures, topic.analyzer
        for figure in figures:
            kinds = {child.tag.rpartition("}")[2] for child in figure.iter()}
            assert kinds & {"svg", "table", "span"}, f"{topic.analyzer}: an empty figure"
        findings = " ".join(words(e) for e in section.iter(f"{HTML}li"))
        assert re.search(r"\d", findings) and "No number was found" not in findings, topic.analyzer
        if topic.analyzer == "first_token":
            continue  # it failed in this study: there is the samples' own figure
        captions = " ".join(words(e) for e in section.iter(f"{HTML}figcaption"))
        for picked in topic.picks:
            # the map of the stream needs completions of some length, which a random model may end at once
            assert picked in captions or picked.startswith("stream"), f"{topic.analyzer}: {picked}"


def test_a_caption_follows_the_numbers(study: Path, tmp_path: Path) -> None:
    record = next(
        r for r in json.loads((study / "results.json").read_text())["analyses"] if r["analyzer"] == "attention_shift"
    )
    folder = changed(study, tmp_path / "other", analyses=[record])
    path = folder / record["folder"] / "analysis.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for row in result["rows"]:
        row |= {"value": 0.4 + row["layer"] / 100, "ci95": [0.39, 0.43], "control": 0.2, "control_ci95": [0.1, 0.3]}
    path.write_text(json.dumps(result), encoding="utf-8")
    line = words(Made(folder).section("attention_shift"))
    assert "all moves attention most at layer 2: 0.42 (0.39 to 0.43), above its control's 0.20 (0.10 to 0.30)." in line


def test_the_transfer_matrix_has_a_row_a_recipient(study: Path, made: Made) -> None:
    tables = list(made.section("transfer").iter(f"{HTML}table"))
    gains = list(tables[0].iter(f"{HTML}tr"))
    columns = [words(cell) for cell in gains[0].iter(f"{HTML}th")]
    names = [words(next(row.iter(f"{HTML}th"))) for row in gains[1:]]
    assert names == ["itself: static, all layers", "other: static, all layers"]
    for row in gains[1:]:
        shown = dict(zip(columns, list(row.iter(f"{HTML}td")), strict=True))
        assert {arm: float(words(shown[arm])) for arm in GAINS} == GAINS
    assert "copy has the largest share of its own vector's gain, 0.91" in words(made.section("transfer"))


def test_the_map_of_pairs(made: Made) -> None:
    figure = next(e for e in made.section("composition").iter(f"{HTML}figure") if "normalised gain" in words(e))
    cells = [cell for cell in figure.iter(f"{HTML}td") if words(cell) == "0.25"]
    assert len(cells) == 9 and all(cell.get("style") == "--v:1.00" for cell in cells)
    assert "3 of 3 pairs gain over their better half and 0 lose" in words(made.section("composition"))


def test_failures_and_gaps_are_stated_in_place(made: Made, study: Path, tmp_path: Path) -> None:
    assert "Failed: analyze/first_token-static_2 (out of memory & more)." in words(made.section("first_token"))
    assert "Left out: transfer-wide (no installed model)." in words(made.section("transfer"))
    assert "out of memory" in words(made.section("failed"))
    bare = Made(
        changed(study, tmp_path / "bare", analyses=[], failed=[], left_out=[], verdicts=[], arms=[], samples="gone")
    )
    not_run = words(bare.section("not-run"))
    assert all(topic.title in not_run for topic in TOPICS) and made.page.count('id="not-run"') == 0
    assert "No arm was measured." in words(bare.section("accuracy"))
    assert "No claim was judged." in words(bare.section("verdicts"))
    assert "no arm base and full" in words(bare.section("gain"))
    assert "metrics.csv" in words(bare.section("curves")) and "no sweep" in words(bare.section("layers"))
    assert "Nothing failed." in words(bare.section("failed"))


def test_a_damaged_analysis_costs_its_section_only(study: Path, tmp_path: Path) -> None:
    records = json.loads((study / "results.json").read_text(encoding="utf-8"))["analyses"]
    records = [r for r in records if r["analyzer"] in ("geometry", "logit_lens", "persistence")]
    folder = changed(study, tmp_path / "damaged", analyses=records)
    geometry, lens = (next(r for r in records if r["analyzer"] == name) for name in ("geometry", "logit_lens"))
    (folder / geometry["folder"] / "analysis.json").write_text("{", encoding="utf-8")
    path = folder / lens["folder"] / "analysis.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"direct"', '"indirect"'), encoding="utf-8")
    page = Made(folder)
    assert f"{geometry['folder']} could not be read" in words(page.section("geometry"))
    assert f"{lens['folder']} could not be drawn" in words(page.section("logit_lens"))
    assert list(page.section("persistence").iter(f"{HTML}figure"))


def test_figures_as_png_and_markdown_that_names_them(made: Made) -> None:
    names = re.findall(r"!\[[^\]]*\]\(figures/([^)]+)\)", made.text)
    there = {path.name for path in (made.folder / "report" / "figures").iterdir()}
    assert set(names) == there and len(names) > 20
    for path in (made.folder / "report" / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG"), path.name


def test_written_again_it_is_the_same_and_old_figures_go(study: Path, tmp_path: Path) -> None:
    folder = changed(study, tmp_path / "again", analyses=[])
    first = Made(folder)
    stale = folder / "report" / "figures" / "old.png"
    stale.write_bytes(b"old")
    assert Made(folder).page == first.page and not stale.exists()


def test_texts_are_escaped(made: Made) -> None:
    assert "To␀�" in words(made.section("first_token"))
    assert "2026-11-25 13:51 UTC" in words(next(e for e in made.tree.iter(f"{HTML}header")))
    assert "0.1, last 0.3" in words(made.section("accuracy"))
    assert "random vector &lt;norm-matched&gt;" in made.page and "<norm-matched>" not in made.page


@pytest.mark.parametrize("content", [None, "{", '{"schema": 9}', "[]"])
def test_without_a_record_there_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(SteerkitError, match=r"results\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_both_themes_and_print_are_in_the_style(made: Made) -> None:
    style = words(next(made.tree.iter(f"{HTML}style")))
    assert "prefers-color-scheme: dark" in style and "@media print" in style and "max-width: 760px" in style
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", made.page)) - {"v"}
    light, dark = style.split("prefers-color-scheme: dark")[:2]
    for name in used:
        assert f"--{name}:" in light and f"--{name}:" in dark, name


def test_the_parser_of_these_tests_finds_mistakes() -> None:
    with pytest.raises(html5lib.html5parser.ParseError):
        html5lib.HTMLParser(strict=True).parse(
            "<!doctype html><html><head><title>x</title></head><body><p></b></p></body></html>"
        )
