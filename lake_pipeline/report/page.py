"""The page of a report: figures into HTML, by the template beside this module.

Every value is escaped by the template engine; names that come from outside (callers, mints, reasons) also lose control
characters, and a direction of writing of their own does not spread to the text around them. A policy in the page
forbids scripts and all requests, should either ever fail.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, Final

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from lake_pipeline import pictures
from lake_pipeline.backtest import BaselineConfig, StrategyConfig, plots
from lake_pipeline.backtest.config import strategy_options
from lake_pipeline.backtest.summary import CASES, FIGURES
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.report.content import ReportContent

__all__ = ["render_report"]

_NOTHING: Final = "\N{EN DASH}"
_LONGEST_TEXT: Final = 160
_SHOWN_ALERTS: Final = 12
_SHOWN_ROWS: Final = 10
_SHOWN_CALLERS: Final = 50


def render_report(content: ReportContent) -> str:
    """The page, UTF-8 when encoded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lake_pipeline.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        count=_count, duration=_duration, moment=_moment, multiple=_multiple, number=_number, percent=_percent,
        setting=_setting, text=_text, words=_words,
    )  # fmt: skip
    manifest = content.manifest
    return environment.get_template("report.html.j2").render(
        run_id=manifest.run_id,
        manifest=manifest,
        settings={name: value for name, value in manifest.spec.items() if value is not None},
        source=manifest.inputs.source_snapshot["clickhouse"],
        coverage=_coverage(content),
        ledger=_ledger(content),
        baseline=_baseline(content),
        callers=_callers(content),
        trades=_trades(content),
        optimizer=_optimizer(content),
    )


# --- the sections ----------------------------------------------------------------------------------


def _coverage(content: ReportContent) -> dict[str, Any]:
    table, counts, spec = content.coverage, content.manifest.coverage, content.manifest.run_spec
    expected = pc.sum(table.column("expected_total")).as_py() or 0
    available = pc.sum(table.column("available_total")).as_py() or 0
    worst = table.sort_by([("missing", "descending"), ("alert_id", "ascending")])
    names = ("alert_id", "caller", "mint", "available_pre", "available_post", "missing", "largest_gap", "status",
             "kept", "expected_total")  # fmt: skip
    rejected = content.rejected_alerts
    return {
        "alerts": table.num_rows,
        "share": available / expected if expected else None,
        "statuses": {name: getattr(counts, name) for name in ("complete", "partial", "insufficient")},
        "counts": counts,
        "pre": spec.pre,
        "total": spec.pre + spec.post,
        "map": _bucket_map(content),
        "missing": _missing_shares(table),
        "worst": worst.slice(0, _SHOWN_ALERTS).select(names).to_pylist(),
        "rejected": rejected.slice(0, _SHOWN_ALERTS).to_pylist(),
        "rejected_count": rejected.num_rows,
    }


def _bucket_map(content: ReportContent) -> list[list[dict[str, Any]]]:
    """16 rows of 16 buckets: the share of the candles their alerts' windows hold, in tenths, None without alerts."""
    grouped = (
        content.coverage.group_by("mint_bucket", use_threads=False)
        .aggregate([("alert_id", "count"), ("available_total", "sum"), ("expected_total", "sum")])
        .to_pylist()
    )
    by_bucket = {row["mint_bucket"]: row for row in grouped}
    candles: Counter[str] = Counter()
    for entry in content.manifest.files:
        if entry.path.startswith("slices/"):
            candles[entry.path.rpartition("mint_bucket=")[2][:2]] += entry.rows

    def cell(bucket: str) -> dict[str, Any]:
        row = by_bucket.get(bucket)
        share = row["available_total_sum"] / row["expected_total_sum"] if row else None
        return {
            "bucket": bucket,
            "alerts": row["alert_id_count"] if row else 0,
            "candles": candles[bucket],
            "share": share,
            "step": None if share is None else min(math.floor(share * 10), 9),
        }

    return [[cell(bucket) for bucket in ALL_BUCKETS[row : row + 16]] for row in range(0, 256, 16)]


_MISSING_EDGES: Final = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 1.0)


def _missing_shares(coverage: pa.Table) -> list[tuple[str, int]]:
    """How many alerts miss which share of their window's candles."""
    missing = coverage.column("missing").to_numpy()
    share = missing / np.maximum(coverage.column("expected_total").to_numpy(), 1)
    bins = [("nothing", int((missing == 0).sum()))]
    for low, high in pairwise(_MISSING_EDGES):
        inside = (missing > 0) & (share > low) & (share <= high) & (share < 1)
        least, most = f"{100 * low:.0f} %", f"{100 * high:.0f} %"
        label = f"up to {most}" if low == 0 else f"{least} to {most}" if high < 1 else f"more than {least}"
        bins.append((label, int(inside.sum())))
    return [*bins, ("everything", int((share >= 1).sum()))]


