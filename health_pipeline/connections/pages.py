"""What a person's browser shows on the way to a provider and back, whoever serves it."""

from __future__ import annotations

import html

from health_pipeline.connections.accounts import AccountTakenError
from health_pipeline.connections.endpoints import ProviderNotConfiguredError
from health_pipeline.connections.flow import StateError
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.vault import VaultError

#: Where people come back to, below an address that the provider was told.
CALLBACK_PATH = "/oauth/callback"
#: Answers to pages that carry a code, a state or a signed link in their address.
PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}
#: What is shown in place of the answer's own words, which anybody may have written.
_HEADLINES = {
    "unknown": "This is not an answer to a request of ours",
    "used": "This answer was used already",
    "expired": "This answer came too late",
    "redirect": "This answer came to the wrong address",
}
#: Errors that a person can be told in their own words.
_TOLD = (ConsentError, AccountTakenError, ProviderNotConfiguredError, VaultError)


def page(headline: str, words: str, button: str | None = None) -> bytes:
    """A page that loads nothing, and says no one where it came from. A button posts to the page's own address."""
    form = "" if button is None else f"<form method='post'><button>{html.escape(button)}</button></form>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
        f"<title>{html.escape(headline)}</title><body style='font-family:sans-serif;max-width:36em;margin:4em auto'>"
        f"<h1>{html.escape(headline)}</h1><p>{html.escape(words)}</p>{form}</body></html>"
    ).encode()


def told(error: Exception, title: str) -> tuple[int, str, str]:
    """Status, headline and words for a person whose account was not connected."""
    if isinstance(error, StateError):
        return 400, _HEADLINES[error.reason], str(error)
    if isinstance(error, _TOLD):
        return 400, f"{title} is not connected", str(error)
    return 500, f"{title} is not connected", f"Something went wrong ({type(error).__name__})."
