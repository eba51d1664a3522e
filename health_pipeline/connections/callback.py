"""Where providers are to call us, and the secrets of our own making in that."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from health_pipeline.connections.vault import key_file
from health_pipeline.providers.base import Provider
from health_pipeline.settings import Settings

KEY_FILE = "receiver.key"
#: Where `health-pipeline up` has the receiver, as long as the port is free.
LOCAL_RECEIVER = "http://127.0.0.1:8700"


class ReceiverAddressError(RuntimeError):
    """The receiver has no address that the provider could call."""


def own_secrets(settings: Settings, provider: Provider) -> list[str]:
    """The secrets of our making, newest first: each provider has its own."""
    return derived_secrets(settings, f"webhook {provider.name}")


def derived_secrets(settings: Settings, purpose: str) -> list[str]:
    """A secret for one purpose from each of our own, newest first."""
    given = settings.webhook_secret
    text = (
        given.get_secret_value()
        if given is not None
        else key_file(settings.home_path / KEY_FILE).replace("\n", ",")
    )
    return [
        hmac.new(secret.strip().encode(), purpose.encode(), hashlib.sha256).hexdigest()
        for secret in text.split(",")
        if secret.strip()
    ]


def path_token(secret: str, provider: str) -> str:
    """The part of a callback address that nobody can guess, for providers that sign nothing."""
    return hmac.new(secret.encode(), f"webhook path {provider}".encode(), hashlib.sha256).hexdigest()[:40]


def callback_path(settings: Settings, provider: Provider) -> str:
    """Where on the receiver the provider is to call. Raises LookupError for one that calls nobody."""
    if provider.webhook is None:
        raise LookupError(f"{provider.title} sends no webhooks")
    path = f"/webhooks/{provider.name}"
    if provider.webhook.secret_path:
        newest = (settings.webhook_secrets(provider.name) + own_secrets(settings, provider))[0]
        path += f"/{path_token(newest, provider.name)}"
    return path


def callback_address(settings: Settings, provider: Provider) -> str:
    """The whole address. Raises ReceiverAddressError, which says what to set, and LookupError.

    Where the sandbox stands in for the provider, a receiver on this machine will do.
    """
    path = callback_path(settings, provider)
    base = settings.receiver_url
    live = settings.client_credentials(provider.name) is not None or settings.sandbox_url is None
    if base is None and not live:
        base = LOCAL_RECEIVER
    if base is None:
        raise ReceiverAddressError(
            f"{provider.title} has to know where to call: set HEALTH_PIPELINE_RECEIVER_URL to the receiver's "
            "public address, e.g. https://hooks.example.org"
        )
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ReceiverAddressError(
            "HEALTH_PIPELINE_RECEIVER_URL is no address such as https://hooks.example.org"
        )
    if live and parts.scheme != "https":
        raise ReceiverAddressError(
            f"{provider.title} calls https addresses only: HEALTH_PIPELINE_RECEIVER_URL begins with http://"
        )
    return base.rstrip("/") + path
