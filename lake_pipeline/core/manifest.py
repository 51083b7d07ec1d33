"""The records of a run as typed models: run.json, receipts, manifest.json, result.json, and what ties them.

All are canonical JSON. None holds a wall clock, a host, a path outside the run or a thread count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.canonical import canonical_json, checksum_lines, root_hash, sha256_hex
from lake_pipeline.core.spec import LAKE_VERSION, RunSpec, run_fingerprint
from lake_pipeline.errors import RunError

__all__ = [
    "FileEntry",
    "Ledger",
    "Manifest",
    "Previous",
    "Receipt",
    "Record",
    "ResultRecord",
    "RunRecord",
    "Summary",
    "build_manifest",
    "parse_record",
]

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
ANCHOR_RULE: Final = "floor_to_interval(ts, interval)"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_bytes(self) -> bytes:
        """Canonical JSON; what is stored and hashed."""
        return canonical_json(self.model_dump(mode="json"))


_ModelT = TypeVar("_ModelT", bound=BaseModel)


def parse_record(model: type[_ModelT], data: bytes, path: str) -> _ModelT:
    """Read a stored record. Raises RunError naming `path` when it is not one."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise RunError(f"{path} is not a valid record: {where}: {first['msg']}") from error


class Record(_Model):
    """A sealed file: path inside the run, SHA-256 and size."""

    path: str
    sha256: Sha256
    bytes: Count


class FileEntry(Record):
    """A sealed data file. Times are epoch ms over its rows, null where it has none."""

    rows: Count
    min_ts_ms: int | None
    max_ts_ms: int | None


class Ledger(_Model):
    """Where every source row went: `source_rows = written + duplicates + rejected + outside_kept_windows`.

    `zero_volume` counts written candles without volume; it is information, not part of the sum.
    """

    source_rows: Count = 0
    written: Count = 0
    duplicates: Count = 0
    rejected: Count = 0
    outside_kept_windows: Count = 0
    zero_volume: Count = 0

    @property
    def balanced(self) -> bool:
        """Whether every source row is accounted for."""
        return self.source_rows == self.written + self.duplicates + self.rejected + self.outside_kept_windows

    def __add__(self, other: Ledger) -> Ledger:
        mine, theirs = self.model_dump(), other.model_dump()
        return Ledger(**{name: mine[name] + theirs[name] for name in mine})


