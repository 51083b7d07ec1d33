from __future__ import annotations

import errno
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.core.manifest import FileEntry
from lake_pipeline.core.schemas import ALERTS_SCHEMA, SLICE_SCHEMA
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import StoreError
from lake_pipeline.io.parquet import ROW_GROUP_ROWS, SliceWriter, read_table, table_bytes, write_table
from lake_pipeline.io.store import LocalStore, Sink, hash_file
from lake_pipeline_tests.candles_for_tests import T0_MS

SPEC = RunSpec("1m", "pre2_post3", target_file_mb=1)
FOLDER = "slices/ohlcv/interval=1m/window=pre2_post3/mint_bucket=07"


def slices(counts: dict[str, int], *, noisy: bool = True, seed: int = 1) -> pa.Table:
    """Rows of a bucket: `counts` candles of each mint, of doubles that do not compress if `noisy`."""
    rng = np.random.default_rng(seed)
    rows = sum(counts.values())
    values = {
        name: rng.random(rows) if noisy else np.full(rows, 1.5) for name in ("open", "high", "low", "close", "volume")
    }
    return pa.table(
        {
            "mint": pa.array([mint for mint, count in counts.items() for _ in range(count)], pa.string()),
            "ts": pa.array([T0_MS + n * 60_000 for count in counts.values() for n in range(count)], pa.int64()).cast(
                pa.timestamp("ms", "UTC")
            ),
            "interval_s": pa.array([60] * rows, pa.int32()),
            **values,
            "source": pa.array([None if n % 3 else "feed" for n in range(rows)], pa.string()),
        },
        schema=SLICE_SCHEMA,
    )


def write(root: Path, tables: list[pa.Table], spec: RunSpec = SPEC) -> list[FileEntry]:
    with SliceWriter(LocalStore(root), spec, "07") as writer:
        for table in tables:
            writer.write(table)
    return writer.files


def mints_of(root: Path, entry: FileEntry) -> list[str]:
    return sorted(set(pq.ParquetFile(root / entry.path).read(["mint"]).column("mint").to_pylist()))


def test_write_partitioned_parquet_creates_buckets(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for bucket in ("00", "7f", "ff"):
        with SliceWriter(store, SPEC, bucket) as writer:
            writer.write(slices({"m": 3}))
    root = tmp_path / "slices/ohlcv/interval=1m/window=pre2_post3"
    assert sorted(path.name for path in root.iterdir()) == ["mint_bucket=00", "mint_bucket=7f", "mint_bucket=ff"]
    assert sorted(path.name for path in root.rglob("*.parquet")) == ["part-0000.parquet"] * 3


def test_parquet_deterministic_naming(tmp_path: Path) -> None:
    table = slices({f"mint-{n}": 9000 for n in range(6)})
    one, two = write(tmp_path / "1", [table]), write(tmp_path / "2", [table])
    assert [entry.path for entry in one] == [f"{FOLDER}/part-{number:04d}.parquet" for number in range(len(one))]
    assert len(one) > 1
    assert one == two


def test_parquet_schema_matches_spec(tmp_path: Path) -> None:
    [entry] = write(tmp_path, [slices({"a": 3, "b": 2})])
    file = pq.ParquetFile(tmp_path / entry.path)
    assert [(field.name, str(field.type)) for field in file.schema_arrow] == [
        ("mint", "string"),
        ("ts", "timestamp[ms, tz=UTC]"),
        ("interval_s", "int32"),
        ("open", "double"),
        ("high", "double"),
        ("low", "double"),
        ("close", "double"),
        ("volume", "double"),
        ("source", "string"),
    ]
    assert file.read().equals(slices({"a": 3, "b": 2}))


def test_the_footer_names_the_format_and_nothing_of_the_run(tmp_path: Path) -> None:
    [entry] = write(tmp_path, [slices({"a": 3})])
    assert pq.ParquetFile(tmp_path / entry.path).metadata.metadata == {b"lake_format": b"v1"}
    assert str(tmp_path).encode() not in (tmp_path / entry.path).read_bytes()


def test_doubles_are_split_by_byte_and_never_in_a_dictionary(tmp_path: Path) -> None:
    [entry] = write(tmp_path, [slices({"a": 2000}, noisy=False)])
    group = pq.ParquetFile(tmp_path / entry.path).metadata.row_group(0)
    encodings = {group.column(n).path_in_schema: group.column(n).encodings for n in range(group.num_columns)}
    for name in ("open", "high", "low", "close", "volume"):
        assert "BYTE_STREAM_SPLIT" in encodings[name]
        assert not {"PLAIN_DICTIONARY", "RLE_DICTIONARY"} & set(encodings[name])
    assert "DELTA_BINARY_PACKED" in encodings["ts"]
    for name in ("mint", "interval_s", "source"):
        assert "RLE_DICTIONARY" in encodings[name]


@pytest.mark.parametrize(("compression", "codec"), [("zstd", "ZSTD"), ("snappy", "SNAPPY"), ("none", "UNCOMPRESSED")])
def test_the_compression_asked_for_is_used(tmp_path: Path, compression: str, codec: str) -> None:
    spec = RunSpec("1m", "pre2_post3", compression=compression)  # type: ignore[arg-type]
    [entry] = write(tmp_path, [slices({"a": 3000}, noisy=False)], spec)
    group = pq.ParquetFile(tmp_path / entry.path).metadata.row_group(0)
    assert {group.column(n).compression for n in range(group.num_columns)} == {codec}


def test_an_entry_says_what_its_file_holds(tmp_path: Path) -> None:
    [entry] = write(tmp_path, [slices({"a": 3, "b": 5})])
    record = hash_file(LocalStore(tmp_path), entry.path)
    assert (entry.sha256, entry.bytes) == (record.sha256, record.bytes)
    assert (entry.rows, entry.min_ts_ms, entry.max_ts_ms) == (8, T0_MS, T0_MS + 4 * 60_000)


def test_a_bucket_without_rows_has_no_file(tmp_path: Path) -> None:
    assert write(tmp_path, []) == []
    assert write(tmp_path, [SLICE_SCHEMA.empty_table()]) == []
    assert list(tmp_path.rglob("*")) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, list[FileEntry]]:
    counts = {"a": 100, "b": 9000, "c": 9000, "d": 14_000, "e": 1, "f": 3000, "g": 45_000, "h": 5000}
    table = slices(counts)
    return table, write(tmp_path_factory.mktemp("whole"), [table])


