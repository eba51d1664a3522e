"""The hospital of the sandbox: R4's shapes, SMART's launch, searches, paging, errors, corrections."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sandbox_client import NOW, REDIRECT

from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.routers.fhir.clinic import visits
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

PEOPLE = ["ada", "ben", "chen", "dana", "eli"]
VERIFIER = "v" * 64
SCOPE = "launch/patient offline_access patient/*.rs"
SEARCHES = [
    ("Observation", {"category": "vital-signs"}),
    ("Observation", {"category": "http://terminology.hl7.org/CodeSystem/observation-category|laboratory"}),
    ("MedicationRequest", {"intent": "order,plan"}),
    ("DiagnosticReport", {}),
    ("DocumentReference", {"category": "clinical-note"}),
]
#: What R4 requires of each type, and the words it has for a status.
REQUIRED = {
    "Patient": (set(), set()),
    "Observation": ({"status", "code"}, {"final", "amended", "entered-in-error"}),
    "MedicationRequest": ({"status", "intent", "subject"}, {"active", "completed"}),
    "DiagnosticReport": ({"status", "code"}, {"final", "amended", "entered-in-error"}),
    "DocumentReference": ({"status", "content"}, {"current", "entered-in-error"}),
}
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
DATE_TIME = re.compile(rf"\d{{4}}(-\d\d(-\d\d)?)?|{INSTANT.pattern}")


def asked(**change: str | None) -> dict[str, str]:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
    query = {
        "client_id": "sandbox",
        "redirect_uri": REDIRECT,
        "response_type": "code",
        "scope": SCOPE,
        "state": "s" * 22,
        "aud": "http://sandbox/fhir",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "login_hint": "ada",
        **change,
    }
    return {name: value for name, value in query.items() if value is not None}


def launch(client: httpx.Client, handle: str, scope: str = SCOPE) -> dict[str, Any]:
    back = client.get("oauth/authorize", params=asked(login_hint=handle, scope=scope)).headers["location"]
    form = {
        "grant_type": "authorization_code",
        "code": httpx.URL(back).params["code"],
        "redirect_uri": REDIRECT,
        "code_verifier": VERIFIER,
    }
    answer = client.post("oauth/token", data=form, auth=("sandbox", "sandbox-secret"))
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


@pytest.fixture
def opened() -> Iterator[Callable[..., tuple[httpx.Client, str]]]:
    """A client with a person's token, and their patient id."""
    clients: list[httpx.Client] = []

    def open_client(running: RunningSandbox, handle: str, scope: str = SCOPE) -> tuple[httpx.Client, str]:
        client = httpx.Client(base_url=f"{running.url}/fhir/", timeout=20)
        clients.append(client)
        tokens = launch(client, handle, scope)
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        return client, tokens.get("patient", "")

    yield open_client
    for client in clients:
        client.close()


def pages(client: httpx.Client, kind: str, **params: Any) -> list[dict[str, Any]]:
    found = []
    answer = client.get(kind, params=params)
    while True:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/fhir+json")
        body = answer.json()
        found.append(body)
        links = {link["relation"]: link["url"] for link in body["link"]}
        if "next" not in links:
            return found
        answer = client.get(links["next"])


def resources(client: httpx.Client, kind: str, **params: Any) -> list[dict[str, Any]]:
    return [
        entry["resource"]
        for body in pages(client, kind, **params)
        for entry in body.get("entry", [])
        if entry["search"]["mode"] == "match"
    ]


