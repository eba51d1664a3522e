"""Two users that are one person: what moves, what stays, and what is refused."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from connecting import Connected, connect

from health_pipeline.connections.accounts import access_token, active_accounts
from health_pipeline.connections.disconnect import withdraw
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.oauth import refresher
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.raw.index import Delivery, receive
from health_pipeline.raw.store import RawStore
from health_pipeline.runtime.users import MergeError, merge_users
from health_pipeline.warehouse.connection import Warehouse

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


@pytest.fixture
def ada(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    return connect(warehouse, vault, endpoint, "ada")


def user(warehouse: Warehouse, handle: str) -> int:
    with warehouse.engine.begin() as connection:
        return ensure_user(connection, handle).user_id


def upload(warehouse: Warehouse, store: RawStore, user_id: int, text: str) -> None:
    day = NOW.date()
    receive(
        warehouse.engine,
        store,
        [Delivery("glucose_csv", "readings", user_id, "upload", text.encode(), NOW, day, day, "text/csv")],
    )


def owners(warehouse: Warehouse) -> list[tuple[str, int]]:
    """Raw objects by whose they are."""
    with warehouse.engine.connect() as connection:
        return [
            (row.handle, row.objects)
            for row in connection.exec_driver_sql(
                "select handle, count(*) as objects from ops.raw_objects inner join ops.subjects using (subject_id) "
                "inner join ops.users using (user_id) group by handle order by handle"
            )
        ]


def test_all_that_is_one_users_becomes_the_others(
    warehouse: Warehouse, vault: Vault, store: RawStore, endpoint: Endpoint, ada: Connected
) -> None:
    stays = user(warehouse, "ada-k")
    upload(warehouse, store, ada.user_id, "a")
    upload(warehouse, store, ada.user_id, "b")
    upload(warehouse, store, stays, "c")
    with warehouse.engine.begin() as connection:
        for user_id, metric, target in (
            (ada.user_id, "weight", 60),
            (ada.user_id, "steps", 9),
            (stays, "steps", 8),
        ):
            connection.execute(
                sa.text("insert into ops.goals (user_id, metric_type, target_value) values (:u, :m, :t)"),
                {"u": user_id, "m": metric, "t": target},
            )
    assert "1 accounts and 2 raw objects moved" in merge_users(warehouse, "ada", "ada-k")
    (account,) = active_accounts(warehouse.engine, "oura")
    assert (account.account_id, account.user_id, account.time_zone) == (
        ada.account_id,
        stays,
        "Europe/London",
    )
    token = access_token(warehouse.engine, vault, ada.account_id, refresher(endpoint))
    assert token == ada.tokens.access_token
    assert owners(warehouse) == [("ada-k", 3)]
    with warehouse.engine.connect() as connection:
        identities = connection.exec_driver_sql(
            "select system, external_id, user_id from ops.identities order by system"
        )
        assert [tuple(row) for row in identities] == [
            ("handle", "ada", stays),
            ("sandbox:oura", "ada-at-oura", stays),
        ]
        goals = connection.exec_driver_sql("select metric_type, target_value from ops.goals order by 1")
        assert [tuple(row) for row in goals] == [("steps", 8.0), ("weight", 60.0)]
        assert connection.exec_driver_sql("select handle from ops.users").scalars().all() == ["ada-k"]
        consents = connection.exec_driver_sql("select user_id, event from ops.connector_consent_ledger")
        assert [tuple(row) for row in consents] == [(stays, "granted")]
        assert connection.exec_driver_sql("select count(*) from ops.subjects").scalar_one() == 1


def test_a_user_without_objects_takes_the_others_subject(
    warehouse: Warehouse, store: RawStore, ada: Connected
) -> None:
    user(warehouse, "ada-k")
    upload(warehouse, store, ada.user_id, "a")
    merge_users(warehouse, "ada", "ada-k")
    assert owners(warehouse) == [("ada-k", 1)]


def test_two_accounts_in_use_at_one_provider_are_no_one_person_yet(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    ben = connect(warehouse, vault, endpoint, "ben")
    with pytest.raises(MergeError, match="both have an account of oura in use; disconnect"):
        merge_users(warehouse, "ada", "ben")
    assert len(active_accounts(warehouse.engine, "oura")) == 2
    withdraw(warehouse.engine, "oura", ben.user_id)
    merge_users(warehouse, "ada", "ben")
    (account,) = active_accounts(warehouse.engine, "oura")
    assert (account.account_id, account.user_id) == (ada.account_id, ben.user_id)


@pytest.mark.parametrize(
    ("handle", "into", "error"), [("ada", "ada", ValueError), ("ada", "zoe", LookupError)]
)
def test_what_makes_no_sense_is_refused(
    warehouse: Warehouse, ada: Connected, handle: str, into: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        merge_users(warehouse, handle, into)
    assert len(active_accounts(warehouse.engine, "oura")) == 1
