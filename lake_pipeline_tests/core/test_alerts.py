from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lake_pipeline.core.alerts import NormalisedAlerts, RawAlerts, normalise_alerts
from lake_pipeline.core.schemas import ALERTS_SCHEMA, REJECTED_ALERTS_SCHEMA
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import InputError
from lake_pipeline_tests.candles_for_tests import T0_MS

SPEC = RunSpec("1m", "pre2_post3")
NOON_MS = T0_MS + 12 * 3_600_000  # 2025-05-01T12:00:00Z


def raw(columns: dict[str, Any], unreadable: dict[int, tuple[str, str]] | None = None) -> RawAlerts:
    table = pa.table(columns)
    taken = set(unreadable or {})
    numbers = [number for number in range(1, table.num_rows + len(taken) + 1) if number not in taken]
    return RawAlerts(table, numbers, unreadable or {})


def normalise(columns: dict[str, Any], spec: RunSpec = SPEC) -> NormalisedAlerts:
    return normalise_alerts(raw(columns), spec)


def times_ms(result: NormalisedAlerts) -> list[int]:
    return result.alerts.column("ts").cast(pa.int64()).to_pylist()


def one_time(ts: Any, name: str = "ts") -> int:
    column = ts if isinstance(ts, pa.Array) else [ts]
    [value] = times_ms(normalise({"mint": ["m"], name: column}))
    return value


def one_rejection(ts: Any, name: str = "ts") -> str:
    """The reason of a bad time beside a good one."""
    bad = ts if isinstance(ts, pa.Array) else pa.array([ts])
    good = pa.array(["2025-05-01"], pa.string()).cast(pa.timestamp("ms")) if pa.types.is_timestamp(bad.type) else None
    if good is None:
        good = pa.array([NOON_MS if pa.types.is_integer(bad.type) else str(NOON_MS)]).cast(bad.type)
    result = normalise({"mint": ["m", "m"], name: pa.concat_arrays([good.cast(bad.type), bad])})
    [row] = result.rejected.to_pylist()
    assert row["row_number"] == 2
    return row["reason"]


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert_id", ["alert_id", "id"])
@pytest.mark.parametrize("mint", ["mint", "token_address", "address"])
@pytest.mark.parametrize("ts", ["ts", "timestamp", "ts_ms", "alert_ts_ms"])
@pytest.mark.parametrize("caller", ["caller", "caller_name"])
def test_the_usual_column_names_are_accepted(alert_id: str, mint: str, ts: str, caller: str) -> None:
    result = normalise({alert_id: ["007"], mint: ["MintA"], ts: [NOON_MS], caller: ["bob"], "chain": ["SOL"]})
    assert result.alerts.schema.equals(ALERTS_SCHEMA)
    assert result.rejected.schema.equals(REJECTED_ALERTS_SCHEMA)
    assert times_ms(result) == [NOON_MS]
    [row] = result.alerts.drop(["ts"]).to_pylist()
    assert row == {"alert_id": "007", "mint": "MintA", "caller": "bob", "chain": "solana"}


def test_column_names_are_compared_without_case_and_the_best_name_wins() -> None:
    result = normalise({"Address": ["second"], " MINT ": ["first"], "TS": [NOON_MS], "Caller_Name": ["bob"]})
    assert result.alerts.column("mint").to_pylist() == ["first"]
    assert result.alerts.column("caller").to_pylist() == ["bob"]


@pytest.mark.parametrize(("columns", "role"), [({"ts": [NOON_MS]}, "mint"), ({"mint": ["m"], "when": [1]}, "ts")])
def test_a_missing_column_is_named_with_what_would_do_and_what_is_there(columns: dict[str, Any], role: str) -> None:
    with pytest.raises(InputError, match=f"have no {role} column: name one of {role}, ") as caught:
        normalise(columns)
    for name in columns:
        assert repr(name) in str(caught.value)


def test_a_column_of_lists_is_refused() -> None:
    with pytest.raises(InputError, match="column 'mint' holds list"):
        normalise({"mint": [["m"]], "ts": [NOON_MS]})


def test_a_time_column_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="column 'ts' holds bool values"):
        normalise({"mint": ["m"], "ts": [True]})


# --- values --------------------------------------------------------------------------------------


