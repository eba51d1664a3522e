"""Google Health's subscribers: one an address, of a whole Cloud project, asked for by a service account.

The policy is AUTOMATIC: everybody who consents is told of, and nothing is made for each person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers.base import Credentials, Subscribing, Subscription, Subscriptions
from health_pipeline.providers.http import ApiClient, MalformedResponseError, RequestRejectedError

if TYPE_CHECKING:
    import httpx

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
#: Of these it tells nothing.
_NEVER_TOLD = {
    *("oxygen-saturation", "core-body-temperature", "daily-vo2-max"),
    *("active-energy-burned", "active-minutes"),
}


def subscriptions(data_types: Iterable[str]) -> Subscriptions:
    """One subscription to all of the data types that it tells of."""
    return Subscriptions(
        per="application",
        kinds=(_kind(set(data_types) - _NEVER_TOLD),),
        service_account=_SCOPE,
        list=_list,
        create=_create,
        renew=_verify_again,
        delete=_delete,
        explain=_explain,
    )


def _kind(data_types: Iterable[str]) -> str:
    return ",".join(sorted(data_types))


def _path(credentials: Credentials) -> str:
    """The project goes by its number, with which the ids of its OAuth clients begin."""
    return f"/v4/projects/{credentials.client_id.partition('-')[0]}/subscribers"


def _list(client: ApiClient, credentials: Credentials) -> list[Subscription]:
    path, found, token = _path(credentials), [], None
    while True:
        page = _object(client, path, client.get(path, {"pageSize": 1000, "pageToken": token}))
        found += [_read(client, path, row) for row in page.get("subscribers", [])]
        token = page.get("nextPageToken")
        if not token:
            return found


def _create(client: ApiClient, credentials: Credentials, asked: Subscribing) -> Subscription:
    path = _path(credentials)
    # Another installation of the same project has another address, and so another id.
    name = f"health-pipeline-{hashlib.sha256(asked.address.encode()).hexdigest()[:16]}"
    wanted = {
        "endpointUri": asked.address,
        "subscriberConfigs": [{"dataTypes": asked.kind.split(","), "subscriptionCreatePolicy": "AUTOMATIC"}],
        "endpointAuthorization": {"secret": f"Bearer {asked.token}"},
    }
    answer = client.request("POST", path, {"subscriberId": name}, json=wanted)
    _require_success(client, path, _object(client, path, answer))
    return Subscription(name, asked.kind, asked.address)


def _verify_again(client: ApiClient, credentials: Credentials, subscription: Subscription) -> Subscription:
    path = f"{_path(credentials)}/{subscription.subscription_id}"
    body = {"endpointUri": subscription.address}
    answer = client.request("PATCH", path, {"updateMask": "endpointUri"}, json=body)
    _require_success(client, path, _object(client, path, answer))
    return Subscription(subscription.subscription_id, subscription.kind, subscription.address)


def _delete(client: ApiClient, credentials: Credentials, subscription: Subscription) -> None:
    client.request("DELETE", f"{_path(credentials)}/{subscription.subscription_id}", {"force": "true"})


def _require_success(client: ApiClient, path: str, operation: Mapping[str, Any]) -> None:
    """A long-running operation may carry its refusal in a good answer."""
    if operation.get("error"):
        raise RequestRejectedError(client.provider, path, 200, _UNANSWERED)


_UNANSWERED = "our address did not answer both of its questions, the one with our header and the one without"


def _explain(response: httpx.Response) -> str | None:
    if response.status_code == 400 and b"FAILED_PRECONDITION" in response.content:
        return _UNANSWERED
    if response.status_code == 403:
        return "the service account may not look after subscribers of the project of the OAuth client"
    return None


def _object(client: ApiClient, path: str, response: httpx.Response) -> dict[str, Any]:
    try:
        return load_object(response.content)
    except MalformedBodyError:
        raise MalformedResponseError(
            client.provider, path, response.status_code, "the subscribers cannot be read"
        ) from None


def _read(client: ApiClient, path: str, row: Any) -> Subscription:
    try:
        types = {name for config in row.get("subscriberConfigs", []) for name in config["dataTypes"]}
        return Subscription(
            row["name"].rpartition("/")[2],
            _kind(types),
            row["endpointUri"],
            active=row.get("state", "ACTIVE") == "ACTIVE",
        )
    except (AttributeError, KeyError, TypeError):
        raise MalformedResponseError(client.provider, path, 200, "a subscriber cannot be read") from None
