"""An Apple export against what its person really did: local days, nights, units; and the next month's export.

A Health Connect export of somebody else comes with each.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import zipfile
from pathlib import Path

import orjson
import pytest
from canonical_lab import Lab
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.observation import Observation

from health_pipeline.connections.users import UserRecord, ensure_user
from health_pipeline.ingestion.outcome import UploadSummary, read_outcome
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers import registry
from health_pipeline.providers.base import Window
from health_pipeline.runtime.fhir_export import export_fhir
from health_pipeline.sandbox import body, health_connect
from health_pipeline.sandbox.apple_health import devices_of, true_days, true_values, write_apple_health
from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.recorded import recorded

BEN, DANA = person("ben"), person("dana")
#: A change of the clock in Berlin (29 March), and a journey to New York and back.
FIRST, LAST, LATER = dt.date(2026, 3, 20), dt.date(2026, 4, 20), dt.date(2026, 4, 27)

#: What Dana's phone exports: four days, and four of which two are the same.
CONNECTED = (
    recorded(DANA, dt.date(2026, 4, 17), dt.date(2026, 4, 20)),
    recorded(DANA, dt.date(2026, 4, 19), dt.date(2026, 4, 22)),
)


#: Without the day it was given on.
_ORDER = {
    "resourceType": "MedicationRequest",
    "id": "m1",
    "status": "active",
    "intent": "order",
    "subject": {"reference": "Patient/1"},
    "medicationCodeableConcept": {"text": "Lisinopril 10 MG"},
}


def export(folder: Path, last: dt.date) -> Path:
    """The zip that Ben's phone gives, exported in Tokyo."""
    text = io.StringIO()
    zone = dt.timezone(dt.timedelta(hours=9))
    write_apple_health(BEN, FIRST, last, text, exported=dt.datetime(2026, 5, 1, 9, tzinfo=zone))
    path = folder / f"{last}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("apple_health_export/export.xml", text.getvalue())
    return path


@pytest.fixture(scope="module")
def ben(lab_of_module: Lab) -> UserRecord:
    with lab_of_module.warehouse.engine.begin() as connection:
        return ensure_user(connection, "ben", "Europe/Berlin")


def take(lab: Lab, files: dict[str, tuple[UserRecord, Path]], received: dt.datetime) -> list[UploadSummary]:
    """Files by their kinds, all in one run."""
    taken = {
        kind: upload(lab.warehouse, lab.store, user, path, received_at=received)
        for kind, (user, path) in files.items()
    }
    assert {kind: each.provider.name for kind, each in taken.items()} == {kind: kind for kind in files}
    lab.run(*files)
    found = []
    for kind, each in taken.items():
        summary = UploadSummary(each.provider.title, known=not each.receipt.created)
        read_outcome(lab.warehouse, registry.get(kind), each.receipt.raw_object_id, summary)
        found.append(summary)
    return found


def daily(lab: Lab, metric: str, source: str = "apple_health") -> dict[dt.date, float]:
    return {
        row["local_date"]: row["metric_value"]
        for row in lab.rows(
            "select local_date, metric_value from health.daily_metrics "
            "where metric_type = :metric and sources_seen = array[:source]",
            metric=metric,
            source=source,
        )
    }


@pytest.fixture(scope="module")
def both(
    lab_of_module: Lab, ben: UserRecord, tmp_path_factory: pytest.TempPathFactory
) -> list[list[UploadSummary]]:
    """April's exports, then May's."""
    folder = tmp_path_factory.mktemp("exports")
    with lab_of_module.warehouse.engine.begin() as connection:
        dana = ensure_user(connection, "dana", "America/Chicago")
    found = []
    for day, last, seen in ((2, LAST, CONNECTED[0]), (20, LATER, CONNECTED[1])):
        path = folder / f"{last} Health Connect.zip"
        path.write_bytes(health_connect.export(seen))
        files = {"apple_health": (ben, export(folder, last)), "health_connect": (dana, path)}
        found.append(take(lab_of_module, files, dt.datetime(2026, 5, day, tzinfo=dt.UTC)))
    return found


@pytest.fixture(scope="module")
def summaries(both: list[list[UploadSummary]]) -> list[UploadSummary]:
    return [apple for apple, _ in both]


