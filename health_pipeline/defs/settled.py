"""The last step of a run: what it was asked to do is done. And what shows when something will not be."""

import dagster as dg

from health_pipeline.defs.resources import Platform
from health_pipeline.defs.sources import OWNERS

SETTLED = dg.AssetKey(["ops", "settled"])
_CANONICAL = [
    dg.AssetKey(["health", table])
    for table in (
        "health_metrics",
        "glucose_readings",
        "sleep_sessions",
        "workouts",
        "documents",
        "medications",
    )
]


@dg.asset(
    key=SETTLED,
    deps=_CANONICAL,
    group_name="operations",
    kinds={"postgres"},
    owners=OWNERS,
    # Before the engine's steps, which take their time.
    op_tags={"dagster/priority": "10"},
    description="The webhook events and the requested jobs of the run are marked as done: the canonical tables "
    "have what they brought.",
)
def settled(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    from health_pipeline.ingestion import events, jobs, traces

    engine = platform.warehouse().engine
    with traces.step(engine, context.run.run_id, "settled"):
        done = events.settle_run(engine, context.run.run_id)
    return dg.MaterializeResult(
        metadata={
            "events_processed": done.processed,
            "events_put_off": done.put_off,
            "jobs_ended": jobs.finish_run(engine, context.run.run_id),
            **({} if done.slowest_seconds is None else {"slowest_event_seconds": done.slowest_seconds}),
        }
    )


@dg.asset_check(
    asset=SETTLED,
    name="no_dead_events",
    description="No webhook event ran out of tries. `health-pipeline events list --state dead` shows them, "
    "`health-pipeline events replay --dead` tries them again.",
)
def no_dead_events(platform: Platform) -> dg.AssetCheckResult:
    from health_pipeline.ingestion import events

    dead = events.dead_letters(platform.warehouse().engine)
    rows = [f"| {one.provider} | {one.event_type} | {one.error or ''} | {one.events} |" for one in dead]
    return dg.AssetCheckResult(
        passed=not dead,
        metadata={
            "dead": sum(one.events for one in dead),
            "events": dg.MetadataValue.md(
                "\n".join(["| provider | event | error | events |", "|---|---|---|---|", *rows])
                if rows
                else "none"
            ),
        },
    )


defs = dg.Definitions(assets=[settled], asset_checks=[no_dead_events])
