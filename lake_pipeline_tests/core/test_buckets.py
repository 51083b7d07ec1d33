from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.core.buckets import ALL_BUCKETS, compute_mint_bucket, format_buckets

SOL = "So11111111111111111111111111111111111111112"
USDC = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"


def test_compute_mint_bucket_deterministic() -> None:
    assert compute_mint_bucket(SOL) == compute_mint_bucket(SOL) == "35"
    code = f"from lake_pipeline import compute_mint_bucket as b; print(b({SOL!r}), b({USDC!r}))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["35", "9a"]


@given(st.text(min_size=1, max_size=60))
def test_compute_mint_bucket_range(mint: str) -> None:
    bucket = compute_mint_bucket(mint)
    assert len(bucket) == 2
    assert bucket == bucket.lower()
    assert 0 <= int(bucket, 16) <= 255
    assert bucket in ALL_BUCKETS
    assert bucket == f"{hashlib.sha1(mint.encode()).digest()[0]:02x}"


@pytest.mark.parametrize(("mint", "bucket"), [(SOL, "35"), (USDC, "9a")])
def test_known_mints_are_in_their_known_buckets(mint: str, bucket: str) -> None:
    assert compute_mint_bucket(mint) == bucket


def test_the_bucket_of_a_mint_depends_on_its_case() -> None:
    assert compute_mint_bucket(USDC.lower()) != compute_mint_bucket(USDC)


def test_there_are_256_buckets_in_order() -> None:
    assert len(ALL_BUCKETS) == 256
    assert list(ALL_BUCKETS) == sorted(ALL_BUCKETS)
    assert (ALL_BUCKETS[0], ALL_BUCKETS[255]) == ("00", "ff")


@pytest.mark.parametrize(
    ("buckets", "text"),
    [
        ([], ""),
        (["0a"], "0a"),
        (["00", "01"], "00, 01"),
        (["00", "01", "02"], "00..02"),
        (["ff", "00", "03", "02", "04", "00"], "00, 02..04, ff"),
        (ALL_BUCKETS, "00..ff"),
        (ALL_BUCKETS[1:], "01..ff"),
    ],
)
def test_buckets_in_messages_are_folded_from_three_on(buckets: list[str], text: str) -> None:
    assert format_buckets(buckets) == text


@given(st.sets(st.sampled_from(ALL_BUCKETS)))
def test_folded_buckets_name_exactly_the_buckets_given(buckets: set[str]) -> None:
    named: set[str] = set()
    for part in filter(None, format_buckets(buckets).split(", ")):
        first, _, last = part.partition("..")
        named |= {f"{n:02x}" for n in range(int(first, 16), int(last or first, 16) + 1)}
    assert named == buckets