@given(cuts=st.lists(st.integers(0, 85_101), max_size=12), small=st.integers(0, 40))
def test_the_same_rows_give_the_same_bytes_however_they_arrive(
    tmp_path_factory: pytest.TempPathFactory, whole: tuple[pa.Table, list[FileEntry]], cuts: list[int], small: int
) -> None:
    table, entries = whole
    bounds = sorted({0, table.num_rows, *cuts, *range(small)})
    tables = [table.slice(low, high - low) for low, high in itertools.pairwise(bounds)]
    # Chunks inside one table must not show either.
    if len(tables) > 3:
        tables[1:3] = [pa.concat_tables(tables[1:3])]
    assert write(tmp_path_factory.mktemp("cut"), tables) == entries


@pytest.mark.parametrize("noisy", [True, False])
def test_the_same_rows_give_the_same_bytes_in_row_groups_of_many_pages(tmp_path: Path, noisy: bool) -> None:
    table = slices({"a": 30_000, "b": 50_000, "c": ROW_GROUP_ROWS}, noisy=noisy)
    spec = RunSpec("1m", "pre2_post3")
    whole = write(tmp_path / "whole", [table], spec)
    for size in (777, 10_000, 65_537):
        tables = [table.slice(low, size) for low in range(0, table.num_rows, size)]
        assert write(tmp_path / str(size), tables, spec) == whole


def test_a_part_closes_at_a_mint_boundary_once_it_is_large_enough(
    tmp_path: Path, whole: tuple[pa.Table, list[FileEntry]]
) -> None:
    table, _ = whole
    head = table.slice(0, 32_101)  # a to e
    entries = write(tmp_path, [head])
    assert len(entries) == 2
    first, second = (mints_of(tmp_path, entry) for entry in entries)
    assert set(first) & set(second) == set()
    assert 1_000_000 <= entries[0].bytes < 1_300_000


def test_a_mint_larger_than_the_target_is_split_inside(tmp_path: Path) -> None:
    entries = write(tmp_path, [slices({"huge": 120_000})])
    assert len(entries) > 2
    assert all(1_000_000 <= entry.bytes < 2_000_000 for entry in entries[:-1])
    assert {mint for entry in entries for mint in mints_of(tmp_path, entry)} == {"huge"}
    tables = [pq.ParquetFile(tmp_path / entry.path).read() for entry in entries]
    assert pa.concat_tables(tables).equals(slices({"huge": 120_000}))
    for before, after in itertools.pairwise(entries):
        assert before.max_ts_ms < after.min_ts_ms  # type: ignore[operator]


