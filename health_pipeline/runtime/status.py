"""What is connected, when it last synced, what is pending or broken."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.providers.registry import all_providers
from health_pipeline.staging.tables import schema_name
from health_pipeline.warehouse.connection import Warehouse


@dataclass(frozen=True, slots=True)
class AccountStatus:
    handle: str
    provider: str
    status: str
    last_sync_at: dt.datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """`waiting` are raw objects that staging has not taken, `unapplied` staged ones that dbt has not."""

    provider: str
    objects: int
    last_received_at: dt.datetime | None
    waiting: int
    unapplied: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class Status:
    accounts: list[AccountStatus]
    providers: list[ProviderStatus]
    rejected_files: list[tuple[str, str]]

    @property
    def healthy(self) -> bool:
        """True where nothing is broken; work that waits for its next run is not broken."""
        return not self.rejected_files and all(
            account.status in ("active", "disconnected") and account.last_error is None
            for account in self.accounts
        )


def read_status(warehouse: Warehouse) -> Status:
    with warehouse.engine.connect() as connection:
        accounts = [
            AccountStatus(*row)
            for row in connection.execute(
                sa.text(
                    "select users.handle, accounts.provider, accounts.status, accounts.last_sync_at, "
                    "accounts.last_error from ops.provider_accounts as accounts "
                    "inner join ops.users using (user_id) order by users.handle, accounts.provider"
                )
            )
        ]
        rejected = [
            (row.location, row.message)
            for row in connection.execute(
                sa.text(
                    "select location, message from ops.inbox_files where state = 'rejected' order by location"
                )
            )
        ]
        received = {
            row.provider: row
            for row in connection.execute(
                sa.text(
                    "select provider, count(*) as objects, max(received_at) as last_received_at "
                    "from ops.raw_objects group by provider"
                )
            )
        }
        providers = [
            _provider_status(connection, name, received[name].objects, received[name].last_received_at)
            for name in all_providers()
            if name in received
        ]
    return Status(accounts, providers, rejected)


def _provider_status(
    connection: sa.Connection, provider: str, objects: int, last_received_at: dt.datetime
) -> ProviderStatus:
    schema = schema_name(provider)
    if not _exists(connection, f"{schema}.staged_objects"):
        return ProviderStatus(provider, objects, last_received_at, objects, 0, 0)
    staged = int(
        connection.execute(
            sa.text(f"select count(distinct raw_object_id) from {schema}.staged_objects")  # noqa: S608
        ).scalar_one()
    )
    if not _exists(connection, "health._applied_objects"):
        return ProviderStatus(provider, objects, last_received_at, objects - staged, staged, 0)
    applied = int(
        connection.execute(
            sa.text(
                "select count(distinct raw_object_id) from health._applied_objects where provider = :provider"
            ),
            {"provider": provider},
        ).scalar_one()
    )
    quarantined = 0
    if _exists(connection, "health.metric_quarantine"):
        quarantined = int(
            connection.execute(
                sa.text("select count(*) from health.metric_quarantine where source = :provider"),
                {"provider": provider},
            ).scalar_one()
        )
    return ProviderStatus(
        provider, objects, last_received_at, objects - staged, max(staged - applied, 0), quarantined
    )


def _exists(connection: sa.Connection, relation: str) -> bool:
    return connection.execute(sa.text("select to_regclass(:name)"), {"name": relation}).scalar() is not None
