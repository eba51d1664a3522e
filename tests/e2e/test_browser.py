"""Connecting in a real browser: the provider's page, the way back, the first data; and each way it goes wrong."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_client import bearer, receiver_app, running
from consenting import waiting

from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import connectable, get
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.staging.load import stage
from health_pipeline.warehouse.connection import Warehouse

DAYS = Window(dt.date(2026, 11, 17), dt.date(2026, 11, 18))
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        _CHROMIUM is None or _DRIVER is None,
        reason="no browser: install chromium and chromedriver (Debian: chromium-driver)",
    ),
]
#: What the W3C's WebDriver calls an element in its answers.
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


@dataclass
class Browser:
    """A headless Chromium, by the W3C's WebDriver protocol."""

    session: str

    def _call(self, method: str, path: str, **body: Any) -> Any:
        answer = httpx.request(
            method, f"{self.session}{path}", json=body if method == "POST" else None, timeout=60
        )
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def open(self, address: str) -> None:
        self._call("POST", "/url", url=address)

    def click(self, css: str) -> None:
        found = self._call("POST", "/element", using="css selector", value=css)
        self._call("POST", f"/element/{found[_ELEMENT]}/click")

    @property
    def address(self) -> str:
        return str(self._call("GET", "/url"))

    def text(self, expected: str) -> str:
        """What the page says, once it says what is expected or 20 seconds are over."""
        until = time.monotonic() + 20
        while True:
            said = str(self._call("POST", "/execute/sync", script="return document.body.innerText", args=[]))
            if expected in said or time.monotonic() > until:
                return said
            time.sleep(0.1)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile: Path = tmp_path_factory.mktemp("chromium")
    driver = subprocess.Popen(
        [str(_DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    base = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{base}/status").json()["value"]["ready"]:
                    break
            except httpx.HTTPError:
                assert time.monotonic() < until, "chromedriver does not answer"
            time.sleep(0.1)
        options = {
            "binary": _CHROMIUM,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-proxy-server",
                "--disable-background-networking",
                f"--user-data-dir={profile}",
            ],
        }
        answer = httpx.post(
            f"{base}/session",
            json={"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}},
            timeout=120,
        )
        assert answer.is_success, answer.text
        found = Browser(f"{base}/session/{answer.json()['value']['sessionId']}")
        yield found
        httpx.delete(found.session, timeout=60)
    finally:
        driver.terminate()
        driver.wait(timeout=30)


@pytest.fixture
def boxed(settings: Settings, sandbox: RunningSandbox) -> Settings:
    return settings.model_copy(update={"sandbox_url": sandbox.url})


def nothing_stored(warehouse: Warehouse) -> bool:
    with warehouse.engine.connect() as connection:
        return not any(
            connection.exec_driver_sql(f"select count(*) from ops.{table}").scalar_one()
            for table in ("provider_accounts", "connector_tokens", "connector_consent_ledger", "identities")
        )


@pytest.mark.parametrize("name", ["oura", "terra"])
def test_a_link_that_the_receiver_serves(
    boxed: Settings, warehouse: Warehouse, browser: Browser, name: str
) -> None:
    """By OAuth, and by an aggregator's own page; then once more, and by somebody who says no."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, title = f"http://127.0.0.1:{port}", get(name).title
    hosted = boxed.model_copy(update={"receiver_url": url})
    with receiver_app(hosted, warehouse) as app, running(app, port):
        mine = bearer(warehouse)

        def link(path: str = "link") -> str:
            answer = httpx.post(f"{url}/v1/connections/{name}/{path}", headers=mine, timeout=60)
            assert answer.is_success, answer.text
            return str(answer.json().get("url"))

        browser.open(link())
        assert f"read ada's data at {title}" in browser.text("Withdraw at any time")
        browser.click("form button")
        browser.click('button[name="login_hint"][value="ada"]')
        assert f"{title} is connected" in browser.text("is connected")
        assert browser.address.startswith(f"{url}/oauth/callback?")
        used = browser.address
        with warehouse.engine.connect() as connection:
            asked = connection.exec_driver_sql("select kind, provider, status from ops.ingestion_jobs").all()
        assert [tuple(job) for job in asked] == [("sync", name, "requested")]
        browser.open(used)
        assert "This answer was used already" in browser.text("used already")
        link("disconnect")
        browser.open(link())
        browser.click("form button")
        browser.click('button[name="decision"][value="deny"]')
        assert f"{title} is not connected" in browser.text("is not connected")
    with warehouse.engine.connect() as connection:
        status = connection.exec_driver_sql("select status from ops.provider_accounts").scalar_one()
        assert status == "disconnected"


@pytest.mark.parametrize("name", [provider.name for provider in connectable() if provider.oauth is not None])
def test_from_the_providers_page_to_the_first_data(
    boxed: Settings, warehouse: Warehouse, vault: Vault, store: RawStore, browser: Browser, name: str
) -> None:
    provider = get(name)
    with waiting(boxed, warehouse, name) as under_way:
        browser.open(under_way.address)
        assert "approve as" in browser.text("approve as")
        browser.click('button[name="login_hint"][value="ada"]')
        assert f"{provider.title} is connected" in browser.text("is connected")
        assert browser.address.startswith(under_way.back)
        completed = under_way.end()
    report = fetch(warehouse, store, vault, boxed, provider, DAYS, user_ids=[completed.user_id])
    assert report.failed == []
    assert report.new_objects > 0
    staged = stage(warehouse, store, provider)
    assert sum(count for table, count in staged.rows.items() if table != "quarantine") > 0


def test_consent_that_is_denied(boxed: Settings, warehouse: Warehouse, browser: Browser) -> None:
    with waiting(boxed, warehouse) as under_way:
        browser.open(under_way.address)
        browser.click('button[name="decision"][value="deny"]')
        said = browser.text("Oura is not connected")
        assert "the provider did not grant access (access_denied)" in said
        with pytest.raises(ConsentError, match="access_denied"):
            under_way.end()
    assert nothing_stored(warehouse)


def test_a_state_that_is_wrong_and_one_that_comes_too_late(
    boxed: Settings, warehouse: Warehouse, browser: Browser
) -> None:
    with waiting(boxed, warehouse) as under_way:
        state = httpx.URL(under_way.address).params["state"]
        browser.open(under_way.address.replace(state, "forged"))
        browser.click('button[name="login_hint"][value="ada"]')
        assert "not an answer to a request of ours" in browser.text("of ours")
        assert under_way.goes_on
        with warehouse.engine.begin() as connection:
            connection.exec_driver_sql("update ops.oauth_states set expires_at = now()")
        browser.open(under_way.address)
        browser.click('button[name="login_hint"][value="ada"]')
        assert "This answer came too late" in browser.text("too late")
        with pytest.raises(ConsentError, match="too late"):
            under_way.end()
    assert nothing_stored(warehouse)


def test_an_answer_that_is_used_again(boxed: Settings, warehouse: Warehouse, browser: Browser) -> None:
    with waiting(boxed, warehouse) as first:
        browser.open(first.address)
        browser.click('button[name="login_hint"][value="ada"]')
        assert "Oura is connected" in browser.text("is connected")
        answer = browser.address
        first.end()
    with waiting(boxed, warehouse, handle="ben") as second:
        browser.open(answer.replace(first.back, second.back))
        assert "This answer was used already" in browser.text("used already")
    with warehouse.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from ops.provider_accounts").scalar_one() == 1


def test_a_redirect_to_somewhere_else(boxed: Settings, warehouse: Warehouse, browser: Browser) -> None:
    """The provider refuses an address that is none; ours refuses an answer that was asked for another port."""
    with waiting(boxed, warehouse) as mine, waiting(boxed, warehouse, handle="ben") as other:
        browser.open(str(httpx.URL(mine.address).copy_set_param("redirect_uri", "nowhere")))
        assert "Bad redirect_uri" in browser.text("Bad redirect_uri")
        browser.open(str(httpx.URL(mine.address).copy_set_param("redirect_uri", other.back)))
        browser.click('button[name="login_hint"][value="ada"]')
        assert "This answer came to the wrong address" in browser.text("wrong address")
        with pytest.raises(ConsentError, match="redirect URI"):
            other.end()
    assert nothing_stored(warehouse)
