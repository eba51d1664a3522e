"""Every real payload of the providers' APIs, and files: raw, staged, canonical; each record loaded or refused
with a reason. A file's kind is found by its content; of what is refused at the door, the message is shown.

`pytest -rP tests/canonical/test_real_payloads.py` shows the counts. The payloads are not part of the repository.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from canonical_lab import Lab

from health_pipeline.providers.base import UnreadableFileError
from health_pipeline.providers.registry import get, recognise
from health_pipeline.raw.index import Delivery
from health_pipeline.staging.tables import schema_name

DATA = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared")) / "data"
RECEIVED = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real payloads at {DATA}")

#: Of providers whose files are not named by their entity.
_OURA = {"daily_sp02": "daily_spo2", "heart_rate": "heartrate"}
_POLAR = {
    "body_temperature_data": "body_temperature",
    "get_cardio_load_by_date_range": "cardio_load",
    "get_continuous_heart_rate_samples_with_range": "continuous_heart_rate",
    "list_exercises": "exercise",
    "get_exercise_summary": "exercise",
    "list_nightly_recharges": "nightly_recharge",
    "sleep_skin_temperature_data": "skin_temperature",
    "get_sleep": "sleep",
    "get_available_sleep_times": "sleep",
    "get_physical_info": "physical_info",
    "list_activity_samples": "activity_samples",
    "get_activity_samples_for_given_date": "activity_samples",
}
#: Answers that say that there is nothing.
_EMPTY = {
    "fitbit-sleep-date-range-empty-sleep-list",
    "body_battery_data_list_1",
    "training_readiness_data_get_1",
    "weekly_stress_beyond_data_3",
}
_GARMIN = {"epoch": "epochs", "stress": "stress_details"}
_STRAVA = {
    "activity.3": "activity",
    "activity-manual.3": "activity",
    "athlete.2": "athlete",
    "athlete.3": "athlete",
}


@dataclass(frozen=True)
class Payload:
    """A recorded answer."""

    provider: str
    entity: str
    path: Path
    context: tuple[tuple[str, str], ...] = ()

    def content(self) -> bytes:
        content = self.path.read_bytes()
        if self.provider == "whoop":
            return orjson.dumps(orjson.loads(content)["response"])
        if self.provider == "withings" and content.startswith(b"["):
            return orjson.dumps({"status": 0, "body": {"measuregrps": orjson.loads(content)}})
        return content


#: Folders of each provider, and what entity a file of it is; None for what holds nothing of a person.
_FOLDERS: dict[str, tuple[tuple[str, ...], Callable[[str], str | None]]] = {
    "oura": (("oura_v2",), lambda stem: _OURA.get(stem, stem)),
    "whoop": (("whoop_v2",), lambda stem: stem.removeprefix("whoop-").removesuffix("-example")),
    "withings": (("withings", "openmhealth_shimmer/withings"), lambda stem: _withings(stem)),
    "strava": (("strava",), _STRAVA.get),
    "polar": (("polar_accesslink",), _POLAR.get),
    "terra": (("terra_webhooks",), lambda stem: stem),
    "garmin": (("garmin_health_push",), lambda stem: _GARMIN.get(stem, stem)),
    "dexcom": (("dexcom_v3",), lambda _: "egvs"),
    "librelinkup": (("cgm_librelinkup",), lambda stem: stem.removesuffix("_response")),
    "fitbit": (("openmhealth_shimmer/fitbit",), lambda _: "daily_value"),
    "fhir": (("fhir_synthea_r4", "fhir_uscore"), lambda _: "observation"),
}


def _withings(stem: str) -> str | None:
    kinds = {"activity": "activity", "sleep": "sleep", "measure": "measure", "body": "measure"}
    return next((kinds[word] for word in kinds if word in stem), None)


def _payloads() -> Iterator[Payload]:
    for provider, (folders, entity_of) in _FOLDERS.items():
        entities = {entity.name for entity in get(provider).entities}
        for path in (path for folder in folders for path in sorted((DATA / folder).glob("*.json"))):
            entity = entity_of(path.stem)
            # Events and devices have no entity.
            if entity in entities:
                detail = (provider, entity) == ("withings", "sleep") and "summary" not in path.stem
                yield Payload(provider, entity, path, (("sleep_id", "1"),) if detail else ())


#: Folders of files that people have.
_FILES = ("garmin_connect", "fitbit_takeout", "openmhealth_shimmer/googlefit", "openmhealth_shimmer/ihealth")
#: Files of no known kind, and what is said of them.
_UNKNOWN = {
    "garmin_connect/daily_summary_get_0": "of no known kind",
    **{
        f"googlefit/googlefit-{name}": "Google Fit's API, which closes"
        for name in (
            *("empty", "merge-activity-segments-only-stationary-activity", "merge-calories-expended"),
            *("merge-height", "merge-speed", "merge-weight"),
        )
    },
    **{
        f"ihealth/ihealth-{name}": "iHealth's API, which has no route here"
        for name in (
            *("activity-empty", "activity", "bp-no-heart-rate", "glucose-empty", "sleep-empty", "spo2-empty"),
            *("spo2-no-oxygen-saturation", "sport-empty", "weight-empty", "weight"),
        )
    },
}


def _files() -> tuple[list[Payload], dict[str, str]]:
    """Files by the kind they are recognised as, and what is said of those that are not."""
    known: list[Payload] = []
    refused = {}
    for path in (path for folder in _FILES for path in sorted((DATA / folder).glob("*.json"))):
        try:
            provider = recognise(path.read_bytes()[: 64 * 1024])
        except UnreadableFileError as error:
            refused[f"{path.parent.name}/{path.stem}"] = str(error)
        else:
            known.append(Payload(provider.name, provider.entities[0].name, path))
    return known, refused


@dataclass
class Applied:
    payloads: list[tuple[int, Payload]]
    counts: dict[str, dict[str, Any]]
    objects: dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def applied(lab_of_module: Lab) -> Applied:
    lab = lab_of_module
    user = lab.user("recorded", "Europe/Berlin")
    payloads: list[tuple[int, Payload]] = []
    for payload in (*_payloads(), *_files()[0]):
        day = RECEIVED.date()
        (raw_object_id,) = lab.receive(
            Delivery(
                *(payload.provider, payload.entity, user, "fetch", payload.content(), RECEIVED, day, day),
                "application/json",
                context=dict(payload.context),
                time_zone="Europe/Berlin",
            )
        )
        payloads.append((raw_object_id, payload))
    providers = sorted({payload.provider for _, payload in payloads})
    for name in providers:
        lab.stage(name)
    lab.build()
    objects = {
        row["raw_object_id"]: row
        for name in providers
        for row in lab.rows(f"select * from {schema_name(name)}.staged_objects")
    }
    counts = {
        name: lab.one(
            "select (select count(*) from health.health_metrics where source = :name) as metrics, "
            "(select count(*) from health.glucose_readings where source = :name) as readings, "
            "(select count(*) from health.sleep_sessions where source = :name) as sleeps, "
            "(select count(*) from health.workouts where source = :name) as workouts, "
            "(select count(*) from health.medications where source = :name) as medications, "
            "(select count(*) from health.documents where source = :name) as documents, "
            "(select count(*) from health.metric_quarantine where source = :name) as refused",
            name=name,
        )
        for name in providers
    }
    return Applied(payloads, counts, objects)


def test_each_record_is_loaded_skipped_or_refused_with_a_reason(applied: Applied) -> None:
    assert len(applied.payloads) > 50
    print(f"{'payload':75} {'entity':24} {'in':>6} {'loaded':>6} {'skipped':>7} {'refused':>7}")
    unaccounted = []
    for raw_object_id, payload in applied.payloads:
        staged = applied.objects[raw_object_id]
        skipped = sum(staged["records_skipped"].values())
        counts = (staged["records_in"], staged["records_loaded"], skipped, staged["records_quarantined"])
        name = f"{payload.path.parent.name}/{payload.path.name}"
        print(f"{name:75} {payload.provider + '.' + payload.entity:24} {' '.join(f'{n:6}' for n in counts)}")
        if (counts[0] == 0) is not (payload.path.stem in _EMPTY) or counts[0] > sum(counts[1:]):
            unaccounted.append((name, counts))
    assert unaccounted == []


def test_files_of_no_known_kind_are_refused_with_a_reason() -> None:
    refused = _files()[1]
    for name, message in refused.items():
        print(f"{name:75} {message[:100]}")
    assert refused.keys() == _UNKNOWN.keys()
    assert [name for name, words in _UNKNOWN.items() if words not in refused[name]] == []


def test_what_is_loaded_is_in_the_canonical_tables(applied: Applied) -> None:
    empty = []
    for name, counts in applied.counts.items():
        print(f"{name:14} " + " ".join(f"{count:6} {label}" for label, count in counts.items() if count))
        if not any(count for label, count in counts.items() if label != "refused"):
            empty.append(name)
    assert empty == []


def test_every_refusal_has_its_reason_and_its_place(applied: Applied, lab_of_module: Lab) -> None:
    refused = lab_of_module.rows(
        "select source, entity, reason, field, location, count(*) from health.metric_quarantine "
        "group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5"
    )
    for row in refused:
        print(*row.values())
    assert [row for row in refused if not row["reason"] or not row["location"]] == []
