"""The files in deploy/: what they name exists, nothing in them is secret, and what can load them here does."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from lake_pipeline.automation import AutomationSettings, buckets_per_run, last_window_end
from lake_pipeline.defs.deployment import definitions_from_environment

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes/values.yaml").read_text())
(LOCATION,) = VALUES["dagster-user-deployments"]["deployments"]
SECRETS = {"DAGSTER_PG_PASSWORD", "CLICKHOUSE_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def documented() -> set[str]:
    """Environment variables docs/configuration.md explains."""
    page = (PROJECT / "docs/configuration.md").read_text(encoding="utf-8")
    return set(re.findall(r"`((?:LAKE|CLICKHOUSE|AWS)_[A-Z_]+[A-Z])[`=]", page))


def environments() -> list[tuple[str, dict[str, str]]]:
    """The code location's environment, by deployment."""
    return [
        ("compose", {name: str(value) for name, value in COMPOSE["services"]["code-location"]["environment"].items()}),
        ("kubernetes", {each["name"]: each["value"] for each in LOCATION["env"]}),
    ]


@pytest.mark.parametrize(("kind", "environ"), environments(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_variable_is_one_the_pipeline_reads(kind, environ):
    ours = {name for name in environ if not name.startswith("DAGSTER_")}
    assert {"LAKE_DATA_ROOT", "LAKE_BUCKETS_PER_RUN", "CLICKHOUSE_HOST"} <= ours
    assert ours <= documented()


@pytest.mark.parametrize(("kind", "environ"), environments(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_pipeline_takes_the_variables(kind, environ, tmp_path):
    assert buckets_per_run(environ)
    settings = AutomationSettings.from_environment(environ)
    run_json = (
        (DEPLOY / "run.json").read_text()
        if kind == "compose"
        else yaml.safe_load((DEPLOY / "kubernetes/run-config.yaml").read_text())["data"]["run.json"]
    )
    (tmp_path / "run.json").write_text(run_json)
    assert settings.run_config == "/config/run.json"
    local = AutomationSettings(**{**vars(settings), "run_config": str(tmp_path / "run.json")})
    day = dt.date(2026, 11, 15)
    config = local.of_day(day)
    assert config.alerts == "s3://lakes/alerts/2026-11-15.csv"
    tick = dt.datetime(2026, 11, 15, 0, 15, tzinfo=dt.UTC) + dt.timedelta(days=settings.lag_days)
    assert last_window_end(config) <= tick, "the nightly run would seal windows that are not over"
    made = definitions_from_environment(environ)
    assert made.get_repository_def().get_schedule_def("nightly_export").cron_schedule == "15 0 * * *"


def test_every_secret_comes_from_the_environment():
    shown = (DEPLOY / "docker-compose.yml").read_text()
    for line in shown.splitlines():
        name, _, value = line.strip().partition(": ")
        if re.search("PASSWORD|SECRET|ACCESS_KEY|ROOT_USER|WEBHOOK", name) and not name.startswith(("#", "- ")):
            assert value.startswith("${"), line
    referenced = set(re.findall(r"\$\{([A-Z_]+)", shown))
    example = (DEPLOY / ".env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE)) == referenced == SECRETS | {"LAKE_FAILURE_WEBHOOK"}
    assert not re.search(r"^[A-Z_]+=.", example, re.MULTILINE)
    values = (DEPLOY / "kubernetes/values.yaml").read_text()
    assert not re.search(r"(?i)password:\s*\S", values)
    assert not SECRETS & {each["name"] for each in LOCATION["env"]}
    assert "deploy/.env" in (PROJECT / ".gitignore").read_text().split()


def images() -> list[str]:
    found = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    found += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return [*found, f"{LOCATION['image']['repository']}:{LOCATION['image']['tag']}"]


@pytest.mark.parametrize("image", sorted(set(images())))
def test_images_are_pinned_and_named_as_usual(image):
    name, _, tag = image.partition(":")
    assert re.search(r"\d+\.\d+|\d{4}-\d\d-\d\d", tag), "not pinned"
    assert "." not in name.partition("/")[0], "names a registry"


def test_the_image_is_the_version_of_the_package_and_holds_what_deployments_need():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", dockerfile)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert {"postgres", "kubernetes"} <= set(extras.split(","))
    assert {image for image in images() if image.startswith("lake-pipeline")} == {f"lake-pipeline:{project['version']}"}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for sources in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        for source in sources.split():
            assert (PROJECT / source).exists(), source
            assert f"!{source}" in ignored, source


def commands() -> list[list[str]]:
    found = [COMPOSE["services"][name]["command"] for name in ("webserver", "daemon", "code-location")]
    found.append(COMPOSE["services"]["code-location"]["healthcheck"]["test"][1:])
    found.append(json.loads(re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[0]))
    found.append(["dagster", "api", "grpc", *LOCATION["dagsterApiGrpcArgs"]])
    return found


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[:3]))
def test_commands_exist_with_the_options_they_are_given(command):
    words = [word for word in command if re.fullmatch("[a-z][a-z-]*", word)]
    subcommands = [word for word in words[1:] if command.index(word) < min(
        [command.index(option) for option in command if option.startswith("--")], default=len(command)
    )]  # fmt: skip
    program = Path(sys.executable).with_name(command[0])
    shown = subprocess.run([program, *subcommands, "--help"], capture_output=True, text=True, check=True).stdout
    for option in command:
        if option.startswith("--"):
            assert option in shown, option


def test_services_that_are_waited_for_exist_and_say_when_they_are_ready():
    services = COMPOSE["services"]
    assert {"webserver", "daemon", "code-location", "postgres", "clickhouse", "objects"} <= set(services)
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in services, (name, other)
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in services[other], (name, other)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], (
                name,
                volume,
            )
    workspace = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())
    server = workspace["load_from"][0]["grpc_server"]
    assert server["host"] in services
    assert str(server["port"]) in services[server["host"]]["command"]


def test_docker_compose_takes_the_file():
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose here")
    secrets = dict.fromkeys(SECRETS, "x")
    done = subprocess.run(
        ["docker", "compose", "--file", DEPLOY / "docker-compose.yml", "config", "--quiet"],
        env={**os.environ, **secrets},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_dagster_takes_the_settings_of_the_instance(tmp_path, monkeypatch):
    pytest.importorskip("dagster_postgres", reason="needs the extra [postgres]: make test-scale installs it")
    from dagster._config import process_config
    from dagster._core.instance.config import dagster_instance_config

    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    for name in ("HOST", "PORT", "USERNAME", "PASSWORD", "DB"):
        monkeypatch.setenv(f"DAGSTER_PG_{name}", "5432")
    settings, _ = dagster_instance_config(str(tmp_path))
    assert settings["storage"]["postgres"]["postgres_db"]["scheme"] == "postgresql+psycopg2"
    from dagster_postgres import DagsterPostgresStorage

    checked = process_config(DagsterPostgresStorage.config_type(), settings["storage"]["postgres"])
    assert checked.success, checked.errors


def test_the_run_launcher_takes_its_values():
    k8s = pytest.importorskip("dagster_k8s", reason="needs the extra [kubernetes]: make test-scale installs it")
    from dagster._config import process_config
    from dagster_k8s.job import UserDefinedDagsterK8sConfig

    assert VALUES["runLauncher"]["type"] == k8s.K8sRunLauncher.__name__
    values = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    snake = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("K8s", "k8s").lower(): name for name in values}
    config = {name: values[camel] for name, camel in snake.items()}
    config |= {"instance_config_map": "i", "dagster_home": "/h", "service_account_name": "s"}
    fields = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): each for name, each in values["runK8sConfig"].items()}
    config["run_k8s_config"] = fields
    checked = process_config(k8s.K8sRunLauncher.config_type(), config)
    assert checked.success, checked.errors
    parsed = UserDefinedDagsterK8sConfig.from_dict(fields)
    assert parsed.container_config["resources"]["limits"]["memory"] == "3Gi"
