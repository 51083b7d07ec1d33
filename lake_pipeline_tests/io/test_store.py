from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lake_pipeline.errors import AlreadyExists, StoreError
from lake_pipeline.io.objects import ObjectStore
from lake_pipeline.io.store import TEMPORARY_PREFIX, LocalStore, Store, hash_file, open_store
from lake_pipeline.seal import write_manifest_json


def names(store: Store | Path) -> set[str]:
    return {file.path for file in (LocalStore(store) if isinstance(store, Path) else store).files()}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, lake: LocalStore) -> Store:
    """An empty store of each kind: what holds for one holds for the other."""
    return lake if request.param == "local" else ObjectStore(request.getfixturevalue("s3_url"))


def test_create_writes_a_new_file_and_its_folders(store: Store) -> None:
    store.create("a/b/c.txt", b"one")
    assert store.read("a/b/c.txt") == b"one"
    assert names(store) == {"a/b/c.txt"}


def test_create_never_replaces_and_leaves_nothing_behind(store: Store) -> None:
    store.create("f", b"one")
    with pytest.raises(AlreadyExists, match="exists already and is not replaced") as caught:
        store.create("f", b"one")
    assert f"{store.uri}/f" in str(caught.value)
    assert store.read("f") == b"one"
    assert names(store) == {"f"}


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    won: list[int] = []
    lost: list[int] = []

    def create(number: int) -> None:
        try:
            store.create("f", str(number).encode())
            won.append(number)
        except AlreadyExists:
            lost.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 15)
    assert store.read("f") == str(won[0]).encode()
    assert names(store) == {"f"}


def test_replace_puts_a_file_in_place_of_another(store: Store) -> None:
    store.replace("f", b"one")
    store.replace("f", b"two")
    assert store.read("f") == b"two"
    assert names(store) == {"f"}


def test_a_written_file_appears_only_when_it_is_complete(store: Store) -> None:
    with store.writer("x/f") as sink:
        sink.write(b"ab")
        assert not store.exists("x/f")
        assert all(file.temporary for file in store.files())
        sink.write(memoryview(b"cd"))
        assert sink.tell() == 4
    assert store.read("x/f") == b"abcd"
    assert sink.sha256 == hashlib.sha256(b"abcd").hexdigest()
    assert names(store) == {"x/f"}


def test_a_write_that_fails_leaves_neither_file_nor_temporary(store: Store) -> None:
    class OwnError(Exception):
        pass

    def fail_half_way() -> None:
        with store.writer("x/f") as sink:
            sink.write(b"half")
            raise OwnError

    with pytest.raises(OwnError):
        fail_half_way()
    assert names(store) == set()


def test_writing_the_bytes_that_are_there_is_success(store: Store) -> None:
    store.create("f", b"same")
    with store.writer("f") as sink:
        sink.write(b"same")
    assert store.read("f") == b"same"
    assert names(store) == {"f"}


def test_writing_the_bytes_that_are_there_touches_nothing(lake: LocalStore) -> None:
    lake.create("f", b"same")
    before = (lake.root / "f").stat()
    with lake.writer("f") as sink:
        sink.write(b"same")
    assert (lake.root / "f").stat() == before


def test_an_update_sees_what_is_there(store: Store) -> None:
    seen: list[bytes | None] = []

    def change(present: bytes | None) -> bytes:
        seen.append(present)
        return (present or b"") + b"x"

    store.update("f", change)
    store.update("f", change)
    assert seen == [None, b"x"]
    assert store.read("f") == b"xx"


def test_a_filesystem_reads_the_files_by_path(store: Store) -> None:
    store.create("a/f", b"0123456789")
    with store.filesystem().open_input_file("a/f") as file:
        assert file.size() == 10
        file.seek(4)
        assert file.read(3) == b"456"
    with pytest.raises((OSError, StoreError)):
        store.filesystem().open_input_file("a/g")


