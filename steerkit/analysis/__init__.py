"""What a vector does inside a model: one analyzer a file, one result record, figures apart from numbers.

    from steerkit.analysis import LogitLens, draw
    result = LogitLens().run(loaded, {"last": vector}, examples, folder="runs/lens")
    draw("runs/lens")

``docs/analyzers/README.md`` says how to write one. Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.analysis.attention_shift import AttentionShift
    from steerkit.analysis.base import Analyzer
    from steerkit.analysis.composition import Composition
    from steerkit.analysis.diff_sae import DiffSae
    from steerkit.analysis.engine import Edit, Engine, Trace, make_engine
    from steerkit.analysis.first_token import FirstToken
    from steerkit.analysis.geometry import Geometry
    from steerkit.analysis.logit_lens import LogitLens
    from steerkit.analysis.path_patching import PathPatching
    from steerkit.analysis.persistence import Persistence
    from steerkit.analysis.plots import draw
    from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
    from steerkit.analysis.statistics import array_intervals, by_problem, row
    from steerkit.analysis.texts import Batch, Text, of_groups, of_prompts
    from steerkit.analysis.token_language import TokenLanguage
    from steerkit.analysis.token_scale import TokenScale
    from steerkit.analysis.transfer import Transfer
    from steerkit.analysis.work import Work

_HOME = {
    "AnalysisResult": "result",
    "Analyzer": "base",
    "Array": "result",
    "AttentionShift": "attention_shift",
    "Batch": "texts",
    "Composition": "composition",
    "DiffSae": "diff_sae",
    "Edit": "engine",
    "Engine": "engine",
    "Findings": "result",
    "FirstToken": "first_token",
    "Geometry": "geometry",
    "LogitLens": "logit_lens",
    "PathPatching": "path_patching",
    "Persistence": "persistence",
    "Text": "texts",
    "TokenLanguage": "token_language",
    "TokenScale": "token_scale",
    "Trace": "engine",
    "Transfer": "transfer",
    "Work": "work",
    "array_intervals": "statistics",
    "as_array": "result",
    "by_problem": "statistics",
    "draw": "plots",
    "make_engine": "engine",
    "of_groups": "texts",
    "of_prompts": "texts",
    "row": "statistics",
}
__all__ = [
    "AnalysisResult", "Analyzer", "Array", "AttentionShift", "Batch", "Composition", "DiffSae", "Edit", "Engine",
    "Findings", "FirstToken", "Geometry", "LogitLens", "PathPatching", "Persistence", "Text", "TokenLanguage",
    "TokenScale", "Trace", "Transfer", "Work", "array_intervals", "as_array", "by_problem", "draw", "make_engine",
    "of_groups", "of_prompts", "row",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steerkit.analysis' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"steerkit.analysis.{_HOME[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value
