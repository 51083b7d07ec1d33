"""Where bytes live, written so that a reader never sees a partial file under its final name.

What belongs here: what every store can do, and local folders: atomic create-only writes, locks, listings. Object
stores are in `objects`. What does not: any knowledge of runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import pyarrow.fs as pafs

from lake_pipeline.core.manifest import Record
from lake_pipeline.errors import AlreadyExists, StoreError

__all__ = ["TEMPORARY_PREFIX", "LocalStore", "Sink", "Store", "StoredFile", "explained", "hash_file", "open_store"]

# Names of files that are still being written. A crash leaves them behind; the seal removes them.
TEMPORARY_PREFIX: Final = ".lake-tmp-"
_READ_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """One file: POSIX path relative to the store, size in bytes.

    `version` is another one whenever the content was written anew; what it says is the store's own affair.
    """

    path: str
    size: int
    version: str = field(default="", compare=False)

    @property
    def temporary(self) -> bool:
        """Whether this is an unfinished write."""
        return self.path.rpartition("/")[2].startswith(TEMPORARY_PREFIX)


class Sink(io.RawIOBase):
    """A write-only stream that counts and hashes what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def write(self, data: object) -> int:
        """Write all of a bytes-like object."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._file.write(view)
        self._sha256.update(view)
        self._size += len(view)
        return len(view)

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._sha256.hexdigest()


class Store(Protocol):
    """Files under one root. Paths are POSIX, relative, and never leave the root.

    Every method raises StoreError, saying what and where, when the medium fails.
    """

    @property
    def uri(self) -> str:
        """Where this is, for people and for Dagster's metadata."""

    @property
    def locks(self) -> bool:
        """Whether `lock` keeps others out. Where it does not, others may be writing at any time."""

    def sub(self, path: str) -> Store:
        """The store rooted at a folder of this one."""

    def exists(self, path: str) -> bool:
        """Whether a file of this name is complete."""

    def read(self, path: str) -> bytes:
        """All of a file."""

    def open(self, path: str) -> BinaryIO:
        """A file for random reads."""

    def filesystem(self) -> pafs.FileSystem:
        """The files to read by path, as pyarrow wants them, with only the bytes asked for being fetched."""

    def files(self, path: str = "") -> list[StoredFile]:
        """Every file below a folder, temporary ones included, sorted by path as bytes."""

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly below a folder, sorted."""

    def create(self, path: str, data: bytes, *, settled: bool = True) -> None:
        """Write a new file; AlreadyExists if there is one, which then stays as it is.

        Not `settled`, a crash of the machine may take the file away, whole, until `settle` was called for its folder.
        """

    def settle(self, *folders: str) -> None:
        """Let no crash take away a file that is complete in these folders, nor the folders themselves."""

    def replace(self, path: str, data: bytes | memoryview, *, durable: bool = True) -> None:
        """Write a file in place of any that is there. Never for anything sealed."""

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace a file by what `change` makes of its content, None if there is none; no other update is lost.

        Where there are locks, the caller holds the exclusive one.
        """

    def writer(
        self, path: str, *, durable: bool = True, settled: bool = True
    ) -> contextlib.AbstractContextManager[Sink]:
        """A stream into a new file that appears when the block ends without error; `settled` as in `create`.

        A file that exists with the same bytes is success; with other bytes, AlreadyExists. Not `durable`, a
        file may be lost or cut short when the machine (not the process) crashes soon after: for what can be
        computed again and is compared with a checksum before it is used.
        """

    def adopt(self, other: Store, path: str, *, settled: bool = True) -> None:
        """Make a complete file of another store a file of this one as well; one that is there stays as it is.

        `settled` as in `create`.
        """

    def delete(self, path: str) -> None:
        """Remove a file that is there."""

    def lock(self, *, exclusive: bool) -> contextlib.AbstractContextManager[None]:
        """Hold the root against other processes and threads; waits until it is free. Nothing without `locks`."""


def open_store(data_root: str) -> Store:
    """The store of a data root: a folder, or a URL of an object store. Raises ConfigError for any other URL."""
    if "://" not in data_root:
        return LocalStore(Path(data_root))
    from lake_pipeline.io.objects import ObjectStore

    return ObjectStore(data_root)


def hash_file(store: Store, path: str) -> Record:
    """Path, SHA-256 and size of a file, read in blocks."""
    digest = hashlib.sha256()
    size = 0
    with store.open(path) as file:
        while block := file.read(_READ_BLOCK):
            digest.update(block)
            size += len(block)
    return Record(path=path, sha256=digest.hexdigest(), bytes=size)


