"""Every kind of panel becomes a PNG and a part of the page, whatever its texts and gaps."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image

from steerkit.analysis import AnalysisResult, Findings, as_array
from steerkit.analysis.plots.default import axis_labels, panels
from steerkit.analysis.plots.page import write_page
from steerkit.analysis.plots.panels import Bars, Heatmap, Lines, Points, Series, Table, Tokens
from steerkit.analysis.plots.png import write_png
from steerkit.analysis.statistics import row

NASTY = "</script><b>$x$ 漢字 ␣"
PANELS = [
    Heatmap("map", [[1.0, None], [-2.0, 0.5]], ["a", NASTY], ["x", "y"], "r", "c", "unit", diverging=True),
    Heatmap("texts", [[0.1] * 3], ["a"], ["x"] * 3, texts=[["To", NASTY, ""]], limits=(0.0, 1.0)),
    Heatmap("all gaps", [[None, None]], ["a"], ["x", "y"]),
    Lines("lines", [0, 1, 2],
          [Series("v", [1, None, 3], [0, None, 2], [2, None, 4]), Series("c", [1, 1, 1], control=True)], line_at=0.0),
    Lines("named", ["one", NASTY], [Series(NASTY, [1.0, 10.0])], log_y=True),
    Bars("nothing measured", ["a"], []),
    Bars("bars", ["a", NASTY],
         [Series("v", [1, None], [0.5, None], [1.5, None]), Series("c", [0.1, 0.2], control=True)]),
    Points("points", [1.0, 2.0], [3.0, None], ["a", NASTY], named=2),
    Tokens("tokens", [[("To", 0.5), (NASTY, None), (" find" * 40, 1.0)], []], "share", ["one", "two"]),
    Table("table", ["a", NASTY], [["1", NASTY], ["2", ""]], "note"),
    Table("empty", ["a"], []),
]  # fmt: skip


def result(**changed):
    facts = {
        "analyzer": "a", "settings": {}, "rows": [], "positions": "all", "arrays": {}, "tables": {}, "notes": [NASTY],
        "model": {"name": "m", "fingerprint": "f", "dtype": "float32"}, "vectors": {}, "prompts": None,
        "engine": "batched", "seed": 0, "command": NASTY, "versions": {}, "seconds": 1.0, "identity": {},
    }  # fmt: skip
    return AnalysisResult(**{**facts, **changed})


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_png_of_each(panel, tmp_path):
    write_png(panel, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG" and image.width > 60 and len(image.convert("L").getcolors(256)) > 4


def test_a_page_of_all(tmp_path):
    write_page(PANELS, result(), tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    body = text[text.index("<body>") :]
    # No token opens an element or ends a script: plotly's own scripts are the only ones there.
    assert "</script><b>" not in body and "漢字" in body
    assert (
        body.count("<script")
        == body.count("</script>")
        == len([p for p in PANELS if not isinstance(p, Tokens | Table)])
    )
    assert not re.search(r"(src|href)=.?https?:", body)
    for panel in PANELS:
        assert f"<h2>{panel.title}</h2>" in body


def test_a_page_without_figures_holds_no_library(tmp_path):
    write_page([PANELS[-1]], result(), tmp_path / "p.html")
    assert (tmp_path / "p.html").stat().st_size < 5_000


def test_numbers_reach_the_page(tmp_path):
    write_page([PANELS[3]], result(), tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    data = text[text.index("<body>") :]
    call = re.search(r"Plotly\.newPlot\(\s*\"panel0\",\s*(\[.*?\]),\s*\{\"", data, re.DOTALL)
    traces = json.loads(call.group(1))
    assert traces[0]["y"] == [1, None, 3] and traces[0]["error_y"]["array"] == [1, None, 1]


def test_what_is_drawn_by_default():
    rows = [row("m", [1.0, 2.0], [0.5, 0.7], vector="v", layer=k) for k in range(2)]
    arrays = {
        "map": as_array(torch.ones(2, 3), ("layer", "token"), "shares", token=["a", "b", "c"]),
        "line": as_array([1.0, 2.0], ("layer",)),
        "cube": as_array(torch.ones(2, 2, 2), ("a", "b", "c")),
    }
    found = panels(result(rows=rows, arrays=arrays))
    assert [type(panel).__name__ for panel in found] == ["Bars", "Heatmap", "Lines", "Table"]
    assert found[0].labels == ["v 0", "v 1"] and found[0].series[1].control
    assert axis_labels(arrays["map"], 1) == ["a", "b", "c"] and axis_labels(arrays["map"], 0) == ["0", "1"]
    Findings(rows, "all", arrays)
