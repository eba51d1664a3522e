"""Subscriptions over real HTTP: the sandbox asks a running receiver back, then sends to it what it subscribed to."""

from __future__ import annotations

import datetime as dt
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import uvicorn

from health_pipeline.connections.callback import ReceiverAddressError, callback_address
from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.subscriptions import (
    Subscriber,
    SubscriptionError,
)
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.registry import all_providers, get
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import create_app
from health_pipeline.runtime.receiver import secrets_of
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

DAY = dt.date(2026, 9, 10)
BY_API = [name for name, one in all_providers().items() if one.webhook and one.webhook.subscriptions]
EXPIRING = ["oura"]


@contextmanager
def served(app: Any) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@dataclass
class Desk:
    """Everything of one environment: where we are, the sandbox, and a receiver that answers."""

    settings: Settings
    warehouse: Warehouse
    vault: Vault
    sandbox: RunningSandbox

    @property
    def now(self) -> dt.datetime:
        return self.sandbox.app.state.sandbox.now()

    def subscriber(self, name: str, **settings: Any) -> Subscriber:
        changed = self.settings.model_copy(update=settings)
        return Subscriber(self.warehouse, self.vault, changed, get(name))

    def connect(self, name: str, handle: str = "ada") -> int:
        with self.warehouse.engine.begin() as connection:
            user_id = ensure_user(connection, handle, "Europe/Berlin").user_id
        connect_sandbox_person(self.settings, self.warehouse, self.vault, get(name), handle)
        return user_id

    def send(self, name: str, handle: str = "ada") -> httpx.Response:
        order = {"provider": name, "handle": handle, "day": str(DAY)}
        return httpx.post(f"{self.sandbox.url}/__webhooks", json=order, timeout=30)

    def at_provider(self, name: str) -> list[Any]:
        return list(self.sandbox.app.state.apis[name].subscribers)

    def rows(self, query: str) -> list[Any]:
        with self.warehouse.engine.connect() as connection:
            return list(connection.execute(sa.text(query)))


@pytest.fixture
def desk(
    settings: Settings, warehouse: Warehouse, vault: Vault, sandbox: RunningSandbox, store: RawStore
) -> Iterator[Desk]:
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    app = create_app(warehouse.engine, store, secrets_of(settings, warehouse).of)
    with served(app) as url:
        yield Desk(settings.model_copy(update={"receiver_url": url}), warehouse, vault, sandbox)


@pytest.mark.parametrize("name", BY_API)
def test_subscribed_once_then_called(desk: Desk, name: str) -> None:
    api = get(name).webhook.subscriptions  # type: ignore[union-attr]
    desk.connect(name)
    first = desk.subscriber(name).subscribe(desk.now)
    assert (first.created, first.standing, first.problems) == (len(api.kinds), len(api.kinds), [])
    again = desk.subscriber(name).subscribe(desk.now)
    assert (again.standing, again.created, again.renewed, again.deleted) == (len(api.kinds), 0, 0, 0)
    listed = desk.subscriber(name).listed()
    assert sorted(one.subscription.kind for one in listed) == sorted(api.kinds)
    assert {one.ours for one in listed} == {True}
    assert {one.subscription.address for one in listed} == {callback_address(desk.settings, get(name))}
    answer = desk.send(name)
    assert answer.status_code == 200, answer.text
    statuses = answer.json()["statuses"]
    assert statuses
    assert set(statuses) == {get(name).webhook.status}  # type: ignore[union-attr]
    assert desk.rows("select count(distinct raw_object_id) from ops.webhook_events")[0][0] == len(statuses)
    assert desk.rows("select 1 from ops.webhook_events where account_id is null") == []
    ended = desk.subscriber(name).delete()
    assert ended.deleted == len(api.kinds)
    assert desk.at_provider(name) == []
    assert (
        desk.rows("select 1 from ops.webhook_targets union all select 1 from ops.webhook_subscriptions") == []
    )
    assert desk.send(name).json()["statuses"] == []


@pytest.mark.parametrize("name", BY_API)
def test_what_the_provider_lost_is_made_again_and_others_are_left_alone(desk: Desk, name: str) -> None:
    desk.connect(name)
    subscriber = desk.subscriber(name)
    total = subscriber.subscribe(desk.now).standing
    subscribers = desk.sandbox.app.state.apis[name].subscribers
    lost = desk.at_provider(name)[0]
    subscribers.remove(lost.subscription_id)
    done = subscriber.ensure(desk.now)
    assert (done.standing, done.created, done.deleted) == (total, 1, 0)


@pytest.mark.parametrize("name", EXPIRING)
def test_renewed_within_a_week_of_expiry(desk: Desk, name: str) -> None:
    subscriber = desk.subscriber(name)
    total = subscriber.subscribe(desk.now).standing
    expiry = {one.expires_at for one in desk.at_provider(name)}
    (expires_at,) = expiry
    for early, renewed in ((dt.timedelta(days=8), 0), (dt.timedelta(days=6), total)):
        moved = {"now": (expires_at - early).isoformat()}
        httpx.put(f"{desk.sandbox.url}/__now", json=moved).raise_for_status()
        done = subscriber.ensure(desk.now)
        assert (done.renewed, done.created) == (renewed, 0)
    assert all(one.expires_at > expires_at for one in desk.at_provider(name))
    assert desk.rows("select min(expires_at) from ops.webhook_subscriptions")[0][0] > expires_at
    moved = {"now": (expires_at + dt.timedelta(days=400)).isoformat()}
    httpx.put(f"{desk.sandbox.url}/__now", json=moved).raise_for_status()
    assert desk.send(name).json()["statuses"] == []
    assert subscriber.ensure(desk.now).created == total


@pytest.mark.parametrize("name", BY_API)
def test_refused_handshake_says_what_to_look_at(desk: Desk, name: str) -> None:
    desk.connect(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"

    def problem(**settings: Any) -> str:
        try:
            return "; ".join(desk.subscriber(name, **settings).subscribe(desk.now).problems)
        except SubscriptionError as error:
            return str(error)

    assert "Nothing answers at 127.0.0.1:" in (said := problem(receiver_url=nowhere))
    assert get(name).title in said
    assert "HEALTH_PIPELINE_RECEIVER_URL" in said
    assert "is not the receiver (status 200)" in problem(receiver_url=desk.sandbox.url)
    assert desk.at_provider(name) == []
    assert desk.rows("select last_error from ops.webhook_targets")[0][0]
    # And once it is mended, it is no problem any more.
    assert problem() == ""
    assert desk.rows("select last_error from ops.webhook_targets")[0][0] is None


def test_address_of_a_live_provider_is_asked_for_and_https(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTH_PIPELINE_OURA_CLIENT_ID", "me")
    for given, words in ((None, "set HEALTH_PIPELINE_RECEIVER_URL"), ("http://hooks.example.org", "https")):
        with pytest.raises(ReceiverAddressError, match=words):
            desk.subscriber("oura", receiver_url=given).subscribe(desk.now)
    assert desk.rows("select 1 from ops.webhook_targets") == []
