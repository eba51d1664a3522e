"""Provider accounts and their tokens."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.vault import Vault, VaultError
from health_pipeline.warehouse.models import (
    ConnectorToken,
    ConsentEntry,
    Identity,
    ProviderAccount,
    User,
    VaultKey,
)

#: A token is renewed when less than this is left of its life.
REFRESH_BUFFER = dt.timedelta(minutes=5)


#: Between a refusal of a refresh token and asking once more.
_SECOND_TRY_SECONDS = 0.5
#: Writers of tokens share this advisory lock; who changes the active key takes it alone.
VAULT_LOCK = "vault:active-key"


class ReconnectError(RuntimeError):
    """The account's tokens are gone or refused; only the person can mend that, by connecting again.

    `certain` where asking a second time would be of no use, or do harm.
    """

    def __init__(self, message: str, *, certain: bool = False) -> None:
        super().__init__(message)
        self.certain = certain


class AccountTakenError(RuntimeError):
    """The account at the provider is another user's here."""


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
    consent_text: str | None = None,
    consent_expires_at: dt.datetime | None = None,
) -> int:
    """Store a connection, its tokens, the consent and the identity, in one transaction. Returns the account id.

    `tokens` is None where the provider has none: an aggregator, whose own key is all there is. Raises
    AccountTakenError, VaultError.
    """
    with engine.begin() as connection:
        if provider_user_id is not None:
            _claim_identity(connection, user_id, provider, provider_user_id, environment)
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
                text=consent_text,
                expires_at=consent_expires_at,
            )
        )
    return account_id


def system_of(provider: str, environment: str) -> str:
    """What ops.identities calls a provider's ids; those of a sandbox mean nothing elsewhere."""
    return f"sandbox:{provider}" if environment == "sandbox" else provider


def _claim_identity(
    connection: sa.Connection, user_id: int, provider: str, provider_user_id: str, environment: str
) -> None:
    """One account at a provider is one user's here: two would have each other's data, and webhooks no address."""
    system = system_of(provider, environment)
    connection.execute(
        insert(Identity)
        .values(system=system, external_id=provider_user_id, user_id=user_id)
        .on_conflict_do_nothing()
    )
    owner = connection.execute(
        sa.select(Identity.user_id, User.handle)
        .join(User, User.user_id == Identity.user_id)
        .where(Identity.system == system, Identity.external_id == provider_user_id)
        .with_for_update(of=Identity)
    ).one()
    if owner.user_id == user_id:
        return
    connected = connection.execute(
        sa.select(ProviderAccount.account_id).where(
            ProviderAccount.user_id == owner.user_id,
            ProviderAccount.provider == provider,
            ProviderAccount.provider_user_id == provider_user_id,
            ProviderAccount.status != "disconnected",
        )
    ).one_or_none()
    if connected is not None:
        raise AccountTakenError(
            f"this account is connected as {owner.handle!r} already; disconnect it there first, or, where both are "
            "one person, merge the two users (health-pipeline user merge)"
        )
    connection.execute(
        sa.update(Identity)
        .where(Identity.system == system, Identity.external_id == provider_user_id)
        .values(user_id=user_id)
    )


def move_account(engine: sa.Engine, account_id: int, provider_user_id: str) -> None:
    """The provider knows the person by another id from now on. Raises AccountTakenError."""
    with engine.begin() as connection:
        account = connection.execute(
            sa.select(
                ProviderAccount.user_id,
                ProviderAccount.provider,
                ProviderAccount.details["environment"].astext.label("environment"),
            )
            .where(ProviderAccount.account_id == account_id)
            .with_for_update()
        ).one()
        _claim_identity(connection, account.user_id, account.provider, provider_user_id, account.environment)
        connection.execute(
            sa.update(ProviderAccount)
            .where(ProviderAccount.account_id == account_id)
            .values(provider_user_id=provider_user_id)
        )


def active_accounts(
    engine: sa.Engine, provider: str, user_ids: Sequence[int] | None = None
) -> list[ConnectedAccount]:
    """The accounts to fetch for: active ones whose person's newest word is a consent that has not expired."""
    consent = (
        sa.select(ConsentEntry.event, ConsentEntry.expires_at)
        .where(
            ConsentEntry.user_id == ProviderAccount.user_id, ConsentEntry.provider == ProviderAccount.provider
        )
        .order_by(ConsentEntry.entry_id.desc())
        .limit(1)
        .lateral("consent")
    )
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
        .join(consent, sa.true())
        .where(
            ProviderAccount.provider == provider,
            ProviderAccount.status == "active",
            consent.c.event == "granted",
            sa.or_(consent.c.expires_at.is_(None), consent.c.expires_at > sa.func.now()),
        )
        .order_by(ProviderAccount.account_id)
    )
    if user_ids is not None:
        query = query.where(ProviderAccount.user_id.in_(user_ids))
    with engine.connect() as connection:
        return [ConnectedAccount(*row) for row in connection.execute(query)]


