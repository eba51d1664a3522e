"""What a person is told before they connect an account, and agrees to by going on."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from health_pipeline.providers.base import Provider

#: Goes up with every change of the words below; the ledger keeps the words themselves, too.
CONSENT_VERSION = "2026-11-1"


@dataclass(frozen=True, slots=True)
class Consent:
    """The text as the person saw it; nothing is fetched after `expires_at`, None for until it is withdrawn."""

    version: str
    text: str
    expires_at: dt.datetime | None = None


def consent_to(provider: Provider, handle: str, days: int | None = None) -> Consent:
    """The consent that connecting asks for, good for so many days. Raises ValueError for days that are none."""
    if days is not None and days < 1:
        raise ValueError("a consent has to last for a day or more")
    expires_at = None if days is None else dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    until = "until it is withdrawn" if expires_at is None else f"until {expires_at:%Y-%m-%d %H:%M} UTC"
    scopes = () if provider.oauth is None else provider.oauth.scopes
    kinds = f" It asks for: {', '.join(scopes)}." if scopes else ""
    warning = f" {provider.password.warning}" if provider.password is not None else ""
    text = (
        f"Health Pipeline will read {handle}'s data at {provider.title} and keep it in its warehouse, "
        f"{until}.{kinds}{warning} Withdraw at any time: health-pipeline disconnect {provider.name} "
        f"--user {handle}, with --delete-data to have erased what came."
    )
    return Consent(CONSENT_VERSION, text, expires_at)
