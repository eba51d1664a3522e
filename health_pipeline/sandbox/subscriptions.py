"""Where vendors were told to call, and how they ask an address back before they believe it."""

from __future__ import annotations

import datetime as dt
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx

#: How long a vendor waits for an address.
_SECONDS = 10.0
#: The kind that stands for all a vendor tells.
EVERYTHING = "*"


@dataclass(slots=True)
class Subscribed:
    """One subscription. `handle` is whose data it is about, None for everybody's.

    `kinds` are what is told, in the words of `ProviderApi.kind_of`. `secret` is what calls are signed with.
    """

    address: str
    kinds: frozenset[str]
    secret: str
    client_id: str = ""
    handle: str | None = None
    expires_at: dt.datetime | None = None
    active: bool = True
    details: dict[str, Any] = field(default_factory=dict)
    subscription_id: str = field(default_factory=lambda: str(uuid.uuid4()))


class Subscribers:
    """The subscriptions at one vendor."""

    def __init__(self) -> None:
        self._known: dict[str, Subscribed] = {}

    def __iter__(self) -> Iterator[Subscribed]:
        return iter(list(self._known.values()))

    def add(self, subscribed: Subscribed) -> Subscribed:
        self._known[subscribed.subscription_id] = subscribed
        return subscribed

    def get(self, subscription_id: str, client_id: str) -> Subscribed | None:
        found = self._known.get(subscription_id)
        return found if found is not None and found.client_id == client_id else None

    def remove(self, subscription_id: str) -> None:
        del self._known[subscription_id]

    def clear(self) -> None:
        self._known.clear()

    def to_call(self, handle: str, now: dt.datetime) -> list[Subscribed]:
        """Those to be told about a person now."""
        return [
            one
            for one in self
            if one.active
            and one.handle in (None, handle)
            and (one.expires_at is None or one.expires_at > now)
        ]


async def ask(method: str, address: str, **request: Any) -> httpx.Response | None:
    """The answer of an address to a vendor's question; None where there is none in time."""
    try:
        async with httpx.AsyncClient(timeout=_SECONDS, verify=_tls_context()) as client:
            return await client.request(method, address, **request)
    except (httpx.HTTPError, httpx.InvalidURL):
        return None


@cache
def _tls_context() -> ssl.SSLContext:
    """One for all: reading the certificates costs more than a call."""
    return httpx.create_ssl_context()