def test_steps_and_nights_are_right_on_every_local_day(
    lab_of_module: Lab, summaries: list[UploadSummary]
) -> None:
    zones = {str(life_of(BEN).timeline.zone_at(day.start)) for day in life_of(BEN).days(FIRST, LATER)}
    assert zones == {"Europe/Berlin", "America/New_York"}
    steps, asleep = daily(lab_of_module, "steps"), daily(lab_of_module, "sleep_duration")
    truth = true_days(BEN, FIRST, LATER)
    assert len(truth) > 35
    wrong = {
        day.date: (day.steps, round(steps.get(day.date, 0)))
        for day in truth
        if abs(day.steps - steps.get(day.date, 0)) > 1
    }
    assert wrong == {}
    nights = {day.date: day.sleep_seconds for day in truth if day.sleep_seconds is not None}
    assert {date: asleep.get(date) for date in nights} == nights


def test_every_value_is_right_whatever_its_unit(lab_of_module: Lab, summaries: list[UploadSummary]) -> None:
    """Pounds, miles, degrees Fahrenheit, fractions, mmol<...>/L: each value at its instant, once, and no other."""
    rows = lab_of_module.rows(
        "select metric_type, extract(epoch from recorded_at)::bigint as instant, metric_value "
        "from health.health_metrics where source = 'apple_health'"
    )
    truth = true_values(BEN, FIRST, LATER)
    metrics = {each.metric_type for each in truth}
    assert len(metrics) == 8
    stored = [(row["metric_type"], row["instant"]) for row in rows if row["metric_type"] in metrics]
    assert sorted(stored) == sorted((each.metric_type, each.instant) for each in truth)
    values = {(row["metric_type"], row["instant"]): row["metric_value"] for row in rows}
    wrong = [
        (each, values[each.metric_type, each.instant])
        for each in truth
        if values[each.metric_type, each.instant] != pytest.approx(each.value, rel=2e-4)
    ]
    assert wrong == []


def test_meals_of_a_local_day_are_its_sum(lab_of_module: Lab, summaries: list[UploadSummary]) -> None:
    eaten: dict[dt.date, float] = {}
    for each in true_values(BEN, FIRST, LATER):
        if each.metric_type == "carbohydrates":
            date = life_of(BEN).timeline.local(each.instant).date()
            eaten[date] = eaten.get(date, 0) + each.value
    assert daily(lab_of_module, "carbohydrates") == eaten


def test_sources_and_workouts(lab_of_module: Lab, summaries: list[UploadSummary]) -> None:
    steps = lab_of_module.rows(
        "select array_agg(distinct source_device) as devices from health.health_metrics "
        "where source = 'apple_health' and metric_type = 'steps'"
    )
    assert steps[0]["devices"] == sorted(device.label for device in devices_of(BEN))
    workout = lab_of_module.rows(
        "select * from health.workouts where source = 'apple_health' order by started_at limit 1"
    )[0]
    done = next(done for day in life_of(BEN).days(FIRST, LATER) for done in day.workouts)
    assert (workout["started_at"].timestamp(), workout["activity"]) == (done.start, done.activity)
    assert workout["duration_seconds"] == done.end - done.start
    # Kilojoules and miles.
    assert workout["calories_kcal"] == pytest.approx(body.workout_kcal(BEN, done), rel=1e-3)
    meters = body.workout_distance(done)
    assert meters is None or workout["distance_m"] == pytest.approx(meters, rel=1e-3)


def test_the_next_export_adds_only_what_is_new(
    lab_of_module: Lab, summaries: list[UploadSummary], tmp_path: Path
) -> None:
    first, second = summaries
    assert first.refused == second.refused == {}
    # Blood pressure beside its correlation, and what the phone has twice.
    with zipfile.ZipFile(export(tmp_path, LAST)) as archive:
        text = archive.read("apple_health_export/export.xml").decode()
    told = re.findall(r'<Record type="(\w+)" sourceName="([^"]+)".*? (startDate=.*?)/?>', text)
    again = len(told) - len(set(told))
    assert again > 100 + first.added["blood_pressure_systolic"]
    assert first.duplicates == again
    assert second.records_in > first.records_in
    assert second.added["heart_rate"] < first.added["heart_rate"] / 3
    assert second.duplicates > first.canonical * 0.9
    assert lab_of_module.rows("select * from health.metric_revisions") == []
    assert f"{first.added['blood_pressure_diastolic']} blood_pressure_diastolic" in first.words()
    assert f"duplicates: {second.duplicates} records were known" in second.words()


