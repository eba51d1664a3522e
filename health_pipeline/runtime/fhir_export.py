"""`health-pipeline export fhir`: one person's values as FHIR R4 Observations.

Read through the role that sees one person only, and written as they are read: memory does not grow with them.
A value is coded by LOINC, where the catalogue has a code, and always by the catalogue's own name; its unit is UCUM.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import orjson
import sqlalchemy as sa

from health_pipeline.connections.users import require_user
from health_pipeline.providers.base import Window
from health_pipeline.warehouse.connection import Warehouse

LOINC, UCUM = "http://loinc.org", "http://unitsofmeasure.org"
CATEGORIES = "http://terminology.hl7.org/CodeSystem/observation-category"
METRICS = "urn:x-health-pipeline:metric-type"
_SOURCES = "urn:x-health-pipeline:source"
_IDS = uuid.UUID("6f1d6a1e-54f0-5f0d-9d8b-3d0e6c8f2a11")
_ROWS_AT_ONCE = 2_000
#: The catalogue's categories that are not `activity` in FHIR's words.
_CATEGORY_OF = {
    "laboratory": "laboratory",
    **dict.fromkeys(("heart", "body", "respiration", "metabolic"), "vital-signs"),
    "score": "survey",
}

_DAILY = """
select daily.metric_type, daily.metric_value, daily.metric_unit, daily.source, daily.local_date,
    catalogue.loinc, catalogue.category, catalogue.description
from health.daily_metrics as daily
inner join health.metric_types as catalogue using (metric_type)
where (cast(:first as date) is null or daily.local_date between cast(:first as date) and cast(:last as date))
order by daily.local_date, daily.metric_type
"""
_SAMPLES = """
select metrics.metric_type, metrics.metric_value, metrics.metric_unit, metrics.source, metrics.source_device,
    metrics.recorded_at, metrics.ended_at, metrics.utc_offset_minutes,
    catalogue.loinc, catalogue.category, catalogue.description
from health.health_metrics as metrics
inner join health.metric_types as catalogue using (metric_type)
where (
    cast(:first as date) is null
    or metrics.local_date between cast(:first as date) and cast(:last as date)
    and metrics.recorded_at >= cast(:first as date) - interval '3 days'
    and metrics.recorded_at < cast(:last as date) + interval '3 days'
)
order by metrics.metric_type, metrics.recorded_at, metrics.source
"""


def export_fhir(
    warehouse: Warehouse,
    handle: str,
    out: IO[bytes],
    *,
    samples: bool = False,
    window: Window | None = None,
    bundle: bool = False,
) -> int:
    """Write the person's daily values, or with `samples` every value there is; returns how many.

    NDJSON, an Observation a line; or a Bundle of type collection. `window` are local days. LookupError: there is
    no such user.
    """
    with warehouse.engine.connect() as connection:
        user_id = require_user(connection, handle).user_id
    patient = f"Patient/{uuid.uuid5(_IDS, handle)}"
    with _rows(warehouse, user_id, _SAMPLES if samples else _DAILY, window) as rows:
        written = (orjson.dumps(_observation(row, patient)) for row in rows)
        return _bundle(written, out) if bundle else _lines(written, out)


@contextmanager
def _rows(
    warehouse: Warehouse, user_id: int, query: str, window: Window | None
) -> Iterator[Iterator[sa.RowMapping]]:
    """Rows of a query as the person sees them, a few at a time."""
    parameters = {"first": window and window.start, "last": window and window.end}
    with warehouse.engine.connect() as connection:
        # Sealed for this session, which sees nothing of anybody else (migration 0005).
        connection.execute(
            sa.text("select set_config('health.user_id', ops.seal_subject(:user), true)"), {"user": user_id}
        )
        connection.execute(sa.text("set local role health_subject"))
        connection.execute(sa.text("set transaction read only"))
        streamed = connection.execution_options(stream_results=True, yield_per=_ROWS_AT_ONCE)
        yield iter(streamed.execute(sa.text(query), parameters).mappings())
        connection.rollback()


def _lines(observations: Iterable[bytes], out: IO[bytes]) -> int:
    count = 0
    for count, each in enumerate(observations, 1):  # noqa: B007 - counts what it writes
        out.write(each + b"\n")
    return count


def _bundle(observations: Iterable[bytes], out: IO[bytes]) -> int:
    count = 0
    out.write(b'{"resourceType":"Bundle","type":"collection","entry":[')
    for each in observations:
        out.write((b",\n" if count else b"\n") + b'{"resource":' + each + b"}")
        count += 1
    out.write(b"\n]}\n")
    return count


def _observation(row: sa.RowMapping, patient: str) -> dict[str, Any]:
    """An Observation with an id that is the same in every export."""
    metric, unit = row["metric_type"], row["metric_unit"]
    day = row.get("local_date")
    when = day.isoformat() if day is not None else _instant(row["recorded_at"], row["utc_offset_minutes"])
    coding = [{"system": METRICS, "code": metric, "display": metric.replace("_", " ")}]
    if row["loinc"] is not None:
        coding.insert(0, {"system": LOINC, "code": row["loinc"]})
    key = f"{patient}|{metric}|{row['source']}|{when}" if day is None else f"{patient}|{metric}|{when}"
    found: dict[str, Any] = {
        "resourceType": "Observation",
        "id": str(uuid.uuid5(_IDS, key)),
        "meta": {"source": f"{_SOURCES}:{row['source']}"},
        "status": "final",
        "category": [
            {"coding": [{"system": CATEGORIES, "code": _CATEGORY_OF.get(row["category"], "activity")}]}
        ],
        "code": {"coding": coding, "text": row["description"]},
        "subject": {"reference": patient},
        "valueQuantity": {
            "value": row["metric_value"],
            # What UCUM has in braces is a word for people, and that is what `unit` is.
            "unit": unit.strip("{}") if unit.startswith("{") else unit,
            "system": UCUM,
            "code": unit,
        },
    }
    if row.get("ended_at") is not None:
        end = _instant(row["ended_at"], row["utc_offset_minutes"])
        found["effectivePeriod"] = {"start": when, "end": end}
    else:
        found["effectiveDateTime"] = when
    if row.get("source_device"):
        found["device"] = {"display": row["source_device"]}
    return found


def _instant(instant: dt.datetime, offset_minutes: int) -> str:
    """An instant as the clock of the place showed it."""
    return instant.astimezone(dt.timezone(dt.timedelta(minutes=offset_minutes))).isoformat()
