"""Accounts that are signed in to with the person's own user name and password, for services without OAuth.

What stands for a refresh token is the user name and the password, as JSON in the vault: signing in anew is the
only way to a new access token.
"""

from __future__ import annotations

import datetime as dt
import json

from health_pipeline.connections.accounts import ReconnectError, Refresh, RenewalError, Tokens
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.providers.base import PasswordLogin, Provider
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    PermissionMissingError,
    ProviderError,
)


def sign_in(provider: Provider, endpoint: Endpoint, user_name: str, password: str) -> Tokens:
    """Connect an account; the person has accepted `provider.password.warning`. Raises ConsentError."""
    try:
        return _tokens(provider, endpoint, user_name, password)
    except ProviderError as error:
        problem = str(error)
    raise ConsentError(problem)


def refresher(provider: Provider, endpoint: Endpoint) -> Refresh:
    """A function that signs in anew with what is stored as the refresh token.

    It raises ReconnectError where the password is refused, and RenewalError.
    """

    def refresh(refresh_token: str) -> Tokens:
        problem: Exception
        try:
            stored = json.loads(refresh_token)
            user_name, password = stored["user_name"], stored["password"]
        except (ValueError, TypeError, KeyError):
            problem = ReconnectError(
                "what is stored for this account is no user name and password", certain=True
            )
        else:
            try:
                return _tokens(provider, endpoint, user_name, password)
            except (AuthorizationError, PermissionMissingError) as error:
                # Services lock an account to which a wrong password is sent again.
                problem = ReconnectError(str(error), certain=True)
            except ProviderError as error:
                problem = RenewalError(str(error))
        # Outside the handlers: what they caught holds the request, and that holds the password.
        raise problem

    return refresh


def _tokens(provider: Provider, endpoint: Endpoint, user_name: str, password: str) -> Tokens:
    login = _password(provider).login
    # One attempt: services lock an account after a few, and nothing is gained by sending a password again.
    with ApiClient(
        provider.name,
        endpoint.base_url,
        lambda _: "",
        authorize=endpoint.authorizer(provider),
        regions=endpoint.regions,
        interpret=provider.interpret,
        max_attempts=1,
    ) as client:
        answer = login(client, user_name, password)
    expires_in = answer.get("expires_in")
    return Tokens(
        access_token=answer["access_token"],
        refresh_token=json.dumps({"user_name": user_name, "password": password}),
        expires_at=None
        if expires_in is None
        else dt.datetime.now(dt.UTC) + dt.timedelta(seconds=int(expires_in)),
        scopes=tuple(str(answer.get("scope", "")).split()),
    )


def _password(provider: Provider) -> PasswordLogin:
    if provider.password is None:
        raise ValueError(f"{provider.name} is not signed in to with a password")
    return provider.password
