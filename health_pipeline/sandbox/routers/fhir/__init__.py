"""A hospital's FHIR R4 server: SMART discovery and launch, US Core's searches, paging, OperationOutcomes."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.oauth import Grant, OAuthRules, TokenError
from health_pipeline.sandbox.routers import ProviderApi, Revision, SampleRequest, TrueValue
from health_pipeline.sandbox.routers.fhir.clinic import bmi
from health_pipeline.sandbox.routers.fhir.resources import Filed, Record

_KINDS = ("Patient", "Observation", "MedicationRequest", "DiagnosticReport", "DocumentReference")
_DATE = re.compile(r"(eq|ge|gt|le|lt)?(\d{4}-\d\d-\d\d)(T.*)?")
#: What a search may select by, and one of the combinations it has to have.
_SEARCHABLE: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "Observation": (frozenset({"category", "code", "date", "status"}), ("category", "code")),
    "MedicationRequest": (frozenset({"intent", "status"}), ("intent",)),
    "DiagnosticReport": (frozenset({"category", "code", "date", "status"}), ()),
    "DocumentReference": (frozenset({"category", "type", "date", "status"}), ("category", "type")),
}


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _fhir(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/fhir+json; charset=UTF-8")


def _issue(code: str, words: str, severity: str = "error") -> dict[str, Any]:
    return {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": severity, "code": code, "diagnostics": words}],
    }


def _problem(status: int, code: str, words: str, headers: Mapping[str, str] | None = None) -> Response:
    return _fhir(_issue(code, words), status, headers)


def _refuse_launch(query: Mapping[str, str]) -> str | None:
    """SMART wants to hear which server the token is for, and no plain PKCE."""
    if not query.get("aud", "").rstrip("/").endswith("/fhir"):
        return "invalid_request"
    return None if query.get("code_challenge_method") == "S256" else "invalid_request"


def _samples() -> dict[str, SampleRequest]:
    """Eli's record of a visit: SI units, a spoilt sample, a contained medication."""
    since = {"date": "ge2026-06-01"}
    searches = {
        "observation": ("Observation", {"category": "vital-signs", **since}),
        "observation.2": ("Observation", {"category": "laboratory", "_count": "50", **since}),
        "medication_request": ("MedicationRequest", {"intent": "order"}),
        "diagnostic_report": ("DiagnosticReport", since),
        "document_reference": ("DocumentReference", {"category": "clinical-note", **since}),
    }
    return {
        f"{name}.json": SampleRequest(f"/{kind}", {"patient": "me", **params})
        for name, (kind, params) in searches.items()
    }