class RunRecord(_Model):
    """run.json: the identity of a run, written once, before anything else.

    `source` is the source's identity (database, table, columns); `alerts_digest` is `table_digest` of
    the normalised alerts.
    """

    lake_version: Literal["v1"] = LAKE_VERSION
    run_id: str
    run_fingerprint: Sha256
    spec: dict[str, Any]
    alerts_digest: Sha256
    source: dict[str, Any]

    def differences(self, other: RunRecord) -> list[str]:
        """What differs in identity, as `name: mine != theirs`, nested settings by their own names."""

        def flat(record: RunRecord) -> dict[str, Any]:
            columns = record.source.get("columns", {})
            return {
                **record.spec,
                **{f"source.{name}": value for name, value in record.source.items() if name != "columns"},
                **{f"source.columns.{name}": value for name, value in columns.items()},
                "alerts": record.alerts_digest[:12],
            }

        mine, theirs = flat(self), flat(other)
        return [
            f"{name}: {mine.get(name)!r} != {theirs.get(name)!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


class Receipt(_Model):
    """One bucket's commit record.

    `coverage` holds, for the bucket's alerts in the order of inputs/alerts.parquet, their ids and each
    of coverage.MEASURES as a list. `rejected` is the file of the bucket's rejected candles, if any.
    """

    lake_version: Literal["v1"] = LAKE_VERSION
    run_fingerprint: Sha256
    mint_bucket: str
    mints: Count
    ledger: Ledger
    files: list[FileEntry]
    rejected: FileEntry | None
    coverage: dict[str, list[str] | list[Int64]]

    @model_validator(mode="after")
    def _coverage_is_a_table(self) -> Receipt:
        """Readers take the columns as one table of ids and numbers."""
        lengths = {len(values) for values in self.coverage.values()}
        texts = {name for name, values in self.coverage.items() if values and isinstance(values[0], str)}
        if "alert_id" not in self.coverage or len(lengths) != 1 or not texts <= {"alert_id"}:
            raise ValueError("coverage is not columns of one length, alert_id of text and the others of integers")
        return self

    @property
    def entries(self) -> list[FileEntry]:
        """All files of the bucket."""
        return [*self.files, *([self.rejected] if self.rejected else [])]


class Coverage(_Model):
    """Coverage of a run in counts of alerts."""

    min_required_pre: Count
    target_total: Count
    kept_events: Count
    dropped_events: Count
    complete: Count
    partial: Count
    insufficient: Count


class SliceSpec(_Model):
    """What the slices are."""

    dataset: Literal["ohlcv"] = "ohlcv"
    interval: str
    window: str
    anchor_rule: Literal["floor_to_interval(ts, interval)"] = ANCHOR_RULE
    chain: str


class Exporter(_Model):
    """The program that wrote the run."""

    name: str
    version: str


class AlertsInput(_Model):
    """The normalised alerts of the run."""

    path: str
    sha256: Sha256
    rows: Count
    digest: Sha256


class Inputs(_Model):
    """Everything the run was made from; `source_snapshot` is keyed by the kind of source."""

    alerts: AlertsInput
    source_snapshot: dict[str, dict[str, Any]]


class OutputSummary(_Model):
    """Totals of one slice dataset."""

    mint_buckets: Count
    files: Count
    rows: Count
    bytes: Count


class Previous(_Model):
    """The sealed run that a run names as the one before it: its root, and the hash of its manifest.json."""

    run_id: str
    content_sha256: Sha256
    manifest_sha256: Sha256


class Summary(BaseModel):
    """The few figures of a manifest that a list of runs shows, read without building the rest of it."""

    model_config = ConfigDict(frozen=True, strict=True)

    run_id: str
    slice_spec: SliceSpec
    inputs: Inputs
    coverage: Coverage
    outputs: dict[str, OutputSummary]


class Manifest(_Model):
    """manifest.json: the seal.

    `files` are the content (inputs, outputs, slices), sorted by path; `content_sha256` is their root
    hash. `records` are the other sealed files: the receipts and what they point to. run.json is not
    listed: it follows from this manifest (see `run_record`). `previous` is in the file only where there is one.
    """

    lake_version: Literal["v1"] = LAKE_VERSION
    run_id: str
    run_fingerprint: Sha256
    exporter: Exporter
    spec: dict[str, Any]
    inputs: Inputs
    slice_spec: SliceSpec
    outputs: dict[str, OutputSummary]
    coverage: Coverage
    ledger: Ledger
    files: list[FileEntry]
    records: list[Record]
    content_sha256: Sha256
    previous: Previous | None = None

    def document(self) -> dict[str, Any]:
        """What manifest.json says, as JSON values."""
        return self.model_dump(mode="json", exclude={"previous"} if self.previous is None else None)

    def to_bytes(self) -> bytes:
        """Canonical JSON; what is stored and hashed."""
        return canonical_json(self.document())

    def as_previous(self) -> Previous:
        """This run as the one before another."""
        return Previous(
            run_id=self.run_id, content_sha256=self.content_sha256, manifest_sha256=sha256_hex(self.to_bytes())
        )

    @property
    def run_spec(self) -> RunSpec:
        """The run's settings."""
        return RunSpec.from_canonical(self.spec)

    @property
    def run_record(self) -> RunRecord:
        """The run.json this manifest implies."""
        source = self.inputs.source_snapshot["clickhouse"]
        digest = self.inputs.alerts.digest
        return RunRecord(
            run_id=self.run_id,
            run_fingerprint=run_fingerprint(self.run_spec, digest, source),
            spec=self.spec,
            alerts_digest=digest,
            source=source,
        )

    def checksums(self, data: bytes) -> bytes:
        """SHA256SUMS: one line for every sealed file, this manifest and run.json included, by path.

        `data` is what `to_bytes` gives.
        """
        digests = {entry.path: entry.sha256 for entry in (*self.files, *self.records)}
        digests["run.json"] = sha256_hex(self.run_record.to_bytes())
        digests["manifest.json"] = sha256_hex(data)
        return checksum_lines(digests.items()).encode()

    @property
    def total_rows(self) -> int:
        """Candles in all slices."""
        return sum(output.rows for output in self.outputs.values())

    @property
    def total_files(self) -> int:
        """Number of slice files."""
        return sum(output.files for output in self.outputs.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all slice files."""
        return sum(output.bytes for output in self.outputs.values())


class ResultRecord(_Model):
    """result.json: the seal of a result computed from a sealed run.

    `identity` is everything that decides its content: the run's content_sha256, the selection, every parameter and the
    code; `key` is the first 12 hex digits of its SHA-256. `files` are the other files of the folder, sorted by path.
    """

    lake_version: Literal["v1"] = LAKE_VERSION
    kind: str
    key: str
    identity: dict[str, Any]
    files: list[Record]


def build_manifest(
    run: RunRecord,
    exporter: Exporter,
    receipts: Sequence[Receipt],
    receipt_records: Sequence[Record],
    inputs: Sequence[FileEntry],
    outputs: Sequence[FileEntry],
    coverage: pa.Table,
    slices_path: str,
    previous: Previous | None = None,
) -> Manifest:
    """The manifest of a complete run: a pure function of its records and tables.

    `inputs[0]` is inputs/alerts.parquet. Raises RunError when the receipts are not those of all 256
    buckets of this run or a ledger does not balance.
    """
    spec = RunSpec.from_canonical(run.spec)
    if tuple(receipt.mint_bucket for receipt in receipts) != ALL_BUCKETS:
        raise RunError(f"run {run.run_id}: a manifest needs the receipts of all 256 buckets, in order")
    for receipt in receipts:
        written = sum(file.rows for file in receipt.files)
        if not receipt.ledger.balanced or receipt.ledger.written != written:
            raise RunError(
                f"run {run.run_id}: the ledger of bucket {receipt.mint_bucket} does not balance: "
                f"{receipt.ledger.model_dump()}, rows in files {written}; delete its receipt and export it again"
            )
    if coverage.num_rows != inputs[0].rows:
        raise RunError(f"run {run.run_id}: coverage has {coverage.num_rows} rows for {inputs[0].rows} alerts")
    slices = [file for receipt in receipts for file in receipt.files]
    ledger = sum((receipt.ledger for receipt in receipts), Ledger())
    files = sorted([*inputs, *outputs, *slices], key=lambda file: file.path.encode())
    status: Mapping[str, int] = Counter(coverage.column("status").to_pylist())
    kept = sum(coverage.column("kept").to_pylist())
    return Manifest(
        run_id=run.run_id,
        run_fingerprint=run.run_fingerprint,
        exporter=exporter,
        spec=run.spec,
        inputs=Inputs(
            alerts=AlertsInput(
                path=inputs[0].path, sha256=inputs[0].sha256, rows=inputs[0].rows, digest=run.alerts_digest
            ),
            source_snapshot={"clickhouse": run.source},
        ),
        slice_spec=SliceSpec(interval=spec.interval, window=spec.window, chain=spec.chain),
        outputs={
            slices_path: OutputSummary(
                mint_buckets=sum(bool(receipt.files) for receipt in receipts),
                files=len(slices),
                rows=sum(file.rows for file in slices),
                bytes=sum(file.bytes for file in slices),
            )
        },
        coverage=Coverage(
            min_required_pre=spec.required_pre,
            target_total=spec.required_total,
            kept_events=kept,
            dropped_events=coverage.num_rows - kept,
            complete=status["complete"],
            partial=status["partial"],
            insufficient=status["insufficient"],
        ),
        ledger=ledger,
        files=files,
        records=sorted(receipt_records, key=lambda record: record.path.encode()),
        content_sha256=root_hash((file.path, file.sha256) for file in files),
        previous=previous,
    )
