"""What a run is: its settings, validated once, and the identity derived from them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.core.canonical import canonical_json, sha256_hex
from lake_pipeline.core.chains import canonical_chain
from lake_pipeline.core.window import check_window_span, interval_to_seconds, parse_window_spec
from lake_pipeline.errors import ConfigError

__all__ = ["LAKE_VERSION", "Compression", "RunSpec", "check_run_id", "derive_run_id", "run_fingerprint"]

LAKE_VERSION: Final = "v1"
Compression = Literal["zstd", "snappy", "none"]
Int64Array = npt.NDArray[np.int64]
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_DAY_MS: Final = 86_400_000


def check_run_id(run_id: str) -> str:
    """Return `run_id` if it is a safe folder name; raise ConfigError otherwise."""
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigError(
            f"run_id {run_id!r} is not usable: 1 to 128 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return run_id


@dataclass(frozen=True)
class RunSpec:
    """The settings that decide a run's content, in canonical form.

    `from_day` and `to_day` are UTC days, both inclusive. `min_required_pre` and `target_total` are
    candles; they default to the window's N and N+M. Raises ConfigError for a value that cannot work.
    """

    interval: str
    window: str
    chain: str = "solana"
    compression: Compression = "zstd"
    target_file_mb: int = 512
    strict_coverage: bool = False
    min_required_pre: int | None = None
    target_total: int | None = None
    from_day: dt.date | None = None
    to_day: dt.date | None = None
    interval_s: int = field(init=False, repr=False, compare=False)
    pre: int = field(init=False, repr=False, compare=False)
    post: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pre, post = parse_window_spec(self.window)
        check_window_span(self.interval, self.window)
        min_required_pre = pre if self.min_required_pre is None else self.min_required_pre
        target_total = pre + post if self.target_total is None else self.target_total
        if not 0 <= min_required_pre <= pre:
            raise ConfigError(
                f"min_required_pre {min_required_pre} can never be reached: window {self.window} has {pre} "
                f"candles before the alert; give 0 to {pre}"
            )
        if not 0 <= target_total <= pre + 1 + post:
            raise ConfigError(
                f"target_total {target_total} can never be reached: window {self.window} has {pre + 1 + post} "
                f"candles; give 0 to {pre + 1 + post}"
            )
        if self.compression not in get_args(Compression):
            raise ConfigError(f"compression {self.compression!r} is not one of {', '.join(get_args(Compression))}")
        if not 1 <= self.target_file_mb <= 65_536:
            raise ConfigError(f"target_file_mb {self.target_file_mb} is not between 1 and 65536")
        if not canonical_chain(self.chain):
            raise ConfigError("chain is empty: name the chain of this run, such as solana")
        if self.from_day and self.to_day and self.from_day > self.to_day:
            raise ConfigError(f"the date range is empty: from {self.from_day} is after to {self.to_day}")
        derived = {
            "interval": self.interval.lstrip("0"),
            "window": f"pre{pre}_post{post}",
            "chain": canonical_chain(self.chain),
            "min_required_pre": min_required_pre,
            "target_total": target_total,
            "interval_s": interval_to_seconds(self.interval),
            "pre": pre,
            "post": post,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def required_pre(self) -> int:
        """`min_required_pre` with its default filled in."""
        return cast(int, self.min_required_pre)

    @property
    def required_total(self) -> int:
        """`target_total` with its default filled in."""
        return cast(int, self.target_total)

    @property
    def range_ms(self) -> tuple[int | None, int | None]:
        """The date range as `[from, to)` in ms; None where open."""

        def day_start_ms(day: dt.date) -> int:
            return (day - dt.date(1970, 1, 1)).days * _DAY_MS

        return (
            day_start_ms(self.from_day) if self.from_day else None,
            day_start_ms(self.to_day) + _DAY_MS if self.to_day else None,
        )

    @property
    def window_candles(self) -> int:
        """How many candles a full window has."""
        return self.pre + 1 + self.post

    def anchors(self, alerts: pa.Table) -> Int64Array:
        """Open time (ms) of the candle each of these alerts falls into."""
        interval_ms = self.interval_s * 1000
        times: Int64Array = alerts.column("ts").cast(pa.int64()).to_numpy()
        return times // interval_ms * interval_ms

    def windows(self, anchors: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Start and end (ms) of the windows around these anchors, `[start, end)`."""
        interval_ms = self.interval_s * 1000
        return anchors - self.pre * interval_ms, anchors + (self.post + 1) * interval_ms

    def canonical(self) -> dict[str, Any]:
        """Every setting with its default filled in, as JSON values; what is hashed and stored."""
        values = {name: value for name, value in asdict(self).items() if name not in ("interval_s", "pre", "post")}
        for name in ("from_day", "to_day"):
            values[name] = values[name].isoformat() if values[name] else None
        return values

    @classmethod
    def from_canonical(cls, values: Mapping[str, Any]) -> RunSpec:
        """The inverse of `canonical`; raises ConfigError for values it could not have written."""
        fields = dict(values)
        try:
            for name in ("from_day", "to_day"):
                fields[name] = dt.date.fromisoformat(fields[name]) if fields[name] else None
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a run spec: {error}") from error


def run_fingerprint(spec: RunSpec, alerts_digest: str, source: Mapping[str, Any]) -> str:
    """SHA-256 over the spec, the digest of the normalised alerts and the source's identity.

    Time, host, threads and paths are not part of it.
    """
    return sha256_hex(
        canonical_json(
            {
                "lake_version": LAKE_VERSION,
                "spec": spec.canonical(),
                "alerts_digest": alerts_digest,
                "source": dict(source),
            }
        )
    )


def derive_run_id(spec: RunSpec, fingerprint: str) -> str:
    """The run_id of a run that was not given one: `<interval>-<window>-<12 hex of the fingerprint>`."""
    return f"{spec.interval}-{spec.window}-{fingerprint[:12]}"
