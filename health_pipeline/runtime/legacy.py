"""`health-pipeline import-connections`: the connections of an older system, as accounts that wait for their people.

The older table has a row a user and service: `user_id`, `service_type`, `status` and, where it has them,
`external_user_id`, `last_sync_at` and `time_zone`. Tokens are not taken over: nobody has consented to us, and
what lay in plain text is no secret any more. So a connected service becomes a `pending` account, which its person
connects once. A user id of the older system that is a handle here is that user.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.users import check_time_zone, ensure_user
from health_pipeline.providers.base import Provider
from health_pipeline.providers.registry import all_providers
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import Identity, ProviderAccount

#: Names that older systems have for what we call otherwise; case, blanks, dots and dashes do not matter.
_SERVICES = {
    "ouraring": "oura",
    "googlefit": "google_health",
    "fitbit": "fitbit",
    "withingsnokia": "withings",
    "nokiahealth": "withings",
    "garminconnect": "garmin",
    "polarflow": "polar",
    "polaraccesslink": "polar",
    "dexcomg6": "dexcom",
    "freestylelibre": "librelinkup",
    "libre": "librelinkup",
    "smartonfhir": "fhir",
    "tryterra": "terra",
}
_STATUSES = {
    **dict.fromkeys(("connected", "active", "enabled", "ok", "syncing", "pending", "connecting"), "pending"),
    **dict.fromkeys(("error", "expired", "failed", "needs_reauth", "token_expired"), "error"),
    **dict.fromkeys(("disconnected", "revoked", "inactive", "disabled", "deleted"), "disconnected"),
}
_NAMES = {
    "user_id": ("user_id", "user", "userid"),
    "service_type": ("service_type", "service", "provider"),
    "status": ("status", "connection_status", "state"),
    "external_user_id": ("external_user_id", "provider_user_id", "service_user_id"),
    "last_sync_at": ("last_sync_at", "last_sync", "last_synced_at"),
    "time_zone": ("time_zone", "timezone"),
}


@dataclass(slots=True)
class Imported:
    """`skipped` counts rows by why nothing was made of them."""

    accounts: Counter[str] = field(default_factory=Counter)
    known: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def words(self) -> str:
        made = ", ".join(f"{count} {status}" for status, count in sorted(self.accounts.items())) or "none"
        lines = [f"accounts made: {made}; {self.known} were there already"]
        lines += [f"skipped {count}: {why}" for why, count in sorted(self.skipped.items())]
        return "\n".join(lines)


def import_connections(warehouse: Warehouse, source: str, system: str) -> Imported:
    """Make accounts of the rows of a CSV file, or of a `schema.table` of the warehouse's database.

    `system` is what ops.identities calls the older system: its user ids stay known there, and saying the command
    again changes nothing. Raises LookupError where there is no such file or table, ValueError where it has not
    the columns it takes.
    """
    rows = _of_file(Path(source)) if Path(source).is_file() else _of_table(warehouse, source)
    report = Imported()
    with warehouse.engine.begin() as connection:
        for row in rows:
            _import_one(connection, _named(row), system, report)
    return report


def _import_one(connection: sa.Connection, row: Mapping[str, Any], system: str, report: Imported) -> None:
    service, legacy_id = str(row["service_type"]).strip(), str(row["user_id"]).strip()
    provider = _provider(service)
    status = _STATUSES.get(str(row["status"]).strip().lower())
    if not legacy_id:
        report.skipped["no user_id"] += 1
    elif provider is None:
        report.skipped[f"no provider for the service {service[:40]!r}"] += 1
    elif provider.door != "fetch":
        report.skipped[f"{provider.title} is uploaded, not connected"] += 1
    elif status is None:
        report.skipped[f"status {str(row['status'])[:40]!r} is not known"] += 1
    else:
        user_id = _user(connection, system, legacy_id, row.get("time_zone"))
        made = connection.execute(
            insert(ProviderAccount)
            .values(
                user_id=user_id,
                provider=provider.name,
                provider_user_id=str(row.get("external_user_id") or "").strip() or None,
                status=status,
                last_sync_at=_instant(row.get("last_sync_at")),
                last_error=_why(provider, status),
                details={"imported_from": system},
            )
            .on_conflict_do_nothing(index_elements=[ProviderAccount.user_id, ProviderAccount.provider])
            .returning(ProviderAccount.account_id)
        ).one_or_none()
        if made is None:
            report.known += 1
        else:
            report.accounts[status] += 1


def _why(provider: Provider, status: str) -> str | None:
    if status == "disconnected":
        return None
    if provider.successor is not None:
        return f"{provider.title}'s Web API is shut down; connect {all_providers()[provider.successor].title}"
    return "taken over from an older system; connect it again"


def _user(connection: sa.Connection, system: str, legacy_id: str, time_zone: object) -> int:
    known = connection.execute(
        sa.select(Identity.user_id).where(Identity.system == system, Identity.external_id == legacy_id)
    ).scalar_one_or_none()
    if known is not None:
        return int(known)
    handle = re.sub(r"[^a-z0-9._-]+", "-", legacy_id.lower()).strip("-._")[:50] or "user"
    zone = str(time_zone or "").strip() or None
    try:
        zone = None if zone is None else check_time_zone(zone)
    except ValueError:
        zone = None
    if handle != legacy_id:
        # Two ids that look alike are two people.
        handle = f"{handle}-{hashlib.sha256(legacy_id.encode()).hexdigest()[:6]}"
    user = ensure_user(connection, handle, zone)
    connection.execute(
        insert(Identity)
        .values(system=system, external_id=legacy_id, user_id=user.user_id)
        .on_conflict_do_nothing()
    )
    return user.user_id


def _provider(service: str) -> Provider | None:
    word = re.sub(r"[^a-z0-9]", "", service.lower())
    names = {name.replace("_", ""): provider for name, provider in all_providers().items()}
    # What somebody was connected to is no kind of file that is called alike.
    return all_providers().get(_SERVICES.get(word, "")) or names.get(word)


def _instant(value: object) -> dt.datetime | None:
    """Without an offset it is not known when that was, so it is left out."""
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value.strip()) if value.strip() else None
        except ValueError:
            return None
    return value if isinstance(value, dt.datetime) and value.tzinfo is not None else None


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, others in _NAMES.items():
        column = next((each for each in others if each in row), None)
        if column is not None:
            found[name] = row[column] if row[column] is not None else ""
    missing = [name for name in ("user_id", "service_type", "status") if name not in found]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}; it has {', '.join(row)}")
    return found


def _of_file(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _of_table(warehouse: Warehouse, name: str) -> Iterable[Mapping[str, Any]]:
    schema, _, table = name.rpartition(".")
    with warehouse.engine.connect() as connection:
        if not sa.inspect(connection).has_table(table, schema=schema or "public"):
            raise LookupError(f"{name} is neither a file nor a table of the warehouse's database")
        reflected = sa.Table(table, sa.MetaData(), schema=schema or "public", autoload_with=connection)
        wanted = [reflected.c[each] for names in _NAMES.values() for each in names if each in reflected.c]
        if not wanted:
            raise ValueError(f"{name} has none of the columns user_id, service_type, status")
        return [dict(row) for row in connection.execute(sa.select(*wanted)).mappings()]
