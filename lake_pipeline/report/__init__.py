"""The report: one self-contained HTML page about a sealed run and its backtest, to send to a colleague.

    from lake_pipeline.report import gather_report, render_report
    page = render_report(gather_report(lake, run))

`content` gathers what is on the page, from sealed files only; `page` turns it into HTML. The page has no script and
asks no network for anything, and the same run and results give the same bytes: it holds no date, host or path.
"""

from __future__ import annotations

from lake_pipeline.report.content import ReportContent, gather_report
from lake_pipeline.report.page import render_report

__all__ = ["ReportContent", "gather_report", "render_report"]
