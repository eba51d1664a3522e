"""The record of one person as FHIR R4 resources, in US Core's shapes."""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from health_pipeline.sandbox.life import Life
from health_pipeline.sandbox.routers.fhir.clinic import Result, Visit, bmi, visits

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
_RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_PROFILE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"

#: Metric: codes (LOINC, words), unit, its printed form. Blood pressure is a panel of its own.
_VITALS: dict[str, tuple[tuple[tuple[str, str], ...], str, str]] = {
    "weight": ((("29463-7", "Body weight"),), "kg", "kg"),
    "height": ((("8302-2", "Body height"),), "cm", "cm"),
    "bmi": ((("39156-5", "Body mass index (BMI) [Ratio]"),), "kg/m2", "kg/m2"),
    "heart_rate": ((("8867-4", "Heart rate"),), "/min", "beats/min"),
    "respiratory_rate": ((("9279-1", "Respiratory rate"),), "/min", "breaths/min"),
    "body_temperature": ((("8310-5", "Body temperature"),), "Cel", "°C"),
    "spo2": (
        (
            ("2708-6", "Oxygen saturation in Arterial blood"),
            ("59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry"),
        ),
        "%",
        "%",
    ),
}
_PANELS: dict[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    "metabolic": (
        ("24323-8", "Comprehensive metabolic panel"),
        (
            *("blood_glucose", "creatinine", "urea_nitrogen", "sodium", "potassium", "chloride"),
            *("carbon_dioxide", "calcium", "albumin", "alt", "ast"),
        ),
    ),
    "cbc": (
        ("58410-2", "CBC panel - Blood by Automated count"),
        ("hemoglobin", "hematocrit", "erythrocytes", "leukocytes", "platelets"),
    ),
}

#: Handle: RxNorm code, name, dosage, dose, its unit, times a day.
_PRESCRIBED: dict[str, tuple[tuple[str, str, str, float, str, int], ...]] = {
    "ada": (("310965", "Ibuprofen 200 MG Oral Tablet", "1 tablet as needed", 1, "tablet", 3),),
    "ben": (("314076", "lisinopril 10 MG Oral Tablet", "1 tablet in the morning", 1, "tablet", 1),),
    "chen": (("313782", "Acetaminophen 325 MG Oral Tablet", "2 tablets as needed", 2, "tablet", 4),),
    "dana": (
        (
            "106892",
            "insulin isophane, human 70 UNT/ML / insulin, regular, human 30 UNT/ML Injectable Suspension",
            "18 units before breakfast and dinner",
            18,
            "units",
            2,
        ),
    ),
    "eli": (
        (
            "860975",
            "24 HR Metformin hydrochloride 500 MG Extended Release Oral Tablet",
            "1 tablet with dinner",
            1,
            "tablet",
            1,
        ),
        ("314231", "Simvastatin 10 MG Oral Tablet", "1 tablet at night", 1, "tablet", 1),
    ),
}


@dataclass(frozen=True, slots=True)
class Filed:
    """A resource, what searches compare, and when it came to be (epoch seconds)."""

    resource: dict[str, Any]
    date: dt.date
    available_at: float


