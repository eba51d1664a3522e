"""Where providers call us: kept up every day, and for accounts that are new."""

import datetime as dt

import dagster as dg

from health_pipeline.defs.resources import Platform
from health_pipeline.defs.sources import OWNERS

KEY = dg.AssetKey(["ops", "webhook_subscriptions"])


@dg.asset(
    key=KEY,
    group_name="operations",
    kinds={"postgres"},
    owners=OWNERS,
    description="The subscriptions by which providers call the receiver, as the providers have them: what is "
    "missing is made, what expires within a week is renewed. Only for providers that were subscribed to "
    "(`health-pipeline webhooks subscribe`).",
)
def webhook_subscriptions(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    from health_pipeline.connections.subscriptions import Ensured, keep_up

    found = keep_up(platform.warehouse(), platform.vault(), platform.settings, dt.datetime.now(dt.UTC))
    done = [one for one in found.values() if isinstance(one, Ensured)]
    return dg.MaterializeResult(
        metadata={
            "standing": sum(one.standing for one in done),
            "made": sum(one.created for one in done),
            "renewed": sum(one.renewed for one in done),
            "ended": sum(one.deleted for one in done),
            **{
                name: one if isinstance(one, str) else "; ".join([one.words(), *one.problems])
                for name, one in found.items()
            },
        }
    )


@dg.asset_check(
    asset=KEY,
    name="providers_call",
    description="Every provider that was subscribed to has its subscriptions, and none is about to expire.",
)
def providers_call(platform: Platform) -> dg.AssetCheckResult:
    from health_pipeline.connections.subscriptions import troubles

    found = troubles(platform.warehouse().engine, platform.settings, dt.datetime.now(dt.UTC))
    return dg.AssetCheckResult(
        passed=not found,
        metadata={"problems": "; ".join(f"{provider}: {problem}" for provider, problem in found) or "none"},
    )


subscriptions_job = dg.define_asset_job(
    "webhook_subscriptions",
    selection=dg.AssetSelection.assets(KEY),
    description="Looks after the subscriptions at the providers.",
)


@dg.schedule(
    job=subscriptions_job,
    cron_schedule="10 5 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Asks each provider that was subscribed to what it has: some expire (Oura), some are dropped "
    "without a word (Withings).",
)
def subscriptions_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    from health_pipeline.connections.subscriptions import targets
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    if not targets(open_warehouse().engine, load_settings()):
        return dg.SkipReason("no provider was subscribed to")
    return dg.RunRequest()


@dg.sensor(
    name="new_accounts_subscribe",
    job=subscriptions_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Subscribes accounts that were connected after their provider was subscribed to, where each has "
    "subscriptions of its own (Withings).",
)
def new_accounts_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    from health_pipeline.connections.subscriptions import unsubscribed_accounts
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    waiting = unsubscribed_accounts(open_warehouse().engine, load_settings())
    accounts = ",".join(str(account.account_id) for account in waiting)
    if not waiting:
        context.update_cursor("")
        return dg.SkipReason("every account has its subscriptions")
    if accounts == context.cursor:
        # Asked for once; what is refused is tried again by the daily run.
        return dg.SkipReason("asked for already; the daily run tries again")
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=accounts)


defs = dg.Definitions(
    assets=[webhook_subscriptions],
    asset_checks=[providers_call],
    jobs=[subscriptions_job],
    schedules=[subscriptions_schedule],
    sensors=[new_accounts_sensor],
)
