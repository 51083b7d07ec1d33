"""Mint buckets: the 256 static partitions of every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from lake_pipeline.errors import ConfigError

__all__ = ["ALL_BUCKETS", "check_buckets", "compute_mint_bucket", "format_buckets"]

ALL_BUCKETS: Final = tuple(f"{byte:02x}" for byte in range(256))


def compute_mint_bucket(mint: str) -> str:
    """First byte of SHA-1(mint, UTF-8) as two lowercase hex digits, `00`..`ff`."""
    # SHA-1 spreads keys here; nothing rests on its strength.
    return hashlib.sha1(mint.encode(), usedforsecurity=False).hexdigest()[:2]


def check_buckets(buckets: Iterable[str]) -> None:
    """Raise ConfigError unless all of these are buckets."""
    unknown = [bucket for bucket in buckets if bucket not in ALL_BUCKETS]
    if unknown:
        raise ConfigError(f"{', '.join(map(repr, unknown[:5]))} is not a bucket: buckets are 00 to ff")


def format_buckets(buckets: Iterable[str]) -> str:
    """Buckets for a message, runs of three and more folded: `00, 02..ff`."""
    numbers = sorted({int(bucket, 16) for bucket in buckets})
    parts: list[str] = []
    position = 0
    while position < len(numbers):
        end = position
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        span = [f"{number:02x}" for number in numbers[position : end + 1]]
        parts.extend([f"{span[0]}..{span[-1]}"] if len(span) > 2 else span)
        position = end + 1
    return ", ".join(parts)
