"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from lake_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from lake_pipeline.api import ExportConfig
    from lake_pipeline.backtest import StrategyConfig

__all__ = [
    "alerts_options",
    "data_root_option",
    "export_config",
    "run_options",
    "search_options",
    "source_options",
    "strategy_config",
    "strategy_options",
]

F = TypeVar("F", bound=Callable[..., Any])


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


data_root_option = click.option(
    "--data-root",
    metavar="DIR|URL",
    help="Folder or object-store URL of the lake. [default: $LAKE_DATA_ROOT, else data]",
)

source_options = _all(
    click.option("--table", metavar="NAME", help="The candle table. [default: ohlcv_candles]"),
    click.option("--database", metavar="NAME", help="Its database. [default: $CLICKHOUSE_DATABASE, else the server's]"),
    click.option(
        "--wait",
        "wait_s",
        type=float,
        metavar="SECONDS",
        help="Wait for the embedded engine while another process has it. [default: $LAKE_WAIT_S, else 0]",
    ),
)

alerts_options = _all(
    click.option("--alerts", metavar="FILE", help="Alerts: a .parquet, .csv or .duckdb file, or a URL."),
    click.option("--duckdb", metavar="FILE", help="The same for a DuckDB file (.duckdb, .ddb or .db)."),
    click.option("--alerts-table", metavar="NAME", help="Table of the DuckDB file. [default: the first usual one]"),
    click.option("--from", "from_day", metavar="DAY", help="First UTC day of alerts, YYYY-MM-DD."),
    click.option("--to", "to_day", metavar="DAY", help="Last UTC day of alerts, inclusive."),
    click.option("--chain", metavar="NAME", help="The one chain of this export. [default: solana]"),
)

run_options = _all(
    click.option("--interval", metavar="I", help="Candle length: 1s, 1m, 5m, 1h, any <n><s|m|h|d>."),
    click.option("--window", metavar="W", help="pre<N>_post<M>: candles before and after the alert's own."),
    alerts_options,
    click.option("--run-id", metavar="ID", help="Name of the run. [default: derived from the content]"),
    click.option("--previous", metavar="RUN", help="The sealed run to name as the one before (lake verify --chain)."),
    click.option("--compression", metavar="C", help="zstd, snappy or none. [default: zstd]"),
    click.option("--target-file-mb", type=int, metavar="MB", help="Size at which a slice file closes. [default: 512]"),
    click.option("--strict-coverage", is_flag=True, default=None, help="Drop alerts below the thresholds, really."),
    click.option("--min-required-pre", type=int, metavar="N", help="Strict: candles before the anchor. [default: N]"),
    click.option("--target-total", type=int, metavar="N", help="Strict: candles in all. [default: N+M]"),
)


class _Level(click.ParamType):  # type: ignore[type-arg]  # it has none in click 8.1
    """A multiple of the entry price, such as 2.0 or 2x, or `none`."""

    name = "level"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value).lower()
        try:
            return text if text == _NO_LEVEL else float(text.removesuffix("x"))
        except ValueError:
            self.fail(f"{value!r} is neither a multiple of the entry price, such as 2.0, nor none", param, ctx)


_NO_LEVEL: Final = "none"
_LEVEL: Final = _Level()

_trade_options = _all(
    click.option(
        "--intrabar-order",
        type=click.Choice(["sl_first", "tp_first"]),
        help="What comes first where a candle holds both. [default: sl_first]",
    ),
    click.option(
        "--fill",
        type=click.Choice(["gap", "level"]),
        help="gap: a stop the open is beyond fills at the open; level: at the stop. [default: gap]",
    ),
    click.option("--fee-bps", type=float, metavar="BPS", help="Fees of the round trip. [default: 30]"),
    click.option("--slippage-bps", type=float, metavar="BPS", help="Slippage of each side. [default: 50]"),
)
_risk_option = click.option(
    "--risk-per-trade", type=float, metavar="F", help="Of the equity, what a stop costs. [default: 0.02]"
)

strategy_options = _all(
    click.option(
        "--tp", type=_LEVEL, metavar="X", help="Take-profit, a multiple of the entry price, or none. [default: 2.0]"
    ),
    click.option("--sl", type=_LEVEL, metavar="X", help="Stop-loss, a multiple of the entry, or none. [default: 0.5]"),
    _trade_options,
    click.option("--time-stop-hours", type=float, metavar="H", help="Leave at the open of the candle at this age."),
    click.option(
        "--trail-activation", type=float, metavar="A", help="Gain that starts the trailing stop, 0.5 is 50 %."
    ),
    click.option("--trail-distance", type=float, metavar="D", help="How far below the peak the stop trails."),
    click.option("--breakeven-trigger", type=float, metavar="T", help="Gain that moves the stop to break-even."),
    click.option("--breakeven-offset", type=float, metavar="O", help="Where to, over the entry price. [default: 0]"),
    click.option("--tiers", metavar="LADDER", help="2x:1.2,3x:1.6: at 2x the stop moves to 1.2x, at 3x to 1.6x."),
    _risk_option,
)

# What `lake strategy` takes as a number is a range here.
search_options = _all(
    click.option(
        "--tp", metavar="RANGE", help="Take-profit: lo:hi:step, values and none, commas between. [default: 1.5:3.5:.01]"
    ),
    click.option("--sl", metavar="RANGE", help="Stop-loss, likewise. [default: .3:.6:.01]"),
    _trade_options,
    click.option("--time-stop-hours", metavar="RANGE", help="Leave at the open of the candle at this age."),
    click.option("--trail-activation", metavar="RANGE", help="Gain that starts the trailing stop, 0.5 is 50 %."),
    click.option("--trail-distance", metavar="RANGE", help="How far below the peak the stop trails."),
    click.option("--breakeven-trigger", metavar="RANGE", help="Gain that moves the stop to break-even."),
    click.option("--breakeven-offset", metavar="RANGE", help="Where to, over the entry price. [default: 0]"),
    click.option(
        "--tiers", multiple=True, metavar="LADDER", help="2x:1.2,3x:1.6 or none; several times to choose from several."
    ),
    _risk_option,
)


def strategy_config(values: dict[str, Any]) -> StrategyConfig:
    """The strategy of the options of `strategy_options` that were given. Raises ConfigError."""
    from lake_pipeline.backtest import StrategyConfig, parse_tiers

    given: dict[str, Any] = {
        name: None if value == _NO_LEVEL else value for name, value in values.items() if value is not None
    }
    if "tiers" in given:
        given["tiers"] = parse_tiers(given["tiers"])
    return StrategyConfig(**given)


def export_config(values: dict[str, Any], config: str | None = None) -> ExportConfig:
    """Settings from a JSON file, if any, and the options that were given, which win. Raises ConfigError."""
    from lake_pipeline.api import ExportConfig
    from lake_pipeline.settings import parse_settings, read_json_object

    settings = read_json_object(config) if config else {}
    settings |= {name: value for name, value in values.items() if value is not None}
    duckdb = settings.pop("duckdb", None)
    if duckdb:
        if values.get("alerts"):
            raise ConfigError("give --alerts or --duckdb, not both")
        settings["alerts"] = duckdb
    missing = [f"--{name}" for name in ("interval", "window", "alerts") if not settings.get(name)]
    if missing:
        raise click.UsageError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} required")
    return parse_settings(ExportConfig, settings)
