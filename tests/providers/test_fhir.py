"""FHIR R4: real bundles, damaged resources, discovery and consent, and reading from real HTTP servers."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from health_pipeline.connections.endpoints import Endpoint, ProviderNotConfiguredError, endpoint_of
from health_pipeline.connections.oauth import _client, authorization, connect_with_hint, exchange, refresher
from health_pipeline.providers import fhir
from health_pipeline.providers.base import Parsed, RawDocument, Window
from health_pipeline.providers.fhir import PROVIDER
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    ProviderUnavailableError,
    RequestRejectedError,
)
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.settings import Settings

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
WINDOW = Window(dt.date(2026, 11, 20), dt.date(2026, 11, 20))
UCUM = "http://unitsofmeasure.org"


SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))


def parse(content: Any, entity: str = "observation") -> Parsed:
    raw = content if isinstance(content, bytes) else orjson.dumps(content)
    parsed = fhir.parse(RawDocument(entity, raw, NOW))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def bundle(*resources: Any) -> dict[str, Any]:
    entries = [{"resource": resource, "search": {"mode": "match"}} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries}


def rows(parsed: Parsed, table: str) -> list[dict[str, Any]]:
    return parsed.tables[table].to_pylist()


def loinc(*codes: str) -> dict[str, Any]:
    return {
        "coding": [
            {"system": "http://loinc.org", "code": code, "display": f"name of {code}"} for code in codes
        ]
    }


HEART_RATE = {
    "resourceType": "Observation",
    "id": "hr-1",
    "meta": {"versionId": "3", "lastUpdated": "2026-03-02T09:00:00.1234567Z"},
    "text": {"status": "generated", "div": "<div>Amy Shaw</div>"},
    "status": "final",
    "category": [{"coding": [{"code": "vital-signs"}]}],
    "code": loinc("8867-4"),
    "subject": {"reference": "Patient/p", "display": "Amy Shaw"},
    "effectiveDateTime": "2026-03-02T08:30:00+01:00",
    "device": {"display": "Cuff 9"},
    "valueQuantity": {"value": 61, "unit": "beats/min", "system": UCUM, "code": "/min"},
}
PRESSURE = {
    **{k: v for k, v in HEART_RATE.items() if k != "valueQuantity"},
    "id": "bp-1",
    "code": loinc("85354-9"),
    "component": [
        {"code": loinc("8480-6"), "valueQuantity": {"value": 121, "system": UCUM, "code": "mm[Hg]"}},
        {"code": loinc("8462-4"), "dataAbsentReason": {"coding": [{"code": "not-performed"}]}},
    ],
}
CRP = {
    **HEART_RATE,
    "id": "crp-1",
    "category": [{"coding": [{"code": "laboratory"}]}],
    "code": loinc("1988-5"),
    "effectiveDateTime": "2026-03",
    "issued": "2026-03-04T10:00:00Z",
    "valueQuantity": {"value": 0.3, "comparator": "<", "unit": "mg/L"},
    "referenceRange": [{"high": {"value": 5, "unit": "mg/L"}}, {"text": "children"}],
    "interpretation": [{"coding": [{"code": "N"}]}],
}
ORDER = {
    "resourceType": "MedicationRequest",
    "id": "mr-1",
    "status": "active",
    "intent": "order",
    "contained": [{"resourceType": "Medication", "id": "m", "code": {"text": "Lisinopril 10 MG"}}],
    "medicationReference": {"reference": "#m"},
    "subject": {"reference": "Patient/p"},
    "authoredOn": "2026-03-02",
    "dosageInstruction": [
        {"text": "one", "doseAndRate": [{"doseQuantity": {"value": 1, "unit": "tablet"}}]},
        {"text": "or two"},
    ],
    "dispenseRequest": {"quantity": {"value": 30, "unit": "tablet"}, "numberOfRepeatsAllowed": 2},
}
REPORT = {
    "resourceType": "DiagnosticReport",
    "id": "dr-1",
    "status": "preliminary",
    "category": [{"coding": [{"code": "LAB"}]}],
    "code": {**loinc("58410-2"), "text": "CBC"},
    "subject": {"reference": "Patient/p"},
    "effectivePeriod": {"start": "2026-03-02T08:00:00-05:00"},
    "result": [{"reference": "Observation/a"}, {"reference": "Observation/b"}],
}
NOTE = {
    "resourceType": "DocumentReference",
    "id": "doc-1",
    "status": "current",
    "type": loinc("11506-3"),
    "subject": {"reference": "Patient/p"},
    "date": "2026-03-02T08:50:00Z",
    "content": [{"attachment": {"contentType": "application/pdf", "url": "Binary/1", "size": 900}}],
}
PATIENT = {
    "resourceType": "Patient",
    "id": "p",
    "name": [{"family": "Shaw"}],
    "gender": "female",
    "birthDate": "1987",
}


# Real payloads -------------------------------------------------------------------------------------------

#: File: resources in, those of other types, Observations, their values, MedicationRequests, DiagnosticReports.
SYNTHEA = {
    "Eddie_Lakin_cf7c878e-a8e3-468a-9d88-dd3e729bf026": (401, 145, 231, 242, 7, 17),
    "Elvina_Lemke_f2a4f241-ad65-4a1b-8b54-b5717a2338b6": (361, 145, 191, 202, 9, 15),
    "Jerrell_Gerlach_20f72f10-7dfd-4dc6-abb6-2160e0a548eb": (312, 101, 188, 199, 7, 15),
    "Twyla_Moen_a3f60302-e902-468f-a683-6373d24fc4fd": (429, 143, 255, 266, 6, 24),
}


@pytest.mark.parametrize("name", SYNTHEA)
def test_real_bundle_is_read_whole(name: str) -> None:
    path = SHARED / "data" / "fhir_synthea_r4" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"the real bundle is not here: {path}")
    content = path.read_bytes()
    parsed = parse(content)
    resources = [entry["resource"] for entry in json.loads(content)["entry"]]
    everything, others, observations, values, orders, reports = SYNTHEA[name]
    assert (parsed.records_in, parsed.skipped) == (everything, {"other_resource_type": others})
    assert parsed.quarantine.num_rows == 0
    assert parsed.notes == ()
    tables = {name: table.num_rows for name, table in parsed.tables.items()}
    assert tables == {
        "patient": 1,
        "observation": observations,
        "observation_value": values,
        "medication_request": orders,
        "diagnostic_report": reports,
    }
    staged = {(row["observation_id"], row["position"]): row for row in rows(parsed, "observation_value")}
    dated = {row["id"]: row for row in rows(parsed, "observation")}
    for resource in resources:
        if resource["resourceType"] != "Observation":
            continue
        for position, said in enumerate(resource.get("component", [resource]), "component" in resource):
            row = staged[resource["id"], position]
            quantity = said.get("valueQuantity", {})
            assert (row["value"], row["unit_code"]) == (quantity.get("value"), quantity.get("code"))
            assert row["loinc_codes"] == said["code"]["coding"][0]["code"]
        moment = dt.datetime.fromisoformat(resource["effectiveDateTime"])
        assert dated[resource["id"]]["effective_at"] == moment
        assert dated[resource["id"]]["effective_date"] == moment.date()


@pytest.mark.parametrize(
    ("file", "table", "expected"),
    [
        ("blood-pressure", "observation_value", [("8480-6", 109.0, "mm[Hg]"), ("8462-4", 44.0, "mm[Hg]")]),
        ("oxygen-saturation", "observation_value", [("2708-6|59408-5", 99.0, "%")]),
        ("uscore3_blood-glucose", "observation_value", [("2339-0", 76.0, None)]),
        ("weight", "observation_value", [("29463-7", 20.09414, "kg")]),
        ("bmi", "observation_value", [("39156-5", 16.2, "kg/m2")]),
        ("heart-rate", "observation_value", [("8867-4", 44.0, "/min")]),
        ("observation-cbc-hemoglobin", "observation_value", [("718-7", 17.0, "g/dL")]),
        ("observation-serum-glucose", "observation_value", [("2345-7", 76.0, "mg/dL")]),
        ("medicationrequest-coded-oral-axid", "medication_request", ["476872"]),
        ("medicationrequest-self-tylenol", "medication_request", ["1187314"]),
        ("patient-example", "patient", ["example"]),
    ],
)
def test_real_resource_alone(file: str, table: str, expected: list[Any]) -> None:
    path = SHARED / "data" / "fhir_uscore" / f"{file}.json"
    if not path.exists():
        pytest.skip(f"the real resource is not here: {path}")
    parsed = parse(path.read_bytes())
    assert (parsed.records_in, parsed.records_loaded, parsed.notes) == (1, 1, ())
    found = rows(parsed, table)
    if table == "observation_value":
        assert [(row["loinc_codes"], row["value"], row["unit_code"]) for row in found] == expected
    else:
        column = "id" if table == "patient" else "rxnorm_codes"
        assert [row[column] for row in found] == expected


# Small payloads ------------------------------------------------------------------------------------------


def test_observation_with_all_it_says() -> None:
    parsed = parse(bundle(HEART_RATE))
    (row,) = rows(parsed, "observation")
    assert row == {
        "id": "hr-1",
        "version_id": "3",
        "status": "final",
        "category": "vital-signs",
        "loinc_codes": "8867-4",
        "code_text": "name of 8867-4",
        "device": "Cuff 9",
        "last_updated_at": dt.datetime(2026, 3, 2, 9, 0, 0, 123456, dt.UTC),
        "issued_at": None,
        "effective_end_at": None,
        "effective_at": dt.datetime(2026, 3, 2, 7, 30, tzinfo=dt.UTC),
        "effective_date": dt.date(2026, 3, 2),
        "effective_precision": "time",
        "utc_offset_minutes": 60,
        "dated_by": "effectiveDateTime",
    }
    (value,) = rows(parsed, "observation_value")
    assert (value["position"], value["value"], value["unit"], value["unit_code"]) == (
        0,
        61.0,
        "beats/min",
        "/min",
    )


def test_components_are_values_and_the_panel_itself_is_none() -> None:
    found = rows(parse(bundle(PRESSURE)), "observation_value")
    said = [(r["position"], r["loinc_codes"], r["value"], r["absent_reason"]) for r in found]
    assert said == [(1, "8480-6", 121.0, None), (2, "8462-4", None, "not-performed")]


def test_comparator_reference_range_and_interpretation_are_kept() -> None:
    (value,) = rows(parse(bundle(CRP)), "observation_value")
    assert (value["value"], value["comparator"], value["unit"], value["unit_code"]) == (
        0.3,
        "<",
        "mg/L",
        None,
    )
    assert (value["reference_low"], value["reference_high"], value["interpretation"]) == (None, 5.0, "N")


@pytest.mark.parametrize(
    ("said", "precision", "day", "at", "offset"),
    [
        ("1999", "year", "1999-01-01", None, None),
        ("1999-07", "month", "1999-07-01", None, None),
        ("1999-07-02", "day", "1999-07-02", None, None),
        ("1999-07-02T23:30:00-05:00", "time", "1999-07-02", "1999-07-03T04:30:00+00:00", -300),
        ("1999-07-02T23:30Z", "time", "1999-07-02", "1999-07-02T23:30:00+00:00", None),
        ("1999-07-02T23:30:00+00:00", "time", "1999-07-02", "1999-07-02T23:30:00+00:00", 0),
        ("1999-07-02T23:30:00.5+05:45", "time", "1999-07-02", "1999-07-02T17:45:00.500000+00:00", 345),
    ],
)
def test_dates_of_every_precision(
    said: str, precision: str, day: str, at: str | None, offset: int | None
) -> None:
    (row,) = rows(parse(bundle({**HEART_RATE, "effectiveDateTime": said})), "observation")
    assert row["effective_precision"] == precision
    assert row["effective_date"].isoformat() == day
    assert (row["effective_at"] and row["effective_at"].isoformat()) == at
    assert row["utc_offset_minutes"] == offset


def test_period_instant_and_release_stand_in_for_a_missing_time() -> None:
    bare = {k: v for k, v in HEART_RATE.items() if k != "effectiveDateTime"}
    period = {"start": "2026-03-02T08:00:00+01:00", "end": "2026-03-02T09:00:00+01:00"}
    parsed = parse(
        bundle(
            {**bare, "effectivePeriod": period},
            {**bare, "effectiveInstant": "2026-03-02T08:00:00+01:00"},
            {**bare, "issued": "2026-03-03T08:00:00+01:00"},
            {**bare, "status": "entered-in-error"},
            bare,
        )
    )
    found = [(r["dated_by"], r["effective_end_at"] is not None) for r in rows(parsed, "observation")]
    assert found == [("period_start", True), ("effectiveInstant", False), ("issued", False), (None, False)]
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["field"]) == ("missing_field", "effectiveDateTime")
    assert refused["location"] == "entry[4].resource"
    assert "Amy Shaw</div>" not in refused["original"]


def test_medicine_by_code_by_contained_resource_and_by_reference() -> None:
    coded = {
        **ORDER,
        "medicationCodeableConcept": {"coding": [{"system": "x", "code": "7", "display": "Salt"}]},
    }
    named = {**ORDER, "medicationReference": {"reference": "Medication/9", "display": "Sugar"}}
    found = rows(
        parse(bundle(ORDER, coded, named, {**named, "medicationReference": {"reference": "Medication/9"}})),
        "medication_request",
    )
    assert [row["medication_text"] for row in found] == ["Lisinopril 10 MG", "Salt", "Sugar", "Medication/9"]
    first = found[0]
    assert (first["dosage_text"], first["dose_value"], first["dose_unit"]) == ("one; or two", 1.0, "tablet")
    assert (first["quantity_value"], first["refills_allowed"], first["authored_precision"]) == (
        30.0,
        2,
        "day",
    )


def test_reports_and_documents_are_metadata() -> None:
    parsed = parse(bundle(REPORT, NOTE, PATIENT))
    (report,) = rows(parsed, "diagnostic_report")
    assert (report["results"], report["utc_offset_minutes"]) == ("Observation/a|Observation/b", -300)
    (note,) = rows(parsed, "document_reference")
    assert (note["content_type"], note["attachments"], note["size_bytes"]) == ("application/pdf", 1, 900.0)
    (patient,) = rows(parsed, "patient")
    assert (patient["gender"], patient["birth_date"], patient["birth_precision"]) == (
        "female",
        dt.date(1987, 1, 1),
        "year",
    )


def test_what_is_not_ours_is_skipped_and_what_is_new_is_noted() -> None:
    outcome = {"resourceType": "OperationOutcome", "issue": []}
    local = {**HEART_RATE, "code": {"text": "Puls"}, "mood": "good", "_status": {"id": "x"}}
    parsed = parse(bundle(HEART_RATE, outcome, {"resourceType": "Encounter", "id": "e"}, local))
    assert parsed.skipped == {"operation_outcome": 1, "other_resource_type": 1}
    assert parsed.records_loaded == 2
    assert parsed.notes == ("observation: new field mood", "observation: values without a LOINC code: 1")


def test_search_that_found_nothing_has_no_entries() -> None:
    parsed = parse({"resourceType": "Bundle", "type": "searchset", "total": 0})
    assert (parsed.records_in, parsed.tables) == (0, {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"resourceType": "OperationOutcome", "issue": [{"code": "throttled"}]}',
        b'{"resourceType": "Bundle", "entry": {}}',
        b'{"resourceType": ["Patient"]}',
        b'{"entry": []}',
    ],
)
def test_body_that_is_no_bundle_is_one_quarantine_row(content: bytes) -> None:
    parsed = parse(content)
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["location"], parsed.records_in) == ("malformed_body", "$", 1)


def replaced(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(record)
    *parents, leaf = path.split(".")
    node: Any = record
    for step in parents:
        node = node[int(step)] if isinstance(node, list) else node[step]
    node[leaf] = value
    return record


@pytest.mark.parametrize(
    ("record", "path", "value", "reason", "field"),
    [
        (HEART_RATE, "id", None, "missing_field", "id"),
        (HEART_RATE, "status", None, "missing_field", "status"),
        (HEART_RATE, "status", 1, "wrong_type", "status"),
        (HEART_RATE, "code", None, "missing_field", "code"),
        (HEART_RATE, "code", "8867-4", "wrong_type", "code"),
        (HEART_RATE, "code.coding", {"code": "8867-4"}, "wrong_type", "code"),
        (HEART_RATE, "effectiveDateTime", "2026-03-02T08:30:00", "wrong_type", "effectiveDateTime"),
        (HEART_RATE, "effectiveDateTime", "2026-02-30", "wrong_type", "effectiveDateTime"),
        (HEART_RATE, "effectiveDateTime", "2026-13", "wrong_type", "effectiveDateTime"),
        (HEART_RATE, "effectiveDateTime", "0000", "wrong_type", "effectiveDateTime"),
        (HEART_RATE, "effectiveDateTime", "02.03.2026", "wrong_type", "effectiveDateTime"),
        (HEART_RATE, "effectiveDateTime", 2026, "wrong_type", "effectiveDateTime"),
        (HEART_RATE, "meta.lastUpdated", "yesterday", "wrong_type", "meta.lastUpdated"),
        (HEART_RATE, "valueQuantity.value", "61", "wrong_type", "valueQuantity.value"),
        (HEART_RATE, "valueQuantity", [61], "wrong_type", "valueQuantity"),
        (PRESSURE, "component", {}, "wrong_type", "component"),
        (PRESSURE, "component.1", 5, "wrong_type", "component[1]"),
        (PRESSURE, "component.1.code", None, "missing_field", "component[1].code"),
        (PRESSURE, "component.0.valueQuantity.value", True, "wrong_type", "component[0].valueQuantity.value"),
        (CRP, "referenceRange", {"high": 5}, "wrong_type", "referenceRange"),
        (ORDER, "medicationReference", None, "missing_field", "medication"),
        (ORDER, "intent", None, "missing_field", "intent"),
        (ORDER, "dispenseRequest.numberOfRepeatsAllowed", 1.5, "wrong_type",
         "dispenseRequest.numberOfRepeatsAllowed"),
        (REPORT, "result", "Observation/a", "wrong_type", "result"),
        (NOTE, "content", None, "missing_field", "content"),
        (PATIENT, "birthDate", "20.02.1987", "wrong_type", "birthDate"),
    ],
)  # fmt: skip
def test_bad_resource_is_refused_alone_with_all_its_values(
    record: dict[str, Any], path: str, value: Any, reason: str, field: str
) -> None:
    if path == "component.1":
        bad = copy.deepcopy(record)
        bad["component"][1] = value
    else:
        bad = replaced(record, path, value)
    parsed = parse(bundle(HEART_RATE, bad, {**PRESSURE, "id": "bp-2"}))
    (refused,) = parsed.quarantine.to_pylist()
    assert (refused["reason"], refused["field"]) == (reason, field)
    assert refused["location"] == "entry[1].resource"
    assert [row["id"] for row in rows(parsed, "observation")] == ["hr-1", "bp-2"]
    values = [(row["observation_id"], row["position"]) for row in rows(parsed, "observation_value")]
    assert values == [("hr-1", 0), ("bp-2", 1), ("bp-2", 2)]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=6)
    | st.sampled_from(["2026", "2026-03", "2026-03-02T08:00:00Z", "0000-01-01"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["code", "coding", "value", "text", "start", "reference"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
SHAPES = (HEART_RATE, PRESSURE, CRP, ORDER, REPORT, NOTE, PATIENT)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(SHAPES), st.integers(0, 30), JUNK), max_size=4))
def test_whatever_the_damage_resources_add_up_and_good_ones_are_unharmed(
    damage: list[tuple[dict[str, Any], int, Any]],
) -> None:
    bad = []
    for shape, place, junk in damage:
        names = sorted(shape)
        bad.append({**shape, names[place % len(names)]: junk})
    parsed = parse(bundle(HEART_RATE, *bad, {**PRESSURE, "id": "last"}))
    assert parsed.records_in == len(bad) + 2
    ids = [row["id"] for row in rows(parsed, "observation")]
    assert (ids[0], ids[-1]) == ("hr-1", "last")
    owners = {row["observation_id"] for row in rows(parsed, "observation_value")}
    assert owners == set(ids)


# Discovery and consent -----------------------------------------------------------------------------------

Answer = Callable[[str, dict[str, str]], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers with a function of (path, query); gives its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                status, headers, body = answer(url.path, query)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def discovered(serve: Callable[[Answer], str], configuration: dict[str, Any]) -> Any:
    def answer(path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        assert path == "/r4/.well-known/smart-configuration"
        return 200, {}, json.dumps(configuration).encode()

    assert PROVIDER.oauth is not None
    return fhir.discover(PROVIDER.oauth, f"{serve(answer)}/r4")


ADDRESSES = {"authorization_endpoint": "https://login.example/a", "token_endpoint": "https://login.example/t"}


def test_discovery_takes_the_servers_addresses_and_names_the_server(serve: Callable[[Answer], str]) -> None:
    found = discovered(serve, {**ADDRESSES, "revocation_endpoint": "oauth/revoke"})
    assert (found.authorize_url, found.token_url) == ("https://login.example/a", "https://login.example/t")
    assert found.authorize_params["aud"].endswith("/r4")
    assert found.revoke_url == found.authorize_params["aud"] + "/oauth/revoke"
    assert "patient/Observation.rs" in found.scopes


def test_server_of_the_first_version_is_asked_for_its_scopes(serve: Callable[[Answer], str]) -> None:
    found = discovered(serve, {**ADDRESSES, "capabilities": ["permission-v1"]})
    assert "patient/Observation.read" in found.scopes
    assert not any(scope.endswith(".rs") for scope in found.scopes)
    both = discovered(serve, {**ADDRESSES, "capabilities": ["permission-v1", "permission-v2"]})
    assert "patient/Observation.rs" in both.scopes


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ({"token_endpoint": "https://login.example/t"}, "no authorization_endpoint"),
        ({**ADDRESSES, "token_endpoint": 7}, "no token_endpoint"),
        ({**ADDRESSES, "code_challenge_methods_supported": ["plain"]}, "S256"),
    ],
)
def test_unusable_configuration_says_why(
    serve: Callable[[Answer], str], configuration: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        discovered(serve, configuration)


def test_older_server_names_its_addresses_in_its_capabilities(serve: Callable[[Answer], str]) -> None:
    uris = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
    parts = [{"url": "authorize", "valueUri": "https://a.example"}, {"url": "token", "valueUri": "token"}]
    statement = {
        "resourceType": "CapabilityStatement",
        "rest": [{"security": {"extension": [{"url": uris, "extension": parts}]}}],
    }

    def answer(path: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, json.dumps(statement).encode()) if path == "/metadata" else (404, {}, b"")

    base = serve(answer)
    assert PROVIDER.oauth is not None
    found = fhir.discover(PROVIDER.oauth, base)
    assert (found.authorize_url, found.token_url, found.revoke_url) == (
        "https://a.example",
        f"{base}/token",
        None,
    )


def test_each_hospital_has_a_base_url_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderNotConfiguredError, match=r"HEALTH_PIPELINE_FHIR_BASE_URL, .*CLIENT_ID"):
        endpoint_of(PROVIDER, Settings())
    monkeypatch.setenv("HEALTH_PIPELINE_FHIR_CLIENT_ID", "app")
    with pytest.raises(ProviderNotConfiguredError, match="HEALTH_PIPELINE_FHIR_BASE_URL"):
        endpoint_of(PROVIDER, Settings())
    monkeypatch.setenv("HEALTH_PIPELINE_FHIR_BASE_URL", "https://fhir.example/r4")
    assert endpoint_of(PROVIDER, Settings()).base_url == "https://fhir.example/r4"


@pytest.fixture(scope="module")
def hospital() -> Iterator[RunningSandbox]:
    with run_in_thread(now=lambda: NOW, document_page_size=40) as running:
        yield running


@pytest.fixture
def at_hospital(hospital: RunningSandbox) -> Endpoint:
    hospital.app.state.faults.clear()
    return endpoint_of(PROVIDER, Settings(sandbox_url=hospital.url))


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def open_client(endpoint: Endpoint, handle: str, time: Time | None = None) -> ApiClient:
    tokens = connect_with_hint(endpoint, handle)
    assert tokens.provider_user_id is not None
    return client_of(endpoint.base_url, tokens.access_token, tokens.provider_user_id, time)


def client_of(base: str, token: str = "t", patient: str = "p", time: Time | None = None) -> ApiClient:
    time = time or Time()
    return ApiClient(
        "fhir",
        base,
        lambda _: token,
        provider_user_id=patient,
        interpret=fhir.interpret,
        max_attempts=2,
        sleep=time.sleep,
        clock=lambda: time.now,
    )


def test_consent_names_the_patient_and_lasts(at_hospital: Endpoint) -> None:
    tokens = connect_with_hint(at_hospital, "ada")
    assert tokens.refresh_token is not None and tokens.provider_user_id is not None
    assert "offline_access" in tokens.scopes
    renewed = refresher(at_hospital)(tokens.refresh_token)
    assert renewed.access_token != tokens.access_token
    assert renewed.refresh_token == tokens.refresh_token
    with open_client(at_hospital, "ada") as client:
        account = fhir.identify(client)
    assert account.provider_user_id == tokens.provider_user_id
    assert account.profile == {"sex": "female", "birth_date": "1991-07"}


def test_authorization_proves_itself_and_names_the_server(at_hospital: Endpoint) -> None:
    asked = authorization(at_hospital, "http://127.0.0.1/callback")
    query = httpx.URL(asked.url).params
    assert (query["aud"], query["code_challenge_method"]) == (at_hospital.base_url, "S256")
    assert len(asked.state) >= 22 and asked.code_verifier is not None
    answer = httpx.get(asked.url + "&login_hint=ada", follow_redirects=False).headers["location"]
    assert exchange(at_hospital, asked, answer).provider_user_id


def test_client_without_a_secret_is_a_public_one() -> None:
    assert PROVIDER.oauth is not None
    endpoint = Endpoint("live", "https://fhir.example", PROVIDER.oauth, "app", SecretStr(""))
    with _client(endpoint, PROVIDER.oauth) as client:
        assert client.token_endpoint_auth_method == "none"


# Reading -------------------------------------------------------------------------------------------------


def read(client: ApiClient, entity: str) -> list[Parsed]:
    return [parse(page.content, entity) for page in fhir.fetch(client, PROVIDER.entity(entity), WINDOW)]


def test_everything_is_read_page_by_page(at_hospital: Endpoint, hospital: RunningSandbox) -> None:
    record = hospital.app.state.apis["fhir"].records["eli"]
    now = NOW.timestamp()
    with open_client(at_hospital, "eli") as client:
        for entity, kind in (
            ("observation", "Observation"),
            ("medication_request", "MedicationRequest"),
            ("diagnostic_report", "DiagnosticReport"),
            ("document_reference", "DocumentReference"),
        ):
            pages = read(client, entity)
            ids = [row["id"] for page in pages if page.tables for row in rows(page, entity)]
            assert len(ids) == len(set(ids))
            assert set(ids) == {filed.resource["id"] for filed in record.filed(kind, now)}
            assert all(page.quarantine.num_rows == 0 and page.notes == () for page in pages)
            if entity == "observation":
                # 48 vital signs on two pages, 162 results on five; the server caps what we ask for, and says so.
                assert [page.records_loaded for page in pages] == [40, 8, 40, 40, 40, 40, 2]
                assert [page.skipped for page in pages].count({"operation_outcome": 1}) == 2
        (patient,) = read(client, "patient")
        assert rows(patient, "patient")[0]["birth_precision"] == "month"


def test_missing_scope_is_a_missing_permission_and_a_dead_token_is_not(at_hospital: Endpoint) -> None:
    narrow = fhir.PROVIDER.oauth
    assert narrow is not None
    scopes = tuple(scope for scope in narrow.scopes if "Observation" not in scope)
    endpoint = replace(at_hospital, oauth=replace(narrow, scopes=scopes))
    with open_client(endpoint, "ada") as client:
        with pytest.raises(PermissionMissingError):
            read(client, "observation")
        assert read(client, "diagnostic_report")
    stranger = ApiClient("fhir", at_hospital.base_url, lambda _: "no", provider_user_id="p")
    with stranger, pytest.raises(AuthorizationError):
        read(stranger, "observation")


def test_429_is_waited_for(at_hospital: Endpoint, hospital: RunningSandbox) -> None:
    fault = {"provider": "fhir", "kind": "rate_limit", "count": 1, "retry_after": 7}
    time = Time()
    with open_client(at_hospital, "ada", time) as client:
        httpx.post(f"{hospital.url}/__faults", json=fault).raise_for_status()
        assert read(client, "document_reference")
    assert sum(time.slept) >= 7


def outcome(*codes: str) -> bytes:
    issues = [{"severity": "error", "code": code, "diagnostics": "about Amy Shaw"} for code in codes]
    return json.dumps({"resourceType": "OperationOutcome", "issue": issues}).encode()


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (400, outcome("too-costly"), RequestRejectedError, "too-costly"),
        (400, outcome("Amy Shaw 1987"), RequestRejectedError, "the request was refused"),
        (400, b'{"resourceType": "OperationOutcome"}', RequestRejectedError, "the request was refused"),
        (404, b"<html>", RequestRejectedError, "the request was refused"),
        (403, outcome("forbidden"), PermissionMissingError, "permission"),
        (500, outcome("exception"), ProviderUnavailableError, "unavailable"),
    ],
)
def test_operation_outcomes_say_why_without_saying_who(
    serve: Callable[[Answer], str], status: int, body: bytes, error: type[Exception], words: str
) -> None:
    client = client_of(serve(lambda path, query: (status, {}, body)))
    with client, pytest.raises(error, match=words) as caught:
        read(client, "document_reference")
    assert "Amy" not in str(caught.value)


def test_throttling_told_by_an_outcome_alone_is_waited_for(serve: Callable[[Answer], str]) -> None:
    answers = iter([(503, {"Retry-After": "3"}, outcome("throttled")), (200, {}, orjson.dumps(bundle(NOTE)))])
    time = Time()
    with client_of(serve(lambda path, query: next(answers)), time=time) as client:
        assert read(client, "document_reference")[0].records_loaded == 1
    assert sum(time.slept) >= 3


@pytest.mark.parametrize(
    ("link", "error", "words"),
    [
        ("https://elsewhere.example/next", RequestRejectedError, "no token is sent there"),
        ("?_getpages=same", MalformedResponseError, "circle"),
        (7, MalformedResponseError, "links cannot be read"),
    ],
)
def test_next_link_that_must_not_be_followed(
    serve: Callable[[Answer], str], link: Any, error: type[Exception], words: str
) -> None:
    body = {**bundle(NOTE), "link": [{"relation": "self", "url": "x"}, {"relation": "next", "url": link}]}
    base = serve(lambda path, query: (200, {}, orjson.dumps(body)))
    with ApiClient("fhir", base, lambda _: "t", provider_user_id="p") as client:
        pages = fhir.fetch(client, PROVIDER.entity("document_reference"), WINDOW)
        assert parse(next(pages).content).records_loaded == 1
        with pytest.raises(error, match=words):
            list(pages)


def test_page_that_is_no_bundle_is_kept_and_reported(serve: Callable[[Answer], str]) -> None:
    base = serve(lambda path, query: (200, {}, outcome("exception")))
    with ApiClient("fhir", base, lambda _: "t", provider_user_id="p") as client:
        pages = fhir.fetch(client, PROVIDER.entity("observation"), WINDOW)
        assert next(pages).content == outcome("exception")
        with pytest.raises(MalformedResponseError, match="not a Bundle"):
            next(pages)


@pytest.mark.parametrize("patient", [None, "", "../Observation", "a?b"])
def test_without_a_patient_nothing_is_asked(patient: str | None) -> None:
    with ApiClient("fhir", "http://127.0.0.1:9", lambda _: "t", provider_user_id=patient) as client:
        with pytest.raises(RequestRejectedError, match="launch/patient"):
            read(client, "observation")
        with pytest.raises(RequestRejectedError, match="launch/patient"):
            fhir.identify(client)


def test_server_of_another_version_is_refused(serve: Callable[[Answer], str]) -> None:
    body = b'{"resourceType": "CapabilityStatement", "fhirVersion": "3.0.1"}'
    with (
        ApiClient("fhir", serve(lambda p, q: (200, {}, body)), lambda _: "t", provider_user_id="p") as client,
        pytest.raises(MalformedResponseError, match="R4"),
    ):
        fhir.identify(client)


def test_declaration() -> None:
    assert PROVIDER.oauth is not None and PROVIDER.webhook is None
    for entity in PROVIDER.entities:
        assert set(entity.key) <= set(entity.schema.names)
        assert all(not entity.schema.field(name).nullable for name in entity.key)
        if entity.endpoint is not None:
            assert (entity.window, entity.scope in PROVIDER.oauth.scopes) == ("everything", True)


class TestFiles:
    """What people have as a file: a Bundle, a resource, or the NDJSON of a Bulk Data export."""

    def test_ndjson_is_a_resource_a_line_and_a_bad_line_is_refused_alone(self) -> None:
        good = shared_observations()
        lines = [*map(orjson.dumps, good), b"", b'{"resourceType": "Observ', b'{"resourceType": "Encounter"}']
        parsed = parse(b"\n".join(lines))
        assert parsed.records_loaded == len(good) > 50
        assert parsed.skipped == {"other_resource_type": 1}
        (refused,) = parsed.quarantine.to_pylist()
        assert (refused["reason"], refused["location"]) == ("wrong_type", f"line {len(good) + 2}")

    def test_files_are_recognised_and_others_are_left_alone(self) -> None:
        assert fhir.sniff(b'\xef\xbb\xbf{\n  "resourceType": "Bundle", "entry": []}') > 0
        assert fhir.sniff(b'{"id": "a", "resourceType":"Observation"}\n{"resourceType"') > 0
        assert fhir.sniff(b'{"resourceType": "Claim"}') == 0
        assert fhir.sniff(b'[{"resourceType": "Bundle"}]') == fhir.sniff(b"resourceType,Bundle") == 0

    def test_a_bundle_has_as_many_observations_as_another_reader_finds(self) -> None:
        for path in sorted((SHARED / "data" / "fhir_synthea_r4").glob("*.json")):
            content = path.read_bytes()
            said = [entry["resource"]["resourceType"] for entry in json.loads(content)["entry"]]
            parsed = parse(content)
            assert fhir.sniff(content[:65536]) > 0
            assert parsed.records_in == len(said)
            kept = {"Observation": "observation", "DiagnosticReport": "diagnostic_report"}
            for kind, table in kept.items():
                assert parsed.tables[table].num_rows == said.count(kind)


def shared_observations() -> list[Any]:
    """The Observations of a published patient."""
    found = sorted((SHARED / "data" / "fhir_synthea_r4").glob("*.json"))
    if not found:
        pytest.skip("no shared folder")
    resources = [entry["resource"] for entry in json.loads(found[0].read_bytes())["entry"]]
    return [resource for resource in resources if resource["resourceType"] == "Observation"]
