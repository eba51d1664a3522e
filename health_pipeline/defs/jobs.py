"""When things run: the daily job, a job a provider, the search for gaps, the file job and its sensor."""

import datetime as dt
import zlib

import dagster as dg

from health_pipeline.defs.settled import SETTLED
from health_pipeline.defs.sources import BOTH, FETCHED, UPLOADED, raw_key
from health_pipeline.providers.base import Provider
from health_pipeline.staging.tables import schema_name

#: Without the views between staging and canonical: the run makes them by itself where the project has changed.
DERIVED = dg.AssetSelection.groups("catalogue", "canonical", "engine") | dg.AssetSelection.assets(SETTLED)


#: Those that can be asked: an API that is shut down keeps its assets, for what came before.
ASKED = [provider for provider in FETCHED if provider.successor is None]


def from_door(providers: list[Provider]) -> dg.AssetSelection:
    raw = dg.AssetSelection.assets(*(raw_key(provider) for provider in providers))
    staging = dg.AssetSelection.key_prefixes(*([schema_name(provider.name)] for provider in providers))
    return raw | staging


#: Fetch, stage, apply, compute: every provider that is fetched, for a day or, as one run, a range of days.
daily_refresh = dg.define_asset_job(
    "daily_refresh",
    selection=from_door(FETCHED) | DERIVED,
    description="Everything the day's data needs, from the providers' APIs to the forecasts.",
)

#: The same for one provider: `health-pipeline sync`, `health-pipeline backfill` and the polling schedules.
sync_jobs = {
    provider.name: dg.define_asset_job(
        f"sync_{provider.name}",
        selection=from_door([provider]) | DERIVED,
        description=f"{provider.title} alone, from its API to the forecasts.",
    )
    for provider in ASKED
}

#: Looks for days that a provider should have and we have not, and fetches those.
reconcile = dg.define_asset_job(
    "reconcile",
    selection=from_door(ASKED) | DERIVED,
    config={
        "ops": {raw_key(provider).to_python_identifier(): {"config": {"plan": "gaps"}} for provider in ASKED}
    },
    description="Days since an account's first that no fetch covered, up to the partition's; each provider is "
    "asked for these alone, and for nothing where there are none.",
)

#: The same for files: take the inbox, stage what was received on the day, apply, compute.
file_upload = dg.define_asset_job(
    "file_upload",
    selection=from_door(UPLOADED)
    | dg.AssetSelection.key_prefixes(*([schema_name(provider.name)] for provider in BOTH))
    | DERIVED,
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


@dg.schedule(
    job=reconcile,
    cron_schedule="30 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Fetches the days that were missed, up to yesterday.",
)
def reconcile_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    if not _asks_somebody(ASKED):
        return dg.SkipReason("no account is connected")
    yesterday = context.scheduled_execution_time.date() - dt.timedelta(days=1)
    return dg.RunRequest(partition_key=yesterday.isoformat())


def _polling_schedule(provider: Provider) -> dg.ScheduleDefinition:
    job = sync_jobs[provider.name]
    # Each at a minute of its own, the same in every process.
    minute = zlib.crc32(provider.name.encode()) % 60

    @dg.schedule(
        name=f"poll_{provider.name}",
        job=job,
        cron_schedule=f"{minute} */{provider.poll_hours} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Asks {provider.title} for today every {provider.poll_hours} hours, where it has an account.",
    )
    def poll(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        from health_pipeline.connections.endpoints import ProviderNotConfiguredError, endpoint_of
        from health_pipeline.settings import load_settings

        if not _asks_somebody([provider]):
            return dg.SkipReason(f"no account is connected to {provider.title}")
        try:
            endpoint_of(provider, load_settings())
        except ProviderNotConfiguredError as error:
            return dg.SkipReason(str(error))
        if is_under_way(context.instance, job.name):
            return dg.SkipReason(f"the run before has not ended: {job.name}")
        return dg.RunRequest(partition_key=context.scheduled_execution_time.date().isoformat())

    return poll


def _asks_somebody(providers: list[Provider]) -> bool:
    """Whether any of the providers has an active account."""
    from health_pipeline.connections.accounts import active_accounts
    from health_pipeline.warehouse.connection import open_warehouse

    engine = open_warehouse().engine
    return any(active_accounts(engine, provider.name) for provider in providers)


polling_schedules = [_polling_schedule(provider) for provider in ASKED if provider.poll_hours < 24]


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
    if fingerprint == context.cursor and is_under_way(context.instance, file_upload.name):
        return dg.SkipReason(f"{len(unseen)} files wait for the run that takes them")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return dg.SensorResult(run_requests=[dg.RunRequest(partition_key=today)], cursor=fingerprint)


def is_under_way(instance: dg.DagsterInstance, job_name: str) -> bool:
    """Whether a run of the job has yet to end; one that failed is asked for again."""
    unfinished = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
    ]
    filters = dg.RunsFilter(job_name=job_name, statuses=unfinished)
    return bool(instance.get_run_records(filters, limit=1))


defs = dg.Definitions(
    jobs=[daily_refresh, file_upload, *sync_jobs.values(), reconcile],
    schedules=[daily_schedule, reconcile_schedule, *polling_schedules],
    sensors=[inbox_sensor],
)