def _ledger(content: ReportContent) -> dict[str, Any]:
    ledger = content.manifest.ledger
    return {"counts": ledger, "reasons": _by_count(content.rejected_candles)}


def _baseline(content: ReportContent) -> dict[str, Any]:
    table = content.baseline.baseline()
    ath = table.column("ath_mult").drop_null().to_pylist()
    best = table.filter(pc.is_valid(table.column("ath_mult"))).sort_by(
        [("ath_mult", "descending"), ("alert_id", "ascending")]
    )
    names = ("alert_id", "caller", "mint", "alert_ts_utc", "entry_price", "ath_mult", "ath_volume_backed",
             "time_to_ath_s", "dd_overall", "ret_end_pct", "censoring")  # fmt: skip
    return {
        "key": content.baseline.key,
        **_parameters(content.baseline.record.identity, "baseline"),
        "figures": content.baseline_figures(),
        "best": best.slice(0, _SHOWN_ROWS).select(names).to_pylist(),
        "picture": _picture(plots.ath_histogram(ath, "svg"), "ath"),
    }


def _callers(content: ReportContent) -> dict[str, Any]:
    table = content.baseline.caller_stats()
    names = content.baseline.baseline().column("caller").to_pylist()
    known = {name for name in names if name and name.strip()}
    return {
        "min_trades": content.baseline.record.identity["parameters"]["callers"]["min_trades"],
        "rows": table.slice(0, _SHOWN_CALLERS).to_pylist(),
        "ranked": table.num_rows,
        "too_few": len(known) - table.num_rows,
    }


