"""Results beside the lake: found again by their key, sealed like a run, refused when they were edited.

    <data_root>/results/run_id=<id>/baseline=<key>/   baseline.parquet  caller_stats.parquet  result.json
                                       per_alert/     alert_<alert_id>_<mint[:8]>.parquet  result.json
                                       per_caller/    caller_<name>.parquet  result.json
                                    strategy=<key>/   trades.parquet  summary.json  result.json
                                       per_trade/     trade_<alert_id>_<mint[:8]>.parquet  result.json
                                    paths=<key>/      the cache of `paths`; not sealed, may be deleted at any time

The key is 12 hex digits of SHA-256 over what decides the result: the run's content_sha256, the selection, every
parameter, and the code (`code.code_identity`). So a result that is there is the right one. Folders of many small files
are made on request only and have a seal of their own. One result of a run is written at a time, under the run's lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake_pipeline.backtest.baseline import BASELINE_SCHEMA, measure_paths
from lake_pipeline.backtest.callers import CALLER_SCHEMA, compute_caller_stats
from lake_pipeline.backtest.code import code_identity
from lake_pipeline.backtest.config import (
    AlertSelection,
    BaselineConfig,
    CallerConfig,
    StrategyConfig,
    canonical_values,
)
from lake_pipeline.backtest.exits import REASONS, stop_levels
from lake_pipeline.backtest.paths import PathBlock, Paths, open_paths
from lake_pipeline.backtest.trades import TRADES_SCHEMA, summarise, trade_paths
from lake_pipeline.core.canonical import canonical_json, sha256_hex
from lake_pipeline.core.manifest import Record, ResultRecord, parse_record
from lake_pipeline.errors import InputError, LakeError, VerificationFailed
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table, write_candles, write_table
from lake_pipeline.io.store import Store, hash_file
from lake_pipeline.run import Run
from lake_pipeline.verify import require_manifest

__all__ = [
    "BaselineResult",
    "Result",
    "StoredResult",
    "StrategyResult",
    "alert_file_names",
    "baseline_result",
    "caller_file_names",
    "file_names",
    "find_or_make",
    "find_result",
    "part_result",
    "per_alert_result",
    "per_caller_result",
    "per_trade_result",
    "result_key",
    "result_keys",
    "run_identity",
    "stored_record",
    "strategy_result",
    "write_per_alert",
    "write_per_caller",
    "write_per_trade",
]

logger = logging.getLogger(__name__)

_BACKTEST: Final = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Result:
    """A sealed result: its record, the store of its folder, and whether it was computed now or found."""

    record: ResultRecord
    store: Store
    created: bool

    @property
    def key(self) -> str:
        """12 hex digits of what decides the content."""
        return self.record.key


@dataclass(frozen=True)
class BaselineResult(Result):
    """A stored baseline with its caller table."""

    def baseline(self) -> pa.Table:
        """The table of BASELINE_SCHEMA."""
        return read_table(self.store, "baseline.parquet", BASELINE_SCHEMA)

    def caller_stats(self) -> pa.Table:
        """The table of CALLER_SCHEMA, by rank."""
        return read_table(self.store, "caller_stats.parquet", CALLER_SCHEMA)


@dataclass(frozen=True)
class StrategyResult(Result):
    """Stored trades of a strategy with their summary."""

    def trades(self) -> pa.Table:
        """The table of TRADES_SCHEMA."""
        return read_table(self.store, "trades.parquet", TRADES_SCHEMA)

    def summary(self) -> dict[str, Any]:
        """The figures of `trades.summarise`."""
        summary: dict[str, Any] = json.loads(self.store.read("summary.json"))
        return summary


StoredResult = BaselineResult | StrategyResult
_STORED: Final[dict[str, type[BaselineResult] | type[StrategyResult]]] = {
    "baseline": BaselineResult,
    "strategy": StrategyResult,
}


def baseline_result(
    lake: Store,
    run: Run,
    config: BaselineConfig = BaselineConfig(),
    callers: CallerConfig = CallerConfig(),
    selection: AlertSelection = AlertSelection(),
    *,
    threads: int = 2,
) -> BaselineResult:
    """The baseline of a sealed run and its caller table, computed unless this very result is there.

    Cached paths are used where there are any, but none are written: one reading does not pay for them. Raises
    RunNotSealed, InputError, and VerificationFailed for a run or a result that is not what was sealed.
    """
    identity = {
        **run_identity(run, selection),
        "parameters": {"baseline": canonical_values(config), "callers": canonical_values(callers)},
        "code": code_identity(f"{_BACKTEST}.baseline", f"{_BACKTEST}.callers"),
    }

    def write(store: Store) -> None:
        paths = open_paths(run, selection, config.horizon_ms, lake=lake, fill_cache=False)
        baseline = measure_paths(paths, config, threads=threads)
        write_table(store, "baseline.parquet", baseline)
        write_table(store, "caller_stats.parquet", compute_caller_stats(baseline, callers))

    return BaselineResult(*find_or_make(lake, run, "baseline", identity, write, threads))


def strategy_result(
    lake: Store,
    run: Run,
    strategy: StrategyConfig = StrategyConfig(),
    config: BaselineConfig = BaselineConfig(),
    selection: AlertSelection = AlertSelection(),
    *,
    threads: int = 2,
) -> StrategyResult:
    """The trades of a strategy and their summary, computed unless this very result is there.

    Cached paths are used, and written where there are none: the next strategy reads no slices. Raises as
    `baseline_result` does.
    """
    identity = {
        **run_identity(run, selection),
        "parameters": {"baseline": canonical_values(config), "strategy": canonical_values(strategy)},
        "code": code_identity(f"{_BACKTEST}.trades"),
    }

    def write(store: Store) -> None:
        paths = open_paths(run, selection, config.horizon_ms, lake=lake)
        trades = trade_paths(paths, strategy, config, threads=threads)
        write_table(store, "trades.parquet", trades)
        store.create("summary.json", canonical_json(summarise(trades, strategy)))

    return StrategyResult(*find_or_make(lake, run, "strategy", identity, write, threads))


def per_alert_result(lake: Store, run: Run, baseline: BaselineResult, paths: Paths, *, threads: int = 2) -> Result:
    """The price action of each alert, in `per_alert` of a stored baseline; `paths` are those it was measured on."""
    return part_result(
        lake, run, baseline, "per_alert", lambda store: write_per_alert(store, paths, threads=threads), threads
    )


def per_caller_result(lake: Store, run: Run, baseline: BaselineResult, *, threads: int = 2) -> Result:
    """The baseline rows of each caller, in `per_caller` of a stored baseline."""

    def write(store: Store) -> None:
        write_per_caller(store, baseline.baseline(), threads=threads)

    return part_result(lake, run, baseline, "per_caller", write, threads)


def per_trade_result(
    lake: Store, run: Run, result: StrategyResult, strategy: StrategyConfig, paths: Paths, *, threads: int = 2
) -> Result:
    """The candles of each trade, in `per_trade` of stored trades; `strategy` and `paths` are those they came from."""

    def write(store: Store) -> None:
        write_per_trade(store, paths, result.trades(), strategy, threads=threads)

    return part_result(lake, run, result, "per_trade", write, threads)


def find_result(lake: Store, prefix: str, run_id: str | None = None, *, threads: int = 2) -> StoredResult:
    """The stored baseline or trades whose key begins with `prefix`, of any run or of the one named, checked as sealed.

    Raises InputError when there is none or when several keys begin so, VerificationFailed for one that was edited.
    """
    found: dict[str, tuple[str, str]] = {}
    runs = [f"run_id={run_id}"] if run_id else lake.folders(layout.RESULTS)
    for run in runs:
        for name in lake.folders(f"{layout.RESULTS}/{run}"):
            kind, _, key = name.partition("=")
            folder = f"{layout.RESULTS}/{run}/{name}"
            if kind in _STORED and key.startswith(prefix) and lake.exists(f"{folder}/{layout.RESULT_RECORD}"):
                found.setdefault(key, (kind, folder))  # of runs with one content, any has the same result
    if len(found) != 1 or not prefix:
        keys = ", ".join(f"{kind}={key}" for key, (kind, _) in sorted(found.items())[:10])
        raise InputError(
            f"{len(found) or 'no'} results under {lake.uri}/{layout.RESULTS} have a key that begins with {prefix!r}"
            f"{f' ({keys}): give more digits' if found else ': `lake baseline` and `lake strategy` print keys'}"
        )
    ((key, (kind, folder)),) = found.items()
    return _STORED[kind](*stored_record(lake.sub(folder), kind, key, threads=threads), created=False)


def stored_record(store: Store, kind: str, key: str, *, threads: int = 2) -> tuple[ResultRecord, Store]:
    """The record of the sealed result in this folder, whatever its kind, and the folder, checked as sealed.

    Raises InputError where there is none, VerificationFailed for one that was edited.
    """
    if not store.exists(layout.RESULT_RECORD):
        raise InputError(f"no sealed result in {store.uri}")
    identity = parse_record(ResultRecord, store.read(layout.RESULT_RECORD), layout.RESULT_RECORD).identity
    if result_key(identity) != key:
        raise _edited(store, [f"{layout.RESULT_RECORD} is not the one of this result"])
    record = _find(store, kind, key, identity, threads)
    if record is None:
        raise InputError(f"the result in {store.uri} was removed meanwhile")
    return record, store


def result_keys(lake: Store, run_id: str, kind: str, content_sha256: str) -> list[str]:
    """Keys of the sealed results of a kind under a run's name that were computed from this content, sorted.

    A run that was deleted and exported again may have results of what it was before; those are left out.
    """
    folder = f"{layout.RESULTS}/run_id={run_id}"
    keys = []
    for name in lake.folders(folder):
        found, _, key = name.partition("=")
        path = f"{folder}/{name}/{layout.RESULT_RECORD}"
        if found == kind and lake.exists(path):
            identity = parse_record(ResultRecord, lake.read(path), path).identity
            if identity.get("content_sha256") == content_sha256:
                keys.append(key)
    return sorted(keys)


def run_identity(run: Run, selection: AlertSelection) -> dict[str, Any]:
    """What the key of every result of a run and a selection begins with."""
    return {"content_sha256": require_manifest(run).content_sha256, "selection": canonical_values(selection)}


def part_result(
    lake: Store,
    run: Run,
    result: Result,
    name: str,
    write: Callable[[Store], None],
    threads: int,
    module: str = __name__,
) -> Result:
    """A folder inside that of a result with a seal of its own, written by `write` of `module` unless it is there.

    One that other code wrote is written anew, as its name does not say by which code it was.
    """
    identity = {"of": result.key, "part": name, "code": code_identity(module)}
    folder = f"{layout.result_folder(run.run_id, result.record.kind, result.key)}/{name}"
    return Result(*find_or_make(lake, run, name, identity, write, threads, folder))


def result_key(identity: dict[str, Any]) -> str:
    """12 hex digits of what decides a result."""
    return sha256_hex(canonical_json(identity))[:12]


def find_or_make(
    lake: Store,
    run: Run,
    kind: str,
    identity: dict[str, Any],
    write: Callable[[Store], None],
    threads: int,
    folder: str | None = None,
) -> tuple[ResultRecord, Store, bool]:
    """The result of this identity: its record, its folder, and whether `write` had to make it.

    Raises VerificationFailed for one that is not what was sealed.
    """
    key = result_key(identity)
    part = folder is not None
    folder = folder or layout.result_folder(run.run_id, kind, key)
    store = lake.sub(folder)
    found = _find(store, kind, key, identity, threads, part=part)
    if found is None:
        with run.store.lock(exclusive=True):
            found = _find(store, kind, key, identity, threads, part=part)  # another process may have been first
            if found is None:
                # What an interrupted attempt or other code left, the seal first, so that nothing refers to the rest.
                for file in sorted(store.files(), key=lambda each: each.path != layout.RESULT_RECORD):
                    store.delete(file.path)
                write(store)
                with ThreadPoolExecutor(threads) as pool:
                    files = list(pool.map(lambda file: hash_file(store, file.path), store.files()))
                record = ResultRecord(kind=kind, key=key, identity=identity, files=files)
                store.create(layout.RESULT_RECORD, record.to_bytes())
                logger.info("%s computed: %s", folder, store.uri)
                return record, store, True
    logger.info("%s is there already and is used: %s", folder, store.uri)
    return found, store, False


def _find(
    store: Store, kind: str, key: str, identity: dict[str, Any], threads: int, *, part: bool = False
) -> ResultRecord | None:
    """The record of a result that is complete and as it was sealed; None where there is no seal.

    Nor is there a record of a `part` whose seal says that other code wrote it.
    """
    if not store.exists(layout.RESULT_RECORD):
        return None
    data = store.read(layout.RESULT_RECORD)
    try:
        record = parse_record(ResultRecord, data, layout.RESULT_RECORD)
    except LakeError as error:
        raise _edited(store, [str(error)]) from error
    if part and record.identity.get("code") != identity["code"] and record.key == result_key(record.identity):
        return None
    if (record.kind, record.key, record.identity) != (kind, key, identity) or record.to_bytes() != data:
        raise _edited(store, [f"{layout.RESULT_RECORD} is not the one of this result"])

    def fault(entry: Record) -> str | None:
        if not store.exists(entry.path):
            return f"{entry.path} is missing"
        return None if hash_file(store, entry.path) == entry else f"{entry.path} has other content than was sealed"

    with ThreadPoolExecutor(threads) as pool:
        faults = [found for found in pool.map(fault, record.files) if found]
    if faults:
        raise _edited(store, faults)
    return record


def _edited(store: Store, faults: Sequence[str]) -> VerificationFailed:
    shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
    return VerificationFailed(
        f"the result in {store.uri} is not what was sealed: {shown}. Move the folder away and run again to compute it "
        "anew",
        faults,
    )


# --- folders of small files ----------------------------------------------------------------------


def write_per_alert(store: Store, paths: Paths, *, threads: int = 1) -> None:
    """One file an alert with a path: `timestamp, open, high, low, close, volume` from the entry candle on."""
    names = alert_file_names("alert", paths.alerts)

    def write_block(block: PathBlock) -> None:
        for index, row in enumerate(block.rows.tolist()):
            path = block.path(index)
            if len(path):
                write_candles(store, names[row], path.table())

    paths.map(write_block, threads)


def write_per_caller(store: Store, baseline: pa.Table, *, threads: int = 1) -> None:
    """One file a caller with a name: that caller's rows of the baseline."""
    column = baseline.column("caller")
    names = caller_file_names(baseline)

    def write_caller(caller: str) -> None:
        write_table(store, names[caller], baseline.filter(pc.equal(column, caller)).combine_chunks())

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write_caller, names))


