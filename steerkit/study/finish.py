"""The end of a study: the record, its verdicts, its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steerkit.study.record import write


def finish(folder: Path, record: dict[str, Any], rules: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Path | None]:
    """Judge by the rules, write ``results.json``, write the report; returns the verdicts and the page.

    The record is on disk before anything is judged: what fails here is done again by ``--report_only``.
    """
    write(folder, record)
    verdicts: list[dict[str, Any]] = []
    if rules and find_spec("steerkit.study.claims") is not None:
        verdicts = import_module("steerkit.study.claims").judge(json.loads(json.dumps(record)), folder, rules)
        write(folder, record | {"verdicts": verdicts})
    page = None
    if find_spec("steerkit.study.report") is not None:
        page = import_module("steerkit.study.report").write_report(folder)
    return verdicts, page
