"""Alerts leave the house signed, once each, again when nobody answers, and not when somebody has seen them."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from health_pipeline.outgoing.alerts import MAX_ATTEMPTS, Sending, send_alerts
from health_pipeline.outgoing.standard_webhooks import secret_key, signed_headers
from health_pipeline.runtime.alerts import acknowledge, list_alerts
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.engine_tables import ensure_engine_tables

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


class Owner:
    """Somebody's endpoint: it keeps what comes and answers as told, 204 in the end."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                owner.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(owner.answers.pop(0) if owner.answers else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def owner() -> Iterator[Owner]:
    served = Owner()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


@pytest.fixture
def alerted(warehouse: Warehouse) -> Warehouse:
    """Ada's alerts: a fall of today, one that a new sensor explains, one of last week."""
    ensure_engine_tables(warehouse)
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql("insert into ops.users (handle) values ('ada')")
        for day, kind, suppressed in (
            ("2026-11-21", "rapid_fall", False),
            ("2026-11-20", "rapid_rise", True),
            ("2026-11-10", "urgent_low", False),
        ):
            connection.exec_driver_sql(
                "insert into health.alerts (user_id, local_date, kind, episode, detected_at, value, severity, "
                f"suppressed, sentence) select user_id, '{day}', '{kind}', 1, '{day} 10:00+00', -2.4, 'warning', "
                f"{suppressed}, 'Glucose fell.' from ops.users"
            )
    return warehouse


def settings(url: str | None, secret: str | None = SECRET) -> Settings:
    return Settings(
        alert_webhook_url=None if url is None else SecretStr(url),
        alert_webhook_secret=None if secret is None else SecretStr(secret),
    )


def send(
    warehouse: Warehouse, url: str | None, at: dt.datetime = NOW, secret: str | None = SECRET
) -> Sending:
    return send_alerts(warehouse, settings(url, secret), now=lambda: at, sleep=lambda _seconds: None)


def states(warehouse: Warehouse) -> list[Any]:
    with warehouse.engine.connect() as connection:
        return list(connection.execute(sa.text("select * from ops.alert_states order by kind")).mappings())


def test_signature_is_the_one_of_the_specification() -> None:
    body = b'{"event_type":"ping","data":{"success":true}}'
    key = base64.b64decode("plJ3nmyCDGBKInavdOK15jsl")
    headers = signed_headers(key, "msg_loFOjxBNrRLzqYUf", 1731705121, body)
    assert headers["webhook-signature"] == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
    assert secret_key(SECRET) == b"k" * 24
    for bad in ("whsec_", "whsec_c2hvcnQ=", "not base64!"):
        with pytest.raises(ValueError, match="whsec_"):
            secret_key(bad)


def test_an_alert_is_sent_signed_and_once(alerted: Warehouse, owner: Owner) -> None:
    assert send(alerted, owner.url) == Sending(sent=1)
    assert send(alerted, owner.url) == Sending()
    ((headers, body),) = owner.calls
    told = json.loads(body)
    assert (told["type"], told["data"]["user"], told["data"]["kind"]) == (
        "alert.detected",
        "ada",
        "rapid_fall",
    )
    assert told["data"]["sentence"] == "Glucose fell."
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(b"k" * 24, content, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert int(headers["webhook-timestamp"]) == NOW.timestamp()
    (state,) = states(alerted)
    assert (state["kind"], state["sent_at"], state["last_error"]) == ("rapid_fall", NOW, None)
    assert list_alerts(alerted)[0].state.startswith("sent 2026-11-21")


def test_what_fails_is_tried_again_under_the_same_id(alerted: Warehouse, owner: Owner) -> None:
    owner.answers = [500, 503, 429]
    assert send(alerted, owner.url) == Sending(failed=1)
    assert states(alerted)[0]["last_error"] == "answered 429"
    # Not before its time, and then with success.
    assert send(alerted, owner.url) == Sending()
    assert send(alerted, owner.url, NOW + dt.timedelta(hours=1)) == Sending(sent=1)
    assert len(owner.calls) == 4
    assert len({headers["webhook-id"] for headers, _ in owner.calls}) == 1
    assert states(alerted)[0]["attempts"] == 4


def test_in_the_end_it_is_given_up_and_says_why(alerted: Warehouse) -> None:
    for hour in range(20):
        send(alerted, "http://127.0.0.1:9/nobody", NOW + dt.timedelta(hours=2 * hour))
    (state,) = states(alerted)
    assert (state["attempts"], state["sent_at"], state["last_error"]) == (MAX_ATTEMPTS, None, "ConnectError")
    (shown, *_) = list_alerts(alerted)
    assert shown.state == f"not sent in {MAX_ATTEMPTS} tries: ConnectError"


def test_acknowledged_alerts_are_neither_shown_nor_sent(alerted: Warehouse, owner: Owner) -> None:
    assert [alert.kind for alert in list_alerts(alerted, "ada")] == ["rapid_fall", "urgent_low"]
    assert acknowledge(alerted, "ada", kind="rapid_fall") == 1
    assert send(alerted, owner.url) == Sending()
    assert [alert.kind for alert in list_alerts(alerted)] == ["urgent_low"]
    assert acknowledge(alerted, "ada", day=dt.date(2026, 11, 10)) == 1
    assert list_alerts(alerted) == []
    assert [alert.kind for alert in list_alerts(alerted, everything=True)] == [
        *("rapid_fall", "rapid_rise", "urgent_low"),
    ]
    assert acknowledge(alerted, "ada", kind="urgent_low") == 0
    with pytest.raises(LookupError, match="there is no user 'eve'"):
        acknowledge(alerted, "eve")


def test_nothing_leaves_unsigned_or_in_the_open(alerted: Warehouse, owner: Owner) -> None:
    assert send(alerted, None) == Sending()
    with pytest.raises(ValueError, match="_SECRET is missing"):
        send(alerted, owner.url, secret=None)
    with pytest.raises(ValueError, match="has to be https"):
        send(alerted, "http://example.org/hook")
    assert owner.calls == []
    assert states(alerted) == []
