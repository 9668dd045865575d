"""From a study's folder to its report: the page, the same as Markdown, and the figures as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steerkit.analysis.plots import Heatmap, Table, Tokens
from steerkit.analysis.plots.png import write_png
from steerkit.errors import SteerkitError
from steerkit.files import ensure_folder, write_bytes, write_text
from steerkit.study.report import cells, draw, theme, words
from steerkit.study.report.analyses import sections as analysed
from steerkit.study.report.arms import headline, headline_sentences, ordered
from steerkit.study.report.blocks import Dots, Picture, Section
from steerkit.study.report.gains import gains
from steerkit.study.report.layers import choices, layers
from steerkit.study.report.read import Study
from steerkit.study.report.training import curves
from steerkit.study.report.verdicts import planted, summary, verdicts

LIMIT = 4_000_000
"""Bytes of a whole report: page, Markdown and figures."""
SHOWN = (8, 4, 2, 1)
"""Figures of one analysis; fewer where the report would be too large."""


def write_report(folder: str | Path) -> Path:
    """Write ``report/index.html``, ``report/report.md`` and ``report/figures/*.png`` below a study's folder.

    Made from ``results.json``, ``samples.parquet`` and the analyses' folders alone; what is missing or failed is said
    in its place. Old files of the same names are replaced, old figures removed. The page needs no network.

    Returns:
        the path of the page.

    Raises:
        SteerkitError: without a ``results.json`` of this schema, if the folder can't be written, or if the report would
            be over ``LIMIT`` bytes with one figure an analysis.
    """
    study = Study.read(folder)
    share = gains(study)
    before = [headline(study), share, layers(study), curves(study)]
    short = [*summary(study), *headline_sentences(study)]
    short += [line for block in share.blocks for line in block.finding[:1]]  # at the highest temperature
    target = ensure_folder(Path(folder) / "report")
    size, count = 0, -1
    for most in SHOWN:
        found = [*before, *analysed(study, most), choices(study)]
        pictures = sum(len(block.pictures) for section in found for block in section.blocks)
        if pictures == count:
            break  # there is nothing to leave out
        count, names = pictures, _draw_figures(found, target / "figures")
        context = _context(study, found, names, short)
        page, text = _rendered("page.html.j2", context), _rendered("report.md.j2", context)
        drawn = sum(path.stat().st_size for path in (target / "figures").glob("*.png"))
        size = len(page.encode()) + len(text.encode()) + drawn
        if size <= LIMIT:
            write_text(target / "report.md", text)
            write_text(target / "index.html", page)
            return target / "index.html"
    raise SteerkitError(f"The report of {folder} would have {size:,} bytes, over the limit of {LIMIT:,}.")


def _draw_figures(sections: Sequence[Section], folder: Path) -> dict[tuple[str, int, int], str]:
    """Write the PNG files; returns (section, block, picture) -> file name."""
    ensure_folder(folder)
    names = {}
    for section, b, p, picture in _pictures(sections):
        if isinstance(picture, Table):
            continue
        name = f"{section.key}-{b + 1}-{p + 1}.png"
        if draw.drawn(picture):
            write_bytes(folder / name, draw.png(picture))
        elif isinstance(picture, Heatmap | Tokens):
            write_png(picture, folder / name)
        names[section.key, b, p] = name
    for old in folder.glob("*.png"):
        if old.name not in names.values():
            old.unlink()
    return names


def _wide(picture: Picture) -> bool:
    """Whether it takes the page's whole width."""
    if isinstance(picture, Heatmap):
        return cells.grid(picture).wide
    return cells.long(picture) if isinstance(picture, Tokens) else isinstance(picture, Dots | Table)


def _pictures(sections: Sequence[Section]) -> Iterator[tuple[Section, int, int, Any]]:
    for section in sections:
        for b, block in enumerate(section.blocks):
            for p, picture in enumerate(block.pictures):
                yield section, b, p, picture


def _context(
    study: Study, sections: Sequence[Section], names: dict[tuple[str, int, int], str], short: Sequence[str]
) -> dict[str, Any]:
    results = study.results
    return {
        "results": results,
        "name": results.get("name") or study.folder.name,
        "sections": sections,
        "figures": names,
        "kind": lambda picture: "drawn" if draw.drawn(picture) else type(picture).__name__.lower(),
        "wide": _wide,
        "svg": draw.svg,
        "grid": cells.grid,
        "passages": cells.passages,
        "verdicts": verdicts(study),
        "planted": planted(study),
        "summary": short,
        "arms": ordered(study),
        "failed": study.failed,
        "words": words,
        "light": theme.css_variables(theme.LIGHT),
        "dark": theme.css_variables(theme.DARK),
    }


def _rendered(template: str, context: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("steerkit.study.report", "templates")
    environment = Environment(
        loader=loader, autoescape=template.endswith(".html.j2"), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return words.printable(environment.get_template(template).render(context))