def caller_file_names(baseline: pa.Table) -> dict[str, str]:
    """The name of each caller's file in a folder of `caller` files, by caller."""
    callers = sorted({name for name in baseline.column("caller").to_pylist() if name and name.strip()}, key=str.encode)
    return dict(zip(callers, file_names("caller", [(caller,) for caller in callers]), strict=True))


def write_per_trade(
    store: Store, paths: Paths, trades: pa.Table, strategy: StrategyConfig, *, threads: int = 1
) -> None:
    """One file a trade: its candles from entry to exit, with the levels that were active in each.

    The columns of the price action, then `stop_level` and `stop_reason` (null without a stop), and `tp_level`.
    """
    names = alert_file_names("trade", paths.alerts)
    exit_ts = trades.column("exit_ts_utc").cast(pa.int64()).fill_null(-1).to_numpy()

    def write_block(block: PathBlock) -> None:
        for index, row in enumerate(block.rows.tolist()):
            if exit_ts[row] >= 0:
                path = block.path(index)
                levels = stop_levels(path, strategy)
                unstopped = levels.stop <= 0
                target = np.full(len(path), path.open[0] * (strategy.tp or np.nan))
                table = path.table()
                table = table.append_column("stop_level", pa.array(levels.stop, mask=unstopped))
                reasons = pa.array(np.array(REASONS)[levels.reason], pa.string(), mask=unstopped)
                table = table.append_column("stop_reason", reasons)
                table = table.append_column("tp_level", pa.array(target, mask=np.isnan(target)))
                candles = int(np.searchsorted(path.ts, exit_ts[row], side="right"))
                write_candles(store, names[row], table.slice(0, candles).combine_chunks())

    paths.map(write_block, threads)


