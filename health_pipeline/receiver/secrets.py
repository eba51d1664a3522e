"""Which secrets prove a provider's calls."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa

from health_pipeline.connections.callback import derived_secrets
from health_pipeline.connections.endpoints import ProviderNotConfiguredError, endpoint_of
from health_pipeline.connections.vault import VaultError
from health_pipeline.providers.base import Provider
from health_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_KEYSET_SECONDS = 6 * 3600
_RETRY_SECONDS = 60


class KeysetUnavailableError(RuntimeError):
    """A vendor's public keys, or the secret it gave us, cannot be had: nothing it says can be proved now."""


class Secrets:
    """The active secrets of each provider, newest first. Thread-safe; what is fetched is kept for hours.

    First what the vendor gave us (HEALTH_PIPELINE_<PROVIDER>_WEBHOOK_SECRET, or the client secret where it signs
    with that), its published keys, or what it said when we subscribed (`stored`); then what we made of our own
    (HEALTH_PIPELINE_WEBHOOK_SECRET, else a key file of the home), for callback addresses and verify tokens.
    """

    def __init__(self, settings: Settings, stored: Callable[[Provider], Sequence[str]] | None = None) -> None:
        self._settings = settings
        self._stored = stored
        self._lock = threading.Lock()
        self._keysets: dict[str, tuple[float, str]] = {}
        self._own: dict[str, list[str]] = {}

    def of(self, provider: Provider) -> list[str]:
        """Raises KeysetUnavailableError."""
        webhook = provider.webhook
        found = self._settings.webhook_secrets(provider.name)
        if webhook is not None and webhook.signed_by_client:
            found += self._client_secret(provider)
        if webhook is not None and webhook.keyset_url is not None:
            found.append(self._keyset(provider, webhook.keyset_url))
        if webhook is not None and webhook.subscriptions is not None and webhook.subscriptions.gives_secret:
            found += self._given(provider)
        return [*(secret for secret in found if secret), *self.own(provider)]

    def _client_secret(self, provider: Provider) -> list[str]:
        try:
            return [endpoint_of(provider, self._settings).client_secret.get_secret_value()]
        except ProviderNotConfiguredError:
            return []

    def _given(self, provider: Provider) -> Sequence[str]:
        try:
            return () if self._stored is None else self._stored(provider)
        except (sa.exc.OperationalError, VaultError) as error:
            raise KeysetUnavailableError(
                f"{provider.title}'s secret cannot be read ({type(error).__name__})"
            ) from None

    def own(self, provider: Provider) -> list[str]:
        """The secrets of our making, newest first: each provider has its own."""
        return self.derived(f"webhook {provider.name}")

    def derived(self, purpose: str) -> list[str]:
        """A secret for one purpose from each of our own, newest first."""
        if purpose not in self._own:
            self._own[purpose] = derived_secrets(self._settings, purpose)
        return self._own[purpose]

    def _keyset(self, provider: Provider, url: str) -> str:
        if self._settings.client_credentials(provider.name) is None and self._settings.sandbox_url:
            url = f"{self._settings.sandbox_url.rstrip('/')}/{provider.name}{urlsplit(url).path}"
        with self._lock:
            due, text = self._keysets.get(url, (0.0, ""))
            if time.monotonic() < due:
                return text
            try:
                text = httpx.get(url, timeout=10).raise_for_status().text
                due = time.monotonic() + _KEYSET_SECONDS
            except httpx.HTTPError as error:
                if not text:
                    raise KeysetUnavailableError(
                        f"{provider.title}'s public keys cannot be read ({type(error).__name__})"
                    ) from None
                # The old ones are good for a while: vendors announce new keys before they use them.
                logger.warning("%s: public keys not renewed: %s", provider.name, type(error).__name__)
                due = time.monotonic() + _RETRY_SECONDS
            self._keysets[url] = due, text
            return text
