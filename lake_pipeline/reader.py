"""Reading runs from notebooks: `from lake_pipeline import open_run`.

    run = open_run("ci-1")
    run.coverage().to_pandas()
    run.slice("call-0007").to_pandas()

No engine, no Dagster: only files. An unsealed run is refused unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lake_pipeline.core.buckets import compute_mint_bucket
from lake_pipeline.core.manifest import Manifest
from lake_pipeline.core.schemas import COVERAGE_SCHEMA, SLICE_SCHEMA
from lake_pipeline.core.window import compute_window_slice
from lake_pipeline.errors import RunError, RunNotSealed
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table
from lake_pipeline.io.store import open_store
from lake_pipeline.run import Run, load_run
from lake_pipeline.settings import LakeSettings
from lake_pipeline.verify import VerifyReport, verify_run

__all__ = ["OpenRun", "open_run"]

_FOREVER: Final = 2**62


def open_run(run: str | Path, data_root: str | Path | None = None, *, allow_unsealed: bool = False) -> OpenRun:
    """Open a run by its id under `data_root` (default: LAKE_DATA_ROOT, else `data`) or by its folder's path or URL.

    Raises RunNotFound, RunNotSealed for a run without manifest unless `allow_unsealed`, and RunError for
    a damaged one.
    """
    folder = str(run).rstrip("/")
    run_id = folder.rpartition("/")[2].removeprefix("run_id=")
    if not folder.endswith(f"run_id={run_id}"):
        run_id = str(run)
        store = LakeSettings(data_root=None if data_root is None else str(data_root)).store()
    elif "://" in folder:
        store = open_store(folder.removesuffix(f"/{layout.run_folder(run_id)}"))
    else:
        store = open_store(str(Path(folder).parent.parent.parent))
    found = load_run(store, run_id)
    if not found.sealed and not allow_unsealed:
        raise RunNotSealed(
            f"run {run_id!r} is not sealed: what it holds may still change. Materialise `manifest`, "
            "or pass allow_unsealed=True to look at it as it is"
        )
    return OpenRun(found)


class OpenRun:
    """A run to read from; made by `open_run`. Tables are pyarrow; pandas by `.to_pandas()`."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __repr__(self) -> str:
        return f"<OpenRun {self.run_id!r} at {self.path}{'' if self.sealed else ', not sealed'}>"

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self._run.run_id

    @property
    def path(self) -> str:
        """The run's folder."""
        return self._run.store.uri

    @property
    def sealed(self) -> bool:
        """Whether the run has a manifest."""
        return self._run.sealed

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest. Raises RunNotSealed where there is none."""
        if not self._run.sealed:
            raise RunNotSealed(f"run {self.run_id!r} has no manifest: it is not sealed")
        return self._run.manifest()

    @cached_property
    def _alerts(self) -> pa.Table:
        return self._run.alerts()

    def alerts(self) -> pa.Table:
        """The normalised alerts: `alert_id, mint, ts, caller, chain`, sorted by (ts, alert_id)."""
        return self._alerts

    def coverage(self) -> pa.Table:
        """One row per alert, sorted like the alerts; docs/format.md has the columns."""
        return read_table(self._run.store, layout.COVERAGE, COVERAGE_SCHEMA)

    def candles(self, mint: str) -> pa.Table:
        """All stored candles of a mint, sorted by ts; no rows if the run has none."""
        return self._read(mint)

    def slice(self, alert_id: str) -> pa.Table:
        """The candles in one alert's window, sorted by ts. Raises RunError for an unknown alert_id."""
        row = pc.index(self._alerts.column("alert_id"), alert_id).as_py()
        if row < 0:
            raise RunError(f"run {self.run_id!r} has no alert {alert_id!r}; open_run(...).alerts() lists them")
        alert = self._alerts.slice(row, 1)
        spec = self._run.spec
        mint = alert.column("mint")[0].as_py()
        window = compute_window_slice(
            alert.column("ts").cast(pa.int64())[0].as_py(), spec.interval_s, spec.pre, spec.post
        )
        return self._read(mint, window["start_ts"], window["end_ts"])

    @cached_property
    def _filesystem(self) -> pafs.FileSystem:
        return self._run.store.filesystem()

    @property
    def _paths(self) -> list[str]:
        """The slice files: those of the manifest, or those there are while there is none."""
        folder = layout.slices_folder(self._run.spec)
        if self.sealed:
            return [entry.path for entry in self.manifest.files if entry.path.startswith(f"{folder}/")]
        return [file.path for file in self._run.store.files(folder) if not file.temporary]

    def scan(self) -> Any:
        """All slices as a pyarrow Dataset with `mint_bucket` as a partition column."""
        partitioning = pads.partitioning(pa.schema([("mint_bucket", pa.string())]), flavor="hive")
        return pads.dataset(
            self._paths,
            schema=SLICE_SCHEMA.append(pa.field("mint_bucket", pa.string())),
            format="parquet",
            filesystem=self._filesystem,
            partitioning=partitioning,
            partition_base_dir=layout.slices_folder(self._run.spec),
        )

    def verify(self) -> VerifyReport:
        """Check every byte and rule of the sealed run; `faults` of the report is empty if all is well."""
        return verify_run(self._run.store, self.run_id)

    def _read(self, mint: str, start_ms: int = -_FOREVER, end_ms: int = _FOREVER) -> pa.Table:
        """Candles of one mint in `[start_ms, end_ms)`; files and row groups that cannot have any are not read."""
        folder = f"{layout.bucket_folder(self._run.spec, compute_mint_bucket(mint))}/"
        found = [SLICE_SCHEMA.empty_table()]
        try:
            for path in self._paths:
                if path.startswith(folder):
                    with self._filesystem.open_input_file(path) as file:
                        found += _candles_of(file, mint, start_ms, end_ms)
        except (OSError, pa.ArrowException) as error:
            raise RunError(
                f"run {self.run_id!r} cannot be read: {str(error).splitlines()[0]}. `lake verify {self.run_id}` "
                "names what is damaged"
            ) from error
        return pa.concat_tables(found).combine_chunks()


def _candles_of(file: Any, mint: str, low_ms: int, high_ms: int) -> Iterator[pa.Table]:
    """The candles of a mint and time range in a part, which is sorted by (mint, ts): no row is compared twice."""
    parquet = pq.ParquetFile(file, read_dictionary=["mint"], pre_buffer=True)
    for number in range(parquet.num_row_groups):
        statistics = parquet.metadata.row_group(number).column(0).statistics
        # Parquet may cut long names short in statistics, the lower bound down and the upper one up.
        if statistics is not None and statistics.has_min_max and not statistics.min <= mint <= statistics.max:
            continue
        table = parquet.read_row_group(number)
        names = table.column("mint").combine_chunks()
        code = pc.index(names.dictionary, mint).as_py()
        rows = np.flatnonzero(names.indices.to_numpy() == code)
        if len(rows) == 0:
            continue
        times = table.column("ts").cast(pa.int64()).to_numpy()[rows[0] : rows[-1] + 1]
        first, end = np.searchsorted(times, (low_ms, high_ms)).tolist()
        yield table.slice(int(rows[0]) + first, end - first).cast(SLICE_SCHEMA)
