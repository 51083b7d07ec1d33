"""What the export asks of a candle source, whatever engine answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lake_pipeline.core.candles import CandleBlock
from lake_pipeline.core.plan import Plan
from lake_pipeline.core.spec import RunSpec

__all__ = ["DEFAULT_TABLE", "CandleSource", "RowsFingerprint", "SliceRequest"]

DEFAULT_TABLE: Final = "ohlcv_candles"

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SliceRequest:
    """The windows of some mints: window i belongs to `mints[mint[i]]` and is `[starts[i], ends[i])` ms."""

    spec: RunSpec
    mints: Sequence[str]
    mint: Int64Array
    starts: Int64Array
    ends: Int64Array

    @classmethod
    def of(cls, plan: Plan, indices: Sequence[int]) -> SliceRequest:
        """The request for the plan's mints of these indices, in this order."""
        bounds = [slice(plan.window_offsets[index], plan.window_offsets[index + 1]) for index in indices]
        return cls(
            spec=plan.spec,
            mints=[plan.mints[index] for index in indices],
            mint=np.repeat(np.arange(len(indices)), [bound.stop - bound.start for bound in bounds]),
            starts=np.concatenate([plan.starts[bound] for bound in bounds]),
            ends=np.concatenate([plan.ends[bound] for bound in bounds]),
        )


@dataclass(frozen=True)
class RowsFingerprint:
    """Of each mint of a request: how many rows the source has, and a checksum of them that no order changes."""

    rows: Int64Array
    checksum: npt.NDArray[np.uint64]


class CandleSource(Protocol):
    """A table of candles. Safe to use from several threads at once."""

    def identity(self) -> dict[str, Any]:
        """What the run's fingerprint says of this source: database, table and columns; no host, no secret."""

    def read(self, request: SliceRequest) -> CandleBlock:
        """Every row inside the request's windows, duplicates included, in any order.

        Keys are over the request's own mint indices. Raises SourceError; SourceUnavailable only after
        retries with backoff.
        """

    def fingerprint(self, request: SliceRequest) -> RowsFingerprint:
        """Count and checksum, per mint of the request, of the rows `read` gives. Raises as `read` does."""

    def state(self, start_ms: int, end_ms: int) -> str | None:
        """A fingerprint of the rows in this time range: while it stays the same, so do they.

        It may change although they do not. None where the source cannot vouch for its rows.
        """

    def close(self) -> None:
        """Give back all connections."""
