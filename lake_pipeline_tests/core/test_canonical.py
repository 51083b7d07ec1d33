from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.core.canonical import canonical_json, checksum_lines, root_hash, sha256_hex, table_digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


def test_canonical_json_is_sorted_indented_utf8_with_a_final_newline() -> None:
    data = canonical_json({"b": [1, None], "a": "é☃"})
    assert data.decode() == '{\n  "a": "é☃",\n  "b": [\n    1,\n    null\n  ]\n}\n'


@given(JSON)
def test_canonical_json_is_json_of_the_same_value_and_stable(value: object) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data
    assert data.endswith(b"\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": value})


def test_checksum_lines_are_what_sha256sum_prints(tmp_path: Path) -> None:
    contents = {"b/x": b"1", "a": b"", "B": b"2\n"}
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    printed = subprocess.run(["sha256sum", *sorted(contents)], cwd=tmp_path, capture_output=True, check=True).stdout
    lines = checksum_lines((name, sha256_hex(data)) for name, data in contents.items())
    assert lines.encode() == printed
    root = subprocess.run(["sha256sum"], input=printed, capture_output=True, check=True).stdout.split()[0]
    assert root_hash((name, sha256_hex(data)) for name, data in contents.items()) == root.decode()


COLUMN = st.lists(st.none() | st.text(max_size=3), max_size=8)


@given(values=COLUMN, cut=st.integers(0, 8))
def test_a_table_digest_does_not_see_chunks_or_dictionaries(values: list[str | None], cut: int) -> None:
    whole = pa.table({"a": pa.array(values, pa.string())})
    chunked = pa.concat_tables([whole.slice(0, cut), whole.slice(cut), whole.slice(0, 0)])
    assert table_digest(chunked) == table_digest(whole)


@given(one=COLUMN, two=COLUMN)
def test_a_table_digest_tells_tables_apart(one: list[str | None], two: list[str | None]) -> None:
    digests = [table_digest(pa.table({"a": pa.array(values, pa.string())})) for values in (one, two)]
    assert (digests[0] == digests[1]) == (one == two)


def test_a_table_digest_covers_names_nulls_boundaries_and_columns() -> None:
    def digest(**columns: pa.Array) -> str:
        return table_digest(pa.table(columns))

    text, numbers = pa.array(["ab", "c"]), pa.array([0, 1], pa.int64())
    digests = [
        digest(a=text),
        digest(b=text),
        digest(a=pa.array(["a", "bc"])),
        digest(a=pa.array([None, "c"])),
        digest(a=pa.array(["", "c"])),
        digest(a=text, b=numbers),
        digest(b=numbers, a=text),
        digest(a=text, b=pa.array([None, 1], pa.int64())),
        digest(a=text, b=pa.array([1, 0], pa.int64())),
    ]
    assert len(set(digests)) == len(digests)


def test_a_table_digest_is_known() -> None:
    table = pa.table(
        {"id": ["x", None], "ts": pa.array([1, 2], pa.int64()).cast(pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC"))}
    )
    by_hand = b"id\0" + (1).to_bytes(8, "little") + bytes(8) + b"\0\x01" + b"x"
    by_hand += b"ts\0" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"\0\0"
    assert table_digest(table) == sha256_hex(by_hand)
