"""Provider accounts and their tokens."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.vault import Vault
from health_pipeline.warehouse.models import ConnectorToken, ConsentEntry, ProviderAccount, User

#: A token is renewed when less than this is left of its life.
REFRESH_BUFFER = dt.timedelta(minutes=5)


class ReconnectError(RuntimeError):
    """The account's tokens are gone or refused; only the person can mend that, by connecting again."""


class RenewalError(RuntimeError):
    """The tokens could not be renewed now, through no fault of theirs; they are kept and tried again."""


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """A token pair as a provider gave it, with whose it is where it says so. No repr: it would end in a log."""

    access_token: str
    refresh_token: str | None
    expires_at: dt.datetime | None
    scopes: tuple[str, ...] = ()
    provider_user_id: str | None = None


@dataclass(frozen=True, slots=True)
class ConnectedAccount:
    """`time_zone` is the user's own, `profile_time_zone` what the provider says (both IANA, None where unknown)."""

    account_id: int
    user_id: int
    provider: str
    time_zone: str | None
    environment: str
    provider_user_id: str | None
    profile_time_zone: str | None = None


#: Trades a refresh token for a new pair. Raises ReconnectError when the provider refuses the token,
#: RenewalError when it cannot be asked or refuses us.
Refresh = Callable[[str], Tokens]


def save_connection(
    engine: sa.Engine,
    vault: Vault,
    *,
    user_id: int,
    provider: str,
    provider_user_id: str | None,
    environment: str,
    tokens: Tokens | None,
    profile: Mapping[str, Any],
    consent_version: str,
) -> int:
    """Store a connection, its tokens and the consent, in one transaction. Returns the account id.

    `tokens` is None where the provider has none: an aggregator, whose own key is all there is.
    """
    with engine.begin() as connection:
        values = {
            "provider_user_id": provider_user_id,
            "status": "active",
            "last_error": None,
            "details": {"environment": environment, "profile": dict(profile)},
        }
        account_id: int = connection.execute(
            insert(ProviderAccount)
            .values(user_id=user_id, provider=provider, **values)
            .on_conflict_do_update(
                index_elements=[ProviderAccount.user_id, ProviderAccount.provider],
                set_={
                    ProviderAccount.__table__.c["metadata" if k == "details" else k]: v
                    for k, v in values.items()
                },
            )
            .returning(ProviderAccount.account_id)
        ).scalar_one()
        if tokens is None:
            connection.execute(sa.delete(ConnectorToken).where(ConnectorToken.account_id == account_id))
        else:
            _save_tokens(connection, vault, account_id, tokens)
        connection.execute(
            sa.insert(ConsentEntry).values(
                user_id=user_id,
                provider=provider,
                event="granted",
                scopes=[] if tokens is None else list(tokens.scopes),
                text_version=consent_version,
            )
        )
    return account_id


def active_accounts(
    engine: sa.Engine, provider: str, user_ids: Sequence[int] | None = None
) -> list[ConnectedAccount]:
    """The accounts to fetch for: every one that is not disconnected or waiting for its person."""
    query = (
        sa.select(
            ProviderAccount.account_id,
            ProviderAccount.user_id,
            ProviderAccount.provider,
            User.time_zone,
            ProviderAccount.details["environment"].astext.label("environment"),
            ProviderAccount.provider_user_id,
            ProviderAccount.details["profile"]["time_zone"].astext.label("profile_time_zone"),
        )
        .join(User, User.user_id == ProviderAccount.user_id)
        .where(ProviderAccount.provider == provider, ProviderAccount.status == "active")
        .order_by(ProviderAccount.account_id)
    )
    if user_ids is not None:
        query = query.where(ProviderAccount.user_id.in_(user_ids))
    with engine.connect() as connection:
        return [ConnectedAccount(*row) for row in connection.execute(query)]


def access_token(
    engine: sa.Engine, vault: Vault, account_id: int, refresh: Refresh, *, rejected: str | None = None
) -> str:
    """A valid access token. Renews it when it is about to expire, or is the one the provider `rejected`.

    One renewal at a time an account: the row is locked and read again inside the lock, and the new pair is
    committed before it is used. Raises ReconnectError, RenewalError, VaultError.
    """
    stored = sa.select(ConnectorToken).where(ConnectorToken.account_id == account_id)
    with engine.connect() as connection:
        row = connection.execute(stored).one_or_none()
    token = _usable(vault, row, rejected)
    if token is not None:
        return token
    with engine.begin() as connection:
        row = connection.execute(stored.with_for_update()).one_or_none()
        token = _usable(vault, row, rejected)
        if token is not None:
            return token
        if row is None or row.refresh_token is None:
            raise ReconnectError("the account has no token that could be renewed; connect it again")
        renewed = refresh(vault.decrypt(row.key_id, row.refresh_token))
        if not renewed.scopes:
            # RFC 6749, 5.1: an answer without a scope means that it is what it was.
            renewed = replace(renewed, scopes=tuple(row.scopes))
        _save_tokens(connection, vault, account_id, renewed)
    return renewed.access_token


def record_success(engine: sa.Engine, account_id: int, at: dt.datetime, warning: str | None = None) -> None:
    """A sync went through; `warning` says what the account may not give (a missing scope, say)."""
    _update(engine, account_id, last_sync_at=at, last_error=warning)


def record_failure(engine: sa.Engine, account_id: int, message: str, *, reconnect: bool = False) -> None:
    """A sync failed. `reconnect` takes the account out of fetching until its person connects it again."""
    values: dict[str, Any] = {"last_error": message}
    if reconnect:
        values["status"] = "error"
    _update(engine, account_id, **values)


def _update(engine: sa.Engine, account_id: int, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.update(ProviderAccount).where(ProviderAccount.account_id == account_id).values(**values)
        )


def _usable(vault: Vault, row: Any, rejected: str | None) -> str | None:
    if row is None:
        return None
    if row.expires_at is not None and row.expires_at - dt.datetime.now(dt.UTC) < REFRESH_BUFFER:
        return None
    token = vault.decrypt(row.key_id, row.access_token)
    return None if token == rejected else token


def _save_tokens(connection: sa.Connection, vault: Vault, account_id: int, tokens: Tokens) -> None:
    key_id, access = vault.encrypt(tokens.access_token)
    values = {
        "key_id": key_id,
        "access_token": access,
        "refresh_token": None if tokens.refresh_token is None else vault.encrypt(tokens.refresh_token)[1],
        "expires_at": tokens.expires_at,
        "scopes": list(tokens.scopes),
        "updated_at": sa.func.now(),
    }
    connection.execute(
        insert(ConnectorToken)
        .values(account_id=account_id, **values)
        .on_conflict_do_update(index_elements=[ConnectorToken.account_id], set_=values)
    )
