"""All panels of a result as one page that needs nothing else: plotly's library is inside (4.8 MB), no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerkit.analysis.plots.panels import Bars, Heatmap, Lines, Panel, Points, Series, Table, Tokens
from steerkit.analysis.result import AnalysisResult
from steerkit.files import write_text
from steerkit.hookpoints import HookPoint, in_words

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222; }
h2 { font-size: 1.05em; margin: 2em 0 .3em; } table { border-collapse: collapse; font-size: 12px; }
td, th { border: 1px solid #ddd; padding: 2px 6px; text-align: left; } .scroll { max-height: 480px; overflow: auto; }
.text { font: 13px/1.9 ui-monospace, monospace; word-break: break-all; margin: .4em 0 1em; } .note { color: #666; }
"""
_GREY = "#8a8a8a"


def write_page(panels: Sequence[Panel], result: AnalysisResult, path: str | Path) -> None:
    """Write the page; an old one is replaced."""
    from plotly.offline import get_plotlyjs

    library = f"<script>{get_plotlyjs()}</script>" if any(type(panel) in _FIGURES for panel in panels) else ""
    parts = [_section(panel, number) for number, panel in enumerate(panels)]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(result.analyzer)}</title>'
        f"<style>{_STYLE}</style>{library}</head><body>{_head(result)}{''.join(parts)}</body></html>\n"
    )
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))


def _where(facts: Mapping[str, Any], result: AnalysisResult) -> str:
    return in_words([HookPoint.parse(point) for point in facts["points"]], int(result.model.get("n_layers", 0)))


def _head(result: AnalysisResult) -> str:
    vectors = ", ".join(
        f"{name} ({facts['intervention']} at {_where(facts, result)}; mask {facts['token_mask']})"
        for name, facts in result.vectors.items()
    )
    prompts = f"{result.prompts['n']} prompts {result.prompts['source']}" if result.prompts else "no prompts"
    lines = [
        f"Model {result.model['name']} ({result.model['fingerprint']}), {result.model['dtype']}. Vectors: {vectors}.",
        f"{prompts}. Positions: {result.positions}. Engine {result.engine}, seed {result.seed}, {result.seconds} s.",
        *result.notes,
        *([result.command] if result.command else []),
    ]
    return f"<h1>{html.escape(result.analyzer)}</h1>" + "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _section(panel: Panel, number: int) -> str:
    if isinstance(panel, Table):
        return _table(panel)
    if isinstance(panel, Tokens):
        return _tokens(panel)
    figure = _FIGURES[type(panel)](panel)
    figure.update_layout(margin={"l": 60, "r": 20, "t": 20, "b": 50}, template="plotly_white")
    body = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"panel{number}")
    return f"<h2>{html.escape(panel.title)}</h2>{body}"


def _heatmap(panel: Heatmap) -> Any:
    from plotly import graph_objects as go

    limits = {"zmin": panel.limits[0], "zmax": panel.limits[1]} if panel.limits else {}
    if panel.diverging and not panel.limits:
        limits = {"zmid": 0.0}
    texts: dict[str, Any] = {}
    if panel.texts:
        texts = {"text": [_safe(row) for row in panel.texts], "texttemplate": "%{text}"}
    trace = go.Heatmap(
        z=[list(row) for row in panel.values], x=list(range(len(panel.columns))), y=list(range(len(panel.rows))),
        colorscale="RdBu_r" if panel.diverging else "Viridis", colorbar={"title": panel.unit},
        customdata=[_safe(f"{r}, {c}" for c in panel.columns) for r in panel.rows],
        hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>", **limits, **texts,
    )  # fmt: skip
    figure = go.Figure(trace)
    columns, rows = _safe(panel.columns), _safe(panel.rows)
    figure.update_xaxes(title=panel.column_axis, tickvals=list(range(len(columns))), ticktext=columns)
    figure.update_yaxes(title=panel.row_axis, tickvals=list(range(len(rows))), ticktext=rows, autorange="reversed")
    figure.update_layout(height=max(260, 130 + 24 * len(rows)))
    return figure


def _safe(labels: Iterable[Any]) -> list[str]:
    """Plotly reads a part of HTML in its texts: a token may look like it."""
    return [html.escape(str(label)) for label in labels]


def _axis(values: Sequence[Any]) -> list[Any]:
    return [html.escape(value) if isinstance(value, str) else value for value in values]


def _band(series: Series) -> dict[str, Any]:
    if series.low is None or series.high is None:
        return {}
    up = [None if y is None or h is None else h - y for y, h in zip(series.y, series.high, strict=True)]
    down = [None if y is None or low is None else y - low for y, low in zip(series.y, series.low, strict=True)]
    return {"error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}}


def _lines(panel: Lines) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    for series in panel.series:
        style = {"line": {"color": _GREY, "dash": "dash"}} if series.control else {}
        figure.add_trace(
            go.Scatter(
                x=_axis(panel.x),
                y=list(series.y),
                name=html.escape(series.name),
                mode="lines+markers",
                **_band(series),
                **style,
            )
        )
    figure.update_xaxes(title=panel.x_axis, type="log" if panel.log_x else None)
    figure.update_yaxes(title=panel.y_axis, type="log" if panel.log_y else None)
    if panel.line_at is not None:
        figure.add_hline(panel.line_at, line_width=1, line_dash="dot")
    return figure


def _bars(panel: Bars) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    for series in panel.series:
        style = {"marker": {"color": _GREY}} if series.control else {}
        figure.add_trace(
            go.Bar(x=_safe(panel.labels), y=list(series.y), name=html.escape(series.name), **_band(series), **style)
        )
    figure.update_yaxes(title=panel.y_axis)
    figure.update_xaxes(type="category")
    if panel.line_at is not None:
        figure.add_hline(panel.line_at, line_width=1, line_dash="dot")
    return figure


def _points(panel: Points) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure(
        go.Scatter(
            x=list(panel.x), y=list(panel.y), mode="markers", text=_safe(panel.labels),
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title=panel.x_axis)
    figure.update_yaxes(title=panel.y_axis)
    return figure


def _table(panel: Table) -> str:
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in panel.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in panel.rows
    )
    note = f'<p class="note">{html.escape(panel.note)}</p>' if panel.note else ""
    title = html.escape(panel.title)
    return f'<h2>{title}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{note}'


def _tokens(panel: Tokens) -> str:
    known = [value for text in panel.texts for _, value in text if value is not None]
    most = max((abs(value) for value in known), default=0.0) or 1.0
    parts = []
    for index, text in enumerate(panel.texts):
        name = f"<p><b>{html.escape(panel.names[index])}</b></p>" if panel.names else ""
        spans = "".join(_span(token, value, most) for token, value in text)
        parts.append(f'{name}<div class="text">{spans}</div>')
    title = html.escape(panel.title)
    unit = html.escape(f"Colour: {panel.unit}, full at {most:.3g}; point at a token for its number.")
    return f'<h2>{title}</h2><p class="note">{unit}</p>{"".join(parts)}'


def _span(token: str, value: float | None, most: float) -> str:
    if value is None:
        return f"<span>{html.escape(token)}</span>"
    colour = "214,66,48" if value >= 0 else "48,102,190"
    share = min(1.0, abs(value) / most)
    text = html.escape(token)
    return f'<span style="background:rgba({colour},{share:.2f})" title="{value:.4g}">{text}</span>'


_FIGURES: dict[type, Any] = {Heatmap: _heatmap, Lines: _lines, Bars: _bars, Points: _points}