def alert_file_names(prefix: str, alerts: pa.Table) -> list[str]:
    """The name of each alert's file in a folder of `alert` or `trade` files, in the alerts' order."""
    mints = [mint[:8] for mint in alerts.column("mint").to_pylist()]
    return file_names(prefix, list(zip(alerts.column("alert_id").to_pylist(), mints, strict=True)))


_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.-]")
_LONGEST_NAME: Final = 120


def file_names(prefix: str, parts: Sequence[tuple[str, ...]]) -> list[str]:
    """`<prefix>_<part>_<part>.parquet` for each tuple, in order: safe on every file system, no two the same.

    What is not a letter, digit, dot or hyphen becomes `_`. A name that lost something by that, or is too long, or is
    that of another tuple (in any case of letters), gets `-` and 8 hex digits of the SHA-256 of its parts.
    """
    plain = ["_".join((prefix, *(_UNSAFE.sub("_", part) for part in each))) for each in parts]
    count: dict[str, int] = {}
    for name in plain:
        count[name.casefold()] = count.get(name.casefold(), 0) + 1
    names = []
    for each, name in zip(parts, plain, strict=True):
        exact = name == "_".join((prefix, *each)) and len(name) <= _LONGEST_NAME and count[name.casefold()] == 1
        digest = hashlib.sha256("\0".join(each).encode()).hexdigest()[:8]
        names.append(f"{name}.parquet" if exact else f"{name[:_LONGEST_NAME]}-{digest}.parquet")
    return names
