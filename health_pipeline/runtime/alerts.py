"""`health-pipeline alerts`: what there is to know soon, and what somebody has seen."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.connections.users import require_user
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.engine_tables import ensure_engine_tables

_LIST = sa.text(
    """
    select users.handle, alerts.local_date, alerts.kind, alerts.episode, alerts.severity, alerts.suppressed,
        alerts.sentence, states.acknowledged_at, states.sent_at, states.attempts, states.last_error
    from health.alerts
    inner join ops.users using (user_id)
    left join ops.alert_states as states using (user_id, local_date, kind, episode)
    where (cast(:user as integer) is null or user_id = :user)
        and (:everything or (states.acknowledged_at is null and not alerts.suppressed))
    order by alerts.local_date desc, alerts.severity = 'urgent' desc, users.handle, alerts.kind, alerts.episode
    limit :limit
    """
)
_ACKNOWLEDGE = sa.text(
    """
    insert into ops.alert_states as states (user_id, local_date, kind, episode, acknowledged_at)
    select user_id, local_date, kind, episode, :now from health.alerts
    where user_id = :user and (cast(:kind as text) is null or kind = :kind)
        and (cast(:day as date) is null or local_date = :day)
    on conflict (user_id, local_date, kind, episode) do update set acknowledged_at = excluded.acknowledged_at
        where states.acknowledged_at is null
    """
)


@dataclass(frozen=True, slots=True)
class ShownAlert:
    """One alert with what became of it, in words."""

    handle: str
    local_date: dt.date
    kind: str
    severity: str
    state: str
    sentence: str


def list_alerts(
    warehouse: Warehouse, handle: str | None = None, *, everything: bool = False, limit: int = 50
) -> list[ShownAlert]:
    """The newest alerts that nobody has acknowledged and no new sensor explains; all of them if asked for.

    Raises LookupError for an unknown user.
    """
    ensure_engine_tables(warehouse)
    with warehouse.engine.connect() as connection:
        user = None if handle is None else require_user(connection, handle).user_id
        rows = connection.execute(_LIST, {"user": user, "everything": everything, "limit": limit}).all()
    return [
        ShownAlert(row.handle, row.local_date, row.kind, row.severity, _state(row), row.sentence)
        for row in rows
    ]


def _state(row: sa.Row[tuple[object, ...]]) -> str:
    words = []
    if row.suppressed:
        words.append("a new sensor may explain it")
    if row.acknowledged_at is not None:
        words.append(f"acknowledged {row.acknowledged_at:%Y-%m-%d %H:%M} UTC")
    if row.sent_at is not None:
        words.append(f"sent {row.sent_at:%Y-%m-%d %H:%M} UTC")
    elif row.last_error is not None:
        words.append(f"not sent in {row.attempts} tries: {row.last_error}")
    return "; ".join(words) or "open"


def acknowledge(
    warehouse: Warehouse, handle: str, kind: str | None = None, day: dt.date | None = None
) -> int:
    """Note that somebody has seen a user's alerts: of a kind, of a day, or all there are. How many were open.

    Raises LookupError for an unknown user.
    """
    ensure_engine_tables(warehouse)
    with warehouse.engine.begin() as connection:
        user = require_user(connection, handle).user_id
        noted = connection.execute(
            _ACKNOWLEDGE, {"user": user, "kind": kind, "day": day, "now": dt.datetime.now(dt.UTC)}
        )
    return noted.rowcount
