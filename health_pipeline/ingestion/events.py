"""What providers announce: kept before it is acknowledged, then worked on until it is in the warehouse."""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.providers.base import Event, Provider
from health_pipeline.raw.index import Delivery, nobody, receive_within, subject_id_of
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.models import ProviderAccount, WebhookEvent

#: The entity of a raw object that only says that there is something: nothing of it is staged.
NOTICE = "notice"
#: How long after an attempt the next one is due; after the last the event is dead.
RETRY_AFTER = tuple(
    dt.timedelta(**{unit: number})
    for unit, number in (("seconds", 0), ("minutes", 5), ("minutes", 30), ("hours", 2), ("hours", 6))
)
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a call: rows that are new, and those that were there already."""

    event_ids: tuple[int, ...]
    duplicates: int

    @property
    def is_duplicate(self) -> bool:
        return not self.event_ids and self.duplicates > 0


@dataclass(frozen=True, slots=True)
class _Announced:
    """One row to be: all that a body says of one person's entity under one id."""

    key: str
    event_type: str
    kind: str
    entity: str | None
    provider_user_id: str | None


def accept(
    engine: sa.Engine,
    store: RawStore,
    provider: Provider,
    body: bytes,
    content_type: str,
    received_at: dt.datetime,
    *,
    trace_id: str | None = None,
) -> Accepted:
    """Keep a verified call: its bytes as raw objects, an event a person and entity; durable when this returns.

    A call that came before adds nothing. Bytes of somebody unknown are kept under a subject of their own, until
    the account is connected and the event tried again. A body that cannot be read is a dead event with the
    reason. Raises RawStoreUnavailableError, database errors; nothing is kept then.
    """
    digest = hashlib.sha256(body).hexdigest()
    assert provider.webhook is not None
    try:
        announced = list(_announced(provider.webhook.events(body), digest))
        error = None if announced else "it announces nothing"
    except ValueError as problem:
        announced, error = [], f"the body cannot be read: {type(problem).__name__}"
    if error is not None:
        announced = [_Announced(digest, "unreadable", "other", None, None)]
    with engine.begin() as connection:
        accounts = _accounts(connection, provider.name, announced)
        rows = [
            {
                "provider": provider.name,
                "provider_event_id": one.key,
                "event_type": one.event_type,
                "kind": one.kind,
                "entity": one.entity,
                "provider_user_id": one.provider_user_id,
                "account_id": accounts[one.provider_user_id][0] if one.provider_user_id in accounts else None,
                "received_at": received_at,
                "state": "pending" if error is None else "dead",
                "error": error,
                "next_try_at": received_at if error is None else None,
                "trace_id": trace_id,
            }
            for one in announced
        ]
        # The unique key makes a second delivery wait for the first to be durable, and then be a duplicate.
        kept = connection.execute(
            insert(WebhookEvent)
            .values(rows)
            .on_conflict_do_nothing(index_elements=["provider", "provider_event_id"])
            .returning(
                WebhookEvent.event_id, WebhookEvent.provider_user_id, WebhookEvent.entity, WebhookEvent.kind
            )
        ).all()
        for user, entity in sorted({(row[1], _raw_entity(row[2], row[3])) for row in kept}, key=str):
            of = [row[0] for row in kept if (row[1], _raw_entity(row[2], row[3])) == (user, entity)]
            subject = subject_id_of(connection, accounts[user][1]) if user in accounts else nobody(connection)
            raw_object_id = _keep(
                connection, store, provider, subject, entity, user, body, content_type, received_at
            )
            connection.execute(
                sa.update(WebhookEvent)
                .where(WebhookEvent.event_id.in_(of))
                .values(raw_object_id=raw_object_id)
            )
    return Accepted(tuple(row[0] for row in kept), len(rows) - len(kept))


def _announced(events: Sequence[Event], digest: str) -> Iterable[_Announced]:
    """Each event once; what has no id of its own goes by the body's digest, person and entity."""
    seen: dict[str, _Announced] = {}
    for event in events:
        key = event.event_id or ":".join(
            (digest, event.provider_user_id or "", event.entity or "", event.event_type)
        )
        seen.setdefault(
            key, _Announced(key, event.event_type, event.kind, event.entity, event.provider_user_id)
        )
    return seen.values()


def _raw_entity(entity: str | None, kind: str) -> str:
    return entity if kind == "data" and entity is not None else NOTICE


def _accounts(
    connection: sa.Connection, provider: str, announced: Sequence[_Announced]
) -> dict[str | None, tuple[int, int]]:
    """Account and user of each person named."""
    named = {one.provider_user_id for one in announced} - {None}
    rows = connection.execute(
        sa.select(
            ProviderAccount.provider_user_id, ProviderAccount.account_id, ProviderAccount.user_id
        ).where(ProviderAccount.provider == provider, ProviderAccount.provider_user_id.in_(named))
    )
    return {person: (account_id, user_id) for person, account_id, user_id in rows}


def _keep(
    connection: sa.Connection,
    store: RawStore,
    provider: Provider,
    subject: uuid.UUID,
    entity: str,
    provider_user_id: str | None,
    body: bytes,
    content_type: str,
    received_at: dt.datetime,
) -> int:
    day = received_at.astimezone(dt.UTC).date()
    delivery = Delivery(
        *(provider.name, entity, None, "webhook", body, received_at, day, day),
        content_type,
        context={} if provider_user_id is None else {"provider_user_id": provider_user_id},
    )
    return receive_within(connection, store, subject, delivery).raw_object_id


def next_try(attempts: int, now: dt.datetime, chance: random.Random | None = None) -> dt.datetime | None:
    """When an event that failed for the `attempts`-th time is tried again; None where it is dead."""
    if attempts >= len(RETRY_AFTER):
        return None
    spread = (chance or random).uniform(1 - _JITTER, 1 + _JITTER)
    return now + RETRY_AFTER[attempts] * spread
