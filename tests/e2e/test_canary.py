"""Nobody finds a token anywhere but encrypted: every path is driven, failing ones too, and everything searched."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import zstandard
from api_client import api_client, bearer
from connecting import order

from health_pipeline.connections.accounts import access_token
from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.disconnect import disconnect
from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.flow import complete
from health_pipeline.connections.oauth import _unlogged, refresher
from health_pipeline.connections.rotation import rotate
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import KEY_FILE, open_vault
from health_pipeline.defs import canonical
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import get
from health_pipeline.runtime.connect import Connecting
from health_pipeline.runtime.run_job import run_job
from health_pipeline.sandbox.oauth import OAuthServer
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.staging import load
from health_pipeline.warehouse.connection import Warehouse

DAY = Window(dt.date(2026, 11, 19), dt.date(2026, 11, 19))
BACK = "http://127.0.0.1:8910/oauth/callback"


class Search:
    """Where secrets may have come to lie: files, both databases, what was logged and printed, process arguments."""

    def __init__(self, folders: list[Path], databases: list[str], logged: pytest.LogCaptureFixture) -> None:
        self._folders, self._databases, self._logged = folders, databases, logged
        self.secrets: set[str] = set()
        self.arguments: set[bytes] = set()
        self.printed = b""
        self._ended = threading.Event()

    @contextlib.contextmanager
    def watching_processes(self) -> Iterator[None]:
        def watch() -> None:
            while not self._ended.wait(0.2):
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    with contextlib.suppress(OSError):
                        self.arguments.add(path.read_bytes())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def hits(self) -> tuple[set[str], list[str]]:
        """Where was looked, and where something was found."""
        needles = [needle for secret in self.secrets for needle in _ways_to_write(secret)]
        places, found = set(), set()
        for where, content in self._everything():
            places.add(where)
            if any(each in content for each in needles):
                found.add(where)
        return places, sorted(found)

    def _everything(self) -> Iterator[tuple[str, bytes]]:
        yield "log", self._logged.text.encode()
        yield "printed", self.printed
        for each in self.arguments:
            yield "process arguments", each
        for folder in self._folders:
            for path in folder.rglob("*"):
                if path.is_file() and path.name != KEY_FILE:
                    content = path.read_bytes()
                    if content[:4] == b"\x28\xb5\x2f\xfd":
                        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
                    yield f"file {path.name}", content
        for url in self._databases:
            yield from _rows(url)


def _ways_to_write(secret: str) -> list[bytes]:
    whole = secret.encode()
    # The middle of one alone, and other ways to write it.
    middle = whole[len(whole) // 4 : len(whole) // 4 + 40] if len(whole) > 60 else whole
    return [middle, base64.b64encode(whole)[:40], whole.hex().encode()[:60]]


def _rows(url: str) -> Iterator[tuple[str, bytes]]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        tables = connection.execute(
            sa.text(
                "select format('%I.%I', table_schema, table_name) from information_schema.tables "
                "where table_type = 'BASE TABLE' and table_schema not in ('information_schema', 'pg_catalog')"
            )
        ).scalars()
        for table in list(tables):
            values = (
                bytes(value) if isinstance(value, memoryview | bytes) else str(value).encode()
                for row in connection.exec_driver_sql(f"select * from {table}")
                for value in row
            )
            yield f"table {table}", b"\n".join(values)


@pytest.fixture
def search(
    settings: Settings,
    warehouse: Warehouse,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Search:
    """Nothing that dlt and dbt leave in their folders is thrown away, and everything is logged."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(load, "shutil", type("shutil", (), {"rmtree": staticmethod(lambda *_, **__: None)}))
    kept = type(
        "tempfile",
        (),
        {
            "TemporaryDirectory": staticmethod(
                lambda prefix: contextlib.nullcontext(tempfile.mkdtemp(prefix=prefix))
            )
        },
    )
    monkeypatch.setattr(canonical, "tempfile", kept)
    caplog.set_level(logging.DEBUG)
    databases = [
        each.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
        for each in (warehouse.url, warehouse.dagster_url)
    ]
    found = Search([settings.home_path, temporary], databases, caplog)
    real = OAuthServer._issue

    def issue(self: OAuthServer, kind: Any, claims: dict[str, Any], seconds: int | None) -> str:
        token = real(self, kind, claims, seconds)
        found.secrets.add(token)
        return token

    monkeypatch.setattr(OAuthServer, "_issue", issue)
    return found


