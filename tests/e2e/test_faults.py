"""Each fault of the sandbox on two wire formats: nothing lost, nothing doubled, and words that help.

Withings reports errors with status 200 inside its body; WHOOP by status and headers.
"""

from __future__ import annotations

import datetime as dt
import functools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import fetch as fetch_module
from health_pipeline.ingestion.fetch import FetchReport, ProviderOutageError, fetch
from health_pipeline.providers.base import Window
from health_pipeline.providers.http import ApiClient, RateLimiter
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.staging.drift import recent_drift
from health_pipeline.staging.load import stage
from health_pipeline.staging.tables import schema_name, table_schemas
from health_pipeline.warehouse.connection import Warehouse

WINDOW = Window(dt.date(2026, 11, 17), dt.date(2026, 11, 18))

#: Rows of each staging table as they are, without where they came from, and how often each is there.
Rows = dict[str, Counter[str]]


class Clock:
    """Goes on by sleeping only."""

    def __init__(self) -> None:
        self._now = time.time()

    def time(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@dataclass
class House:
    """A warehouse with ada connected to one provider of the sandbox."""

    warehouse: Warehouse
    store: RawStore
    vault: Vault
    settings: Settings
    name: str

    def connect(self) -> None:
        with self.warehouse.engine.begin() as connection:
            ensure_user(connection, "ada", "Europe/London")
        connect_sandbox_person(self.settings, self.warehouse, self.vault, get(self.name), "ada")

    def order(self, **fault: Any) -> None:
        url = f"{self.settings.sandbox_url}/__faults"
        httpx.post(url, json={"provider": self.name, **fault}).raise_for_status()

    def calm(self) -> None:
        httpx.delete(f"{self.settings.sandbox_url}/__faults").raise_for_status()

    def fetch(self) -> FetchReport:
        return fetch(self.warehouse, self.store, self.vault, self.settings, get(self.name), WINDOW)

    def stage(self) -> Rows:
        """Stage what has come, and read all of it."""
        provider = get(self.name)
        stage(self.warehouse, self.store, provider)
        found: Rows = {}
        with self.warehouse.engine.connect() as connection:
            for table in table_schemas(provider):
                query = (
                    "select (to_jsonb(t) - '_raw_object_id' - '_load_id' - 'seen_at')::text "
                    f'from {schema_name(self.name)}."{table}" as t'
                )
                found[table] = Counter(connection.execute(sa.text(query)).scalars())
        return found

    def objects(self) -> Counter[tuple[str, str]]:
        """What the raw store holds: the entity and the hash of each object."""
        query = sa.text("select entity, sha256 from ops.raw_objects")
        with self.warehouse.engine.connect() as connection:
            return Counter((row.entity, row.sha256) for row in connection.execute(query))

    def forget(self) -> None:
        with self.warehouse.engine.begin() as connection:
            connection.execute(sa.text(f"drop schema if exists {schema_name(self.name)} cascade"))
            connection.execute(sa.text("delete from ops.raw_objects"))


@pytest.fixture(params=["whoop", "withings"])
def house(
    request: pytest.FixtureRequest,
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    settings: Settings,
    sandbox: RunningSandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> House:
    # A client sleeps as long as it must; here the clock goes on instead.
    clock = Clock()
    monkeypatch.setattr(fetch_module, "ApiClient", functools.partial(ApiClient, clock=clock.time))
    monkeypatch.setattr(fetch_module, "_pause", lambda _, seconds: clock.sleep(seconds))
    monkeypatch.setattr(fetch_module, "RateLimiter", functools.partial(RateLimiter, clock=clock.time))
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    found = House(warehouse, store, vault, settings, request.param)
    found.connect()
    return found


_UNDISTURBED: dict[str, Counter[tuple[str, str]]] = {}


def undisturbed(house: House) -> Counter[tuple[str, str]]:
    """The raw objects of a fetch without any fault: the same bytes become the same rows."""
    if house.name not in _UNDISTURBED:
        assert house.fetch().failed == []
        _UNDISTURBED[house.name] = house.objects()
        house.forget()
        assert len(_UNDISTURBED[house.name]) >= 5
    return _UNDISTURBED[house.name]


@dataclass
class Case:
    """A fault, and what the account says while it lasts; None where it is overcome."""

    fault: dict[str, Any]
    says: tuple[str, ...] | None = None
    outage: bool = False
    title: str = field(default="")


CASES = [
    Case({"kind": "rate_limit", "count": 1}, title="rate limit"),
    Case(
        {"kind": "rate_limit", "count": None, "retry_after": 1800},
        ("the rate limit is used up; ask again after",),
        title="rate limit that lasts",
    ),
    Case({"kind": "server_error", "count": 2}, title="server errors"),
    Case(
        {"kind": "server_error", "count": None},
        ("answers nobody", "Nothing was lost; run it again later"),
        outage=True,
        title="outage",
    ),
    Case({"kind": "slow", "delay": 0.3, "count": 2}, title="slow"),
    Case({"kind": "cut", "count": 2}, title="cut"),
    Case({"kind": "unauthorized", "count": 1}, title="refused token"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_nothing_is_lost_or_doubled(house: House, case: Case) -> None:
    calm = undisturbed(house)
    house.order(**case.fault)
    if case.outage:
        with pytest.raises(ProviderOutageError) as outage:
            house.fetch()
        error: str | None = str(outage.value)
        assert get(house.name).title in str(error)
    else:
        (account,) = house.fetch().accounts
        error = account.error
    assert (error is None) == (case.says is None), error
    if case.says is not None:
        assert house.name in str(error)
        assert [part for part in case.says if part not in str(error)] == []
    house.calm()
    assert house.fetch().failed == []
    assert house.objects() == calm


def test_half_a_body_is_kept_told_and_refused(house: House) -> None:
    calm = undisturbed(house)
    house.order(kind="malformed", count=1)
    (account,) = house.fetch().accounts
    assert account.error is not None
    assert house.name in account.error
    assert "not JSON" in account.error
    # Whatever came beside it came whole.
    assert len(house.objects() - calm) == 1
    assert len({entity for entity, _ in calm - house.objects()}) == 1
    house.calm()
    assert house.fetch().failed == []
    assert calm - house.objects() == Counter()
    staged = house.stage()
    (refused,) = staged["quarantine"]
    assert '"original"' in refused
    assert staged["quarantine"].total() == 1


@pytest.mark.parametrize("house", ["whoop"], indirect=True)
def test_drift_is_named_and_mended_by_the_next_fetch(house: House) -> None:
    assert house.fetch().failed == []
    calm = house.stage()
    assert min(calm[table].total() for table in ("recovery", "sleep", "cycle")) > 0
    assert not calm["quarantine"]
    house.forget()
    # A new field, and one less that has to be there.
    house.order(kind="drift", count=None, path_contains="recovery", drop=["created_at"])
    assert house.fetch().failed == []
    drifted = house.stage()
    quarantine = drifted.pop("quarantine")
    assert quarantine.total() == calm["recovery"].total()
    assert all('"created_at"' in row and '"missing' in row for row in quarantine)
    assert drifted.pop("recovery").total() == 0
    drift = recent_drift(house.warehouse.engine, house.name)
    assert [(one.entity, one.field, one.reason) for one in drift.refusals] == [
        ("recovery", "created_at", "missing_field")
    ]
    assert sum(one.records for one in drift.refusals) == quarantine.total()
    assert any("new field" in note for note in drift.notes)
    assert drifted == {table: calm[table] for table in drifted}
    house.calm()
    assert house.fetch().failed == []
    mended = house.stage()
    assert mended.pop("quarantine") == quarantine
    assert mended == {table: calm[table] for table in mended}


@pytest.mark.parametrize("house", ["withings"], indirect=True)
def test_a_new_field_changes_no_row(house: House) -> None:
    assert house.fetch().failed == []
    calm = house.stage()
    house.forget()
    house.order(kind="drift", count=None, path_contains="measure")
    assert house.fetch().failed == []
    assert house.stage() == calm
