"""The fetch door against a sandbox that behaves, and one that does not."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import logging
import time
from contextlib import suppress
from typing import Any

import httpx
import orjson
import pytest
import sqlalchemy as sa
from connecting import (
    EXPIRED,
    NOW,
    OURA,
    Connected,
    account_row,
    asked,
    calm,
    connect,
    order,
    sandbox_endpoint,
    stats,
)

from health_pipeline.connections.endpoints import Endpoint, ProviderNotConfiguredError
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import fetch as fetch_module
from health_pipeline.ingestion.fetch import FetchReport, ProviderOutageError, fetch
from health_pipeline.providers.base import Window
from health_pipeline.raw.keys import parse_key
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.faults import Fault
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

DAY = dt.date(2026, 11, 10)
WINDOW = Window(DAY, DAY + dt.timedelta(days=1))
ENDPOINTS = [entity for entity in OURA.entities if entity.endpoint is not None]


class Door:
    """The fetch door of a warehouse, a store and a sandbox."""

    def __init__(
        self,
        warehouse: Warehouse,
        store: RawStore,
        vault: Vault,
        settings: Settings,
        sandbox: RunningSandbox,
    ) -> None:
        self.warehouse, self.store, self.vault, self.sandbox = warehouse, store, vault, sandbox
        self.settings = settings.model_copy(update={"sandbox_url": sandbox.url})
        self.url = sandbox.url

    def fetch(self, window: Window = WINDOW, **rest: Any) -> FetchReport:
        return fetch(self.warehouse, self.store, self.vault, self.settings, OURA, window, **rest)

    def rows(self, where: str = "true") -> list[Any]:
        with self.warehouse.engine.connect() as connection:
            return list(
                connection.execute(
                    sa.text(f"select * from ops.raw_objects where {where} order by raw_object_id")
                )
            )

    def records(self, entity: str) -> list[dict[str, Any]]:
        """All records of an entity in the raw store, page by page."""
        found: list[dict[str, Any]] = []
        for row in self.rows(f"entity = '{entity}'"):
            # Half a page, which a fault may give, has no records.
            with suppress(orjson.JSONDecodeError):
                found += orjson.loads(self.store.get(row.object_key))["data"]
        return found


@pytest.fixture
def door(
    warehouse: Warehouse, store: RawStore, vault: Vault, settings: Settings, sandbox: RunningSandbox
) -> Door:
    return Door(warehouse, store, vault, settings, sandbox)


@pytest.fixture
def ada(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    return connect(warehouse, vault, endpoint, "ada")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds a client would have slept; it does not."""
    seconds: list[float] = []
    monkeypatch.setattr(fetch_module, "_pause", lambda _stop, wanted: seconds.append(wanted))
    return seconds


def test_every_page_of_every_entity_is_kept_as_it_came(door: Door, ada: Connected) -> None:
    report = door.fetch()
    assert report.failed == []
    rows = door.rows()
    assert {row.entity for row in rows} == {entity.name for entity in ENDPOINTS}
    assert report.new_objects == len(rows) == asked(door.url, path="usercollection", status=200)
    assert report.known_objects == 0
    assert report.bytes_received == sum(row.size_bytes for row in rows)
    assert {row.door for row in rows} == {"fetch"}
    # The bytes are those of the sandbox: what a second client gets for the same question.
    night = next(record for record in door.records("daily_sleep") if record["day"] == str(DAY))
    answer = httpx.get(
        f"{door.url}/oura/v2/usercollection/daily_sleep/{night['id']}",
        headers={"Authorization": f"Bearer {ada.tokens.access_token}"},
    )
    assert night == answer.json()
    row = account_row(door.warehouse, ada.account_id)
    assert (row.status, row.last_error) == ("active", None)
    assert dt.timedelta(0) < dt.datetime.now(dt.UTC) - row.last_sync_at < dt.timedelta(minutes=1)


