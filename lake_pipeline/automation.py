"""Runs that nobody starts by hand: which days, which files, which runs to seal, and what to say of a failure.

What belongs here: what the schedules and sensors of `defs` decide. No Dagster and no clock: they hand in the time and
the cursor they were given back, and make run requests of the answer. Settings are environment variables, read when
`AutomationSettings.from_environment` is called.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from lake_pipeline.api import ExportConfig
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.canonical import canonical_json, sha256_hex
from lake_pipeline.errors import ConfigError, LakeError, NotConfigured, RunError
from lake_pipeline.io import layout
from lake_pipeline.io.alerts import ALERT_SUFFIXES, alerts_exist
from lake_pipeline.io.provenance import read_events
from lake_pipeline.io.store import LocalStore, Store, hash_file, open_store
from lake_pipeline.run import list_run_ids
from lake_pipeline.settings import (
    BaselineSettings,
    RunSettings,
    SourceSettings,
    StrategySettings,
    parse_settings,
    read_json_object,
)

__all__ = [
    "AutomationSettings",
    "CompleteRun",
    "InboxFile",
    "InboxLook",
    "buckets_per_run",
    "complete_runs",
    "day_of_tick",
    "day_to_catch_up",
    "days_to_catch_up",
    "failure_message",
    "is_sealed",
    "last_window_end",
    "look_into_inbox",
    "nightly_run_id",
    "post_message",
    "read_cursor",
    "write_cursor",
]

_DAY: Final = "{day}"
# What a tick decides, or what has its place elsewhere.
_NOT_IN_RUN_CONFIG: Final = {
    "run_id": "it follows from the day or the file",
    "from_day": "it follows from the day",
    "to_day": "it follows from the day",
    "previous": "it differs from run to run",
    "data_root": "set LAKE_DATA_ROOT, which sensors read as well",
}


@dataclass(frozen=True)
class AutomationSettings:
    """The environment variables of schedules and sensors.

    `lag_days`: UTC days between a tick and the alerts of its run; 1 is the day before. `catch_up_days`: how many days
    before a tick are looked at. The others are None where they are not set.
    """

    run_config: str | None = None
    inbox: str | None = None
    lag_days: int = 1
    catch_up_days: int = 7
    backtest_config: str | None = None
    failure_webhook: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> AutomationSettings:
        """The settings in effect; an empty variable counts as unset. Raises ConfigError for what is no number."""
        lag_days = _count(environ, "LAKE_LAG_DAYS", cls.lag_days)
        catch_up_days = _count(environ, "LAKE_CATCH_UP_DAYS", cls.catch_up_days)
        if catch_up_days < lag_days:
            raise ConfigError(
                f"LAKE_CATCH_UP_DAYS {catch_up_days} is less than LAKE_LAG_DAYS {lag_days}: no day is old enough to be "
                "exported and young enough to be caught up with"
            )
        return cls(
            run_config=environ.get("LAKE_RUN_CONFIG") or None,
            inbox=environ.get("LAKE_INBOX") or None,
            lag_days=lag_days,
            catch_up_days=catch_up_days,
            backtest_config=environ.get("LAKE_BACKTEST_CONFIG") or None,
            failure_webhook=environ.get("LAKE_FAILURE_WEBHOOK") or None,
        )

    def of_day(self, day: dt.date) -> ExportConfig:
        """The settings of the run of one UTC day. Raises NotConfigured, or ConfigError for a file that cannot do."""
        values = self._run_values()
        if not values.get("alerts"):
            raise ConfigError(
                f"{self.run_config} has no `alerts`: give the file all days are in, or one a day such as "
                f'"alerts/{_DAY}.csv"'
            )
        return parse_settings(
            ExportConfig,
            {
                **values,
                "alerts": str(values["alerts"]).replace(_DAY, day.isoformat()),
                "run_id": nightly_run_id(day),
                "from_day": day.isoformat(),
                "to_day": day.isoformat(),
            },
        )

    def of_file(self, file: InboxFile) -> ExportConfig:
        """The settings of the run of one alerts file. Raises NotConfigured, or ConfigError."""
        values = self._run_values() | {"alerts": file.uri}
        settings = {name: value for name, value in values.items() if name != "alerts"}
        digest = sha256_hex(canonical_json({"alerts": file.sha256, "settings": settings}))
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(file.path).stem, flags=re.ASCII)[:64]
        return parse_settings(ExportConfig, {**values, "run_id": f"inbox_{stem}_{digest[:12]}"})

    def inbox_store(self) -> Store:
        """The folder or bucket of alerts files. Raises NotConfigured, or ConfigError where there is no such folder."""
        if not self.inbox:
            raise NotConfigured(
                "LAKE_INBOX is not set: name the folder or URL (s3://bucket/prefix) in which each new or changed file "
                "of alerts is to become a run"
            )
        try:
            store = open_store(self.inbox)
        except ConfigError as error:
            raise ConfigError(f"LAKE_INBOX cannot be used: {error}") from None
        if isinstance(store, LocalStore) and not store.root.is_dir():
            raise ConfigError(f"LAKE_INBOX {store.uri} is not a folder: create it, or correct the variable")
        return store

    def backtest(self) -> dict[str, dict[str, Any]]:
        """`baseline_settings` and `strategy_settings` of automatic backtests, where set. Raises ConfigError."""
        values = read_json_object(self.backtest_config) if self.backtest_config else {}
        models: dict[str, type[BaselineSettings | StrategySettings]] = {
            "baseline_settings": BaselineSettings,
            "strategy_settings": StrategySettings,
        }
        if unknown := set(values) - set(models):
            raise ConfigError(f"{self.backtest_config}: {', '.join(sorted(unknown))} is not one of {', '.join(models)}")
        for name, settings in values.items():
            parse_settings(models[name], settings)
        return values

    def _run_values(self) -> dict[str, Any]:
        if not self.run_config:
            raise NotConfigured(
                "LAKE_RUN_CONFIG is not set: name a JSON file with the settings of these runs, such as "
                f'{{"alerts": "alerts/{_DAY}.csv", "interval": "1m", "window": "pre52_post4948"}}; the names are those '
                "of `lake export-run-slices --config`"
            )
        values = read_json_object(self.run_config)
        for name, why in _NOT_IN_RUN_CONFIG.items():
            if name in values:
                raise ConfigError(f"{self.run_config} sets {name}, which has no place there: {why}")
        known = {*RunSettings.model_fields, *SourceSettings.model_fields} - set(_NOT_IN_RUN_CONFIG)
        if unknown := set(values) - known:
            raise ConfigError(
                f"{self.run_config}: unknown {', '.join(sorted(unknown))}. The settings are {', '.join(sorted(known))}"
            )
        return values


def buckets_per_run(environ: Mapping[str, str]) -> int | None:
    """LAKE_BUCKETS_PER_RUN: how many buckets a run of a backfill exports; None is all of them. Raises ConfigError."""
    text = environ.get("LAKE_BUCKETS_PER_RUN", "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= len(ALL_BUCKETS):
        raise ConfigError(f"LAKE_BUCKETS_PER_RUN {text!r} is not a number of buckets: give 1 to {len(ALL_BUCKETS)}")
    return int(text)


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if text and (not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 3660):
        raise ConfigError(f"{name} {text!r} is not a number of days: give 1 to 3660")
    return int(text) if text else default


# --- days ------------------------------------------------------------------------------------------


def nightly_run_id(day: dt.date) -> str:
    """The run of a UTC day's alerts."""
    return f"nightly_{day.isoformat()}"