def test_the_case_of_a_mint_and_leading_zeros_of_an_id_are_preserved() -> None:
    result = normalise({"id": ["000123"], "mint": [" EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v "], "ts": [NOON_MS]})
    [row] = result.alerts.to_pylist()
    assert row["alert_id"] == "000123"
    assert row["mint"] == "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"


@pytest.mark.parametrize(
    "text",
    [
        "2025-05-01T12:00:00Z",
        "2025-05-01T12:00:00+00:00",
        "2025-05-01T08:00:00-04:00",
        "2025-05-01 12:00:00",
        "2025-05-01 12:00:00 UTC",
        "2025-05-01T12:00",
        "2025-05-01T12:00:00.000",
        "2025-05-01T12:00:00.000999Z",
        "20250501T120000Z",
        " 2025-05-01T12:00:00Z ",
        str(NOON_MS),
        f"{NOON_MS}.0",
        f"{NOON_MS}.9",
        str(NOON_MS // 1000),
        f"{NOON_MS // 1000}.0004",
        f"+{NOON_MS // 1000}",
    ],
)
def test_text_times_are_iso_8601_or_epoch_seconds_or_milliseconds(text: str) -> None:
    assert one_time(text) == NOON_MS


def test_a_date_is_its_midnight_utc() -> None:
    assert one_time("2025-05-01") == T0_MS
    assert one_time(pa.array([dt.date(2025, 5, 1)])) == T0_MS


@given(st.integers(0, 4_000_000_000_000))
def test_decimals_of_seconds_in_text_are_exact(ts_ms: int) -> None:
    assert one_time(f"{ts_ms // 1000}.{ts_ms % 1000:03d}") == ts_ms


@given(st.integers(1_000_000_000_000, 4_000_000_000_000))
@example(2_189_061_063_739)  # 2039: 2189061063.739 * 1000 is a little less than the millisecond
def test_float_seconds_give_the_millisecond_they_were_made_from(ts_ms: int) -> None:
    assert one_time(ts_ms / 1000) == ts_ms


@pytest.mark.parametrize(
    "value",
    [
        pa.array([NOON_MS]),
        pa.array([NOON_MS], pa.uint64()),
        pa.array([NOON_MS // 1000], pa.int32()),
        pa.array([float(NOON_MS)]),
        pa.array([NOON_MS / 1000]),
        pa.array([Decimal(NOON_MS)]),
        pa.array([Decimal(NOON_MS) / 1000]),
        pa.array([NOON_MS]).cast(pa.timestamp("ms")),
        pa.array([NOON_MS]).cast(pa.timestamp("ms", "America/New_York")),
        pa.array([NOON_MS * 1000 + 999]).cast(pa.timestamp("us", "UTC")),
        pa.array([NOON_MS * 1_000_000 + 999_999]).cast(pa.timestamp("ns")),
        pa.array([NOON_MS // 1000]).cast(pa.timestamp("s")),
        pa.array(["2025-05-01T12:00:00Z"]).dictionary_encode(),
        pa.array(["2025-05-01T12:00:00Z"], pa.large_string()),
        pa.array([dt.datetime(2025, 5, 1, 8, tzinfo=ZoneInfo("America/New_York"))]),
        pa.array([dt.datetime(2025, 5, 1, 12)]),
    ],
    ids=lambda array: str(array.type),
)
def test_numbers_and_datetimes_with_or_without_a_zone_are_utc_instants(value: pa.Array) -> None:
    assert one_time(value) == NOON_MS


def test_a_column_named_ms_is_milliseconds_however_small() -> None:
    assert one_time(pa.array([5_000]), "ts_ms") == 5_000
    assert one_time("5000", "alert_ts_ms") == 5_000
    assert one_time(pa.array([5_000]), "ts") == 5_000_000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (pa.array([None], pa.string()), "time is empty"),
        ("", "time is empty"),
        ("   ", "time is empty"),
        (pa.array([None], pa.int64()), "time is empty"),
        ("yesterday", "time 'yesterday' does not parse"),
        ("2025-13-01", "time '2025-13-01' does not parse"),
        ("01/05/2025", "does not parse"),
        ("1e9", "time '1e9' does not parse"),
        ("١٢٣٤٥٦٧٨٩٠", "does not parse"),
        ("nan", "does not parse"),
        ("20250501", "reads as a date and as epoch seconds"),
        ("-5", "time is outside 1970-01-01 .. 2299-12-31"),
        (str(NOON_MS * 1000), "time is outside"),
        (pa.array([NOON_MS * 1_000_000]), "epoch micro- or nanoseconds are not accepted"),
        ("9" * 500, "does not parse"),
        ("x" * 500, r"\.\.\.' does not parse"),
    ],
)  # fmt: skip
def test_a_row_whose_time_cannot_be_used_is_rejected_with_the_reason(value: Any, reason: str) -> None:
    assert re.search(reason, one_rejection(value))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e300, -1.0])
def test_a_float_that_is_no_time_is_rejected(bad: float) -> None:
    result = normalise({"mint": ["m", "m"], "ts": [float(NOON_MS), bad]})
    assert result.rejected.column("row_number").to_pylist() == [2]


def test_a_row_without_a_mint_is_rejected_with_its_raw_values() -> None:
    result = normalise({"id": ["1", "2", "3"], "mint": ["m", " ", None], "ts": [str(NOON_MS), "x", "y"]})
    rows = result.rejected.to_pylist()
    assert [(row["row_number"], row["reason"]) for row in rows] == [(2, "mint is empty"), (3, "mint is empty")]
    assert rows[0] | {"mint": " ", "ts": "x", "alert_id": "2"} == rows[0]


@pytest.mark.parametrize("spelling", ["solana", "SOL", "Solana", "sol", " SOLANA ", None, ""])
def test_an_alert_of_the_runs_chain_or_without_one_takes_the_runs(spelling: str | None) -> None:
    result = normalise({"mint": ["m"], "ts": [NOON_MS], "chain": pa.array([spelling], pa.string())})
    assert result.alerts.column("chain").to_pylist() == ["solana"]


def test_an_alert_of_another_chain_is_rejected_naming_both() -> None:
    result = normalise({"mint": ["m", "m", "m"], "ts": [NOON_MS] * 3, "chain": ["SOL", "ETH", "Tron"]})
    assert [(row["row_number"], row["reason"], row["chain"]) for row in result.rejected.to_pylist()] == [
        (2, "chain 'ethereum' is not the run's 'solana'", "ETH"),
        (3, "chain 'tron' is not the run's 'solana'", "Tron"),
    ]


def test_rows_the_reader_could_not_read_are_rejected_in_their_place() -> None:
    given_rows = raw(
        {"mint": ["a", "", "c"], "ts": [NOON_MS] * 3}, {2: ("raw;line", "the row has 1 fields, the header 2")}
    )
    result = normalise_alerts(given_rows, SPEC)
    assert [(row["row_number"], row["reason"]) for row in result.rejected.to_pylist()] == [
        (2, "the row has 1 fields, the header 2"),
        (3, "mint is empty"),
    ]
    assert result.rejected.column("mint").to_pylist() == ["raw;line", ""]
    assert result.rows_in == 4


# --- identity ------------------------------------------------------------------------------------


def test_duplicate_ids_are_an_error_that_names_id_and_rows() -> None:
    with pytest.raises(InputError, match=r"1 alert ids are not unique: 'x' in rows 1, 3\.") as caught:
        normalise({"id": ["x", "y", "x"], "mint": ["a", "b", "c"], "ts": [NOON_MS] * 3})
    assert "Give each alert its own id" in str(caught.value)


def test_an_id_of_very_many_rows_makes_no_endless_message() -> None:
    with pytest.raises(InputError, match=r"'x' in rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 90 more\. Give"):
        normalise({"id": ["x"] * 100, "mint": ["a"] * 100, "ts": [NOON_MS] * 100})


def test_duplicate_ids_outside_the_date_range_are_an_error_too() -> None:
    with pytest.raises(InputError, match="not unique"):
        normalise(
            {"id": ["x", "x"], "mint": ["a", "b"], "ts": [NOON_MS, NOON_MS + 10 * 86_400_000]},
            RunSpec("1m", "pre2_post3", to_day=dt.date(2025, 5, 1)),
        )


def test_an_id_of_a_rejected_row_may_repeat() -> None:
    result = normalise({"id": ["x", "x"], "mint": ["a", ""], "ts": [NOON_MS] * 2})
    assert (result.alerts.num_rows, result.rejected.num_rows) == (1, 1)


IDLESS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from([None, "c", "d"])), min_size=1, max_size=12
)


