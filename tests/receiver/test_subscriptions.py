"""Subscriptions over real HTTP: the sandbox asks a running receiver back, then sends to it what it subscribed to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import httpx
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from serving import served

from health_pipeline.cli import main
from health_pipeline.connections.callback import ReceiverAddressError, callback_address
from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.disconnect import disconnect
from health_pipeline.connections.rotation import rotate
from health_pipeline.connections.subscriptions import (
    ByHandError,
    Ensured,
    Subscriber,
    SubscriptionError,
    keep_up,
    troubles,
    unsubscribed_accounts,
)
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault, open_vault
from health_pipeline.defs.resources import Platform
from health_pipeline.defs.subscriptions import (
    new_accounts_sensor,
    providers_call,
    subscriptions_schedule,
    webhook_subscriptions,
)
from health_pipeline.providers.registry import all_providers, get
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import create_app
from health_pipeline.runtime.receiver import secrets_of
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings, load_settings
from health_pipeline.warehouse.connection import Warehouse

DAY = dt.date(2026, 9, 10)
BY_API = [name for name, one in all_providers().items() if one.webhook and one.webhook.subscriptions]
EXPIRING = ["oura"]


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

    def problem(self, name: str, **settings: Any) -> str:
        """What keeps the provider from being subscribed to."""
        try:
            return "; ".join(self.subscriber(name, **settings).subscribe(self.now).problems)
        except SubscriptionError as error:
            return str(error)

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
def test_refused_then_subscribed_once_then_called(desk: Desk, name: str) -> None:
    api = get(name).webhook.subscriptions  # type: ignore[union-attr]
    desk.connect(name)
    for address, words in (
        ("http://127.0.0.1:9", "Nothing answers at 127.0.0.1:9"),
        (desk.sandbox.url, "is not the receiver (status 200)"),
    ):
        said = desk.problem(name, receiver_url=address)
        assert said.removeprefix("ada: ").startswith(
            f"{get(name).title} refused the subscription {api.kinds[0]} to "
        )
        assert words in said
        assert desk.at_provider(name) == []
        assert desk.rows("select last_error from ops.webhook_targets") == [(said,)]
    first = desk.subscriber(name).subscribe(desk.now)
    assert (first.created, first.standing, first.problems) == (len(api.kinds), len(api.kinds), [])
    again = desk.subscriber(name).subscribe(desk.now)
    assert (again.standing, again.created, again.renewed, again.deleted) == (len(api.kinds), 0, 0, 0)
    assert desk.rows("select last_error from ops.webhook_targets") == [(None,)]
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


@pytest.mark.parametrize("name", ["oura", "polar", "withings"])
def test_made_again_where_lost_moved_with_the_address_and_others_left_alone(desk: Desk, name: str) -> None:
    desk.connect(name)
    subscriber = desk.subscriber(name)
    total = subscriber.subscribe(desk.now).standing
    subscribers = desk.sandbox.app.state.apis[name].subscribers
    subscribers.remove(desk.at_provider(name)[0].subscription_id)
    done = subscriber.ensure(desk.now)
    assert (done.standing, done.created, done.deleted) == (total, 1, 0)
    if name == "oura":
        elsewhere = replace(
            desk.at_provider(name)[0], subscription_id="x", address="https://else.example/hook"
        )
        elsewhere.kinds = frozenset({"tag.create"})
        subscribers.add(elsewhere)
    moved = desk.subscriber(
        name, receiver_url=str(desk.settings.receiver_url).replace("127.0.0.1", "localhost")
    )
    done = moved.ensure(desk.now)
    assert (done.standing, done.created, done.deleted) == (total, total, total)
    assert moved.delete().deleted == total
    assert [one.address for one in desk.at_provider(name)] == ["https://else.example/hook"] * (name == "oura")


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


def test_address_of_a_live_provider_is_asked_for_and_https(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTH_PIPELINE_OURA_CLIENT_ID", "me")
    for given, words in ((None, "set HEALTH_PIPELINE_RECEIVER_URL"), ("http://hooks.example.org", "https")):
        with pytest.raises(ReceiverAddressError, match=words):
            desk.subscriber("oura", receiver_url=given).subscribe(desk.now)
    assert desk.rows("select 1 from ops.webhook_targets") == []


def test_what_polar_signs_with_is_kept_encrypted_and_survives_a_new_key(desk: Desk) -> None:
    desk.subscriber("polar").subscribe(desk.now)
    (secret,) = [one.secret for one in desk.at_provider("polar")]
    assert secret in secrets_of(desk.settings, desk.warehouse).of(get("polar"))
    ((key_id, kept),) = desk.rows("select key_id, secret from ops.webhook_subscriptions")
    assert secret.encode() not in bytes(kept)
    rotate(desk.warehouse.engine, desk.settings)
    assert desk.rows("select key_id from ops.webhook_subscriptions")[0][0] != key_id
    assert secret in secrets_of(desk.settings, desk.warehouse).of(get("polar"))
    # Stopped after a week of failures, it is set going again; with its secret lost, it is made anew.
    vault = open_vault(desk.settings)
    subscriber = Subscriber(desk.warehouse, vault, desk.settings, get("polar"))
    desk.at_provider("polar")[0].active = False
    assert subscriber.ensure(desk.now).renewed == 1
    assert desk.at_provider("polar")[0].active
    with desk.warehouse.engine.begin() as connection:
        connection.exec_driver_sql("update ops.webhook_subscriptions set key_id = null, secret = null")
    done = subscriber.ensure(desk.now)
    assert (done.deleted, done.created) == (1, 1)
    assert desk.at_provider("polar")[0].secret in secrets_of(desk.settings, desk.warehouse).of(get("polar"))


def test_withings_accounts_come_and_go_with_their_subscriptions(desk: Desk) -> None:
    ada = desk.connect("withings", "ada")
    first = desk.subscriber("withings").subscribe(desk.now)
    ben = desk.connect("withings", "ben")
    waiting = unsubscribed_accounts(desk.warehouse.engine, desk.settings)
    assert [account.user_id for account in waiting] == [ben]
    found = keep_up(desk.warehouse, desk.vault, desk.settings, desk.now)["withings"]
    assert isinstance(found, Ensured)
    assert (found.standing, found.created) == (2 * first.standing, first.standing)
    assert unsubscribed_accounts(desk.warehouse.engine, desk.settings) == []
    disconnect(desk.warehouse, desk.vault, desk.settings, get("withings"), ada)
    assert {one.handle for one in desk.at_provider("withings")} == {"ben"}
    assert desk.rows("select count(*) from ops.webhook_subscriptions")[0][0] == first.standing
    # One whose grant is gone does not keep the others from theirs.
    httpx.post(f"{desk.sandbox.url}/__revoke", json={"provider": "withings", "handle": "ben"})
    desk.connect("withings", "ada")
    found = keep_up(desk.warehouse, desk.vault, desk.settings, desk.now)["withings"]
    assert isinstance(found, Ensured)
    assert found.created == first.standing
    assert [problem.partition(":")[0] for problem in found.problems] == ["ben"]
    assert "ben" in troubles(desk.warehouse.engine, desk.settings, desk.now)[0][1]


def test_what_expires_unrenewed_is_told(desk: Desk) -> None:
    desk.subscriber("strava").subscribe(desk.now)
    assert troubles(desk.warehouse.engine, desk.settings, desk.now) == []
    with desk.warehouse.engine.begin() as connection:
        connection.execute(
            sa.text("update ops.webhook_subscriptions set expires_at = :at"),
            {"at": desk.now + dt.timedelta(days=2)},
        )
    ((provider, problem),) = troubles(desk.warehouse.engine, desk.settings, desk.now)
    assert (provider, "1 subscriptions were not renewed" in problem) == ("strava", True)


def test_told_by_hand_where_there_is_no_api(desk: Desk) -> None:
    for name in ("whoop", "garmin", "terra"):
        with pytest.raises(ByHandError) as refused:
            desk.subscriber(name)
        said = str(refused.value)
        assert callback_address(desk.settings, get(name)) in said
        assert ("HEALTH_PIPELINE_TERRA_WEBHOOK_SECRET" in said) == (name == "terra")


@pytest.fixture
def in_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """For what reads the settings itself."""
    monkeypatch.setenv("HEALTH_PIPELINE_SANDBOX_URL", desk.sandbox.url)
    monkeypatch.setenv("HEALTH_PIPELINE_RECEIVER_URL", str(desk.settings.receiver_url))
    load_settings.cache_clear()
    return desk


def test_daily_run_and_new_accounts(in_environment: Desk) -> None:
    desk = in_environment
    with dg.DagsterInstance.ephemeral() as instance:
        assert isinstance(subscriptions_schedule(dg.build_schedule_context(instance)), dg.SkipReason)
        desk.subscriber("withings").subscribe(desk.now)
        assert isinstance(subscriptions_schedule(dg.build_schedule_context(instance)), dg.RunRequest)
        desk.connect("withings")
        asked = new_accounts_sensor(dg.build_sensor_context(instance))
        assert isinstance(asked, dg.SensorResult)
        again = new_accounts_sensor(dg.build_sensor_context(instance, cursor=asked.cursor))
        assert isinstance(again, dg.SkipReason)

        def run() -> dg.ExecuteInProcessResult:
            return dg.materialize(
                [webhook_subscriptions, providers_call], resources={"platform": Platform()}, instance=instance
            )

        result = run()
        kinds = get("withings").webhook.subscriptions.kinds  # type: ignore[union-attr]
        (done,) = result.asset_materializations_for_node("ops__webhook_subscriptions")
        assert done.metadata["made"].value == len(kinds)
        assert [check.passed for check in result.get_asset_check_evaluations()] == [True]
        assert isinstance(new_accounts_sensor(dg.build_sensor_context(instance)), dg.SkipReason)
        httpx.post(f"{desk.sandbox.url}/__revoke", json={"provider": "withings", "handle": "ada"})
        (check,) = run().get_asset_check_evaluations()
        assert not check.passed
        assert "withings: ada:" in str(check.metadata["problems"].value)


def test_commands(in_environment: Desk) -> None:
    desk = in_environment

    def said(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["webhooks", *words])
        assert result.exit_code == code, result.output
        return result.output

    assert "first say" in said("renew", "strava", code=1)
    assert said("list", "strava") == "no subscriptions\n"
    assert "1 subscriptions stand (1 made)" in said("subscribe", "strava")
    assert "nothing was to be done" in said("subscribe", "strava")
    address = said("address", "strava").strip()
    assert address == callback_address(desk.settings, get("strava"))
    shown = said("list", "strava")
    assert "ours" in shown
    # What must not be guessed is not shown by the way.
    assert address.rpartition("/")[2] not in shown
    assert "1 subscriptions ended" in said("delete", "strava")
    tried = said("try", "oura", "--user", "ada", "--day", str(DAY))
    assert "answers: 200 200" in tried
    assert said("address", "whoop").strip() in said("subscribe", "whoop")
    assert "sends no webhooks" in said("subscribe", "dexcom", code=1)
