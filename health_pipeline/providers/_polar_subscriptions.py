"""Polar's webhook: one a client, which says once what it signs with, and is stopped after a week of failures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers.base import Credentials, Subscribing, Subscription, Subscriptions
from health_pipeline.providers.http import ApiClient, MalformedResponseError

if TYPE_CHECKING:
    import httpx

_PATH = "/v3/webhooks"


def subscriptions(events: tuple[str, ...]) -> Subscriptions:
    """One subscription to all of `events`."""
    return Subscriptions(
        per="application",
        kinds=(_kind(events),),
        authorize=_authorize,
        list=_list,
        create=_create,
        delete=_delete,
        renew=_activate,
        gives_secret=True,
        explain=_explain,
    )


def _kind(events: object) -> str:
    return ",".join(sorted(map(str, events))) if isinstance(events, list | tuple) else ""


def _authorize(credentials: Credentials) -> Mapping[str, str]:
    pair = f"{credentials.client_id}:{credentials.client_secret}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _list(client: ApiClient, _: Credentials) -> list[Subscription]:
    response = client.get(_PATH)
    # Where there is none, the answer may be empty.
    rows = _data(client, response) if response.content else []
    return [_read(client, row) for row in (rows if isinstance(rows, list) else [rows])]


def _create(client: ApiClient, _: Credentials, asked: Subscribing) -> Subscription:
    wanted = {"events": asked.kind.split(","), "url": asked.address}
    made = _read(client, _data(client, client.request("POST", _PATH, json=wanted)))
    if not made.secret:
        raise _unreadable(client)
    return made


def _activate(client: ApiClient, _: Credentials, subscription: Subscription) -> Subscription:
    client.request("POST", f"{_PATH}/activate")
    return Subscription(subscription.subscription_id, subscription.kind, subscription.address)


def _delete(client: ApiClient, _: Credentials, subscription: Subscription) -> None:
    client.request("DELETE", f"{_PATH}/{subscription.subscription_id}")


def _explain(response: httpx.Response) -> str | None:
    if response.status_code == 409:
        return "a client has one webhook, and there is one at another address; end that first"
    if response.status_code == 400:
        return "its ping to our address was not answered with 200"
    return None


def _data(client: ApiClient, response: httpx.Response) -> Any:
    try:
        return load_object(response.content).get("data") or []
    except MalformedBodyError:
        raise _unreadable(client) from None


def _read(client: ApiClient, row: Any) -> Subscription:
    try:
        return Subscription(
            row["id"],
            _kind(row["events"]),
            row["url"],
            active=row.get("active") is not False,
            secret=row.get("signature_secret_key"),
        )
    except (KeyError, TypeError):
        raise _unreadable(client) from None


def _unreadable(client: ApiClient) -> MalformedResponseError:
    return MalformedResponseError(client.provider, _PATH, 200, "the webhook cannot be read")
