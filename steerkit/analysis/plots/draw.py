"""From a result's folder to its figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from steerkit import registry
from steerkit.analysis.plots.page import write_page
from steerkit.analysis.plots.panels import Drawn, Panel, Table
from steerkit.analysis.plots.png import write_png
from steerkit.analysis.result import AnalysisResult


def draw(folder: str | Path, analyzer: Any = None) -> Drawn:
    """Read the analysis in ``folder`` and write ``figures.html`` and ``figures/NAME.png`` there.

    Args:
        analyzer: the analyzer's object or class; default: the plugin that the result names.

    Raises:
        SteerkitError: if there is no analysis, or its analyzer is not installed.
    """
    result = AnalysisResult.load(folder)
    target = analyzer if analyzer is not None else registry.resolve("analyzers", result.analyzer)
    made = target(**result.settings) if isinstance(target, type) else target
    panels: list[Panel] = made.panels(result)
    images = []
    figures = [panel for panel in panels if not (isinstance(panel, Table) and panel.page_only)]
    for number, panel in enumerate(figures, start=1):
        path = Path(folder) / "figures" / f"{number:02d}_{_slug(panel.title)}.png"
        write_png(panel, path)
        images.append(str(path))
    page = Path(folder) / "figures.html"
    write_page(panels, result, page)
    return Drawn(str(page), tuple(images))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:50]
