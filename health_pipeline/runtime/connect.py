"""`health-pipeline connect`: the browser, the address it comes back to, and what to say there."""

from __future__ import annotations

import datetime as dt
import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from urllib.parse import urlsplit

from health_pipeline.connections import password
from health_pipeline.connections.accounts import save_connection
from health_pipeline.connections.connect import save_consent
from health_pipeline.connections.consent import Consent, consent_to
from health_pipeline.connections.endpoints import Endpoint, endpoint_of
from health_pipeline.connections.flow import STATE_LIFETIME, Completed, StateError, begin, complete
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.pages import CALLBACK_PATH, PAGE_HEADERS, page, told
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.providers.base import Provider
from health_pipeline.providers.registry import get
from health_pipeline.receiver.links import LINK_LIFETIME, ConnectLink, sign
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

#: Where vendors have to be told that people come back to, with CALLBACK_PATH; RFC 8252, 7.3.
DEFAULT_PORT = 8910


def connect_sender(
    settings: Settings,
    warehouse: Warehouse,
    provider_name: str,
    handle: str,
    external_id: str,
    *,
    time_zone: str | None = None,
    consent_days: int | None = None,
) -> Consent:
    """Tie what a sender of webhooks calls a person to a user here; what was agreed to.

    Raises KeyError for a provider that there is not, ValueError for one that is connected by consent at its own place,
    AccountTakenError where the id is another user's.
    """
    provider = get(provider_name)
    if provider.door != "webhook":
        raise ValueError(f"{provider.title} says itself who somebody is; leave --external-id out")
    consent = consent_to(provider, handle, consent_days)
    with warehouse.engine.begin() as connection:
        user_id = ensure_user(connection, handle, time_zone).user_id
    save_connection(
        warehouse.engine,
        open_vault(settings),
        user_id=user_id,
        provider=provider.name,
        provider_user_id=external_id,
        environment="live",
        tokens=None,
        profile={},
        consent_version=consent.version,
        consent_text=consent.text,
        consent_expires_at=consent.expires_at,
    )
    return consent


class Connecting:
    """Somebody about to connect: who, to what, and the text they have to agree to."""

    def __init__(
        self,
        settings: Settings,
        warehouse: Warehouse,
        provider_name: str,
        handle: str,
        *,
        time_zone: str | None = None,
        consent_days: int | None = None,
    ) -> None:
        """Raises LookupError for an unknown provider, ValueError, ProviderNotConfiguredError, VaultError."""
        self.settings, self.warehouse = settings, warehouse
        self.vault = open_vault(settings)
        self.provider: Provider = get(provider_name)
        self.endpoint: Endpoint = endpoint_of(self.provider, settings)
        self.handle = handle
        self.consent: Consent = consent_to(self.provider, handle, consent_days)
        self._time_zone = time_zone

    def with_password(self, user_name: str, secret: str) -> Completed:
        """Connect by the person's own user name and password. Raises ConsentError, AccountTakenError."""
        granted = password.sign_in(self.provider, self.endpoint, user_name, secret)
        user_id = self._user_id()
        account_id = save_consent(
            self.warehouse, self.vault, self.provider, self.endpoint, user_id, granted, self.consent
        )
        return Completed(account_id, user_id, self.provider.name)

    def with_browser(self, port: int, show: Callable[[str, bool], None], *, browser: bool) -> Completed:
        """Send the person's browser to the provider and wait for it on a loopback port; 0 takes a free one.

        `show` gets the address, and whether a browser was opened. Raises ConsentError, also where nobody comes
        back in time, AccountTakenError, OSError where the port is taken.
        """
        answers: Queue[Completed | Exception] = Queue()
        with _loopback(port, lambda address: self._answered(address, answers)) as base:
            begun = self._begin(f"{base}{CALLBACK_PATH}")
            show(begun, browser and _has_display() and webbrowser.open(begun))
            try:
                answer = answers.get(timeout=STATE_LIFETIME.total_seconds())
            except Empty:
                raise ConsentError(
                    f"nobody came back within {STATE_LIFETIME.total_seconds() / 60:.0f} minutes; connect again"
                ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def with_pasted_address(
        self, redirect_uri: str, show: Callable[[str, bool], None], ask: Callable[[], str]
    ) -> Completed:
        """The same for a machine that the person's browser cannot reach: they paste the address they ended at."""
        show(self._begin(redirect_uri), False)
        return complete(self.warehouse, self.vault, self.settings, ask().strip())

    def link(self, consent_days: int | None) -> tuple[str, dt.datetime]:
        """An address for the person, wherever they are, and until when it is good: the receiver serves it.

        Raises ValueError where there is no page to consent on, or the receiver's address is not known.
        """
        if self.provider.password is not None:
            raise ValueError(f"{self.provider.title} has no page to consent on; connect without --link")
        if self.settings.receiver_url is None:
            raise ValueError(
                "set HEALTH_PIPELINE_RECEIVER_URL to the receiver's public address, like https://hooks.example.org"
            )
        expires_at = dt.datetime.now(dt.UTC).replace(microsecond=0) + LINK_LIFETIME
        asked = ConnectLink(self._user_id(), self.provider.name, expires_at, consent_days)
        return sign(Secrets(self.settings), self.settings.receiver_url, asked), expires_at

    def _begin(self, redirect_uri: str) -> str:
        return begin(
            self.warehouse,
            self.vault,
            self.provider,
            self.endpoint,
            self._user_id(),
            redirect_uri,
            self.consent,
        ).url

    def _user_id(self) -> int:
        with self.warehouse.engine.begin() as connection:
            return ensure_user(connection, self.handle, self._time_zone).user_id

    def _answered(self, address: str, answers: Queue[Completed | Exception]) -> tuple[int, str, str]:
        """Status, headline and words for the browser; what ends the command goes into `answers`."""
        title = self.provider.title
        try:
            completed = complete(self.warehouse, self.vault, self.settings, address)
        except Exception as error:
            # A state that is none of ours may be anybody's: whoever set out is still waited for.
            if not isinstance(error, StateError) or error.reason in ("expired", "redirect"):
                answers.put(error)
            return told(error, title)
        answers.put(completed)
        return 200, f"{title} is connected", "You can close this page and go back to the terminal."


def _has_display() -> bool:
    """Whether a browser would have a window: one in the terminal would take the command's place."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def _loopback(port: int, answered: Callable[[str], tuple[int, str, str]]) -> Iterator[str]:
    """Serve the callback on 127.0.0.1 while the block runs; gives the base address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if urlsplit(self.path).path != CALLBACK_PATH:
                self._reply(404, "Nothing here", f"People come back to {CALLBACK_PATH}.")
            else:
                self._reply(*answered(f"{base}{self.path}"))

        def _reply(self, status: int, headline: str, words: str) -> None:
            body = page(headline, words)
            self.send_response(status)
            for name, value in {**PAGE_HEADERS, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: the address holds the code."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # the page is sent before the command ends

    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise OSError(
            f"port {port} of 127.0.0.1 is taken ({error.strerror}); free it, or give another with --port and "
            "register that with the provider"
        ) from None
    base = f"http://127.0.0.1:{server.server_address[1]}"
    # A browser that keeps a connection open without a word does not hold the command up.
    Handler.timeout = 10
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="oauth-callback", daemon=True)
    thread.start()
    try:
        yield base
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
