"""The end of a connection: fetching stops, the consent is withdrawn, the provider is told, the tokens go."""

from __future__ import annotations

import sqlalchemy as sa

from health_pipeline.connections import oauth
from health_pipeline.connections.accounts import ReconnectError, RenewalError, system_of
from health_pipeline.connections.connect import client_with, token_of, unauthorized_client
from health_pipeline.connections.endpoints import Endpoint, ProviderNotConfiguredError, endpoint_of
from health_pipeline.connections.subscriptions import forget_subscriptions, unsubscribe_account
from health_pipeline.connections.vault import Vault, VaultError
from health_pipeline.providers.base import Provider
from health_pipeline.providers.http import ProviderError
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import ConnectorToken, ConsentEntry, Identity, ProviderAccount


def disconnect(
    warehouse: Warehouse, vault: Vault, settings: Settings, provider: Provider, user_id: int
) -> str | None:
    """End a user's connection; nothing that is fetched is kept from here on. Data stays.

    Returns what is left for the person to do at the provider, None where nothing is. Called again after an
    interruption it goes on. Raises LookupError where there is no such account.
    """
    account_id = withdraw(warehouse.engine, provider.name, user_id)
    try:
        left = _tell_provider(warehouse, vault, settings, provider, account_id)
    finally:
        forget_tokens(warehouse.engine, account_id)
        forget_subscriptions(warehouse.engine, account_id)
    return left


def deauthorized(
    engine: sa.Engine, provider: Provider, environment: str, provider_user_id: str
) -> int | None:
    """The person ended the consent at the provider, which tells us so: the same without telling it back.

    Returns the account's id, None where nobody is known by that id.
    """
    with engine.connect() as connection:
        user_id = connection.execute(
            sa.select(Identity.user_id).where(
                Identity.system == system_of(provider.name, environment),
                Identity.external_id == provider_user_id,
            )
        ).scalar_one_or_none()
    if user_id is None:
        return None
    try:
        account_id = withdraw(engine, provider.name, user_id)
    except LookupError:
        return None
    forget_tokens(engine, account_id)
    forget_subscriptions(engine, account_id)
    return account_id


def withdraw(engine: sa.Engine, provider: str, user_id: int) -> int:
    """Stop the fetching and note the withdrawal, once. Returns the account's id; LookupError where there is none."""
    with engine.begin() as connection:
        account = connection.execute(
            sa.select(ProviderAccount.account_id)
            .where(ProviderAccount.user_id == user_id, ProviderAccount.provider == provider)
            .with_for_update()
        ).one_or_none()
        if account is None:
            raise LookupError(f"there is no {provider} account to disconnect")
        connection.execute(
            sa.update(ProviderAccount)
            .where(ProviderAccount.account_id == account.account_id)
            .values(status="disconnected", last_error=None)
        )
        newest = connection.execute(
            sa.select(ConsentEntry.event, ConsentEntry.scopes, ConsentEntry.text_version)
            .where(ConsentEntry.user_id == user_id, ConsentEntry.provider == provider)
            .order_by(ConsentEntry.entry_id.desc())
            .limit(1)
        ).one_or_none()
        if newest is not None and newest.event == "granted":
            connection.execute(
                sa.insert(ConsentEntry).values(
                    user_id=user_id,
                    provider=provider,
                    event="withdrawn",
                    scopes=newest.scopes,
                    text_version=newest.text_version,
                )
            )
    return int(account.account_id)


def forget_tokens(engine: sa.Engine, account_id: int) -> None:
    """Delete an account's tokens; a renewal under way is waited for."""
    with engine.begin() as connection:
        connection.execute(sa.delete(ConnectorToken).where(ConnectorToken.account_id == account_id))


def _tell_provider(
    warehouse: Warehouse, vault: Vault, settings: Settings, provider: Provider, account_id: int
) -> str | None:
    by_hand = f"end the access in the settings of your {provider.title} account"
    if provider.door == "webhook":
        return None  # whoever sends does not ask us who may
    try:
        endpoint = endpoint_of(provider, settings)
    except ProviderNotConfiguredError as error:
        return f"{error}; {by_hand}"
    with warehouse.engine.connect() as connection:
        account = connection.execute(
            sa.select(
                ProviderAccount.provider_user_id,
                ProviderAccount.details["environment"].astext.label("environment"),
            ).where(ProviderAccount.account_id == account_id)
        ).one()
        row = connection.execute(
            sa.select(ConnectorToken).where(ConnectorToken.account_id == account_id)
        ).one_or_none()
    if account.environment != endpoint.environment:
        return f"{provider.title} is configured for {endpoint.environment} now; {by_hand}"
    if row is None and provider.hosted_link is None:
        return None  # told before, or never connected
    if provider.password is not None:
        return None  # what there is to end is the password, and that is deleted
    deaf = None
    try:
        unsubscribe_account(warehouse, vault, provider, endpoint, account_id, account.provider_user_id)
    except ReconnectError:
        return None  # with the grant went its webhooks
    except (ProviderError, RenewalError, VaultError) as error:
        deaf = f"{provider.title} could not be told to call no more ({error}); {by_hand}"
    try:
        told = _end_grant(warehouse, vault, provider, endpoint, account_id, account.provider_user_id)
    except ReconnectError:
        return None  # the grant is no more
    except (ProviderError, RenewalError, VaultError) as error:
        return f"{provider.title} could not be told ({error}); {by_hand}"
    return deaf if told else f"{provider.title} cannot be told by us; {by_hand}"


def _end_grant(
    warehouse: Warehouse,
    vault: Vault,
    provider: Provider,
    endpoint: Endpoint,
    account_id: int,
    provider_user_id: str | None,
) -> bool:
    """End the consent at the provider; False where it has no way to. Raises what its calls raise."""
    if provider.disconnect_signed is not None:
        with unauthorized_client(provider, endpoint, provider_user_id) as client:
            provider.disconnect_signed(client, endpoint.credentials())
        return True
    token = token_of(warehouse, vault, endpoint, account_id)
    if provider.disconnect is not None:
        with client_with(provider, endpoint, provider_user_id, token) as client:
            provider.disconnect(client)
        return True
    if endpoint.oauth is None or (endpoint.oauth.revoke_url is None and endpoint.oauth.discover is None):
        return False
    current = token(False)
    with warehouse.engine.connect() as connection:
        row = connection.execute(
            sa.select(ConnectorToken).where(ConnectorToken.account_id == account_id)
        ).one()
    stored = None if row.refresh_token is None else vault.decrypt(row.key_id, row.refresh_token)
    oauth.revoke(endpoint, current, stored)
    return True
