"""`health-pipeline upload`: a file into raw, then the file job, then what became of every record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from health_pipeline.connections.users import ensure_user
from health_pipeline.ingestion.outcome import UploadSummary, read_outcome
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import Window
from health_pipeline.raw.index import partition_of
from health_pipeline.raw.store import open_store
from health_pipeline.runtime.run_job import run_job
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


def upload_file(
    settings: Settings,
    warehouse: Warehouse,
    path: Path,
    handle: str,
    say: Callable[[str], None],
    *,
    time_zone: str | None = None,
    kind: str | None = None,
    options: Mapping[str, str] | None = None,
) -> UploadSummary:
    """Upload and run the job; `options` are for the file's parser.

    Raises UnreadableFileError, ConflictingUploadError, ValueError.
    """
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, handle, time_zone)
    taken = upload(
        warehouse,
        open_store(settings.raw_location),
        user,
        path,
        time_zone=time_zone,
        kind=kind,
        context=options,
    )
    say(f"{path.name}: {taken.provider.title}, kept as raw object {taken.receipt.raw_object_id}")
    day = partition_of(warehouse.engine, taken.receipt.raw_object_id)
    outcome = run_job("file_upload", Window(day, day), settings, warehouse, on_progress=say)
    summary = UploadSummary(
        taken.provider.title, known=not taken.receipt.created, problems=[*outcome.failures]
    )
    read_outcome(warehouse, taken.provider, taken.receipt.raw_object_id, summary)
    return summary