@given(rows=IDLESS, random=st.randoms(use_true_random=False))
def test_derived_ids_come_from_the_content_and_not_from_the_position(
    rows: list[tuple[str, int, str | None]], random: Any
) -> None:
    def run(ordered: list[tuple[str, int, str | None]]) -> NormalisedAlerts:
        return normalise(
            {
                "mint": [mint for mint, _, _ in ordered],
                "ts": [NOON_MS + ms for _, ms, _ in ordered],
                "caller": pa.array([caller for _, _, caller in ordered], pa.string()),
            }
        )

    shuffled = list(rows)
    random.shuffle(shuffled)
    one, two = run(rows), run(shuffled)
    assert one.alerts.equals(two.alerts)
    assert one.digest == two.digest
    ids = one.alerts.column("alert_id").to_pylist()
    assert len(set(ids)) == len(rows)


def test_equal_rows_without_ids_are_numbered() -> None:
    ids = normalise({"mint": ["a"] * 3, "ts": [NOON_MS] * 3}).alerts.column("alert_id").to_pylist()
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]


def test_a_derived_id_does_not_depend_on_the_date_range_or_on_other_rows() -> None:
    row = {"mint": ["a"], "ts": [NOON_MS], "caller": ["c"]}
    alone = normalise(row).alerts.column("alert_id").to_pylist()
    more = {"mint": ["z", "a"], "ts": [NOON_MS + 86_400_000, NOON_MS], "caller": ["c", "c"]}
    ranged = normalise(more, RunSpec("1m", "pre2_post3", to_day=dt.date(2025, 5, 1)))
    assert ranged.alerts.column("alert_id").to_pylist() == alone


