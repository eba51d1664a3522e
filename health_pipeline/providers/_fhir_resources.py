"""The FHIR R4 resources we take, and what of each becomes which column of its staging table.

Dates may be a year, a month or a day: `*_precision` says which, and only those with a time have an instant.
Narrative and attachments stay in the raw object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    Column,
    instants,
    schema_of,
    strings,
    utc_offsets,
)

_TEXT = pa.string()
_FLOAT = pa.float64()
_INT = pa.int32()
_SHORT = pa.int16()

LOINC = frozenset({"http://loinc.org", "urn:oid:2.16.840.1.113883.6.1"})
RXNORM = frozenset({"http://www.nlm.nih.gov/research/umls/rxnorm", "urn:oid:2.16.840.1.113883.6.88"})

#: Between the codes of one concept; no code has it.
_SEPARATOR = "|"

#: A FHIR date, dateTime or instant: a year, a month, a day, or a time with its offset.
_DATE_TIME = re.compile(
    r"(?!0000)\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d))?)?)?", re.ASCII
)


def _date_times(values: Sequence[Any]) -> pa.Array:
    """FHIR dateTimes of any precision as text, fractions cut to microseconds; what is none is refused."""
    array = strings(values)
    if not all(value is None or _DATE_TIME.fullmatch(value) for value in values):
        raise ValueError("not a FHIR dateTime")
    array = pc.replace_substring_regex(array, r"(\.\d{6})\d+", r"\1")
    _days(array)
    instants(with_time(array).to_pylist())
    return array


def with_time(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.greater(pc.utf8_length(texts), 10), texts, None)


def _days(texts: pa.Array) -> pa.Array:
    """The day as printed, of a month or a year its first."""
    length = pc.utf8_length(texts)
    padded = pc.if_else(
        pc.equal(length, 4),
        pc.binary_join_element_wise(texts, "-01-01", ""),
        pc.if_else(pc.equal(length, 7), pc.binary_join_element_wise(texts, "-01", ""), texts),
    )
    return pc.utf8_slice_codeunits(padded, 0, 10).cast(pa.date32())


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not an array")
    return value


def _of_each(read: Callable[[Any], str | float | None], type_: pa.DataType = _TEXT) -> Any:
    """A conversion that reads each value by itself, nulls aside."""

    def convert(values: Sequence[Any]) -> pa.Array:
        found = [None if value is None else read(value) for value in values]
        return strings(found) if type_ == _TEXT else pa.array(found, type_)

    return convert


def _codings(concept: Any) -> list[dict[str, Any]]:
    return [_dict(coding) for coding in _list(_dict(concept).get("coding") or [])]


def _codes(concept: Any, systems: frozenset[str]) -> str | None:
    """A CodeableConcept's codes of these systems, in order."""
    codes = [coding.get("code") for coding in _codings(concept) if coding.get("system") in systems]
    return _SEPARATOR.join(dict.fromkeys(code for code in codes if code)) or None


def _words(concept: Any) -> str:
    """What a CodeableConcept calls itself, empty where it has no word for it."""
    said = [_dict(concept).get("text")]
    said += [coding.get(name) for coding in _codings(concept) for name in ("display", "code")]
    return next((text for text in said if text), "")


def _first_code(concept: Any) -> str | None:
    return next((coding["code"] for coding in _codings(concept) if coding.get("code")), None)


def _first_codes(concepts: Any) -> str | None:
    """The first code of each of several concepts, its words where it has none."""
    codes = [_first_code(concept) or _words(concept) for concept in _list(concepts)]
    return _SEPARATOR.join(dict.fromkeys(code for code in codes if code)) or None


def _display(reference: Any) -> str | None:
    found = _dict(reference)
    return found.get("display") or found.get("reference")


def _range_end(end: str) -> Callable[[Any], float | None]:
    """One end of the first reference range: the others are for other people (age, sex)."""

    def read(ranges: Any) -> float | None:
        first = _dict(_list(ranges)[0]) if ranges else {}
        value = _dict(first.get(end) or {}).get("value")
        if value is not None and type(value) not in (int, float):
            raise TypeError("not a number")
        return value

    return read


