"""Tokens of service accounts (RFC 7523), by Authlib: for what an application does at a provider without a person."""

from __future__ import annotations

import json
import warnings
from typing import Any

import httpx

from health_pipeline.connections.accounts import RenewalError
from health_pipeline.connections.endpoints import Endpoint, ProviderNotConfiguredError
from health_pipeline.providers.base import Provider
from health_pipeline.settings import Settings

_FIELDS = ("client_email", "private_key", "private_key_id", "token_uri")


def service_token(settings: Settings, provider: Provider, endpoint: Endpoint, scope: str) -> str:
    """An access token of the provider's service account, good for an hour or so.

    Raises ProviderNotConfiguredError, which says what to set, and RenewalError where none is given.
    """
    key = _key(settings, provider, endpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Authlib announces a change of its HTTP library at import
        from authlib.common.errors import AuthlibBaseError
        from authlib.integrations.httpx_client import AssertionClient
        from joserfc.jwk import RSAKey
    try:
        with AssertionClient(
            token_endpoint=key["token_uri"],
            issuer=key["client_email"],
            subject=None,
            audience=key["token_uri"],
            claims={"scope": scope},
            header={"alg": "RS256", "kid": key["private_key_id"]},
            key=RSAKey.import_key(key["private_key"]),
            timeout=30,
        ) as client:
            return str(client.refresh_token()["access_token"])
    except (AuthlibBaseError, httpx.HTTPError, KeyError, ValueError) as error:
        problem = type(error).__name__
    # Outside the handler: what it caught may hold the assertion.
    raise RenewalError(f"{provider.title} gives the service account no token ({problem})")


def _key(settings: Settings, provider: Provider, endpoint: Endpoint) -> dict[str, Any]:
    setting = f"HEALTH_PIPELINE_{provider.name.upper()}_SERVICE_ACCOUNT"
    path = settings.service_account(provider.name)
    try:
        if endpoint.environment == "sandbox":
            url = f"{str(settings.sandbox_url).rstrip('/')}/__service_accounts/{provider.name}"
            found = httpx.get(url, timeout=30).raise_for_status().json()
        elif path is None:
            raise ProviderNotConfiguredError(
                f"{provider.title} takes subscriptions of a service account only: set {setting} to the path of its "
                "key file (JSON)"
            )
        else:
            found = json.loads(path.read_text())
    except httpx.HTTPError as error:
        raise RenewalError(f"the sandbox gives no service account ({type(error).__name__})") from None
    except (OSError, ValueError) as error:
        raise ProviderNotConfiguredError(f"{setting} is no key file: {type(error).__name__}") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in _FIELDS):
        raise ProviderNotConfiguredError(f"{setting} is no key file: it needs {', '.join(_FIELDS)}")
    return found
