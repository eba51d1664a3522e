"""What must hold, besides the dbt tests: nothing lost, nothing waiting, nobody disconnected in silence."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg

from health_pipeline.defs.resources import Platform
from health_pipeline.defs.sources import FETCHED, raw_key
from health_pipeline.providers.base import Provider
from health_pipeline.providers.registry import all_providers
from health_pipeline.staging.tables import schema_name
from health_pipeline.warehouse.engine_tables import HORIZONS


def _text(statement: str) -> Any:
    """SQL for a connection; SQLAlchemy is not needed before a check runs."""
    import sqlalchemy

    return sqlalchemy.text(statement)


QUARANTINE = dg.AssetKey(["health", "metric_quarantine"])
#: More of a provider's records refused than this is a fault of ours or theirs, not of single records.
MAX_QUARANTINED_SHARE = 0.01
#: Share of back-tested values within 90 % ranges that is believable, and the series it takes to say so.
COVERAGE_BAND = (0.80, 0.98)
MIN_BACKTESTED = 20


def _records_accounted(provider: Provider) -> dg.AssetChecksDefinition:
    schema = schema_name(provider.name)

    @dg.asset_check(
        asset=[schema, "quarantine"],
        name="records_accounted",
        description="Every record of the objects staged since the last look is loaded, quarantined or skipped with "
        "a reason, and the quarantine table holds as many rows as the loads say.",
        blocking=True,
    )
    def records_accounted(platform: Platform) -> dg.AssetCheckResult:
        from dataclasses import asdict

        from health_pipeline.staging.accounting import account_of_new_loads

        account = account_of_new_loads(platform.warehouse().engine, provider.name)
        return dg.AssetCheckResult(passed=account.balances, metadata=asdict(account))

    return records_accounted


def _shape_unchanged(provider: Provider) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=[schema_name(provider.name), "quarantine"],
        name="shape_unchanged",
        description="In the newest loads no record was refused for its shape: a field that is missing, of another "
        "type, or a body that cannot be read. New fields are named; they are kept in raw and harm nothing.",
    )
    def shape_unchanged(platform: Platform) -> dg.AssetCheckResult:
        from health_pipeline.staging.drift import recent_drift

        drift = recent_drift(platform.warehouse().engine, provider.name)
        rows = [
            f"| {one.entity} | {one.field or ''} | {one.reason} | {one.records} |" for one in drift.refusals
        ]
        return dg.AssetCheckResult(
            passed=not rows,
            severity=dg.AssetCheckSeverity.WARN,
            description=""
            if not rows
            else f"{provider.title} changed its records, or the parser is wrong: mend "
            "providers/, then materialise the staging asset with `replay: true`",
            metadata={
                "refused": dg.MetadataValue.md(
                    "\n".join(["| entity | field | reason | records |", "|---|---|---|---|", *rows])
                    if rows
                    else "none"
                ),
                "new": dg.MetadataValue.md("\n".join(f"- {note}" for note in drift.notes) or "nothing"),
            },
        )

    return shape_unchanged


def _accounts_healthy(provider: Provider) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=raw_key(provider),
        name="accounts_healthy",
        description="No account is in error, expired or expiring, never synced, failing, or silent for longer than "
        "its cadence; nobody's consent is over.",
    )
    def accounts_healthy(platform: Platform) -> dg.AssetCheckResult:
        from health_pipeline.connections.health import account_health

        accounts = account_health(platform.warehouse().engine, provider=provider.name)
        troubled = [account for account in accounts if account.needs_attention]
        states = Counter(account.state for account in accounts)
        return dg.AssetCheckResult(
            passed=not troubled,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "accounts_in_trouble": len(troubled),
                "states": ", ".join(f"{state}: {count}" for state, count in sorted(states.items()))
                or "no account",
                # By number: events are kept for good, and names have no business there.
                "accounts": dg.MetadataValue.md(
                    "\n".join(
                        f"- account {each.account_id} ({each.state}): {_nameless(each.why, each.handle)}"
                        for each in troubled[:50]
                    )
                    or "none"
                ),
            },
        )

    return accounts_healthy


def _nameless(why: str | None, handle: str) -> str:
    return (why or "").replace(f"--user {handle}", "--user …")


@dg.asset_check(
    asset=QUARANTINE,
    name="quarantined_share",
    description=f"Less than {MAX_QUARANTINED_SHARE:.0%} of the records of each provider's newest loads are in "
    "quarantine.",
)
def quarantined_share(platform: Platform) -> dg.AssetCheckResult:
    from health_pipeline.staging.accounting import refused_lately

    engine = platform.warehouse().engine
    refused = {name: refused_lately(engine, name) for name in all_providers()}
    rows = [(name, reason, count) for name, one in refused.items() for reason, count in one.reasons.items()]
    over = [
        name
        for name, one in refused.items()
        if sum(one.reasons.values()) > MAX_QUARANTINED_SHARE * max(one.records, 1)
    ]
    return dg.AssetCheckResult(
        passed=not over,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "quarantined": sum(count for _, _, count in rows),
            "over_the_limit": ", ".join(over) or "none",
            "reasons": dg.MetadataValue.md(
                "| source | reason | rows |\n|---|---|---|\n"
                + "\n".join(f"| {name} | {reason} | {count} |" for name, reason, count in rows)
            ),
        },
    )


@dg.asset_check(
    asset=["health", "daily_metrics"],
    name="objects_applied",
    description="Every staged object is in the canonical tables; what is not yet waits for the next run.",
)
def objects_applied(platform: Platform) -> dg.AssetCheckResult:
    with platform.warehouse().engine.connect() as connection:
        waiting = {
            provider: int(
                connection.execute(
                    _text(
                        f"select count(*) from {schema_name(provider)}.staged_objects as staged "  # noqa: S608
                        "where not exists (select from health._applied_objects as applied "
                        "where applied.raw_object_id = staged.raw_object_id "
                        "and applied.load_id >= staged.load_id)"
                    )
                ).scalar_one()
            )
            for provider, its in all_providers().items()
            if its.entities
        }
    return dg.AssetCheckResult(
        passed=not any(waiting.values()),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "waiting": sum(waiting.values()),
            **{name: count for name, count in waiting.items() if count},
        },
    )


@dg.asset_check(
    asset=["health", "forecasts"],
    name="ranges_hold",
    description="In the back-tests of all people together, the 90 % ranges held 80 to 98 % of what came, at every "
    f"horizon with {MIN_BACKTESTED} series or more.",
)
def ranges_hold(platform: Platform) -> dg.AssetCheckResult:
    shares = ", ".join(
        f"avg(coverage_{days}d) as share_{days}, count(coverage_{days}d) as series_{days}"
        for days in HORIZONS
    )
    with platform.warehouse().engine.connect() as connection:
        found = connection.execute(_text(f"select {shares} from health.forecasts")).mappings().one()  # noqa: S608
    low, high = COVERAGE_BAND
    outside = [
        days
        for days in HORIZONS
        if found[f"series_{days}"] >= MIN_BACKTESTED and not low <= found[f"share_{days}"] <= high
    ]
    return dg.AssetCheckResult(
        passed=not outside,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "outside": ", ".join(f"{days} days" for days in outside) or "none",
            **{name: value for name, value in found.items() if value is not None},
        },
    )


def _all() -> Iterator[dg.AssetChecksDefinition]:
    for provider in all_providers().values():
        yield _records_accounted(provider)
        yield _shape_unchanged(provider)
    for provider in FETCHED:
        yield _accounts_healthy(provider)
    yield quarantined_share
    yield objects_applied
    yield ranges_hold


defs = dg.Definitions(asset_checks=list(_all()))
