"""`health-pipeline upload`: a file into raw, then the file job, then what became of every record."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from health_pipeline.connections.users import ensure_user
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import Window
from health_pipeline.raw.store import open_store
from health_pipeline.runtime.run_job import run_job
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

_LINES_SHOWN = 10


@dataclass(slots=True)
class UploadSummary:
    """What a file held and where it went. `refused` maps a reason to the places in the file."""

    title: str
    known: bool
    records_in: int
    records_loaded: int
    skipped: Counter[str] = field(default_factory=Counter)
    refused: dict[str, list[str]] = field(default_factory=dict)
    first: dt.datetime | None = None
    last: dt.datetime | None = None
    canonical: int = 0
    problems: list[str] = field(default_factory=list)

    def words(self) -> str:
        """The report for the terminal."""
        lines = [f"{self.title}: {self.records_in} records read, {self.canonical} in the warehouse"]
        if self.known:
            lines.append("these bytes were uploaded before; nothing was added")
        if self.first is not None and self.last is not None:
            lines.append(f"from {self.first:%Y-%m-%d %H:%M} to {self.last:%Y-%m-%d %H:%M} UTC")
        if self.skipped:
            lines.append("skipped: " + ", ".join(f"{count} {name}" for name, count in self.skipped.items()))
        for reason, places in self.refused.items():
            shown = ", ".join(places[:_LINES_SHOWN]) + (", …" if len(places) > _LINES_SHOWN else "")
            lines.append(f"quarantined: {len(places)} {reason} ({shown})")
        return "\n".join(lines)


def upload_file(
    settings: Settings,
    warehouse: Warehouse,
    path: Path,
    handle: str,
    say: Callable[[str], None],
    *,
    time_zone: str | None = None,
    kind: str | None = None,
    date_order: str | None = None,
) -> UploadSummary:
    """Upload and run the job. Raises UnreadableFileError, ConflictingUploadError, ValueError."""
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, handle, time_zone)
    taken = upload(
        warehouse,
        open_store(settings.raw_location),
        user,
        path,
        time_zone=time_zone,
        kind=kind,
        context={"date_order": date_order} if date_order else {},
    )
    say(f"{path.name} is a {taken.provider.title} file; kept as raw object {taken.receipt.raw_object_id}")
    with warehouse.engine.connect() as connection:
        day = connection.execute(
            sa.text("select partition_start from ops.raw_objects where raw_object_id = :id"),
            {"id": taken.receipt.raw_object_id},
        ).scalar_one()
    outcome = run_job("file_upload", Window(day, day), settings, warehouse, on_progress=say)
    summary = UploadSummary(
        title=taken.provider.title,
        known=not taken.receipt.created,
        records_in=taken.parsed.records_in,
        records_loaded=taken.parsed.records_loaded,
        skipped=Counter(taken.parsed.skipped),
        problems=[*outcome.failures],
    )
    _read_outcome(warehouse, taken.receipt.raw_object_id, user.user_id, summary)
    return summary


def _read_outcome(warehouse: Warehouse, raw_object_id: int, user_id: int, summary: UploadSummary) -> None:
    with warehouse.engine.connect() as connection:
        if connection.execute(sa.text("select to_regclass('health.metric_quarantine')")).scalar() is None:
            return
        for row in connection.execute(
            sa.text(
                "select reason, location from health.metric_quarantine where raw_object_id = :id "
                "order by reason, length(location), location"
            ),
            {"id": raw_object_id},
        ):
            summary.refused.setdefault(row.reason, []).append(row.location)
        found = connection.execute(
            sa.text(
                "select count(*) as rows, min(recorded_at) as first, max(recorded_at) as last "
                "from health.glucose_readings where raw_object_id = :id and user_id = :user"
            ),
            {"id": raw_object_id, "user": user_id},
        ).one()
    summary.canonical, summary.first, summary.last = found.rows, found.first, found.last
