"""Where a provider is: the vendor's own hosts if it has a client id, else the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from pydantic import SecretStr

from health_pipeline.providers.base import Budget, Credentials, OAuth, Provider
from health_pipeline.providers.registry import get
from health_pipeline.settings import Settings

#: The client every sandbox knows.
_SANDBOX_CLIENT = ("sandbox", SecretStr("sandbox-secret"))


class ProviderNotConfiguredError(RuntimeError):
    """Neither a client id nor a sandbox: there is nobody to ask."""


class ProviderShutDownError(ProviderNotConfiguredError):
    """The provider's API is no more; the message names the one to connect in its place."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach a provider. `environment` is `live` or `sandbox`; tokens of one are not for the other.

    `oauth` is None for a provider whose consent is not OAuth. `regions` are the base URLs of its regional
    hosts; in the sandbox they are paths below the provider's. `budgets` are the request limits known in advance:
    the vendor's, and none of the sandbox, which says itself when one is used up.
    """

    environment: str
    base_url: str
    oauth: OAuth | None
    client_id: str
    client_secret: SecretStr
    regions: Mapping[str, str] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()

    def authorizer(self, provider: Provider) -> Callable[[str], Mapping[str, str]] | None:
        """What turns an access token into the headers of a request; None for a bearer token."""
        authorize = provider.authorize
        if authorize is None:
            return None
        return lambda token: authorize(self.credentials(token))

    def credentials(self, token: str = "") -> Credentials:
        """What a request is signed with: the application's own, and a person's token where there is one."""
        return Credentials(self.client_id, self.client_secret.get_secret_value(), token)


def endpoint_of(provider: Provider, settings: Settings) -> Endpoint:
    """Raises ProviderNotConfiguredError with the settings that are missing or wrong, or as ProviderShutDownError."""
    if provider.successor is not None:
        raise ProviderShutDownError(
            f"{provider.title}'s Web API is shut down; connect {get(provider.successor).title}"
        )
    if provider.door == "webhook":
        raise ValueError(f"{provider.name} is not asked, it calls; connect it with --external-id")
    if provider.door != "fetch":
        raise ValueError(f"{provider.name} is not fetched over HTTP")
    prefix = f"HEALTH_PIPELINE_{provider.name.upper()}"
    allowed = provider.enabled or settings.is_switched_on(provider.name)
    client = settings.client_credentials(provider.name)
    if client is None and provider.password is not None and allowed:
        client = "", SecretStr("")  # the person's own password is all it takes
    if client is not None and allowed:
        return _live(provider, settings, *client)
    if settings.sandbox_url is not None:
        return _sandbox(provider, settings.sandbox_url)
    if not provider.enabled:
        raise ProviderNotConfiguredError(
            f"{provider.title} is off by default; read what it means, then set {prefix}_ENABLED=true"
        )
    needed = [f"{prefix}_CLIENT_ID", f"{prefix}_CLIENT_SECRET"]
    if provider.base_url is None:
        needed.insert(0, f"{prefix}_BASE_URL")
    raise ProviderNotConfiguredError(
        f"{provider.title} is not configured: set {', '.join(needed[:-1])} and {needed[-1]}, or start "
        "the sandbox (health-pipeline sandbox) and set HEALTH_PIPELINE_SANDBOX_URL"
    )


def _live(provider: Provider, settings: Settings, client_id: str, client_secret: SecretStr) -> Endpoint:
    prefix = f"HEALTH_PIPELINE_{provider.name.upper()}"
    own = settings.provider_base_url(provider.name)
    if own is None and provider.base_url is None:
        raise ProviderNotConfiguredError(
            f"{provider.title} has a server for each organisation: set {prefix}_BASE_URL to yours"
        )
    if own is not None or provider.base_url is None:
        return Endpoint("live", own or "", provider.oauth, client_id, client_secret, budgets=provider.budgets)
    base_url, oauth = _in_region(
        provider, provider.base_url, settings.region(provider.name), f"{prefix}_REGION"
    )
    return Endpoint("live", base_url, oauth, client_id, client_secret, provider.regions, provider.budgets)


def _sandbox(provider: Provider, sandbox_url: str) -> Endpoint:
    root = f"{sandbox_url.rstrip('/')}/{provider.name}"
    oauth = None if provider.oauth is None else _moved(provider.oauth, root)
    regions = {name: f"{root}/{name}" for name in provider.regions}
    return Endpoint("sandbox", root, oauth, *_SANDBOX_CLIENT, regions)


def _in_region(provider: Provider, usual: str, region: str | None, setting: str) -> tuple[str, OAuth | None]:
    """The base URL and the OAuth addresses of the region the settings name, the usual ones if they name none."""
    if region is None:
        return usual, provider.oauth
    if region not in provider.regions:
        known = ", ".join(provider.regions) or "none"
        raise ProviderNotConfiguredError(
            f"{setting} is {region!r}, which {provider.title} does not have; it has {known}"
        )
    base_url = provider.regions[region]
    return base_url, None if provider.oauth is None else _moved(provider.oauth, base_url)


def _moved(oauth: OAuth, root: str) -> OAuth:
    if oauth.discover is not None:
        return oauth  # it asks the sandbox itself
    return replace(
        oauth,
        authorize_url=_move(oauth.authorize_url, root),
        token_url=_move(oauth.token_url, root),
        revoke_url=None if oauth.revoke_url is None else _move(oauth.revoke_url, root),
    )


def _move(url: str, root: str) -> str:
    return root + urlsplit(url).path
