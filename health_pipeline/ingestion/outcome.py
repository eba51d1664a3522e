"""What became of a file: what it held, what of that is in the warehouse, what was refused and why."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass, field

import sqlalchemy as sa

from health_pipeline.providers.base import Provider
from health_pipeline.staging.tables import schema_name
from health_pipeline.warehouse.connection import Warehouse

_LINES_SHOWN = 10


@dataclass(slots=True)
class UploadSummary:
    """What a file held and where it went.

    `added` are the rows of the warehouse that come from it, by metric (or `sleep sessions`, `workouts`,
    `glucose readings`). `duplicates` are records that said what was known, or say the same twice. `refused`
    maps a reason to the places in the file. `sources` are rows by device, `zones` rows by whence the offset
    of their local time is known.
    """

    title: str
    known: bool
    records_in: int = 0
    records_loaded: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    refused: dict[str, list[str]] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    zones: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    first: dt.datetime | None = None
    last: dt.datetime | None = None
    canonical: int = 0
    problems: list[str] = field(default_factory=list)

    def words(self) -> str:
        """The report for the terminal."""
        lines = [f"{self.title}: {self.records_in} records read, {self.canonical} in the warehouse"]
        if self.known:
            lines.append("these bytes were uploaded before; nothing was added")
        lines += self.notes
        if self.first is not None and self.last is not None:
            lines.append(f"from {self.first:%Y-%m-%d %H:%M} to {self.last:%Y-%m-%d %H:%M} UTC")
        for name, counts in (
            ("loaded", self.added),
            ("sources", self.sources),
            ("local time by", self.zones),
        ):
            if counts:
                lines.append(f"{name}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        if self.duplicates:
            lines.append(f"duplicates: {self.duplicates} records were known, or are in the file twice")
        if self.skipped:
            lines.append("skipped: " + ", ".join(f"{count} {name}" for name, count in self.skipped.items()))
        for reason, places in self.refused.items():
            shown = ", ".join(places[:_LINES_SHOWN]) + (", …" if len(places) > _LINES_SHOWN else "")
            lines.append(f"quarantined: {len(places)} {reason} ({shown})")
        return "\n".join(lines)


#: What is in the warehouse of one raw object. A night's metrics are of the night, and counted with it; other
#: values that a later file says anew have an id, too.
_ADDED = """
select metric_type as name, source_device as device, utc_offset_source as zone, count(*) as rows,
    min(recorded_at) as first, max(recorded_at) as last, metric_type <> 'glucose' as is_counted
from health.health_metrics as metrics
where raw_object_id = :id and (
    source_record_id is null
    or not exists (
        select from health.sleep_sessions as nights
        where nights.raw_object_id = metrics.raw_object_id and nights.started_at = metrics.recorded_at
            and nights.ended_at = metrics.ended_at
    )
)
group by 1, 2, 3
union all
select 'glucose readings', source_device, utc_offset_source, count(*), min(recorded_at), max(recorded_at), true
from health.glucose_readings where raw_object_id = :id group by 2, 3
union all
select 'sleep sessions', null, null, count(*), min(started_at), max(ended_at), true
from health.sleep_sessions where raw_object_id = :id having count(*) > 0
union all
select 'workouts', null, null, count(*), min(started_at), max(ended_at), true
from health.workouts where raw_object_id = :id having count(*) > 0
union all
select 'medications', null, null, count(*), min(authored_at), max(authored_at), true
from health.medications where raw_object_id = :id having count(*) > 0
union all
select 'documents', null, null, count(*), min(document_at), max(document_at), true
from health.documents where raw_object_id = :id having count(*) > 0
order by 1
"""
#: Staging tables that have a row a sample, and what is counted with another table.
_SAMPLES = ("readings", "records")
_COUNTED_TWICE = "blood_glucose"


def read_outcome(
    warehouse: Warehouse, provider: Provider, raw_object_id: int, summary: UploadSummary
) -> None:
    """What staging and the canonical tables say of the object."""
    with warehouse.engine.connect() as connection:
        if connection.execute(sa.text("select to_regclass('health.metric_quarantine')")).scalar() is None:
            return
        said = connection.execute(
            sa.text(
                f"select * from {schema_name(provider.name)}.staged_objects where raw_object_id = :id "  # noqa: S608
                "order by load_id desc limit 1"
            ),
            {"id": raw_object_id},
        ).one_or_none()
        if said is None:
            return
        refused = list(
            connection.execute(
                sa.text(
                    "select entity, reason, location, original ->> 'error' as error "
                    "from health.metric_quarantine where raw_object_id = :id "
                    "order by reason, length(location), location"
                ),
                {"id": raw_object_id},
            )
        )
        added = list(connection.execute(sa.text(_ADDED), {"id": raw_object_id}))
    summary.records_in, summary.records_loaded = said.records_in, said.records_loaded
    summary.skipped, summary.notes = Counter(said.records_skipped), list(said.notes)
    for row in refused:
        places = summary.refused.setdefault(row.reason, [])
        if row.location not in places[-2:]:
            places.append(row.location)
        if row.reason == "unreadable_file" and not said.records_loaded:
            summary.problems.append(f"the file cannot be read: {row.error}")
    samples = 0
    for row in added:
        if row.name != _COUNTED_TWICE and row.is_counted:
            summary.canonical += row.rows
            samples += row.rows if row.zone is not None else 0
            if row.zone is not None:
                summary.zones[row.zone] = summary.zones.get(row.zone, 0) + row.rows
                device = row.device or "unnamed device"
                summary.sources[device] = summary.sources.get(device, 0) + row.rows
        summary.added[row.name] = summary.added.get(row.name, 0) + row.rows
        if row.first is not None:  # an order of medication need not say when
            summary.first = min(row.first, summary.first or row.first)
            summary.last = max(row.last, summary.last or row.last)
    out_of_range = {row.location for row in refused if row.entity in ("health_metrics", "glucose_readings")}
    staged = sum(said.rows_staged.get(name, 0) for name in _SAMPLES)
    summary.duplicates = max(staged - samples - len(out_of_range), 0)