def _first_of(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: read(values[0]) if _list(values) else None


def _at(*path: str) -> Callable[[Any], Any]:
    """The value at a path of objects and of arrays, whose first element counts."""

    def read(value: Any) -> Any:
        for step in path:
            if isinstance(value, list):
                value = value[0] if value else None
            if value is None:
                return None
            value = _dict(value).get(step)
        return value

    return read


def _number_at(*path: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        found = _at(*path)(value)
        if found is not None and type(found) not in (int, float):
            raise TypeError("not a number")
        return found

    return read


def _joined_texts(values: Any) -> str | None:
    texts = [_dict(value).get("text") for value in _list(values)]
    return "; ".join(text for text in texts if text) or None


def _references(values: Any) -> str | None:
    """References, `Observation/1` and the like, in order."""
    said = [_dict(value).get("reference") for value in _list(values)]
    return _SEPARATOR.join(text for text in said if text) or None


def _concept(path: str, name: str, *, required: bool = False) -> Column:
    return Column(path, _TEXT, name, required=required, convert=_of_each(_words))


def _text(path: str, name: str, read: Callable[[Any], Any]) -> Column:
    return Column(path, _TEXT, name, convert=_of_each(read))


def _number(path: str, name: str, read: Callable[[Any], Any]) -> Column:
    return Column(path, _FLOAT, name, convert=_of_each(read, _FLOAT))


_RESOURCE = (
    Column("id", _TEXT, required=True),
    Column("meta.versionId", _TEXT, "version_id"),
    Column("meta.lastUpdated", _TEXT, "last_updated", convert=_date_times),
)


@dataclass(frozen=True, slots=True)
class Dated:
    """When something was: `sources` are columns of FHIR dateTimes, the first that says something counts.

    Becomes `{name}_at` (null for a date alone), `{name}_date` (as printed), `{name}_precision` and
    `utc_offset_minutes`, null for `Z`: servers that keep all in UTC say nothing of where it was. `dated_by`
    is the column that counted.
    """

    name: str
    sources: tuple[str, ...]

    @property
    def fields(self) -> list[pa.Field]:
        return [
            pa.field(f"{self.name}_at", UTC_TIMESTAMP),
            pa.field(f"{self.name}_date", pa.date32()),
            pa.field(f"{self.name}_precision", _TEXT),
            pa.field("utc_offset_minutes", _SHORT),
            pa.field("dated_by", _TEXT),
        ]

    def arrays(self, table: pa.Table) -> list[pa.Array]:
        said = [table[name].combine_chunks() for name in self.sources]
        texts = pc.coalesce(*said)
        timed = with_time(texts)
        moments = timed.cast(UTC_TIMESTAMP)
        length = pc.utf8_length(texts)
        precision = pc.case_when(
            pc.make_struct(pc.equal(length, 4), pc.equal(length, 7), pc.equal(length, 10)),
            "year",
            "month",
            "day",
            pc.if_else(pc.is_valid(texts), "time", None),
        )
        by = pc.case_when(
            pc.make_struct(*(pc.is_valid(array) for array in said)), *self.sources, pa.scalar(None, _TEXT)
        )
        offsets = pc.if_else(pc.ends_with(texts, "Z"), None, utc_offsets(timed.to_pylist(), moments))
        return [moments, _days(texts), precision, offsets.cast(_SHORT), by]


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource type and the staging table it becomes.

    `elements` are all that R4 has. `moments` are columns of an instant, made of a dateTime's, null where that
    has no time of day. `must_be_dated` refuses a record without any date, unless it says it was a mistake.
    """

    type: str
    entity: str
    columns: tuple[Column, ...]
    dated: Dated
    elements: frozenset[str]
    moments: Mapping[str, str] = field(default_factory=lambda: {"last_updated_at": "last_updated"})
    must_be_dated: bool = False

    @property
    def kept(self) -> list[str]:
        """Columns that are staged as they are read: all but the texts of dateTimes."""
        texts = {column.column for column in self.columns if column.convert is _date_times}
        return [name for name in schema_of(self.columns).names if name not in texts]

    @property
    def schema(self) -> pa.Schema:
        read = schema_of(self.columns)
        moments = [pa.field(name, UTC_TIMESTAMP) for name in self.moments]
        return pa.schema([*(read.field(name) for name in self.kept), *moments, *self.dated.fields])


def _elements(words: str) -> frozenset[str]:
    common = (
        "id meta implicitRules language text contained extension modifierExtension resourceType identifier"
    )
    return frozenset((*common.split(), *words.split()))


def _date(path: str, name: str) -> Column:
    return Column(path, _TEXT, name, convert=_date_times)


RESOURCES: Mapping[str, Resource] = {
    resource.type: resource
    for resource in (
        Resource(
            "Patient",
            "patient",
            (*_RESOURCE, Column("gender", _TEXT), _date("birthDate", "birth")),
            Dated("birth", ("birth",)),
            _elements(
                "active name telecom gender birthDate deceasedBoolean deceasedDateTime address maritalStatus "
                "multipleBirthBoolean multipleBirthInteger photo contact communication generalPractitioner "
                "managingOrganization link"
            ),
        ),
        Resource(
            "Observation",
            "observation",
            (
                *_RESOURCE,
                Column("status", _TEXT, required=True),
                _text("category", "category", _first_codes),
                _text("code", "loinc_codes", lambda code: _codes(code, LOINC)),
                _concept("code", "code_text", required=True),
                _date("effectiveDateTime", "effectiveDateTime"),
                _date("effectiveInstant", "effectiveInstant"),
                _date("effectivePeriod.start", "period_start"),
                _date("effectivePeriod.end", "period_end"),
                _date("issued", "issued"),
                _text("device", "device", _display),
            ),
            Dated(
                "effective", ("effectiveDateTime", "effectiveInstant", "period_start", "period_end", "issued")
            ),
            _elements(
                "basedOn partOf status category code subject focus encounter effectiveDateTime effectivePeriod "
                "effectiveTiming effectiveInstant issued performer valueQuantity valueCodeableConcept "
                "valueString valueBoolean valueInteger valueRange valueRatio valueSampledData valueTime "
                "valueDateTime valuePeriod dataAbsentReason interpretation note bodySite method specimen "
                "device referenceRange hasMember derivedFrom component"
            ),
            moments={
                "last_updated_at": "last_updated",
                "issued_at": "issued",
                "effective_end_at": "period_end",
            },
            must_be_dated=True,
        ),
        Resource(
            "MedicationRequest",
            "medication_request",
            (
                *_RESOURCE,
                Column("status", _TEXT, required=True),
                Column("intent", _TEXT, required=True),
                _text("medication", "rxnorm_codes", lambda concept: _codes(concept, RXNORM)),
                _concept("medication", "medication_text", required=True),
                Column("reportedBoolean", pa.bool_(), "is_reported"),
                _date("authoredOn", "authored"),
                _text("dosageInstruction", "dosage_text", _joined_texts),
                _number(
                    "dosageInstruction", "dose_value", _number_at("doseAndRate", "doseQuantity", "value")
                ),
                _text("dosageInstruction", "dose_unit", _at("doseAndRate", "doseQuantity", "unit")),
                Column("dispenseRequest.quantity.value", _FLOAT, "quantity_value"),
                Column("dispenseRequest.quantity.unit", _TEXT, "quantity_unit"),
                Column("dispenseRequest.numberOfRepeatsAllowed", _INT, "refills_allowed"),
                _text("reasonCode", "reason_text", _first_of(_words)),
            ),
            Dated("authored", ("authored",)),
            _elements(
                "status statusReason intent category priority doNotPerform reportedBoolean reportedReference "
                "medicationCodeableConcept medicationReference medication subject encounter "
                "supportingInformation authoredOn requester performer performerType recorder reasonCode "
                "reasonReference instantiatesCanonical instantiatesUri basedOn groupIdentifier "
                "courseOfTherapyType insurance note dosageInstruction dispenseRequest substitution "
                "priorPrescription detectedIssue eventHistory"
            ),
        ),
        Resource(
            "DiagnosticReport",
            "diagnostic_report",
            (
                *_RESOURCE,
                Column("status", _TEXT, required=True),
                _text("category", "category", _first_codes),
                _text("code", "loinc_codes", lambda code: _codes(code, LOINC)),
                _concept("code", "code_text", required=True),
                _date("effectiveDateTime", "effectiveDateTime"),
                _date("effectivePeriod.start", "period_start"),
                _date("effectivePeriod.end", "period_end"),
                _date("issued", "issued"),
                _text("result", "results", _references),
                Column("conclusion", _TEXT),
                _text("presentedForm", "content_type", _at("contentType")),
                Column("presentedForm", _INT, "attachments", convert=_of_each(lambda a: len(_list(a)), _INT)),
                _number("presentedForm", "size_bytes", _number_at("size")),
            ),
            Dated("effective", ("effectiveDateTime", "period_start", "period_end", "issued")),
            _elements(
                "basedOn status category code subject encounter effectiveDateTime effectivePeriod issued "
                "performer resultsInterpreter specimen result imagingStudy media conclusion conclusionCode "
                "presentedForm"
            ),
            moments={"last_updated_at": "last_updated", "issued_at": "issued"},
        ),
        Resource(
            "DocumentReference",
            "document_reference",
            (
                *_RESOURCE,
                Column("status", _TEXT, required=True),
                Column("docStatus", _TEXT, "document_status"),
                _text("category", "category", _first_codes),
                _text("type", "loinc_codes", lambda code: _codes(code, LOINC)),
                _concept("type", "type_text"),
                Column("description", _TEXT),
                _date("date", "date"),
                _date("context.period.start", "period_start"),
                _text("content", "title", _at("attachment", "title")),
                _text("content", "content_type", _at("attachment", "contentType")),
                Column(
                    "content",
                    _INT,
                    "attachments",
                    required=True,
                    convert=_of_each(lambda a: len(_list(a)), _INT),
                ),
                _number("content", "size_bytes", _number_at("attachment", "size")),
            ),
            Dated("document", ("date", "period_start")),
            _elements(
                "masterIdentifier status docStatus type category subject date author authenticator custodian "
                "relatesTo description securityLabel content context"
            ),
        ),
    )
}

VALUE_COLUMNS = (
    Column("observation_id", _TEXT, required=True),
    Column("position", _SHORT, required=True),
    _text("code", "loinc_codes", lambda code: _codes(code, LOINC)),
    _concept("code", "code_text", required=True),
    Column("valueQuantity.value", _FLOAT, "quantity"),
    Column("valueInteger", _INT, "integer"),
    Column("valueQuantity.unit", _TEXT, "unit"),
    Column("valueQuantity.code", _TEXT, "unit_code"),
    Column("valueQuantity.system", _TEXT, "unit_system"),
    Column("valueQuantity.comparator", _TEXT, "comparator"),
    Column("valueString", _TEXT, "string"),
    _concept("valueCodeableConcept", "concept"),
    _text("dataAbsentReason", "absent_reason", lambda concept: _first_code(concept) or _words(concept)),
    _text("interpretation", "interpretation", _first_codes),
    _number("referenceRange", "reference_low", _range_end("low")),
    _number("referenceRange", "reference_high", _range_end("high")),
)
VALUE_SCHEMA = pa.schema(
    [
        pa.field("observation_id", _TEXT, nullable=False),
        pa.field("position", _SHORT, nullable=False),
        pa.field("loinc_codes", _TEXT),
        pa.field("code_text", _TEXT, nullable=False),
        pa.field("value", _FLOAT),
        pa.field("value_text", _TEXT),
        *(pa.field(name, _TEXT) for name in ("unit", "unit_code", "unit_system", "comparator")),
        *(pa.field(name, _TEXT) for name in ("absent_reason", "interpretation")),
        pa.field("reference_low", _FLOAT),
        pa.field("reference_high", _FLOAT),
    ]
)
