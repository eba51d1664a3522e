"""`health-pipeline simulate-load`: so many synthetic people's days, through the doors that real ones take."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.ingestion.erasure import delete_bytes, delete_derived, delete_staged
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.registry import all_providers, get
from health_pipeline.raw.index import Delivery, receive
from health_pipeline.raw.store import RawStore, open_store
from health_pipeline.runtime.run_job import run_job
from health_pipeline.sandbox.load import Shape, bodies, zone_of
from health_pipeline.settings import FIRST_DAY, Settings
from health_pipeline.staging.load import only_loader, stage
from health_pipeline.staging.tables import schema_name
from health_pipeline.warehouse.connection import Warehouse

#: Nobody else's handle looks so: it is how simulated people are told from others.
_HANDLE = "simulated-{:06d}"
_IS_SIMULATED = "handle ~ '^simulated-[0-9]{6,}$'"
_PROVIDERS = ("oura", "dexcom")
#: Bodies that are received in one transaction.
_PEOPLE_AT_ONCE = 20
#: A day's data has come by this time of the next.
_RECEIVED = dt.time(6, tzinfo=dt.UTC)

#: Called with person-days done and all there are.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A window's load: records and bytes that came, and the seconds it took to keep, to stage and to apply them."""

    window: Window
    rows: int
    size_bytes: int
    raw_seconds: float
    staging_seconds: float
    run_seconds: float

    def words(self) -> str:
        total = self.raw_seconds + self.staging_seconds + self.run_seconds
        return (
            f"{self.window.start} to {self.window.end}: {self.rows:,} records, {self.size_bytes / 1e6:,.1f} MB; "
            f"raw {self.raw_seconds:.1f} s, staging {self.staging_seconds:.1f} s, tables {self.run_seconds:.1f} s: "
            f"{self.rows / max(total, 1e-9):,.0f} records/s"
        )


def others(warehouse: Warehouse) -> int:
    """How many users are not simulated."""
    with warehouse.engine.connect() as connection:
        counted: int = connection.execute(
            sa.text(f"select count(*) from ops.users where not {_IS_SIMULATED}")  # noqa: S608
        ).scalar_one()
    return counted


def simulate_load(
    settings: Settings,
    warehouse: Warehouse,
    users: int,
    window: Window,
    shape: Shape,
    on_progress: Progress,
    *,
    days_at_once: int = 30,
    compute: bool = True,
) -> Iterator[Loaded]:
    """Bring the days of `window` of the first `users` simulated people, so many days at once, oldest first.

    Each part goes into raw as answers of Oura and Dexcom; `compute` stages it and runs what follows. A part that is
    there already changes nothing. Raises ValueError where the days are not ones, RuntimeError where a run fails.
    """
    if window.start < FIRST_DAY or window.end >= dt.datetime.now(dt.UTC).date():
        raise ValueError(f"days go from {FIRST_DAY} to yesterday, not from {window.start} to {window.end}")
    store = open_store(settings.raw_location)
    user_ids = _people(warehouse, users)
    days, done = (window.end - window.start).days + 1, 0
    for number in range(0, days, days_at_once):
        first = window.start + dt.timedelta(days=number)
        part = Window(first, min(first + dt.timedelta(days=days_at_once - 1), window.end))
        length = (part.end - part.start).days + 1
        began = time.monotonic()
        rows = size = 0
        for start in range(0, users, _PEOPLE_AT_ONCE):
            people = range(start, min(start + _PEOPLE_AT_ONCE, users))
            deliveries, counted = _deliveries(user_ids, people, part, shape)
            receive(warehouse.engine, store, deliveries)
            rows += counted
            size += sum(len(each.content) for each in deliveries if isinstance(each.content, bytes))
            done += len(people) * length
            on_progress(done, users * days)
        received = time.monotonic()
        staged = received
        if compute:
            for name in _PROVIDERS:
                stage(warehouse, store, get(name))
            staged = time.monotonic()
            _run(settings, warehouse, part.end)
        yield Loaded(part, rows, size, received - began, staged - received, time.monotonic() - staged)


def _people(warehouse: Warehouse, users: int) -> list[int]:
    with warehouse.engine.begin() as connection:
        given = [{"handle": _HANDLE.format(person), "zone": zone_of(person)} for person in range(users)]
        connection.execute(
            sa.text(
                "insert into ops.users (handle, time_zone) values (:handle, :zone) on conflict (handle) do nothing"
            ),
            given,
        )
        found = connection.execute(
            sa.text(f"select handle, user_id from ops.users where {_IS_SIMULATED}")  # noqa: S608
        )
        ids = {row.handle: row.user_id for row in found}
    return [ids[each["handle"]] for each in given]


def _deliveries(
    user_ids: list[int], people: range, window: Window, shape: Shape
) -> tuple[list[Delivery], int]:
    """What the providers of some people answer about the days, and how many records are in it."""
    received_at = dt.datetime.combine(window.end + dt.timedelta(days=1), _RECEIVED)
    length = (window.end - window.start).days + 1
    deliveries, rows = [], 0
    for person in people:
        for body in bodies(person, window.start, length, shape):
            rows += body.rows
            deliveries.append(
                Delivery(
                    *(body.provider, body.entity, user_ids[person], "fetch", body.content, received_at),
                    *(window.start, window.end, "application/json"),
                )
            )
    return deliveries, rows


def _run(settings: Settings, warehouse: Warehouse, day: dt.date) -> None:
    """What follows staging."""
    doors = ("raw", *(schema_name(name) for name in all_providers()))
    outcome = run_job("daily_refresh", Window(day, day), settings, warehouse, without=doors)
    if not outcome.success:
        raise RuntimeError("; ".join(outcome.failures) or f"run {outcome.run_id} failed; see the UI")


def remove_load(settings: Settings, warehouse: Warehouse, on_progress: Progress) -> int:
    """Erase every simulated person: kept bytes, all rows, and the user. Returns how many there were.

    Interrupted, it goes on when it is called again.
    """
    store = open_store(settings.raw_location)
    with warehouse.engine.connect() as connection:
        user_ids = list(
            connection.execute(
                sa.text(f"select user_id from ops.users where {_IS_SIMULATED} order by 1")  # noqa: S608
            ).scalars()
        )
    for name in _PROVIDERS:
        _remove_received(warehouse, store, get(name), user_ids)
    for done, user_id in enumerate(user_ids, 1):
        with warehouse.engine.begin() as connection:
            delete_derived(connection, user_id, None)
            for statement in (
                "delete from ops.subjects where user_id = :user",
                "delete from ops.users where user_id = :user",
            ):
                connection.execute(sa.text(statement), {"user": user_id})
        on_progress(done, len(user_ids))
    return len(user_ids)


def _remove_received(warehouse: Warehouse, store: RawStore, provider: Provider, user_ids: list[int]) -> None:
    with only_loader(warehouse, provider.name):
        ids = delete_bytes(warehouse, store, provider, user_ids)
        with warehouse.engine.begin() as connection:
            delete_staged(connection, provider, ids)
            connection.execute(
                sa.text("delete from ops.raw_objects where raw_object_id = any(:ids)"), {"ids": ids}
            )
