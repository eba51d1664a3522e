"""How every connection is, before its person notices."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from health_pipeline.providers.registry import all_providers

State = Literal[
    "well",
    "error",
    "pending",
    "expired",
    "expiring",
    "consent over",
    "never synced",
    "silent",
    "failing",
    "disconnected",
]

#: Tokens that cannot be renewed, and consents, are said to be expiring this long before.
EXPIRY_NOTICE = dt.timedelta(days=7)
#: An account is asked within a day at least (daily_schedule), and given so many of its turns before it is silent.
_TURNS = 2
_GRACE = dt.timedelta(hours=2)
#: How long after it was connected an account may go without its first sync.
_FIRST_SYNC = dt.timedelta(hours=26)

_QUERY = """
select
    accounts.account_id, users.handle, accounts.provider, accounts.status, accounts.last_sync_at,
    accounts.last_error, accounts.created_at, consent.event as consent_event,
    consent.expires_at as consent_expires_at, consent.recorded_at as consent_at,
    tokens.account_id is not null as has_token, tokens.expires_at, tokens.refresh_token is not null as refreshable
from ops.provider_accounts as accounts
inner join ops.users using (user_id)
left join ops.connector_tokens as tokens using (account_id)
left join lateral (
    select event, expires_at, recorded_at from ops.connector_consent_ledger as ledger
    where ledger.user_id = accounts.user_id and ledger.provider = accounts.provider
    order by entry_id desc limit 1
) as consent on true
where (cast(:provider as text) is null or accounts.provider = :provider)
    and (cast(:handle as text) is null or users.handle = :handle)
order by users.handle, accounts.provider
"""


@dataclass(frozen=True, slots=True)
class AccountHealth:
    """One account. `why` is for people and holds no token or payload."""

    account_id: int
    handle: str
    provider: str
    state: State
    why: str | None
    last_sync_at: dt.datetime | None
    consent_event: str | None
    consent_expires_at: dt.datetime | None

    @property
    def needs_attention(self) -> bool:
        return self.state not in ("well", "disconnected")


def account_health(
    engine: sa.Engine,
    *,
    provider: str | None = None,
    handle: str | None = None,
    now: dt.datetime | None = None,
) -> list[AccountHealth]:
    """Every account, of one provider or user where one is named, by user and provider."""
    with engine.connect() as connection:
        rows = connection.execute(sa.text(_QUERY), {"provider": provider, "handle": handle}).all()
    at = now or dt.datetime.now(dt.UTC)
    return [
        AccountHealth(
            row.account_id,
            row.handle,
            row.provider,
            *_state(row, at),
            row.last_sync_at,
            row.consent_event,
            row.consent_expires_at,
        )
        for row in rows
    ]


def _state(row: sa.Row[tuple[object, ...]], now: dt.datetime) -> tuple[State, str | None]:
    """The gravest thing that can be said of an account, and why."""
    again = f"health-pipeline connect {row.provider} --user {row.handle}"
    if row.status == "disconnected":
        return "disconnected", None
    if row.status == "error":
        return "error", f"{row.last_error or 'refused'}; {again}"
    if row.status == "pending":
        return "pending", row.last_error or f"waits for its person: {again}"
    if row.consent_event != "granted" or (
        row.consent_expires_at is not None and row.consent_expires_at <= now
    ):
        return "consent over", f"nothing is fetched; {again} renews it"
    if row.has_token and not row.refreshable and row.expires_at is not None and row.expires_at <= now:
        return "expired", f"the token has ended and cannot be renewed; {again}"
    if row.last_error is not None:
        return "failing", row.last_error
    quiet = _silence(row, now)
    if quiet is not None:
        return quiet
    for what, end in (
        ("consent", row.consent_expires_at),
        ("token", None if row.refreshable else row.expires_at),
    ):
        if end is not None and end - now < EXPIRY_NOTICE:
            return "expiring", f"the {what} ends on {end:%Y-%m-%d %H:%M} UTC; {again}"
    return "well", None


def _silence(row: sa.Row[tuple[object, ...]], now: dt.datetime) -> tuple[State, str] | None:
    provider = all_providers().get(row.provider)
    if provider is not None and provider.door == "webhook":
        return None  # nobody is asked, and what is sent when is for the sender to say
    cadence = dt.timedelta(hours=24 if provider is None else provider.poll_hours)
    if row.last_sync_at is None:
        since = row.consent_at or row.created_at
        if now - since > _FIRST_SYNC:
            return (
                "never synced",
                f"connected on {since:%Y-%m-%d} and nothing was fetched; is the daemon running?",
            )
        return None
    quiet = now - row.last_sync_at
    if quiet > _TURNS * cadence + _GRACE:
        hours = quiet.total_seconds() / 3600
        return (
            "silent",
            f"no sync for {hours:.0f} h, and one is due every {cadence.total_seconds() / 3600:.0f} h",
        )
    return None