def assert_is_r4(resource: dict[str, Any]) -> None:
    kind = resource["resourceType"]
    required, statuses = REQUIRED[kind]
    assert required <= resource.keys()
    assert kind == "Patient" or resource["status"] in statuses
    assert re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", resource["id"])
    assert INSTANT.fullmatch(resource["meta"]["lastUpdated"])
    for name in ("effectiveDateTime", "issued", "authoredOn", "date", "birthDate"):
        if name in resource:
            assert DATE_TIME.fullmatch(resource[name]), resource[name]
    assert_no_empty(resource)
    for said in [resource, *resource.get("component", [])]:
        quantity = said.get("valueQuantity")
        if quantity is not None:
            assert quantity["system"] == "http://unitsofmeasure.org" and quantity["code"]
            assert "dataAbsentReason" not in said
    if kind == "Observation":
        assert ("valueQuantity" in resource) + ("component" in resource) + (
            "dataAbsentReason" in resource
        ) == 1
        assert all(coding["system"] == "http://loinc.org" for coding in resource["code"]["coding"])
    if kind == "MedicationRequest":
        assert ("medicationCodeableConcept" in resource) != ("medicationReference" in resource)


def assert_no_empty(value: Any) -> None:
    """FHIR has neither nulls nor empty objects and arrays."""
    assert value not in (None, "", [], {})
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        assert_no_empty(child)


@pytest.mark.parametrize("handle", PEOPLE)
def test_all_that_is_served_has_r4s_shape(
    sandbox: RunningSandbox, opened: Callable[..., tuple[httpx.Client, str]], handle: str
) -> None:
    client, patient = opened(sandbox, handle)
    assert_is_r4(client.get(f"Patient/{patient}").json())
    seen: dict[str, set[str]] = {}
    for kind, params in SEARCHES:
        found = resources(client, kind, patient=patient, **params)
        assert found, (kind, params)
        for resource in found:
            assert_is_r4(resource)
            assert resource["subject"]["reference"] == f"Patient/{patient}"
            ids = seen.setdefault(kind, set())
            assert resource["id"] not in ids
            ids.add(resource["id"])
    reports = resources(client, "DiagnosticReport", patient=patient)
    referenced = {result["reference"] for report in reports for result in report["result"]}
    assert referenced <= {f"Observation/{each}" for each in seen["Observation"]}