def day_of_tick(tick: dt.datetime, lag_days: int) -> dt.date:
    """The UTC day whose alerts a tick at this instant exports."""
    return tick.astimezone(dt.UTC).date() - dt.timedelta(days=lag_days)


def days_to_catch_up(now: dt.datetime, settings: AutomationSettings) -> list[dt.date]:
    """The UTC days that should be sealed by now, oldest first."""
    today = now.astimezone(dt.UTC).date()
    return [today - dt.timedelta(days=back) for back in range(settings.catch_up_days, settings.lag_days - 1, -1)]


def last_window_end(config: ExportConfig) -> dt.datetime:
    """When the window of the last possible alert of a run of days ends: no candle after it matters."""
    spec = config.spec()
    last_ms = spec.range_ms[1]
    if last_ms is None:
        raise ConfigError("the settings have no last day")
    return dt.datetime.fromtimestamp(last_ms / 1000, dt.UTC) + dt.timedelta(seconds=spec.post * spec.interval_s)


def is_sealed(lake: Store, run_id: str) -> bool:
    """Whether a run of this id has a manifest."""
    return lake.sub(layout.run_folder(run_id)).exists(layout.MANIFEST)


def day_to_catch_up(
    lake: Store, settings: AutomationSettings, now: dt.datetime, tried: Mapping[str, str]
) -> tuple[ExportConfig | None, str, dict[str, str]]:
    """The settings of the oldest day that is not sealed, or None and why; and what to remember as `tried`.

    A day is tried once on each UTC day, so one that cannot succeed holds up no other. A day whose own alerts file is
    not there yet waits for it. `tried` maps days to the day of their last try.
    """
    today = now.astimezone(dt.UTC).date().isoformat()
    days = days_to_catch_up(now, settings)
    remembered = {day.isoformat(): tried[day.isoformat()] for day in days if day.isoformat() in tried}
    sealed, without_file, tried_today = 0, [], []
    for day in days:
        config = settings.of_day(day)
        if is_sealed(lake, nightly_run_id(day)):
            sealed += 1
        elif not alerts_exist(config.alerts):
            without_file.append(day.isoformat())
        elif remembered.get(day.isoformat()) == today:
            tried_today.append(day.isoformat())
        else:
            return config, "", {**remembered, day.isoformat(): today}
    reason = f"{sealed} of {len(days)} days sealed, {days[0]} to {days[-1]}"
    if without_file:
        reason += f"; no alerts file yet for {', '.join(without_file)}"
    if tried_today:
        reason += f"; tried today and not sealed, to be tried again tomorrow: {', '.join(tried_today)}"
    return None, reason, remembered


