"""Cached arrays beside the results of a run: one flat file a bucket, mapped into memory when it is used again.

A file is an array of 8-byte words. It is used only if its checksum, the data it was made of and the code that made it
are right; anything else is a miss with one warning. What is there may be deleted at any time.
"""

from __future__ import annotations

import io
import logging
import mmap
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from lake_pipeline.backtest.code import code_identity
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.io.store import LocalStore, Store

__all__ = ["HEAD", "CacheFiles", "CacheFolder"]

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]

# The head of a file: magic, identity (2 words), code (2), bucket, checksum (2).
HEAD: Final = 8
_CHECKSUM: Final = slice(6, 8)


@dataclass(frozen=True)
class CacheFolder:
    """A folder of a lake for what is computed from the same data; `identity` (JSON values) says which data."""

    lake: Store
    name: str
    identity: dict[str, Any]

    @property
    def store(self) -> Store:
        """The store of this folder."""
        return self.lake.sub(self.name)

    def there(self) -> bool:
        """Whether there is such a folder."""
        parent, _, name = self.name.rpartition("/")
        return name in self.lake.folders(parent)

    def holds(self, bucket: str, kind: str) -> bool:
        """Whether a bucket has a file of this kind, right or wrong."""
        return self.store.exists(f"{bucket}.{kind}")

    def files(self, kind: str, magic: bytes, module: str, otherwise: str) -> CacheFiles:
        """Its files `<bucket>.<kind>`, made by the code of a module.

        `magic` is 8 bytes, others for another format; `otherwise` says in a warning what is done without them.
        """
        code = canonical_json(code_identity(module))
        digests = [_digest(canonical_json(self.identity)), _digest(code)]
        return CacheFiles(self.store, kind, np.concatenate([np.frombuffer(magic, np.int64), *digests]), otherwise)


class CacheFiles:
    """The files of one kind in a folder, by bucket."""

    def __init__(self, store: Store, kind: str, origin: Int64Array, otherwise: str) -> None:
        self._store = store
        self._kind = kind
        self._origin = origin
        self._otherwise = otherwise
        self._warned = False

    def read(self, bucket: str) -> Int64Array | None:
        """The words of a bucket's file, head included; None where there is none to use."""
        path = f"{bucket}.{self._kind}"
        if not self._store.exists(path):
            return None
        words = _map_words(self._store, path)
        if words is not None and np.array_equal(words[:HEAD], self._head(bucket, words)):
            return words
        if not self._warned:
            self._warned = True
            logger.warning(
                "cached %s in %s are damaged or of another version, %s first: %s",
                self._kind,
                self._store.uri,
                path,
                self._otherwise,
            )
        return None

    def write(self, bucket: str, words: Int64Array) -> None:
        """Keep these words as a bucket's file; the head is filled in."""
        words[:HEAD] = self._head(bucket, words)
        self._store.replace(f"{bucket}.{self._kind}", words.data.cast("B"), durable=False)

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
            size = file.seek(0, io.SEEK_END)
            data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    else:
        data = store.read(path)
    if len(data) % 8 or len(data) < 8 * HEAD:
        return None
    return np.frombuffer(data, np.int64)
