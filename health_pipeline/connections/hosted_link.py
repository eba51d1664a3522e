"""Consent on an aggregator's own page: the person comes back with a user id, and there are no tokens."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import httpx

from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.providers.base import Account, HostedLink, Provider
from health_pipeline.providers.http import ApiClient, ProviderError

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class LinkSession:
    """A person on their way to consent: where to send them, and what must fit when they come back."""

    url: str
    state: str


def start(provider: Provider, endpoint: Endpoint, redirect_uri: str) -> LinkSession:
    """Ask the aggregator for a page of its own to send the person to. Raises ConsentError."""
    link = _link(provider)
    state = secrets.token_urlsafe(32)
    client = ApiClient(
        provider.name,
        endpoint.base_url,
        lambda _renew: "",
        authorize=endpoint.authorizer(provider),
        interpret=provider.interpret,
    )
    try:
        with client:
            return LinkSession(link.start(client, redirect_uri, state), state)
    except ProviderError as error:
        problem = str(error)
    raise ConsentError(f"{problem}; no consent page could be had, try again")


def finish(provider: Provider, asked: LinkSession, answer: str) -> Account:
    """Whose account the address the person came back to (`answer`) names. Raises ConsentError."""
    link = _link(provider)
    query = {name: values[-1] for name, values in parse_qs(urlsplit(answer).query).items()}
    state = query.get(link.state_parameter)
    if state is None or not secrets.compare_digest(state.encode(), asked.state.encode()):
        raise ConsentError("the answer does not belong to this request (state differs); connect again")
    try:
        return link.finish(query)
    except ValueError as error:
        problem = str(error)
    raise ConsentError(f"the provider did not grant access ({problem})")


def connect_with_hint(
    provider: Provider,
    endpoint: Endpoint,
    person: str,
    redirect_uri: str = "http://127.0.0.1/callback",
    **choices: str,
) -> Account:
    """Walk the flow without a browser, for the sandbox, whose page takes a `login_hint` and its `choices`."""
    if endpoint.environment != "sandbox":
        raise ValueError("only the sandbox grants access without its person")
    asked = start(provider, endpoint, redirect_uri)
    page = httpx.URL(asked.url).copy_merge_params({"login_hint": person, **choices})
    answer = httpx.get(page, timeout=_TIMEOUT, follow_redirects=False)
    if not answer.is_redirect:
        raise ConsentError(f"the sandbox's consent page answered {answer.status_code} for {person!r}")
    return finish(provider, asked, answer.headers["location"])


def _link(provider: Provider) -> HostedLink:
    if provider.hosted_link is None:
        raise ValueError(f"{provider.name}'s consent is not on a page of its own")
    return provider.hosted_link
