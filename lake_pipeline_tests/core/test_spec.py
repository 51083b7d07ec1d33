from __future__ import annotations

import datetime as dt
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.core.spec import RunSpec, check_run_id, derive_run_id, run_fingerprint
from lake_pipeline.errors import ConfigError

SOURCE = {"database": "default", "table": "ohlcv_candles", "columns": {"open": "open"}}
DIGEST = "ab" * 32


def make(**changes: Any) -> RunSpec:
    return RunSpec(**{"interval": "1m", "window": "pre52_post4948"} | changes)


def test_defaults_are_those_of_the_design() -> None:
    spec = make()
    assert spec.canonical() == {
        "interval": "1m",
        "window": "pre52_post4948",
        "chain": "solana",
        "compression": "zstd",
        "target_file_mb": 512,
        "strict_coverage": False,
        "min_required_pre": 52,
        "target_total": 5000,
        "from_day": None,
        "to_day": None,
    }
    assert (spec.interval_s, spec.pre, spec.post) == (60, 52, 4948)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": "1w"}, "interval '1w' is not a candle length"),
        ({"window": "pre5"}, "window 'pre5' is not of the form pre<N>_post<M>"),
        ({"window": "pre1_post9999999999"}, "spans more than 100 years"),
        ({"min_required_pre": 53}, "min_required_pre 53 can never be reached: window pre52_post4948 has 52 candles"),
        ({"min_required_pre": -1}, "min_required_pre -1 can never be reached"),
        ({"target_total": 5002}, "target_total 5002 can never be reached: window pre52_post4948 has 5001 candles"),
        ({"target_total": -1}, "target_total -1 can never be reached"),
        ({"compression": "gzip"}, "compression 'gzip' is not one of zstd, snappy, none"),
        ({"target_file_mb": 0}, "target_file_mb 0 is not between 1 and 65536"),
        ({"chain": " "}, "chain is empty"),
        (
            {"from_day": dt.date(2025, 5, 2), "to_day": dt.date(2025, 5, 1)},
            "the date range is empty: from 2025-05-02 is after to 2025-05-01",
        ),
    ],
)
def test_a_setting_that_can_never_work_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert message in str(caught.value)


def test_thresholds_the_window_can_just_reach_are_accepted() -> None:
    assert make(min_required_pre=0, target_total=0).required_total == 0
    assert make(min_required_pre=52, target_total=5001).required_total == 5001


def test_spellings_of_the_same_run_are_the_same_spec() -> None:
    assert make(chain="SOL", window="pre052_post04948") == make(min_required_pre=52, target_total=5000)


def test_the_date_range_is_whole_utc_days_both_inclusive() -> None:
    spec = make(from_day=dt.date(2025, 5, 1), to_day=dt.date(2025, 5, 1))
    assert spec.range_ms == (1_746_057_600_000, 1_746_057_600_000 + 86_400_000)
    assert make().range_ms == (None, None)


SPECS = st.builds(
    make,
    interval=st.sampled_from(["1s", "5m", "1d"]),
    window=st.sampled_from(["pre0_post0", "pre3_post4"]),
    chain=st.sampled_from(["SOL", "base", "x"]),
    compression=st.sampled_from(["zstd", "snappy", "none"]),
    target_file_mb=st.integers(1, 1000),
    strict_coverage=st.booleans(),
    from_day=st.none() | st.just(dt.date(2025, 1, 2)),
    to_day=st.none() | st.just(dt.date(2025, 3, 4)),
)


@given(SPECS)
def test_a_spec_survives_its_canonical_form(spec: RunSpec) -> None:
    assert RunSpec.from_canonical(spec.canonical()) == spec


@pytest.mark.parametrize(
    "change", [{"interval": None}, {"from_day": "soon"}, {"extra": 1}, {"target_file_mb": "x"}, {"interval": 5}]
)
def test_a_damaged_canonical_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RunSpec.from_canonical(make().canonical() | change)


@pytest.mark.parametrize("run_id", ["a", "0", "ci-1", "A.b_c-D", "x" * 128, "1m-pre52_post4948-0123456789ab"])
def test_a_plain_run_id_is_accepted(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", "-a", "_a", ".hidden", "a/b", "a b", "a\n", "x" * 129, "é", "٣", "a\\b", "a:b", "run_id=a"],
)
def test_a_run_id_that_is_no_safe_folder_name_is_refused(run_id: str) -> None:
    with pytest.raises(ConfigError, match="is not usable: 1 to 128 letters, digits") as caught:
        check_run_id(run_id)
    assert repr(run_id) in str(caught.value)


@given(one=SPECS, two=SPECS)
def test_fingerprints_are_equal_exactly_for_equal_specs(one: RunSpec, two: RunSpec) -> None:
    same = run_fingerprint(one, DIGEST, SOURCE) == run_fingerprint(two, DIGEST, SOURCE)
    assert same == (one.canonical() == two.canonical())


def test_the_fingerprint_covers_every_setting_the_alerts_and_the_source() -> None:
    base = make()
    changed = {
        "interval": "5m",
        "window": "pre52_post4949",
        "chain": "base",
        "compression": "none",
        "target_file_mb": 1,
        "strict_coverage": True,
        "min_required_pre": 1,
        "target_total": 4,
        "from_day": dt.date(2025, 5, 1),
        "to_day": dt.date(2025, 5, 1),
    }
    assert set(changed) == {field.name for field in fields(RunSpec) if field.init}
    prints = [run_fingerprint(base, DIGEST, SOURCE)]
    prints += [run_fingerprint(make(**{name: value}), DIGEST, SOURCE) for name, value in changed.items()]
    prints.append(run_fingerprint(base, "cd" * 32, SOURCE))
    prints += [run_fingerprint(base, DIGEST, SOURCE | {name: "other"}) for name in SOURCE]
    assert len(set(prints)) == len(prints)
    assert all(len(found) == 64 and set(found) <= set("0123456789abcdef") for found in prints)


def test_a_fingerprint_is_known() -> None:
    assert run_fingerprint(make(), DIGEST, SOURCE)[:16] == "a2ad69569f3d1680"


def test_a_derived_run_id_names_interval_window_and_fingerprint_and_is_usable() -> None:
    run_id = derive_run_id(make(), "0123456789abcdef" * 4)
    assert run_id == "1m-pre52_post4948-0123456789ab"
    assert check_run_id(run_id) == run_id