def test_discovery_names_what_smart_requires(sandbox: RunningSandbox) -> None:
    base = f"{sandbox.url}/fhir"
    said = httpx.get(f"{base}/.well-known/smart-configuration").json()
    assert said["authorization_endpoint"] == f"{base}/oauth/authorize"
    assert said["code_challenge_methods_supported"] == ["S256"]
    assert {"launch-standalone", "context-standalone-patient", "permission-v2"} <= set(said["capabilities"])
    statement = httpx.get(f"{base}/metadata").json()
    assert (statement["resourceType"], statement["fhirVersion"]) == ("CapabilityStatement", "4.0.1")
    assert {each["type"] for each in statement["rest"][0]["resource"]} == set(REQUIRED)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"aud": None}, "invalid_request"),
        ({"aud": "https://elsewhere.example"}, "invalid_request"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": "system/*.rs"}, "invalid_scope"),
    ],
)
def test_launch_that_is_not_smart_is_refused(
    sandbox: RunningSandbox, change: dict[str, str | None], error: str
) -> None:
    answer = httpx.get(f"{sandbox.url}/fhir/oauth/authorize", params=asked(**change))
    assert httpx.URL(answer.headers["location"]).params["error"] == error


def test_token_answer_has_the_patient_and_lasts_only_with_offline_access(sandbox: RunningSandbox) -> None:
    with httpx.Client(base_url=f"{sandbox.url}/fhir/") as client:
        tokens = launch(client, "ben")
        assert tokens["patient"] and tokens["expires_in"] == 3600 and tokens["scope"].split() == sorted(
            SCOPE.split(), key=SCOPE.split().index
        )  # fmt: skip
        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        for _ in range(2):
            renewed = client.post("oauth/token", data=form, auth=("sandbox", "sandbox-secret")).json()
            assert (renewed["patient"], renewed["refresh_token"]) == (
                tokens["patient"],
                tokens["refresh_token"],
            )
        short = launch(client, "ben", "launch/patient patient/Observation.read")
        assert "refresh_token" not in short
        assert "patient" not in launch(client, "ben", "patient/Observation.read")


def test_pages_hold_everything_once(opened: Callable[..., tuple[httpx.Client, str]]) -> None:
    with run_in_thread(now=lambda: NOW, document_page_size=7) as running:
        client, patient = opened(running, "eli")
        params = {"patient": patient, "category": "laboratory"}
        found = pages(client, "Observation", **params, _count=100)
        assert all(len(body["entry"]) <= 7 for body in found[1:])
        outcomes = [e for body in found for e in body["entry"] if e["search"]["mode"] == "outcome"]
        assert [e["resource"]["issue"][0]["code"] for e in outcomes] == ["informational"]
        ids = [e["resource"]["id"] for body in found for e in body["entry"] if "id" in e["resource"]]
        assert len(ids) == len(set(ids)) == found[0]["total"]
        assert set(ids) == {each["id"] for each in resources(client, "Observation", **params, _count=3)}
        assert all(e["fullUrl"].startswith(f"{running.url}/fhir/Observation/") for e in found[1]["entry"])
        assert client.get(f"{running.url}/fhir", params={"_getpages": "nonsense"}).status_code == 410


def test_date_and_code_select(
    sandbox: RunningSandbox, opened: Callable[..., tuple[httpx.Client, str]]
) -> None:
    client, patient = opened(sandbox, "ada")
    weights = resources(client, "Observation", patient=patient, code="http://loinc.org|29463-7")
    days = sorted(each["effectiveDateTime"][:10] for each in weights)
    assert len(days) == 6 and days[0] >= "2024-02-10" and days[-1] <= "2026-11-21"
    gaps = [(dt.date.fromisoformat(b) - dt.date.fromisoformat(a)).days for a, b in itertools.pairwise(days)]
    assert all(150 <= gap <= 220 for gap in gaps)
    since = resources(client, "Observation", patient=patient, code="29463-7", date=f"gt{days[-2]}")
    assert [each["effectiveDateTime"][:10] for each in since] == [days[-1]]
    assert resources(client, "Observation", patient=patient, code="29463-7", date="lt2024-01-01") == []


@pytest.mark.parametrize(
    ("path", "params", "status", "code"),
    [
        ("Observation", {}, 400, "too-costly"),
        ("Observation", {"category": "laboratory", "_lastUpdated": "ge2026-01-01"}, 400, "not-supported"),
        ("Observation", {"category": "laboratory", "date": "yesterday"}, 400, "invalid"),
        ("MedicationRequest", {"status": "active"}, 400, "too-costly"),
        ("Encounter", {}, 404, "not-supported"),
        ("Observation/none", {}, 404, "not-found"),
        ("Observation", {"category": "laboratory", "patient": "somebody-else"}, 403, "forbidden"),
    ],
)
def test_errors_are_operation_outcomes(
    sandbox: RunningSandbox,
    opened: Callable[..., tuple[httpx.Client, str]],
    path: str,
    params: dict[str, str],
    status: int,
    code: str,
) -> None:
    client, patient = opened(sandbox, "ada")
    answer = client.get(path, params={"patient": patient, **params})
    assert (answer.status_code, answer.json()["resourceType"]) == (status, "OperationOutcome")
    assert answer.json()["issue"][0]["code"] == code


def test_scope_token_and_limit(
    own_sandbox: RunningSandbox, opened: Callable[..., tuple[httpx.Client, str]]
) -> None:
    client, patient = opened(own_sandbox, "ada", "launch/patient patient/Observation.read")
    assert client.get("Observation", params={"patient": patient, "category": "laboratory"}).is_success
    refused = client.get("DiagnosticReport", params={"patient": patient})
    assert (refused.status_code, refused.json()["issue"][0]["code"]) == (403, "forbidden")
    httpx.post(
        f"{own_sandbox.url}/__faults", json={"provider": "fhir", "kind": "rate_limit", "retry_after": 9}
    )
    limited = client.get("metadata")
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "9")
    assert limited.json()["issue"][0]["code"] == "throttled"
    httpx.delete(f"{own_sandbox.url}/__faults")
    httpx.post(f"{own_sandbox.url}/__revoke", json={"provider": "fhir", "handle": "ada"})
    ended = client.get(f"Patient/{patient}")
    assert (ended.status_code, ended.json()["issue"][0]["code"]) == (401, "login")


def test_results_come_a_day_after_the_visit(
    own_sandbox: RunningSandbox, opened: Callable[..., tuple[httpx.Client, str]]
) -> None:
    visit = list(visits(life_of(person("dana")), NOW.timestamp()))[-1]
    client, patient = opened(own_sandbox, "dana")

    def counts(seconds: float) -> list[int]:
        now = dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()
        httpx.put(f"{own_sandbox.url}/__now", json={"now": now}).raise_for_status()
        day = {"patient": patient, "date": f"ge{visit.date}"}
        client.headers["Authorization"] = f"Bearer {launch(client, 'dana')['access_token']}"
        return [
            len(resources(client, "Observation", category="vital-signs", **day)),
            len(resources(client, "Observation", category="laboratory", **day)),
            len(resources(client, "DiagnosticReport", **day)),
        ]

    assert counts(visit.at - 1) == [0, 0, 0]
    assert counts(visit.at) == [8, 0, 0]
    assert counts(visit.issued - 1) == [8, 0, 0]
    assert counts(visit.issued) == [8, 27, 2]


def test_corrections_and_mistakes_are_new_versions(
    own_sandbox: RunningSandbox, opened: Callable[..., tuple[httpx.Client, str]]
) -> None:
    client, patient = opened(own_sandbox, "ben")
    day = list(visits(life_of(person("ben")), NOW.timestamp()))[-1].date

    def weight() -> dict[str, Any]:
        (found,) = resources(client, "Observation", patient=patient, code="29463-7", date=f"eq{day}")
        return found

    def revise(kind: str, on: dt.date = day) -> httpx.Response:
        body = {"provider": "fhir", "handle": "ben", "day": str(on), "kind": kind}
        return httpx.post(f"{own_sandbox.url}/__revise", json=body)

    def truth() -> dict[str, float]:
        span = {"start": str(day), "end": str(day)}
        values = httpx.get(f"{own_sandbox.url}/__truth/fhir/ben", params=span).json()["values"]
        return {value["metric_type"]: value["value"] for value in values}

    before = weight()
    assert truth()["weight"] == before["valueQuantity"]["value"]
    assert len(revise("edit").json()["revised"]) == 35
    after = weight()
    assert (after["id"], after["status"], after["meta"]["versionId"]) == (before["id"], "amended", "2")
    assert after["meta"]["lastUpdated"] == "2026-11-21T12:00:00.000Z"
    assert after["valueQuantity"]["value"] == pytest.approx(before["valueQuantity"]["value"] - 0.5)
    assert truth()["weight"] == after["valueQuantity"]["value"]
    assert revise("delete").status_code == 200
    assert (weight()["status"], weight()["meta"]["versionId"]) == ("entered-in-error", "3")
    assert truth() == {}
    assert revise("edit", day + dt.timedelta(days=1)).status_code == 404


def test_laboratory_says_what_was_in_the_blood() -> None:
    """In SI units or American ones, within the rounding; a spoilt sample and one below the limit, too."""
    spoilt = below = 0
    for handle in PEOPLE:
        for visit in visits(life_of(person(handle)), NOW.timestamp()):
            for result in visit.results:
                if result.value is None:
                    spoilt += 1
                    assert (result.analyte.metric, visit.number % 3) == ("potassium", 1)
                elif result.comparator is not None:
                    below += 1
                    assert result.true < result.value == result.analyte.detection_limit
                else:
                    ours = result.value * result.unit.factor + result.unit.shift
                    assert ours == pytest.approx(result.true, abs=result.unit.rounding * 1.01)
    assert spoilt == 10 and below > 3
