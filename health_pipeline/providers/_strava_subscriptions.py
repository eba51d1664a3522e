"""Strava's push subscription: one an application, asked for with the client's id and secret among the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from health_pipeline.providers.base import Credentials, Subscribing, Subscription, Subscriptions
from health_pipeline.providers.http import ApiClient, MalformedResponseError

if TYPE_CHECKING:
    import httpx

_PATH = "/push_subscriptions"
#: Activities and withdrawals come together; there is nothing to choose.
_KIND = "everything"


def _client(credentials: Credentials) -> dict[str, str]:
    return {"client_id": credentials.client_id, "client_secret": credentials.client_secret}


def _list(client: ApiClient, credentials: Credentials) -> list[Subscription]:
    rows = _json(client, client.get(_PATH, _client(credentials)))
    try:
        return [Subscription(str(row["id"]), _KIND, row["callback_url"]) for row in rows]
    except (KeyError, TypeError):
        raise _unreadable(client) from None


def _create(client: ApiClient, credentials: Credentials, asked: Subscribing) -> Subscription:
    form = {**_client(credentials), "callback_url": asked.address, "verify_token": asked.token}
    answer = _json(client, client.request("POST", _PATH, form=form))
    if not isinstance(answer, Mapping) or "id" not in answer:
        raise _unreadable(client)
    return Subscription(str(answer["id"]), _KIND, asked.address)


def _delete(client: ApiClient, credentials: Credentials, subscription: Subscription) -> None:
    client.request("DELETE", f"{_PATH}/{subscription.subscription_id}", _client(credentials))


def _explain(response: httpx.Response) -> str | None:
    if response.status_code != 400:
        return None
    try:
        codes = {str(error.get("code")) for error in orjson.loads(response.content)["errors"]}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    if "already exists" in codes:
        return "an application has one subscription, and there is one at another address; end that first"
    return "our address did not give its challenge back"


def _json(client: ApiClient, response: httpx.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        raise _unreadable(client) from None


def _unreadable(client: ApiClient) -> MalformedResponseError:
    return MalformedResponseError(client.provider, _PATH, 200, "the subscription cannot be read")


SUBSCRIPTIONS = Subscriptions(
    per="application", kinds=(_KIND,), list=_list, create=_create, delete=_delete, explain=_explain
)
