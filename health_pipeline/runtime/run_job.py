"""Run a Dagster job in this process: the same definitions and the same record of it as in the UI."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_pipeline.providers.base import Window
from health_pipeline.runtime.dagster_home import prepare
from health_pipeline.settings import Settings, load_settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.lock import hold

if TYPE_CHECKING:
    import dagster as dg

#: Called with a line to show: a step that started, or what it says of its progress.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended. `failures` names each failed step with its error, `failed_checks` each check.

    `metadata` is what each asset said at its last materialisation, by its key with slashes.
    """

    run_id: str
    success: bool
    failures: tuple[str, ...] = ()
    failed_checks: tuple[str, ...] = ()
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def run_job(
    name: str,
    window: Window,
    settings: Settings,
    warehouse: Warehouse,
    *,
    run_id: str | None = None,
    run_config: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> RunOutcome:
    """Run a job for the day partitions in `window`, as one run; `without` the assets of these prefixes.

    `run_id` is a UUID of the caller's, for whom it matters.
    """
    os.environ.update(prepare(settings, warehouse))
    load_settings.cache_clear()  # the assets read the environment as it is now
    import logging
    import warnings

    warnings.filterwarnings("ignore")  # Dagster's beta notices are ours to read, not the user's
    import dagster as dg

    from health_pipeline.definitions import defs
    from health_pipeline.defs.dead_runs import COMMAND_TAG, end_dead_runs
    from health_pipeline.defs.resources import keep_connections

    # The console of a command shows progress; everything else is in the UI's event log.
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    failures: list[str] = []
    failed_checks: list[str] = []
    run_id = run_id or str(uuid.uuid4())
    metadata: dict[str, dict[str, Any]] = {}

    def watch(entry: dg.EventLogEntry, _cursor: str | None = None) -> None:
        event = entry.dagster_event
        if event is None:
            if on_progress is not None and int(entry.level) <= logging.INFO:
                on_progress(f"  {entry.user_message}")
            return
        if event.is_step_start and on_progress is not None:
            on_progress(str(event.step_key))
        elif event.is_step_up_for_retry and on_progress is not None:
            wait = event.step_retry_data.seconds_to_wait or 0
            on_progress(
                f"{event.step_key}: {_reason(event.step_retry_data.error)}; tried again in {wait:.0f} s"
            )
        elif event.is_step_materialization:
            found = event.step_materialization_data.materialization
            metadata[found.asset_key.to_user_string()] = {
                name: value.value for name, value in found.metadata.items()
            }
        elif event.is_step_failure:
            failures.append(f"{event.step_key}: {_reason(event.step_failure_data.error)}")
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                failed_checks.append(f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}")

    with dg.DagsterInstance.get() as instance, hold(warehouse.engine, f"run:{run_id}"):
        keep_connections(instance)
        end_dead_runs(instance, warehouse.engine)
        instance.add_event_listener(run_id, watch)
        # What dbt prints is in the run's log in the UI; here it would bury the progress.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            job = defs.resolve_job_def(name)
            selected = [key for key in job.asset_layer.executable_asset_keys if key.path[0] not in without]
            result = job.execute_in_process(
                instance=instance,
                run_id=run_id,
                asset_selection=selected if without else None,
                raise_on_error=False,
                run_config={
                    **(run_config or {}),
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                tags={
                    COMMAND_TAG: "true",
                    "dagster/asset_partition_range_start": window.start.isoformat(),
                    "dagster/asset_partition_range_end": window.end.isoformat(),
                },
            )
    return RunOutcome(run_id, result.success, tuple(failures), tuple(failed_checks), metadata)


def _reason(error: Any) -> str:
    """The innermost error's message: the outer ones say which step, which we say already."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip().splitlines()[0] if error is not None else "failed"
