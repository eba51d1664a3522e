"""What comes in: `raw/<provider>` and `staging_<provider>/<entity>` for every registered provider."""

import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import dagster as dg
import pyarrow as pa

from health_pipeline.defs.partitions import DAILY, ONE_RUN, window_of
from health_pipeline.defs.resources import Platform
from health_pipeline.providers.base import Provider
from health_pipeline.providers.registry import all_providers
from health_pipeline.staging.tables import schema_name, sql_type, table_schemas

if TYPE_CHECKING:
    from health_pipeline.ingestion.fetch import FetchReport

#: The check that tells an outage of a provider; the run goes on without it.
ANSWERS = "provider_answers"
_RETRIES = 2
#: The step that takes files in.
RECEIVED_FILES = "received_files"
OWNERS = ["team:data-engineering"]


class FetchConfig(dg.Config):
    """Which users to fetch for, by number; all connected ones where it is empty.

    `plan` is `window` for the days of the partition, `gaps` for days up to its end that should be raw and are
    not, `events` for what webhooks of the partition's day announced and is due. `job_id` is the row of
    ops.ingestion_jobs that the fetch works on and resumes, if any.
    """

    user_ids: list[int] = []  # noqa: RUF012 - a pydantic field
    plan: Literal["window", "gaps", "events"] = "window"
    job_id: int | None = None


class ReceivedConfig(dg.Config):
    """`job_ids` are the rows of ops.ingestion_jobs whose files this run takes on their way."""

    job_ids: list[int] = []  # noqa: RUF012 - a pydantic field


class StagingConfig(dg.Config):
    """`replay` parses the days' objects again although they are staged: after a parser was mended."""

    replay: bool = False


def raw_key(provider: Provider) -> dg.AssetKey:
    return dg.AssetKey(["raw", provider.name])


def fetched_asset(provider: Provider) -> dg.AssetsDefinition:
    """`raw/<provider>`: the API's answers for the days of the partition, exactly as they came."""

    @dg.asset(
        key=raw_key(provider),
        description=f"Answers of {provider.title} for the day, with the look-back of each entity, as received. "
        "One failing account does not fail the others: see the check and `health-pipeline status`.",
        partitions_def=DAILY,
        backfill_policy=ONE_RUN,
        pool=f"{provider.name}_fetch",
        group_name="raw",
        kinds={"http", "s3"},
        owners=OWNERS,
        freshness_policy=dg.FreshnessPolicy.time_window(
            fail_window=dt.timedelta(days=3), warn_window=dt.timedelta(days=2)
        ),
        retry_policy=dg.RetryPolicy(max_retries=_RETRIES, delay=60, backoff=dg.Backoff.EXPONENTIAL),
        check_specs=[
            dg.AssetCheckSpec(
                ANSWERS,
                asset=raw_key(provider),
                description=f"{provider.title} answered somebody, or nobody was asked.",
            )
        ],
    )
    def raw(
        context: dg.AssetExecutionContext, config: FetchConfig, platform: Platform
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from health_pipeline.connections.endpoints import ProviderNotConfiguredError
        from health_pipeline.ingestion.fetch import FetchReport, ProviderOutageError

        outage = None
        try:
            if config.plan == "events":
                report = _work_on_events(context, platform, provider)
            else:
                report = _fetch(context, config, platform, provider)
        except ProviderNotConfiguredError as error:
            # Waiting does not mend it.
            raise dg.Failure(str(error), allow_retries=False) from error
        except ProviderOutageError as error:
            if context.retry_number < _RETRIES:
                raise
            # The other providers of this run are not to wait for this one.
            context.log.error(str(error))
            report, outage = FetchReport(provider.name), str(error)
        return dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    check_name=ANSWERS, passed=outage is None, metadata={"outage": outage or "none"}
                )
            ],
            metadata={
                "accounts": len(report.accounts),
                "accounts_failed": len(report.failed),
                "windows": report.windows,
                "windows_skipped": report.windows_skipped,
                "objects_new": report.new_objects,
                "objects_known": report.known_objects,
                "bytes_received": report.bytes_received,
            },
        )

    return raw


