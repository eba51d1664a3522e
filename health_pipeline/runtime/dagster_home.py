"""Dagster's instance: its configuration in the home, its storage in Postgres."""

from __future__ import annotations

import os
from pathlib import Path

from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

# The storage's URL is read from the environment: written here, its password would be in process lists.
_DAGSTER_YAML = """\
# Written by health-pipeline at every start; change it there.
storage:
  postgres:
    postgres_url:
      env: HEALTH_PIPELINE_DAGSTER_URL

concurrency:
  runs:
    max_concurrent_runs: 4
  pools:
    default_limit: 1
    granularity: op

# A webhook's run is not to wait five seconds in the queue.
run_coordinator:
  module: dagster
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1

run_launcher:
  module: health_pipeline.defs.run_launcher
  class: PreloadedRunLauncher

run_monitoring:
  enabled: true
  start_timeout_seconds: 180
  # A run that ended without giving its pools back keeps them from others no longer than this.
  free_slots_after_run_end_seconds: 60

retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days: {skipped: 2, failure: 30, success: 90}

telemetry:
  enabled: false

nux:
  enabled: false
"""


def prepare(settings: Settings, warehouse: Warehouse) -> dict[str, str]:
    """Write DAGSTER_HOME and return the environment in which Dagster and dbt find everything.

    A DAGSTER_HOME that is set already is left alone: production has its own dagster.yaml.
    """
    environment = {
        **warehouse.environment(),
        "HEALTH_PIPELINE_HOME": str(settings.home_path),
        "PYTHONWARNINGS": "ignore",
        # A backfill reports one event an asset and day; one by one they take longer than the work itself.
        "DAGSTER_EVENT_BATCH_SIZE": "500",
    }
    if settings.sandbox_url is not None:
        environment["HEALTH_PIPELINE_SANDBOX_URL"] = settings.sandbox_url
    if "DAGSTER_HOME" not in os.environ or os.environ["DAGSTER_HOME"] == str(home_of(settings)):
        home = home_of(settings)
        home.mkdir(parents=True, exist_ok=True)
        path = home / "dagster.yaml"
        if not path.exists() or path.read_text() != _DAGSTER_YAML:
            path.write_text(_DAGSTER_YAML)
        environment["DAGSTER_HOME"] = str(home)
    return environment


def home_of(settings: Settings) -> Path:
    return settings.home_path / "dagster"