# --- the inbox -------------------------------------------------------------------------------------

# Reading them must fit into a tick, for which Dagster allows a minute.
_FILES_A_LOOK: Final = 20


@dataclass(frozen=True)
class InboxFile:
    """An alerts file of the inbox: its path in it, where it can be read from, and its content's SHA-256."""

    path: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class InboxLook:
    """What a look into the inbox found.

    `ready` files have content nobody has asked a run for since the file last changed. `waiting` were new or changed at
    this look, or must wait for their turn; `problems` maps those that could not be read to why; `ignored` are of no
    kind that holds alerts. `seen` is for the next look.
    """

    ready: Sequence[InboxFile]
    waiting: Sequence[str]
    problems: Mapping[str, str]
    ignored: Sequence[str]
    seen: dict[str, dict[str, str]]

    def summary(self) -> str:
        """What there is, in a line."""
        done = sum("sha256" in entry for entry in self.seen.values())
        text = f"{done} files known, {len(self.waiting)} to be looked at again"
        if self.ignored:
            text += f", {len(self.ignored)} ignored that are not {', '.join(ALERT_SUFFIXES)}: {self.ignored[0]}"
        for path, problem in self.problems.items():
            text += f"; {path}: {problem}"
        return text


def look_into_inbox(inbox: Store, seen: Mapping[str, Mapping[str, str]]) -> InboxLook:
    """Compare the files of the inbox with those `seen` at the last look.

    A file is read when two looks in a row find the same version of it, so one that is still being copied waits.
    """
    ready: list[InboxFile] = []
    waiting, ignored, problems = [], [], {}
    now_seen: dict[str, dict[str, str]] = {}
    for file in inbox.files():
        name = PurePosixPath(file.path).name
        if name.startswith(".") or not name.lower().endswith(ALERT_SUFFIXES):
            ignored.append(file.path)
            continue
        before = seen.get(file.path, {})
        if before.get("version") != file.version:
            now_seen[file.path] = {"version": file.version}
            waiting.append(file.path)
        elif "sha256" in before:
            now_seen[file.path] = dict(before)
        elif len(ready) == _FILES_A_LOOK:
            now_seen[file.path] = dict(before)
            waiting.append(file.path)
        else:
            now_seen[file.path] = dict(before)
            try:
                digest = hash_file(inbox, file.path).sha256
            except LakeError as error:
                problems[file.path] = str(error)
                continue
            now_seen[file.path]["sha256"] = digest
            ready.append(InboxFile(file.path, f"{inbox.uri}/{file.path}", digest))
    return InboxLook(ready, waiting, problems, ignored, now_seen)