def test_the_index_says_whose_when_and_which_days_without_the_user(door: Door, ada: Connected) -> None:
    door.fetch()
    rows = door.rows()
    with door.warehouse.engine.connect() as connection:
        subject = connection.exec_driver_sql("select subject_id from ops.subjects").scalar_one()
    for row in rows:
        assert hashlib.sha256(door.store.get(row.object_key)).hexdigest() == row.sha256
        assert (row.partition_start, row.partition_end) == (WINDOW.start, WINDOW.end)
        assert (row.subject_id, row.subject_id.version) == (subject, 4)
        # The key tells no more of the person than the random subject.
        key = parse_key(row.object_key)
        assert (key.provider, key.entity, key.subject, key.sha256) == (
            "oura",
            row.entity,
            subject,
            row.sha256,
        )
        assert key.date == row.received_at.astimezone(dt.UTC).date()
        assert row.time_zone == "Europe/London"
        assert dt.timedelta(0) < dt.datetime.now(dt.UTC) - row.received_at < dt.timedelta(minutes=1)
    assert {info.key for info in door.store.list()} == {row.object_key for row in rows}


def test_pages_are_followed_to_the_end(
    warehouse: Warehouse, store: RawStore, vault: Vault, settings: Settings
) -> None:
    with run_in_thread(now=lambda: NOW, page_size=200, document_page_size=3) as sandbox:
        door = Door(warehouse, store, vault, settings, sandbox)
        connect(warehouse, vault, sandbox_endpoint(sandbox.url, settings), "ada")
        report = door.fetch()
        assert report.failed == []
        for entity in ("heartrate", "daily_activity"):
            pages = [orjson.loads(store.get(row.object_key)) for row in door.rows(f"entity = '{entity}'")]
            assert len(pages) == asked(sandbox.url, path=f"/{entity}")
            assert len(pages) > 2
            assert [page["next_token"] is None for page in pages] == [False] * (len(pages) - 1) + [True]
        # All pages of a request count as received at one time: none supersedes another.
        assert len({row.received_at for row in door.rows("entity = 'heartrate'")}) == 1
        days = [record["day"] for record in door.records("daily_activity")]
        assert len(days) == len(set(days)) >= 9


def test_days_before_the_window_are_read_again_for_revisions(door: Door, ada: Connected) -> None:
    door.fetch()
    for entity in ("daily_sleep", "sleep", "daily_readiness"):
        days = {record["day"] for record in door.records(entity)}
        assert min(days) <= str(DAY - dt.timedelta(days=6))
        assert max(days) == str(WINDOW.end)
    times = [record["timestamp"] for record in door.records("heartrate")]
    assert min(times)[:10] <= str(DAY - dt.timedelta(days=2))
    assert max(times)[:10] >= str(WINDOW.end)
    # They belong to the days asked for, or a run for these days would not stage them.
    assert {(row.partition_start, row.partition_end) for row in door.rows()} == {(WINDOW.start, WINDOW.end)}


def test_the_same_days_again_add_nothing(door: Door, ada: Connected) -> None:
    first = door.fetch()
    before = door.rows()
    again = door.fetch()
    assert (again.new_objects, again.known_objects) == (0, first.new_objects)
    assert door.rows() == before
    assert len(list(door.store.list())) == len(before)


def test_a_revision_is_one_new_object_and_the_way_back_another_row(door: Door, ada: Connected) -> None:
    door.fetch()
    before = len(door.rows())
    revision = {"provider": "oura", "handle": "ada", "day": str(DAY)}
    httpx.post(f"{door.url}/__revise", json=revision).raise_for_status()
    again = door.fetch()
    revised = door.rows()[before:]
    assert {row.entity for row in revised} == {"sleep", "daily_sleep", "daily_readiness"}
    assert again.new_objects == len(revised) == 3
    # The provider takes it back; the sandbox has no switch for that.
    door.sandbox.app.state.apis["oura"]._documents["ada"].edits.clear()
    back = door.fetch()
    assert back.new_objects == 3
    rows = door.rows("entity = 'daily_sleep'")
    assert len(rows) == 3
    assert rows[0].sha256 == rows[2].sha256 != rows[1].sha256
    assert rows[0].object_key == rows[2].object_key
    assert rows[0].received_at < rows[1].received_at < rows[2].received_at
    assert door.fetch().new_objects == 0


