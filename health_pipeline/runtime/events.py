"""`health-pipeline events`: what webhooks brought, for the eye; and trying it again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.ingestion import events
from health_pipeline.warehouse.models import WebhookEvent


@dataclass(frozen=True, slots=True)
class EventLine:
    """An event as `events list` shows it: nobody's name, nothing of the body."""

    event_id: int
    provider: str
    event_type: str
    state: str
    attempts: int
    received_at: dt.datetime
    next_try_at: dt.datetime | None
    error: str | None
    account_id: int | None
    entity: str | None
    raw_object_id: int | None
    run_id: str | None


_COLUMNS = [WebhookEvent.__table__.c[name] for name in EventLine.__dataclass_fields__]


def list_events(
    engine: sa.Engine, *, provider: str | None = None, state: str | None = None, limit: int = 50
) -> list[EventLine]:
    """The newest events first."""
    query = sa.select(*_COLUMNS).order_by(WebhookEvent.event_id.desc()).limit(limit)
    if provider is not None:
        query = query.where(WebhookEvent.provider == provider)
    if state is not None:
        query = query.where(WebhookEvent.state == state)
    with engine.connect() as connection:
        return [EventLine(*row) for row in connection.execute(query)]


def show_event(engine: sa.Engine, event_id: int) -> EventLine:
    """Raises LookupError where there is no such event."""
    with engine.connect() as connection:
        row = connection.execute(sa.select(*_COLUMNS).where(WebhookEvent.event_id == event_id)).one_or_none()
    if row is None:
        raise LookupError(f"there is no webhook event {event_id}")
    return EventLine(*row)


def replay(
    engine: sa.Engine,
    *,
    event_ids: Sequence[int] = (),
    dead: bool = False,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    provider: str | None = None,
) -> int:
    """Have events tried again from the start; how many. Their effect is there once however often that is.

    Events by number, all dead ones, or those received from `since` until before `until`. Raises ValueError where
    none of these is said, LookupError for a number that there is not.
    """
    conditions: list[sa.ColumnElement[bool]] = []
    if event_ids:
        with engine.connect() as connection:
            known = set(
                connection.execute(
                    sa.select(WebhookEvent.event_id).where(WebhookEvent.event_id.in_(event_ids))
                ).scalars()
            )
        if missing := sorted(set(event_ids) - known):
            raise LookupError(f"there is no webhook event {missing[0]}")
        conditions.append(WebhookEvent.event_id.in_(event_ids))
    if dead:
        conditions.append(WebhookEvent.state == "dead")
    if since is not None:
        conditions.append(WebhookEvent.received_at >= since)
    if until is not None:
        conditions.append(WebhookEvent.received_at < until)
    if not conditions:
        raise ValueError("say which: numbers of events, --dead, or --since and --until")
    if provider is not None:
        conditions.append(WebhookEvent.provider == provider)
    return events.revive(engine, sa.and_(*conditions))
