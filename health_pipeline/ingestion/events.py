"""What providers announce: kept before it is acknowledged, then worked on until it is in the warehouse."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.ingestion import counters
from health_pipeline.providers.base import ANNOUNCES_DELETION, NOTICE, Event, Provider, Webhook
from health_pipeline.raw.index import Delivery, nobody, receive_within, subject_id_of
from health_pipeline.raw.store import RawStore
from health_pipeline.staging.tables import schema_name
from health_pipeline.warehouse.models import ProviderAccount, RawObject, Subject, WebhookEvent

#: How long after an attempt the next one is due; after the last the event is dead.
RETRY_AFTER = tuple(
    dt.timedelta(**{unit: number})
    for unit, number in (("seconds", 0), ("minutes", 5), ("minutes", 30), ("hours", 2), ("hours", 6))
)
_JITTER = 0.1
#: Kinds of event whose raw object is staged: it says all there is.
STAGED_KINDS = ("data", "deleted")


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

    A call that came before, and waits to be worked on, adds nothing. Bytes of somebody unknown are kept under a
    subject of their own, until the account is connected and the event tried again. A body that cannot be read is
    a dead event with the reason. Raises RawStoreUnavailableError, database errors; nothing is kept then.
    """
    digest = hashlib.sha256(body).hexdigest()
    assert provider.webhook is not None
    try:
        announced = list(_announced(provider.webhook.events(body), digest))
        if any("\0" in (text or "") for one in announced for text in dataclasses.astuple(one)):
            raise ValueError("Postgres keeps no NUL in a text")
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
        # The unique key makes a second delivery wait for the first to be durable, and then be a duplicate. Without
        # an id of the vendor's it may also tell of a second change in the same words: it is one more event unless
        # the first is still to be worked on.
        kept = connection.execute(_KEEP_EVENTS, _columns(rows) | {"digest": digest}).all()
        of: dict[tuple[str | None, str, bool], list[int]] = {}
        for event_id, user, entity, kind in kept:
            is_staged = entity is not None and (
                kind == "data" or (kind == "deleted" and provider.webhook.deletes_records)
            )
            where = (user, entity if is_staged and entity else NOTICE, is_staged and kind == "deleted")
            of.setdefault(where, []).append(event_id)
        # In an order, so that two calls about the same people do not wait for each other.
        for (user, entity, deletes), event_ids in sorted(of.items(), key=str):
            if user not in accounts:
                subject = nobody(connection)
            else:
                _, user_id, subject_id = accounts[user]
                subject = subject_id or subject_id_of(connection, user_id)
            context = {} if user is None else {"provider_user_id": user}
            if deletes:
                context |= ANNOUNCES_DELETION
            raw_object_id = _keep(
                connection, store, provider, subject, entity, body, content_type, received_at, context
            )
            connection.execute(
                sa.update(WebhookEvent)
                .where(WebhookEvent.event_id.in_(event_ids))
                .values(raw_object_id=raw_object_id)
            )
    return Accepted(tuple(row[0] for row in kept), len(rows) - len(kept))


#: Text, so that nothing is compiled for each call; the rows are arrays, one a column.
_ARRAYS = {
    "provider": "text",
    "provider_event_id": "text",
    "event_type": "text",
    "kind": "text",
    "entity": "text",
    "provider_user_id": "text",
    "account_id": "integer",
    "received_at": "timestamptz",
    "state": "text",
    "error": "text",
    "next_try_at": "timestamptz",
    "trace_id": "text",
}
_KEEP_EVENTS = sa.text(
    f"""
    insert into ops.webhook_events as known ({", ".join(_ARRAYS)})
    select * from unnest({", ".join(f"cast(:{name} as {type_}[])" for name, type_ in _ARRAYS.items())})
    on conflict (provider, provider_event_id) do update set
        state = excluded.state,
        received_at = excluded.received_at,
        next_try_at = excluded.next_try_at,
        trace_id = excluded.trace_id,
        attempts = 0,
        error = null,
        updated_at = now()
    where known.state <> 'pending' and starts_with(known.provider_event_id, :digest || ':')
    returning event_id, provider_user_id, entity, kind
    """  # noqa: S608 - the names are those above
)