# --- sealing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompleteRun:
    """A run that has a receipt for every bucket, and no seal.

    `dagster_run_ids` are those that took part, oldest first; `state` changes with every export into the run.
    """

    run_id: str
    dagster_run_ids: Sequence[str]
    state: str


def complete_runs(lake: Store, sealed: Iterable[str]) -> tuple[list[CompleteRun], dict[str, str], list[str]]:
    """Runs that could be sealed; other runs and why they cannot; and ids of sealed runs, for the next look.

    Runs known to be `sealed` are not looked at again: a seal is for good. Receipts are counted here; whether they are
    valid is for the seal to check, which fails closed.
    """
    known = set(sealed)
    complete, unfinished, now_sealed = [], {}, []
    receipts = {layout.receipt_path(bucket) for bucket in ALL_BUCKETS}
    for run_id in list_run_ids(lake):
        run = lake.sub(layout.run_folder(run_id))
        if run_id in known or run.exists(layout.MANIFEST):
            now_sealed.append(run_id)
        elif missing := receipts - {file.path for file in run.files(layout.RECEIPTS)}:
            unfinished[run_id] = f"{len(missing)} of {len(ALL_BUCKETS)} buckets missing"
        else:
            try:
                exports = [event for event in read_events(run) if event.get("step") in ("alerts", "candles")]
            except RunError as error:
                unfinished[run_id] = str(error)
                continue
            ids = dict.fromkeys(str(event["dagster_run_id"]) for event in exports if event.get("dagster_run_id"))
            state = sha256_hex(canonical_json({"exports": [event.get("at") for event in exports]}))[:12]
            complete.append(CompleteRun(run_id, list(ids), state))
    return complete, unfinished, now_sealed


# --- cursors ---------------------------------------------------------------------------------------


def read_cursor(text: str | None) -> dict[str, Any]:
    """What `write_cursor` wrote; empty at the first tick. Raises ConfigError for anything else."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError("the cursor is not one of this sensor's: reset it in the UI, or by `dagster sensor cursor`")
    return value


def write_cursor(value: Mapping[str, Any]) -> str:
    """A cursor as the text Dagster keeps."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


# --- failures --------------------------------------------------------------------------------------


def failure_message(job: str, dagster_run_id: str, run_id: str | None, failures: Mapping[str, str]) -> str:
    """One text that says which run failed, at which step, and why; `failures` maps steps to what they said.

    The errors of this package name buckets and causes themselves.
    """
    head = f"{job} failed: lake run {run_id or '(derived from the content)'}, Dagster run {dagster_run_id}"
    return "\n".join([head, *(f"{step}: {said}" for step, said in failures.items())])


def post_message(url: str, message: str) -> None:
    """Post `{"text": message}` to a chat's incoming webhook. Raises LakeError that does not repeat the URL."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError("LAKE_FAILURE_WEBHOOK is not an http:// or https:// URL")
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        url, json.dumps({"text": message}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise LakeError(f"the webhook of LAKE_FAILURE_WEBHOOK did not take the message: {reason}") from None
