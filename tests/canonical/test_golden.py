"""From each provider's samples to canonical rows that a reader can check by eye.

`WRITE_GOLDEN=1 pytest tests/canonical/test_golden.py` writes the files anew: look at what changed.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import os
from pathlib import Path

import pytest
from canonical_lab import Lab

from health_pipeline.ingestion.outcome import UploadSummary, read_outcome
from health_pipeline.providers.base import Provider
from health_pipeline.providers.registry import all_providers
from health_pipeline.raw.index import Delivery
from health_pipeline.sandbox.context import Sandbox, Settings
from health_pipeline.sandbox.people import DEFAULT_SEED, person, population
from health_pipeline.sandbox.recorded import recorded
from health_pipeline.sandbox.routers import ProviderApi, provider_apis
from health_pipeline.sandbox.samples import NOW

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = Path(__file__).parents[2] / "data" / "samples"
SAMPLED = [name for name in all_providers() if (SAMPLES / name).is_dir()]

#: After the newest of the samples.
RECEIVED = dt.datetime(2026, 11, 10, tzinfo=dt.UTC)

#: Of each metric its first rows, and how many there are and what they come to.
_FIRST_ROWS = 5
_METRICS = """
select 'metric' as row, metric_type as name, recorded_at, ended_at, local_date, utc_offset_minutes as utc_offset,
    utc_offset_source as offset_from, round(metric_value::numeric, 4)::text as value, metric_unit as unit,
    coalesce(source_device, '') as detail
from (
    select *, row_number() over (partition by metric_type order by recorded_at) as place
    from health.health_metrics where user_id = :user_id
) as metrics
where place <= :first
union all
select 'metric total', metric_type, min(recorded_at), max(coalesce(ended_at, recorded_at)), null, null, '',
    round(sum(metric_value)::numeric, 3)::text, metric_unit, count(*) || ' rows'
from health.health_metrics where user_id = :user_id group by metric_type, metric_unit
union all
select 'reading', reading_type, recorded_at, null, local_date, utc_offset_minutes, utc_offset_source,
    round(glucose_mg_dl::numeric, 4)::text, 'mg/dL',
    concat_ws(' ', nullif(source_device, ''), censored, trend,
        round(trend_mg_dl_per_minute::numeric, 3) || ' a minute')
from (
    select *, row_number() over (partition by reading_type order by recorded_at) as place
    from health.glucose_readings where user_id = :user_id
) as readings
where place <= :first
union all
select 'sleep', coalesce(sleep_type, ''), started_at, ended_at, local_date, utc_offset_minutes, '',
    coalesce(sleep_seconds::text, ''), 's',
    concat_ws(' ', case when is_main_sleep then 'main' else 'nap' end, 'deep', deep_sleep_seconds, 'light',
        light_sleep_seconds, 'rem', rem_sleep_seconds, 'awake', awake_seconds,
        coalesce(jsonb_array_length(stages) || ' stages', 'no stages'))
from health.sleep_sessions where user_id = :user_id
union all
select 'workout', activity, started_at, ended_at, local_date, utc_offset_minutes, '', duration_seconds::text, 's',
    concat_ws(' ', round(calories_kcal::numeric, 1) || ' kcal', round(distance_m::numeric, 1) || ' m',
        round(average_heart_rate_bpm::numeric, 1) || ' bpm')
from health.workouts where user_id = :user_id
union all
select 'medication', medication, authored_at, null, authored_date, null, '', coalesce(dose_value::text, ''), dose_unit,
    concat_ws(' ', status, intent, rxnorm_codes, quantity_value, quantity_unit)
from health.medications where user_id = :user_id
union all
select document_kind, title, document_at, issued_at, document_date, null, '', coalesce(size_bytes::text, ''), '',
    concat_ws(' ', status, category, loinc_codes, jsonb_array_length(results) || ' results')
from health.documents where user_id = :user_id
union all
select 'refused', reason, null, null, null, null, '', count(*)::text, '', string_agg(distinct entity, ' ')
from health.metric_quarantine where user_id = :user_id group by reason
order by 1, 2, 3, 8
"""


@pytest.fixture(scope="module")
def canonical(lab_of_module: Lab) -> Lab:
    """Every provider's samples in one warehouse: a person for each provider, and for each file of a person."""
    sandbox = Sandbox(population(DEFAULT_SEED), DEFAULT_SEED, lambda: NOW, Settings())
    apis = provider_apis(sandbox)
    lab = lab_of_module
    for name in SAMPLED:
        lab.receive(*_deliveries(lab, all_providers()[name], apis.get(name)))
    lab.run(*SAMPLED)
    return lab


