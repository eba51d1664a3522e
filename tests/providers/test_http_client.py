"""The API client against a real HTTP server on this machine; only the clock and the waiting are made up."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from health_pipeline.providers.base import Budget
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    CircuitBreaker,
    CircuitOpenError,
    PermissionMissingError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RateLimiter,
    RequestRejectedError,
)

CANARY = "canary-3f1c"
OK = (200, {}, b'{"data": []}')


class Time:
    """Epoch seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


class Server:
    """Answers with what is put into `answers`, one a request; the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[tuple[str, dict[str, list[str]], str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                outer.requests.append((url.path, parse_qs(url.query), self.headers["Authorization"]))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if callable(answer):
                    answer(self)
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def cut_connection(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


def cut_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [{"id": "half')


def cut_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'8\r\n{"data":\r\n')


def broken_gzip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", "9")
    handler.end_headers()
    handler.wfile.write(b"not gzip!")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def make_client(server: Server, time: Time) -> Iterator[Callable[..., ApiClient]]:
    clients = []

    def make(access_token: Callable[[bool], str] = lambda _: "token", **options: Any) -> ApiClient:
        options.setdefault("breaker", CircuitBreaker(clock=time.clock))
        client = ApiClient("oura", server.url, access_token, sleep=time.sleep, clock=time.clock, **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def test_get_sends_token_and_parameters_and_returns_the_body_as_it_came(server, make_client):
    server.answers = [(200, {"X-Thing": "1"}, b' {"data":  [1]}\n')]
    with make_client() as client:
        response = client.get("/v2/x", {"start": "2026-11-01T10:00:00+00:00", "next_token": None})
    assert response.content == b' {"data":  [1]}\n'
    assert response.headers["X-Thing"] == "1"
    assert server.requests == [("/v2/x", {"start": ["2026-11-01T10:00:00+00:00"]}, "Bearer token")]


def test_base_url_with_a_path_keeps_it(server, time):
    server.answers = [OK]
    with ApiClient("oura", f"{server.url}/sandbox/oura", lambda _: "t", sleep=time.sleep) as client:
        client.get("/v2/x")
    assert server.requests[0][0] == "/sandbox/oura/v2/x"


def test_absolute_url_is_followed_on_the_same_host_only(server, make_client):
    server.answers = [OK]
    client = make_client()
    client.get(f"{server.url}/next?page=2")
    assert server.requests[0][:2] == ("/next", {"page": ["2"]})
    with pytest.raises(RequestRejectedError, match="no token is sent there"):
        client.get("http://evil.example/next?page=2")
    assert len(server.requests) == 1


def test_redirect_is_not_followed(server, make_client):
    server.answers = [(302, {"Location": "http://evil.example/"}, b"")]
    with pytest.raises(RequestRejectedError):
        make_client().get("/x")
    assert len(server.requests) == 1


def test_401_renews_the_token_once(server, make_client, time):
    server.answers = [(401, {}, b""), OK]
    asked: list[bool] = []

    def access_token(force_refresh: bool) -> str:
        asked.append(force_refresh)
        return "new" if force_refresh else "old"

    assert make_client(access_token).get("/x").status_code == 200
    assert asked == [False, True]
    assert [request[2] for request in server.requests] == ["Bearer old", "Bearer new"]
    assert time.sleeps == []


def test_401_after_renewal_says_reconnect(server, make_client):
    server.answers = [(401, {}, b"")]
    with pytest.raises(AuthorizationError, match="reconnect the account") as caught:
        make_client().get("/v2/x")
    assert len(server.requests) == 2
    assert (caught.value.provider, caught.value.status, caught.value.path) == ("oura", 401, "/v2/x")


def test_a_call_renews_only_once_even_over_server_errors(server, make_client):
    server.answers = [(401, {}, b""), (500, {}, b""), OK]
    asked: list[bool] = []
    make_client(lambda force: asked.append(force) or "t").get("/x")
    assert asked == [False, True, False]


def test_error_of_the_token_supplier_passes_through(server, make_client):
    def access_token(force_refresh: bool) -> str:
        raise LookupError("no such account")

    with pytest.raises(LookupError):
        make_client(access_token).get("/x")
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, PermissionMissingError), (400, RequestRejectedError), (404, RequestRejectedError)],
)
def test_permanent_refusals_are_not_repeated(server, make_client, time, status, error):
    server.answers = [(status, {}, b"")]
    with pytest.raises(error) as caught:
        make_client().get("/x")
    assert caught.value.status == status
    assert len(server.requests) == 1
    assert time.sleeps == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "17"},
        {"Retry-After": format_datetime(dt.datetime.fromtimestamp(1_790_000_017, dt.UTC), usegmt=True)},
        {"X-RateLimit-Reset": "1790000017"},
        {"X-RateLimit-Reset": "17"},
        {"Retry-After": "17", "X-RateLimit-Reset": "1790000099"},
        {"Retry-After": "soon", "X-RateLimit-Reset": "17"},
    ],
)
def test_429_waits_as_long_as_the_provider_asks(server, make_client, time, headers):
    server.answers = [(429, headers, b""), OK]
    assert make_client().get("/x").status_code == 200
    assert 17 <= sum(time.sleeps) <= 19


def test_429_beyond_the_longest_wait_ends_at_once_and_says_when(server, make_client, time):
    server.answers = [(429, {"Retry-After": "900"}, b"")]
    with pytest.raises(RateLimitedError, match="ask again after") as caught:
        make_client(max_wait=120).get("/x")
    assert caught.value.retry_at == dt.datetime.fromtimestamp(time.now + 900, dt.UTC)
    assert len(server.requests) == 1
    assert time.sleeps == []


def test_429_for_ever_is_bounded(server, make_client, time):
    server.answers = [(429, {"Retry-After": "1"}, b"")]
    with pytest.raises(RateLimitedError):
        make_client(max_attempts=4).get("/x")
    assert len(server.requests) == 4
    assert sum(time.sleeps) <= 120


def test_429_of_the_application_holds_other_users_back(server, make_client, time):
    server.answers = [(429, {"Retry-After": "30", "X-RateLimit-Tier": "application"}, b""), OK]
    limiter = RateLimiter(clock=time.clock)
    with pytest.raises(RateLimitedError):
        make_client(limiter=limiter, max_wait=5).get("/one")
    assert time.sleeps == []
    make_client(limiter=limiter).get("/two")
    assert time.sleeps == [30]
    assert [request[0] for request in server.requests] == ["/one", "/two"]


def test_application_wait_that_is_too_long_sends_nothing(server, make_client, time):
    server.answers = [OK]
    limiter = RateLimiter(clock=time.clock)
    limiter.pause_until(time.now + 500)
    with pytest.raises(RateLimitedError) as caught:
        make_client(limiter=limiter, max_wait=60).get("/x")
    assert caught.value.retry_at == dt.datetime.fromtimestamp(time.now + 500, dt.UTC)
    assert server.requests == []


def test_429_of_one_token_leaves_other_users_alone(server, make_client, time):
    server.answers = [(429, {"Retry-After": "30", "X-RateLimit-Tier": "access_token"}, b""), OK]
    limiter = RateLimiter(clock=time.clock)
    with pytest.raises(RateLimitedError):
        make_client(limiter=limiter, max_wait=5).get("/one")
    make_client(limiter=limiter).get("/two")
    assert time.sleeps == []


def test_budget_spaces_requests_of_all_clients(server, make_client, time):
    server.answers = [OK]
    limiter = RateLimiter(Budget(3, 60), clock=time.clock)
    clients = [make_client(limiter=limiter) for _ in range(2)]
    started = time.now
    for number in range(7):
        clients[number % 2].get("/x")
    assert len(server.requests) == 7
    assert time.now - started == pytest.approx(120)


def test_budget_is_never_overspent_by_threads():
    now = 1_000.0
    limiter = RateLimiter(Budget(100, 60), clock=lambda: now)
    granted: list[float] = []

    def spend() -> None:
        granted.extend(wait for _ in range(50) if (wait := limiter.reserve()) == 0)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 100


@pytest.mark.parametrize("failure", [(503, {}, b""), cut_connection, cut_body, cut_chunks, broken_gzip])
def test_server_errors_and_cut_answers_are_tried_again(server, make_client, time, failure):
    server.answers = [failure, failure, OK]
    assert make_client().get("/x").content == b'{"data": []}'
    assert len(server.requests) == 3
    assert len(time.sleeps) == 2


def test_503_with_retry_after_is_obeyed(server, make_client, time):
    server.answers = [(503, {"Retry-After": "40"}, b""), OK]
    make_client().get("/x")
    assert 40 <= sum(time.sleeps) <= 41


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [((500, {}, b""), 500, "server error 500"), (cut_body, None, "RemoteProtocolError")],
)
def test_lasting_failure_is_bounded_and_typed(server, make_client, time, failure, status, words):
    server.answers = [failure]
    with pytest.raises(ProviderUnavailableError, match=words) as caught:
        make_client(max_attempts=5).get("/x")
    assert caught.value.status == status
    assert len(server.requests) == 5
    assert all(wait <= limit for wait, limit in zip(time.sleeps, [1, 2, 4, 8], strict=True))


def test_nobody_listening_is_unavailable(time):
    server = Server()
    server.close()
    with (
        ApiClient("oura", server.url, lambda _: "t", sleep=time.sleep) as client,
        pytest.raises(ProviderUnavailableError, match="ConnectError"),
    ):
        client.get("/x")
    assert len(time.sleeps) == 4


def test_silent_and_dripping_servers_are_cut_off(server, make_client):
    release = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        release.wait(10)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not release.wait(0.05):
            handler.wfile.write(b" ")

    started = monotonic()
    try:
        server.answers = [silent, OK]
        assert make_client(timeout=0.2).get("/x").status_code == 200
        server.answers = [drip, OK]
        assert make_client(response_deadline=0.3).get("/x").status_code == 200
    finally:
        release.set()
    assert monotonic() - started < 5


def test_oversized_answer_is_refused(server, make_client):
    server.answers = [(200, {}, b"x" * 5000)]
    with pytest.raises(RequestRejectedError, match="shorter window"):
        make_client(max_response_bytes=1000).get("/x")


def test_breaker_ends_an_outage_early_and_closes_after_an_answer(server, make_client, time):
    breaker = CircuitBreaker(threshold=3, cool_down_seconds=300, clock=time.clock)
    clients = [make_client(breaker=breaker, max_attempts=1) for _ in range(5)]
    server.answers = [(500, {}, b"")]
    for client in clients[:3]:
        with pytest.raises(ProviderUnavailableError) as caught:
            client.get("/x")
        assert not isinstance(caught.value, CircuitOpenError)
    for client in clients[3:]:
        with pytest.raises(CircuitOpenError, match="3 failed calls in a row"):
            client.get("/x")
    assert len(server.requests) == 3

    time.now += 301
    with pytest.raises(ProviderUnavailableError):  # The trial fails: closed to all for another while.
        clients[0].get("/x")
    with pytest.raises(CircuitOpenError):
        clients[1].get("/x")
    assert len(server.requests) == 4

    time.now += 301
    server.answers = [OK]
    for client in clients:
        client.get("/x")
    assert len(server.requests) == 9


def test_breaker_lets_one_trial_out_and_stops_its_retries(server, make_client, time):
    breaker = CircuitBreaker(threshold=1, cool_down_seconds=300, clock=time.clock)
    server.answers = [(500, {}, b"")]
    with pytest.raises(ProviderUnavailableError):
        make_client(breaker=breaker, max_attempts=1).get("/x")
    time.now += 301
    with pytest.raises(CircuitOpenError):
        make_client(breaker=breaker, max_attempts=5).get("/x")
    assert len(server.requests) == 2


def test_refusals_of_one_user_do_not_open_the_breaker(server, make_client, time):
    breaker = CircuitBreaker(threshold=2, clock=time.clock)
    client = make_client(breaker=breaker, max_attempts=1)
    for answer in [(500, {}, b""), (403, {}, b""), (500, {}, b""), (401, {}, b""), (500, {}, b"")]:
        server.answers = [answer]
        with pytest.raises(ProviderError) as caught:
            client.get("/x")
        assert not isinstance(caught.value, CircuitOpenError)


def test_no_token_query_or_body_in_logs_and_errors(server, make_client, caplog):
    secret_body = f'{{"detail": "{CANARY}"}}'.encode()
    answers = [
        (200, {}, secret_body),
        (400, {}, secret_body),
        (401, {}, secret_body),
        (403, {}, secret_body),
        (429, {"Retry-After": "9999"}, secret_body),
        (500, {}, secret_body),
        cut_body,
        cut_connection,
    ]
    told = []
    with caplog.at_level(logging.DEBUG):
        for answer in answers:
            server.answers = [answer]
            client = make_client(lambda _: CANARY, limiter=RateLimiter())
            try:
                client.get("/v2/x", {"next_token": CANARY})
            except ProviderError as error:
                told += ["".join(traceback.format_exception(error)), repr(error), str(vars(error))]
    assert len(told) == 3 * 7
    formatter = logging.Formatter("%(name)s %(message)s")
    logs = [formatter.format(record) for record in caplog.records if record.name != "asyncio"]
    ours = [line for line in logs if line.startswith("health_pipeline")]
    assert any("oura GET /v2/x -> 200 in " in line for line in ours)
    assert any("oura GET /v2/x -> RemoteProtocolError in " in line for line in ours)
    assert not [text for text in logs + told if CANARY in text]