def test_all_rows_are_there_in_order_across_parts(tmp_path: Path, whole: tuple[pa.Table, list[FileEntry]]) -> None:
    table, _ = whole
    entries = write(tmp_path, [table])
    parts = [pq.ParquetFile(tmp_path / entry.path).read() for entry in entries]
    assert pa.concat_tables(parts).equals(table)
    assert sum(entry.rows for entry in entries) == table.num_rows


def test_row_groups_are_bounded(tmp_path: Path) -> None:
    [entry] = write(tmp_path, [slices({"a": ROW_GROUP_ROWS + 10}, noisy=False)], RunSpec("1m", "pre2_post3"))
    metadata = pq.ParquetFile(tmp_path / entry.path).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [ROW_GROUP_ROWS, 10]


@pytest.mark.parametrize("good", range(4))
@pytest.mark.parametrize("rows", [10, 60_000], ids=["at the end", "on the way"])
def test_a_disk_that_is_full_is_said_to_be_whenever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, good: int
) -> None:
    """Opening a part writes, and so does closing it."""
    written = itertools.count()
    write_whole = Sink.write

    def write_until_full(sink: Sink, data: object) -> int:
        if next(written) >= good:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_whole(sink, data)

    monkeypatch.setattr(Sink, "write", write_until_full)
    with pytest.raises(StoreError, match=r"cannot write .*/part-0000\.parquet: the disk is full"):
        write(tmp_path, [slices({"m": rows})])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_failure_while_writing_leaves_the_open_part_nowhere(tmp_path: Path) -> None:
    writer = SliceWriter(LocalStore(tmp_path), SPEC, "07")

    def fail_half_way() -> None:
        with writer:
            writer.write(slices({"huge": 60_000}))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    left = [file.path for file in LocalStore(tmp_path).files()]
    assert left == [entry.path for entry in writer.files]
    assert len(left) >= 1


# --- small tables --------------------------------------------------------------------------------


def alerts_table() -> pa.Table:
    return pa.table(
        {
            "alert_id": ["1", "2"],
            "mint": ["a", "b"],
            "ts": pa.array([5, 9], pa.int64()).cast(pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC")),
            "caller": pa.array([None, "c"], pa.string()),
            "chain": ["solana", "solana"],
        },
        schema=ALERTS_SCHEMA,
    )


def test_a_small_table_comes_back_as_it_was_and_its_bytes_are_known_beforehand(lake: LocalStore) -> None:
    entry = write_table(lake, "t.parquet", alerts_table(), ts_column="ts")
    assert read_table(lake, "t.parquet", ALERTS_SCHEMA).equals(alerts_table())
    assert lake.read("t.parquet") == table_bytes(alerts_table())
    assert (entry.rows, entry.min_ts_ms, entry.max_ts_ms) == (2, 5, 9)
    assert hash_file(lake, "t.parquet").sha256 == entry.sha256


def test_chunks_of_a_small_table_do_not_show_in_its_bytes() -> None:
    table = alerts_table()
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)]).combine_chunks()
    assert table_bytes(halves) == table_bytes(table)


def test_metadata_of_the_table_does_not_show_in_its_bytes() -> None:
    table = alerts_table()
    marked = table.replace_schema_metadata({"pandas": json.dumps({"x": random.Random(1).random()})})
    assert table_bytes(marked) == table_bytes(table)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all"])
def test_a_file_that_is_no_parquet_is_named(lake: LocalStore, data: bytes) -> None:
    lake.create("t.parquet", data)
    with pytest.raises(StoreError, match=r"t\.parquet is not a readable Parquet file"):
        read_table(lake, "t.parquet", ALERTS_SCHEMA)


def test_a_file_with_other_columns_is_named_with_those_wanted(lake: LocalStore) -> None:
    write_table(lake, "t.parquet", alerts_table().drop(["chain"]))
    with pytest.raises(StoreError, match=r"t\.parquet has other columns than alert_id, mint, ts, caller, chain"):
        read_table(lake, "t.parquet", ALERTS_SCHEMA)
