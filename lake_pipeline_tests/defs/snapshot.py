"""The definitions as people and their configs, schedules and scripts know them: names, targets, settings, defaults.

    .venv/bin/python -m lake_pipeline_tests.defs.snapshot

writes them to `definitions.txt` beside this file, with which a test compares them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from lake_pipeline.defs.build import build_definitions

SNAPSHOT = Path(__file__).with_name("definitions.txt")


def describe(definitions: dg.Definitions) -> str:
    """One line for each thing that has a name."""
    parts = (_assets(definitions), _jobs(definitions), _automation(definitions), _resources(definitions))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _assets(definitions: dg.Definitions) -> Iterator[str]:
    graph = definitions.resolve_asset_graph()
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        tags = ", ".join(f"{name}={value}" for name, value in sorted(node.tags.items()) if "/kind/" not in name)
        yield f"asset {node.group_name}/{key.to_user_string()}"
        yield f"  after {', '.join(sorted(each.to_user_string() for each in node.parent_keys)) or 'nothing'}"
        if node.partitions_def:
            keys = node.partitions_def.get_partition_keys()
            yield f"  partitions {keys[0]}..{keys[-1]}, {len(keys)}"
        yield f"  backfill {node.backfill_policy.policy_type.value if node.backfill_policy else 'none'}"
        yield f"  kinds {', '.join(sorted(node.kinds))}; tags {tags}"
        for check in sorted(node.check_keys):
            yield f"  check {check.name}{', blocking' if graph.get(check).blocking else ''}"


def _jobs(definitions: dg.Definitions) -> Iterator[str]:
    for job in sorted(definitions.resolve_all_job_defs(), key=lambda each: each.name):
        if job.name.startswith("__"):
            continue
        needed = {key for node in job.graph.node_defs for key in node.required_resource_keys}  # type: ignore[attr-defined]
        yield f"job {job.name}"
        yield f"  assets {', '.join(sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys))}"
        yield f"  resources {', '.join(sorted(needed))}"
        yield f"  loggers {', '.join(sorted(job.loggers))}; executor {job.executor_def.name}"
        yield f"  launchpad {_plain(job.run_config)}"
        yield f"  tags {_plain(job.tags)}"


def _automation(definitions: dg.Definitions) -> Iterator[str]:
    repository = definitions.get_repository_def()
    for schedule in sorted(repository.schedule_defs, key=lambda each: each.name):
        when = f"{schedule.cron_schedule} {schedule.execution_timezone}"
        yield f"schedule {schedule.name}: {schedule.job_name}, {when}, {schedule.default_status.value}"
    for sensor in sorted(repository.sensor_defs, key=lambda each: each.name):
        targets = ", ".join(target.job_name for target in sensor.targets) or sensor.sensor_type.value
        interval = f"every {sensor.minimum_interval_seconds} s"
        yield f"sensor {sensor.name}: {targets}, {interval}, {sensor.default_status.value}"


def _resources(definitions: dg.Definitions) -> Iterator[str]:
    for name, resource in sorted(definitions.get_repository_def().get_top_level_resources().items()):
        yield f"resource {name}"
        for field, config in sorted(resource.config_schema.config_type.fields.items()):
            kind = config.config_type.key.replace("Noneable.", "").replace("SourceType", "")
            default = _plain(config.default_value) if config.default_provided else "required"
            yield f"  {field}: {kind} = {default}"


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


if __name__ == "__main__":
    SNAPSHOT.write_text(describe(build_definitions()), encoding="utf-8")
