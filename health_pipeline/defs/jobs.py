"""When things run: the daily job, the file job, and the sensor that looks for files."""

import datetime as dt

import dagster as dg

from health_pipeline.defs.sources import FETCHED, UPLOADED, raw_key
from health_pipeline.staging.tables import schema_name

#: Without the views between staging and canonical: the run makes them by itself where the project has changed.
_DERIVED = dg.AssetSelection.groups("catalogue", "canonical", "engine")


def _from_door(providers: list) -> dg.AssetSelection:  # type: ignore[type-arg]
    raw = dg.AssetSelection.assets(*(raw_key(provider) for provider in providers))
    staging = dg.AssetSelection.key_prefixes(*([schema_name(provider.name)] for provider in providers))
    return raw | staging


#: Fetch, stage, apply, compute: every provider that is fetched, for a day or, as one run, a range of days.
daily_refresh = dg.define_asset_job(
    "daily_refresh",
    selection=_from_door(FETCHED) | _DERIVED,
    description="Everything the day's data needs, from the providers' APIs to the forecasts.",
)

#: The same for files: take the inbox, stage what was received on the day, apply, compute.
file_upload = dg.define_asset_job(
    "file_upload",
    selection=_from_door(UPLOADED) | _DERIVED,
    description="Files of the inbox and of `health-pipeline upload`, from the file to the forecasts.",
)


@dg.schedule(
    job=daily_refresh,
    cron_schedule="0 13 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Fetches the day before, with each entity's look-back for what was revised.",
)
def daily_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    # At 13:00 UTC yesterday is over everywhere on earth.
    yesterday = context.scheduled_execution_time.date() - dt.timedelta(days=1)
    return dg.RunRequest(partition_key=yesterday.isoformat())


@dg.sensor(
    job=file_upload,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for files in the inbox (HEALTH_PIPELINE_INBOX_URL) and asks for a run where there are new ones.",
)
def inbox_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    from health_pipeline.ingestion.inbox import inbox_fingerprint, open_inbox, unseen_files
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    inbox = open_inbox(load_settings().inbox_location)
    unseen = unseen_files(open_warehouse().engine, inbox)
    if not unseen:
        return dg.SkipReason("no new files in the inbox")
    fingerprint = inbox_fingerprint(unseen)
    if fingerprint == context.cursor and _is_under_way(context):
        return dg.SkipReason(f"{len(unseen)} files wait for the run that takes them")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return dg.SensorResult(run_requests=[dg.RunRequest(partition_key=today)], cursor=fingerprint)


def _is_under_way(context: dg.SensorEvaluationContext) -> bool:
    """Whether a run of the job has yet to end; one that failed is asked for again."""
    unfinished = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
    ]
    filters = dg.RunsFilter(job_name=file_upload.name, statuses=unfinished)
    return bool(context.instance.get_run_records(filters, limit=1))


defs = dg.Definitions(jobs=[daily_refresh, file_upload], schedules=[daily_schedule], sensors=[inbox_sensor])
