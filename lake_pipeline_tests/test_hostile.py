"""Input made to hurt: an error of our own tree or success, nothing written outside the run, no SQL but ours."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lake_pipeline.core.alerts import RawAlerts, normalise_alerts
from lake_pipeline.core.manifest import Manifest, Receipt, RunRecord, parse_record
from lake_pipeline.core.spec import RunSpec, check_run_id
from lake_pipeline.errors import ConfigError, InputError, LakeError, SourceError
from lake_pipeline.export import load_alerts
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.layout import run_folder
from lake_pipeline.io.load import load_candles
from lake_pipeline.io.store import LocalStore
from lake_pipeline.reader import OpenRun, open_run
from lake_pipeline.run import load_run
from lake_pipeline.settings import LakeSettings, RunSettings, SourceSettings, parse_settings
from lake_pipeline.verify import verify_run
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    Alert,
    Candle,
    create_table,
    sealed_run,
    sha1_bucket,
    write_alerts,
)
from lake_pipeline_tests.conftest import SourceFactory

SPEC = RunSpec("1m", "pre2_post3")

HOSTILE = {
    "quotes": "it's \"quoted\" `here`",
    "an end of a string": "x'); DROP TABLE canary; --",
    "backslashes": "back\\slash\\' \\0 \\",
    "a newline": "two\nlines\r\nand more",
    "NUL": "be\0fore",
    "a path": "../../../escaped",
    "an encoded path": "%2e%2e%2fescaped",
    "a placeholder": "{chains:Array(String)} %(x)s {0} $1 ?",
    "emoji": "🚀🌕👩‍👩‍👧",
    "right to left": "\u202egnp.exe\u200f\u2066",
    "combining": "e\u0301 is not é",
    "a formula": "=HYPERLINK(\"http://127.0.0.1\";\"x\")",
    "long": "Ω" * 5_000,
    "a BOM": "\ufeffmint",
    "markup": "[bold]x[/bold] <b>&amp;</b>",
}  # fmt: skip


def written_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- names and values ------------------------------------------------------------------------------


def test_mints_callers_and_ids_of_any_characters_go_through_the_whole_run_as_they_are(
    lake: LocalStore, engine: ClickHouseSource, source_of: SourceFactory, table: str, tmp_path: Path
) -> None:
    engine.call(
        "make a canary", lambda client: client.command("CREATE TABLE IF NOT EXISTS canary (x UInt8) ENGINE Log")
    )
    texts = list(HOSTILE.values())
    create_table(engine, table, [Candle(text, T0_MS + n * 60_000, volume=n) for text in texts for n in range(4)])
    # As Parquet: CSV cannot hold a NUL and strips none of the rest.
    alerts = pa.table(
        {
            "alert_id": texts,
            "mint": texts,
            "ts": [T0_MS + 120_000] * len(texts),
            "caller": texts,
            "chain": ["SOL"] * len(texts),
        }
    )
    pq.write_table(alerts, tmp_path / "alerts.parquet")
    with_source = source_of(table)
    run = sealed_run(lake, with_source, str(tmp_path / "alerts.parquet"), SPEC, "hostile")
    assert verify_run(run.store, "hostile").faults == []
    opened = OpenRun(run)
    for text in texts:
        assert opened.slice(text).column("volume").to_pylist() == [0, 1, 2, 3], text
        assert opened.candles(text).column("mint").to_pylist() == [text] * 4
    assert sorted(opened.coverage().column("caller").to_pylist()) == sorted(texts)
    assert written_below(tmp_path) - {"alerts.parquet"} == {
        path for path in written_below(tmp_path) if path.startswith("data/lake/runs/run_id=hostile/")
    }
    engine.call("look for the canary", lambda client: client.command("SELECT count() FROM canary"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_table_database_or_column_name_is_a_name_and_never_sql(source_of: SourceFactory, text: str) -> None:
    for source in (source_of(text), source_of("t", database=text), source_of("t", columns={"open": text})):
        with pytest.raises(LakeError):
            source.table()


@pytest.mark.parametrize("text", ["t; DROP TABLE canary", "t WHERE 1", "system.one", "a`.`b", "(SELECT 1)"])
def test_a_table_name_with_sql_in_it_is_not_found(source_of: SourceFactory, text: str) -> None:
    with pytest.raises(SourceError, match=r"the table does not exist|refused the query"):
        source_of(text).table()


@pytest.mark.parametrize(
    "text", [*HOSTILE.values(), "..", ".", "", "/", "a/b", "a\\b", "-x", "x" * 129, "x ", "é", "a\n"]
)
def test_a_run_id_cannot_leave_its_folder(lake: LocalStore, tmp_path: Path, text: str) -> None:
    for action in (check_run_id, run_folder, lambda name: load_run(lake, name), lambda name: open_run(name, tmp_path)):
        with pytest.raises(LakeError):
            action(text)
    assert written_below(tmp_path) == set()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".duckdb"])
def test_a_file_name_of_any_characters_is_told_to_be_missing(
    tmp_path: Path, source_of: SourceFactory, name: str, suffix: str
) -> None:
    path = str(tmp_path / f"{name}{suffix}")
    with pytest.raises(InputError):
        load_alerts(SPEC, path)
    if suffix != ".duckdb":
        with pytest.raises(InputError):
            load_candles(source_of("nowhere"), [path], chain="solana", interval_s=60)


# --- files -----------------------------------------------------------------------------------------


def test_formulas_and_crlf_and_bom_in_a_csv_are_text(tmp_path: Path) -> None:
    path = tmp_path / "alerts.csv"
    path.write_bytes(f"\ufeffmint,ts,caller\r\n=1+1,{T0_MS},@SUM(A1)\r\n-2,{T0_MS},+cmd|' /C calc'!A0\r\n".encode())
    alerts = load_alerts(SPEC, str(path)).alerts
    assert sorted(alerts.column("mint").to_pylist()) == ["-2", "=1+1"]
    assert sorted(alerts.column("caller").to_pylist()) == ["+cmd|' /C calc'!A0", "@SUM(A1)"]


@pytest.mark.parametrize(
    "columns",
    [
        {"mint": [[1]], "ts": [T0_MS]},
        {"mint": [{"a": 1}], "ts": [T0_MS]},
        {"mint": ["m"], "ts": [[T0_MS]]},
        {"mint": ["m"], "ts": [True]},
        {"mint": ["m"], "ts": [b"\xff"]},
        {"mint": [b"\xff\xfe"], "ts": [T0_MS]},
        {"mint": pa.array([], pa.string()), "ts": pa.array([], pa.int64())},
        {"mint": pa.nulls(1), "ts": pa.nulls(1)},
        {"mint": ["m"], "ts": pa.array([dt.time(1)])},
        {"mint": ["m"], "ts": pa.array([dt.timedelta(1)])},
        {"mint": ["m"], "ts": [2**63 - 1]},
        {"mint": ["m"], "ts": [-(2**63)]},
        {"mint": ["m"], "ts": pa.array([2**64 - 1], pa.uint64())},
        {"mint": ["m"], "ts": [1e308]},
        {"mint": ["m"], "ts": pa.array([2**62], pa.timestamp("s"))},
        {"mint": ["m"], "ts": pa.array([-(2**62)], pa.timestamp("ms", "UTC"))},
        {"mint": ["m"], "ts": pa.array([2**62], pa.timestamp("ns"))},
        {"mint": ["m"], "ts": pa.array([2**31 - 1], pa.date32())},
        {"mint": ["m"], "ts": pa.array([0], pa.date64())},
        {"mint": ["m"], "ts": ["9" * 10_000]},
        {"mint": ["m"], "ts": ["-0001-01-01T00:00:00"]},
        {"mint": ["m"], "ts": ["0001-01-01T00:00:00+14:00"]},
        {"mint": ["m"], "ts": ["9999-12-31T23:59:59-14:00"]},
        {"mint": ["m"], "ts": ["١٧٤٦٠٥٧٦٠٠"]},
        {"mint": pa.array(["m"], pa.large_string()), "ts": pa.array(["1"], pa.string_view())},
        {"mint": pa.array(["m"], pa.string_view()), "ts": [T0_MS]},
        {"mint": pa.array([b"m"], pa.binary_view()), "ts": [T0_MS]},
        {"mint": pa.array(["m"]).dictionary_encode(), "ts": pa.array([T0_MS]).dictionary_encode()},
    ],
)  # fmt: skip
def test_alerts_of_strange_types_and_times_are_refused_rejected_or_read(columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    try:
        normalised = normalise_alerts(RawAlerts(table, range(1, table.num_rows + 1), {}), SPEC)
    except InputError:
        return
    assert normalised.alerts.num_rows == 1


@pytest.mark.parametrize(("year", "usable"), [(1969, False), (1970, True), (2262, True), (2299, True), (2300, False)])
def test_times_of_the_first_and_last_years_are_exported(
    lake: LocalStore,
    engine: ClickHouseSource,
    source_of: SourceFactory,
    table: str,
    tmp_path: Path,
    year: int,
    usable: bool,
) -> None:
    ts_ms = int(dt.datetime(year, 1, 1, tzinfo=dt.UTC).timestamp() * 1000)
    create_table(engine, table, [Candle("m", max(ts_ms, 0) + n * 60_000) for n in range(3)] if usable else [])
    csv = write_alerts(tmp_path / "alerts.csv", [Alert("a", "m", ts_ms)])
    csv_text = Path(csv).read_text().replace(str(ts_ms), dt.datetime(year, 1, 1).isoformat())
    Path(csv).write_text(csv_text)
    if not usable:
        with pytest.raises(InputError, match="outside 1970-01-01"):
            load_alerts(SPEC, csv)
        return
    run = sealed_run(lake, source_of(table), csv, SPEC, "years")
    assert verify_run(run.store, "years").faults == []
    assert OpenRun(run).slice("a").num_rows == 3


def _corrupt(kind: str, data: bytes) -> bytes:
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return {
        "empty": b"",
        "only the magic": b"PAR1PAR1",
        "no footer": data[:footer],
        "half": data[: len(data) // 2],
        "a footer of zeros": data[:footer] + b"\0" * (len(data) - 8 - footer) + data[-8:],
        "a footer that is said to be huge": data[:-8] + b"\xff\xff\xff\x7f" + data[-4:],
        "pages of noise": b"PAR1" + b"\x99" * (footer - 4) + data[footer:],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "empty", "only the magic", "no footer", "half", "a footer of zeros", "a footer that is said to be huge",
        "pages of noise",
    ],
)  # fmt: skip
def test_a_corrupt_parquet_file_is_refused_as_alerts_and_as_candles(
    tmp_path: Path, source_of: SourceFactory, table: str, kind: str
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"mint": ["m"] * 100, "ts": list(range(T0_MS, T0_MS + 100))}), path)
    path.write_bytes(_corrupt(kind, path.read_bytes()))
    with pytest.raises(InputError):
        load_alerts(SPEC, str(path))
    with pytest.raises(InputError):
        load_candles(source_of(table), [str(path)], chain="solana", interval_s=60)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"mint": pa.string(), "ts": pa.int64()}, "has no rows"),
        ({"mint": pa.null(), "ts": pa.null()}, "'ts' holds null values"),
        ({}, "no mint column"),
    ],
)
def test_a_parquet_file_without_rows_is_refused_as_alerts_and_as_candles(
    tmp_path: Path, source_of: SourceFactory, columns: dict[str, pa.DataType], said: str
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({name: pa.array([], type_) for name, type_ in columns.items()}), path)
    with pytest.raises(InputError, match=said):
        load_alerts(SPEC, str(path))
    with pytest.raises(InputError):
        load_candles(source_of("nowhere"), [str(path)], chain="solana", interval_s=60)


_MANY = 300_000
_LOAD_MANY = (
    "import resource, sys\n"
    "from lake_pipeline.core.plan import build_plan\n"
    "from lake_pipeline.core.spec import RunSpec\n"
    "from lake_pipeline.errors import InputError\n"
    "from lake_pipeline.export import load_alerts\n"
    "peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
    "before, spec = peak_mb(), RunSpec('1m', 'pre2_post3')\n"
    "try:\n"
    "    said = len(build_plan(load_alerts(spec, sys.argv[1]).alerts, spec).mints)\n"
    "except InputError as error:\n"
    "    said = error\n"
    "print(peak_mb() - before, said)\n"
)


@pytest.mark.parametrize(
    ("ids", "ts", "said"),
    [
        (None, pa.array(range(T0_MS, T0_MS + _MANY)), "100"),
        (None, pa.array(["never"] * _MANY), f"all {_MANY} alerts were rejected: {_MANY} x time 'never' does not parse"),
        (["x"] * _MANY, pa.array([T0_MS] * _MANY), "1 alert ids are not unique: 'x' in rows 1, 2, 3"),
    ],
    ids=["usable", "without a time", "of one id"],
)  # fmt: skip
def test_a_parquet_file_of_very_many_alerts_takes_memory_in_proportion_and_has_a_clear_result(
    tmp_path: Path, ids: list[str] | None, ts: pa.Array, said: str
) -> None:
    path = tmp_path / "many.parquet"
    mints = pa.array([f"mint-{number % 100:040d}" for number in range(_MANY)])
    pq.write_table(pa.table({"mint": mints, "ts": ts, **({"id": ids} if ids else {})}), path)
    done = subprocess.run([sys.executable, "-c", _LOAD_MANY, str(path)], capture_output=True, text=True, check=True)
    peak_mb, _, found = done.stdout.partition(" ")
    assert found.startswith(said)
    assert len(found) < 400
    assert int(peak_mb) * 1_000_000 < _MANY * 800


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    ["pre999999999_post1", "pre0_post999999999999", "pre-1_post1", "pre\u0661_post1", "pre0_post0 ", "PRE0_POST0"],
)
def test_an_absurd_window_is_refused(window: str) -> None:
    with pytest.raises(ConfigError):
        RunSpec("1m", window)


def test_a_window_of_the_alerts_own_candle_alone_is_exported(
    lake: LocalStore, engine: ClickHouseSource, source_of: SourceFactory, table: str, tmp_path: Path
) -> None:
    create_table(engine, table, [Candle("m", T0_MS + n * 60_000) for n in range(-2, 3)])
    csv = write_alerts(tmp_path / "alerts.csv", [Alert("a", "m", T0_MS)])
    run = sealed_run(lake, source_of(table), csv, RunSpec("1m", "pre0_post0"), "own")
    assert OpenRun(run).slice("a").num_rows == 1
    assert verify_run(run.store, "own").ok


@pytest.mark.parametrize(
    "interval", ["0s", "1w", "\u0661m", "-1m", "1", "m", "", "1M", "99999999999d", "1m\n", " 1m", "1e3s"]
)
def test_an_interval_that_is_none_is_refused(interval: str) -> None:
    with pytest.raises(ConfigError):
        RunSpec(interval, "pre1_post1")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(list(HOSTILE.values())),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.parametrize("model", [RunSettings, SourceSettings, LakeSettings])
@given(data=st.data())
def test_settings_of_any_values_are_understood_or_refused(model: Any, data: st.DataObject) -> None:
    names = st.sampled_from([*model.model_fields, "unknown"])
    values = data.draw(st.dictionaries(names, _JSON | st.sampled_from(["1m", "pre1_post1", "2025-05-01", "zstd"])))
    if model is RunSettings:
        values = {"interval": "1m", "window": "pre1_post1", "alerts": "a.csv", **values}
    try:
        settings = parse_settings(model, values)
        if isinstance(settings, RunSettings):
            settings.spec()
    except LakeError:
        pass


@given(values=st.dictionaries(st.sampled_from([*SPEC.canonical(), "more"]), _JSON), keep=st.booleans())
@example(values={"target_file_mb": "1"}, keep=True)
@example(values={"chain": None}, keep=True)
@example(values={"interval": 60}, keep=True)
@example(values={"window": None}, keep=True)
@example(values={"min_required_pre": float("nan")}, keep=True)
@example(values={"compression": []}, keep=True)
@example(values={"from_day": 5}, keep=True)
def test_a_stored_spec_of_any_values_is_understood_or_refused(values: dict[str, Any], keep: bool) -> None:
    with contextlib.suppress(ConfigError):
        RunSpec.from_canonical({**SPEC.canonical(), **values} if keep else values)


# --- fuzz ------------------------------------------------------------------------------------------

_CELL = st.one_of(
    st.sampled_from([str(T0_MS), "2025-05-01T00:00:00Z", "m1", "m2", "solana", ""]),
    st.text(max_size=12),
    st.sampled_from(list(HOSTILE.values())),
)


@given(
    header=st.lists(st.sampled_from(["mint", "ts", "caller", "chain", "alert_id", "MINT", ""]), min_size=1, max_size=6),
    rows=st.lists(st.lists(_CELL, max_size=6), max_size=6),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    quoted=st.booleans(),
    bom=st.booleans(),
)  # fmt: skip
def test_any_csv_is_read_or_refused_and_no_row_gets_lost(
    tmp_path_factory: pytest.TempPathFactory,
    header: list[str],
    rows: list[list[str]],
    ending: str,
    quoted: bool,
    bom: bool,
) -> None:
    def line(cells: list[str]) -> str:
        return ",".join('"' + cell.replace('"', '""') + '"' if quoted else cell for cell in cells)

    path = tmp_path_factory.mktemp("csv") / "alerts.csv"
    text = ending.join(map(line, [header, *rows]))
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", errors="surrogatepass"))
    try:
        found = load_alerts(SPEC, str(path))
    except LakeError:
        return
    assert found.rows_in == found.alerts.num_rows + found.rejected.num_rows + found.outside_range


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_alerts_or_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("a.csv", "a.parquet", "a.duckdb"):
        (folder / name).write_bytes(data)
        with pytest.raises(LakeError):
            load_alerts(SPEC, str(folder / name))


@pytest.mark.parametrize("model", [RunRecord, Receipt, Manifest])
@given(data=st.binary(max_size=100) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_no_record(model: Any, data: bytes) -> None:
    with pytest.raises(LakeError):
        parse_record(model, data, "x")


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, each in inner for path in _paths(each, (*at, key)))]


@pytest.fixture(scope="module")
def small_run(engine: ClickHouseSource, tmp_path_factory: pytest.TempPathFactory, request: Any) -> OpenRun:
    """A sealed run of one alert; put back what you change."""
    from lake_pipeline.io.clickhouse import SourceConfig

    create_table(engine, "for_fuzz", [Candle("m", T0_MS + n * 60_000) for n in range(4)])
    folder = tmp_path_factory.mktemp("fuzz")
    csv = write_alerts(folder / "alerts.csv", [Alert("a", "m", T0_MS + 120_000)])
    with ClickHouseSource(SourceConfig(engine.config.embedded_path, table="for_fuzz")) as source:
        return OpenRun(sealed_run(LocalStore(folder / "data"), source, csv, SPEC, "fuzz"))


@pytest.mark.parametrize(
    "name", ["manifest.json", "run.json", f"receipts/mint_bucket={sha1_bucket('m')}.json", "provenance.json"]
)
@given(data=st.data())
def test_a_record_with_any_value_anywhere_is_refused_or_named(
    small_run: OpenRun, name: str, data: st.DataObject
) -> None:
    """Through everything that reads it: verify, open, read. Files elsewhere are neither read nor written."""
    path = Path(small_run.path, name)
    whole = path.read_bytes()
    document = json.loads(whole)
    *way, last = data.draw(st.sampled_from(_paths(document)[1:]))
    parent = document
    for key in way:
        parent = parent[key]
    before = parent[last]
    escapes = st.sampled_from(["../../../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5_000, "", ".", "..", "receipts"])
    parent[last] = data.draw(_JSON | escapes)
    root = Path(small_run.path).parents[3]
    files = written_below(root)
    try:
        path.write_bytes(json.dumps(document).encode())
        faults = verify_run(LocalStore(Path(small_run.path)), "fuzz").faults
        if name != "provenance.json":
            assert faults, (way, last, before, parent[last])
            assert any(name in fault or "manifest.json" in fault for fault in faults)
        try:
            run = open_run("fuzz", Path(small_run.path).parents[2])
            run.coverage()
            run.slice("a")
        except LakeError:
            pass
    finally:
        path.write_bytes(whole)
    assert written_below(root) == files