def _columns(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {name: [row[name] for row in rows] for name in _ARRAYS}


def _announced(events: Sequence[Event], digest: str) -> Iterable[_Announced]:
    """Each event once."""
    return {
        key: _Announced(key, event.event_type, event.kind, event.entity, event.provider_user_id)
        for key, event in _keyed(events, digest).items()
    }.values()


def by_key(webhook: Webhook, body: bytes) -> dict[str, Event]:
    """The events of a body by the ids under which they were kept. Raises ValueError."""
    return _keyed(webhook.events(body), hashlib.sha256(body).hexdigest())


def _keyed(events: Sequence[Event], digest: str) -> dict[str, Event]:
    """What has no id of its own goes by the body's digest, person, entity and type."""
    found: dict[str, Event] = {}
    for event in events:
        key = event.event_id or ":".join(
            (digest, event.provider_user_id or "", event.entity or "", event.event_type)
        )
        found.setdefault(key, event)
    return found


def _accounts(
    connection: sa.Connection, provider: str, announced: Sequence[_Announced]
) -> dict[str | None, tuple[int, int, uuid.UUID | None]]:
    """Account, user and subject, where there is one already, of each person named."""
    named = {one.provider_user_id for one in announced} - {None}
    rows = connection.execute(
        sa.select(
            ProviderAccount.provider_user_id,
            ProviderAccount.account_id,
            ProviderAccount.user_id,
            Subject.subject_id,
        )
        .outerjoin(Subject, Subject.user_id == ProviderAccount.user_id)
        .where(
            ProviderAccount.provider == provider,
            ProviderAccount.provider_user_id.in_(named),
            # Of somebody who withdrew, nothing becomes theirs any more.
            ProviderAccount.status != "disconnected",
        )
    )
    return {person: (account_id, user_id, subject_id) for person, account_id, user_id, subject_id in rows}


def _keep(
    connection: sa.Connection,
    store: RawStore,
    provider: Provider,
    subject: uuid.UUID,
    entity: str,
    body: bytes,
    content_type: str,
    received_at: dt.datetime,
    context: Mapping[str, str],
) -> int:
    day = received_at.astimezone(dt.UTC).date()
    delivery = Delivery(
        *(provider.name, entity, None, "webhook", body, received_at, day, day),
        content_type,
        context=context,
    )
    return receive_within(connection, store, subject, delivery).raw_object_id


def due_days(engine: sa.Engine, now: dt.datetime) -> dict[dt.date, set[str]]:
    """The providers with events whose time has come, by the day (UTC) on which they were received."""
    query = sa.select(_RECEIVED_DAY, WebhookEvent.provider).where(_is_due(now)).distinct()
    found: dict[dt.date, set[str]] = {}
    with engine.connect() as connection:
        for day, provider in connection.execute(query):
            found.setdefault(day, set()).add(provider)
    return found


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event that a run works on. `user_id` is None for somebody who is not connected."""

    event_id: int
    provider_event_id: str
    kind: str
    entity: str | None
    provider_user_id: str | None
    account_id: int | None
    user_id: int | None
    raw_object_id: int | None
    object_key: str | None
    received_at: dt.datetime


def claim(engine: sa.Engine, provider: str, day: dt.date, run_id: str, now: dt.datetime) -> list[Claimed]:
    """The provider's due events that were received on the day (UTC), from here on the run's.

    A run that does not come to its end leaves them to the next one: the time of that is set with the claim.
    What came of somebody who was not connected then, and is now, becomes theirs.
    """
    waits = [int(wait.total_seconds()) for wait in (*RETRY_AFTER[1:], RETRY_AFTER[-1])]
    with engine.begin() as connection:
        claimed = connection.execute(
            sa.text(
                """
                update ops.webhook_events as events
                set
                    state = 'processing',
                    attempts = attempts + 1,
                    run_id = :run_id,
                    error = 'its run has not come to its end',
                    next_try_at = cast(:now as timestamptz)
                        + (cast(:waits as integer[]))[attempts + 1] * interval '1 second'
                        * (1 - :jitter + 2 * :jitter * random()),
                    updated_at = now()
                where
                    provider = :provider
                    and state in ('pending', 'processing')
                    and next_try_at <= :now
                    and attempts < cardinality(cast(:waits as integer[]))
                    and received_at >= cast(:day as date)::timestamp at time zone 'UTC'
                    and received_at < (cast(:day as date) + 1)::timestamp at time zone 'UTC'
                returning event_id
                """
            ),
            {
                "run_id": run_id,
                "now": now,
                "waits": waits,
                "jitter": _JITTER,
                "provider": provider,
                "day": day,
            },
        ).scalars()
        event_ids = sorted(claimed)
        _give_to_those_connected_since(connection, event_ids)
        rows = connection.execute(
            sa.select(
                *(
                    WebhookEvent.event_id,
                    WebhookEvent.provider_event_id,
                    WebhookEvent.kind,
                    WebhookEvent.entity,
                ),
                *(WebhookEvent.provider_user_id, WebhookEvent.account_id, ProviderAccount.user_id),
                *(WebhookEvent.raw_object_id, RawObject.object_key, WebhookEvent.received_at),
            )
            .outerjoin(ProviderAccount, ProviderAccount.account_id == WebhookEvent.account_id)
            .outerjoin(RawObject, RawObject.raw_object_id == WebhookEvent.raw_object_id)
            .where(WebhookEvent.event_id.in_(event_ids))
            .order_by(WebhookEvent.received_at, WebhookEvent.event_id)
        ).all()
    return [Claimed(*row) for row in rows]


def _give_to_those_connected_since(connection: sa.Connection, event_ids: Sequence[int]) -> None:
    found = connection.execute(
        sa.select(
            WebhookEvent.event_id,
            WebhookEvent.raw_object_id,
            ProviderAccount.account_id,
            ProviderAccount.user_id,
            RawObject.subject_id,
        )
        .join(
            ProviderAccount,
            sa.and_(
                ProviderAccount.provider == WebhookEvent.provider,
                ProviderAccount.provider_user_id == WebhookEvent.provider_user_id,
                ProviderAccount.status != "disconnected",
            ),
        )
        .outerjoin(RawObject, RawObject.raw_object_id == WebhookEvent.raw_object_id)
        .where(WebhookEvent.event_id.in_(event_ids), WebhookEvent.account_id.is_(None))
    ).all()
    for event_id, raw_object_id, account_id, user_id, stranger in found:
        subject = subject_id_of(connection, user_id)
        connection.execute(
            sa.update(WebhookEvent).where(WebhookEvent.event_id == event_id).values(account_id=account_id)
        )
        connection.execute(
            sa.update(RawObject).where(RawObject.raw_object_id == raw_object_id).values(subject_id=subject)
        )
        connection.execute(
            sa.delete(Subject).where(
                Subject.subject_id == stranger,
                Subject.user_id.is_(None),
                ~sa.exists().where(RawObject.subject_id == stranger),
            )
        )


def settle(engine: sa.Engine, event_ids: Sequence[int]) -> None:
    """These events have had their effect; one that came again meanwhile has yet to have it."""
    if event_ids:
        with engine.begin() as connection:
            counters.settle_and_count(connection, event_ids)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a run's events; `slowest_seconds` from receipt to here, None where none was processed."""

    processed: int
    put_off: int
    slowest_seconds: float | None


def settle_run(engine: sa.Engine, run_id: str) -> Settled:
    """End the events of a run that has come to its end.

    Data that was pushed counts once its raw object is staged; what was to be fetched failed before, or is done.
    """
    with engine.connect() as connection:
        rows = connection.execute(
            sa.select(
                WebhookEvent.event_id,
                WebhookEvent.provider,
                WebhookEvent.kind,
                WebhookEvent.raw_object_id,
                WebhookEvent.received_at,
            )
            .where(WebhookEvent.run_id == run_id, WebhookEvent.state == "processing")
            .order_by(WebhookEvent.event_id)
        ).all()
        pushed: dict[str, list[int]] = {}
        for _, provider, kind, raw_object_id, _ in rows:
            if kind in STAGED_KINDS and raw_object_id is not None:
                pushed.setdefault(provider, []).append(raw_object_id)
        staged = {
            raw_object_id
            for provider, objects in pushed.items()
            for raw_object_id in connection.execute(
                sa.text(
                    f"select raw_object_id from {schema_name(provider)}.staged_objects "  # noqa: S608
                    "where raw_object_id = any(:objects)"
                ),
                {"objects": objects},
            ).scalars()
        }
    done = [
        event_id
        for event_id, _, kind, raw_object_id, _ in rows
        if kind not in STAGED_KINDS or raw_object_id in staged
    ]
    settle(engine, done)
    waiting = [row.event_id for row in rows if row.event_id not in set(done)]
    put_off(engine, waiting, "its raw object is not staged")
    now = dt.datetime.now(dt.UTC)
    ages = [(now - row.received_at).total_seconds() for row in rows if row.event_id in set(done)]
    return Settled(len(done), len(waiting), max(ages, default=None))


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Dead events of a kind."""

    provider: str
    event_type: str
    error: str | None
    events: int


def dead_letters(engine: sa.Engine) -> list[DeadLetters]:
    """The dead events by provider, type and error, the most first."""
    kinds = (WebhookEvent.provider, WebhookEvent.event_type, WebhookEvent.error)
    query = (
        sa.select(*kinds, sa.func.count())
        .where(WebhookEvent.state == "dead")
        .group_by(*kinds)
        .order_by(sa.func.count().desc(), *kinds)
    )
    with engine.connect() as connection:
        return [DeadLetters(*row) for row in connection.execute(query)]


def put_off(engine: sa.Engine, event_ids: Sequence[int], error: str) -> None:
    """What was tried in vain waits for its next try, or is dead where that was the last. `error` names no person."""
    for state, attempts in (
        ("pending", WebhookEvent.attempts < len(RETRY_AFTER)),
        ("dead", WebhookEvent.attempts >= len(RETRY_AFTER)),
    ):
        _update(engine, event_ids, attempts, WebhookEvent.state == "processing", state=state, error=error)


def bury(engine: sa.Engine, now: dt.datetime) -> int:
    """Mark as dead what ran out of tries in a run that was killed; how many."""
    with engine.begin() as connection:
        return connection.execute(
            sa.update(WebhookEvent)
            .where(
                WebhookEvent.state.in_(("pending", "processing")),
                WebhookEvent.attempts >= len(RETRY_AFTER),
                WebhookEvent.next_try_at <= now,
            )
            .values(state="dead", updated_at=sa.func.now())
        ).rowcount


def revive(engine: sa.Engine, condition: sa.ColumnElement[bool]) -> int:
    """Try events again from the start, now; how many."""
    with engine.begin() as connection:
        return connection.execute(
            sa.update(WebhookEvent)
            .where(condition)
            .values(
                state="pending", attempts=0, next_try_at=sa.func.now(), error=None, updated_at=sa.func.now()
            )
        ).rowcount


def _update(
    engine: sa.Engine, event_ids: Sequence[int], *conditions: sa.ColumnElement[bool], **values: object
) -> None:
    if not event_ids:
        return
    with engine.begin() as connection:
        connection.execute(
            sa.update(WebhookEvent)
            .where(WebhookEvent.event_id.in_(event_ids), *conditions)
            .values(updated_at=sa.func.now(), **values)
        )


def _is_due(now: dt.datetime) -> sa.ColumnElement[bool]:
    return sa.and_(
        WebhookEvent.state.in_(("pending", "processing")),
        WebhookEvent.next_try_at <= now,
        WebhookEvent.attempts < len(RETRY_AFTER),
    )


_RECEIVED_DAY = sa.cast(sa.func.timezone("UTC", WebhookEvent.received_at), sa.Date)
