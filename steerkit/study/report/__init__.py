"""The report of a study: one self-contained page, the same as Markdown, and the figures as PNG.

from steerkit.study.report import write_report
write_report("runs/study")
"""

from steerkit.study.report.write import write_report

__all__ = ["write_report"]