@pytest.mark.parametrize("other", [b"diff", b"sam", b"same "])
def test_writing_other_bytes_over_a_file_is_refused(store: Store, other: bytes) -> None:
    store.create("f", b"same")
    with pytest.raises(AlreadyExists), store.writer("f") as sink:
        sink.write(other)
    assert store.read("f") == b"same"
    assert names(store) == {"f"}


@pytest.mark.parametrize("path", ["../f", "a/../../f", "/etc/passwd", "..", "a/.."])
def test_a_path_that_leaves_the_folder_is_refused(store: Store, path: str) -> None:
    actions = [
        lambda: store.read(path),
        lambda: store.create(path, b""),
        lambda: store.replace(path, b""),
        lambda: store.delete(path),
        lambda: store.exists(path),
        lambda: store.sub(path),
        lambda: store.files(path),
    ]
    for action in actions:
        with pytest.raises(StoreError, match="leaves the folder"):
            action()


def test_files_are_listed_by_path_as_bytes_with_their_sizes(store: Store) -> None:
    for path, data in {"b": b"1", "a/z": b"22", "a.x": b"", "é": b"333"}.items():
        store.create(path, data)
    assert [(file.path, file.size) for file in store.files()] == [("a.x", 0), ("a/z", 2), ("b", 1), ("é", 3)]
    assert [file.path for file in store.files("a")] == ["a/z"]
    assert store.files("nowhere") == []
    assert store.folders("") == ["a"]
    assert store.folders("nowhere") == []


def test_a_hash_is_that_of_the_whole_file(store: Store) -> None:
    data = os.urandom(3 * (1 << 20) + 7)
    store.create("f", data)
    record = hash_file(store, "f")
    assert (record.path, record.bytes, record.sha256) == ("f", len(data), hashlib.sha256(data).hexdigest())


def test_delete_removes_a_file_and_a_missing_one_is_no_error(store: Store) -> None:
    store.create("a/f", b"")
    store.delete("a/f")
    store.delete("a/f")
    assert not store.exists("a/f")


def test_a_sub_store_is_rooted_below(store: Store) -> None:
    store.sub("runs/x").create("f", b"1")
    assert store.read("runs/x/f") == b"1"
    assert store.sub("runs/x").uri == f"{store.uri}/runs/x"
    assert store.sub("runs").sub("x").read("f") == b"1"
    assert [file.path for file in store.sub("runs").files()] == ["x/f"]
    assert store.sub("runs").folders("") == ["x"]


# --- what the medium may say ---------------------------------------------------------------------


def test_a_file_where_a_folder_must_be_is_named(lake: LocalStore) -> None:
    lake.create("a", b"")
    with pytest.raises(StoreError, match="a file is in the way of a folder") as caught:
        lake.create("a/b", b"")
    assert str(lake.root / "a" / "b") in str(caught.value)


def test_reading_what_is_not_there_says_so(store: Store) -> None:
    for read in (store.read, store.open):
        with pytest.raises(StoreError, match=r"cannot read .*nothing: there is no such (file|object)"):
            read("nothing")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_file_that_cannot_be_looked_at_is_not_taken_for_missing(
    lake: LocalStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    lake.create("f", b"data")
    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(StoreError, match=r"cannot look at .*f: "):
        lake.exists("f")


def test_a_folder_that_may_not_be_written_is_named(lake: LocalStore) -> None:
    lake.root.mkdir(parents=True)
    lake.root.chmod(0o500)
    me = os.geteuid()
    if me == 0:  # root may write anywhere, so be somebody else for a moment
        os.seteuid(65_534)
    try:
        with pytest.raises(StoreError, match="permission denied: check the owner and mode"):
            lake.create("f", b"")
    finally:
        os.seteuid(me)
        lake.root.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "the disk is full: free some space and run again, what is committed stays"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied: check the owner and mode of the folder"),
        (errno.EIO, "the disk reported an I/O error"),
    ],
)
def test_what_the_disk_reports_is_told_with_what_to_do(
    lake: LocalStore, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    lake.root.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", fail)
    for write in (lake.create, lake.replace):
        with pytest.raises(StoreError) as caught:
            write("f", b"data")
        assert advice in str(caught.value)
        assert str(lake.root / "f") in str(caught.value)
    assert names(lake.root) == set()


def test_a_file_the_system_will_not_let_grow_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from lake_pipeline.io.store import LocalStore\n"
        "from lake_pipeline.errors import StoreError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with LocalStore(Path(sys.argv[1])).writer('f') as sink:\n"
        "        sink.write(b'x' * 5000)\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / 'f'}: ")
    assert names(tmp_path) == set()


