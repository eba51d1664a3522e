"""The switches: faults, revisions, the clock, and the books the sandbox keeps."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sandbox_client import Connect, exchange

from health_pipeline.sandbox.app import environment_clock
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

ROOT = Path(__file__).parents[2]
DATA = "/oura/v2/usercollection"
WEEK = {"start_date": "2026-09-01", "end_date": "2026-09-08"}


@pytest.fixture
def ada(own_sandbox: RunningSandbox, connect: Connect) -> httpx.Client:
    return connect(own_sandbox, "ada")


def fault(client: httpx.Client, kind: str, **rest: Any) -> dict[str, Any]:
    answer = client.post("/__faults", json={"provider": "oura", "kind": kind, **rest})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_rate_limit_tells_when_to_come_back(ada: httpx.Client) -> None:
    fault(ada, "rate_limit", count=2, retry_after=7)
    for _ in range(2):
        answer = ada.get(f"{DATA}/sleep", params=WEEK)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "7"
        names = {name for name in answer.headers if name.startswith("x-ratelimit")}
        assert names == {f"x-ratelimit-{part}" for part in ("limit", "window", "reset", "tier")}
        assert answer.json()["status"] == 429
    assert ada.get(f"{DATA}/sleep", params=WEEK).status_code == 200


def test_a_fault_keeps_to_its_path_and_its_person(
    ada: httpx.Client, own_sandbox: RunningSandbox, connect: Connect
) -> None:
    ben = connect(own_sandbox, "ben")
    fault(ada, "server_error", count=None, path_contains="daily_sleep", handle="ada", status=502)
    assert ada.get(f"{DATA}/daily_sleep").status_code == 502
    assert ada.get(f"{DATA}/daily_sleep").status_code == 502
    assert ada.get(f"{DATA}/daily_stress").status_code == 200
    assert ben.get(f"{DATA}/daily_sleep").status_code == 200
    assert ada.get("/__faults").json()["faults"][0]["hits"] == 2
    assert ada.delete("/__faults").status_code == 204
    assert ada.get(f"{DATA}/daily_sleep").status_code == 200


def test_the_token_endpoint_can_fail_too(ada: httpx.Client) -> None:
    fault(ada, "server_error", path_contains="oauth/token")
    assert exchange(ada, grant_type="refresh_token", refresh_token="x").status_code == 503


def test_unauthorized(ada: httpx.Client) -> None:
    fault(ada, "unauthorized", handle="ada")
    assert ada.get(f"{DATA}/sleep").status_code == 401
    assert ada.get(f"{DATA}/sleep").status_code == 200


def test_slow(ada: httpx.Client) -> None:
    fault(ada, "slow", delay=0.4)
    began = time.monotonic()
    assert ada.get(f"{DATA}/sleep").status_code == 200
    assert time.monotonic() - began >= 0.4


def test_a_cut_breaks_the_connection_in_the_body(ada: httpx.Client) -> None:
    fault(ada, "cut")
    with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|without sending complete"):
        ada.get(f"{DATA}/sleep", params=WEEK)
    assert len(ada.get(f"{DATA}/sleep", params=WEEK).json()["data"]) > 3


def test_malformed_is_half_a_body_that_claims_to_be_whole(ada: httpx.Client) -> None:
    whole = ada.get(f"{DATA}/sleep", params=WEEK).content
    fault(ada, "malformed")
    half = ada.get(f"{DATA}/sleep", params=WEEK)
    assert half.status_code == 200
    assert half.content == whole[: len(whole) // 2]
    with pytest.raises(json.JSONDecodeError):
        half.json()


def test_drift_changes_fields(ada: httpx.Client) -> None:
    before = ada.get(f"{DATA}/daily_sleep", params=WEEK).json()["data"]
    fault(ada, "drift", drop=["timestamp"], retype=["score"])
    after = ada.get(f"{DATA}/daily_sleep", params=WEEK).json()["data"]
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert new["sandbox_drift"] == {"added": True}
        assert "timestamp" not in new
        assert new["score"] == str(old["score"])


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"provider": "moon", "kind": "slow"}, 404, "it has "),
        ({"provider": "oura", "kind": "slow", "handle": "zoe"}, 404, "people: ada, ben"),
        ({"provider": "oura", "kind": "flood"}, 422, "rate_limit"),
        ({"provider": "oura", "kind": "slow", "cout": 3}, 422, "cout"),
    ],
)
def test_a_fault_that_could_never_hit_is_refused(
    ada: httpx.Client, body: dict[str, Any], status: int, words: str
) -> None:
    answer = ada.post("/__faults", json=body)
    assert answer.status_code == status
    assert words in answer.text


def test_requests_are_counted(ada: httpx.Client) -> None:
    ada.delete("/__requests")
    ada.get(f"{DATA}/sleep")
    ada.get(f"{DATA}/sleep")
    ada.get(f"{DATA}/sleep", params={"start_date": "x"})
    rows = ada.get("/__requests").json()["requests"]
    assert [(row["provider"], row["path"], row["status"], row["count"]) for row in rows] == [
        ("oura", f"{DATA}/sleep", 200, 2),
        ("oura", f"{DATA}/sleep", 422, 1),
    ]


def sleep_of(client: httpx.Client, kind: str, day: str) -> dict[str, Any]:
    window = {"start_date": "2026-09-01", "end_date": "2026-09-20"}
    found = client.get(f"{DATA}/{kind}", params=window).json()["data"]
    return next(d for d in found if d["day"] == day and d.get("type") not in ("rest", "sleep", "late_nap"))


def test_a_revised_night_has_the_same_id_and_other_values(ada: httpx.Client) -> None:
    day = "2026-09-10"
    kinds = ("sleep", "daily_sleep", "daily_readiness")
    before = {kind: sleep_of(ada, kind, day) for kind in kinds}
    other = sleep_of(ada, "sleep", "2026-09-11")
    answer = ada.post("/__revise", json={"provider": "oura", "handle": "ada", "day": day})
    assert set(answer.json()["revised"]) >= {d["id"] for d in before.values()}
    after = {kind: sleep_of(ada, kind, day) for kind in kinds}
    old, new = before["sleep"], after["sleep"]
    assert {kind: d["id"] for kind, d in after.items()} == {kind: d["id"] for kind, d in before.items()}
    moved = dt.datetime.fromisoformat(new["bedtime_start"]) - dt.datetime.fromisoformat(old["bedtime_start"])
    assert moved == dt.timedelta(minutes=25)
    assert new["bedtime_end"] == old["bedtime_end"]
    assert new["time_in_bed"] == old["time_in_bed"] - 1500
    assert new["heart_rate"]["items"] == old["heart_rate"]["items"][5:]
    assert new["sleep_phase_30_sec"] == old["sleep_phase_30_sec"][50:]
    assert 30 * sum(c != "4" for c in new["sleep_phase_30_sec"]) == new["total_sleep_duration"]
    assert (old["sleep_analysis_reason"], new["sleep_analysis_reason"]) == (
        "foreground_sleep_analysis",
        "bedtime_edit",
    )
    assert after["daily_sleep"]["score"] != before["daily_sleep"]["score"]
    assert after["daily_readiness"] != before["daily_readiness"]
    assert sleep_of(ada, "sleep", "2026-09-11") == other
    ada.post("/__revise", json={"provider": "oura", "handle": "ada", "day": day})
    assert sleep_of(ada, "sleep", day)["time_in_bed"] == old["time_in_bed"] - 3000


def test_a_deleted_night_says_so(ada: httpx.Client) -> None:
    day = "2026-09-10"
    before = sleep_of(ada, "sleep", day)
    ada.post("/__revise", json={"provider": "oura", "handle": "ada", "day": day, "kind": "delete"})
    after = sleep_of(ada, "sleep", day)
    assert (after["id"], after["type"]) == (before["id"], "deleted")
    assert sleep_of(ada, "daily_sleep", day)["score"] is None
    assert ada.get(f"{DATA}/sleep/{before['id']}").json() == after


def test_a_revision_of_nothing_is_404(ada: httpx.Client) -> None:
    body = {"provider": "oura", "handle": "ada", "day": "2020-01-01"}
    assert ada.post("/__revise", json=body).status_code == 404
    assert ada.post("/__revise", json=body | {"handle": "zoe"}).status_code == 404


def test_the_clock_can_be_set(ada: httpx.Client) -> None:
    window = {"start_date": "2026-11-18", "end_date": "2026-12-01"}
    assert len(ada.get(f"{DATA}/daily_stress", params=window).json()["data"]) == 3
    answer = ada.put("/__now", json={"now": "2026-11-21T13:00:00+01:00"})
    assert answer.json() == {"now": "2026-11-21T12:00:00+00:00"}
    later = ada.put("/__now", json={"now": "2026-11-22T05:00:00Z"})
    assert later.status_code == 200
    assert len(ada.get(f"{DATA}/daily_stress", params=window).json()["data"]) == 4
    assert ada.put("/__now", json={"now": "2026-11-22T05:00:00"}).status_code == 422


def test_the_environment_fixes_the_clock() -> None:
    clock = environment_clock({"HEALTH_PIPELINE_SANDBOX_NOW": "2026-01-02T03:04:05Z"})
    assert clock() == dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert abs(environment_clock({})() - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=5)
    for bad in ("noon", "2026-01-02T03:04:05"):
        with pytest.raises(ValueError, match="HEALTH_PIPELINE_SANDBOX_NOW"):
            environment_clock({"HEALTH_PIPELINE_SANDBOX_NOW": bad})


def test_truth_and_people_over_http(ada: httpx.Client) -> None:
    assert [p["handle"] for p in ada.get("/__people").json()["people"]] == [
        "ada",
        "ben",
        "chen",
        "dana",
        "eli",
    ]
    answer = ada.get("/__truth/ben", params={"start": "2026-08-23", "end": "2026-08-26"}).json()
    assert answer["handle"] == "ben"
    assert [day["zone"] for day in answer["days"]] == ["Europe/Berlin"] * 2 + ["America/New_York"] * 2
    assert ada.get("/__truth/zoe", params={"start": "2026-08-23", "end": "2026-08-26"}).status_code == 404
    assert ada.get("/__truth/ben", params={"start": "2026-08-23", "end": "2026-08-22"}).status_code == 400


def test_the_command_prints_its_address_and_stops_when_told() -> None:
    command = [sys.executable, "-m", "health_pipeline.sandbox.server", "--now", "2026-05-01T00:00:00Z"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"provider sandbox at (http://127\.0\.0\.1:\d+)\n", line)
        assert match, line
        health = httpx.get(f"{match[1]}/healthz").json()
        assert (health["status"], health["now"]) == ("ok", "2026-05-01T00:00:00+00:00")
        assert "oura" in health["providers"]
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    assert (out, err) == ("", "")


def test_a_taken_port_is_named() -> None:
    with run_in_thread() as running:
        port = httpx.URL(running.url).port
        assert port is not None
        with (
            pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"),
            run_in_thread(port=port),
        ):
            pass


def test_it_calls_a_receiver_as_the_vendor_would(own_sandbox: RunningSandbox) -> None:
    received: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        ask = {"provider": "oura", "handle": "ada", "day": "2026-09-10", "secret": "s3"}
        url = f"http://127.0.0.1:{server.server_port}/webhooks/oura"
        answer = httpx.post(f"{own_sandbox.url}/__webhooks", json={**ask, "url": url})
        server.shutdown()
    assert answer.json() == {"statuses": [204] * len(received)}
    assert len(received) >= 4
    for path, headers, body in received:
        assert path == "/webhooks/oura"
        proof = hmac.new(b"s3", headers["x-oura-timestamp"].encode() + body, hashlib.sha256).hexdigest()
        assert headers["x-oura-signature"] == proof.upper()
    gone = httpx.post(f"{own_sandbox.url}/__webhooks", json={**ask, "url": url}, timeout=40)
    assert gone.status_code == 502
    nobody = httpx.post(f"{own_sandbox.url}/__webhooks", json={**ask, "provider": "dexcom", "url": url})
    assert (nobody.status_code, nobody.json()["detail"]) == (404, "dexcom calls nobody")
