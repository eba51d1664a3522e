"""Alerts to the owner's webhook, each once: signed by Standard Webhooks, tried again when it does not answer.

The receiver can tell a repetition by `webhook-id`, which is the same for one alert for ever: between an answer and
our note of it a machine can die. Nothing is sent of alerts that a new sensor explains, that were acknowledged, or
of days longer ago than two: what is loaded late is history, not news.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import orjson
import sqlalchemy as sa

from health_pipeline.outgoing.standard_webhooks import secret_key, signed_headers
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

NEWS_DAYS = 2
#: Tries within one call, and in all; then the alert is given up.
TRIES_AT_ONCE = 3
MAX_ATTEMPTS = 12
#: Seconds until the next try, doubled after each, up to an hour; a call waits no longer than the first of them.
FIRST_WAIT = 1.0
LONGEST_WAIT = 3600.0
_TIMEOUT = 10.0
_NAMESPACE = uuid.UUID("6f6d7b7e-4a43-5f0a-9d57-2f3a1c6f3b10")

_DUE = sa.text(
    """
    select alerts.*, users.handle, coalesce(states.attempts, 0) as attempts
    from health.alerts
    inner join ops.users using (user_id)
    left join ops.alert_states as states using (user_id, local_date, kind, episode)
    where not alerts.suppressed and alerts.local_date >= :since
        and states.acknowledged_at is null and states.sent_at is null
        and coalesce(states.attempts, 0) < :most and coalesce(states.next_attempt_at, :now) <= :now
    order by alerts.severity = 'urgent' desc, alerts.local_date, alerts.detected_at, alerts.user_id, alerts.kind
    """
)
_CLAIM = sa.text(
    """
    insert into ops.alert_states as states (user_id, local_date, kind, episode, attempts, next_attempt_at)
    values (:user_id, :local_date, :kind, :episode, 1, :later)
    on conflict (user_id, local_date, kind, episode) do update
        set attempts = states.attempts + 1, next_attempt_at = excluded.next_attempt_at
        where states.sent_at is null and states.acknowledged_at is null and states.attempts = :attempts
    returning states.attempts
    """
)
_DONE = sa.text(
    """
    update ops.alert_states set sent_at = :sent_at, last_error = :error, next_attempt_at = :later
    where user_id = :user_id and local_date = :local_date and kind = :kind and episode = :episode
    """
)


@dataclass(frozen=True, slots=True)
class Sending:
    """What became of the alerts that were due."""

    sent: int = 0
    failed: int = 0


def send_alerts(
    warehouse: Warehouse,
    settings: Settings,
    *,
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Sending:
    """Send what is due to HEALTH_PIPELINE_ALERT_WEBHOOK_URL; nothing where none is set.

    An alert that fails stays due; the reason is in `ops.alert_states`. Raises ValueError where the settings cannot be
    used: no secret, or an address that is neither https nor of this machine.
    """
    if settings.alert_webhook_url is None:
        return Sending()
    url = settings.alert_webhook_url.get_secret_value()
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError(
            "HEALTH_PIPELINE_ALERT_WEBHOOK_URL has to be https: alerts are about a person's health"
        )
    if settings.alert_webhook_secret is None:
        raise ValueError(
            "HEALTH_PIPELINE_ALERT_WEBHOOK_SECRET is missing: alerts are sent signed or not at all"
        )
    key = secret_key(settings.alert_webhook_secret.get_secret_value())
    since = now().date() - dt.timedelta(days=NEWS_DAYS)
    with warehouse.engine.connect() as connection:
        due = connection.execute(_DUE, {"since": since, "most": MAX_ATTEMPTS, "now": now()}).mappings().all()
    sent = failed = 0
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=False) as client:
        for alert in due:
            if _send(warehouse, client, url, key, dict(alert), now, sleep):
                sent += 1
            else:
                failed += 1
    return Sending(sent, failed)


def _send(
    warehouse: Warehouse,
    client: httpx.Client,
    url: str,
    key: bytes,
    alert: dict[str, object],
    now: Callable[[], dt.datetime],
    sleep: Callable[[float], None],
) -> bool:
    """Try an alert; True where it was taken, or another process is at it."""
    whose = {name: alert[name] for name in ("user_id", "local_date", "kind", "episode")}
    attempts = int(str(alert["attempts"]))
    for again in range(TRIES_AT_ONCE):
        wait = min(FIRST_WAIT * 2.0**attempts, LONGEST_WAIT)
        later = now() + dt.timedelta(seconds=wait)
        with warehouse.engine.begin() as connection:
            claimed = connection.execute(_CLAIM, {**whose, "attempts": attempts, "later": later}).scalar()
        if claimed is None:
            return True
        attempts = claimed
        error = _post(client, url, key, alert, int(now().timestamp()))
        done = {
            **whose,
            "sent_at": None if error else now(),
            "error": error,
            "later": later if error else None,
        }
        with warehouse.engine.begin() as connection:
            connection.execute(_DONE, done)
        if error is None:
            return True
        if attempts >= MAX_ATTEMPTS or again == TRIES_AT_ONCE - 1:
            return False
        sleep(wait)
    return False


def message_id(alert: dict[str, object]) -> str:
    """The alert's id, the same whenever it is sent."""
    words = "/".join(str(alert[name]) for name in ("user_id", "local_date", "kind", "episode"))
    return f"msg_{uuid.uuid5(_NAMESPACE, words).hex}"


def _post(client: httpx.Client, url: str, key: bytes, alert: dict[str, object], timestamp: int) -> str | None:
    """None where it was taken, else what went wrong, without address or body."""
    told = ("kind", "severity", "local_date", "detected_at", "ended_at", "value", "sentence")
    body = orjson.dumps(
        {
            "type": "alert.detected",
            "timestamp": dt.datetime.fromtimestamp(timestamp, dt.UTC),
            "data": {"user": alert["handle"], **{name: alert[name] for name in told}},
        }
    )
    headers = signed_headers(key, message_id(alert), timestamp, body) | {"content-type": "application/json"}
    try:
        answer = client.post(url, content=body, headers=headers)
    except httpx.HTTPError as error:
        return type(error).__name__
    return None if answer.is_success else f"answered {answer.status_code}"
