"""Counts that processes add to which nobody scrapes: runs end, and the receiver tells what they counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

RATE_LIMIT_HITS = "provider_rate_limit_hits"
PROCESSED = "webhook_processing_seconds"
#: Bounds of the times from receipt to the canonical table, s; what took longer counts in the last.
PROCESSING_BUCKETS = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 1800.0, 7200.0, 28800.0)
#: The sum of the observations stands beside their counts.
SUM = "sum"
INFINITY = "+Inf"


def add(engine: sa.Engine, name: str, provider: str, count: int) -> None:
    """Count, in one statement, so that no process reads what another is about to change."""
    if count == 0:
        return
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into ops.counters as counted (name, provider, bucket, value) "
                "values (:name, :provider, '', :count) "
                "on conflict (name, provider, bucket) do update set value = counted.value + excluded.value"
            ),
            {"name": name, "provider": provider, "count": count},
        )


def settle_and_count(connection: sa.Connection, event_ids: Sequence[int]) -> None:
    """Mark events that are being processed as processed, and count how long each took since its receipt.

    One statement: an event is counted when, and only when, it becomes processed.
    """
    connection.execute(
        sa.text(
            """
            with settled as (
                update ops.webhook_events
                set state = 'processed', error = null, next_try_at = null, updated_at = now()
                where event_id = any(:event_ids) and state = 'processing'
                returning
                    event_id,
                    provider,
                    cast(greatest(0, extract(epoch from clock_timestamp() - received_at)) as float8) as seconds
            ),
            observed as (
                select
                    provider,
                    coalesce(cast(min(bound) as text), :infinity) as bucket,
                    1.0 as value
                from settled
                left join unnest(cast(:bounds as float8[])) as bound on bound >= seconds
                group by settled.event_id, settled.provider
                union all
                select provider, :sum, seconds from settled
            )
            insert into ops.counters as counted (name, provider, bucket, value)
            select :name, provider, bucket, sum(value) from observed group by provider, bucket
            order by provider, bucket
            on conflict (name, provider, bucket) do update set value = counted.value + excluded.value
            """
        ),
        {
            "event_ids": list(event_ids),
            "bounds": list(PROCESSING_BUCKETS),
            "name": PROCESSED,
            "sum": SUM,
            "infinity": INFINITY,
        },
    )


@dataclass(frozen=True, slots=True)
class Times:
    """A provider's processing times: how many fell up to each bound and above the one before, and their sum, s."""

    counts: Mapping[str, float]
    total_seconds: float


def read(engine: sa.Engine) -> tuple[dict[str, float], dict[str, Times]]:
    """Rate-limit hits, and processing times, by provider."""
    hits: dict[str, float] = {}
    counts: dict[str, dict[str, float]] = {}
    with engine.connect() as connection:
        rows = connection.execute(sa.text("select name, provider, bucket, value from ops.counters")).all()
    for name, provider, bucket, value in rows:
        if name == RATE_LIMIT_HITS:
            hits[provider] = value
        elif name == PROCESSED:
            counts.setdefault(provider, {})[bucket] = value
    return hits, {provider: Times(found, found.pop(SUM, 0.0)) for provider, found in counts.items()}


@dataclass(frozen=True, slots=True)
class Queue:
    """A provider's events in one state: how many, and since when the oldest is here, s."""

    provider: str
    state: str
    events: int
    oldest_seconds: float


def queues(engine: sa.Engine) -> list[Queue]:
    """The events that are not processed, by provider and state. Those that are processed are not read."""
    query = sa.text(
        "select provider, state, count(*), "
        "cast(greatest(0, extract(epoch from now() - min(received_at))) as float8) "
        "from ops.webhook_events where state in ('pending', 'processing', 'dead') "
        "group by provider, state order by provider, state"
    )
    with engine.connect() as connection:
        return [Queue(*row) for row in connection.execute(query)]
