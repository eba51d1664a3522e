"""Which secrets prove a provider's calls."""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from urllib.parse import urlsplit

import httpx

from health_pipeline.connections.vault import key_file
from health_pipeline.providers.base import Provider
from health_pipeline.settings import Settings

logger = logging.getLogger(__name__)

KEY_FILE = "receiver.key"
_KEYSET_SECONDS = 6 * 3600
_RETRY_SECONDS = 60


class KeysetUnavailableError(RuntimeError):
    """A vendor's public keys cannot be had: nothing it says can be proved now."""


class Secrets:
    """The active secrets of each provider, newest first. Thread-safe; what is fetched is kept for hours.

    First what the vendor gave us (HEALTH_PIPELINE_<PROVIDER>_WEBHOOK_SECRET, or the client secret where it signs
    with that), or its published keys; then what we made of our own (HEALTH_PIPELINE_WEBHOOK_SECRET, else a key
    file of the home), for callback addresses and verify tokens.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._keysets: dict[str, tuple[float, str]] = {}
        self._own: list[str] | None = None

    def of(self, provider: Provider) -> list[str]:
        """Raises KeysetUnavailableError."""
        webhook = provider.webhook
        found = self._settings.webhook_secrets(provider.name)
        if webhook is not None and webhook.signed_by_client:
            client = self._settings.client_credentials(provider.name)
            found += [client[1].get_secret_value()] if client is not None else []
        if webhook is not None and webhook.keyset_url is not None:
            found.append(self._keyset(provider, webhook.keyset_url))
        return [*(secret for secret in found if secret), *self.own(provider)]

    def own(self, provider: Provider) -> list[str]:
        """The secrets of our making, newest first: each provider has its own."""
        if self._own is None:
            given = self._settings.webhook_secret
            text = (
                given.get_secret_value()
                if given is not None
                else key_file(self._settings.home_path / KEY_FILE).replace("\n", ",")
            )
            self._own = [secret.strip() for secret in text.split(",") if secret.strip()]
        return [
            hmac.new(secret.encode(), f"webhook {provider.name}".encode(), hashlib.sha256).hexdigest()
            for secret in self._own
        ]

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


def path_token(secret: str, provider: str) -> str:
    """The part of a callback address that nobody can guess, for providers that sign nothing."""
    return hmac.new(secret.encode(), f"webhook path {provider}".encode(), hashlib.sha256).hexdigest()[:40]


def callback_path(secrets: Secrets, provider: Provider) -> str:
    """Where the provider is to call."""
    assert provider.webhook is not None
    path = f"/webhooks/{provider.name}"
    if provider.webhook.secret_path:
        path += f"/{path_token(secrets.of(provider)[0], provider.name)}"
    return path
