"""SMART on FHIR R4: a hospital's record of one patient, read with the patient's own consent.

Every hospital has a server of its own, so the base URL is a setting and the OAuth addresses are discovered
there. A search cannot say what changed (`_lastUpdated` is optional, deletions never show), results are amended
long after their date, and a history begins before any window: each fetch therefore reads everything. Whose
record it is comes with the tokens (`patient`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import orjson

from health_pipeline.providers._fhir_bundle import parse
from health_pipeline.providers._fhir_resources import RESOURCES, VALUE_SCHEMA
from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers.base import (
    Account,
    Entity,
    OAuth,
    Page,
    Provider,
    Verdict,
    Window,
)
from health_pipeline.providers.http import (
    ApiClient,
    MalformedResponseError,
    RequestRejectedError,
    usual_verdict,
)

_RESOURCE_TYPE = re.compile(rb'"resourceType"\s*:\s*"(\w+)"')
_SNIFFED_BYTES = 4096
_FHIR_JSON = {"Accept": "application/fhir+json"}
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
#: What to ask a page to hold; servers cap it as they like.
_PAGE_SIZE = 100
#: Where servers older than `.well-known/smart-configuration` name their addresses.
_OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"

#: The searches of an entity, each without the patient: those that a US Core server has to support.
_SEARCHES: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "observation": ({"category": "vital-signs"}, {"category": "laboratory"}),
    "medication_request": ({"intent": "order"}, {"intent": "plan"}),
    "diagnostic_report": ({},),
    "document_reference": ({"category": "clinical-note"},),
}


def discover(oauth: OAuth, base_url: str) -> OAuth:
    """The authorization server of a FHIR server, with what it asks of its clients.

    Raises httpx.HTTPError where the server does not answer, ValueError where it names no usable addresses.
    """
    base = httpx.URL(base_url.rstrip("/") + "/")
    with httpx.Client(timeout=_TIMEOUT, headers={"Accept": "application/json"}) as client:
        answer = client.get(base.join(".well-known/smart-configuration"))
        if answer.status_code in (404, 405):
            said = _from_capabilities(
                client.get(base.join("metadata"), headers=_FHIR_JSON).raise_for_status()
            )
        else:
            said = load_object(answer.raise_for_status().content)
    methods = said.get("code_challenge_methods_supported")
    if isinstance(methods, list) and "S256" not in methods:
        raise ValueError("the server does not support PKCE with S256, which SMART requires")
    capabilities = said.get("capabilities") or ()
    scopes = oauth.scopes
    if "permission-v1" in capabilities and "permission-v2" not in capabilities:
        scopes = tuple(scope.replace(".rs", ".read") for scope in scopes)
    basic = said.get("token_endpoint_auth_methods_supported") == ["client_secret_basic"]
    return replace(
        oauth,
        authorize_url=_address(said, "authorization_endpoint", base),
        token_url=_address(said, "token_endpoint", base),
        revoke_url=_address(said, "revocation_endpoint", base) if said.get("revocation_endpoint") else None,
        scopes=scopes,
        client_authentication="client_secret_basic" if basic else oauth.client_authentication,
        # The token is for this server: a page that pretends to be it would get none that is of use here.
        authorize_params={**oauth.authorize_params, "aud": base_url.rstrip("/")},
    )


def _address(said: Mapping[str, Any], name: str, base: httpx.URL) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"the server's SMART configuration has no {name}")
    # Some older servers give it relative to their base.
    return str(base.join(value))


def _from_capabilities(answer: httpx.Response) -> dict[str, Any]:
    said: dict[str, Any] = {}
    names = {
        "authorize": "authorization_endpoint",
        "token": "token_endpoint",
        "revoke": "revocation_endpoint",
    }
    for rest in load_object(answer.content).get("rest") or ():
        for extension in (rest.get("security") or {}).get("extension") or ():
            if extension.get("url") == _OAUTH_URIS:
                for uri in extension.get("extension") or ():
                    if uri.get("url") in names:
                        said[names[uri["url"]]] = uri.get("valueUri")
    return said


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """An OperationOutcome's issue codes are words of FHIR's own and hold nothing of the patient."""
    if response.is_success:
        return None
    usual = usual_verdict(response, now)
    codes = _issue_codes(response.content)
    if not codes:
        return usual
    if "throttled" in codes and usual.kind in ("rejected", "unavailable"):
        return replace(usual, kind="rate_limited")
    if usual.kind == "rejected":
        return replace(usual, message=f"the server refused ({', '.join(codes)})")
    return usual


def _issue_codes(content: bytes) -> list[str]:
    try:
        body = orjson.loads(content)
        if body["resourceType"] != "OperationOutcome":
            return []
        codes = [issue["code"] for issue in body["issue"]]
    except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
        return []
    # FHIR's codes are short words; anything else might be somebody's name.
    return [
        code for code in codes if isinstance(code, str) and code.replace("-", "").isalpha() and len(code) < 20
    ]


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """All there is of an entity, page by page; `window` only says for which days it was asked.

    A page whose body cannot be paged through is yielded, so that it is kept, and MalformedResponseError is
    raised after it. Raises the errors of `ApiClient.get`.
    """
    if entity.endpoint is None:
        raise ValueError(f"fhir has no endpoint for {entity.name}: it is filled from other objects")
    patient = _patient(client)
    if entity.name == "patient":
        content = client.request("GET", f"{entity.endpoint}/{patient}", headers=_FHIR_JSON).content
        yield Page(entity.name, content, window, "application/fhir+json")
        return
    for search in _SEARCHES[entity.name]:
        yield from _pages(client, entity, {"patient": patient, **search, "_count": _PAGE_SIZE}, window)


def _pages(
    client: ApiClient, entity: Entity, params: Mapping[str, str | int], window: Window
) -> Iterator[Page]:
    assert entity.endpoint is not None
    response = client.request("GET", entity.endpoint, params, headers=_FHIR_JSON)
    seen: set[str] = set()
    while True:
        yield Page(entity.name, response.content, window, "application/fhir+json")
        next_url = _next_url(client, entity.endpoint, response)
        if next_url is None:
            return
        if next_url in seen:
            raise MalformedResponseError(
                client.provider, entity.endpoint, 200, "the pages go round in a circle"
            )
        seen.add(next_url)
        # Opaque, and on the same host: the client sends no token elsewhere.
        response = client.request("GET", next_url, headers=_FHIR_JSON)


def _next_url(client: ApiClient, path: str, response: httpx.Response) -> str | None:
    try:
        body = load_object(response.content)
        if body.get("resourceType") != "Bundle":
            raise MalformedBodyError("the body is not a Bundle")
        urls = [link["url"] for link in body.get("link") or () if link.get("relation") == "next"]
        return str(response.url.join(urls[0])) if urls else None
    except MalformedBodyError as error:
        problem = str(error)
    except (AttributeError, KeyError, TypeError, httpx.InvalidURL):
        problem = "the Bundle's links cannot be read"
    raise MalformedResponseError(client.provider, path, 200, f"{problem}; the rest of the pages is unknown")


def _patient(client: ApiClient) -> str:
    patient = client.provider_user_id
    if not patient or not all(character.isalnum() or character in "-." for character in patient):
        raise RequestRejectedError(
            client.provider,
            "Patient",
            None,
            "the consent named no patient (launch/patient); connect again and choose one",
        )
    return patient


def identify(client: ApiClient) -> Account:
    """Whose record the tokens open: the patient that the token answer named; sex and birth date where known.

    Raises RequestRejectedError where it named none, MalformedResponseError for a server that is not R4.
    """
    patient = _patient(client)
    statement = _resource(client, "metadata", "CapabilityStatement")
    version = statement.get("fhirVersion")
    if not isinstance(version, str) or not version.startswith("4."):
        raise MalformedResponseError(client.provider, "metadata", 200, "the server does not speak FHIR R4")
    body = _resource(client, f"Patient/{patient}", "Patient")
    names = {"sex": "gender", "birth_date": "birthDate"}
    return Account(
        patient, {name: body[field] for name, field in names.items() if isinstance(body.get(field), str)}
    )


def _resource(client: ApiClient, path: str, kind: str) -> dict[str, Any]:
    response = client.request("GET", path, headers=_FHIR_JSON)
    try:
        body = load_object(response.content)
    except MalformedBodyError:
        body = {}
    if body.get("resourceType") != kind:
        raise MalformedResponseError(client.provider, path, response.status_code, f"no {kind} came")
    return body


def sniff(head: bytes) -> float:
    """Certain of JSON that names a resource we take, or a Bundle, near its beginning."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    found = _RESOURCE_TYPE.search(start[:_SNIFFED_BYTES]) if start.startswith(b"{") else None
    kind = found.group(1).decode() if found else None
    return 0.95 if kind == "Bundle" or kind in RESOURCES else 0.0


def _entity(kind: str, description: str) -> Entity:
    resource = RESOURCES[kind]
    return Entity(
        name=resource.entity,
        schema=resource.schema,
        key=("id",),
        description=description,
        endpoint=kind,
        window="everything",
        paging="none" if kind == "Patient" else "link",
        scope=f"patient/{kind}.rs",
    )


PROVIDER = Provider(
    name="fhir",
    title="SMART on FHIR R4",
    door="fetch",
    oauth=OAuth(
        # Found at the server by `discover`, like `aud`.
        authorize_url="",
        token_url="",
        scopes=("launch/patient", "offline_access", *(f"patient/{kind}.rs" for kind in RESOURCES)),
        pkce=True,
        rotates_refresh_token=False,
        user_id_field="patient",
        discover=discover,
    ),
    limit_signal="429 or an OperationOutcome `throttled`, Retry-After where the server is kind.",
    interpret=interpret,
    # Every fetch reads the whole record, which changes with visits.
    poll_hours=4,
    entities=(
        _entity("Patient", "One row a version of the patient: birth date and gender, no names."),
        _entity("Observation", "One row an Observation: what was measured and when; values are beside it."),
        Entity(
            name="observation_value",
            schema=VALUE_SCHEMA,
            key=("observation_id", "position"),
            description="One row a value of an Observation: its own at position 0, its components' from 1 on.",
        ),
        _entity("MedicationRequest", "One row a prescription, or a medicine that the patient reports."),
        _entity("DiagnosticReport", "One row a report: its metadata and the Observations it is of."),
        _entity("DocumentReference", "One row a clinical document: its metadata; content stays in raw."),
    ),
    parse=parse,
    fetch=fetch,
    identify=identify,
    sniff=sniff,
)
