"""Tokens with which a person's own programs read their data, ask for a sync, upload files, connect accounts.

`hp_<number>_<secret>`, of which the secret's SHA-256 is kept: whoever reads the table can do nothing with it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from health_pipeline.warehouse.models import ApiToken, User

#: What a token may be good for.
SCOPES = ("read", "sync", "upload", "connect")
_FORM = re.compile(r"hp_([1-9][0-9]{0,8})_([A-Za-z0-9_-]{43})")
#: `last_used_at` is this exact, so that a page read is not a row written.
_USE_NOTED_EVERY = dt.timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token it is, and what for."""

    token_id: int
    user_id: int
    handle: str
    time_zone: str | None
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Created:
    """`token` is shown this once."""

    token_id: int
    token: str = field(repr=False)
    expires_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class TokenLine:
    """A token as `token list` shows it."""

    token_id: int
    handle: str
    scopes: list[str]
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    last_used_at: dt.datetime | None


def create(engine: sa.Engine, user_id: int, scopes: Sequence[str], days: int | None = None) -> Created:
    """A new token, good for so many days. Raises ValueError for a scope or days that are none."""
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ValueError(f"scopes are {', '.join(SCOPES)}, not {', '.join(unknown) or 'none'}")
    if days is not None and not 1 <= days <= 36_500:
        raise ValueError("a token has to last for a day or more")
    expires_at = None if days is None else dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    secret = secrets.token_urlsafe(32)
    with engine.begin() as connection:
        token_id: int = connection.execute(
            sa.insert(ApiToken)
            .values(
                user_id=user_id,
                secret_sha256=_digest(secret),
                scopes=[scope for scope in SCOPES if scope in scopes],
                expires_at=expires_at,
            )
            .returning(ApiToken.token_id)
        ).scalar_one()
    return Created(token_id, f"hp_{token_id}_{secret}", expires_at)


def authenticate(engine: sa.Engine, token: str) -> Caller | None:
    """Whose token it is; None where it is none, was revoked or has expired."""
    form = _FORM.fullmatch(token)
    if form is None:
        return None
    with engine.begin() as connection:
        row = connection.execute(
            sa.select(
                ApiToken.token_id,
                ApiToken.secret_sha256,
                ApiToken.scopes,
                (
                    ApiToken.revoked_at.is_(None)
                    & (ApiToken.expires_at.is_(None) | (ApiToken.expires_at > sa.func.now()))
                ).label("good"),
                (
                    sa.func.now()
                    - sa.func.coalesce(ApiToken.last_used_at, dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
                ).label("unused_for"),
                User.user_id,
                User.handle,
                User.time_zone,
            )
            .join(User, User.user_id == ApiToken.user_id)
            .where(ApiToken.token_id == int(form[1]))
        ).one_or_none()
        expected = bytes(row.secret_sha256) if row is not None else bytes(32)
        if not secrets.compare_digest(_digest(form[2]), expected) or row is None or not row.good:
            return None
        if row.unused_for > _USE_NOTED_EVERY:
            connection.execute(
                sa.update(ApiToken)
                .where(ApiToken.token_id == row.token_id)
                .values(last_used_at=sa.func.now())
            )
    return Caller(row.token_id, row.user_id, row.handle, row.time_zone, frozenset(row.scopes))


def list_tokens(engine: sa.Engine, handle: str | None = None) -> list[TokenLine]:
    """All tokens, or a user's, the newest first."""
    query = (
        sa.select(
            ApiToken.token_id,
            User.handle,
            ApiToken.scopes,
            *(ApiToken.created_at, ApiToken.expires_at, ApiToken.revoked_at, ApiToken.last_used_at),
        )
        .join(User, User.user_id == ApiToken.user_id)
        .order_by(ApiToken.token_id.desc())
    )
    if handle is not None:
        query = query.where(User.handle == handle)
    with engine.connect() as connection:
        return [TokenLine(*row) for row in connection.execute(query)]


def revoke(engine: sa.Engine, token_id: int) -> None:
    """The token is good for nothing from here on. Raises LookupError where there is no such token."""
    with engine.begin() as connection:
        found = connection.execute(
            sa.update(ApiToken)
            .where(ApiToken.token_id == token_id)
            .values(revoked_at=sa.func.coalesce(ApiToken.revoked_at, sa.func.now()))
        ).rowcount
    if not found:
        raise LookupError(f"there is no token {token_id}")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
