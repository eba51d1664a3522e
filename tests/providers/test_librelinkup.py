"""LibreLinkUp: measurements, answers that are errors in disguise, and signing in over HTTP."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from health_pipeline.connections.endpoints import Endpoint, ProviderNotConfiguredError, endpoint_of
from health_pipeline.providers import librelinkup
from health_pipeline.providers.base import Credentials, Parsed, RawDocument, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    RateLimitedError,
    RequestRejectedError,
)
from health_pipeline.providers.librelinkup import PROVIDER
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.routers.librelinkup import password_of
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "cgm_librelinkup"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, 0, tzinfo=dt.UTC)
WINDOW = Window(dt.date(2026, 11, 20), dt.date(2026, 11, 21))

POINT = {
    "FactoryTimestamp": "11/2/2026 12:05:00 AM",
    "Timestamp": "11/1/2026 7:05:00 PM",
    "type": 0,
    "ValueInMgPerDl": 108,
    "Value": 6.0,
    "GlucoseUnits": 0,
    "MeasurementColor": 1,
    "isHigh": False,
    "isLow": False,
}


def parse(entity: str, data: Any) -> Parsed:
    content = data if isinstance(data, bytes) else orjson.dumps({"status": 0, "data": data})
    parsed = librelinkup.parse(RawDocument(entity, content, RECEIVED_AT))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def refusals(parsed: Parsed) -> list[tuple[str, str | None, str]]:
    return [(bad["reason"], bad["field"], bad["location"]) for bad in parsed.quarantine.to_pylist()]


# Parsing -------------------------------------------------------------------------------------------------


def test_a_measurement_is_in_mg_dl_at_the_sensors_instant() -> None:
    connection = {"sensor": {"sn": "SENSOR0001"}, "glucoseMeasurement": {**POINT, "type": 1, "TrendArrow": 5}}
    parsed = parse("graph", {"connection": connection, "graphData": [POINT]})
    history, present = parsed.tables["graph"].to_pylist()
    assert history["factory_time"] == dt.datetime(2026, 11, 2, 0, 5, tzinfo=dt.UTC)
    assert (history["utc_offset_minutes"], history["value_mg_dl"]) == (-300, 108.0)
    assert (history["display_value"], history["display_unit_code"]) == (6.0, 0)
    assert (present["measurement_type"], present["trend_arrow"]) == (1, 5)
    serial = history["sensor_serial"]
    assert serial == present["sensor_serial"] != "SENSOR0001"


def test_a_bad_measurement_goes_alone_with_its_field_named() -> None:
    bad = [
        {**POINT, "FactoryTimestamp": "21/5/2022 1:38:50 PM"},
        {**POINT, "FactoryTimestamp": "5/21/2022 13:38:50 PM"},
        {**POINT, "ValueInMgPerDl": "108"},
        {name: value for name, value in POINT.items() if name != "type"},
        None,
    ]
    parsed = parse("logbook", [POINT, *bad])
    assert (parsed.records_in, parsed.records_loaded) == (6, 1)
    assert refusals(parsed) == [
        ("wrong_type", "FactoryTimestamp", "data[1]"),
        ("wrong_type", "FactoryTimestamp", "data[2]"),
        ("wrong_type", "ValueInMgPerDl", "data[3]"),
        ("missing_field", "type", "data[4]"),
        ("wrong_type", None, "data[5]"),
    ]


def test_new_fields_are_named() -> None:
    assert parse("logbook", [{**POINT, "alarmType": 2}]).notes == ("logbook: new field alarmType",)


@pytest.mark.parametrize("entity", ["graph", "logbook"])
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"status": 0}', b'{"status": 0, "data": {"graphData": 1}}']
)
def test_a_body_that_is_none_is_one_refused_record(entity: str, body: bytes) -> None:
    parsed = parse(entity, body)
    assert refusals(parsed) == [("malformed_body", None, "$")]
    assert not parsed.tables


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no recorded answers at {REAL}")
def test_recorded_answers_are_read_whole() -> None:
    graph = parse("graph", (REAL / "graph_response.json").read_bytes())
    assert (graph.records_in, graph.records_loaded, graph.notes) == (9, 9, ())
    first = graph.tables["graph"].to_pylist()[0]
    assert first["factory_time"] == dt.datetime(2022, 5, 21, 1, 39, 50, tzinfo=dt.UTC)
    assert (first["value_mg_dl"], first["utc_offset_minutes"]) == (117.0, 120)
    logbook = parse("logbook", (REAL / "logbook_response.json").read_bytes())
    assert logbook.tables["logbook"]["value_mg_dl"].to_pylist() == [197.0, 181.0, 159.0]
    assert logbook.tables["logbook"]["trend_arrow"].to_pylist() == [3, 4, 3]
    assert set(logbook.tables["logbook"]["utc_offset_minutes"].to_pylist()) == {0}


# What answers mean ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "body", "kind", "wait", "said"),
    [
        (
            "connections",
            403,
            {"status": 920, "data": {"minimumVersion": "4.17.0"}},
            "rejected",
            None,
            "4.17.0",
        ),
        (
            "connections",
            200,
            {"status": 4, "data": {"step": {"type": "tou"}}},
            "rejected",
            None,
            "terms of use",
        ),
        ("connections", 200, {"message": "couldNotLoadPatient"}, "forbidden", None, "no longer shares"),
        ("connections", 200, {"status": 7, "data": {}}, "rejected", None, "refused"),
        ("connections", 403, b"<html>error 1015</html>", "rate_limited", 3600.0, None),
        ("auth/login", 200, {"status": 2}, "forbidden", None, "password"),
        ("auth/login", 401, {}, "forbidden", None, "password"),
        (
            "auth/login",
            200,
            {"status": 429, "data": {"data": {"lockout": 300}, "message": "locked"}},
            "rate_limited",
            300.0,
            None,
        ),
    ],
)
def test_the_bodys_status_counts(
    path: str, status: int, body: Any, kind: str, wait: float | None, said: str | None
) -> None:
    request = httpx.Request("GET", f"https://api-eu.libreview.io/llu/{path}")
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    verdict = librelinkup.interpret(httpx.Response(status, content=content, request=request), 0.0)
    assert verdict is not None
    assert (verdict.kind, verdict.wait_seconds) == (kind, wait)
    assert said is None or said in (verdict.message or "")


def test_usual_answers_have_no_verdict_of_their_own() -> None:
    request = httpx.Request("GET", "https://api-eu.libreview.io/llu/connections")
    for status, content in ((200, b'{"status": 0, "data": []}'), (401, b"{}"), (500, b"<html>"), (429, b"")):
        response = httpx.Response(status, content=content, request=request)
        assert librelinkup.interpret(response, 0.0) is None


# Signing in and fetching ---------------------------------------------------------------------------------


def client_at(endpoint: Endpoint, token: str = "", patient: str | None = None) -> ApiClient:
    return ApiClient(
        "librelinkup",
        endpoint.base_url,
        lambda _: token,
        authorize=endpoint.authorizer(PROVIDER),
        regions=endpoint.regions,
        region_of=PROVIDER.region_of,
        interpret=PROVIDER.interpret,
        provider_user_id=patient,
        max_attempts=1,
    )


@pytest.fixture
def endpoint(sandbox: RunningSandbox) -> Endpoint:
    api = sandbox.app.state.apis["librelinkup"]
    api.pending_step = None
    api._failures.clear()
    api._locked_until.clear()
    return endpoint_of(PROVIDER, Settings(sandbox_url=sandbox.url))


def signed_in(endpoint: Endpoint, handle: str) -> str:
    with client_at(endpoint) as client:
        answer = librelinkup.login(client, person(handle).email, password_of(person(handle)))
    token: str = answer["access_token"]
    return token


@pytest.mark.parametrize(("handle", "region", "offset"), [("ada", "eu2", 0), ("dana", "us", -360)])
def test_a_sign_in_follows_the_account_to_its_host(
    sandbox: RunningSandbox, endpoint: Endpoint, handle: str, region: str, offset: int
) -> None:
    token = signed_in(endpoint, handle)
    assert librelinkup.region_of(token) == region
    with client_at(endpoint, token) as client:
        account = librelinkup.identify(client)
    with client_at(endpoint, token, account.provider_user_id) as client:
        for name in ("graph", "logbook"):
            (page,) = librelinkup.fetch(client, PROVIDER.entity(name), WINDOW)
            parsed = parse(name, page.content)
            assert parsed.records_loaded == parsed.records_in > 10
            assert set(parsed.tables[name]["utc_offset_minutes"].to_pylist()) == {offset}
            assert parsed.notes == ()
    asked = {
        path for (provider, _, path, _) in sandbox.app.state.faults.requests if provider == "librelinkup"
    }
    assert f"/librelinkup/{region}/llu/connections/{account.provider_user_id}/graph" in asked
    assert f"/librelinkup/llu/connections/{account.provider_user_id}/graph" not in asked


def test_a_wrong_password_is_sent_once_and_locks_in_the_end(
    sandbox: RunningSandbox, endpoint: Endpoint
) -> None:
    tried = ("POST", "/librelinkup/llu/auth/login")
    with client_at(endpoint) as client:
        for _ in range(2):
            with pytest.raises(PermissionMissingError, match="password was refused") as refused:
                librelinkup.login(client, "ada@sandbox.example", "no password of hers")
            assert "no password" not in str(refused.value)
        assert sandbox.app.state.faults.requests["librelinkup", *tried, 200] == 2
        for _ in range(2):
            with pytest.raises(RateLimitedError):
                librelinkup.login(client, "ada@sandbox.example", password_of(person("ben")))


def test_what_only_the_person_can_do_is_said(
    sandbox: RunningSandbox, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.app.state.apis["librelinkup"].pending_step = "tou"
    with pytest.raises(RequestRejectedError, match="accept the new terms of use"):
        signed_in(endpoint, "ada")
    sandbox.app.state.apis["librelinkup"].pending_step = None
    monkeypatch.setenv(librelinkup.VERSION_SETTING, "4.12.0")
    with pytest.raises(RequestRejectedError, match=r"LIBRELINKUP_VERSION to 4\.16\.0"):
        signed_in(endpoint, "ada")


def test_nobody_to_follow_cannot_be_connected_and_an_ended_share_is_told(endpoint: Endpoint) -> None:
    with (
        client_at(endpoint, signed_in(endpoint, "ben")) as client,
        pytest.raises(RequestRejectedError, match="follows 0 people"),
    ):
        librelinkup.identify(client)
    with (
        client_at(endpoint, signed_in(endpoint, "ada"), "another-patient") as client,
        pytest.raises(PermissionMissingError, match="no longer shares"),
    ):
        list(librelinkup.fetch(client, PROVIDER.entity("graph"), WINDOW))


def test_a_token_is_for_one_host_and_a_dead_one_is_told(sandbox: RunningSandbox, endpoint: Endpoint) -> None:
    token = signed_in(endpoint, "ada")
    _, account, ticket = token.split(":")
    with client_at(endpoint, f"us:{account}:{ticket}") as client, pytest.raises(AuthorizationError):
        librelinkup.identify(client)
    with (
        client_at(endpoint, f"mars:{account}:{ticket}") as client,
        pytest.raises(RequestRejectedError, match="region we do not know"),
    ):
        librelinkup.identify(client)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'{"status": 0, "data": {"user": {}}}',
        b'{"status": 0, "data": {"redirect": true, "region": "eu"}}',
    ],
)
def test_a_sign_in_that_comes_to_nothing_says_so(body: bytes) -> None:
    class Client(ApiClient):
        def request(self, method: str, path: str, *args: Any, **kwargs: Any) -> httpx.Response:
            return httpx.Response(200, content=body)

    regions = {"eu": "https://api-eu.libreview.io"}
    with (
        Client("librelinkup", "https://api.libreview.io", lambda _: "", regions=regions) as client,
        pytest.raises(MalformedResponseError, match="without a ticket"),
    ):
        librelinkup.login(client, "a", "b")


# The declaration -----------------------------------------------------------------------------------------


def test_the_headers_name_the_app_and_the_account() -> None:
    headers = librelinkup.authorize(Credentials("", "", "eu2:abc:ticket:with:colons"))
    assert headers["Authorization"] == "Bearer ticket:with:colons"
    assert headers["account-id"] == "abc"
    assert (headers["product"], headers["version"]) == ("llu.android", "4.16.0")
    assert "Authorization" not in librelinkup.authorize(Credentials("", "", ""))


def test_it_is_unofficial_and_off_until_it_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unofficial" in PROVIDER.title
    assert PROVIDER.password is not None
    assert "not an official interface" in PROVIDER.password.warning
    with pytest.raises(ProviderNotConfiguredError, match="HEALTH_PIPELINE_LIBRELINKUP_ENABLED=true"):
        endpoint_of(PROVIDER, Settings())
    monkeypatch.setenv("HEALTH_PIPELINE_LIBRELINKUP_ENABLED", "true")
    live = endpoint_of(PROVIDER, Settings())
    assert (live.environment, live.base_url) == ("live", "https://api.libreview.io")
    assert live.regions["eu2"] == "https://api-eu2.libreview.io"
