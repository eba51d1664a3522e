"""Connections of an older system, as accounts that wait for their people."""

from __future__ import annotations

from pathlib import Path

import pytest
from connecting import connect

from health_pipeline.connections.accounts import active_accounts
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.vault import Vault
from health_pipeline.runtime.legacy import import_connections
from health_pipeline.warehouse.connection import Warehouse

ROWS = """user_id,service_type,status,external_user_id,access_token,last_sync,timezone
ada,oura,connected,ada-at-oura,token-canary,2026-11-01T10:00:00+00:00,Europe/Berlin
ada,Google Fit,CONNECTED,,token-canary,2026-11-01T10:00:00,
ada,fitbit,connected,,,,
ben@example.org,garmin-connect,expired,,,,Nowhere/Land
ben@example.org,strava,revoked,,,,
Ben@example.org,strava,connected,,,,
ada,apple_watch,connected,,,,
ada,glucose_csv,connected,,,,
ada,whoop,perhaps,,,,
"""


def accounts(warehouse: Warehouse) -> list[tuple[object, ...]]:
    with warehouse.engine.connect() as connection:
        return [
            tuple(row)
            for row in connection.exec_driver_sql(
                "select split_part(handle, '-', 1), provider, status, last_error, last_sync_at is not null, time_zone "
                "from ops.provider_accounts inner join ops.users using (user_id) order by account_id"
            )
        ]


def test_rows_become_accounts_that_wait(warehouse: Warehouse, tmp_path: Path) -> None:
    path = tmp_path / "health_connections.csv"
    path.write_text(ROWS)
    report = import_connections(warehouse, str(path), "app")
    again = "taken over from an older system; connect it again"
    assert accounts(warehouse) == [
        ("ada", "oura", "pending", again, True, "Europe/Berlin"),
        # An instant without an offset is none.
        ("ada", "google_health", "pending", again, False, "Europe/Berlin"),
        (
            "ada",
            "fitbit",
            "pending",
            "Fitbit's Web API is shut down; connect Google Health",
            False,
            "Europe/Berlin",
        ),
        ("ben", "garmin", "error", again, False, None),
        ("ben", "strava", "disconnected", None, False, None),
        ("ben", "strava", "pending", again, False, None),
    ]
    assert report.accounts == {"pending": 4, "error": 1, "disconnected": 1}
    assert sum(report.skipped.values()) == 3
    assert "skipped 1: no provider for the service 'apple_watch'" in report.words()
    assert "skipped 1: status 'perhaps' is not known" in report.words()
    assert active_accounts(warehouse.engine, "oura") == []
    with warehouse.engine.connect() as connection:
        for table in ("connector_tokens", "connector_consent_ledger"):
            assert connection.exec_driver_sql(f"select count(*) from ops.{table}").scalar_one() == 0
        ids = connection.exec_driver_sql(
            "select external_id from ops.identities where system = 'app' order by 1"
        )
        assert sorted(ids.scalars()) == ["Ben@example.org", "ada", "ben@example.org"]
    second = import_connections(warehouse, str(path), "app")
    assert (second.known, second.accounts) == (6, {})
    assert len(accounts(warehouse)) == 6


def test_a_table_is_read_and_a_live_connection_is_left_alone(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    connect(warehouse, vault, endpoint, "ada")
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql(
            "create table public.health_connections (id serial, user_id text, service_type text, status text)"
        )
        connection.exec_driver_sql(
            "insert into public.health_connections (user_id, service_type, status) "
            "values ('ada', 'oura', 'disconnected'), ('ada', 'whoop', 'connected')"
        )
    report = import_connections(warehouse, "public.health_connections", "health_connections")
    assert (report.known, report.accounts) == (1, {"pending": 1})
    assert len(active_accounts(warehouse.engine, "oura")) == 1


def test_what_is_no_such_table_is_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="neither a file nor a table"):
        import_connections(warehouse, "public.nothing", "app")
    path = tmp_path / "other.csv"
    path.write_text("name,age\nada,30\n")
    with pytest.raises(ValueError, match="no column user_id, service_type, status; it has name, age"):
        import_connections(warehouse, str(path), "app")
