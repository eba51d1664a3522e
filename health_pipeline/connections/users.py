"""Users by handle: `--user NAME` is the handle, made on first use."""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.warehouse.models import User

_HANDLE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class UserRecord:
    user_id: int
    handle: str
    time_zone: str | None


def check_time_zone(name: str) -> str:
    """The name itself, if it is a zone of the IANA database; ValueError with the way out if not."""
    if name not in zoneinfo.available_timezones():
        raise ValueError(
            f"{name!r} is not an IANA time zone; write it like Europe/Berlin or America/New_York"
        )
    return name


def ensure_user(connection: sa.Connection, handle: str, time_zone: str | None = None) -> UserRecord:
    """The user with this handle, made if new. A zone is set if none was known, never changed.

    Raises ValueError where the handle or the zone is not one.
    """
    if not _HANDLE.fullmatch(handle):
        raise ValueError(
            f"{handle!r} cannot be a user's name: use 1 to 63 lower-case letters, digits, dot, dash, underscore"
        )
    if time_zone is not None:
        check_time_zone(time_zone)
    known = find_user(connection, handle)
    if known is None:
        connection.execute(
            insert(User)
            .values(handle=handle, time_zone=time_zone)
            .on_conflict_do_nothing(index_elements=[User.handle])
        )
    if time_zone is not None and (known is None or known.time_zone is None):
        # Whoever came first has the row locked, and their zone stays.
        connection.execute(
            sa.update(User).where(User.handle == handle, User.time_zone.is_(None)).values(time_zone=time_zone)
        )
    found = find_user(connection, handle)
    assert found is not None
    return found


def find_user(connection: sa.Connection, handle: str) -> UserRecord | None:
    row = connection.execute(
        sa.select(User.user_id, User.handle, User.time_zone).where(User.handle == handle)
    ).one_or_none()
    return None if row is None else UserRecord(row.user_id, row.handle, row.time_zone)


def require_user(connection: sa.Connection, handle: str) -> UserRecord:
    """Like `find_user`, but LookupError that names the users there are."""
    user = find_user(connection, handle)
    if user is None:
        known = connection.execute(sa.select(User.handle).order_by(User.handle).limit(20)).scalars().all()
        raise LookupError(f"there is no user {handle!r}; there is {', '.join(known) or 'none yet'}")
    return user
