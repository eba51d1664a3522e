"""Withings' notifications: one a person and kind of data (`appli`), asked for with the person's token.

They do not expire, but Withings may drop them without a word (after failures, by one of its pages), so that they
have to be looked after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers.base import Credentials, Subscribing, Subscription, Subscriptions
from health_pipeline.providers.http import ApiClient, MalformedResponseError

if TYPE_CHECKING:
    import httpx

_PATH = "/notify"
#: "Callback URL is either unknown or invalid."
_CALLBACK_REFUSED = 293


def subscriptions(numbers: Sequence[int]) -> Subscriptions:
    """One subscription a number ("appli")."""
    return Subscriptions(
        per="account",
        kinds=tuple(f"appli.{number}" for number in numbers),
        list=_list,
        create=_create,
        delete=_delete,
        explain=_explain,
    )


def _list(client: ApiClient, _: Credentials) -> list[Subscription]:
    response = client.request("POST", _PATH, form={"action": "list"})
    try:
        rows = load_object(response.content)["body"]["profiles"]
        return [_subscription(f"appli.{int(row['appli'])}", row["callbackurl"]) for row in rows]
    except (MalformedBodyError, KeyError, TypeError, ValueError):
        raise MalformedResponseError(
            client.provider, _PATH, 200, "the subscriptions cannot be read"
        ) from None


def _create(client: ApiClient, _: Credentials, asked: Subscribing) -> Subscription:
    client.request("POST", _PATH, form={"action": "subscribe", **_form(asked.kind, asked.address)})
    return _subscription(asked.kind, asked.address)


def _delete(client: ApiClient, _: Credentials, subscription: Subscription) -> None:
    client.request("POST", _PATH, form={"action": "revoke", **_form(subscription.kind, subscription.address)})


def _form(kind: str, address: str) -> dict[str, str]:
    return {"callbackurl": address, "appli": kind.removeprefix("appli.")}


def _subscription(kind: str, address: str) -> Subscription:
    """It has no id of its own: kind and address are what it goes by."""
    return Subscription(kind, kind, address)


def _explain(response: httpx.Response) -> str | None:
    try:
        status = load_object(response.content).get("status")
    except MalformedBodyError:
        return None
    if status == _CALLBACK_REFUSED:
        return (
            "status 293: our address did not answer its HEAD with 200, or is not among the callback addresses of "
            "the application on Withings' dashboard"
        )
    return None