def drive(settings: Settings, warehouse: Warehouse, sandbox: RunningSandbox, search: Search) -> None:
    """Connecting, syncing, renewing, rotating, disconnecting; and each of it going wrong."""
    vault = open_vault(settings)
    search.secrets |= set((settings.home_path / KEY_FILE).read_text().split())
    with warehouse.engine.begin() as connection:
        ensure_user(connection, "ada", "Europe/London")
    # The way of people, a denied and a forged one first.
    connecting = Connecting(settings, warehouse, "google_health", "ada")
    for choice in ({"decision": "deny"}, {"login_hint": "ada"}, {"login_hint": "ada", "spoil": "yes"}):
        page = httpx.URL(connecting._begin(BACK))
        search.secrets.add(page.params["state"])
        with _unlogged():  # the test's own browser
            answer = httpx.get(page.copy_merge_params(choice)).headers["location"]
        with contextlib.suppress(RuntimeError):
            complete(
                warehouse,
                vault,
                settings,
                answer.replace("code=", "code=x" if "spoil" in choice else "code="),
            )
    accounts = {}
    for name in ("oura", "withings", "librelinkup", "polar"):
        known = httpx.get(f"{sandbox.url}/__accounts/{name}/ada").json()
        if "password" in known:
            search.secrets.add(known["password"])
        accounts[name] = connect_sandbox_person(settings, warehouse, vault, get(name), "ada")
    assert run_job("sync_oura", DAY, settings, warehouse).success
    rotate(warehouse.engine, settings)
    search.secrets |= set((settings.home_path / KEY_FILE).read_text().split())
    refresh = refresher(endpoint_of(get("oura"), settings))
    current = access_token(warehouse.engine, vault, accounts["oura"], refresh)
    order(sandbox.url, "server_error", status=502, path_contains="oauth/token")
    with contextlib.suppress(RuntimeError):
        access_token(warehouse.engine, vault, accounts["oura"], refresh, rejected=current)
    access_token(warehouse.engine, vault, accounts["oura"], refresh, rejected=current)
    # A run that meets a grant that is no more.
    httpx.post(f"{sandbox.url}/__revoke", json={"provider": "oura", "handle": "ada"}).raise_for_status()
    derived = ["staging_oura", "health", "health_internal", "health_catalogue"]
    run_job("sync_oura", DAY, settings, warehouse, without=derived)
    with warehouse.engine.connect() as connection:
        told = connection.exec_driver_sql(
            "select status from ops.provider_accounts where provider = 'oura'"
        ).scalar_one()
        user_id = connection.exec_driver_sql("select user_id from ops.users").scalar_one()
    assert told == "error"
    # One who is on their way as the search begins.
    search.secrets.add(httpx.URL(connecting._begin(BACK)).params["state"])
    for name in ("google_health", *accounts):
        disconnect(warehouse, vault, settings, get(name), user_id)


def drive_receiver(settings: Settings, warehouse: Warehouse, search: Search) -> None:
    """A person's own program, a link, and somebody who comes back twice."""
    hosted = settings.model_copy(update={"receiver_url": "http://testserver"})
    mine = bearer(warehouse, "ada")
    search.secrets.add(mine["Authorization"].split("_", 2)[2])
    with api_client(hosted, warehouse) as client, _unlogged():
        link = client.post("/v1/connections/whoop/link", headers=mine).json()["url"]
        search.secrets.add(link.partition("link=")[2])
        page = httpx.URL(client.post(link, follow_redirects=False).headers["location"])
        search.secrets.add(page.params["state"])
        answer = httpx.get(page.copy_merge_params({"login_hint": "ada"})).headers["location"]
        assert [client.get(answer).status_code for _ in range(2)] == [200, 400]
        for token in (mine["Authorization"], mine["Authorization"][:-1]):
            client.get("/v1/health/ada/daily", headers={"Authorization": token})
            client.post("/v1/connections/whoop/disconnect", headers={"Authorization": token})


@pytest.mark.slow
def test_no_token_lies_anywhere_and_the_search_would_find_it(
    settings: Settings,
    warehouse: Warehouse,
    sandbox: RunningSandbox,
    search: Search,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setenv("HEALTH_PIPELINE_SANDBOX_URL", sandbox.url)
    boxed = settings.model_copy(update={"sandbox_url": sandbox.url})
    with search.watching_processes():
        drive(boxed, warehouse, sandbox, search)
        drive_receiver(boxed, warehouse, search)
    captured = capfdbinary.readouterr()
    search.printed = captured.out + captured.err
    names, found = search.hits()
    assert found == []
    assert {name.split()[0] for name in names} == {"log", "printed", "process", "file", "table"}
    assert {"table public.event_logs", "table public.runs", "table ops.oauth_states"} <= names
    assert {"file manifest.json", "file run_results.json", "file state.json", "file dagster.yaml"} <= names, (
        names
    )
    assert len(search.secrets) > 15

    # The search is worth something: it finds one that is put there.
    canary = sorted(search.secrets, key=len)[-1]
    logging.getLogger("health_pipeline.connections").info("renewed %s", canary)
    (settings.home_path / "left.json").write_text(f'{{"token": "{canary[8:]}"}}')
    search.arguments.add(f"curl\0-H\0Authorization: Bearer {canary}".encode())
    search.printed += base64.b64encode(canary.encode())
    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.text("update ops.provider_accounts set last_error = :it"), {"it": f"no: {canary}"}
        )
    dagster = sa.create_engine(search._databases[1], poolclass=sa.NullPool)
    with dagster.begin() as connection:
        connection.execute(
            sa.text("update event_logs set event = event || :it where id = (select max(id) from event_logs)"),
            {"it": canary},
        )
    assert search.hits()[1] == [
        "file left.json",
        "log",
        "printed",
        "process arguments",
        "table ops.provider_accounts",
        "table public.event_logs",
    ]
