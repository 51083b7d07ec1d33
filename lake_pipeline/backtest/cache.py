"""Caches beside the results: what each was made of, and why one is used or not.

    <data_root>/results/run_id=<id>/<kind>=<key>/    cache.json and the cache's own files

`<key>` is 12 hex digits of SHA-256 over the identity: what is cached (the run's content, the selection, the horizon).
`cache.json` holds that identity and the code that wrote the files. It is for people: it says why a cache does not fit.
What may be used is decided file by file, by the head each of them carries. A cache is no result: it may be removed at
any time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lake_pipeline.core.canonical import canonical_json, sha256_hex
from lake_pipeline.errors import LakeError
from lake_pipeline.io import layout
from lake_pipeline.io.store import LocalStore, Store
from lake_pipeline.run import load_run

__all__ = ["CACHE_RECORD", "Cache", "cache_folder", "describe", "explain", "list_caches", "remove_cache"]

CACHE_RECORD: Final = "cache.json"
_NAMED: Final = 3


def cache_folder(run_id: str, kind: str, identity: Mapping[str, Any]) -> str:
    """Folder of a cache, relative to the data root."""
    return layout.result_folder(run_id, kind, sha256_hex(canonical_json(dict(identity)))[:12])


def describe(store: Store, kind: str, identity: Mapping[str, Any], code: Mapping[str, Any]) -> None:
    """Write what a cache holds into its folder, unless that is said there already."""
    data = canonical_json({"kind": kind, "identity": dict(identity), "code": dict(code)})
    if not store.exists(CACHE_RECORD) or store.read(CACHE_RECORD) != data:
        store.replace(CACHE_RECORD, data, durable=False)


def explain(lake: Store, run_id: str, kind: str, identity: Mapping[str, Any], code: Mapping[str, Any]) -> str | None:
    """Why no cache of this identity and code is there; None if there is one.

    Names what differs from the cache of that kind and run that differs least.
    """
    folder = cache_folder(run_id, kind, identity)
    wanted = {"identity": dict(identity), "code": dict(code)}
    others = []
    for name, record in _records(lake, run_id, kind):
        found = list(_differences(record, wanted))
        if name == folder:
            return f"those cached were made with other code: {'; '.join(found)}" if found else None
        others.append((len(found), name, found))
    if lake.files(folder):
        return f"{folder} does not say what it holds"
    if not others:
        return "none are cached yet"
    _, name, found = min(others)
    return f"{name.rpartition('/')[2]} caches something else: {'; '.join(found)}"


def _records(lake: Store, run_id: str, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The caches of a kind that say what they hold, as (folder, document)."""
    results = f"{layout.RESULTS}/run_id={run_id}"
    for name in lake.folders(results):
        if name.startswith(f"{kind}="):
            record = _record(lake.sub(f"{results}/{name}"))
            if record is not None:
                yield f"{results}/{name}", record


def _record(store: Store) -> dict[str, Any] | None:
    """What a cache says that it holds; None where it says nothing that can be understood."""
    if not store.exists(CACHE_RECORD):
        return None
    try:
        record = json.loads(store.read(CACHE_RECORD))
    except ValueError:
        return None
    parts = isinstance(record, dict) and [record.get(name) for name in ("identity", "code")]
    return record if parts and all(isinstance(part, dict) for part in parts) else None


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What changed from one cache's document to another's, as `name old -> new`."""
    yield from _changed("", before["identity"], after["identity"])
    modules = [each["code"].get("modules", {}) for each in (before, after)]
    changed = sorted(
        name for name in modules[0].keys() | modules[1].keys() if modules[0].get(name) != modules[1].get(name)
    )
    if changed:
        more = f" and {len(changed) - _NAMED} more modules" if len(changed) > _NAMED else ""
        yield f"code of {', '.join(changed[:_NAMED])}{more}"
    yield from _changed("", *(each["code"].get("libraries", {}) for each in (before, after)))


def _changed(prefix: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _changed(f"{prefix}{name} ", before.get(name), after.get(name))
    elif before != after:
        yield f"{prefix}{_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}..."


@dataclass(frozen=True)
class Cache:
    """A cache of a data root. `problem` says why it is of no use any more, None if it is usable."""

    kind: str
    run_id: str
    key: str
    files: int
    bytes: int
    problem: str | None
    store: Store


# Says why the files of a cache are of no use, given the identity that its record names.
Check = Callable[[Store, Mapping[str, Any]], str | None]


def list_caches(lake: Store, checks: Mapping[str, Check]) -> list[Cache]:
    """Every cache under a data root of the kinds in `checks`, checked file by file, by run, kind and key."""
    found = []
    for run in lake.folders(layout.RESULTS):
        run_id = run.removeprefix("run_id=")
        for name in lake.folders(f"{layout.RESULTS}/{run}"):
            kind, _, key = name.partition("=")
            store = lake.sub(f"{layout.RESULTS}/{run}/{name}")
            files = store.files() if kind in checks else []
            if files:
                problem = _problem(lake, run_id, store, checks[kind])
                found.append(Cache(kind, run_id, key, len(files), sum(file.size for file in files), problem, store))
    return found


def _problem(lake: Store, run_id: str, store: Store, check: Check) -> str | None:
    record = _record(store)
    if record is None:
        return "it does not say what it holds"
    try:
        content = load_run(lake, run_id).manifest().content_sha256
    except LakeError:
        return "its run is gone or not sealed"
    if record["identity"].get("content_sha256") != content:
        return "its run has other content"
    return check(store, record["identity"])


def remove_cache(cache: Cache) -> None:
    """Delete the files of a cache; one that is in use stays usable for those who have it open."""
    for file in cache.store.files():
        cache.store.delete(file.path)
    if isinstance(cache.store, LocalStore):
        with contextlib.suppress(OSError):  # another process may be filling it again
            cache.store.root.rmdir()