# --- locks ---------------------------------------------------------------------------------------


def _hold(root: str, exclusive: bool, held: object, release: object) -> None:
    with LocalStore(Path(root)).lock(exclusive=exclusive):
        held.set()  # type: ignore[attr-defined]
        release.wait(120)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("theirs", "ours", "waits"), [(True, True, True), (True, False, True), (False, True, True), (False, False, False)]
)
def test_a_lock_holds_between_processes_and_shared_ones_go_together(
    lake: LocalStore, theirs: bool, ours: bool, waits: bool
) -> None:
    lake.root.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(lake.root), theirs, held, release))
    process.start()
    entered = threading.Event()

    def enter() -> None:
        with lake.lock(exclusive=ours):
            entered.set()

    try:
        assert held.wait(120)
        thread = threading.Thread(target=enter)
        thread.start()
        assert entered.wait(0.3 if waits else 120) is not waits
        release.set()
        assert entered.wait(120)
        thread.join()
    finally:
        release.set()
        process.join(120)
    assert process.exitcode == 0
    assert names(lake.root) == set()


def test_a_lock_is_given_back_when_the_block_fails(lake: LocalStore) -> None:
    lake.root.mkdir(parents=True)
    with pytest.raises(RuntimeError), lake.lock(exclusive=True):
        raise RuntimeError
    with lake.lock(exclusive=True):
        pass


def test_locking_a_folder_that_is_not_there_says_so(lake: LocalStore) -> None:
    with pytest.raises(StoreError, match="cannot lock"), lake.lock(exclusive=True):
        pass


# --- data roots and the manifest -------------------------------------------------------------------


def test_a_data_root_is_a_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "d"))
    store.create("f", b"1")
    assert (tmp_path / "d" / "f").read_bytes() == b"1"


def test_manifest_atomic_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "manifest.json"
    seen: list[bool] = []
    contents: list[bytes] = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        # At the only moment the final name comes to be, the whole content is already on disk.
        seen.append(path.exists())
        contents.append(Path(source).read_bytes())
        assert Path(source).parent == path.parent
        assert Path(source).name.startswith(TEMPORARY_PREFIX)
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    write_manifest_json({"b": 2, "a": 1}, path)
    assert (seen, contents) == ([False], [b'{\n  "a": 1,\n  "b": 2\n}\n'])
    assert path.read_bytes() == b'{\n  "a": 1,\n  "b": 2\n}\n'
    with pytest.raises(AlreadyExists):
        write_manifest_json({"b": 3}, path)
    assert path.read_bytes() == b'{\n  "a": 1,\n  "b": 2\n}\n'
    assert names(tmp_path) == {"out/manifest.json"}


def test_a_writer_killed_half_way_leaves_no_file_of_the_final_name(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from lake_pipeline.io.store import LocalStore\n"
        "with LocalStore(Path(sys.argv[1])).writer('f') as sink:\n"
        "    sink.write(b'half'); os._exit(9)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (done.returncode, time.monotonic() - started < 60) == (9, True)
    store = LocalStore(tmp_path)
    assert not store.exists("f")
    assert [file.temporary for file in store.files()] == [True]
