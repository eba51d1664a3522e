"""Connecting a person's account, whichever way to consent the provider has: OAuth, a hosted page, a password."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import httpx

from health_pipeline.connections import hosted_link, oauth, password
from health_pipeline.connections.accounts import Tokens, access_token, save_connection
from health_pipeline.connections.consent import Consent, consent_to
from health_pipeline.connections.endpoints import Endpoint, endpoint_of
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.users import require_user
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.base import Account, Provider
from health_pipeline.providers.http import ApiClient, ProviderError
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


def save_consent(
    warehouse: Warehouse,
    vault: Vault,
    provider: Provider,
    endpoint: Endpoint,
    user_id: int,
    granted: Tokens | Account,
    consent: Consent,
) -> int:
    """What every way to consent ends with: ask whose account it is, and store it. Returns the account's id.

    `granted` is the tokens, or what an aggregator's page answered. Raises ConsentError, and nothing is stored,
    where the provider does not say whose account it is; AccountTakenError.
    """
    tokens = granted if isinstance(granted, Tokens) else None
    try:
        account = _identify(provider, endpoint, granted.provider_user_id, tokens)
    except ProviderError as error:
        problem = str(error)
    else:
        return save_connection(
            warehouse.engine,
            vault,
            user_id=user_id,
            provider=provider.name,
            provider_user_id=account.provider_user_id,
            environment=endpoint.environment,
            tokens=tokens,
            profile=account.profile,
            consent_version=consent.version,
            consent_text=consent.text,
            consent_expires_at=consent.expires_at,
        )
    # Outside the handler: what it caught holds the request, and that holds the token.
    raise ConsentError(problem)


def connect_sandbox_person(
    settings: Settings, warehouse: Warehouse, vault: Vault, provider: Provider, handle: str
) -> int:
    """Connect a user to the sandbox's person of the same handle, without a browser. Returns the account's id.

    Raises ConsentError, which says why, where the person has no account there or it is refused; LookupError
    where there is no such user; ValueError where the provider is not the sandbox's.
    """
    endpoint = endpoint_of(provider, settings)
    if endpoint.environment != "sandbox" or settings.sandbox_url is None:
        raise ValueError("only the sandbox grants access without its person")
    with warehouse.engine.connect() as connection:
        user = require_user(connection, handle)
    answer = httpx.get(f"{settings.sandbox_url}/__accounts/{provider.name}/{handle}", timeout=30)
    if answer.status_code == 404:
        raise ConsentError(str(answer.json()["detail"]))
    sign_in = answer.raise_for_status().json()
    granted: Tokens | Account
    if provider.hosted_link is not None:
        granted = hosted_link.connect_with_hint(provider, endpoint, handle)
    elif provider.password is not None:
        granted = password.sign_in(provider, endpoint, sign_in["user_name"], sign_in["password"])
    else:
        granted = oauth.connect_with_hint(endpoint, handle)
    consent = replace(consent_to(provider, handle), version="sandbox-1")
    return save_consent(warehouse, vault, provider, endpoint, user.user_id, granted, consent)


def _identify(
    provider: Provider, endpoint: Endpoint, provider_user_id: str | None, tokens: Tokens | None
) -> Account:
    assert provider.identify is not None
    access_token = "" if tokens is None else tokens.access_token
    with client_with(provider, endpoint, provider_user_id, lambda _renew: access_token) as client:
        return provider.identify(client)


def token_of(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, account_id: int
) -> Callable[[bool], str]:
    """What gives an account's access token, renewed where it has to be: for OAuth, and empty where it is not that."""
    last: str | None = None

    def token(renew: bool) -> str:
        nonlocal last
        if endpoint.oauth is None:
            return ""
        rejected = last if renew else None
        last = access_token(warehouse.engine, vault, account_id, oauth.refresher(endpoint), rejected=rejected)
        return last

    return token


def unauthorized_client(provider: Provider, endpoint: Endpoint, provider_user_id: str | None) -> ApiClient:
    """A client whose requests carry no token: they are signed each by itself."""
    return ApiClient(
        provider.name,
        endpoint.base_url,
        lambda _force: "",
        authorize=lambda _token: {},
        interpret=provider.interpret,
        provider_user_id=provider_user_id,
    )


def client_with(
    provider: Provider, endpoint: Endpoint, provider_user_id: str | None, token: Callable[[bool], str]
) -> ApiClient:
    """A client for a call or two about one account."""
    return ApiClient(
        provider.name,
        endpoint.base_url,
        token,
        authorize=endpoint.authorizer(provider),
        regions=endpoint.regions,
        region_of=provider.region_of,
        interpret=provider.interpret,
        provider_user_id=provider_user_id,
    )