def test_a_rate_limit_is_waited_for_and_the_fetch_ends_complete(
    door: Door, ada: Connected, slept: list[float]
) -> None:
    order(door.url, "rate_limit", retry_after=7, count=2)
    report = door.fetch()
    assert report.failed == []
    assert len(slept) == 2
    assert all(7 <= seconds <= 10 for seconds in slept)
    assert {row.entity for row in door.rows()} == {entity.name for entity in ENDPOINTS}
    assert asked(door.url, status=429) == 2


def test_a_rate_limit_is_waited_for_by_the_clock(door: Door, ada: Connected) -> None:
    order(door.url, "rate_limit", retry_after=1, path_contains="workout")
    started = time.monotonic()
    assert door.fetch().failed == []
    assert time.monotonic() - started >= 1


def test_a_refused_token_is_renewed_once_and_the_fetch_goes_on(door: Door, ada: Connected) -> None:
    order(door.url, "unauthorized", path_contains="heartrate")
    report = door.fetch()
    assert report.failed == []
    assert stats(door.url)["refresh_token"] == 1
    assert asked(door.url, status=401) == 1
    assert {row.entity for row in door.rows()} == {entity.name for entity in ENDPOINTS}


def test_one_revoked_grant_stops_nobody_else(
    door: Door, ada: Connected, vault: Vault, endpoint: Endpoint
) -> None:
    ben = connect(door.warehouse, vault, endpoint, "ben")
    httpx.post(f"{door.url}/__revoke", json={"provider": "oura", "handle": "ada"}).raise_for_status()
    report = door.fetch()
    assert [result.account_id for result in report.failed] == [ada.account_id]
    row = account_row(door.warehouse, ada.account_id)
    assert row.status == "error"
    assert "connect Oura again" in row.last_error
    assert row.last_sync_at is None
    good = account_row(door.warehouse, ben.account_id)
    assert (good.status, good.last_error) == ("active", None)
    assert {row.entity for row in door.rows()} == {entity.name for entity in ENDPOINTS}
    # The next run does not ask for who has to connect again.
    assert [result.account_id for result in door.fetch().accounts] == [ben.account_id]


def test_a_scope_that_was_not_granted_is_a_warning(door: Door, vault: Vault, endpoint: Endpoint) -> None:
    scopes = tuple(scope for scope in endpoint.oauth.scopes if scope not in ("heartrate", "heart_health"))
    ada = connect(door.warehouse, vault, endpoint, "ada", scopes=scopes)
    report = door.fetch()
    assert report.failed == []
    missing = ["daily_cardiovascular_age", "vo2_max", "heartrate"]
    assert report.accounts[0].missing_entities == missing
    row = account_row(door.warehouse, ada.account_id)
    assert row.status == "active"
    assert row.last_sync_at is not None
    assert all(name in row.last_error for name in missing)
    assert {row.entity for row in door.rows()} == {entity.name for entity in ENDPOINTS} - set(missing)


def test_an_outage_is_named_ends_early_and_loses_nothing(
    door: Door, vault: Vault, endpoint: Endpoint, slept: list[float]
) -> None:
    people = [
        connect(door.warehouse, vault, endpoint, handle) for handle in ("ada", "ben", "chen", "dana", "eli")
    ]
    order(door.url, "server_error", count=None)
    with pytest.raises(
        ProviderOutageError, match=r"Oura answers nobody.*503.*Nothing was lost; run it again"
    ):
        door.fetch()
    # One entity an account, not eleven; and the last account finds the circuit nearly open.
    assert asked(door.url, path="usercollection") <= 5 * len(people)
    for person in people:
        row = account_row(door.warehouse, person.account_id)
        assert row.status == "active"
        assert "unavailable" in row.last_error
    calm(door.url)
    report = door.fetch()
    assert report.failed == []
    assert report.new_objects == len(door.rows()) > 11 * len(people) - 1
    assert all(account_row(door.warehouse, person.account_id).last_error is None for person in people)