def _work_on_events(
    context: dg.AssetExecutionContext, platform: Platform, provider: Provider
) -> "FetchReport":
    from health_pipeline.ingestion import traces
    from health_pipeline.ingestion.announced import work_on_events
    from health_pipeline.ingestion.fetch import FetchReport

    day = window_of(context)
    with traces.step(platform.warehouse().engine, context.run_id, "claim and fetch", provider.name):
        report = work_on_events(
            platform.warehouse(),
            platform.store(),
            platform.vault(),
            platform.settings,
            provider,
            day.start,
            context.run_id,
        )
    context.log.info(f"{provider.title}: {report.claimed} events, {report.failed} put off")
    for error in sorted(report.errors):
        context.log.warning(f"{provider.title}: {error}")
    return report.fetch or FetchReport(provider.name)


def _fetch(
    context: dg.AssetExecutionContext, config: FetchConfig, platform: Platform, provider: Provider
) -> "FetchReport":
    from health_pipeline.connections.accounts import active_accounts
    from health_pipeline.ingestion import jobs
    from health_pipeline.ingestion.fetch import fetch

    warehouse, window = platform.warehouse(), window_of(context)
    job = None
    if config.job_id is not None:
        job = jobs.get(warehouse.engine, config.job_id)
        if job.run_id != context.run_id:
            jobs.begin(warehouse.engine, job.job_id, context.run_id)
    elif config.plan == "gaps" and active_accounts(warehouse.engine, provider.name):
        engine = warehouse.engine
        job = jobs.unfinished(engine, "reconcile", provider.name, None, window) or jobs.create(
            engine, "reconcile", provider.name, None, window
        )
        jobs.begin(engine, job.job_id, context.run_id)
    try:
        report = fetch(
            warehouse,
            platform.store(),
            platform.vault(),
            platform.settings,
            provider,
            window,
            user_ids=config.user_ids or None,
            plan="gaps" if config.plan == "gaps" else "window",
            job=job,
            on_progress=_now_and_then(
                lambda done, total: context.log.info(f"{provider.title}: {done} of {total} windows fetched")
            ),
        )
    except Exception as error:
        if job is not None:
            jobs.note_error(warehouse.engine, job.job_id, _words(error))
            if config.job_id is None:
                jobs.finish(warehouse.engine, job.job_id, _words(error))
        raise
    if job is not None and config.job_id is None:
        jobs.finish(warehouse.engine, job.job_id, jobs.get(warehouse.engine, job.job_id).last_error)
    return report


def _words(error: Exception) -> str:
    """The message of an error that was raised to be read; of another the kind alone, which quotes nothing."""
    return str(error) if isinstance(error, RuntimeError) else type(error).__name__


