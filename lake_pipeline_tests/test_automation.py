"""What schedules and sensors decide, as plain functions of the store, the time and a cursor."""

from __future__ import annotations

import datetime as dt
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lake_pipeline.automation import (
    AutomationSettings,
    InboxFile,
    buckets_per_run,
    complete_runs,
    day_of_tick,
    day_to_catch_up,
    days_to_catch_up,
    failure_message,
    last_window_end,
    look_into_inbox,
    post_message,
    read_cursor,
    write_cursor,
)
from lake_pipeline.errors import ConfigError, LakeError, NotConfigured
from lake_pipeline.io.store import LocalStore, open_store
from lake_pipeline.run import Run

NOW = dt.datetime(2026, 11, 21, 0, 15, tzinfo=dt.UTC)
RUN_CONFIG = {"alerts": "alerts/{day}.csv", "interval": "1m", "window": "pre10_post20", "threads": 1}


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., AutomationSettings]:
    """Settings with a file of run settings, which keyword arguments change; None leaves one out."""

    def make(environ: Mapping[str, str] | None = None, **changes: Any) -> AutomationSettings:
        path = tmp_path / "run.json"
        values = {name: value for name, value in (RUN_CONFIG | changes).items() if value is not None}
        path.write_text(json.dumps(values))
        return AutomationSettings.from_environment({"LAKE_RUN_CONFIG": str(path), **(environ or {})})

    return make


# --- settings --------------------------------------------------------------------------------------


def test_nothing_set_is_the_day_before_and_a_week_to_catch_up():
    settings = AutomationSettings.from_environment({"LAKE_INBOX": "", "LAKE_LAG_DAYS": ""})
    assert settings == AutomationSettings()
    assert (settings.lag_days, settings.catch_up_days) == (1, 7)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "٣", "99999"])
@pytest.mark.parametrize("name", ["LAKE_LAG_DAYS", "LAKE_CATCH_UP_DAYS"])
def test_a_number_of_days_that_is_none_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        AutomationSettings.from_environment({name: value})


def test_catching_up_must_reach_back_to_days_that_are_due():
    with pytest.raises(ConfigError, match="LAKE_CATCH_UP_DAYS 3 is less than LAKE_LAG_DAYS 4"):
        AutomationSettings.from_environment({"LAKE_CATCH_UP_DAYS": "3", "LAKE_LAG_DAYS": "4"})


def test_the_run_of_a_day_has_its_file_its_range_and_its_name(settings_of):
    config = settings_of().of_day(dt.date(2026, 11, 20))
    assert config.alerts == "alerts/2026-11-20.csv"
    assert config.run_id == "nightly_2026-11-20"
    assert config.spec().range_ms == (1_795_132_800_000, 1_795_219_200_000)
    assert (config.interval, config.window, config.threads) == ("1m", "pre10_post20", 1)


def test_one_file_may_hold_all_days(settings_of):
    assert settings_of(alerts="alerts.duckdb").of_day(NOW.date()).alerts == "alerts.duckdb"


def test_without_run_settings_the_message_shows_what_to_write():
    with pytest.raises(NotConfigured, match=r'LAKE_RUN_CONFIG is not set.*"window": "pre52_post4948"'):
        AutomationSettings().of_day(NOW.date())
    with pytest.raises(NotConfigured, match="LAKE_INBOX is not set"):
        AutomationSettings().inbox_store()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_id": "mine"}, "sets run_id, which has no place there: it follows from the day or the file"),
        ({"data_root": "/lake"}, "set LAKE_DATA_ROOT"),
        ({"from_day": "2026-01-01"}, "it follows from the day"),
        ({"previous": "x"}, "it differs from run to run"),
        ({"windw": "x"}, "unknown windw. The settings are "),
        ({"window": None}, "window: Field required"),
        ({"alerts": None}, "has no `alerts`"),
        ({"threads": 0}, "threads"),
    ],
)
def test_run_settings_that_cannot_do_are_refused_naming_them(settings_of, changes, said):
    with pytest.raises(ConfigError, match=said):
        settings_of(**changes).of_day(NOW.date())