@contextmanager
def while_connected(engine: sa.Engine, account_id: int) -> Iterator[bool]:
    """Whether the account is connected; if so it is not disconnected before the block ends."""
    with engine.begin() as connection:
        status = connection.execute(
            sa.select(ProviderAccount.status)
            .where(ProviderAccount.account_id == account_id)
            .with_for_update(read=True, key_share=False)
        ).scalar_one_or_none()
        yield status not in (None, "disconnected")


def access_token(
    engine: sa.Engine, vault: Vault, account_id: int, refresh: Refresh, *, rejected: str | None = None
) -> str:
    """A valid access token. Renews it when it is about to expire, or is the one the provider `rejected`.

    One renewal at a time an account: the row is locked and read again inside the lock, and the new pair is
    committed before it is used. A refusal counts when it is repeated, since vendors refuse in passing faults,
    too; then the account is marked for its person to connect again, and nobody asks a third time.
    Raises ReconnectError, RenewalError, VaultError.
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
        refused = _refused(connection, account_id)
        if refused is not None:
            raise ReconnectError(refused)
        # Before the old pair is spent: the new one has to be storable.
        writing_key(connection, vault)
        try:
            renewed = _renewed(refresh, vault.decrypt(row.key_id, row.refresh_token))
        except ReconnectError as error:
            problem = error
            connection.execute(
                sa.update(ProviderAccount)
                .where(ProviderAccount.account_id == account_id, ProviderAccount.status != "disconnected")
                .values(status="error", last_error=str(error))
            )
        else:
            if not renewed.scopes:
                # RFC 6749, 5.1: an answer without a scope means that it is what it was.
                renewed = replace(renewed, scopes=tuple(row.scopes))
            _save_tokens(connection, vault, account_id, renewed)
            return renewed.access_token
    raise problem


def _refused(connection: sa.Connection, account_id: int) -> str | None:
    """Why the account waits for its person, None where it does not."""
    account = connection.execute(
        sa.select(ProviderAccount.status, ProviderAccount.last_error).where(
            ProviderAccount.account_id == account_id
        )
    ).one_or_none()
    return (
        account.last_error or "refused before" if account is not None and account.status == "error" else None
    )


def _renewed(refresh: Refresh, refresh_token: str) -> Tokens:
    try:
        return refresh(refresh_token)
    except ReconnectError as error:
        if error.certain:
            raise
    # Nobody can have renewed in between, since the row is ours.
    time.sleep(_SECOND_TRY_SECONDS)
    return refresh(refresh_token)


def writing_key(connection: sa.Connection, vault: Vault) -> str:
    """The id of the key to encrypt with, which stays that until the transaction ends. Raises VaultError."""
    connection.execute(
        sa.text("select pg_advisory_xact_lock_shared(hashtextextended(:name, 0))"), {"name": VAULT_LOCK}
    )
    active = sa.select(VaultKey.key_id).where(VaultKey.active)
    key_id: str | None = connection.execute(active).scalar_one_or_none()
    if key_id is None:
        connection.execute(insert(VaultKey).values(key_id=vault.newest, active=True).on_conflict_do_nothing())
        key_id = connection.execute(active).scalar_one()
    if not vault.knows(key_id):
        raise VaultError(
            f"tokens are encrypted with the key {key_id} now, which is not among this process's; give it in "
            "HEALTH_PIPELINE_VAULT_KEY, or the key file, and start again"
        )
    return key_id


def record_success(engine: sa.Engine, account_id: int, at: dt.datetime, warning: str | None = None) -> None:
    """A sync went through; `warning` says what the account may not give (a missing scope, say)."""
    _update(engine, account_id, last_sync_at=at, last_error=warning)


def record_failure(engine: sa.Engine, account_id: int, message: str, *, reconnect: bool = False) -> None:
    """A sync failed. `reconnect` takes the account out of fetching until its person connects it again.

    An account that was disconnected meanwhile stays that, here and in `record_success`.
    """
    values: dict[str, Any] = {"last_error": message}
    if reconnect:
        values["status"] = "error"
    _update(engine, account_id, **values)


def _update(engine: sa.Engine, account_id: int, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.update(ProviderAccount)
            .where(ProviderAccount.account_id == account_id, ProviderAccount.status != "disconnected")
            .values(**values)
        )


def _usable(vault: Vault, row: Any, rejected: str | None) -> str | None:
    if row is None:
        return None
    if row.expires_at is not None and row.expires_at - dt.datetime.now(dt.UTC) < REFRESH_BUFFER:
        return None
    token = vault.decrypt(row.key_id, row.access_token)
    return None if token == rejected else token


def _save_tokens(connection: sa.Connection, vault: Vault, account_id: int, tokens: Tokens) -> None:
    key_id = writing_key(connection, vault)
    refresh_token = None if tokens.refresh_token is None else vault.encrypt(tokens.refresh_token, key_id)[1]
    values = {
        "key_id": key_id,
        "access_token": vault.encrypt(tokens.access_token, key_id)[1],
        "refresh_token": refresh_token,
        "expires_at": tokens.expires_at,
        "scopes": list(tokens.scopes),
        "updated_at": sa.func.now(),
    }
    connection.execute(
        insert(ConnectorToken)
        .values(account_id=account_id, **values)
        .on_conflict_do_update(index_elements=[ConnectorToken.account_id], set_=values)
    )
