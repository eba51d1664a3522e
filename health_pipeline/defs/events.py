"""Webhooks and requests over HTTP: what waits for a run, the runs that take it, and what shows that some is dead."""

import datetime as dt
from collections.abc import Iterator, Sequence

import dagster as dg

from health_pipeline.defs.jobs import file_upload, from_door, is_under_way, sync_jobs
from health_pipeline.defs.settled import SETTLED
from health_pipeline.defs.sources import FETCHED, PUSHED, RECEIVED_FILES, raw_key
from health_pipeline.providers.registry import get
from health_pipeline.staging.tables import schema_name

#: Those whose calls the receiver takes.
CALLING = [*PUSHED, *(provider for provider in FETCHED if provider.webhook is not None)]
#: Requested jobs that one tick asks runs for; the next are a tick later.
_JOBS_A_TICK = 20

#: What a person is alerted by is of the same run as the reading.
_AT_ONCE = dg.AssetSelection.assets(["health", "baselines"], ["health", "alerts"])

#: Fetch what was announced, stage it and what was pushed, apply; the providers are the tick's.
webhook_events = dg.define_asset_job(
    "webhook_events",
    selection=from_door(CALLING)
    | dg.AssetSelection.groups("catalogue", "canonical")
    | dg.AssetSelection.assets(SETTLED)
    | _AT_ONCE,
    description="What webhooks brought or announced, from the raw object to the canonical tables and alerts.",
)

#: Apart, because the next events would have to wait for it.
webhook_scores = dg.define_asset_job(
    "webhook_scores",
    selection=dg.AssetSelection.groups("engine") - _AT_ONCE,
    description="Loads, scores, forecasts and the rest of the engine, over what webhooks changed.",
)


@dg.sensor(
    job=webhook_events,
    minimum_interval_seconds=3,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Takes all webhook events that are due: one run for each day on which some were received. While "
    "it is under way, further events gather for the next.",
)
def webhook_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    from health_pipeline.ingestion import events
    from health_pipeline.warehouse.connection import open_warehouse

    engine = open_warehouse().engine
    now = dt.datetime.now(dt.UTC)
    events.bury(engine, now)
    due = events.due_days(engine, now)
    if not due:
        return dg.SkipReason("no event is due")
    if is_under_way(context.instance, webhook_events.name):
        return dg.SkipReason("events gather for the next run")
    repository = context.repository_def
    assert repository is not None
    layer = repository.get_job(webhook_events.name).asset_layer
    assets, checks = sorted(layer.executable_asset_keys), sorted(layer.asset_graph.asset_check_keys, key=str)
    return dg.SensorResult(
        run_requests=[_run_request(day, names, assets, checks) for day, names in sorted(due.items())]
    )


@dg.sensor(
    job=webhook_scores,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for scores and forecasts when runs of webhook events have ended since the last time.",
)
def scores_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    done = dg.RunsFilter(job_name=webhook_events.name, statuses=[dg.DagsterRunStatus.SUCCESS])
    newest = [record.dagster_run.run_id for record in context.instance.get_run_records(done, limit=1)]
    if not newest or newest[0] == context.cursor:
        return dg.SkipReason("no run of webhook events has ended since the last scores")
    if is_under_way(context.instance, webhook_scores.name):
        return dg.SkipReason("the run before has not ended")
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=newest[0])


def _run_request(
    day: dt.date, names: set[str], assets: Sequence[dg.AssetKey], checks: Sequence[dg.AssetCheckKey]
) -> dg.RunRequest:
    """A run of the day for these providers alone; the tables that follow from them are everybody's.

    What is checked is what came in. The tests of the canonical tables are the daily run's: here they would
    take longer than all the rest.
    """
    others = {
        door
        for provider in CALLING
        if provider.name not in names
        for door in (("raw", provider.name), (schema_name(provider.name),))
    }
    selected = {key for key in assets if tuple(key.path) not in others and tuple(key.path[:1]) not in others}
    raw = [raw_key(provider).to_python_identifier() for provider in CALLING if provider.name in names]
    return dg.RunRequest(
        partition_key=day.isoformat(),
        asset_selection=sorted(selected),
        asset_check_keys=[
            check
            for check in checks
            if check.asset_key in selected and check.asset_key.path[0] not in ("health", "health_internal")
        ],
        run_config={"ops": {name: {"config": {"plan": "events"}} for name in raw}},
        tags={"health_pipeline/providers": ",".join(sorted(names))},
    )


@dg.sensor(
    name="requested_jobs",
    jobs=[*sync_jobs.values(), file_upload],
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for a run of each job that was requested over HTTP (ops.ingestion_jobs); one for all files "
    "of a day. While files are being taken, others gather for the next run.",
)
def requested_jobs_sensor(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    from health_pipeline.ingestion import jobs
    from health_pipeline.warehouse.connection import open_warehouse

    engine = open_warehouse().engine
    kinds = ["sync", "upload"]
    if is_under_way(context.instance, file_upload.name):
        kinds.remove("upload")
    waiting = jobs.requested(engine, _JOBS_A_TICK, kinds)
    if not waiting:
        yield dg.SkipReason("no job is requested")
    uploads: dict[dt.date, list[int]] = {}
    for job in waiting:
        if job.kind == "upload":
            uploads.setdefault(job.window.start, []).append(job.job_id)
            continue
        name = raw_key(get(job.provider)).to_python_identifier()
        user_ids = [] if job.user_id is None else [job.user_id]
        yield dg.RunRequest(
            # The job is asked for once, even where this tick dies before it is noted.
            run_key=f"job {job.job_id}",
            job_name=sync_jobs[job.provider].name,
            run_config={"ops": {name: {"config": {"user_ids": user_ids, "job_id": job.job_id}}}},
            tags={
                "dagster/asset_partition_range_start": job.window.start.isoformat(),
                "dagster/asset_partition_range_end": job.window.end.isoformat(),
            },
        )
        jobs.queue(engine, job.job_id)
    for day, job_ids in uploads.items():
        yield dg.RunRequest(
            run_key=f"jobs {' '.join(map(str, job_ids))}",
            job_name=file_upload.name,
            partition_key=day.isoformat(),
            run_config={"ops": {RECEIVED_FILES: {"config": {"job_ids": job_ids}}}},
        )
        for job_id in job_ids:
            jobs.queue(engine, job_id)


defs = dg.Definitions(
    jobs=[webhook_events, webhook_scores], sensors=[webhook_sensor, scores_sensor, requested_jobs_sensor]
)