def _deliveries(lab: Lab, provider: Provider, api: ProviderApi | None) -> list[Delivery]:
    entities = {entity.name.casefold(): entity.name for entity in provider.entities}
    found = []
    for number, path in enumerate(sorted((SAMPLES / provider.name).iterdir())):
        if api is None:
            user, entity, context = (
                lab.user(f"{provider.name} {path.stem}", "Europe/Berlin"),
                provider.entities[0].name,
                {},
            )
        else:
            zone = api.sandbox.people[api.sample_person].zone
            user, context = lab.user(provider.name, zone), dict(api.samples[path.name].context)
            entity = entities.get(path.name.split(".")[0].casefold(), "")
        if not entity:
            continue  # who the person is, and the like
        found.append(
            Delivery(
                *(provider.name, entity, user, "upload" if api is None else "fetch", path.read_bytes()),
                RECEIVED + dt.timedelta(seconds=number),
                *(RECEIVED.date(), RECEIVED.date(), "application/json"),
                time_zone="Europe/Berlin" if api is None else None,
                context=context,
            )
        )
    return found


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_become_the_rows_that_were_checked_by_eye(canonical: Lab, name: str) -> None:
    users = canonical.rows(
        "select user_id, handle from ops.users where handle = :name or handle like :name || ' %' order by handle",
        name=name,
    )
    text = io.StringIO()
    writer = None
    for user in users:
        for row in canonical.rows(_METRICS, user_id=user["user_id"], first=_FIRST_ROWS):
            shown = {"person": user["handle"], **{column: _shown(value) for column, value in row.items()}}
            if writer is None:
                writer = csv.DictWriter(text, list(shown), lineterminator="\n")
                writer.writeheader()
            writer.writerow(shown)
    golden = GOLDEN / f"{name}.csv"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(text.getvalue(), encoding="utf-8")
    assert golden.exists(), "there is none yet: WRITE_GOLDEN=1 pytest tests/canonical/test_golden.py"
    assert text.getvalue().splitlines() == golden.read_text(encoding="utf-8").splitlines()
    assert "\n" in text.getvalue()


#: Files that makers and apps export, whose days those are.
EXPORTS = {
    "garmin_connect account_export": ("ben", dt.date(2026, 8, 4), dt.date(2026, 8, 6)),
    "fitbit_takeout takeout": ("ben", dt.date(2026, 8, 5), dt.date(2026, 8, 6)),
    "health_auto_export measured": ("ben", dt.date(2026, 8, 6), dt.date(2026, 8, 6)),
    "health_auto_export by_day": ("ben", dt.date(2026, 8, 5), dt.date(2026, 8, 6)),
    "health_connect health_connect": ("ada", dt.date(2026, 8, 20), dt.date(2026, 8, 20)),
}


@pytest.mark.parametrize("handle", EXPORTS)
def test_an_export_comes_to_what_its_person_did(canonical: Lab, handle: str) -> None:
    """Steps and time asleep of each local day, weights and workouts; two devices' steps are not summed up."""
    who, start, end = EXPORTS[handle]
    seen = recorded(person(who), start, end)
    user_id = canonical.user(handle)

    def daily(metric: str) -> dict[dt.date, float]:
        found = canonical.rows(
            "select local_date, metric_value from health.daily_metrics "
            "where user_id = :user_id and metric_type = :metric",
            user_id=user_id,
            metric=metric,
        )
        return {row["local_date"]: row["metric_value"] for row in found}

    assert daily("steps") == pytest.approx(seen.steps_by_day())
    assert daily("sleep_duration") == pytest.approx(seen.asleep_by_day(), abs=30)
    weights = canonical.rows(
        "select recorded_at, metric_value from health.health_metrics "
        "where user_id = :user_id and metric_type = 'weight' order by recorded_at",
        user_id=user_id,
    )
    assert [row["recorded_at"].timestamp() for row in weights] == [each.instant for each in seen.weighings]
    assert [row["metric_value"] for row in weights] == pytest.approx(
        [each.weight for each in seen.weighings], abs=0.05
    )
    workouts = canonical.rows(
        "select started_at, activity from health.workouts where user_id = :user_id order by started_at",
        user_id=user_id,
    )
    assert [(row["started_at"].timestamp(), row["activity"]) for row in workouts] == [
        (done.start, done.activity) for done in seen.workouts
    ]


def test_what_is_said_of_an_upload(canonical: Lab) -> None:
    (raw,) = canonical.rows(
        "select distinct raw_object_id from health.sleep_sessions where user_id = :user_id",
        user_id=canonical.user("fitbit_takeout takeout"),
    )
    summary = UploadSummary("Fitbit in Google Takeout", known=False)
    read_outcome(canonical.warehouse, all_providers()["fitbit_takeout"], raw["raw_object_id"], summary)
    seen = recorded(person("ben"), dt.date(2026, 8, 5), dt.date(2026, 8, 6))
    words = summary.words()
    assert f"{len(seen.steps)} steps" in words and f"{len(seen.pulse)} heart_rate" in words
    assert "2 resting_heart_rate" in words and "2 sleep sessions" in words and "1 workouts" in words
    assert "also_as_csv" in words and "are taken for UTC: 2 of 2 files" in words
    assert "local time by: " in words and "upload_zone" in words
    assert (summary.duplicates, summary.refused) == (0, {})


def _shown(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return "" if value is None else str(value)


def test_every_provider_has_samples() -> None:
    assert set(SAMPLED) == {
        provider.name
        for provider in all_providers().values()
        if provider.fetch or provider.sniff or provider.door == "webhook"
    }