def _trades(content: ReportContent) -> dict[str, Any]:
    result = content.strategy
    table, summary = result.trades(), result.summary()
    figures = summary["all"]
    traded = table.filter(pc.is_valid(table.column("exit_ts_utc")))
    names = ("alert_id", "caller", "mint", "entry_ts_utc", "exit_ts_utc", "tp_sl_exit_reason", "tp_sl_ret",
             "hold_time_s", "ambiguous", "mae", "mfe")  # fmt: skip

    def extremes(order: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (
            traded.sort_by([("tp_sl_ret", order), ("alert_id", "ascending")])
            .slice(0, _SHOWN_ROWS)
            .select(names)
            .to_pylist()
        )
        return rows

    callers = sorted(summary["callers"].items(), key=lambda item: (-item[1]["n"], item[0].encode()))
    equity = traded.sort_by("exit_ts_utc").column("equity").drop_null().to_pylist()
    return {
        "key": result.key,
        **_parameters(result.record.identity, "strategy"),
        "figures": figures,
        "cases": [(case.replace("_", " "), figures[case]) for case in CASES],
        "names": FIGURES,
        "exits": [(reason, count) for reason, count in figures["exit_reasons"].items() if count],
        "callers": [{"caller": name, "n": each["n"], **each["case"]} for name, each in callers[:_SHOWN_ROWS]],
        "caller_count": len(callers),
        "best": extremes("descending"),
        "worst": extremes("ascending"),
        "picture": _picture(plots.equity_curve(equity, "svg"), "equity"),
        "others": _strategies(content),
    }


def _strategies(content: ReportContent) -> list[dict[str, Any]]:
    """Every strategy stored for this content with what it was given, best mean return first."""
    rows = []
    for key, result in content.strategies.items():
        figures = result.summary()["all"]
        rows.append(
            {
                "key": key,
                "shown": key == content.strategy.key,
                **_parameters(result.record.identity, "strategy"),
                "n": figures["n"],
                "ambiguous_share": figures["ambiguous_share"],
                "worst_mean_ret": figures["worst_case"]["mean_ret"],
                **figures["case"],
            }
        )
    rows.sort(key=lambda row: -math.inf if row["mean_ret"] is None else row["mean_ret"], reverse=True)
    return rows


# The settings in the order they are documented in; a result that was just computed has them in no particular one.
_ORDER: Final = [field.name for config in (BaselineConfig, StrategyConfig) for field in fields(config)]


_PICTURE_WORDS: Final = {
    "heatmap": "Objective by take-profit and stop-loss",
    "trials": "Objective, trial by trial",
    "equity": "Equity of the winner",
    "folds": "Train and test, fold by fold",
}


def _optimizer(content: ReportContent) -> dict[str, Any]:
    search = content.search
    if search is None:
        return {"search": None, "horizon_hours": _horizon_to_try(content)}
    best = search.best
    winner = best["winner"]
    return {
        "search": search,
        "best": best,
        "winner": winner,
        "options": None if winner is None else strategy_options(winner["strategy"]),
        "figures": [] if winner is None else [name for name in _SEARCH_FIGURES if name in winner["train"]],
        "pictures": [
            (_PICTURE_WORDS.get(name, _words(name)), base64.b64encode(picture).decode())
            for name, picture in search.pictures.items()
        ],
        "others": sorted(content.searches.values(), key=lambda each: (-each.trials, each.key)),
        "all_trials": sum(each.trials for each in content.searches.values()),
        "sign": _SIGN,
    }


# A deflated Sharpe ratio, which is a probability, above this is a sign that there is more than luck.
_SIGN: Final = 0.95
_SEARCH_FIGURES: Final = ("n", "win_rate", "mean_ret", "mean_ret_worst", "median_ret", "sharpe", "profit_factor",
                          "mean_r", "ambiguous_share", "max_losing_streak", "final_equity", "max_drawdown")  # fmt: skip


def _horizon_to_try(content: ReportContent) -> int | None:
    """A horizon with which the run's alerts can be split, in hours; None where the default will do."""
    times = content.coverage.column("anchor_ts_ms")
    hours = (pc.max(times).as_py() - pc.min(times).as_py()) / 3_600_000
    return None if hours > 6 * BaselineConfig().horizon_hours else max(math.floor(hours / 8), 1)


def _parameters(identity: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What a result was computed with: the settings of the paths and of its kind, and the alerts it is of."""
    given = {**identity["parameters"]["baseline"], **identity["parameters"][kind]}
    names = sorted(given, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {
        "parameters": {name: given[name] for name in names if given[name] not in (None, [])},
        "selection": {name: value for name, value in sorted(identity["selection"].items()) if value is not None},
    }


def _by_count(rows: pa.Table) -> list[tuple[str, int]]:
    """Reasons with how many rows have each, the most frequent first."""
    counts = Counter(rows.column("reason").to_pylist())
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


# --- pictures --------------------------------------------------------------------------------------

_HEAD: Final = re.compile(r"^.*?<svg\b[^>]*?(viewBox=\"[^\"]*\")[^>]*>", re.DOTALL)
_NOISE: Final = re.compile(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->|(?<=<g) id=\"[^\"]*\"", re.DOTALL)
_BLANK: Final = re.compile(r"\s*\n\s*")
_NAMED: Final = re.compile(r"(\bid=\"|\bxlink:href=\"#|url\(#)")


def _picture(svg: bytes, name: str) -> Markup:
    """A picture of `plots` as a part of the page: its colours the page's, its ids its own, its size the reader's."""
    picture = _HEAD.sub(r'<svg class="plot" \g<1> aria-hidden="true">', svg.decode(), count=1)
    picture = _NAMED.sub(rf"\g<1>{name}-", _BLANK.sub(" ", _NOISE.sub("", picture)))
    for colour, hexadecimal in pictures.COLOURS.items():
        picture = picture.replace(hexadecimal, f"var(--{colour})")
    return Markup(picture)  # noqa: S704  # drawn by this package, of numbers


# --- how values are written ------------------------------------------------------------------------

# Control characters, and those that change the direction of writing, as code points a reader can see.
_UNSEEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _text(value: Any) -> str:
    """A name from outside: no control characters, no longer than a table can bear."""
    if value is None or value == "":
        return _NOTHING
    shown = _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", str(value))
    return shown if len(shown) <= _LONGEST_TEXT else f"{shown[: _LONGEST_TEXT - 1]}…"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _setting(value: Any) -> str:
    """A parameter as it would be typed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(":".join(map(_setting, each)) if isinstance(each, list) else _text(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else _text(value)


def _count(value: int | None) -> str:
    return _NOTHING if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    """Four significant digits."""
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _percent(value: float | None, digits: int = 1) -> str:
    return _NOTHING if value is None else f"{100 * value:,.{digits}f} %"


def _multiple(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.2f}x" if value < 1000 else f"{value:,.0f}x"


def _moment(value: dt.datetime | None) -> str:
    return _NOTHING if value is None else value.strftime("%Y-%m-%d %H:%M:%S")


def _duration(seconds: float | None) -> str:
    """The two largest units: 2 d 3 h, 45 min, 30 s."""
    if seconds is None:
        return _NOTHING
    left, parts = round(seconds), []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2]) or "0 s"
