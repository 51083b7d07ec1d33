"""What is particular to object stores: large uploads, requests, faults, addresses. The rest is in test_store."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lake_pipeline.errors import AlreadyExists, ConfigError, StoreError, StoreUnavailable
from lake_pipeline.io.alerts import read_alerts
from lake_pipeline.io.objects import ObjectStore
from lake_pipeline.io.store import TEMPORARY_PREFIX, LocalStore, Store, hash_file, open_store
from lake_pipeline_tests.conftest import S3, SECRET

LARGE = 20 << 20  # three parts


@pytest.fixture
def store(s3_url: str) -> ObjectStore:
    return ObjectStore(s3_url)


def keys(store: Store) -> list[str]:
    return [file.path for file in store.files()]


def write(store: Store, path: str, data: bytes) -> None:
    with store.writer(path) as sink:
        for start in range(0, len(data), 1 << 20):
            sink.write(data[start : start + (1 << 20)])


# --- large files ---------------------------------------------------------------------------------


def test_a_large_file_is_uploaded_in_parts_and_never_replaces(store: ObjectStore, s3: S3) -> None:
    data = os.urandom(LARGE)
    write(store.sub("run"), "a/f", data)
    assert keys(store) == ["run/a/f"]
    assert hash_file(store, "run/a/f").sha256 == hashlib.sha256(data).hexdigest()
    uploads = [
        each for each in s3.requests() if "partNumber" in each["query"] and store.uri.split("/")[3] in each["path"]
    ]
    assert len([each for each in uploads if TEMPORARY_PREFIX in each["path"]]) == 3
    write(store.sub("run"), "a/f", data)  # the same bytes are success
    with pytest.raises(AlreadyExists, match="exists with other content and is not replaced"):
        write(store.sub("run"), "a/f", data[:-1] + bytes([data[-1] ^ 1]))
    assert hash_file(store, "run/a/f").sha256 == hashlib.sha256(data).hexdigest()
    assert keys(store) == ["run/a/f"]


def test_of_many_large_writers_one_wins_and_the_others_learn_of_it(store: ObjectStore) -> None:
    contents = [os.urandom(LARGE) for _ in range(3)]
    outcomes: list[str] = []

    def attempt(data: bytes) -> None:
        try:
            write(store, "f", data)
            outcomes.append(hashlib.sha256(data).hexdigest())
        except AlreadyExists:
            pass

    threads = [threading.Thread(target=attempt, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [hash_file(store, "f").sha256]
    assert keys(store) == ["f"]


def test_a_process_killed_while_it_uploads_leaves_nothing_a_reader_can_see(
    store: ObjectStore, s3: S3, tmp_path: Path
) -> None:
    code = (
        "import os, sys; from lake_pipeline.io.objects import ObjectStore\n"
        "with ObjectStore(sys.argv[1]).sub('run').writer('f') as sink:\n"
        "    for _ in range(120): sink.write(os.urandom(1 << 20))\n"
    )
    name = store.uri.split("/")[3]
    with subprocess.Popen([sys.executable, "-c", code, store.uri]) as process:
        deadline = time.monotonic() + 60

        def parts() -> int:
            return sum("partNumber" in each["query"] and name in each["path"] for each in s3.requests())

        while parts() < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert 3 <= parts() < 15  # it was in the middle
    assert process.returncode == -9
    assert keys(store) == []
    assert not store.exists("run/f")
    write(store.sub("run"), "f", b"another attempt")
    assert keys(store) == ["run/f"]


def test_a_process_killed_between_upload_and_copy_leaves_the_run_untouched(store: ObjectStore) -> None:
    code = (
        "import os, sys; from lake_pipeline.io.objects import ObjectStore\n"
        "class Dying:\n"
        "    def __init__(self, objects): self.objects = objects\n"
        "    def __getattr__(self, name): return getattr(self.objects, name)\n"
        "    def copy(self, *arguments, **options): os.kill(os.getpid(), 9)\n"
        "store = ObjectStore(sys.argv[1])\n"
        "store._objects = Dying(store._objects)\n"
        "with store.sub('run').writer('f') as sink:\n"
        "    sink.write(bytes(20 << 20))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store.uri], check=False)
    assert done.returncode == -9
    assert [file.temporary for file in store.files()] == [True]
    assert store.sub("run").files() == []
    write(store.sub("run"), "f", bytes(LARGE))
    assert keys(store.sub("run")) == ["f"]


def test_memory_stays_bounded_however_large_a_file_is(store: ObjectStore) -> None:
    code = (
        "import resource, sys; from lake_pipeline.io.objects import ObjectStore\n"
        "from lake_pipeline.io.store import hash_file\n"
        "store, block = ObjectStore(sys.argv[1]), bytes(1 << 20)\n"
        "def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "with store.writer('small') as sink: sink.write(block)\n"
        "before = used()\n"
        "with store.writer('f') as sink:\n"
        "    for _ in range(160): sink.write(block)\n"
        "assert hash_file(store, 'f').bytes == 160 << 20\n"
        "print(used() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store.uri], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # MB: a few blocks in flight, both ways


def test_an_object_of_the_same_lake_is_copied_by_the_store(store: ObjectStore, s3: S3, lake: LocalStore) -> None:
    data = os.urandom(LARGE)
    write(store.sub("a"), "f", data)
    before = len(s3.requests())
    store.sub("b").adopt(store.sub("a"), "f")
    assert sum(each["bytes"] for each in s3.requests()[before:]) < 10_000
    store.sub("b").adopt(store.sub("a"), "f")  # the same bytes are success
    store.sub("c").create("f", b"other")
    with pytest.raises(AlreadyExists, match="exists with other content"):
        store.sub("c").adopt(store.sub("a"), "f")
    write(lake, "g", data)
    store.adopt(lake, "g")
    assert [hash_file(store, path).sha256 for path in ("b/f", "g")] == [hashlib.sha256(data).hexdigest()] * 2


def test_a_large_file_is_put_in_place_of_another(store: ObjectStore) -> None:
    data = os.urandom(LARGE)
    for content in (data[::-1], memoryview(data)):
        store.replace("f", content)
    assert hash_file(store, "f").sha256 == hashlib.sha256(data).hexdigest()
    assert keys(store) == ["f"]


# --- reading and listing -------------------------------------------------------------------------


def test_random_reads_fetch_only_the_bytes_asked_for(store: ObjectStore, s3: S3) -> None:
    data = os.urandom(LARGE)
    write(store, "f", data)
    before = len(s3.requests())
    with store.filesystem().open_input_file("f") as file:
        file.seek(12_345_678)
        assert file.read(1000) == data[12_345_678:12_346_678]
    made = s3.requests()[before:]
    assert [each["method"] for each in made] == ["HEAD", "GET"]
    assert sum(each["bytes"] for each in made) == 1000


def test_reads_in_order_take_a_request_a_block(store: ObjectStore, s3: S3) -> None:
    data = os.urandom(LARGE)
    write(store, "f", data)
    before = len(s3.requests())
    with store.open("f") as file:
        assert file.read() == data
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]
    made = [each["bytes"] for each in s3.requests()[before:]]
    assert made[:1] == [8 << 20]
    assert len(made) <= 5


def test_an_empty_object_can_be_read(store: ObjectStore) -> None:
    store.create("f", b"")
    with store.open("f") as file:
        assert file.read() == b""
    assert hash_file(store, "f").bytes == 0


def test_more_than_a_thousand_objects_and_folders_are_all_listed(store: ObjectStore) -> None:
    for number in range(1001):
        store.create(f"{number:04d}/f", b"")
    assert keys(store) == [f"{number:04d}/f" for number in range(1001)]
    assert store.folders("") == [f"{number:04d}" for number in range(1001)]


def test_the_prefix_of_one_store_is_not_that_of_another(store: ObjectStore) -> None:
    store.sub("run_id=a").create("f", b"")
    store.sub("run_id=ab").create("g", b"")
    assert keys(store.sub("run_id=a")) == ["f"]
    assert store.folders("") == ["run_id=a", "run_id=ab"]


# --- updates of several at once ------------------------------------------------------------------


def test_of_many_updates_none_is_lost(store: ObjectStore) -> None:
    def add(present: bytes | None) -> bytes:
        return (present or b"") + b"x"

    threads = [threading.Thread(target=store.update, args=("f", add)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("f") == b"x" * 8


def test_a_lock_is_none_and_the_store_says_so(store: ObjectStore) -> None:
    assert not store.locks
    with store.lock(exclusive=True), store.lock(exclusive=True):
        pass


# --- faults --------------------------------------------------------------------------------------


def actions(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.exists("f"),
        lambda: store.read("f"),
        lambda: store.open("f"),
        lambda: store.files(),
        lambda: store.folders(""),
        lambda: store.create("f", b"1"),
        lambda: store.replace("f", b"1"),
        lambda: store.delete("f"),
        lambda: write(store, "f", b"1"),
        lambda: write(store, "f", bytes(LARGE)),
    ]


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_refused_access_is_permanent_and_says_what_is_needed(
    s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, s3.environment("DENIED"))
    for action in actions(ObjectStore(s3_url)):
        with pytest.raises(StoreError, match="access denied: the account needs to list, get, put and delete") as caught:
            action()
        assert not caught.value.transient
        assert s3_url in str(caught.value)
        assert SECRET not in str(caught.value)


def test_a_passing_fault_is_tried_again(s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, s3.environment("FLAKY"))
    store = ObjectStore(s3_url)
    store.create("f", b"1")
    assert store.read("f") == b"1"
    write(store, "g", bytes(LARGE))
    assert keys(store) == ["f", "g"]


def test_a_name_two_requests_are_at_is_tried_again(s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, s3.environment("CONFLICT"))
    store = ObjectStore(s3_url)
    store.create("f", b"1")
    with pytest.raises(AlreadyExists):
        store.create("f", b"2")
    write(store, "g", bytes(LARGE))
    assert keys(store) == ["f", "g"]


def test_a_store_that_stays_away_is_transient(s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, s3.environment("BROKEN"))
    with pytest.raises(StoreUnavailable, match=r"does not answer \(status 503 SlowDown\).*run again") as caught:
        ObjectStore(s3_url).create("f", b"1")
    assert caught.value.transient


def test_a_refused_connection_is_transient(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match=r"does not answer .*check the network, the endpoint"):
        ObjectStore(s3_url).read("f")


def test_a_bucket_that_is_not_there_is_named(s3: S3) -> None:
    store = ObjectStore("s3://no-such-bucket/lake")
    for action in (lambda: store.files(), lambda: store.folders("x"), lambda: store.create("f", b"")):
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/lake.*: there is no such bucket") as caught:
            action()
        assert not caught.value.transient


def test_missing_credentials_are_said_to_be_missing(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="no credentials: set AWS_ACCESS_KEY_ID") as caught:
        ObjectStore(s3_url).read("f")
    assert not caught.value.transient


def test_plain_http_must_be_allowed(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError, match="AWS_ALLOW_HTTP=true"):
        ObjectStore(s3_url).read("f")


# --- data roots ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["s4://bucket/x", "http://127.0.0.1/x", "s3://", "s3:///x", "s3://b/a//b", "s3://b/../c"]
)
def test_a_data_root_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="data_root") as caught:
        open_store(url)
    assert url in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:s3cret-word@bucket/x",
        "s3://s3cret-word@b",
        "az://c/x?sig=s3cret-word",
        "gs://b/x#s3cret-word",
        "s3://[s3cret-word",
    ],
)
def test_a_url_with_a_secret_in_it_is_refused_and_not_repeated(url: str) -> None:
    for read in (lambda: open_store(url), lambda: read_alerts(f"{url}.csv", (None, None))):
        with pytest.raises(ConfigError) as caught:
            read()
        assert "s3cret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        ("gs://bucket/lake", {}),
        ("az://container/lake", {"AZURE_STORAGE_ACCOUNT_NAME": "account"}),
        ("s3://bucket/lake/", {}),
        ("s3://bucket", {}),
    ],
)
def test_every_cloud_has_its_url(url: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, environment)
    store = open_store(url)
    assert store.uri == url.rstrip("/")
    assert store.sub("lake/runs").uri == f"{url.rstrip('/')}/lake/runs"


def test_what_a_cloud_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"data_root az://container/lake cannot be used: .*Account must be specified"):
        open_store("az://container/lake")


def test_alerts_are_read_from_the_object_store_too(store: ObjectStore) -> None:
    store.create("alerts.csv", b"mint,ts\nM,2025-05-01T00:00:00Z\n")
    assert read_alerts(f"{store.uri}/alerts.csv", (None, None)).table.num_rows == 1