def _now_and_then(say: Callable[[int, int], None], seconds: float = 1.0) -> Callable[[int, int], None]:
    """`say` at most once in so many seconds, and at the end: a line a window would fill the event log."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(done, total)

    return progress


def pushed_asset(provider: Provider) -> dg.AssetsDefinition:
    """`raw/<provider>`: what came by webhook on the day; there is nobody to ask."""

    @dg.asset(
        key=raw_key(provider),
        description=f"Calls of {provider.title} that were received on the day, exactly as they came.",
        partitions_def=DAILY,
        backfill_policy=ONE_RUN,
        pool=f"{provider.name}_fetch",
        group_name="raw",
        kinds={"http", "s3"},
        owners=OWNERS,
    )
    def raw(
        context: dg.AssetExecutionContext, config: FetchConfig, platform: Platform
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from health_pipeline.raw.index import count_received

        if config.plan == "events":
            _work_on_events(context, platform, provider)
        window = window_of(context)
        received = count_received(platform.warehouse().engine, window.start, window.end)
        objects, size = received.get(provider.name, (0, 0))
        return dg.MaterializeResult(metadata={"objects": objects, "bytes_received": size})

    return raw


def received_files_asset(providers: list[Provider]) -> dg.AssetsDefinition:
    """`raw/<kind of file>`: files of the inbox, taken in as they are, and what other doors brought that day."""

    @dg.multi_asset(
        name=RECEIVED_FILES,
        specs=[
            dg.AssetSpec(
                raw_key(provider),
                description=f"{provider.title} files that were received on the day, as they came.",
                group_name="raw",
                kinds={"file", "s3"},
                owners=OWNERS,
            )
            for provider in providers
        ],
        partitions_def=DAILY,
        backfill_policy=ONE_RUN,
        pool="received_files",
    )
    def received_files(
        context: dg.AssetExecutionContext, config: ReceivedConfig, platform: Platform
    ) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        from health_pipeline.ingestion import jobs
        from health_pipeline.ingestion.inbox import open_inbox, receive_new_files
        from health_pipeline.raw.index import count_received

        warehouse, window = platform.warehouse(), window_of(context)
        for job_id in config.job_ids:
            jobs.begin(warehouse.engine, job_id, context.run_id)
        report = receive_new_files(warehouse, platform.store(), open_inbox(platform.settings.inbox_location))
        context.log.info(f"inbox: {report.received} files received, {report.rejected} rejected")
        counts = count_received(warehouse.engine, window.start, window.end)
        for provider in providers:
            objects, size = counts.get(provider.name, (0, 0))
            yield dg.MaterializeResult(
                asset_key=raw_key(provider), metadata={"objects": objects, "bytes_received": size}
            )

    return received_files


def staging_asset(provider: Provider) -> dg.AssetsDefinition:
    """`staging_<provider>/*`: the raw objects of the day as typed rows, appended once."""
    schema = schema_name(provider.name)
    descriptions = {entity.name: entity.description for entity in provider.entities}
    descriptions["deletion"] = "Records that the vendor said were deleted, by its ids."
    descriptions["quarantine"] = "Records that could not be read: what, where and why."

    @dg.multi_asset(
        name=schema,
        specs=[
            dg.AssetSpec(
                [schema, table],
                description=descriptions[table],
                deps=[raw_key(provider)],
                group_name="staging",
                kinds={"dlt", "postgres"},
                owners=OWNERS,
                metadata={
                    "dagster/column_schema": _column_schema(columns),
                    "dagster/table_name": f"{schema}.{table}",
                },
            )
            for table, columns in table_schemas(provider).items()
        ],
        partitions_def=DAILY,
        backfill_policy=ONE_RUN,
        pool=schema,
    )
    def staging(
        context: dg.AssetExecutionContext, config: StagingConfig, platform: Platform
    ) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        from health_pipeline.ingestion import traces
        from health_pipeline.staging.load import stage

        told = -1

        def on_bytes(done: int, total: int) -> None:
            nonlocal told
            if (share := 100 * done // max(total, 1) // 5 * 5) > told:
                told = share
                context.log.info(f"{schema}: {share} % of the file read")

        with traces.step(platform.warehouse().engine, context.run_id, "stage", provider.name):
            report = stage(
                platform.warehouse(),
                platform.store(),
                provider,
                window_of(context),
                replay=config.replay,
                on_progress=lambda done, total: context.log.info(
                    f"{schema}: {done} of {total} objects staged"
                ),
                on_bytes=on_bytes,
            )
        for note in sorted(report.notes):
            context.log.warning(f"{schema}: {note}")
        for table in table_schemas(provider):
            yield dg.MaterializeResult(
                asset_key=[schema, table],
                metadata={
                    "dagster/partition_row_count": report.rows[table],
                    "objects": report.objects,
                    "records_in": report.records_in,
                    "records_loaded": report.records_loaded,
                    "records_quarantined": report.records_quarantined,
                    "records_skipped": dict(report.records_skipped),
                    **({"files": report.files} if report.files else {}),
                },
            )

    return staging


def _column_schema(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                sql_type(field.type),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


FETCHED = [provider for provider in all_providers().values() if provider.door == "fetch"]
UPLOADED = [provider for provider in all_providers().values() if provider.door == "upload"]
PUSHED = [provider for provider in all_providers().values() if provider.door == "webhook"]
#: Fetched, and taken as files too.
BOTH = [provider for provider in FETCHED if provider.sniff is not None]

defs = dg.Definitions(
    assets=[
        *(fetched_asset(provider) for provider in FETCHED),
        *(pushed_asset(provider) for provider in PUSHED),
        received_files_asset(UPLOADED),
        *(staging_asset(provider) for provider in all_providers().values()),
    ]
)
