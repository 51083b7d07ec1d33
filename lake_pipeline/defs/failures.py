"""How errors of the package look to Dagster."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from lake_pipeline.errors import BucketsFailed, LakeError

__all__ = ["as_failure", "interruptible", "is_transient"]


def is_transient(error: LakeError) -> bool:
    """Whether running again may help: for a batch of buckets, if it may help any of them."""
    if isinstance(error, BucketsFailed):
        return any(isinstance(cause, LakeError) and cause.transient for cause in error.failures.values())
    return error.transient


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C stop a long step at once; Dagster by itself notes it and waits for the step's end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


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
