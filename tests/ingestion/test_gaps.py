"""The search for gaps: days that a provider should have and we have not, and only those."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from connecting import OURA, Connected, asked, calm, connect
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import jobs
from health_pipeline.ingestion.fetch import FetchReport, fetch
from health_pipeline.providers.base import Window
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

FIRST = dt.date(2026, 9, 1)
LAST = dt.date(2026, 9, 30)
ENTITIES = [entity for entity in OURA.entities if entity.endpoint is not None]
LONG_AFTER = dt.datetime(2026, 10, 15, tzinfo=dt.UTC)

Fetch = Callable[..., FetchReport]


def days_of(window: Window) -> list[dt.date]:
    return [window.start + dt.timedelta(days=n) for n in range((window.end - window.start).days + 1)]


def day(number: int) -> dt.date:
    return FIRST + dt.timedelta(days=number)


@pytest.fixture
def ada(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    return connect(warehouse, vault, endpoint, "ada")


@pytest.fixture
def run(
    warehouse: Warehouse, store: RawStore, vault: Vault, settings: Settings, sandbox: RunningSandbox
) -> Fetch:
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    return lambda window, **rest: fetch(warehouse, store, vault, settings, OURA, window, **rest)


def note(
    warehouse: Warehouse,
    account_id: int,
    first: int,
    last: int,
    at: dt.datetime = LONG_AFTER,
    entity: str = "sleep",
) -> None:
    jobs.note_fetched(warehouse.engine, account_id, entity, Window(day(first), day(last)), at)


def gaps(warehouse: Warehouse, account_id: int, last: dt.date = LAST, entity: str = "sleep") -> list[Window]:
    return jobs.find_gaps(warehouse.engine, [account_id], last).get((account_id, entity), [])


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(spans=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 8)), min_size=1, max_size=8))
def test_gaps_are_the_days_that_no_window_covers(
    warehouse: Warehouse, ada: Connected, spans: list[tuple[int, int]]
) -> None:
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("delete from ops.fetched_windows"))
    for first, more in spans:
        note(warehouse, ada.account_id, first, first + more)
    covered = {day(number) for first, more in spans for number in range(first, first + more + 1)}
    found = gaps(warehouse, ada.account_id)
    missing = [each for window in found for each in days_of(window)]
    assert missing == [each for each in days_of(Window(min(covered), LAST)) if each not in covered]
    # As few windows as there can be: none touches the next.
    assert all(one.end + dt.timedelta(days=1) < two.start for one, two in itertools.pairwise(found))


def test_a_day_that_was_not_over_when_it_was_asked_for_is_missing(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    # 03:00 UTC on the 11th is the 11th in London, the evening of the 10th in New York.
    at = dt.datetime(2026, 9, 11, 3, tzinfo=dt.UTC)
    london = connect(warehouse, vault, endpoint, "ada", zone="Europe/London")
    new_york = connect(warehouse, vault, endpoint, "ben", zone="America/New_York")
    for person in (london, new_york):
        note(warehouse, person.account_id, 0, 10, at)
    assert gaps(warehouse, london.account_id, day(10)) == [Window(day(10), day(10))]
    assert gaps(warehouse, new_york.account_id, day(10)) == [Window(day(9), day(10))]


def test_a_day_that_is_not_over_is_no_gap(warehouse: Warehouse, ada: Connected) -> None:
    now = dt.datetime.now(dt.UTC)
    yesterday = now.date() - dt.timedelta(days=1)
    jobs.note_fetched(warehouse.engine, ada.account_id, "sleep", Window(yesterday, yesterday), now)
    assert gaps(warehouse, ada.account_id, now.date() + dt.timedelta(days=3)) in (
        [],
        [Window(yesterday, yesterday)],
    )


def test_what_was_never_fetched_or_lies_after_has_no_gaps(warehouse: Warehouse, ada: Connected) -> None:
    assert gaps(warehouse, ada.account_id) == []
    note(warehouse, ada.account_id, 20, 22)
    assert gaps(warehouse, ada.account_id, day(10)) == []
    assert gaps(warehouse, ada.account_id, entity="heartrate") == []


def test_only_the_missing_days_are_asked_for_and_belong_to_the_run(
    warehouse: Warehouse, ada: Connected, run: Fetch, sandbox: RunningSandbox
) -> None:
    run(Window(day(0), day(3)))
    run(Window(day(20), day(22)))
    calm(sandbox.url)
    before = count(warehouse)
    report = run(Window(day(22), day(22)), plan="gaps")
    assert report.failed == []
    assert report.windows == len(ENTITIES)
    assert asked(sandbox.url, path="usercollection/daily_sleep") == 1
    rows = new_rows(warehouse, before)
    assert {(row.partition_start, row.partition_end) for row in rows} == {(day(22), day(22))}
    assert fetched(warehouse, "daily_sleep") == [(day(-7), day(3)), (day(4), day(12)), (day(13), day(22))]
    assert fetched(warehouse, "heartrate") == [(day(-2), day(3)), (day(4), day(17)), (day(18), day(22))]
    # Now there are none, and nobody is asked for anything.
    calm(sandbox.url)
    again = run(Window(day(22), day(22)), plan="gaps")
    assert again.accounts == []
    assert asked(sandbox.url) == 0


def count(warehouse: Warehouse) -> int:
    query = "select coalesce(max(raw_object_id), 0) from ops.raw_objects"
    with warehouse.engine.connect() as connection:
        return int(connection.exec_driver_sql(query).scalar_one())


def new_rows(warehouse: Warehouse, after: int) -> list[Any]:
    query = sa.text("select * from ops.raw_objects where raw_object_id > :after")
    with warehouse.engine.connect() as connection:
        return list(connection.execute(query, {"after": after}))


def fetched(warehouse: Warehouse, entity: str) -> list[tuple[dt.date, dt.date]]:
    query = sa.text(
        "select window_start, window_end from ops.fetched_windows where entity = :entity order by 1, 2"
    )
    with warehouse.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query, {"entity": entity})]
