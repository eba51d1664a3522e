"""Runs whose process was killed: Dagster would wait for them, and keep their pools, for ever."""

import datetime as dt
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import sqlalchemy as sa

#: Marks runs that live in the process of a command, which holds their name before they start.
COMMAND_TAG = "health_pipeline/command"
#: Any other run holds its name (see Platform) this long after its start at the latest.
_GRACE = dt.timedelta(seconds=60)


def end_dead_runs(instance: dg.DagsterInstance, engine: "sa.Engine") -> list[str]:
    """Report the started runs that no process works on as failed, and free their pools; their ids.

    A run that lives holds the lock of its id.
    """
    from health_pipeline.warehouse.lock import hold

    latest = (dt.datetime.now(dt.UTC) - _GRACE).timestamp()
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    ended = []
    for record in instance.get_run_records(started):
        run = record.dagster_run
        if COMMAND_TAG not in run.tags and (record.start_time or 0) > latest:
            continue
        with hold(engine, f"run:{run.run_id}") as dead:
            if dead:
                end_dead_run(instance, run, "The process that worked on this run was killed.")
                ended.append(run.run_id)
    return ended


def end_dead_run(instance: dg.DagsterInstance, run: dg.DagsterRun, words: str) -> None:
    """Free the pools of a run that no process works on, and report it as failed.

    In this order: a run that is reported is not looked at again, and who reports it may be killed in between.
    """
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    instance.report_run_failed(run, words)


def serve_waiting_steps(instance: dg.DagsterInstance) -> None:
    """Give free places of pools to steps that wait for them.

    Who ends a step gives its place to the next in a transaction of its own: killed before that, the place is
    free and nobody's, and a step that waits is never asked again.
    """
    # Not at the top: with it come SQLAlchemy and Alembic, half of what the definitions take to import.
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    pools = instance.event_log_storage
    if not isinstance(pools, SqlEventLogStorage):
        return
    for name, pool in pools.get_concurrency_infos(sorted(pools.get_concurrency_keys())).items():
        given = sum(step.assigned_timestamp is not None for step in pool.pending_steps)
        if given < min(pool.slot_count, len(pool.pending_steps)):
            pools.assign_pending_steps([name])


@dg.sensor(
    name="dead_runs",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs whose process was killed, and the jobs they worked on, so that others go on.",
)
def dead_runs_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    from health_pipeline.ingestion import jobs
    from health_pipeline.warehouse.connection import open_warehouse

    engine = open_warehouse().engine
    ended = end_dead_runs(context.instance, engine)
    serve_waiting_steps(context.instance)
    for job in jobs.under_way(engine):
        run = context.instance.get_run_by_id(job.run_id or "")
        if run is not None and run.is_failure_or_canceled:
            jobs.finish(engine, job.job_id, job.last_error or f"run {run.run_id} failed; see the UI")
    return dg.SkipReason(f"ended {len(ended)} dead runs" if ended else "every run under way has its process")


defs = dg.Definitions(sensors=[dead_runs_sensor])