def test_a_token_endpoint_that_is_down_is_an_outage_and_breaks_no_connection(
    door: Door, vault: Vault, endpoint: Endpoint, slept: list[float]
) -> None:
    ada = connect(door.warehouse, vault, endpoint, "ada", expires_at=EXPIRED)
    ben = connect(door.warehouse, vault, endpoint, "ben")
    order(door.url, "server_error", path_contains="oauth/token", count=None)
    report = door.fetch()
    assert [result.account_id for result in report.failed] == [ada.account_id]
    row = account_row(door.warehouse, ada.account_id)
    assert row.status == "active"
    assert "try again later" in row.last_error
    assert account_row(door.warehouse, ben.account_id).last_error is None
    with pytest.raises(ProviderOutageError, match="Oura"):
        door.fetch(user_ids=[ada.user_id])
    calm(door.url)
    assert door.fetch(user_ids=[ada.user_id]).failed == []


def test_one_account_of_a_lost_key_stops_nobody_else(door: Door, ada: Connected, endpoint: Endpoint) -> None:
    ben = connect(door.warehouse, door.vault, endpoint, "ben")
    with door.warehouse.engine.begin() as connection:
        connection.exec_driver_sql(
            f"update ops.connector_tokens set key_id = 'lost' where account_id = {ben.account_id}"
        )
    report = door.fetch()
    assert [result.account_id for result in report.failed] == [ben.account_id]
    row = account_row(door.warehouse, ben.account_id)
    assert row.status == "active"
    assert "HEALTH_PIPELINE_VAULT_KEY" in row.last_error


def test_a_cut_body_is_asked_for_again(door: Door, ada: Connected, slept: list[float]) -> None:
    order(door.url, "cut", path_contains="sleep", count=3)
    assert door.fetch().failed == []
    assert len(slept) == 3
    assert {row.entity for row in door.rows()} == {entity.name for entity in ENDPOINTS}


def test_a_malformed_page_is_kept_told_and_stops_no_other_entity(door: Door, ada: Connected) -> None:
    order(door.url, "malformed", path_contains="daily_sleep")
    report = door.fetch()
    assert len(report.failed) == 1
    row = account_row(door.warehouse, ada.account_id)
    assert row.status == "active"
    assert "daily_sleep" in row.last_error
    (half,) = door.rows("entity = 'daily_sleep'")
    content = door.store.get(half.object_key)
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(content)
    assert {row.entity for row in door.rows()} == {entity.name for entity in ENDPOINTS}
    again = door.fetch()
    assert (again.failed, again.new_objects) == ([], 1)
    whole = door.rows("entity = 'daily_sleep'")[-1]
    assert door.store.get(whole.object_key).startswith(content)
    assert account_row(door.warehouse, ada.account_id).last_error is None


def test_pages_that_came_before_a_failure_are_kept(
    warehouse: Warehouse, store: RawStore, vault: Vault, settings: Settings, slept: list[float]
) -> None:
    with run_in_thread(now=lambda: NOW, page_size=200) as sandbox:
        door = Door(warehouse, store, vault, settings, sandbox)
        connect(warehouse, vault, sandbox_endpoint(sandbox.url, settings), "ada")
        whole = door.fetch()
        pages = len(door.rows("entity = 'heartrate'"))
        assert pages > 3
        with warehouse.engine.begin() as connection:
            connection.exec_driver_sql("truncate ops.raw_objects cascade")
        # The third page and every one after it fail.
        board = sandbox.app.state.faults
        take, served = board.take, itertools.count(1)

        def from_the_third(provider: str, path: str, handle: str | None) -> Fault | None:
            if "heartrate" in path and next(served) >= 3:
                return Fault(provider="oura", kind="server_error")
            return take(provider, path, handle)

        board.take = from_the_third
        with pytest.raises(ProviderOutageError, match="heartrate"):
            door.fetch()
        assert len(door.rows("entity = 'heartrate'")) == 2
        board.take = take
        again = door.fetch()
        assert again.new_objects + again.known_objects == whole.new_objects
        assert len(door.rows("entity = 'heartrate'")) == pages


def test_drift_is_kept_as_it_came(door: Door, ada: Connected) -> None:
    order(door.url, "drift", path_contains="daily_sleep", drop=["timestamp"], retype=["score"])
    assert door.fetch().failed == []
    records = door.records("daily_sleep")
    assert records
    assert all("sandbox_drift" in record and isinstance(record["score"], str) for record in records)


