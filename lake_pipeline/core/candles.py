"""From source rows to the candles of a lake: order, one row per (mint, ts), sanity, and the ledger.

The order of the steps is the format's: duplicates are resolved first and the surviving row is judged
after. A superseded row must not come back because its successor is bad: the engine may merge it away at
any moment, and the same table has to give the same candles before and after such a merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.core.schemas import REJECTED_CANDLES_SCHEMA, SLICE_SCHEMA

__all__ = [
    "CHUNK_SCHEMA",
    "KEY_TS_BITS",
    "PRICE_COLUMNS",
    "REJECT_REASONS",
    "VALUE_COLUMNS",
    "CandleBlock",
    "Reconciled",
    "candle_keys",
    "candle_table",
    "float_rank",
    "gather_rejected",
    "key_mint",
    "key_ts_ms",
    "reconcile",
    "reject_codes",
]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

PRICE_COLUMNS: Final = ("open", "high", "low", "close")
VALUE_COLUMNS: Final = (*PRICE_COLUMNS, "volume")
# Code 0 is a good candle; otherwise the first rule a candle breaks, in this order, is its reason.
REJECT_REASONS: Final = (
    "",
    "not_finite",  # null, NaN or infinite
    "negative",
    "zero_price",
    "high_below_low",
    "open_outside_low_high",
    "close_outside_low_high",
)

_TEXT: Final = pa.dictionary(pa.int32(), pa.string())
# SLICE_SCHEMA while it is in memory.
CHUNK_SCHEMA: Final = pa.schema(
    [field.with_type(_TEXT) if pa.types.is_string(field.type) else field for field in SLICE_SCHEMA]
)

# (mint index, time) in one sortable integer: 45 bits hold times from 1412 to 2527.
KEY_TS_BITS: Final = 45
_TS_OFFSET: Final = 1 << (KEY_TS_BITS - 1)


def candle_keys(mint: Int64Array, ts_ms: Int64Array) -> Int64Array:
    """One int64 per (mint index, ts) that sorts like the pair; mint indices stay below 2**18."""
    if len(mint) and int(mint.max()) >> (63 - KEY_TS_BITS):
        raise ValueError(f"candle_keys takes mint indices below {1 << (63 - KEY_TS_BITS)}: split the mints")
    return (mint << KEY_TS_BITS) + (ts_ms + _TS_OFFSET)


def key_mint(keys: Int64Array) -> Int64Array:
    """The mint index of each key."""
    return keys >> KEY_TS_BITS


def key_ts_ms(keys: Int64Array) -> Int64Array:
    """The time of each key in ms."""
    return (keys & ((1 << KEY_TS_BITS) - 1)) - _TS_OFFSET


@dataclass(frozen=True)
class CandleBlock:
    """Candles of some mints, one array per column, all of one length.

    `keys` are `candle_keys` over the block's own mint indices; null values are NaN. `source` is an Arrow
    string array or None where the table has no such column; `versions` are the version columns, best
    first, already ordered as int64 (null is the smallest).
    """

    keys: Int64Array
    values: dict[str, Float64Array]
    source: pa.Array | None = None
    versions: tuple[Int64Array, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Int64Array | BoolArray) -> CandleBlock:
        """Rows by index or mask; the version columns have done their work and are dropped."""
        indices = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return CandleBlock(
            keys=self.keys[indices],
            values={name: column[indices] for name, column in self.values.items()},
            source=None if self.source is None else self.source.take(pa.array(indices)),
        )


def candle_table(block: CandleBlock, mints: pa.Array, interval_s: int) -> pa.Table:
    """A block as a table of SLICE_SCHEMA, row for row; `mints[i]` is the name of mint index i.

    Strings are dictionaries still, a tenth of the memory: `cast(SLICE_SCHEMA)` makes them plain.
    """
    return pa.table(
        {
            "mint": pa.DictionaryArray.from_arrays(pa.array(key_mint(block.keys).astype(np.int32)), mints),
            "ts": pa.array(key_ts_ms(block.keys)).cast(SLICE_SCHEMA.field("ts").type),
            "interval_s": pa.array(np.full(len(block), interval_s, dtype=np.int32)),
            **block.values,
            "source": pa.nulls(len(block), _TEXT) if block.source is None else block.source.cast(_TEXT),
        },
        schema=CHUNK_SCHEMA,
    )


def gather_rejected(tables: Sequence[pa.Table]) -> pa.Table:
    """The rejected candles of several buckets as one table, sorted by (mint, ts)."""
    table = pa.concat_tables([REJECTED_CANDLES_SCHEMA.empty_table(), *tables])
    return table.sort_by([("mint", "ascending"), ("ts", "ascending")]).combine_chunks()


@dataclass(frozen=True)
class Reconciled:
    """A block after reconciliation: `candles` and `rejected` sorted and unique by key.

    `reasons[i]` is a code of REJECT_REASONS for `rejected[i]`; `source_rows` and `duplicates` count per
    mint index.
    """

    candles: CandleBlock
    rejected: CandleBlock
    reasons: npt.NDArray[np.int8]
    source_rows: Int64Array
    duplicates: Int64Array


def reconcile(block: CandleBlock, mint_count: int) -> Reconciled:
    """Sort, keep one row per (mint, ts), and set apart the candles that break a sanity rule."""
    source_rows = np.bincount(key_mint(block.keys), minlength=mint_count)
    survivors = _survivors(block)
    unique = block if survivors is None else block.take(survivors)
    codes = reject_codes(unique.values)
    bad = codes > 0
    duplicates = source_rows - np.bincount(key_mint(unique.keys), minlength=mint_count)
    if not bad.any():
        return Reconciled(unique, unique.take(np.empty(0, np.int64)), codes[:0], source_rows, duplicates)
    return Reconciled(unique.take(~bad), unique.take(bad), codes[bad], source_rows, duplicates)


def _survivors(block: CandleBlock) -> Int64Array | None:
    """Row numbers of the surviving rows in key order, or None when the block is that already."""
    keys = block.keys
    if len(keys) < 2 or bool(np.all(keys[1:] > keys[:-1])):
        return None
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equals_previous = np.concatenate(([False], ordered[1:] == ordered[:-1]))
    if not equals_previous.any():
        return order
    equals_next = np.concatenate((equals_previous[1:], [False]))
    contested = order[equals_previous | equals_next]
    # Total order: versions, then every value, then the source; the largest row wins. Least key first.
    ranks = [
        *(version[contested] for version in block.versions),
        *(float_rank(block.values[name][contested]) for name in VALUE_COLUMNS),
    ]
    if block.source is not None:
        ranks.append(_text_rank(block.source.take(pa.array(contested))))
    contested = contested[np.lexsort([*reversed(ranks), keys[contested]])]
    last_of_key = np.concatenate((keys[contested][1:] != keys[contested][:-1], [True]))
    # A contested key has one place in the result: that of its first row.
    order[equals_next & ~equals_previous] = contested[last_of_key]
    survivors: Int64Array = order[~equals_previous]
    return survivors


def float_rank(values: Float64Array) -> Int64Array:
    """Integers that sort like the floats, with -0.0 before 0.0 and every NaN in its place by its bits."""
    bits = np.ascontiguousarray(values).view(np.int64)
    return bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))


def _text_rank(column: pa.Array) -> Int64Array:
    """Integers that sort like the strings bytewise; null is the smallest."""
    encoded = column.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    position = {text: rank for rank, text in enumerate(sorted(texts, key=str.encode))}
    ranks = np.array([*(position[text] for text in texts), -1], dtype=np.int64)
    found: Int64Array = ranks[encoded.indices.fill_null(len(texts)).to_numpy()]
    return found


def reject_codes(values: dict[str, Float64Array]) -> npt.NDArray[np.int8]:
    """Per candle the code of the first sanity rule it breaks, 0 where it breaks none."""
    open_, high, low, close = (values[name] for name in PRICE_COLUMNS)
    finite = np.ones(len(open_), dtype=bool)
    positive = np.ones(len(open_), dtype=bool)
    nonzero = np.ones(len(open_), dtype=bool)
    for name in VALUE_COLUMNS:
        finite &= np.isfinite(values[name])
        positive &= ~(values[name] < 0)
    for name in PRICE_COLUMNS:
        nonzero &= values[name] != 0
    rules = (
        ~finite,
        ~positive,
        ~nonzero,
        high < low,
        (open_ < low) | (open_ > high),
        (close < low) | (close > high),
    )
    codes = np.zeros(len(open_), dtype=np.int8)
    for code in range(len(rules), 0, -1):
        codes[rules[code - 1]] = code
    return codes
