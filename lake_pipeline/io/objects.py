"""A lake in an object store: S3, Google Cloud Storage, Azure Blob Storage and what speaks their protocols.

Nothing here replaces an object that holds content of a run: new objects are made by conditional requests, which
the store decides, not the client. docs/decisions/0009-object-stores.md says why that does without locks.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from lake_pipeline.errors import AlreadyExists, ConfigError, StoreError, StoreUnavailable
from lake_pipeline.io.store import TEMPORARY_PREFIX, Sink, Store, StoredFile, explained, hash_file

__all__ = ["ObjectStore", "refuse_secret"]

_SCHEMES: Final = ("s3", "gs", "az")
# The most one request carries: it must get through within the client's time-out, 30 s unless the environment says
# otherwise, and a few of them in memory for each thread must not matter.
_BLOCK: Final = 8 << 20
_UPLOADS_AT_ONCE: Final = 4
# Some 12 s of waiting in all, like the candle source's.
_RETRY: Final[Any] = {
    "max_retries": 6,
    "retry_timeout": dt.timedelta(minutes=2),
    "backoff": {"init_backoff": dt.timedelta(milliseconds=200), "max_backoff": dt.timedelta(seconds=8), "base": 2},
}


class ObjectStore:
    """Objects below a prefix of a bucket. Credentials come from the environment or the platform, never by the URL.

    A file is one object, made by a conditional request: whole or not there. One larger than a request is uploaded
    in parts under a temporary name at the data root and copied to its own on the condition that it is free.
    """

    locks: Final = False

    def __init__(self, url: str) -> None:
        """The store of a data root. Raises ConfigError for a URL that can never be one."""
        self._root = self.uri = _checked(url)
        options: dict[str, Any] = {}
        if url.startswith("s3:") and not os.environ.get("AWS_COPY_IF_NOT_EXISTS"):
            options["copy_if_not_exists"] = "multipart"  # what S3 itself understands; some others want a header
        try:
            self._objects: Any = from_url(self.uri, retry_config=_RETRY, **options)
        except (BaseError, ValueError) as error:
            raise ConfigError(f"data_root {self.uri} cannot be used: {_first_line(error)}") from None
        self._prefix = ""

    def sub(self, path: str) -> ObjectStore:
        """The store of a prefix below."""
        below = object.__new__(ObjectStore)
        below._root, below._objects = self._root, self._objects
        below._prefix = f"{self._key(path)}/"
        below.uri = f"{self.uri}/{path}"
        return below

    def exists(self, path: str) -> bool:
        """Whether there is an object of this name."""
        with self._explained("look for", path):
            try:
                self._objects.head(self._key(path))
            except FileNotFoundError:
                return False
            return True

    def read(self, path: str) -> bytes:
        """All of an object."""
        with self._explained("read", path):
            return bytes(self._objects.get(self._key(path)).bytes())

    def open(self, path: str) -> BinaryIO:
        """An object to be read mostly in order: a request a block, the first of which comes with this call."""
        with self._explained("read", path):
            try:
                result = self._objects.get(self._key(path), options={"range": (0, _BLOCK)})
                size, first = result.meta["size"], bytes(result.bytes())
            except BaseError as error:
                if _status(str(error)) != 416:
                    raise
                size, first = 0, b""  # no range of an empty object can be had
        return cast(BinaryIO, io.BufferedReader(_Reader(self, path, size, first), _BLOCK))

    def filesystem(self) -> pafs.FileSystem:
        """The objects as a pyarrow filesystem, read-only, where only the ranges asked for are fetched."""
        return pafs.PyFileSystem(_ReadOnlyHandler(self))

    def files(self, path: str = "") -> list[StoredFile]:
        """Every object below a prefix."""
        with self._explained("list", path):
            found = [
                StoredFile(meta["path"].removeprefix(self._prefix), meta["size"], str(meta["e_tag"]))
                for chunk in self._objects.list(self._key(path) or None)
                for meta in chunk
            ]
        return sorted(found, key=lambda file: file.path.encode())

    def folders(self, path: str) -> list[str]:
        """What is between a prefix and the next slash, of every object below that has one."""
        with self._explained("list", path):
            prefixes = self._objects.list_with_delimiter(self._key(path) or None)["common_prefixes"]
        return sorted(prefix.rpartition("/")[2] for prefix in prefixes)

    def create(self, path: str, data: bytes, *, settled: bool = True) -> None:
        """Put a new object, create-only; it is settled in any case.

        Where a repeated request meets what the first one made, that is AlreadyExists too: look what is there.
        """
        with self._explained("write", path):
            _settled(lambda: self._objects.put(self._key(path), data, mode="create", use_multipart=False))

    def settle(self, *folders: str) -> None:
        """Nothing: what is put is durable."""

    def replace(self, path: str, data: bytes | memoryview, *, durable: bool = True) -> None:
        """Put an object in place of any that is there; what is put is durable in any case."""
        with self._explained("write", path):
            self._objects.put(self._key(path), data, chunk_size=_BLOCK, max_concurrency=_UPLOADS_AT_ONCE)

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """Put what `change` makes of the present content, once more if another process was quicker."""
        while True:
            with self._explained("write", path):
                mode: Any = "create"
                data = None
                with contextlib.suppress(FileNotFoundError):
                    present = self._objects.get(self._key(path))
                    mode = {name: present.meta[name] for name in ("e_tag", "version") if present.meta[name]}
                    data = bytes(present.bytes())
                with contextlib.suppress(AlreadyExistsError, PreconditionError):
                    self._objects.put(self._key(path), change(data), mode=mode, use_multipart=False)
                    return

    @contextlib.contextmanager
    def writer(self, path: str, *, durable: bool = True, settled: bool = True) -> Iterator[Sink]:
        """A stream into a new object, kept on the local disk until it ends: what fails before leaves no trace."""
        with (
            explained("write to", Path(tempfile.gettempdir())),
            tempfile.SpooledTemporaryFile(max_size=_BLOCK) as file,
        ):
            sink = Sink(cast(BinaryIO, file))
            yield sink
            file.seek(0)
            try:
                if sink.tell() <= _BLOCK:
                    self.create(path, file.read())
                else:
                    self._create_large(path, file)
            except AlreadyExists:
                present = hash_file(self, path)
                if (present.sha256, present.bytes) != (sink.sha256, sink.tell()):
                    raise AlreadyExists(
                        f"{self.uri}/{path} exists with other content and is not replaced. An earlier attempt left "
                        "it, and what it was made of has changed; or another process is at work on it. Nothing is "
                        "deleted here, where nobody can be locked out: when no process exports this run, delete the "
                        "object and run again"
                    ) from None

    def adopt(self, other: Store, path: str, *, settled: bool = True) -> None:
        """Have the store copy an object of the same lake, or copy it through here; other content is AlreadyExists."""
        if isinstance(other, ObjectStore) and other._root == self._root:
            with contextlib.suppress(AlreadyExists), self._explained("write", path):
                _settled(lambda: self._objects.copy(other._key(path), self._key(path), overwrite=False))
                return
        with other.open(path) as file, self.writer(path) as sink:
            while block := file.read(_BLOCK):
                sink.write(block)

    def delete(self, path: str) -> None:
        """Remove an object; that it is gone is success."""
        with self._explained("delete", path), contextlib.suppress(FileNotFoundError):
            self._objects.delete(self._key(path))

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool) -> Iterator[None]:
        """Lock nothing."""
        yield

    def _key(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise StoreError(f"path {path!r} leaves the folder {self.uri}")
        return f"{self._prefix}{path}".rstrip("/")

    def _create_large(self, path: str, file: Any) -> None:
        """Upload in parts and give the object its name by a copy that fails where the name is taken.

        The temporary object is at the data root: no run's folder ever holds one.
        """
        temporary = f"{TEMPORARY_PREFIX}{secrets.token_hex(16)}"
        try:
            with self._explained("write", path):
                self._objects.put(
                    temporary, file, use_multipart=True, chunk_size=_BLOCK, max_concurrency=_UPLOADS_AT_ONCE
                )
                _settled(lambda: self._objects.copy(temporary, self._key(path), overwrite=False))
        finally:
            with contextlib.suppress(BaseError, OSError):
                self._objects.delete(temporary)

    @contextlib.contextmanager
    def _explained(self, action: str, path: str) -> Iterator[None]:
        """Turn what the client raises into errors of ours.

        Not chained to the client's, which quote requests and responses at length: they would end in logs.
        """
        where = f"{self.uri}/{path}".rstrip("/")
        try:
            yield
        except AlreadyExistsError:
            raise AlreadyExists(f"{where} exists already and is not replaced") from None
        except (BaseError, OSError, ValueError) as error:
            kind, advice = _explanation(error)
            raise kind(f"cannot {action} {where}: {advice}") from None


class _Reader(io.RawIOBase):
    """An object of known size for random reads: a range request for each, but for the bytes given at the start."""

    def __init__(self, store: ObjectStore, path: str, size: int, first: bytes = b"") -> None:
        super().__init__()
        self._store = store
        self._path = path
        self._size = size
        self._first = first
        self._position = 0

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the object goes, a request a block."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        for start in range(0, len(view), _BLOCK):
            block = view[start : start + _BLOCK]
            data = self._fetch(self._position, self._position + len(block))
            if len(data) != len(block):
                raise StoreError(f"{self._store.uri}/{self._path} became shorter while it was read")
            block[:] = data
            self._position += len(block)
        return len(view)

    def readall(self) -> bytes:
        """All that is left."""
        return self.read(max(0, self._size - self._position)) or b""

    def _fetch(self, start: int, end: int) -> bytes:
        if end <= len(self._first):
            return self._first[start:end]
        with self._store._explained("read", self._path):
            return bytes(self._store._objects.get_range(self._store._key(self._path), start=start, end=end))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is fetched."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True


class _ReadOnlyHandler(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """What pyarrow needs to read files of a store by path."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get_type_name(self) -> str:
        return "lake-objects"

    def normalize_path(self, path: str) -> str:
        return path

    def open_input_file(self, path: str) -> pa.PythonFile:
        with self._store._explained("read", path):
            size = self._store._objects.head(self._store._key(path))["size"]
        return pa.PythonFile(_Reader(self._store, path, size), mode="r")

    open_input_stream = open_input_file

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        kinds = {True: pafs.FileType.File, False: pafs.FileType.NotFound}
        return [pafs.FileInfo(path, type=kinds[self._store.exists(path)]) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return [
            pafs.FileInfo(file.path, type=pafs.FileType.File, size=file.size)
            for file in self._store.files(selector.base_dir)
        ]

    def _refuse(self, *arguments: Any) -> None:
        raise NotImplementedError("runs are read through this, not written")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse


def _settled(request: Callable[[], object]) -> None:
    """Make a create-only request, again while S3 says that another one for the name is not decided yet."""
    for wait_s in (0.1, 0.5, 2.0):
        try:
            request()
        except AlreadyExistsError as error:
            if "ConditionalRequestConflict" not in str(error):
                raise
            time.sleep(wait_s)
        else:
            return
    request()


def refuse_secret(setting: str, url: str) -> None:
    """Raise ConfigError, which does not repeat the URL, for one with credentials or parameters in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"{setting} is a malformed URL") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{setting} is a {parts.scheme}:// URL with credentials or parameters in it, and configuration is stored "
            "in the clear: leave them out and give credentials by the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, for example) or the platform. Replace those that were shown"
        )


def _checked(url: str) -> str:
    """The URL without a final slash, if it names a bucket and carries no credentials. Raises ConfigError."""
    refuse_secret("data_root", url)
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ConfigError(f"data_root {url!r} is of no known kind: give a folder, or a URL with {known}")
    prefix = parts.path.strip("/")
    if not parts.netloc or (prefix and {"", ".", ".."} & set(prefix.split("/"))):
        raise ConfigError(f"data_root {url!r} is malformed: give {parts.scheme}://<bucket>/<prefix>")
    return url.rstrip("/")


def _status(text: str) -> int | None:
    found = re.search(r"status code: (\d{3})", text)
    return int(found[1]) if found else None


# Where clients ask for the credentials of a machine or container when they were given none.
_METADATA_SERVICE: Final = re.compile(
    r"/latest/(api/token|meta-data)|169\.254\.170\.|computeMetadata|/metadata/identity"
)
_PERMISSIONS: Final = (
    "access denied: the account needs to list, get, put and delete objects there. Check the credentials in the "
    "environment, the region, and the bucket's policy"
)


def _explanation(error: Exception) -> tuple[type[StoreError], str]:
    """The kind of error, and what to do, from what the client says."""
    text = str(error)
    status = _status(text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if _METADATA_SERVICE.search(text):
        return StoreError, (
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the variables of your cloud), or run "
            "where the platform gives a role"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return StoreError, f"{code[1]}, {_PERMISSIONS}" if code else _PERMISSIONS
    if code and code[1] in ("NoSuchBucket", "ContainerNotFound"):
        return StoreError, "there is no such bucket: create it, or check data_root, region and endpoint"
    if isinstance(error, FileNotFoundError):
        return StoreError, "there is no such object"
    if isinstance(error, NotSupportedError) or status == 501:
        return StoreError, "the store lacks conditional requests, without which a lake is not safe: use another"
    said = f"status {status}{f' {code[1]}' if code else ''}" if status else _first_line(error)
    if "builder error" in text:
        return StoreError, "the endpoint is no https:// URL: correct it, or set AWS_ALLOW_HTTP=true for plain HTTP"
    if status in (408, 429) or (status or 0) >= 500 or (status is None and "HTTP error" in text):
        return StoreUnavailable, (
            f"the object store does not answer ({said}), and did not when asked again: check the network, the endpoint "
            "and the store's health, then run again; what is committed stays"
        )
    return StoreError, said


def _first_line(error: Exception) -> str:
    """What went wrong in the client's words, without the address it asked, which may carry a signature."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"https?://\S+", "<address>", line.rpartition(" - ")[2])
