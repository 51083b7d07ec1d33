"""Runs to search, sealed once for a module."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.optimizer.runs_for_tests import Step, make_run, noise, planted

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def make_lake(engine: ClickHouseSource, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LocalStore]:
    """Makes data roots with a sealed run `searched`."""

    def make(step: Step, **of: Any) -> LocalStore:
        folder = tmp_path_factory.mktemp("searched")
        table = f"searched_{next(_NUMBERS)}"
        lake = LocalStore(folder / "data")
        with ClickHouseSource(SourceConfig(embedded_path=engine.config.embedded_path, table=table)) as source:
            make_run(engine, source, table, lake, folder, step, **of)
        return lake

    return make


@pytest.fixture(scope="module")
def noise_root(make_lake) -> LocalStore:
    """Fair coins. Copy before you add results."""
    return make_lake(noise, seed=5, mints=240)


@pytest.fixture(scope="module")
def planted_root(make_lake) -> LocalStore:
    """A known edge. Copy before you add results."""
    return make_lake(planted, seed=6, mints=200)


@pytest.fixture
def lake(noise_root: LocalStore, tmp_path: Path) -> LocalStore:
    """A copy of the noise to work on."""
    shutil.copytree(noise_root.root, tmp_path / "lake")
    return LocalStore(tmp_path / "lake")


@pytest.fixture
def run(lake: LocalStore) -> Run:
    return load_run(lake, "searched")