def test_accounts_of_another_environment_are_not_asked_for(
    door: Door, ada: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTH_PIPELINE_OURA_CLIENT_ID", "our-id")
    report = door.fetch()
    assert "connected to the sandbox environment, but Oura is configured for live" in str(
        report.failed[0].error
    )
    assert door.rows() == []
    assert asked(door.url, path="usercollection") == 0
    row = account_row(door.warehouse, ada.account_id)
    assert row.status == "active"
    assert "connect the account again" in row.last_error


def test_nobody_connected_is_no_error_and_nobody_to_ask_is(door: Door, settings: Settings) -> None:
    assert door.fetch().accounts == []
    assert door.fetch(user_ids=[]).accounts == []


def test_no_provider_configured_names_the_settings(door: Door, ada: Connected, settings: Settings) -> None:
    door.settings = settings
    with pytest.raises(ProviderNotConfiguredError, match="HEALTH_PIPELINE_OURA_CLIENT_ID"):
        door.fetch()


def test_users_and_progress(door: Door, ada: Connected, vault: Vault, endpoint: Endpoint) -> None:
    ben = connect(door.warehouse, vault, endpoint, "ben")
    steps: list[tuple[int, int]] = []
    report = door.fetch(user_ids=[ben.user_id], on_progress=lambda done, total: steps.append((done, total)))
    assert [result.account_id for result in report.accounts] == [ben.account_id]
    assert steps == [(number, len(ENDPOINTS)) for number in range(1, len(ENDPOINTS) + 1)]


def test_long_windows_are_asked_for_in_parts_that_keep_their_days(door: Door, ada: Connected) -> None:
    window = Window(DAY - dt.timedelta(days=99), DAY)
    assert door.fetch(window).failed == []
    parts = [(row.partition_start, row.partition_end) for row in door.rows("entity = 'daily_sleep'")]
    assert min(parts)[0] == window.start
    assert max(end for _, end in parts) == window.end
    assert len(set(parts)) == 2
    days = [record["day"] for record in door.records("daily_sleep")]
    wanted = {str(window.start + dt.timedelta(days=number)) for number in range(100)}
    # Nights that were not slept with the ring are in no answer.
    assert len(wanted - set(days)) < 15
    before = len(door.rows())
    assert door.fetch(window).new_objects == 0
    assert len(door.rows()) == before


def test_no_token_query_or_body_is_logged_or_raised(
    door: Door,
    vault: Vault,
    endpoint: Endpoint,
    caplog: pytest.LogCaptureFixture,
    slept: list[float],
) -> None:
    ada = connect(door.warehouse, vault, endpoint, "ada")
    ben = connect(door.warehouse, vault, endpoint, "ben", expires_at=EXPIRED)
    caplog.set_level(logging.DEBUG)
    door.fetch()
    for kind, rest in (
        ("malformed", {"path_contains": "daily_sleep"}),
        ("cut", {"path_contains": "sleep", "count": 2}),
        ("unauthorized", {"path_contains": "workout", "count": 2, "handle": "ada"}),
    ):
        order(door.url, kind, **rest)
        door.fetch()
        calm(door.url)
    order(door.url, "server_error", count=None)
    with pytest.raises(ProviderOutageError) as outage:
        door.fetch()
    calm(door.url)
    httpx.post(f"{door.url}/__revoke", json={"provider": "oura", "handle": "ben"}).raise_for_status()
    door.fetch()
    said = caplog.text + str(outage.value)
    for person in (ada, ben):
        said += str(account_row(door.warehouse, person.account_id).last_error)
        assert person.tokens.refresh_token is not None
        for secret in (person.tokens.access_token, person.tokens.refresh_token):
            assert secret not in said
            assert secret[20:60] not in said
    ours = "\n".join(
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("health_pipeline", "httpx"))
    )
    assert "usercollection/daily_sleep" in ours
    for word in ("start_date", "next_token", "Bearer", "client_secret", "sandbox-secret"):
        assert word not in said.replace("no usable next_token", "")
    identifiers = {record["id"] for record in door.records("daily_sleep")}
    assert identifiers
    assert not [each for each in identifiers if each in said]