@dataclass(slots=True)
class Record:
    """Everything the hospital has of one person.

    `edits` says how often a visit's day was corrected and when (epoch seconds), `deleted` which were entered
    in error.
    """

    life: Life
    edits: dict[dt.date, tuple[int, float]] = field(default_factory=dict)
    deleted: dict[dt.date, float] = field(default_factory=dict)

    @property
    def patient_id(self) -> str:
        return self.life.person.uuid("fhir", "Patient")

    def visits(self, now: float) -> list[Visit]:
        return list(visits(self.life, now))

    def weight(self, visit: Visit) -> float:
        """The weight as it now stands: each correction takes off the clothes, half a kilogram."""
        return round(visit.vitals["weight"] - 0.5 * self.edits.get(visit.date, (0, 0.0))[0], 1)

    def patient(self) -> dict[str, Any]:
        person = self.life.person
        given, family = person.name.split(" ", 1)
        return {
            "resourceType": "Patient",
            "id": self.patient_id,
            "meta": {
                "versionId": "1",
                "lastUpdated": "2024-01-01T08:00:00.000Z",
                "profile": [f"{_PROFILE}patient"],
            },
            "identifier": [
                {"system": "urn:oid:2.16.840.1.113883.4.1.999", "value": self.patient_id[:8].upper()}
            ],
            "active": True,
            "name": [{"use": "official", "family": family, "given": [given]}],
            "gender": person.sex,
            # The day is nobody's business.
            "birthDate": f"{person.birth_year}-07",
        }

    def filed(self, kind: str, now: float) -> list[Filed]:
        """The resources of a type that exist at an instant, newest first."""
        seen = self.visits(now)
        make = {
            "Observation": self._observations,
            "MedicationRequest": self._medication_requests,
            "DiagnosticReport": self._reports,
            "DocumentReference": self._notes,
        }[kind]
        found = make(seen)
        return [filed for filed in reversed(found) if filed.available_at <= now]

    # Parts

    def _iso(self, instant: float) -> str:
        return dt.datetime.fromtimestamp(instant, ZoneInfo(self.life.person.zone)).isoformat()

    def _id(self, kind: str, visit: Visit, part: str) -> str:
        return self.life.person.uuid("fhir", kind, visit.date.isoformat(), part)

    def _meta(self, visit: Visit, filed_at: float, profile: str) -> dict[str, Any]:
        edits, changed_at = self.edits.get(visit.date, (0, filed_at))
        deleted_at = self.deleted.get(visit.date)
        updated = dt.datetime.fromtimestamp(deleted_at or changed_at, dt.UTC)
        return {
            "versionId": str(1 + edits + (deleted_at is not None)),
            "lastUpdated": updated.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "profile": [f"{_PROFILE}{profile}"],
        }

    def _subject(self) -> dict[str, str]:
        return {"reference": f"Patient/{self.patient_id}", "display": self.life.person.name}

    def _observation(self, visit: Visit, part: str, profile: str, filed_at: float) -> dict[str, Any]:
        status = "amended" if visit.date in self.edits else "final"
        return {
            "resourceType": "Observation",
            "id": self._id("Observation", visit, part),
            "meta": self._meta(visit, filed_at, profile),
            "text": {
                "status": "generated",
                "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{self.life.person.name}: {part}</div>',
            },
            "status": "entered-in-error" if visit.date in self.deleted else status,
            "subject": self._subject(),
            "effectiveDateTime": self._iso(visit.at),
        }

    def _observations(self, seen: list[Visit]) -> list[Filed]:
        found: list[Filed] = []
        for visit in seen:
            found += [Filed(resource, visit.date, visit.at) for resource in self._vital_signs(visit)]
            found += [
                Filed(self._laboratory(visit, result), visit.date, visit.issued) for result in visit.results
            ]
            found.append(Filed(self._red_cell_volume(visit), visit.date, visit.issued))
        return found

    def _vital_signs(self, visit: Visit) -> list[dict[str, Any]]:
        category = [_concept(f"{_TERMINOLOGY}/observation-category", ("vital-signs", "Vital Signs"))]
        values = visit.vitals | {"weight": self.weight(visit)}
        values["bmi"] = bmi(values["weight"], values["height"])
        found = []
        for metric, (codes, unit, printed) in _VITALS.items():
            observation = self._observation(visit, metric, f"{metric.replace('_', '-')}", visit.at)
            value = {"value": values[metric], "unit": printed, "system": UCUM, "code": unit}
            found.append(
                observation | {"category": category, "code": _concept(LOINC, *codes), "valueQuantity": value}
            )
        pressure = self._observation(visit, "blood_pressure", "blood-pressure", visit.at)
        components = [
            {
                "code": _concept(LOINC, (code, f"{name} blood pressure")),
                "valueQuantity": {
                    "value": round(values[f"blood_pressure_{name.lower()}"]),
                    "unit": "mmHg",
                    "system": UCUM,
                    "code": "mm[Hg]",
                },
            }
            for code, name in (("8480-6", "Systolic"), ("8462-4", "Diastolic"))
        ]
        panel = _concept(LOINC, ("85354-9", "Blood pressure panel with all children optional"))
        return [*found, pressure | {"category": category, "code": panel, "component": components}]

    def _laboratory(self, visit: Visit, result: Result) -> dict[str, Any]:
        analyte, unit = result.analyte, result.unit
        observation = self._observation(visit, analyte.metric, "observation-lab", visit.issued) | {
            "category": [_concept(f"{_TERMINOLOGY}/observation-category", ("laboratory", "Laboratory"))],
            "code": _concept(LOINC, (unit.loinc, analyte.name)) | {"text": analyte.name},
            "issued": self._iso(visit.issued),
        }
        if analyte.metric == "ferritin":
            # Sent away: of the sample only the day is told.
            observation["effectiveDateTime"] = visit.date.isoformat()
        if result.value is None:
            reason = _concept(f"{_TERMINOLOGY}/data-absent-reason", ("error", "Error"))
            return observation | {"dataAbsentReason": reason}
        quantity: dict[str, Any] = {
            "value": int(result.value) if unit.decimals == 0 else result.value,
            "unit": unit.unit,
            "system": UCUM,
            "code": unit.unit,
        }
        if result.comparator is not None:
            quantity["comparator"] = result.comparator
        observation["valueQuantity"] = quantity
        limits = {
            end: unit.report(value)
            for end, value in (("low", analyte.low), ("high", analyte.high))
            if value is not None
        }
        if limits:
            observation["referenceRange"] = [
                {
                    end: {"value": value, "unit": unit.unit, "system": UCUM, "code": unit.unit}
                    for end, value in limits.items()
                }
            ]
            is_low = result.value < limits.get("low", result.value)
            is_high = result.value > limits.get("high", result.value)
            flag = "L" if is_low else "H" if is_high else "N"
            observation["interpretation"] = [
                _concept(f"{_TERMINOLOGY}/v3-ObservationInterpretation", (flag, flag))
            ]
        return observation

    def _red_cell_volume(self, visit: Visit) -> dict[str, Any]:
        """A value that no metric of ours is."""
        values = {result.analyte.metric: result.value or 0.0 for result in visit.results}
        quantity = {
            "value": round(10 * values["hematocrit"] / values["erythrocytes"], 1),
            "unit": "fL",
            "system": UCUM,
            "code": "fL",
        }
        return self._observation(visit, "mcv", "observation-lab", visit.issued) | {
            "category": [_concept(f"{_TERMINOLOGY}/observation-category", ("laboratory", "Laboratory"))],
            "code": _concept(LOINC, ("787-2", "MCV [Entitic mean volume] in Red Blood Cells")),
            "issued": self._iso(visit.issued),
            "valueQuantity": quantity,
        }

    def _medication_requests(self, seen: list[Visit]) -> list[Filed]:
        """Prescribed anew at every visit; what was prescribed before is then completed."""
        found: list[Filed] = []
        for visit in seen:
            for number, medicine in enumerate(_PRESCRIBED[self.life.person.handle]):
                resource = self._order(visit, f"order-{number}", medicine, by_reference=number == 1)
                resource["status"] = "active" if visit is seen[-1] else "completed"
                found.append(Filed(resource, visit.date, visit.at))
        if self.life.person.handle == "ada" and seen:
            medicine = ("313782", "Acetaminophen 325 MG Oral Tablet", "when in pain", 1, "tablet", 1)
            reported = self._order(seen[0], "reported", medicine) | {
                "intent": "plan",
                "reportedBoolean": True,
            }
            reported["authoredOn"] = f"{seen[0].date:%Y-%m}"
            found.insert(0, Filed(reported, seen[0].date, seen[0].at))
        return found

    def _order(
        self,
        visit: Visit,
        part: str,
        medicine: tuple[str, str, str, float, str, int],
        *,
        by_reference: bool = False,
    ) -> dict[str, Any]:
        code, name, text, dose, unit, times = medicine
        concept = _concept(_RXNORM, (code, name)) | {"text": name}
        medication: dict[str, Any] = {"medicationCodeableConcept": concept}
        if by_reference:
            medication = {
                "contained": [{"resourceType": "Medication", "id": "med", "code": concept}],
                "medicationReference": {"reference": "#med"},
            }
        return {
            "resourceType": "MedicationRequest",
            "id": self._id("MedicationRequest", visit, part),
            "meta": self._meta(visit, visit.at, "medicationrequest"),
            "status": "active",
            "intent": "order",
            **medication,
            "subject": self._subject(),
            "authoredOn": self._iso(visit.at + 900),
            "dosageInstruction": [
                {
                    "text": text,
                    "timing": {"repeat": {"frequency": times, "period": 1, "periodUnit": "d"}},
                    "doseAndRate": [{"doseQuantity": {"value": dose, "unit": unit}}],
                }
            ],
            "dispenseRequest": {
                "numberOfRepeatsAllowed": 1,
                "quantity": {"value": 90 * times * dose, "unit": unit},
            },
        }

    def _reports(self, seen: list[Visit]) -> list[Filed]:
        found = []
        for visit in seen:
            for panel, ((code, name), metrics) in _PANELS.items():
                results = [
                    {"reference": f"Observation/{self._id('Observation', visit, result.analyte.metric)}"}
                    for result in visit.results
                    if result.analyte.metric in metrics
                ]
                resource = {
                    "resourceType": "DiagnosticReport",
                    "id": self._id("DiagnosticReport", visit, panel),
                    "meta": self._meta(visit, visit.issued, "diagnosticreport-lab"),
                    "status": "entered-in-error"
                    if visit.date in self.deleted
                    else "amended"
                    if visit.date in self.edits
                    else "final",
                    "category": [_concept(f"{_TERMINOLOGY}/v2-0074", ("LAB", "Laboratory"))],
                    "code": _concept(LOINC, (code, name)) | {"text": name},
                    "subject": self._subject(),
                    "effectiveDateTime": self._iso(visit.at),
                    "issued": self._iso(visit.issued),
                    "result": results,
                }
                found.append(Filed(resource, visit.date, visit.issued))
        return found

    def _notes(self, seen: list[Visit]) -> list[Filed]:
        found = []
        for visit in seen:
            text = f"Visit of {visit.date:%d %B %Y}. In good health; bloods taken.".encode()
            category = _concept(
                "http://hl7.org/fhir/us/core/CodeSystem/us-core-documentreference-category",
                ("clinical-note", "Clinical Note"),
            )
            resource = {
                "resourceType": "DocumentReference",
                "id": self._id("DocumentReference", visit, "note"),
                "meta": self._meta(visit, visit.at, "documentreference"),
                "status": "entered-in-error" if visit.date in self.deleted else "current",
                "type": _concept(LOINC, ("11506-3", "Progress note")),
                "category": [category],
                "subject": self._subject(),
                "date": self._iso(visit.at + 1800),
                "content": [
                    {
                        "attachment": {
                            "contentType": "text/plain",
                            "data": base64.b64encode(text).decode(),
                            "size": len(text),
                            "title": "Progress note",
                        }
                    }
                ],
            }
            found.append(Filed(resource, visit.date, visit.at + 1800))
        return found


def _concept(system: str, *codes: tuple[str, str]) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": words} for code, words in codes]}
