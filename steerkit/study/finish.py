"""The end of a study: the record, its verdicts, its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steerkit.study.claims import judge
from steerkit.study.claims.rules import parse_rules
from steerkit.study.record import write
from steerkit.study.report import write_report


def finish(folder: Path, record: dict[str, Any], rules: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Path]:
    """Judge by the rules, write ``results.json``, write the report; returns the verdicts and the page.

    The record is on disk before anything is judged: what fails here is done again by ``--report_only``.
    """
    write(folder, record)
    verdicts: list[dict[str, Any]] = []
    if rules:
        verdicts = judge(json.loads(json.dumps(record)), folder, rules)
        write(folder, record | {"verdicts": verdicts, "resampling": asdict(parse_rules(rules).resampling)})
    return verdicts, write_report(folder)
