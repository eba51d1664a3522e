"""Every real file that there is, through the door that people use, and totals of it counted by other tools.

A person a file, so that no file hides another's rows. What is in the warehouse is held against what `csv`, `json`,
`xml.etree` and `openpyxl` find in the file, with no code of ours between. `pytest -rP` shows the table of files,
records, loaded, skipped, quarantined with reasons. The files are not part of the repository.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openpyxl
import pytest
from canonical_lab import Lab

from health_pipeline.connections.users import ensure_user
from health_pipeline.ingestion.outcome import UploadSummary, read_outcome
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import Provider, UnreadableFileError
from health_pipeline.providers.registry import get
from health_pipeline.raw.index import Delivery

DATA = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared")) / "data"
RECEIVED = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
ZONE = "Europe/Berlin"
FOLDERS = ("apple_health", "cgm_*", "fitbit_*", "garmin_connect", "fhir_*")
#: Where what is not from Europe was recorded.
_ZONES = {"libre_amer_01": "America/New_York"}
#: Folders of answers that no person has as a file: they come by the other door.
_FETCHED = {"cgm_librelinkup": "librelinkup"}

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real files at {DATA}"),
    pytest.mark.slow,  # test_real_payloads and the providers' tests have the same files in smaller parts
]

#: Rows and their sum by metric, as the warehouse names it; or rows alone.
Totals = dict[str, tuple[int, float]]


@dataclass
class Taken:
    """A file, and what became of it; `refused` is what was said at the door."""

    path: Path
    option: str = ""
    refused: str = ""
    provider: Provider | None = None
    raw_object_id: int = 0
    summary: UploadSummary = field(default_factory=lambda: UploadSummary("", known=False))
    totals: Totals = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(DATA))


def _files() -> Iterator[tuple[Path, dict[str, str]]]:
    for path in sorted(each for folder in FOLDERS for each in DATA.glob(f"{folder}/**/*")):
        if not path.is_file() or path.name == "SOURCE.md":
            continue
        if path.parent.name == "fitbit_fitabase":
            people = sorted({row["Id"] for row in _table(path)})
            yield from ((path, {"participant": each}) for each in people)
        else:
            yield path, {"date_order": "dmy"} if path.stem.startswith("glyco") else {}


@pytest.fixture(scope="module")
def files(lab_of_module: Lab) -> list[Taken]:
    lab, found = lab_of_module, []
    for number, (path, options) in enumerate(_files()):
        taken = Taken(path, " ".join(options.values()))
        with lab.warehouse.engine.begin() as connection:
            user = ensure_user(connection, f"person{number}", ZONE)
        if (fetched := _FETCHED.get(path.parent.name)) is not None:
            taken.provider = get(fetched)
            day = RECEIVED.date()
            entity = path.stem.removesuffix("_response")
            (taken.raw_object_id,) = lab.receive(
                Delivery(
                    *(fetched, entity, user.user_id, "fetch", path.read_bytes(), RECEIVED, day, day),
                    "application/json",
                    time_zone=ZONE,
                )
            )
        else:
            try:
                done = upload(
                    *(lab.warehouse, lab.store, user, path),
                    time_zone=_ZONES.get(path.stem),
                    context=options,
                    received_at=RECEIVED,
                )
            except UnreadableFileError as error:
                taken.refused = str(error)
            else:
                taken.provider, taken.raw_object_id = done.provider, done.receipt.raw_object_id
        found.append(taken)
    lab.run(*sorted({taken.provider.name for taken in found if taken.provider}))
    for taken in found:
        if taken.provider is not None:
            read_outcome(lab.warehouse, taken.provider, taken.raw_object_id, taken.summary)
            taken.totals = _stored(lab, taken.raw_object_id)
    return found


def _stored(lab: Lab, raw_object_id: int) -> Totals:
    rows = lab.rows(
        """
        select metric_type as name, count(*) as rows, sum(metric_value) as total
        from health.health_metrics where raw_object_id = :id group by 1
        union all select 'readings ' || reading_type, count(*), sum(glucose_mg_dl)
        from health.glucose_readings where raw_object_id = :id group by 1
        union all select 'sleep sessions', count(*), null from health.sleep_sessions where raw_object_id = :id
        union all select 'workouts', count(*), null from health.workouts where raw_object_id = :id
        union all select 'medications', count(*), null from health.medications where raw_object_id = :id
        union all select 'documents', count(*), null from health.documents where raw_object_id = :id
        """,
        id=raw_object_id,
    )
    return {row["name"]: (row["rows"], float(row["total"] or 0)) for row in rows if row["rows"]}


def test_the_table_of_files(files: list[Taken]) -> None:
    """Each record is loaded, skipped or quarantined, and each refusal at the door has its reason."""
    head = f"{'file':66} {'kind':16} {'records':>8} {'loaded':>8} {'skipped':>8} {'quarantined'}"
    print(head)
    for (name, kind), group in _grouped(files).items():
        total = [
            sum(getattr(each.summary, part) for each in group) for part in ("records_in", "records_loaded")
        ]
        skipped = sum((each.summary.skipped for each in group), Counter())
        reasons: Counter[str] = Counter()
        for each in group:
            reasons.update({reason: len(places) for reason, places in each.summary.refused.items()})
        what = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "-"
        people = f" ({len(group)} people)" if len(group) > 1 else ""
        what = f"refused at the door: {group[0].refused}"[:110] if group[0].refused else what
        print(f"{name + people:66} {kind:16} {total[0]:8} {total[1]:8} {skipped.total():8} {what}")
        totals: Counter[str] = Counter()
        for each in group:
            totals.update({metric: rows for metric, (rows, _) in each.totals.items()})
        print(" " * 12 + ", ".join(f"{count} {metric}" for metric, count in sorted(totals.items())))
    assert [each.name for each in files if each.provider is not None and not each.summary.records_in] == []


def _grouped(files: list[Taken]) -> dict[tuple[str, str], list[Taken]]:
    groups: dict[tuple[str, str], list[Taken]] = {}
    for taken in files:
        kind = "-" if taken.provider is None else taken.provider.name
        groups.setdefault((taken.name, kind), []).append(taken)
    return groups


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


# Totals by other tools


def _sum(values: list[float]) -> tuple[int, float]:
    return len(values), sum(values)


def _glucose(values: list[float], kind: str = "cgm") -> Totals:
    found = {f"readings {kind}": _sum(values)}
    return found | ({"glucose": _sum(values)} if kind == "cgm" else {})


def _plain_table(path: Path) -> Totals:
    rows = {row["time"]: float(row.get("gl") or row["glucose"]) for row in _table(path)}
    return _glucose(list(rows.values()))


def _number(text: str, factor: float = 1.0) -> float:
    return {"Low": 39.0, "High": 401.0}.get(text) or float(text.replace(",", ".")) * factor


def _clarity(path: Path) -> Totals:
    if path.suffix == ".xlsx":
        sheet = openpyxl.load_workbook(path, read_only=True).worksheets[0]
        lines = [
            ["" if cell is None else str(cell) for cell in row] for row in sheet.iter_rows(values_only=True)
        ]
        factor = 18.0156
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines, factor = list(csv.reader(file)), 1.0
    return _glucose([_number(line[7], factor) for line in lines if line[2] == "EGV" and line[7]])


def _libreview(path: Path) -> Totals:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    head = next(number for number, line in enumerate(lines) if "Record Type" in line)
    delimiter = ";" if ";" in lines[head] else ","
    found: dict[str, list[float]] = {"0": [], "1": []}
    for row in csv.DictReader(lines[head:], delimiter=delimiter):
        column = {"0": "Historic Glucose", "1": "Scan Glucose"}.get(row["Record Type"])
        if column is not None:
            name = next(each for each in row if each.startswith(column))
            found[row["Record Type"]].append(float(row[name]) * (18.0156 if "mmol" in name else 1.0))
    return {**_glucose(found["0"]), **(_glucose(found["1"], "scan") if found["1"] else {})}


def _nightscout(path: Path) -> Totals:
    entries = json.loads(path.read_text())
    eaten = [each["carbs"] for each in entries if isinstance(each, dict) and each.get("carbs")]
    found = _glucose([each["sgv"] for each in entries if "sgv" in each])
    return {**found, "carbohydrates": _sum(eaten)}


def _librelinkup(path: Path) -> Totals:
    data = json.loads(path.read_text())["data"]
    if isinstance(data, list):
        return _glucose([each["ValueInMgPerDl"] for each in data], "scan")
    # The present value is left out: the history of the next call has it.
    return _glucose([each["ValueInMgPerDl"] for each in data["graphData"]])


def _apple(path: Path) -> Totals:
    records = ET.parse(path).getroot()
    names = {"BodyMassIndex": "bmi", "HeartRate": "heart_rate"}
    found = {
        metric: _sum(
            [
                float(each.get("value", "nan"))
                for each in records.iter("Record")
                if each.get("type") == f"HKQuantityTypeIdentifier{name}"
            ]
        )
        for name, metric in names.items()
    }
    return {**found, "workouts": (len(list(records.iter("Workout"))), 0)}


#: Column of each file of Fitabase: metric, and what one is in the catalogue's unit.
_FITABASE = {
    "dailyActivity_merged": {
        "TotalSteps": ("steps", 1),
        "TotalDistance": ("distance", 1000),
        "Calories": ("total_calories", 1),
    },
    "heartrate_seconds_sample": {"Value": ("heart_rate", 1)},
    "hourlyCalories_merged": {"Calories": ("total_calories", 1)},
    "hourlySteps_merged": {"StepTotal": ("steps", 1)},
    "sleepDay_merged": {"TotalMinutesAsleep": ("sleep_duration", 60), "TotalTimeInBed": ("time_in_bed", 60)},
    "weightLogInfo_merged": {"WeightKg": ("weight", 1), "BMI": ("bmi", 1), "Fat": ("body_fat", 1)},
}


def _fitabase(path: Path) -> Totals:
    """Of all people. Repetitions count once; a day without a step that was sedentary for 24 hours was not worn."""
    rows = [dict(row) for row in {tuple(row.items()) for row in _table(path)}]
    found = {}
    for column, (metric, factor) in _FITABASE.get(path.stem, {}).items():
        values = [
            float(row[column]) * factor
            for row in rows
            if row[column] and (row.get("TotalSteps"), row.get("SedentaryMinutes")) != ("0", "1440")
        ]
        if path.stem == "hourlySteps_merged":
            values = [value for value in values if value]  # no step in an hour is no record of steps
        found[metric] = _sum(values)
    return found


def _takeout(path: Path) -> Totals:
    return {"resting_heart_rate": _sum([each["value"]["value"] for each in json.loads(path.read_text())])}


def _garmin(path: Path) -> Totals:
    """Of the files whose totals a line can count."""
    body = json.loads(path.read_text())["body"]
    stem = path.stem
    if stem.startswith("daily_heart_rate"):
        pulse = [value for _, value in body["heartRateValues"] if value is not None]
        return {"heart_rate": _sum(pulse), "resting_heart_rate": (1, body["restingHeartRate"])}
    if stem == "daily_steps_0":
        return {
            "steps": _sum([each["totalSteps"] for each in body]),
            "distance": _sum([each["totalDistance"] for each in body]),
        }
    if stem.startswith("daily_stress_pagination"):
        values = [each["values"] for each in body]
        return {
            "stress_score": _sum([each["overallStressLevel"] for each in values]),
            "stress_high_time": _sum([each["highStressDuration"] for each in values]),
        }
    if stem == "daily_hrv_paginate_0":
        return {"heart_rate_variability": _sum([each["lastNightAvg"] for each in body["hrvSummaries"]])}
    if stem.startswith("sleep_data"):
        night = body["dailySleepDTO"]
        return {
            "sleep_duration": (1, night["sleepTimeSeconds"]),
            "deep_sleep": (1, night["deepSleepSeconds"]),
            "sleep sessions": (1, 0),
        }
    if stem.startswith("activity_list"):
        return {"workouts": (len(body), 0)}
    return {}


#: Codes that the bundles of Synthea have; what is measured in other units than the catalogue's is left out.
_LOINC = {
    "29463-7": "weight",
    "39156-5": "bmi",
    "4548-4": "hba1c",
    "8480-6": "blood_pressure_systolic",
    "8462-4": "blood_pressure_diastolic",
    "2339-0": "blood_glucose",
    "38483-4": "creatinine",
    "6298-4": "potassium",
    "2947-0": "sodium",
    "2093-3": "cholesterol_total",
    "18262-6": "cholesterol_ldl",
    "2085-9": "cholesterol_hdl",
    "2571-8": "triglycerides",
}


def _fhir(path: Path) -> Totals:
    said = json.loads(path.read_text())
    resources = [each["resource"] for each in said["entry"]] if said["resourceType"] == "Bundle" else [said]
    values: dict[str, list[float]] = {}
    for resource in resources:
        if resource["resourceType"] == "Observation" and "entry" in said:
            for part in (resource, *resource.get("component", ())):
                for coding in part["code"]["coding"]:
                    if coding["code"] in _LOINC and "valueQuantity" in part:
                        values.setdefault(_LOINC[coding["code"]], []).append(part["valueQuantity"]["value"])
    kinds = Counter(resource["resourceType"] for resource in resources)
    found = {metric: _sum(each) for metric, each in values.items()}
    counted = {
        "medications": kinds["MedicationRequest"],
        "documents": kinds["DiagnosticReport"] + kinds["DocumentReference"],
    }
    return found | {name: (count, 0) for name, count in counted.items() if count}


_COUNTERS: dict[str, Callable[[Path], Totals]] = {
    "apple_health": _apple,
    "cgm_cgmpy": _plain_table,
    "cgm_hall2018": _plain_table,
    "cgm_iglu_t2d": _plain_table,
    "cgm_dexcom_clarity": _clarity,
    "bigideas_synthetic": _clarity,
    "cgm_librelinkup": _librelinkup,
    "cgm_libreview": _libreview,
    "cgm_nightscout": _nightscout,
    "fitbit_fitabase": _fitabase,
    "fitbit_takeout": _takeout,
    "garmin_connect": _garmin,
    "fhir_synthea_r4": _fhir,
    "fhir_uscore": _fhir,
}


def test_totals_are_those_of_other_tools(files: list[Taken]) -> None:
    wrong, compared = [], 0
    for (name, _), group in _grouped(files).items():
        if group[0].refused:
            continue
        stored: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        for taken in group:
            for metric, (count, total) in taken.totals.items():
                rows[metric] += count
                stored[metric] += total
        path = group[0].path
        for metric, (count, total) in _COUNTERS[path.parent.name](path).items():
            compared += 1
            same = rows[metric] == count and (not total or stored[metric] == pytest.approx(total, rel=1e-4))
            if count and not same:
                wrong.append((name, metric, (count, total), (rows[metric], stored[metric])))
    print(f"{compared} totals compared")
    assert compared > 120
    assert wrong == []


def test_what_is_refused_at_the_door_holds_nothing_of_the_catalogue(files: list[Taken]) -> None:
    refused = {taken.name for taken in files if taken.refused}
    assert refused == {
        "cgm_libreview/german_header_only.csv",
        "fitbit_fitabase/hourlyIntensities_merged.csv",
        *(f"garmin_connect/{name}.json" for name in _EMPTY),
    }


#: Answers without a record, and one of a shape that says nothing of itself.
_EMPTY = (
    "body_battery_data_list_1",
    "daily_summary_get_0",
    "training_readiness_data_get_1",
    "weekly_stress_beyond_data_3",
)
