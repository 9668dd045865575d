"""Figures of a saved analysis: a PNG for each panel and one interactive page, made from the folder alone."""

from steerkit.analysis.plots.draw import draw
from steerkit.analysis.plots.panels import Bars, Heatmap, Lines, Panel, Points, Series, Table, Tokens

__all__ = ["Bars", "Heatmap", "Lines", "Panel", "Points", "Series", "Table", "Tokens", "draw"]
