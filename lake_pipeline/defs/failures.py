"""How errors of the package look to Dagster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from lake_pipeline.errors import BucketsFailed, LakeError

__all__ = ["as_failure", "is_transient"]


def is_transient(error: LakeError) -> bool:
    """Whether running again may help: for a batch of buckets, if it may help any of them."""
    if isinstance(error, BucketsFailed):
        return any(isinstance(cause, LakeError) and cause.transient for cause in error.failures.values())
    return error.transient


@contextmanager
def as_failure() -> Iterator[None]:
    """Turn a LakeError into a Dagster Failure that shows its message, retried only where that may help."""
    try:
        yield
    except LakeError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"error": type(error).__name__},
            allow_retries=is_transient(error),
        ) from error
