"""What a client may take of the receiver: rate, size, time, connections, memory. Over real sockets."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from calling import SECRET, address, calls_of, rows, send
from starlette.testclient import TestClient

from health_pipeline.raw.store import RawStore
from health_pipeline.receiver import server
from health_pipeline.receiver.app import MAX_BODY_BYTES, create_app
from health_pipeline.receiver.limits import Bodies, TokenBucket
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.warehouse.connection import Warehouse

HEAD = b"POST /webhooks/oura HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


@dataclass
class Address:
    port: int

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def say(self, text: bytes) -> bytes:
        """The whole answer, until the other side closes."""
        with closing(self.connect()) as connection:
            connection.sendall(text)
            return heard(connection)


def heard(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


@contextmanager
def serving(app: object) -> Iterator[Address]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = uvicorn.Server(server.server_config(app))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not running.started:
            time.sleep(0.01)
        try:
            yield Address(listener.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests of slow clients need not be slow."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.3)
    monkeypatch.setattr("health_pipeline.receiver.app.MAX_BODY_SECONDS", 0.3)


@pytest.fixture
def receiver(warehouse: Warehouse, store: RawStore) -> Iterator[Address]:
    with serving(create_app(warehouse.engine, store, lambda _: [SECRET])) as address:
        yield address


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"POST /webhooks/oura HT",
        HEAD,
        HEAD + b"Content-Length: 9\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\nGET /healthz HTTP",
        b"GET /healthz HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nx",
    ],
    ids=["nothing", "line", "headers", "body", "chunk", "idle", "second", "late body"],
)
def test_a_client_that_keeps_us_waiting_is_cut(short_times: None, receiver: Address, said: bytes) -> None:
    started = time.monotonic()
    answer = receiver.say(said)
    # The body's time, and then that of a connection which has its answer.
    assert time.monotonic() - started < 5
    if b"\r\n\r\n" in said and said.startswith(b"POST"):
        assert b" 408 " in answer.splitlines()[0]
        assert b"too_slow" in answer


def test_bytes_one_at_a_time_do_not_buy_time(short_times: None, receiver: Address) -> None:
    with closing(receiver.connect()) as connection:
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 5:
                connection.sendall(b"X")
                time.sleep(0.02)
        assert time.monotonic() - started < 3


def test_size_is_counted_and_not_believed(receiver: Address, warehouse: Warehouse) -> None:
    large = b"x" * (MAX_BODY_BYTES + 1)
    said = receiver.say(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
    assert b" 413 " in said.splitlines()[0]
    pieces = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(33)) + b"0\r\n\r\n"
    chunked = receiver.say(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces)
    assert b" 413 " in chunked.splitlines()[0]
    # What comes behind a length that says less is no part of the body.
    short = receiver.say(HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}" + large)
    assert short == b"" or b" 400 " in short.splitlines()[0]
    both = HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
    assert b" 400 " in receiver.say(both).splitlines()[0]
    assert rows(warehouse, "select 1 from ops.webhook_events") == []


def test_an_endless_body_is_not_read_for_ever(receiver: Address) -> None:
    with closing(receiver.connect(timeout=30)) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent, piece = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with pytest.raises(OSError):
            while sent < 200 * 1024 * 1024:
                connection.sendall(piece)
                sent += len(piece)
        assert sent < 40 * 1024 * 1024


@pytest.mark.parametrize(
    "more",
    [b"Content-Encoding: gzip\r\n", b"Content-Encoding: identity\r\nContent-Encoding: br\r\n"],
)
def test_compressed_bodies_are_refused_unread(receiver: Address, more: bytes) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    said = HEAD + more + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    answer = receiver.say(said + bomb)
    assert b" 415 " in answer.splitlines()[0]


def test_headers_are_bounded(receiver: Address) -> None:
    answer = receiver.say(HEAD + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n")
    assert answer == b"" or b" 400 " in answer.splitlines()[0]
    address = receiver.say(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n")
    assert address == b"" or b" 400 " in address.splitlines()[0]
    with closing(receiver.connect()) as connection, pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"x" * 65536)
    many = receiver.say(HEAD + b"".join(b"X-%d: x\r\n" % number for number in range(3000)) + b"\r\n")
    assert many == b"" or b" 400 " in many.splitlines()[0]


def test_requests_before_their_answers_are_bounded(receiver: Address) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
    assert receiver.say(one * 4 + b"X").count(b" 204 ") in range(5)
    assert receiver.say(one * 5000).count(b" 204 ") <= 20


def test_those_that_wait_make_room_for_those_that_speak(
    receiver: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    idle = [receiver.connect() for _ in range(30)]
    try:
        for _ in range(5):
            assert httpx.get(f"http://127.0.0.1:{receiver.port}/healthz").status_code == 204
        idle[0].settimeout(5)
        assert heard(idle[0]) == b"", "the one that has waited the longest is cut"
        idle[-1].settimeout(0.05)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)
    finally:
        for connection in idle:
            connection.close()


def resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_flood_of_large_bodies_takes_bounded_memory(receiver: Address) -> None:
    # A hundred bodies of which each is all but sent, in small pieces: held until they are cut.
    piece = b"1\r\nx\r\n" * 20_000 + b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    before = resident_bytes()
    connections = [receiver.connect(timeout=5) for _ in range(100)]
    try:
        for connection in connections:
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            for connection in connections:
                connection.sendall(piece)
        peak = resident_bytes()
        for connection in connections[:90]:
            # All the rest at once, where they have not been refused already.
            try:
                connection.sendall((b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 13)
            except OSError:
                continue
            peak = max(peak, resident_bytes())
        assert httpx.get(f"http://127.0.0.1:{receiver.port}/healthz", timeout=30).status_code == 204
        peak = max(peak, resident_bytes())
    finally:
        for connection in connections:
            connection.close()
    assert peak - before < 200 * 1024 * 1024


def test_large_bodies_share_what_there_is() -> None:
    bodies = Bodies(free=10, shared=100)
    with bodies.body() as first, bodies.body() as second, bodies.body() as small:
        assert first(60) and first(90)
        assert second(30)
        assert not second(31)
        assert small(10)
    with bodies.body() as again:
        assert again(110)
        assert not again(111)


def test_a_bucket_fills_with_time() -> None:
    now = 0.0
    bucket = TokenBucket(2, lambda: now)
    assert [bucket.take() for _ in range(20)] == [0] * 20
    assert bucket.take() == pytest.approx(0.5)
    now = 0.5
    assert bucket.take() == 0
    assert bucket.take() > 0
    now = 1000
    assert [bucket.take() for _ in range(20)] == [0] * 20
    assert bucket.take() > 0
    with pytest.raises(ValueError, match="above 0"):
        TokenBucket(0)


def test_a_provider_that_sends_too_much_is_told_when_to_come_back(
    warehouse: Warehouse, store: RawStore, sandbox: RunningSandbox
) -> None:
    app = create_app(
        warehouse.engine, store, lambda _: [SECRET], sandbox.app.state.sandbox.now, calls_per_second=0.1
    )
    with TestClient(app) as client:
        # What nothing proves uses nothing up.
        for _ in range(3):
            assert client.post("/webhooks/whoop", content=b"{}").status_code == 400
        call = calls_of(sandbox, "whoop")[0]
        assert send(client, "whoop", call).is_success
        answer = send(client, "whoop", call)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many")
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        # Each provider has its own.
        assert send(client, "strava", calls_of(sandbox, "strava")[0]).is_success


def test_what_nothing_proves_costs_no_database(store: RawStore, sandbox: RunningSandbox) -> None:
    class Nothing:
        """An engine that nobody may use."""

        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"the database was asked: {name}")

    app = create_app(Nothing(), store, lambda _: [SECRET], sandbox.app.state.sandbox.now)  # type: ignore[arg-type]
    with TestClient(app) as client:
        for name in ("whoop", "oura", "terra"):
            assert client.post(address(name), content=b"{}").status_code == 400
        assert client.post("/webhooks/strava/guess", content=b"{}").status_code == 404
