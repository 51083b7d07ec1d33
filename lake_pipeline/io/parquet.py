"""Parquet as the format wants it: fixed encodings, fixed row groups, the same bytes for the same rows."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lake_pipeline.core.manifest import FileEntry
from lake_pipeline.core.schemas import SLICE_SCHEMA
from lake_pipeline.core.spec import LAKE_VERSION, RunSpec
from lake_pipeline.errors import StoreError
from lake_pipeline.io.layout import part_path
from lake_pipeline.io.store import Sink, Store

__all__ = [
    "ROW_GROUP_ROWS",
    "SliceWriter",
    "decode_table",
    "parquet_table",
    "read_table",
    "table_bytes",
    "write_candles",
    "write_table",
]

ROW_GROUP_ROWS: Final = 122_880
_ZSTD_LEVEL: Final = 3
# A part over its target waits this much longer for a mint to end before it closes inside one.
_OVERSHOOT: Final = 1.25
_FOOTER: Final = {"lake_format": LAKE_VERSION}
# Doubles of neighbouring candles share their high bytes, and sorted times their differences: these two
# encodings let zstd see it. A dictionary pays only where values repeat. The Arrow schema is not stored:
# it would make readers treat mint as a dictionary, which slows filtered reads several times.
_OPTIONS: Final[dict[str, Any]] = {"store_schema": False, "version": "2.6", "write_statistics": True}
_SLICE_OPTIONS: Final[dict[str, Any]] = {
    **_OPTIONS,
    "use_dictionary": ["mint", "interval_s", "source"],
    "column_encoding": {
        "ts": "DELTA_BINARY_PACKED",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "BYTE_STREAM_SPLIT"),
    },
}


def write_table(store: Store, path: str, table: pa.Table, *, ts_column: str | None = None) -> FileEntry:
    """Write a small table as a new file; `ts_column` (ms) gives the entry its time range."""
    with store.writer(path) as sink:
        _write(sink, table, _OPTIONS)
    low, high = _ts_range(table, ts_column) if ts_column else (None, None)
    return FileEntry(
        path=path, sha256=sink.sha256, bytes=sink.tell(), rows=table.num_rows, min_ts_ms=low, max_ts_ms=high
    )


def write_candles(store: Store, path: str, table: pa.Table) -> None:
    """Write a table of candles in order of time as a new file, encoded column by column as slices are.

    Not durable (see `Store.writer`): for the many files of a result, whose seal holds their hashes.
    """
    columns = {field.name: field.type for field in table.schema}
    encodings = {
        **{name: "DELTA_BINARY_PACKED" for name, type_ in columns.items() if pa.types.is_timestamp(type_)},
        **{name: "BYTE_STREAM_SPLIT" for name, type_ in columns.items() if pa.types.is_floating(type_)},
    }
    dictionaries = [name for name in columns if name not in encodings]
    with store.writer(path, durable=False) as sink:
        _write(sink, table, {**_OPTIONS, "use_dictionary": dictionaries, "column_encoding": encodings})


def table_bytes(table: pa.Table) -> bytes:
    """The exact bytes `write_table` writes for a table."""
    buffer = pa.BufferOutputStream()
    _write(buffer, table, _OPTIONS)
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def _write(sink: Any, table: pa.Table, options: dict[str, Any]) -> None:
    with pq.ParquetWriter(
        sink, table.schema.with_metadata(None), compression="zstd", compression_level=_ZSTD_LEVEL, **options
    ) as writer:
        writer.add_key_value_metadata(_FOOTER)
        writer.write_table(table.replace_schema_metadata(None), row_group_size=ROW_GROUP_ROWS)


def read_table(store: Store, path: str, schema: pa.Schema) -> pa.Table:
    """A whole file with the given schema. Raises StoreError when it is not such a file."""
    return decode_table(store.read(path), schema, f"{store.uri}/{path}")


def decode_table(data: bytes, schema: pa.Schema, name: str) -> pa.Table:
    """The table of a file's bytes; `name` is how errors call it. Raises StoreError when it is not such a file."""
    try:
        table = parquet_table(data)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{name} is not a readable Parquet file: {error}") from error
    if not table.schema.equals(schema):
        raise StoreError(f"{name} has other columns than {', '.join(schema.names)}")
    return table