def test_settings_of_the_backtest_are_checked_by_name_and_value(tmp_path):
    path = tmp_path / "backtest.json"
    settings = AutomationSettings(backtest_config=str(path))
    path.write_text('{"baseline_settings": {"horizon_hours": 12}, "strategy_settings": {"tp": 3.0}}')
    assert settings.backtest() == {"baseline_settings": {"horizon_hours": 12}, "strategy_settings": {"tp": 3.0}}
    assert AutomationSettings().backtest() == {}
    for text, said in (
        ('{"strategy": {}}', "strategy is not one of baseline_settings, strategy_settings"),
        ('{"strategy_settings": {"take": 2}}', "take: "),
        ("[]", "one JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            settings.backtest()


def test_buckets_per_run_is_a_number_of_buckets_or_not_there():
    assert buckets_per_run({}) is None
    assert buckets_per_run({"LAKE_BUCKETS_PER_RUN": " "}) is None
    assert buckets_per_run({"LAKE_BUCKETS_PER_RUN": "256"}) == 256
    for value in ("0", "257", "all", "-1", "1e2"):
        with pytest.raises(ConfigError, match="LAKE_BUCKETS_PER_RUN"):
            buckets_per_run({"LAKE_BUCKETS_PER_RUN": value})


# --- days ------------------------------------------------------------------------------------------


def test_the_day_of_a_tick_is_a_utc_day_whatever_the_zone_of_the_tick():
    early = dt.datetime(2026, 11, 21, 1, 0, tzinfo=dt.timezone(dt.timedelta(hours=9)))
    assert day_of_tick(early, 1) == dt.date(2026, 11, 19)
    assert day_of_tick(NOW, 1) == dt.date(2026, 11, 20)
    assert day_of_tick(NOW, 5) == dt.date(2026, 11, 16)


def test_days_to_catch_up_are_oldest_first_and_end_where_windows_are_not_over():
    settings = AutomationSettings(lag_days=2, catch_up_days=4)
    assert days_to_catch_up(NOW, settings) == [dt.date(2026, 11, day) for day in (17, 18, 19)]


def test_the_last_window_ends_a_windows_length_after_the_last_alert(settings_of):
    config = settings_of(window="pre52_post4948").of_day(dt.date(2026, 11, 20))
    # The last alert is at 23:59:59.999, in the candle of 23:59; 4948 candles follow that one.
    assert last_window_end(config) == dt.datetime(2026, 11, 21, tzinfo=dt.UTC) + dt.timedelta(minutes=4948)


@pytest.fixture
def alerts_of(tmp_path: Path, settings_of) -> Callable[..., AutomationSettings]:
    """Settings whose alerts are a file a day, of which these days have one; three days are looked at."""

    def make(*days: int) -> AutomationSettings:
        for day in days:
            (tmp_path / f"2026-11-{day}.csv").touch()
        return settings_of({"LAKE_CATCH_UP_DAYS": "3"}, alerts=f"{tmp_path}/{{day}}.csv")

    return make


def sealed(lake: LocalStore, *days: int) -> None:
    for day in days:
        lake.create(f"lake/runs/run_id=nightly_2026-11-{day}/manifest.json", b"{}")


def test_the_oldest_unsealed_day_comes_first(lake, alerts_of):
    settings = alerts_of(18, 19, 20)
    sealed(lake, 18)
    config, _, tried = day_to_catch_up(lake, settings, NOW, {})
    assert config
    assert config.run_id == "nightly_2026-11-19"
    assert tried == {"2026-11-19": "2026-11-21"}


def test_a_day_that_failed_lets_the_next_one_pass_and_is_tried_again_the_day_after(lake, alerts_of):
    settings = alerts_of(18, 19, 20)
    order, tried = [], {}
    for _ in range(4):
        config, reason, tried = day_to_catch_up(lake, settings, NOW, tried)
        order.append(config.run_id if config else reason)
    assert order[:3] == [f"nightly_2026-11-{day}" for day in (18, 19, 20)]
    assert order[3] == (
        "0 of 3 days sealed, 2026-11-18 to 2026-11-20; tried today and not sealed, to be tried again tomorrow: "
        "2026-11-18, 2026-11-19, 2026-11-20"
    )
    config, _, tried = day_to_catch_up(lake, settings, NOW + dt.timedelta(days=1), tried)
    assert config
    assert config.run_id == "nightly_2026-11-19"
    assert "2026-11-18" not in tried  # too old by now


def test_a_day_waits_for_its_own_file(lake, alerts_of):
    settings = alerts_of(20)
    config, _, tried = day_to_catch_up(lake, settings, NOW, {})
    assert config
    assert config.run_id == "nightly_2026-11-20"
    sealed(lake, 20)
    config, reason, _ = day_to_catch_up(lake, settings, NOW, tried)
    assert config is None
    assert reason == "1 of 3 days sealed, 2026-11-18 to 2026-11-20; no alerts file yet for 2026-11-18, 2026-11-19"


# --- the inbox -------------------------------------------------------------------------------------


@dataclass
class Inbox:
    """An inbox and what was seen of it."""

    store: Any
    seen: dict[str, dict[str, str]] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Paths that are ready; the cursor goes through its text as it does in Dagster."""
        self.found = look_into_inbox(self.store, self.seen)
        self.seen = read_cursor(write_cursor(self.found.seen))
        return [file.path for file in self.found.ready]


@pytest.fixture(params=["folder", "bucket"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> Inbox:
    if request.param == "folder":
        return Inbox(LocalStore(tmp_path / "inbox"))
    return Inbox(open_store(request.getfixturevalue("s3_url")))


def test_a_file_is_ready_once_it_stays_as_it_is_and_again_when_it_changes(inbox):
    assert inbox.look() == []
    inbox.store.replace("a.csv", b"one")
    assert inbox.look() == []
    inbox.store.replace("a.csv", b"one and more")
    assert inbox.look() == []
    assert inbox.look() == ["a.csv"]
    (file,) = inbox.found.ready
    assert file.sha256 == hashlib.sha256(b"one and more").hexdigest()
    assert file.uri == f"{inbox.store.uri}/a.csv"
    assert inbox.look() == []
    inbox.store.replace("a.csv", b"other")
    inbox.look()
    assert inbox.look() == ["a.csv"]
    assert inbox.found.ready[0].sha256 != file.sha256


def test_a_file_that_went_away_and_came_back_is_looked_at_again(inbox):
    inbox.store.replace("a.csv", b"one")
    inbox.look()
    assert inbox.look() == ["a.csv"]
    inbox.store.delete("a.csv")
    inbox.look()
    assert inbox.seen == {}
    inbox.store.replace("a.csv", b"one")
    inbox.look()
    assert inbox.look() == ["a.csv"]


def test_other_kinds_of_files_are_ignored_and_named(inbox):
    for name in ("notes.txt", "sub/a.PARQUET", ".hidden.csv", ".lake-tmp-1.csv"):
        inbox.store.replace(name, b"x")
    inbox.look()
    assert inbox.look() == ["sub/a.PARQUET"]
    assert set(inbox.found.ignored) == {"notes.txt", ".hidden.csv", ".lake-tmp-1.csv"}
    assert "1 files known, 0 to be looked at again, 3 ignored" in inbox.found.summary()


def test_many_files_take_several_looks_and_none_is_lost_or_seen_twice(tmp_path):
    inbox = Inbox(LocalStore(tmp_path))
    names = [f"{number:03d}.csv" for number in range(45)]
    for name in names:
        inbox.store.replace(name, name.encode(), durable=False)
    looks = [inbox.look() for _ in range(5)]
    assert [len(look) for look in looks] == [0, 20, 20, 5, 0]
    assert [path for look in looks for path in look] == names


def test_a_file_that_cannot_be_read_is_named_tried_again_and_holds_up_no_other(tmp_path):
    inbox = Inbox(LocalStore(tmp_path))
    inbox.store.replace("a.csv", b"x")
    (tmp_path / "b.csv").symlink_to("nowhere")
    inbox.look()
    assert inbox.look() == ["a.csv"]
    assert "there is no such file" in inbox.found.summary()
    (tmp_path / "nowhere").write_text("x")
    assert inbox.look() == ["b.csv"]


def test_the_run_of_a_file_is_named_by_its_name_content_and_settings(settings_of):
    file = InboxFile("sub/May calls.csv", "/inbox/sub/May calls.csv", "ab" * 32)
    config = settings_of().of_file(file)
    assert config.alerts == "/inbox/sub/May calls.csv"
    assert config.run_id
    assert config.run_id.startswith("inbox_May-calls_")
    digest = config.run_id.rpartition("_")[2]
    renamed = settings_of(alerts=None).of_file(InboxFile("b.csv", "/inbox/b.csv", "ab" * 32))
    assert renamed.run_id == f"inbox_b_{digest}"
    for other in (
        settings_of(interval="5m").of_file(file),
        settings_of().of_file(InboxFile(file.path, file.uri, "cd" * 32)),
    ):
        assert other.run_id
        assert not other.run_id.endswith(digest)


def test_an_inbox_that_is_no_folder_is_said_to_be_none(tmp_path):
    for value, said in (
        (str(tmp_path / "nowhere"), "is not a folder: create it"),
        ("ftp://host/x", "LAKE_INBOX cannot be used: .*of no known kind"),
    ):
        with pytest.raises(ConfigError, match=said):
            AutomationSettings(inbox=value).inbox_store()


# --- sealing ---------------------------------------------------------------------------------------


def test_a_run_is_complete_with_the_last_receipt_and_known_as_sealed_after_the_seal(exported: Run, sealed_lake):
    lake = LocalStore(exported.store.root.parents[2])  # type: ignore[attr-defined]
    complete, unfinished, done = complete_runs(lake, [])
    assert [run.run_id for run in complete] == ["plain"]
    assert (unfinished, done) == ({}, [])
    exported.store.delete("receipts/mint_bucket=35.json")
    complete, unfinished, done = complete_runs(lake, [])
    assert (complete, unfinished, done) == ([], {"plain": "1 of 256 buckets missing"}, [])
    assert complete_runs(sealed_lake, [])[2] == ["plain", "strict"]


def test_a_seal_is_looked_for_once_and_a_run_that_was_deleted_is_forgotten(exported: Run):
    lake = LocalStore(exported.store.root.parents[2])  # type: ignore[attr-defined]
    assert complete_runs(lake, ["plain", "gone"])[2] == ["plain"]


def test_the_state_of_a_run_changes_with_every_export_and_names_who_took_part(exported: Run):
    from lake_pipeline.io.provenance import append_event

    lake = LocalStore(exported.store.root.parents[2])  # type: ignore[attr-defined]
    before = complete_runs(lake, [])[0][0]
    assert before.dagster_run_ids == []
    append_event(exported.store, "candles", {"dagster_run_id": "one"})
    append_event(exported.store, "candles", {"dagster_run_id": "two"})
    append_event(exported.store, "candles", {"dagster_run_id": "one"})
    after = complete_runs(lake, [])[0][0]
    assert after.dagster_run_ids == ["one", "two"]
    assert after.state != before.state
    append_event(exported.store, "manifest", {"dagster_run_id": "three"})
    assert complete_runs(lake, [])[0][0] == after


def test_a_run_whose_history_cannot_be_read_holds_up_no_other(exported: Run):
    lake = LocalStore(exported.store.root.parents[2])  # type: ignore[attr-defined]
    exported.store.replace("provenance.json", b"not JSON")
    complete, unfinished, _ = complete_runs(lake, [])
    assert complete == []
    assert "is not readable" in unfinished["plain"]


# --- cursors and messages --------------------------------------------------------------------------


def test_a_cursor_somebody_else_wrote_is_refused_with_what_to_do():
    assert read_cursor(None) == {}
    assert read_cursor(write_cursor({"a": "b"})) == {"a": "b"}
    for text in ("17", "not JSON", "[]"):
        with pytest.raises(ConfigError, match="reset it"):
            read_cursor(text)


def test_the_message_of_a_failure_names_job_runs_steps_and_causes():
    message = failure_message("export_run", "0af3", "nightly_2026-11-20", {"candles": "1 of 256 buckets failed"})
    assert message == (
        "export_run failed: lake run nightly_2026-11-20, Dagster run 0af3\ncandles: 1 of 256 buckets failed"
    )
    assert "derived from the content" in failure_message("export_run", "0af3", None, {})


@dataclass
class Webhook:
    """A chat on loopback: what it was told, and what it answers."""

    url: str
    told: list[dict[str, str]]
    status: int = 200


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hook = Webhook(f"http://127.0.0.1:{server.server_port}/secret-part", [])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hook
        server.shutdown()


def test_a_message_is_posted_as_text(webhook):
    post_message(webhook.url, "it failed\ncandles: 35")
    assert webhook.told == [{"text": "it failed\ncandles: 35"}]


def test_a_webhook_that_does_not_take_it_is_an_error_without_its_address(webhook):
    webhook.status = 403
    for url in (webhook.url, "http://127.0.0.1:1/secret-part", "file:///secret-part"):
        with pytest.raises(LakeError, match="LAKE_FAILURE_WEBHOOK") as caught:
            post_message(url, "x")
        assert "secret-part" not in str(caught.value)
