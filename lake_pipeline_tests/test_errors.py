"""The error tree, and that bad input is told what, where and what to do next (DESIGN.md section 7)."""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lake_pipeline import errors
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import (
    BucketsFailed,
    BucketsMissing,
    ConfigError,
    InputError,
    LakeError,
    RunError,
    SourceChanged,
    SourceError,
    SourceUnavailable,
    StoreError,
    StoreUnavailable,
    VerificationFailed,
)
from lake_pipeline.export import load_alerts
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline_tests.candles_for_tests import T0_MS

SPEC = RunSpec("1m", "pre52_post4948")


def classes() -> list[type[LakeError]]:
    return [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, Exception)]


def test_every_error_is_public_one_of_the_tree_and_drawn_in_it() -> None:
    assert sorted(found.__name__ for found in classes()) == sorted(errors.__all__)
    for found in classes():
        assert issubclass(found, LakeError)
        assert found.__name__ in (errors.__doc__ or "")
        assert inspect.getdoc(found)


def test_the_tree_is_as_drawn() -> None:
    depth_of: list[type] = []
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.replace("─", " ").split() if word in errors.__all__), None)
        if name is None or not (line.startswith("    L") or "├" in line or "└" in line):
            continue
        depth = (line.index(name) - 4) // 4
        found = getattr(errors, name)
        if depth:
            assert found.__bases__ == (depth_of[depth - 1],), name
        depth_of[depth:] = [found]
    assert depth_of[0] is LakeError


def test_only_a_source_or_store_that_may_come_back_is_transient() -> None:
    assert [found for found in classes() if found.transient] == [SourceChanged, SourceUnavailable, StoreUnavailable]


def test_a_check_that_failed_exits_with_1_and_everything_else_with_2() -> None:
    ones = {found.__name__ for found in classes() if found.exit_code == 1}
    assert ones == {"BucketsFailed", "BucketsMissing", "RunNotSealed", "VerificationFailed"}
    assert {found.exit_code for found in classes()} == {1, 2}


def test_errors_carry_what_they_are_about() -> None:
    cause = StoreError("x")
    assert BucketsFailed("m", {"00": cause}).failures == {"00": cause}
    assert BucketsMissing("m", ["00", "01"]).buckets == ("00", "01")
    assert VerificationFailed("m", ["f"]).faults == ("f",)
    assert all(issubclass(found, RunError) for found in (BucketsFailed, BucketsMissing, VerificationFailed))


def csv(tmp_path: Path, content: str) -> str:
    (tmp_path / "alerts.csv").write_text(content)
    return str(tmp_path / "alerts.csv")


def refused(tmp_path: Path) -> object:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = SourceConfig(embedded_path=str(tmp_path), host="127.0.0.1", port=port)
    with ClickHouseSource(config, sleep=lambda _: None) as source:
        return source.table()


BAD_INPUT: dict[str, tuple[Callable[[Path], Any], type[LakeError], list[str]]] = {
    "a missing file": (
        lambda tmp: load_alerts(SPEC, str(tmp / "none.csv")),
        InputError,
        ["none.csv does not exist", "check the path"],
    ),
    "an unknown column": (
        lambda tmp: load_alerts(SPEC, csv(tmp, "coin,when\na,b\n")),
        InputError,
        ["no mint column", "name one of mint, token_address, address", "'coin', 'when'"],
    ),
    "a mint that is empty": (
        lambda tmp: load_alerts(SPEC, csv(tmp, f"mint,ts\n,{T0_MS}\n")),
        InputError,
        ["all 1 alerts were rejected", "mint is empty"],
    ),
    "a time that does not parse": (
        lambda tmp: load_alerts(SPEC, csv(tmp, "mint,ts\na,soon\n")),
        InputError,
        ["time 'soon' does not parse", "write ISO 8601"],
    ),
    "a window of another form": (
        lambda tmp: RunSpec("1m", "pre5"),
        ConfigError,
        ["window 'pre5'", "pre<N>_post<M>", "such as pre52_post4948"],
    ),
    "an unreachable threshold": (
        lambda tmp: RunSpec("1m", "pre5_post5", min_required_pre=6),
        ConfigError,
        ["min_required_pre 6 can never be reached", "give 0 to 5"],
    ),
    "a refused connection": (
        refused,
        SourceUnavailable,
        ["ClickHouse at 127.0.0.1:", "did not answer", "Check that the server runs"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_what_where_and_what_to_do(tmp_path: Path, case: str) -> None:
    action, kind, parts = BAD_INPUT[case]
    with pytest.raises(kind) as caught:
        action(tmp_path)
    for part in parts:
        assert part in str(caught.value)


def test_a_table_that_does_not_exist_is_told_how_to_make_it(engine: ClickHouseSource) -> None:
    config = SourceConfig(embedded_path=engine.config.embedded_path, table="none_such")
    with ClickHouseSource(config) as source, pytest.raises(SourceError) as caught:
        source.table()
    for part in (engine.config.embedded_path, "the table does not exist", "lake load-candles", "candle_source.table"):
        assert part in str(caught.value)


def test_importing_the_package_reads_neither_engine_nor_environment() -> None:
    code = (
        "import sys, os\n"
        "os.environ['LAKE_DATA_ROOT'] = '/nonexistent/x'\n"
        "import lake_pipeline, lake_pipeline.export, lake_pipeline.io.clickhouse\n"
        "heavy = [name for name in ('chdb', 'dagster', 'matplotlib', 'duckdb', 'obstore') if name in sys.modules]\n"
        "print(heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
