"""Canonical bytes and digests: the one place that decides how a value becomes bytes to store or hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["canonical_json", "checksum_lines", "root_hash", "sha256_hex", "table_digest"]


def canonical_json(value: Any) -> bytes:
    """UTF-8, sorted keys, two-space indent, final newline; NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 lowercase hex digits."""
    return hashlib.sha256(data).hexdigest()


def checksum_lines(files: Iterable[tuple[str, str]]) -> str:
    """`<sha256>  <path>\\n` lines of (path, sha256) pairs, sorted by path as bytes: what `sha256sum` prints."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(files, key=lambda file: file[0].encode()))


def root_hash(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the `checksum_lines` of these files, so that `grep ... SHA256SUMS | sha256sum` computes it."""
    return sha256_hex(checksum_lines(files).encode())


def table_digest(table: pa.Table) -> str:
    """SHA-256 over the values of a table of string, timestamp and integer columns.

    Covers column names, row order, nulls and values; not chunking, dictionaries or the library's version.
    Each column adds its name, then per row a little-endian int64 (the value, or the UTF-8 length of a
    string, 0 where null), then one byte per row (1 where null), then the strings' bytes joined.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # combine_chunks of zero chunks
            column = pa.array([], column.type)
        digest.update(name.encode() + b"\0")
        text = b""
        if pa.types.is_string(column.type):
            numbers = pc.binary_length(column)
            text = "".join(column.drop_null().to_pylist()).encode()
        else:
            numbers = column.cast(pa.int64())
        digest.update(np.asarray(pc.fill_null(numbers.cast(pa.int64()), 0), dtype="<i8").tobytes())
        digest.update(np.asarray(pc.is_null(column), dtype=np.uint8).tobytes())
        digest.update(text)
    return digest.hexdigest()
