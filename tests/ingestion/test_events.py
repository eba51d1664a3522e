"""Events from the moment they are kept until they are settled: tries, strangers, what each kind asks for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import httpx
import orjson
import pytest
import sqlalchemy as sa
from connecting import NOW

from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import events
from health_pipeline.ingestion.announced import EventsReport, work_on_events
from health_pipeline.ingestion.events import RETRY_AFTER, accept
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import RawStore
from health_pipeline.runtime.events import replay
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.staging.load import stage
from health_pipeline.warehouse.connection import Warehouse

SECRET = "secret"
DAY = dt.date(2026, 11, 20)
TODAY = NOW.date()


class Desk:
    """Ada, her accounts, and what comes of them."""

    def __init__(
        self, settings: Settings, warehouse: Warehouse, vault: Vault, store: RawStore, sandbox: RunningSandbox
    ) -> None:
        self.settings = settings.model_copy(update={"sandbox_url": sandbox.url})
        self.warehouse, self.vault, self.store, self.sandbox = warehouse, vault, store, sandbox

    def connect(self, provider: Provider) -> int:
        with self.warehouse.engine.begin() as connection:
            user = ensure_user(connection, "ada", "Europe/Berlin")
        connect_sandbox_person(self.settings, self.warehouse, self.vault, provider, "ada")
        return user.user_id

    def bodies(self, provider: Provider, day: dt.date = DAY) -> list[bytes]:
        api = self.sandbox.app.state.apis[provider.name]
        return [call.body for call in api.webhooks("ada", day, SECRET)]

    def happened(self, name: str, day: dt.date) -> bool:
        try:
            return bool(self.bodies(get(name), day))
        except LookupError:
            return False

    def accept(self, provider: Provider, *bodies: bytes, at: dt.datetime = NOW) -> int:
        return sum(
            len(accept(self.warehouse.engine, self.store, provider, body, "application/json", at).event_ids)
            for body in bodies
        )

    def work(self, provider: Provider, run: str = "run", day: dt.date = TODAY) -> EventsReport:
        return work_on_events(self.warehouse, self.store, self.vault, self.settings, provider, day, run)

    def rows(self, query: str, **parameters: object) -> list[tuple[object, ...]]:
        with self.warehouse.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query), parameters)]

    def states(self) -> dict[str, int]:
        return dict(self.rows("select state, count(*) from ops.webhook_events group by 1"))  # type: ignore[arg-type]

    def make_due(self) -> None:
        with self.warehouse.engine.begin() as connection:
            connection.execute(
                sa.text("update ops.webhook_events set next_try_at = now() where next_try_at is not null")
            )


@pytest.fixture
def desk(
    settings: Settings, warehouse: Warehouse, vault: Vault, store: RawStore, sandbox: RunningSandbox
) -> Desk:
    return Desk(settings, warehouse, vault, store, sandbox)


def test_what_is_announced_is_fetched_and_settled_once_staged(desk: Desk) -> None:
    oura = get("oura")
    desk.connect(oura)
    kept = desk.accept(oura, *desk.bodies(oura))
    report = desk.work(oura)
    assert (report.claimed, report.failed) == (kept, 0)
    assert report.fetch is not None
    assert report.fetch.new_objects > 0
    announced = {row[0] for row in desk.rows("select entity from ops.webhook_events")}
    fetched = desk.rows(
        "select entity, partition_start, partition_end from ops.raw_objects where door = 'fetch'"
    )
    assert {row[0] for row in fetched} == announced
    # Of the day partition of the receipt, whichever days the records are of.
    assert {row[1:] for row in fetched} == {(TODAY, TODAY)}
    assert desk.states() == {"processing": kept}
    settled = events.settle_run(desk.warehouse.engine, "run")
    assert (settled.processed, settled.put_off) == (kept, 0)
    assert desk.states() == {"processed": kept}


@pytest.mark.parametrize(
    ("name", "table", "key"),
    [("oura", "sleep", "id"), ("whoop", "recovery", "sleep_id"), ("strava", "activity", "id")],
)
def test_a_record_asked_for_by_its_id_is_the_same_as_in_a_list(
    desk: Desk, name: str, table: str, key: str
) -> None:
    provider = get(name)
    user_id = desk.connect(provider)
    day = next(
        day for day in (DAY - dt.timedelta(days=back) for back in range(14)) if desk.happened(name, day)
    )
    desk.accept(provider, *desk.bodies(provider, day))
    assert desk.work(provider).failed == 0
    stage(desk.warehouse, desk.store, provider)
    columns = ", ".join(column for column in provider.entity(table).schema.names)
    query = f"select distinct {columns} from staging_{name}.{table} where {key} = any(:keys)"
    keys = [row[0] for row in desk.rows(f"select {key} from staging_{name}.{table}")]
    by_id = desk.rows(query, keys=keys)
    assert by_id
    around = Window(day - dt.timedelta(days=1), day + dt.timedelta(days=1))
    fetch(
        *(desk.warehouse, desk.store, desk.vault, desk.settings, provider, around),
        user_ids=[user_id],
    )
    stage(desk.warehouse, desk.store, provider)
    assert len(desk.rows(f"select 1 from staging_{name}.{table} where {key} = any(:keys)", keys=keys)) > len(
        by_id
    )
    assert desk.rows(query, keys=keys) == by_id


def test_a_record_that_is_gone_before_it_is_asked_for_is_no_trouble(desk: Desk) -> None:
    oura = get("oura")
    desk.connect(oura)
    ((person,),) = desk.rows("select provider_user_id from ops.provider_accounts")
    notice = {"event_type": "create", "data_type": "sleep", "object_id": "no-such-night", "user_id": person}
    desk.accept(oura, orjson.dumps(notice))
    assert desk.work(oura).failed == 0
    assert events.settle_run(desk.warehouse.engine, "run").processed == 1


def test_notices_are_not_staged_and_pushed_data_is(desk: Desk) -> None:
    terra, whoop = get("terra"), get("whoop")
    for provider in (terra, whoop):
        desk.connect(provider)
        desk.accept(provider, *desk.bodies(provider))
        desk.work(provider)
    assert stage(desk.warehouse, desk.store, terra, Window(TODAY, TODAY)).objects > 0
    stage(desk.warehouse, desk.store, whoop, Window(TODAY, TODAY))
    noted = desk.rows(
        "select provider, entity, count(*) from ops.raw_objects where door = 'webhook' and provider = 'whoop' "
        "group by 1, 2"
    )
    assert noted == [("whoop", "notice", 2)]
    assert desk.rows("select count(*) from staging_whoop.quarantine") == [(0,)]
    assert events.settle_run(desk.warehouse.engine, "run").put_off == 0


def test_pushed_data_that_is_not_staged_is_tried_again(desk: Desk) -> None:
    terra = get("terra")
    desk.connect(terra)
    kept = desk.accept(terra, *desk.bodies(terra))
    desk.work(terra)
    with desk.warehouse.engine.begin() as connection:
        from health_pipeline.staging.tables import ensure_tables

        ensure_tables(connection, terra)
    settled = events.settle_run(desk.warehouse.engine, "run")
    assert (settled.processed, settled.put_off) == (0, kept)
    assert desk.rows("select distinct state, error from ops.webhook_events") == [
        ("pending", "its raw object is not staged")
    ]


def test_somebody_unknown_is_tried_five_times_and_then_dead(desk: Desk) -> None:
    whoop = get("whoop")
    kept = desk.accept(whoop, *desk.bodies(whoop))
    waits = []
    for attempt in range(1, len(RETRY_AFTER) + 1):
        before = dt.datetime.now(dt.UTC)
        assert desk.work(whoop).failed == kept
        ((state, attempts, error, next_try),) = set(
            desk.rows("select state, attempts, error, max(next_try_at) over () from ops.webhook_events")
        )
        assert attempts == attempt
        assert "nobody here is connected to WHOOP" in str(error)
        assert state == ("dead" if attempt == len(RETRY_AFTER) else "pending")
        assert isinstance(next_try, dt.datetime)
        waits.append((next_try - before).total_seconds())
        assert desk.work(whoop).claimed == 0, "not due yet"
        desk.make_due()
    for wait, wanted in zip(waits, RETRY_AFTER[1:], strict=False):
        assert 0.9 * wanted.total_seconds() <= wait <= 1.1 * wanted.total_seconds() + 5
    desk.make_due()
    assert desk.work(whoop).claimed == 0
    (dead,) = [
        each for each in events.dead_letters(desk.warehouse.engine) if each.event_type == "sleep.updated"
    ]
    assert dead.provider == "whoop"


def test_what_came_before_its_person_connected_becomes_theirs(desk: Desk) -> None:
    terra = get("terra")
    kept = desk.accept(terra, *desk.bodies(terra))
    assert stage(desk.warehouse, desk.store, terra).objects == 0, "nobody's data is not staged"
    user_id = desk.connect(terra)
    assert desk.work(terra).failed == 0
    assert desk.rows(
        "select distinct user_id from ops.raw_objects inner join ops.subjects using (subject_id)"
    ) == [(user_id,)]
    assert desk.rows("select count(*) from ops.subjects where user_id is null") == [(0,)]
    assert stage(desk.warehouse, desk.store, terra).objects > 0
    assert events.settle_run(desk.warehouse.engine, "run").processed == kept


def test_a_run_that_was_killed_leaves_its_events_to_the_next(desk: Desk) -> None:
    oura = get("oura")
    desk.connect(oura)
    kept = desk.accept(oura, *desk.bodies(oura))
    desk.work(oura, "killed")
    assert events.due_days(desk.warehouse.engine, dt.datetime.now(dt.UTC)) == {}
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=6)
    assert events.due_days(desk.warehouse.engine, later) == {TODAY: {"oura"}}
    desk.make_due()
    assert desk.work(oura, "next").claimed == kept
    assert events.settle_run(desk.warehouse.engine, "killed").processed == 0
    assert events.settle_run(desk.warehouse.engine, "next").processed == kept


def test_out_of_tries_in_a_killed_run_is_dead_too(desk: Desk) -> None:
    oura = get("oura")
    desk.connect(oura)
    kept = desk.accept(oura, *desk.bodies(oura))
    for _ in RETRY_AFTER:
        desk.work(oura)
        desk.make_due()
    assert desk.states() == {"processing": kept}
    assert events.bury(desk.warehouse.engine, dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)) == kept
    assert desk.states() == {"dead": kept}
    assert replay(desk.warehouse.engine, dead=True) == kept
    assert desk.work(oura).claimed == kept


def test_a_second_change_in_the_same_words_is_worked_on(desk: Desk) -> None:
    """Withings' notice of a day says the same each time; a vendor's id says which it is."""
    withings, whoop = get("withings"), get("whoop")
    desk.connect(withings)
    desk.connect(whoop)
    bodies = desk.bodies(withings)
    kept = desk.accept(withings, *bodies)
    assert desk.accept(withings, *bodies) == 0, "the first is still to be worked on"
    desk.work(withings)
    assert desk.accept(withings, *bodies) == kept, "it may be of a change since the fetch"
    assert events.settle_run(desk.warehouse.engine, "run").processed == 0
    assert desk.states() == {"pending": kept}
    desk.work(withings)
    events.settle_run(desk.warehouse.engine, "run")
    assert desk.states() == {"processed": kept}
    assert desk.accept(whoop, *desk.bodies(whoop)) == 2
    desk.work(whoop)
    events.settle_run(desk.warehouse.engine, "run")
    assert desk.accept(whoop, *desk.bodies(whoop)) == 0


def test_trouble_puts_the_events_off_and_a_later_try_brings_them(desk: Desk) -> None:
    oura = get("oura")
    desk.connect(oura)
    kept = desk.accept(oura, *desk.bodies(oura))
    fault = {"provider": "oura", "kind": "malformed", "count": None}
    httpx.post(f"{desk.sandbox.url}/__faults", json=fault).raise_for_status()
    report = desk.work(oura)
    assert report.failed == kept
    assert all("oura" in error.lower() for error in report.errors), report.errors
    assert desk.states() == {"pending": kept}
    httpx.delete(f"{desk.sandbox.url}/__faults").raise_for_status()
    desk.make_due()
    assert desk.work(oura).failed == 0
    assert events.settle_run(desk.warehouse.engine, "run").processed == kept


def withdrawn_by(provider: str, person: str) -> bytes:
    if provider == "strava":
        return orjson.dumps(
            {
                "object_type": "athlete",
                "aspect_type": "update",
                "owner_id": int(person),
                "object_id": int(person),
                "updates": {"authorized": "false"},
            }
        )
    if provider == "garmin":
        return orjson.dumps({"deregistrations": [{"userId": person}]})
    if provider == "withings":
        return f"userid={person}&appli=46&action=unlink".encode()
    return orjson.dumps({"type": "deauth", "user": {"user_id": person}, "status": "success"})


@pytest.mark.parametrize("name", ["strava", "garmin", "withings", "terra"])
def test_consent_that_ended_at_the_provider_ends_here(desk: Desk, name: str) -> None:
    provider = get(name)
    user_id = desk.connect(provider)
    ((person,),) = desk.rows("select provider_user_id from ops.provider_accounts")
    assert desk.accept(provider, withdrawn_by(name, str(person))) == 1
    assert desk.work(provider).failed == 0
    assert desk.states() == {"processed": 1}
    assert desk.rows("select status from ops.provider_accounts") == [("disconnected",)]
    assert desk.rows("select count(*) from ops.connector_tokens") == [(0,)]
    assert desk.rows(
        "select event from ops.connector_consent_ledger where user_id = :user order by entry_id", user=user_id
    ) == [("granted",), ("withdrawn",)]
    # What still comes is not theirs any more.
    body = withdrawn_by(name, str(person)) if name == "strava" else desk.bodies(provider)[0]
    desk.accept(provider, body)
    assert desk.rows(
        "select count(*) from ops.raw_objects inner join ops.subjects using (subject_id) where user_id is not null "
        "and door = 'webhook' and entity <> 'notice'"
    ) == [(0,)]


def test_a_person_who_gets_a_new_id_is_known_by_it(desk: Desk) -> None:
    terra = get("terra")
    desk.connect(terra)
    ((old,),) = desk.rows("select provider_user_id from ops.provider_accounts")
    again = {"type": "user_reauth", "old_user": {"user_id": old}, "new_user": {"user_id": "new-id"}}
    desk.accept(terra, orjson.dumps(again))
    assert desk.work(terra).failed == 0
    assert desk.rows("select provider_user_id from ops.provider_accounts") == [("new-id",)]
    assert desk.states() == {"processed": 1}


@pytest.mark.parametrize(
    "wrong",
    [lambda engine: replay(engine), lambda engine: replay(engine, event_ids=[9])],
    ids=["nothing said", "no such event"],
)
def test_replay_says_what_it_needs(desk: Desk, wrong: Callable[[sa.Engine], int]) -> None:
    with pytest.raises((ValueError, LookupError)):
        wrong(desk.warehouse.engine)