class LocalStore:
    """A folder of a local or mounted file system.

    A file is written under a temporary name in its final folder, synced, and given its name by a hard
    link, which fails where the name is taken; then the folder is synced, or left to `settle`.
    """

    locks: Final = True

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root.absolute())

    def sub(self, path: str) -> LocalStore:
        """The store of a folder below."""
        return LocalStore(self._path(path))

    def exists(self, path: str) -> bool:
        """Whether there is a file of this name."""
        # Not Path.is_file, which takes some errors for an answer: "cannot tell" must not read as "not sealed".
        file = self._path(path)
        with explained("look at", file):
            try:
                return stat.S_ISREG(file.stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def read(self, path: str) -> bytes:
        """All of a file."""
        file = self._path(path)
        with explained("read", file):
            return file.read_bytes()

    def open(self, path: str) -> BinaryIO:
        """A file for random reads."""
        file = self._path(path)
        with explained("read", file):
            return file.open("rb")

    def filesystem(self) -> pafs.FileSystem:
        """The folder as pyarrow reads it."""
        return pafs.SubTreeFileSystem(self.uri, pafs.LocalFileSystem())

    def files(self, path: str = "") -> list[StoredFile]:
        """Every file below a folder, symbolic links included as they are."""
        found = []
        with explained("list", self._path(path)):
            for folder, folders, names in os.walk(self._path(path), onerror=_raise_unless_missing):
                # A link to a folder is not followed but is there, so it counts as a file.
                for name in (*names, *(each for each in folders if Path(folder, each).is_symlink())):
                    full = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):  # gone between listing and looking
                        status = full.lstat()
                        version = f"{status.st_size}-{status.st_mtime_ns}"
                        found.append(StoredFile(full.relative_to(self.root).as_posix(), status.st_size, version))
        return sorted(found, key=lambda file: os.fsencode(file.path))

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly below."""
        with explained("list", self._path(path)):
            try:
                with os.scandir(self._path(path)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                return []

    def create(self, path: str, data: bytes, *, settled: bool = True) -> None:
        """Write a new file, create-only."""
        with self._temporary(path, settled=settled) as (file, temporary):
            file.write(data)
            self._publish(file, temporary, path, settled=settled)

    def settle(self, *folders: str) -> None:
        """Sync the folders and those they are in, once each: files are synced when they get their names.

        Whoever made one of them may have been killed before the name was synced.
        """
        paths = [self._path(folder).absolute() for folder in dict.fromkeys(folders)]
        for each in dict.fromkeys(chain.from_iterable((path, *path.parents) for path in paths)):
            with explained("write", each):
                try:
                    _sync_folder(each)
                except OSError as error:
                    # Above the store are folders that were there before, and that others may not even open.
                    if error.errno == errno.EIO or each.is_relative_to(self.root.absolute()):
                        raise

    def replace(self, path: str, data: bytes | memoryview, *, durable: bool = True) -> None:
        """Write a file in place of any that is there."""
        with self._temporary(path) as (file, temporary):
            file.write(data)
            file.flush()
            if durable:
                _sync(file)
            temporary.rename(self._path(path))
            if durable:
                _sync_folder(temporary.parent)

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """Read, change, replace."""
        self.replace(path, change(self.read(path) if self.exists(path) else None))

    @contextlib.contextmanager
    def writer(self, path: str, *, durable: bool = True, settled: bool = True) -> Iterator[Sink]:
        """A stream into a new file."""
        with self._temporary(path, settled=settled) as (file, temporary):
            sink = Sink(file)
            yield sink
            try:
                self._publish(file, temporary, path, durable=durable, settled=settled)
            except AlreadyExists:
                present = hash_file(self, path)
                if (present.sha256, present.bytes) != (sink.sha256, sink.tell()):
                    raise

    def adopt(self, other: Store, path: str, *, settled: bool = True) -> None:
        """Link a file of another folder, or copy it where links do not reach."""
        final = self._path(path)
        with explained("write", final):
            _make_folder(final.parent, settled=settled)
            if isinstance(other, LocalStore):
                try:
                    os.link(other._path(path), final)
                except FileExistsError:
                    return
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                        raise
                else:
                    if settled:
                        _sync_folder(final.parent)
                    return
        with other.open(path) as file, self.writer(path, settled=settled) as sink:
            while block := file.read(_READ_BLOCK):
                sink.write(block)

    def delete(self, path: str) -> None:
        """Remove a file."""
        with explained("delete", self._path(path)):
            self._path(path).unlink(missing_ok=True)
            _sync_folder(self._path(path).parent)

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool) -> Iterator[None]:
        """Lock the root folder itself, so that no lock file is left in it."""
        with explained("lock", self.root):
            descriptor = os.open(self.root, os.O_RDONLY)
        try:
            with explained("lock", self.root):
                fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    def _path(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise StoreError(f"path {path!r} leaves the folder {self.root}")
        return self.root / path

    @contextlib.contextmanager
    def _temporary(self, path: str, *, settled: bool = True) -> Iterator[tuple[BinaryIO, Path]]:
        """An open temporary file beside `path`, removed at the end if it still has that name.

        `settled` is whether folders that have to be made for it are.
        """
        final = self._path(path)
        temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
        with explained("write", final):
            _make_folder(final.parent, settled=settled)
            try:
                with temporary.open("xb") as file:
                    yield file, temporary
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def _publish(
        self, file: BinaryIO, temporary: Path, path: str, *, durable: bool = True, settled: bool = True
    ) -> None:
        file.flush()
        if durable:
            _sync(file)
        try:
            os.link(temporary, self._path(path))
        except FileExistsError:
            raise AlreadyExists(f"{self._path(path)} exists already and is not replaced") from None
        if durable and settled:
            _sync_folder(temporary.parent)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _sync(file: BinaryIO) -> None:
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path, *, settled: bool) -> None:
    """Make a folder and its parents; `settled`, each new one synced into its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, settled=settled)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if settled:
        _sync_folder(folder.parent)


_ADVICE: Final = {
    errno.ENOSPC: "the disk is full: free some space and run again, what is committed stays",
    errno.EDQUOT: "the disk quota is used up: free some space and run again, what is committed stays",
    errno.EROFS: "the file system is read-only: choose another data_root or remount it",
    errno.EACCES: "permission denied: check the owner and mode of the folder",
    errno.EPERM: "not permitted: check the owner of the folder, and that its file system has hard links",
    errno.ENOTSUP: "not supported here: the lake needs a file system with hard links",
    errno.ENOTDIR: "a file is in the way of a folder: move it away",
    errno.ENOENT: "there is no such file",
    errno.EIO: "the disk reported an I/O error: check it before trusting anything on it",
}


@contextlib.contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what, where and what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise StoreError(f"cannot {action} {path}: {advice}") from error
