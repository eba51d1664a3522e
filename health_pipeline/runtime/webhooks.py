"""`health-pipeline webhooks`: where the providers are to call, told to them; and a day's calls from the sandbox."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from health_pipeline.connections.callback import callback_address, own_secrets
from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.subscriptions import ByHandError, Subscriber
from health_pipeline.connections.vault import open_vault
from health_pipeline.providers.registry import get
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

#: How much of an address's secret part is shown.
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class SubscriptionLine:
    """A subscription as `webhooks list` shows it; a secret in its address is cut short."""

    provider: str
    kind: str
    address: str
    expires_at: dt.datetime | None
    state: str


def subscribe(settings: Settings, warehouse: Warehouse, provider_name: str) -> list[str]:
    """Have a provider call us; what was done, and what went wrong with single accounts.

    Where that is done by hand, on a dashboard: what to enter there. Raises LookupError for an unknown provider and
    one that calls nobody, ProviderNotConfiguredError, ReceiverAddressError, SubscriptionError.
    """
    try:
        done = _subscriber(settings, warehouse, provider_name).subscribe(_now())
    except ByHandError as error:
        return [str(error)]
    return [f"{get(provider_name).title}: {done.words()}", *done.problems]


def renew(settings: Settings, warehouse: Warehouse, provider_name: str) -> list[str]:
    """Renew all subscriptions that can be renewed, whenever they expire; else as `subscribe`."""
    done = _subscriber(settings, warehouse, provider_name).ensure(_now(), renew=True)
    return [f"{get(provider_name).title}: {done.words()}", *done.problems]


def delete(settings: Settings, warehouse: Warehouse, provider_name: str) -> list[str]:
    """End our subscriptions at a provider. Raises as `subscribe`."""
    done = _subscriber(settings, warehouse, provider_name).delete()
    return [f"{get(provider_name).title}: {done.deleted} subscriptions ended", *done.problems]


def listed(settings: Settings, warehouse: Warehouse, provider_name: str) -> list[SubscriptionLine]:
    """What a provider has, others' addresses too. Raises as `subscribe`."""
    found = _subscriber(settings, warehouse, provider_name).listed()
    lines = [
        SubscriptionLine(
            provider=one.provider if one.handle is None else f"{one.provider} ({one.handle})",
            kind=one.subscription.kind,
            address=_shortened(one.subscription.address, provider_name),
            expires_at=one.subscription.expires_at,
            state=("ours" if one.ours else "another's") + ("" if one.subscription.active else ", stopped"),
        )
        for one in found
    ]
    return sorted(lines, key=lambda line: (line.provider, line.kind))


def address(settings: Settings, provider_name: str) -> str:
    """Where a provider is to call. Raises LookupError, ReceiverAddressError."""
    return callback_address(settings, get(provider_name))


def try_webhooks(
    settings: Settings, provider_name: str, handle: str, day: dt.date | None = None
) -> tuple[dt.date, list[int]]:
    """Have the sandbox send a day's webhooks of a person to our receiver; the day, and what the receiver answered.

    Without a day it is the sandbox's yesterday. Raises ValueError where the provider is not the sandbox's,
    LookupError where the person or the day has none, RuntimeError where somebody does not answer.
    """
    provider = get(provider_name)
    to = callback_address(settings, provider)
    if endpoint_of(provider, settings).environment != "sandbox" or settings.sandbox_url is None:
        raise ValueError(
            f"only the sandbox sends on demand, and {provider.title} is configured as the real one"
        )
    sandbox = settings.sandbox_url.rstrip("/")
    try:
        if day is None:
            now = httpx.get(f"{sandbox}/healthz", timeout=10).raise_for_status().json()["now"]
            day = dt.datetime.fromisoformat(now).date() - dt.timedelta(days=1)
        secret = own_secrets(settings, provider)[0]
        order = {"provider": provider.name, "handle": handle, "day": str(day), "url": to, "secret": secret}
        answer = httpx.post(f"{sandbox}/__webhooks", json=order, timeout=120)
    except httpx.HTTPError as error:
        raise RuntimeError(f"the sandbox at {sandbox} does not answer ({type(error).__name__})") from None
    if answer.status_code == 404:
        raise LookupError(str(answer.json()["detail"]))
    if answer.status_code == 502:
        raise RuntimeError(
            f"nothing answers at {urlsplit(to).netloc}: start `health-pipeline receiver`, or set "
            "HEALTH_PIPELINE_RECEIVER_URL to where it is"
        )
    return day, list(answer.raise_for_status().json()["statuses"])


def _subscriber(settings: Settings, warehouse: Warehouse, provider_name: str) -> Subscriber:
    return Subscriber(warehouse, open_vault(settings), settings, get(provider_name))


def _shortened(address: str, provider_name: str) -> str:
    start, found, secret = address.partition(f"/webhooks/{provider_name}/")
    return f"{start}{found}{secret[:_SHOWN]}…" if secret else address


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
