"""Every error this package raises on purpose, in one tree.

    LakeError
    ├── ConfigError            a setting, option or argument that can never work
    │   └── NotConfigured        a schedule or sensor lacks a setting it needs
    ├── InputError             alerts or candles that cannot be used as they are
    ├── SourceError            the candle source: table, columns, credentials, engine
    │   ├── SourceUnavailable    (transient) refused, timed out, dropped: trying again may help
    │   ├── SourceChanged        (transient) candles changed while they were exported, and that was to be checked
    │   └── EngineBusy           another process owns the embedded database
    ├── StoreError             the lake's files: disk full, permissions, a foreign file
    │   ├── StoreUnavailable     (transient) the object store did not answer: trying again may help
    │   └── AlreadyExists        create-only met an existing object
    └── RunError               the run as a whole
        ├── RunNotFound
        ├── RunMismatch          this run_id belongs to another spec, alerts or source
        ├── RunSealed            a sealed run never changes
        ├── RunNotSealed         a reader asked for a run that is not finished
        ├── BucketsFailed        some buckets could not be exported; the others are committed
        ├── BucketsMissing       a seal was asked for while receipts are missing or invalid
        └── VerificationFailed   a sealed run is not what its manifest says

Each message says what, where (run, bucket, row) and what to do next. What belongs here: classes, and
whether they are transient. What does not: wording, which lives where the facts are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "AlreadyExists",
    "BucketsFailed",
    "BucketsMissing",
    "ConfigError",
    "EngineBusy",
    "InputError",
    "LakeError",
    "NotConfigured",
    "RunError",
    "RunMismatch",
    "RunNotFound",
    "RunNotSealed",
    "RunSealed",
    "SourceChanged",
    "SourceError",
    "SourceUnavailable",
    "StoreError",
    "StoreUnavailable",
    "VerificationFailed",
]


class LakeError(Exception):
    """Base of every error raised on purpose.

    `transient` errors may go away by themselves and are retried; all others are permanent. `exit_code`
    is what the `lake` command returns: 1 when a check failed, 2 for usage and environment.
    """

    transient: ClassVar[bool] = False
    exit_code: ClassVar[int] = 2


class ConfigError(LakeError):
    """A setting, option or argument that can never work."""


class NotConfigured(ConfigError):
    """A schedule or sensor was turned on without a setting it needs."""


class InputError(LakeError):
    """Alerts or candles that cannot be used as they are."""


class SourceError(LakeError):
    """The candle source cannot answer: table, columns, credentials or engine."""


class SourceUnavailable(SourceError):
    """The candle source did not answer; trying again may help."""

    transient = True


class SourceChanged(SourceError):
    """Candles changed in the source while they were exported; once nothing writes them, trying again helps."""

    transient = True


class EngineBusy(SourceError):
    """Another process owns the embedded database; or this one has another open, which no waiting ends (`passes`)."""

    def __init__(self, message: str, *, passes: bool = True) -> None:
        super().__init__(message)
        self.passes = passes


class StoreError(LakeError):
    """The lake's files cannot be read or written."""


class StoreUnavailable(StoreError):
    """The object store did not answer; trying again may help."""

    transient = True


class AlreadyExists(StoreError):
    """A create-only write met an existing object."""


class RunError(LakeError):
    """Base of errors about one run."""


class RunNotFound(RunError):
    """No run of this id under the data root."""


class RunMismatch(RunError):
    """The run_id belongs to another spec, other alerts or another source."""


class RunSealed(RunError):
    """A sealed run never changes."""


class RunNotSealed(RunError):
    """The run has no manifest yet."""

    exit_code = 1


class BucketsFailed(RunError):
    """Some buckets could not be exported; `failures` maps each to its error. The others are committed."""

    exit_code = 1

    def __init__(self, message: str, failures: dict[str, Exception]) -> None:
        super().__init__(message)
        self.failures = failures


class BucketsMissing(RunError):
    """A seal was asked for while the receipts of `buckets` are missing or invalid."""

    exit_code = 1

    def __init__(self, message: str, buckets: Sequence[str]) -> None:
        super().__init__(message)
        self.buckets = tuple(buckets)


class VerificationFailed(RunError):
    """A sealed run is not what its manifest says; `faults` names each difference."""

    exit_code = 1

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = tuple(faults)

    @classmethod
    def of(cls, run_id: str, faults: Sequence[str]) -> VerificationFailed:
        """The error of a sealed run with these faults, the first twenty of them in the message."""
        shown = "".join(f"\n  {fault}" for fault in faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        return cls(
            f"run {run_id} is sealed, but {len(faults)} things are not what was sealed:{shown}{more}\n"
            "A sealed run is never repaired: restore the files from a copy, or export under another run_id",
            faults,
        )
