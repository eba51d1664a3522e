"""LibreLinkUp in the sandbox: its sign-in, its headers, and what people really measured."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sandbox_client import NOW

from health_pipeline.sandbox.glucose import readings
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.routers.librelinkup import password_of
from health_pipeline.sandbox.server import RunningSandbox

APP = {"product": "llu.android", "version": "4.16.0"}
ADA = {"email": "ada@sandbox.example", "password": password_of(person("ada"))}


@pytest.fixture
def client(own_sandbox: RunningSandbox) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{own_sandbox.url}/librelinkup", headers=APP) as client:
        yield client


@pytest.fixture
def ada(sandbox: RunningSandbox) -> Iterator[httpx.Client]:
    headers = sandbox.app.state.apis["librelinkup"].headers_of("ada")
    with httpx.Client(base_url=f"{sandbox.url}/librelinkup/eu2", headers=headers) as client:
        yield client


def patient_of(client: httpx.Client) -> dict[str, Any]:
    (found,) = client.get("/llu/connections").json()["data"]
    return dict(found)


def factory_time(measurement: dict[str, Any]) -> dt.datetime:
    text = measurement["FactoryTimestamp"]
    return dt.datetime.strptime(text, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=dt.UTC)


def test_a_sign_in_elsewhere_is_sent_to_the_accounts_host(client: httpx.Client) -> None:
    answer = client.post("/llu/auth/login", json=ADA).json()
    assert answer == {"status": 0, "data": {"redirect": True, "region": "eu2"}}
    data = client.post("/eu2/llu/auth/login", json=ADA).json()["data"]
    assert data["authTicket"]["expires"] - NOW.timestamp() == 180 * 86_400
    assert {"id", "country"} == set(data["user"])


def test_three_wrong_passwords_lock_the_account_for_a_while(
    own_sandbox: RunningSandbox, client: httpx.Client
) -> None:
    wrong = {**ADA, "password": "?"}
    statuses = [client.post("/eu2/llu/auth/login", json=wrong).json()["status"] for _ in range(3)]
    assert statuses == [2, 2, 429]
    locked = client.post("/eu2/llu/auth/login", json=ADA).json()
    assert locked["data"]["data"]["lockout"] == 300
    own_sandbox.app.state.sandbox.fix_time(NOW + dt.timedelta(seconds=301))
    assert client.post("/eu2/llu/auth/login", json=ADA).json()["status"] == 0


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"version": "4.15.9"}, 403, {"data": {"minimumVersion": "4.16.0"}, "status": 920}),
        ({"account-id": None}, 400, {"message": "RequiredHeaderMissing"}),
        ({"product": None}, 400, {"message": "RequiredHeaderMissing"}),
    ],
)
def test_headers_of_the_app_are_wanted(
    ada: httpx.Client, change: dict[str, str | None], status: int, message: dict[str, Any]
) -> None:
    headers = {name: value for name, value in {**ada.headers, **change}.items() if value is not None}
    answer = httpx.get(f"{ada.base_url}llu/connections", headers=headers)
    assert (answer.status_code, answer.json()) == (status, message)


def test_tokens_are_for_their_own_host_and_account(sandbox: RunningSandbox, ada: httpx.Client) -> None:
    other = httpx.get(f"{sandbox.url}/librelinkup/us/llu/connections", headers=ada.headers)
    assert other.status_code == 401
    mistaken = httpx.get(f"{ada.base_url}llu/connections", headers={**ada.headers, "account-id": "0" * 64})
    assert mistaken.status_code == 401
    unknown = ada.get("/llu/connections/nobody/graph").json()
    assert unknown["message"] == "couldNotLoadPatient"


def test_the_graph_is_what_the_sensor_measured_in_twelve_hours(ada: httpx.Client) -> None:
    patient = patient_of(ada)
    data = ada.get(f"/llu/connections/{patient['patientId']}/graph").json()["data"]
    seen = readings(person("ada"), dt.date(2026, 11, 20), dt.date(2026, 11, 21), until=NOW)
    real = dict(zip(seen.time.tolist(), seen.mg_dl.tolist(), strict=True))
    times = [factory_time(point) for point in data["graphData"]]
    assert 120 < len(times) < 145
    assert times == sorted(times)
    assert NOW - dt.timedelta(hours=12) < times[0]
    assert times[-1] <= NOW - dt.timedelta(minutes=15)
    for point, time in zip(data["graphData"], times, strict=True):
        assert point["ValueInMgPerDl"] == real[int(time.timestamp())]
        assert point["Value"] == pytest.approx(point["ValueInMgPerDl"] / 18.0156, abs=0.051)
        assert (point["type"], point["GlucoseUnits"], "TrendArrow" in point) == (0, 0, False)
    present = data["connection"]["glucoseMeasurement"]
    assert NOW - factory_time(present) < dt.timedelta(minutes=6)
    assert present["TrendArrow"] in range(1, 6)


def test_a_scan_stays_in_the_logbook_for_two_weeks(own_sandbox: RunningSandbox) -> None:
    headers = own_sandbox.app.state.apis["librelinkup"].headers_of("dana")
    with httpx.Client(base_url=f"{own_sandbox.url}/librelinkup/us", headers=headers) as client:
        path = f"/llu/connections/{patient_of(client)['patientId']}/logbook"
        first = client.get(path).json()["data"]
        own_sandbox.app.state.sandbox.fix_time(NOW + dt.timedelta(days=1))
        second = client.get(path).json()["data"]
    assert len(first) > 20
    kept = [scan for scan in first if factory_time(scan) > NOW - dt.timedelta(days=12)]
    assert all(scan in second for scan in kept)
    assert min(factory_time(scan) for scan in first) > NOW - dt.timedelta(days=14)


def test_truth_is_of_what_is_told(sandbox: RunningSandbox, ada: httpx.Client) -> None:
    data = ada.get(f"/llu/connections/{patient_of(ada)['patientId']}/graph").json()["data"]
    values = [point["ValueInMgPerDl"] for point in data["graphData"]]
    api = sandbox.app.state.apis["librelinkup"]
    (true,) = api.truth("ada", dt.date(2026, 11, 19), dt.date(2026, 11, 21))
    assert true.local_date == dt.date(2026, 11, 21)
    assert true.value == pytest.approx(sum(values) / len(values))
    assert api.truth("ben", dt.date(2026, 11, 19), dt.date(2026, 11, 21)) == []


def test_what_is_missing_says_so(sandbox: RunningSandbox) -> None:
    asked = {"provider": "librelinkup", "handle": "ada", "day": "2026-11-20", "kind": "edit"}
    assert httpx.post(f"{sandbox.url}/__revise", json=asked).status_code == 404
    headers = sandbox.app.state.apis["librelinkup"].headers_of("ben")
    with httpx.Client(base_url=f"{sandbox.url}/librelinkup/eu2", headers=headers) as ben:
        assert ben.get("/llu/connections").json()["data"] == []
