"""The series and lists inside Garmin's summaries as tables of their own, a row a value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._garmin_records import (
    FLOAT,
    INT,
    SHORT,
    TEXT,
    TRACK_COLUMNS,
    instants_of,
    minutes_of,
)
from health_pipeline.providers._json import UTC_TIMESTAMP

#: A value of a series. `kind` ends in `_state` where the value is a code and not a measurement. `day` and offset
#: are the summary's: the offset may have changed since it began.
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("summary_id", TEXT, nullable=False),
        pa.field("kind", TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("day", pa.date32()),
        pa.field("utc_offset_minutes", SHORT),
        pa.field("value", FLOAT, nullable=False),
    ]
)
LEVEL_SCHEMA = pa.schema(
    [
        pa.field("summary_id", TEXT, nullable=False),
        pa.field("level", TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
    ]
)
NAP_SCHEMA = pa.schema(
    [
        pa.field("summary_id", TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", SHORT),
        pa.field("duration_seconds", INT, nullable=False),
        pa.field("validation", TEXT),
    ]
)
MEASURE_SCHEMA = pa.schema(
    [
        pa.field("summary_id", TEXT, nullable=False),
        pa.field("kind", TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", SHORT),
        pa.field("minimum", FLOAT),
        pa.field("maximum", FLOAT),
        pa.field("average", FLOAT),
    ]
)
TRACK_SCHEMA = pa.schema(
    [
        pa.field("summary_id", TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", SHORT),
        *(pa.field(name, FLOAT) for name in list(TRACK_COLUMNS.values())[1:]),
    ]
)


def samples_of(table: pa.Table, column: str, kind: str, least: float) -> pa.Table:
    """The values of a series as rows; those below `least` as states, those that are null not at all."""
    series = table[column].combine_chunks()
    parent = pc.list_parent_indices(series)
    pairs = series.flatten()
    value = pairs.field("value")
    started = table["recorded_at"].combine_chunks().take(parent).cast(pa.int64())
    moment = pc.add(started, pc.multiply(pairs.field("offset"), 1_000_000))
    days = table["day"].combine_chunks() if "day" in table.column_names else pa.nulls(len(table), pa.date32())
    rows = pa.table(
        [
            table["summary_id"].combine_chunks().take(parent),
            pc.if_else(pc.less(value, least), f"{kind}_state", kind),
            moment.cast(pa.timestamp("us")).cast(UTC_TIMESTAMP),
            days.take(parent),
            table["utc_offset_minutes"].combine_chunks().take(parent),
            value,
        ],
        names=SAMPLE_SCHEMA.names,
    )
    return rows.filter(value.is_valid()).cast(SAMPLE_SCHEMA)


def means_of(table: pa.Table, column: str, least: float) -> pa.Array:
    """The mean of each row's series, of the values that are measurements; null where there are none."""
    series = table[column].combine_chunks()
    values = series.flatten().field("value").to_numpy(zero_copy_only=False)
    measured = values >= least
    parent = pc.list_parent_indices(series).to_numpy()[measured]
    count = np.bincount(parent, minlength=table.num_rows)
    total = np.bincount(parent, weights=values[measured], minlength=table.num_rows)
    return pa.array(total / np.maximum(count, 1), FLOAT, mask=count == 0)


def levels_of(nights: pa.Table) -> pa.Table:
    """A row a stretch of one sleep level, in the order they were written."""
    levels = nights["levels"].combine_chunks()
    flat = levels.flatten()
    return pa.table(
        [
            nights["summary_id"].combine_chunks().take(pc.list_parent_indices(levels)),
            flat.field("level"),
            instants_of(flat.field("start")),
            instants_of(flat.field("end")),
        ],
        schema=LEVEL_SCHEMA,
    )


def naps_of(nights: pa.Table) -> pa.Table:
    """A row a nap that a night's summary tells of."""
    naps = nights["naps"].combine_chunks()
    parent = pc.list_parent_indices(naps)
    flat = naps.flatten()
    own = minutes_of(flat.field("napOffsetInSeconds"))
    return pa.table(
        [
            nights["summary_id"].combine_chunks().take(parent),
            instants_of(flat.field("napStartTimeInSeconds")),
            pc.coalesce(own, nights["utc_offset_minutes"].combine_chunks().take(parent)),
            pc.round(flat.field("napDurationInSeconds")).cast(INT),
            flat.field("napValidation"),
        ],
        schema=NAP_SCHEMA,
    )


def measures_of(snapshots: pa.Table) -> tuple[pa.Table, pa.Table]:
    """A row a measure of a Health Snapshot, and its series as samples of the kinds `snapshot_…`."""
    measures = snapshots["measures"].combine_chunks()
    parent = pc.list_parent_indices(measures)
    flat = measures.flatten()
    placed = [snapshots[name].combine_chunks().take(parent) for name in ("summary_id", "recorded_at")]
    offset = snapshots["utc_offset_minutes"].combine_chunks().take(parent)
    names = ("minimum", "maximum", "average")
    table = pa.table(
        [placed[0], flat.field("kind"), placed[1], offset, *(flat.field(name) for name in names)],
        schema=MEASURE_SCHEMA,
    )
    parts = [SAMPLE_SCHEMA.empty_table()]
    for kind in pc.unique(flat.field("kind")).to_pylist():
        chosen = table.filter(pc.equal(flat.field("kind"), kind)).append_column(
            "series", flat.field("series").filter(pc.equal(flat.field("kind"), kind))
        )
        parts.append(samples_of(chosen, "series", f"snapshot_{kind}", 0.0))
    return table, pa.concat_tables(parts)


def track_of(activities: pa.Table) -> pa.Table:
    """A row a sample of an activity."""
    track = activities["track"].combine_chunks()
    parent = pc.list_parent_indices(track)
    flat = track.flatten()
    return pa.table(
        [
            activities["summary_id"].combine_chunks().take(parent),
            instants_of(flat.field("startTimeInSeconds")),
            activities["utc_offset_minutes"].combine_chunks().take(parent),
            *(flat.field(name) for name in list(TRACK_COLUMNS)[1:]),
        ],
        schema=TRACK_SCHEMA,
    )