class API(ProviderApi):
    """SMART on FHIR."""

    name: ClassVar[str] = "fhir"
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())
    sample_person: ClassVar[str] = "eli"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=(
            *("launch/patient", "openid", "fhirUser", "offline_access"),
            *(f"patient/{kind}.{verbs}" for verbs in ("rs", "read") for kind in (*_KINDS, "*")),
        ),
        rotates=False,
        requires_pkce=True,
        code_seconds=300,
        access_seconds=3600,
        refuse_authorization=_refuse_launch,
    )

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.records = {handle: Record(life_of(person)) for handle, person in sandbox.people.items()}
        self.oauth.rules = replace(self.oauth.rules, write_answer=self._token_answer)

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/.well-known/smart-configuration", self._configuration, methods=["GET"])
        router.add_api_route("/metadata", self._metadata, methods=["GET"])
        router.add_api_route("", self._page, methods=["GET"])
        router.add_api_route("/{kind}", self._search, methods=["GET"])
        router.add_api_route("/{kind}/{resource_id}", self._one, methods=["GET"])
        return router

    def unauthorized(self, reason: str) -> Response:
        return _problem(
            401, "login", f"The access token is not valid: {reason}.", {"WWW-Authenticate": "Bearer"}
        )

    def rate_limited(self, retry_after: int) -> Response:
        return _problem(429, "throttled", "Too many requests.", {"Retry-After": str(retry_after)})

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        record = self.records[handle]
        now = self.sandbox.now().timestamp()
        if day not in {visit.date for visit in record.visits(now)}:
            raise LookupError(f"{handle} was not at the doctor's on {day}")
        if kind == "delete":
            record.deleted[day] = now
        else:
            record.edits[day] = (record.edits.get(day, (0, 0.0))[0] + 1, now)
        return [filed.resource["id"] for filed in record.filed("Observation", now) if filed.date == day]

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        record = self.records[handle]
        now = self.sandbox.now().timestamp()
        values: list[TrueValue] = []
        for visit in record.visits(now):
            if not start <= visit.date <= end or visit.date in record.deleted:
                continue
            vitals = visit.vitals | {"weight": record.weight(visit)}
            vitals["bmi"] = bmi(vitals["weight"], vitals["height"])
            vitals["height"] /= 100
            values += [TrueValue(metric, visit.date, value, 1e-9) for metric, value in vitals.items()]
            if visit.issued <= now:
                values += [
                    TrueValue(
                        result.analyte.metric,
                        visit.date,
                        result.analyte.detection_limit or 0.0 if result.comparator else result.true,
                        result.unit.rounding * 1.01,
                    )
                    for result in visit.results
                    if result.value is not None
                ]
        return values

    # Routes

    async def _configuration(self, request: Request) -> Response:
        base = self._base(request)
        return Response(
            orjson.dumps(
                {
                    "issuer": base,
                    "authorization_endpoint": f"{base}{self.oauth.rules.authorize_path}",
                    "token_endpoint": f"{base}{self.oauth.rules.token_path}",
                    "revocation_endpoint": f"{base}{self.oauth.rules.revoke_path}",
                    "grant_types_supported": ["authorization_code", "refresh_token"],
                    "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
                    "code_challenge_methods_supported": ["S256"],
                    "scopes_supported": list(self.oauth.rules.scopes),
                    "response_types_supported": ["code"],
                    "capabilities": [
                        "launch-standalone",
                        "client-public",
                        "client-confidential-symmetric",
                        "context-standalone-patient",
                        "permission-offline",
                        "permission-patient",
                        "permission-v1",
                        "permission-v2",
                    ],
                }
            ),
            media_type="application/json",
        )

    async def _metadata(self, request: Request) -> Response:
        resources = [
            {
                "type": kind,
                "interaction": [{"code": "read"}, {"code": "search-type"}],
                "searchParam": [
                    {"name": name, "type": "date" if name == "date" else "token"}
                    for name in sorted(_SEARCHABLE.get(kind, (frozenset(), ()))[0])
                ],
            }
            for kind in _KINDS
        ]
        base = self._base(request)
        uris = {"authorize": self.oauth.rules.authorize_path, "token": self.oauth.rules.token_path}
        security = {
            "extension": [
                {
                    "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
                    "extension": [{"url": name, "valueUri": f"{base}{path}"} for name, path in uris.items()],
                }
            ]
        }
        return _fhir(
            {
                "resourceType": "CapabilityStatement",
                "status": "active",
                "date": "2024-01-01",
                "kind": "instance",
                "fhirVersion": "4.0.1",
                "format": ["json"],
                "rest": [{"mode": "server", "security": security, "resource": resources}],
            }
        )

    async def _search(self, request: Request, kind: str) -> Response:
        try:
            grant = self._grant(request, kind)
            params = dict(request.query_params)
            self._check(grant, kind, params)
            return self._bundle(request, grant, kind, params, 0)
        except _ApiError as error:
            return error.response

    async def _page(self, request: Request) -> Response:
        """The next page, by a link that only this server can read."""
        token = request.query_params.get("_getpages", "")
        try:
            text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            kind, params, offset = orjson.loads(text)
            return self._bundle(request, self._grant(request, kind), kind, params, offset)
        except _ApiError as error:
            return error.response
        except (ValueError, TypeError, binascii.Error):
            return _problem(410, "expired", "There is no such page any more; search again.")

    async def _one(self, request: Request, kind: str, resource_id: str) -> Response:
        try:
            grant = self._grant(request, kind)
        except _ApiError as error:
            return error.response
        record = self.records[grant.handle]
        if kind == "Patient":
            found = [record.patient()]
        else:
            found = [filed.resource for filed in record.filed(kind, self.sandbox.now().timestamp())]
        for resource in found:
            if resource["id"] == resource_id:
                return _fhir(resource, headers={"ETag": f'W/"{resource["meta"]["versionId"]}"'})
        return _problem(404, "not-found", f"There is no such {kind}.")

    # Parts

    def _token_answer(self, answer: dict[str, Any], grant: Grant) -> dict[str, Any]:
        if "offline_access" not in grant.scopes:
            answer.pop("refresh_token")
        if "launch/patient" in grant.scopes:
            answer["patient"] = self.records[grant.handle].patient_id
        return answer

    def _base(self, request: Request) -> str:
        return f"{str(request.base_url).rstrip('/')}/{self.name}"

    def _grant(self, request: Request, kind: str) -> Grant:
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error
        if kind not in _KINDS:
            raise _ApiError(_problem(404, "not-supported", "Unknown resource type."))
        wanted = {f"patient/{name}.{verbs}" for name in (kind, "*") for verbs in ("rs", "read")}
        if not wanted & grant.scopes:
            raise _ApiError(_problem(403, "forbidden", f"The token gives no access to {kind}."))
        return grant

    def _check(self, grant: Grant, kind: str, params: Mapping[str, str]) -> None:
        known, one_of = _SEARCHABLE.get(kind, (frozenset(), ()))
        # A shorthand of this sandbox's own, so that its samples name nobody.
        if params.get("patient") not in (self.records[grant.handle].patient_id, "me"):
            raise _ApiError(_problem(403, "forbidden", "The token is for another patient."))
        unknown = set(params) - known - {"patient", "_count"}
        if unknown:
            raise _ApiError(
                _problem(400, "not-supported", f"No search by {', '.join(sorted(unknown))} on {kind}.")
            )
        if one_of and not any(name in params for name in one_of):
            raise _ApiError(_problem(400, "too-costly", f"Give one of {', '.join(one_of)}, too."))
        if "date" in params and not _DATE.fullmatch(params["date"]):
            raise _ApiError(_problem(400, "invalid", "date is not a date."))
        if not params.get("_count", "1").isdigit():
            raise _ApiError(_problem(400, "invalid", "_count is not a number."))

    def _bundle(
        self, request: Request, grant: Grant, kind: str, params: Mapping[str, str], offset: int
    ) -> Response:
        record = self.records[grant.handle]
        base = self._base(request)
        if kind == "Patient":
            found = [record.patient()]
        else:
            every = record.filed(kind, self.sandbox.now().timestamp())
            found = [filed.resource for filed in every if _matches(filed, params)]
        asked = int(params.get("_count", 20))
        size = max(1, min(asked, self.sandbox.settings.document_page_size))
        entries: list[dict[str, Any]] = [
            {
                "fullUrl": f"{base}/{kind}/{resource['id']}",
                "resource": resource,
                "search": {"mode": "match"},
            }
            for resource in found[offset : offset + size]
        ]
        if asked > size and offset == 0:
            words = f"A page has at most {size} resources."
            entries.append(
                {"resource": _issue("informational", words, "information"), "search": {"mode": "outcome"}}
            )
        links = [{"relation": "self", "url": str(request.url)}]
        if offset + size < len(found):
            token = base64.urlsafe_b64encode(orjson.dumps([kind, params, offset + size])).decode().rstrip("=")
            links.append({"relation": "next", "url": f"{base}?_getpages={token}"})
        body: dict[str, Any] = {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": len(found),
            "link": links,
        }
        return _fhir(body | {"entry": entries} if entries else body)


def _matches(filed: Filed, params: Mapping[str, str]) -> bool:
    resource = filed.resource
    for name, value in params.items():
        wanted = {part.rpartition("|")[2] for part in value.split(",")}
        if name == "date":
            fits = _on(filed.date, value)
        elif name in ("category", "code", "type"):
            concepts = resource[name] if name == "category" else [resource[name]]
            fits = bool(wanted & {coding["code"] for concept in concepts for coding in concept["coding"]})
        elif name in ("intent", "status"):
            fits = resource[name] in wanted
        else:
            fits = True
        if not fits:
            return False
    return True


def _on(date: dt.date, asked: str) -> bool:
    match = _DATE.fullmatch(asked)
    assert match is not None
    day = dt.date.fromisoformat(match[2])
    return {
        "ge": date >= day,
        "gt": date > day,
        "le": date <= day,
        "lt": date < day,
    }.get(match[1] or "eq", date == day)