def parquet_table(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table of a file's bytes, or some columns of it, read by this thread alone. Raises what pyarrow does.

    A thread of Arrow's own that lets go of Python's memory while the interpreter ends kills the process, or leaves it
    hanging where the embedded engine catches the signal.
    """
    # Not `pq.read_table`, whose datasets cost a small file twice the time.
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(columns=columns, use_threads=False)


def _ts_range(table: pa.Table, column: str) -> tuple[int | None, int | None]:
    bounds = pc.min_max(table.column(column).cast(pa.int64())).as_py()
    return bounds["min"], bounds["max"]


class SliceWriter:
    """Writes one bucket's candles into numbered parts; use as a context manager, `files` is the result.

    Feed it tables of SLICE_SCHEMA (or CHUNK_SCHEMA) sorted by (mint, ts), in order, of any size: row groups and
    parts depend on the rows only, not on how they arrive. A part whose size reaches `target_file_mb` closes at
    the next mint boundary, or inside a mint that runs on for a quarter of the target. Nothing is settled (see
    `Store.create`): many buckets are at once.
    """

    def __init__(self, store: Store, spec: RunSpec, bucket: str) -> None:
        self.files: list[FileEntry] = []
        self._store = store
        self._spec = spec
        self._bucket = bucket
        self._target = spec.target_file_mb * 1_000_000
        # A row takes some 33 bytes; small targets need row groups they can be met with.
        self._group_rows = max(1024, min(ROW_GROUP_ROWS, self._target // 64))
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._part: contextlib.ExitStack | None = None
        self._writer: Any = None
        self._sink: Sink | None = None
        self._rows = 0
        self._range: list[int] = []
        self._last_mint: str | None = None

    def __enter__(self) -> SliceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                if self._pending_rows:
                    self._emit(self._take(self._pending_rows))
                self._close_part()
            except BaseException as late:
                self._abandon(type(late), late, late.__traceback__)
                raise
        else:
            self._abandon(kind, error, trace)

    def _abandon(self, kind: type[BaseException] | None, error: BaseException, trace: TracebackType | None) -> None:
        """Let the open part, if any, see the error: its store removes what was written and says what went wrong."""
        if self._part:
            self._part.__exit__(kind, error, trace)

    def write(self, table: pa.Table) -> None:
        """Add the next candles."""
        self._pending.append(table)
        self._pending_rows += table.num_rows
        while self._pending_rows:
            rows = self._group_rows
            if self._size() >= self._target * _OVERSHOOT:
                self._close_part()
            elif self._size() >= self._target:
                boundary = self._rows_of_last_mint()
                if boundary == 0:
                    self._close_part()
                elif boundary < self._pending_rows:
                    rows = min(boundary, self._group_rows)
            if self._pending_rows < rows:
                return
            self._emit(self._take(rows))

    def _size(self) -> int:
        return self._sink.tell() if self._sink else 0

    def _take(self, rows: int) -> pa.Table:
        """The first pending rows, in one chunk: chunks would show in the encoded pages."""
        pending = pa.concat_tables(self._pending)
        self._pending = [pending.slice(rows)]
        self._pending_rows -= rows
        return pending.slice(0, rows).combine_chunks().cast(SLICE_SCHEMA)

    def _rows_of_last_mint(self) -> int:
        """How many pending rows continue the mint that was written last."""
        rows = 0
        for table in self._pending:
            other = pc.index(pc.not_equal(table.column("mint").cast(pa.string()), self._last_mint), True).as_py()
            if other >= 0:
                return rows + int(other)
            rows += table.num_rows
        return rows

    def _emit(self, table: pa.Table) -> None:
        """Write one row group, opening a part if none is open."""
        if self._part is None:
            self._part = part = contextlib.ExitStack()
            path = part_path(self._spec, self._bucket, len(self.files))
            self._sink = part.enter_context(self._store.writer(path, settled=False))
            compression = self._spec.compression
            self._writer = part.enter_context(
                pq.ParquetWriter(
                    self._sink,
                    SLICE_SCHEMA,
                    compression=compression,
                    compression_level=_ZSTD_LEVEL if compression == "zstd" else None,
                    **_SLICE_OPTIONS,
                )
            )
            self._writer.add_key_value_metadata(_FOOTER)
            self._rows, self._range = 0, []
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._rows += table.num_rows
        self._range += [bound for bound in _ts_range(table, "ts") if bound is not None]
        self._last_mint = table.column("mint")[-1].as_py()

    def _close_part(self) -> None:
        if self._part is None or self._sink is None:
            return
        part, sink = self._part, self._sink
        self._part = self._writer = self._sink = None
        part.close()
        self.files.append(
            FileEntry(
                path=part_path(self._spec, self._bucket, len(self.files)),
                sha256=sink.sha256,
                bytes=sink.tell(),
                rows=self._rows,
                min_ts_ms=min(self._range),
                max_ts_ms=max(self._range),
            )
        )
