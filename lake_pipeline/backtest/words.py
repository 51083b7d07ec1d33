"""Cached arrays: one flat file of 8-byte words a bucket, mapped into memory when it is used again.

A file is used only if its checksum, the data it was made of and the code that made it are right; anything else is a
miss with one warning. Folders of such files, and what they say of themselves, are the matter of `cache`.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from lake_pipeline.backtest.cache import cache_folder, describe, explain
from lake_pipeline.backtest.code import code_identity
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.io.store import LocalStore, Store

__all__ = ["HEAD", "CacheFiles", "CacheOrigin", "CacheStyle"]

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]

# The head of a file: magic, identity (2 words), code (2), bucket, checksum (2).
HEAD: Final = 8
_ORIGIN: Final = slice(0, 5)
_CHECKSUM: Final = slice(6, 8)


@dataclass(frozen=True)
class CacheOrigin:
    """What something is computed of: `identity` (JSON values) of the data of one run of a data root."""

    lake: Store
    run_id: str
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class CacheStyle:
    """A kind of cached arrays: files `<bucket>.<kind>`, made by the code of `module`.

    `magic` is 8 bytes, others for another format; `otherwise` says in a warning what is done without them.
    """

    kind: str
    module: str
    magic: bytes
    otherwise: str

    def missing(self, origin: CacheOrigin) -> str | None:
        """Why none of this kind are cached, None if there are."""
        return explain(origin.lake, origin.run_id, self.kind, origin.identity, code_identity(self.module))

    def files(self, origin: CacheOrigin) -> CacheFiles:
        """Those of an origin, in their place in its data root."""
        store = origin.lake.sub(cache_folder(origin.run_id, self.kind, origin.identity))
        return CacheFiles(store, self, origin.identity)


class CacheFiles:
    """The files of one kind in a folder, by bucket."""

    def __init__(self, store: Store, style: CacheStyle, identity: Mapping[str, Any]) -> None:
        self.store = store
        self._style = style
        self._identity, self._code = dict(identity), code_identity(style.module)
        digests = [_digest(canonical_json(part)) for part in (self._identity, self._code)]
        self._origin = np.concatenate([np.frombuffer(style.magic, np.int64), *digests])
        self._warned = False
        self._described = False

    def read(self, bucket: str) -> Int64Array | None:
        """The words of a bucket's file, head included; None where there is none to use."""
        path = self._path(bucket)
        if not self.store.exists(path):
            return None
        words = _map_words(self.store, path)
        if words is not None and np.array_equal(words[:HEAD], self._head(bucket, words)):
            return words
        if not self._warned:
            self._warned = True
            logger.warning(
                "cached %s in %s are damaged or of another version, %s first: %s",
                self._style.kind,
                self.store.uri,
                path,
                self._style.otherwise,
            )
        return None

    def write(self, bucket: str, words: Int64Array) -> None:
        """Keep these words as a bucket's file; the head is filled in."""
        if not self._described:
            self._described = True
            describe(self.store, self._style.kind, self._identity, self._code)
        words[:HEAD] = self._head(bucket, words)
        self.store.replace(self._path(bucket), words.data.cast("B"), durable=False)

    def problem(self) -> str | None:
        """Why a file of this folder would not be used, None if all of them would be."""
        for bucket in ALL_BUCKETS:
            path = self._path(bucket)
            words = _map_words(self.store, path) if self.store.exists(path) else self._origin
            if words is self._origin or (words is not None and np.array_equal(words[:HEAD], self._head(bucket, words))):
                continue
            if words is None or np.array_equal(words[_ORIGIN], self._origin):
                return f"{path} is damaged"
            return f"{path} was made by another version of the code or its libraries"
        return None

    def _path(self, bucket: str) -> str:
        return f"{bucket}.{self._style.kind}"

    def _head(self, bucket: str, words: Int64Array) -> Int64Array:
        """The head of a file of these words. The checksum finds damage at memory speed; it does not stop forgers."""
        head = np.concatenate([self._origin, [int(bucket, 16)], [0, 0]])
        digest = xxhash.xxh3_128(head.tobytes())
        digest.update(words[HEAD:].data)
        head[_CHECKSUM] = np.frombuffer(digest.digest(), np.int64)
        return head


def _digest(data: bytes) -> Int64Array:
    return np.frombuffer(xxhash.xxh3_128_digest(data), np.int64)


def _map_words(store: Store, path: str) -> Int64Array | None:
    """A file as 8-byte words, mapped where it is local; None if it is none of ours."""
    if isinstance(store, LocalStore):
        with store.open(path) as file:
            size = os.fstat(file.fileno()).st_size
            data: bytes | mmap.mmap = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    else:
        data = store.read(path)
    if len(data) % 8 or len(data) < 8 * HEAD:
        return None
    return np.frombuffer(data, np.int64)