def test_health_connect_of_two_months_is_one_history(
    lab_of_module: Lab, both: list[list[UploadSummary]]
) -> None:
    first, second = (connect for _, connect in both)
    assert (first.refused, first.duplicates, second.refused) == ({}, 0, {})
    # Half of the days were known.
    assert 0.3 * second.records_in < second.duplicates < 0.7 * second.records_in
    walked = CONNECTED[0].steps_by_day() | CONNECTED[1].steps_by_day()
    assert daily(lab_of_module, "steps", "health_connect") == pytest.approx(walked)
    slept = CONNECTED[0].asleep_by_day() | CONNECTED[1].asleep_by_day()
    assert daily(lab_of_module, "sleep_duration", "health_connect") == pytest.approx(slept, abs=30)
    assert "glucose readings" in second.words() and "com.watch.app" in second.words()


def test_an_export_as_fhir_keeps_the_rules_of_fhir(
    lab_of_module: Lab, ben: UserRecord, summaries: list[UploadSummary]
) -> None:
    """By the models of fhir.resources (R4B, whose Observation is R4's): nothing that they refuse, nothing they drop."""
    window = Window(LAST - dt.timedelta(days=6), LAST)
    bundle, samples = io.BytesIO(), io.BytesIO()
    export_fhir(lab_of_module.warehouse, "ben", bundle, window=window, bundle=True)
    export_fhir(lab_of_module.warehouse, "ben", samples, window=window, samples=True)
    said = orjson.loads(bundle.getvalue())
    assert json.loads(Bundle.model_validate(said).model_dump_json()) == said
    lines = [orjson.loads(line) for line in samples.getvalue().splitlines()]
    first_of = {line["code"]["coding"][-1]["code"]: line for line in reversed(lines)}
    assert len(first_of) > 15
    some = [*first_of.values(), *lines[::25]]
    assert any("effectivePeriod" in line for line in some) and any("device" in line for line in some)
    for line in some:
        told = json.loads(Observation.model_validate(line).model_dump_json())
        assert told == line
        with pytest.raises(ValueError, match="status"):
            Observation.model_validate({name: line[name] for name in line if name != "status"})


def test_an_export_as_fhir_comes_back_as_the_same_values(
    lab_of_module: Lab, ben: UserRecord, summaries: list[UploadSummary]
) -> None:
    """Daily values and samples; of metrics that have a LOINC code. Nobody else's are among them.

    An Observation has no local day: a night that comes back is of the day it began.
    """
    lab = lab_of_module
    window = Window(LAST - dt.timedelta(days=6), LAST)
    days, samples, bundle = io.BytesIO(), io.BytesIO(), io.BytesIO()
    count = export_fhir(lab.warehouse, "ben", days, window=window)
    assert count == export_fhir(lab.warehouse, "ben", bundle, window=window, bundle=True) > 50
    export_fhir(lab.warehouse, "ben", samples, window=window, samples=True)
    entries = orjson.loads(bundle.getvalue())["entry"]
    assert [each["resource"] for each in entries] == [
        orjson.loads(line) for line in days.getvalue().splitlines()
    ]
    ids = {each["resource"]["id"] for each in entries}
    assert len(ids) == count
    with lab.warehouse.engine.begin() as connection:
        twins = [ensure_user(connection, handle, "Europe/Berlin") for handle in ("by_day", "by_sample")]
    assert export_fhir(lab.warehouse, "by_day", io.BytesIO()) == 0

    for user, content in zip(twins, (days, samples), strict=True):
        upload(lab.warehouse, lab.store, user, content.getvalue(), kind="fhir")
    undated = upload(lab.warehouse, lab.store, twins[0], orjson.dumps(_ORDER))
    lab.run("fhir")
    told = UploadSummary(undated.provider.title, known=False)
    read_outcome(lab.warehouse, undated.provider, undated.receipt.raw_object_id, told)
    assert (told.added, told.first) == ({"medications": 1}, None)
    assert "1 medications" in told.words()

    coded = (
        "with coded as (select metric_type from health.metric_types where loinc is not null), told as ("
        "select users.handle, measured.* from health.{} as measured inner join ops.users using (user_id) "
        "inner join coded using (metric_type) where handle <> 'ben' or local_date between :first and :last) "
    )
    for twin, table, columns in (
        ("by_day", "daily_metrics", "local_date, metric_type, metric_value, metric_unit"),
        (
            "by_sample",
            "health_metrics",
            "recorded_at, ended_at, utc_offset_minutes, metric_type, metric_value, source_device",
        ),
    ):
        found = {
            handle: lab.rows(
                coded.format(table) + f"select {columns} from told where handle = :handle order by {columns}",
                handle=handle,
                first=window.start,
                last=window.end,
            )
            for handle in ("ben", twin)
        }
        assert len(found["ben"]) > 50
        assert found[twin] == found["ben"]
    assert lab.rows("select * from health.metric_quarantine where source = 'fhir'") == []