# --- the whole -----------------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "", None]),
        st.sampled_from(["2025-04-30T23:59:59.999Z", "2025-05-01", "2025-05-02T23:59:59Z", "2025-05-03", "x", None]),
        st.sampled_from(["SOL", "eth", None]),
    ),
    max_size=15,
)


@given(ROWS)
def test_every_row_is_an_alert_or_rejected_or_outside_the_range(
    rows: list[tuple[str | None, str | None, str | None]],
) -> None:
    spec = RunSpec("1m", "pre2_post3", from_day=dt.date(2025, 5, 1), to_day=dt.date(2025, 5, 2))
    expected = Counter()
    for mint, ts, chain in rows:
        if not mint or not ts or ts == "x" or chain == "eth":
            expected["rejected"] += 1
        else:
            expected["alerts" if ts in ("2025-05-01", "2025-05-02T23:59:59Z") else "outside"] += 1
    columns = {
        name: pa.array([row[position] for row in rows], pa.string())
        for position, name in enumerate(("mint", "ts", "chain"))
    }
    if not expected["alerts"]:
        with pytest.raises(InputError):
            normalise(columns, spec)
        return
    result = normalise(columns, spec)
    counts = (result.alerts.num_rows, result.rejected.num_rows, result.outside_range)
    assert counts == (expected["alerts"], expected["rejected"], expected["outside"])
    assert result.rows_in == len(rows) == sum(counts)
    numbers = result.rejected.column("row_number").to_pylist()
    assert numbers == sorted(numbers)
    order = list(zip(times_ms(result), result.alerts.column("alert_id").to_pylist(), strict=True))
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("columns", "spec", "message"),
    [
        ({"mint": pa.array([], pa.string()), "ts": pa.array([], pa.int64())}, SPEC, "has no rows"),
        ({"mint": ["", ""], "ts": [NOON_MS] * 2}, SPEC, "all 2 alerts were rejected: 2 x mint is empty"),
        ({"mint": ["m"], "ts": [NOON_MS], "chain": [" Base"]}, SPEC, "Nothing is left to export. .* --chain base$"),
        ({"mint": ["m"] * 2, "ts": [NOON_MS] * 2, "chain": ["a", "b"]}, SPEC, "Nothing is left to export.$"),
        (
            {"mint": ["m"], "ts": [NOON_MS]},
            RunSpec("1m", "pre2_post3", from_day=dt.date(2025, 6, 1)),
            r"none of 1 usable alerts lies in the date range 2025-06-01 to end",
        ),
    ],
)
def test_a_run_without_any_usable_alert_is_refused(columns: dict[str, Any], spec: RunSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalise(columns, spec)
