"""Terra's payloads as staging rows: days, sleeps, workouts, bodies, and the samples within them.

Webhooks and answers have one shape, an envelope {type, user, data: [record, …]}; every record is an object of
blocks (`heart_rate_data.summary.avg_hr_bpm`), any of which may be null or absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._glucose import MG_DL, READINGS_SCHEMA
from health_pipeline.providers._json import (
    Column,
    MalformedBodyError,
    load_object,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    unknown_fields,
)
from health_pipeline.providers._terra_activities import ACTIVITIES
from health_pipeline.providers._terra_columns import (
    COLUMNS,
    COUNTED,
    FRAME,
    GLUCOSE,
    GLUCOSE_COLUMNS,
    HYPNOGRAM,
    HYPNOGRAM_COLUMNS,
    LEFT_IN_ALL,
    LEFT_IN_RAW,
    SAMPLE_SCHEMA,
    SCHEMAS,
    SENSORS,
    SERIES,
    STAGES,
    TRENDS,
)
from health_pipeline.providers._terra_times import PRINTED_IN_UTC, Instants, resolve
from health_pipeline.providers.base import Parsed, RawDocument

_INT = pa.int32()
_TEXT = pa.string()

Refusal = tuple[str, str | None, str, str]


def parse(document: RawDocument) -> Parsed:
    """An answer or a webhook's body of one entity as staging rows.

    A record, or a sample, with a wrong type or without a required field goes to quarantine alone; a refused
    sample counts as a record. A local time without an offset is taken in the zone given with the document,
    and refused where there is none (`unknown_time_zone`). Raises KeyError for an entity without payloads.
    """
    entity = document.entity
    columns = (*FRAME, *COLUMNS[entity])
    try:
        body = load_object(document.content)
    except MalformedBodyError:
        body = {}
    records = body.get("data")
    if not isinstance(records, list):
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    return _Page(document, body, records, columns).parsed()


class _Page:
    """The records of one payload on their way to tables."""

    def __init__(
        self, document: RawDocument, body: Mapping[str, Any], records: list[Any], columns: Sequence[Column]
    ) -> None:
        self.entity = document.entity
        self.zone = document.time_zone
        user = body.get("user")
        said = user.get("provider") if isinstance(user, dict) else None
        self.resource = said.strip().upper() if isinstance(said, str) and said.strip() else "TERRA"
        self.all_records = records
        self.refused: list[Refusal] = []
        self.notes = set(
            unknown_fields(
                records,
                [
                    *(column.path for column in columns),
                    *(series.path for series in SERIES[self.entity]),
                    *(GLUCOSE if self.entity == "body" else ()),
                    *((HYPNOGRAM,) if self.entity == "sleep" else ()),
                    *LEFT_IN_ALL,
                    *LEFT_IN_RAW[self.entity],
                ],
            )
        )
        read = read_records(records, columns)
        good = np.ones(len(records), dtype=bool)
        for bad in read.refused:
            good[bad.index] = False
            self._refuse_record(bad.index, bad.reason, bad.field)
        table, places = read.table, np.flatnonzero(good)
        # Where the whole of `metadata` is null, nothing of it was missed above.
        unframed = (
            table["start_text"].is_null().to_numpy() | table["end_text"].is_null().to_numpy()
            if table.num_rows
            else np.zeros(0, dtype=bool)
        )
        for place in places[unframed]:
            self._refuse_record(int(place), "missing_field", "metadata")
        table, places = table.filter(pa.array(~unframed)), places[~unframed]
        self._place(table, places)

    def _place(self, table: pa.Table, places: npt.NDArray[np.int64]) -> None:
        localization = _filled(table["localization"], -1).astype(np.int64)
        started = resolve(table["start_text"], localization, self.zone)
        ended = resolve(table["end_text"], localization, self.zone)
        lost = started.unknown | ended.unknown
        for place in places[lost]:
            self._refuse_record(int(place), "unknown_time_zone", "metadata.start_time")
        backwards = ~lost & (ended.us < started.us)
        for place in places[backwards]:
            self._refuse_record(int(place), "ends_before_start", "metadata.end_time")
        keep = ~(lost | backwards)
        self.table, self.places = table.filter(pa.array(keep)), places[keep]
        self.localization = localization[keep]
        self.started, self.ended = _kept(started, keep), _kept(ended, keep)
        self.records = [self.all_records[place] for place in self.places]
        self.devices = _devices(self.resource, self.table)
        self.ids = self._ids()

    def _refuse_record(self, place: int, reason: str, field: str | None) -> None:
        self.refused.append((reason, field, f"data[{place}]", original_json(self.all_records[place])))

    def _ids(self) -> pa.Array:
        """Ids that stay when Terra gives the connection a new user id, and differ between two devices' makers."""
        if self.entity in ("daily", "body"):
            # The date as the record prints it, before any zone is applied.
            own = pc.binary_join_element_wise(
                self.entity, pc.utf8_slice_codeunits(_one(self.table["start_text"]), 0, 10), " "
            )
        elif self.entity == "sleep":
            own = pc.coalesce(self.table["summary_id"], self.table["start_text"])
        else:
            own = self.table["summary_id"]
        return pc.binary_join_element_wise(self.resource, _one(own), " ")

    def parsed(self) -> Parsed:
        samples = self._samples()
        tables = {self.entity: self._records(samples), "sample": samples}
        if self.entity == "body":
            tables["readings"] = self._readings()
        return Parsed(
            tables=tables,
            quarantine=quarantine_table(self.entity, self.refused),
            records_in=self.table.num_rows + len(self.refused),
            records_loaded=self.table.num_rows,
            notes=tuple(f"{self.entity}: new field {path}" for path in sorted(self.notes)),
        )

    def _records(self, samples: pa.Table) -> pa.Table:
        columns: dict[str, Any] = {
            "id": self.ids,
            "recorded_at": self.started.times(),
            "ended_at": self.ended.times(),
            "utc_offset_minutes": self.started.offsets(),
            "end_utc_offset_minutes": self.ended.offsets(),
            "device": self.devices,
        }
        if self.entity in ("daily", "body"):
            day = pc.utf8_slice_codeunits(_one(self.table["start_text"]), 0, 10).cast(pa.date32())
            columns["day"] = pc.if_else(pa.array(self.localization != PRINTED_IN_UTC), day, None)
        elif self.entity == "sleep":
            columns["stages"] = self._stages()
        else:
            numbers = _filled(self.table["type_number"], -1)
            columns["activity"] = pa.array(
                [ACTIVITIES.get(number, f"type {number:g}") for number in numbers.tolist()], _TEXT
            )
        for kind in COUNTED[self.entity]:
            found = samples.filter(pc.equal(samples["kind"], kind))["document_id"]
            counts = _counts(found)
            columns[f"{kind}_samples"] = pa.array([counts.get(id_, 0) for id_ in self.ids.to_pylist()], _INT)
        schema = SCHEMAS[self.entity]
        return pa.table(
            [columns[name] if name in columns else _one(self.table[name]) for name in schema.names],
            names=schema.names,
        ).cast(schema)

    def _items(
        self, path: str, columns: Sequence[Column]
    ) -> tuple[pa.Table, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The good samples at a path of all records, the record each is of, and its place in its array."""
        *above, last = path.split(".")
        items: list[Any] = []
        owners: list[int] = []
        lengths: list[int] = []
        for number, record in enumerate(self.records):
            value: Any = record
            for depth, step in enumerate([*above, last]):
                value = None if value is None else value.get(step)
                wanted = list if depth == len(above) else dict
                if value is not None and not isinstance(value, wanted):
                    self._refuse_item(number, ".".join([*above, last][: depth + 1]), None, value)
                    value = None
            if value:
                items += value
                owners.append(number)
                lengths.append(len(value))
        record_of = np.repeat(np.array(owners, dtype=np.int64), lengths)
        place = np.concatenate([np.arange(length) for length in lengths] or [np.zeros(0, dtype=np.int64)])
        read = read_records(items, columns)
        good = np.ones(len(items), dtype=bool)
        for bad in read.refused:
            good[bad.index] = False
            where = f"{path}[{place[bad.index]}]"
            self._refuse_item(int(record_of[bad.index]), where, bad.field, items[bad.index], bad.reason)
        return read.table, record_of[good], place[good]

    def _refuse_item(
        self, number: int, where: str, field: str | None, value: Any, reason: str = "wrong_type"
    ) -> None:
        location = f"data[{self.places[number]}].{where}"
        self.refused.append((reason, field or where, location, original_json(value)))

    def _instants(self, texts: Any, record_of: npt.NDArray[np.int64]) -> Instants:
        return resolve(texts, self.localization[record_of], self.zone, self.started.offset[record_of])

    def _samples(self) -> pa.Table:
        parts = []
        for series in SERIES[self.entity]:
            table, record_of, _ = self._items(series.path, series.columns())
            if "type" in series.extra():
                # 1 is the oxygen of a muscle.
                blood = pa.array(_filled(table["type"], 0) != 1)
                table, record_of = table.filter(blood), record_of[blood.to_numpy(zero_copy_only=False)]
            instants = self._instants(table["time"], record_of)
            for name, kind in series.values.items():
                said = _one(table[name]).is_valid()
                parts.append(
                    pa.table(
                        [
                            self.ids.take(record_of),
                            pa.repeat(pa.scalar(kind), len(record_of)),
                            instants.times(),
                            instants.offsets(),
                            _one(table[name]),
                            self.devices.take(record_of),
                        ],
                        names=SAMPLE_SCHEMA.names,
                    ).filter(said)
                )
        return pa.concat_tables(parts).cast(SAMPLE_SCHEMA)

    def _readings(self) -> pa.Table:
        parts = []
        seen = np.zeros(0, dtype=np.int64)
        for path in GLUCOSE:
            table, record_of, place = self._items(path, GLUCOSE_COLUMNS)
            instants = self._instants(table["time"], record_of)
            keep = ~np.isin(instants.us, seen)
            keep &= _one(table["value"]).is_valid().to_numpy(zero_copy_only=False)
            seen = np.concatenate([seen, instants.us])
            instants = _kept(instants, keep)
            table, record_of, place = table.filter(pa.array(keep)), record_of[keep], place[keep]
            trends = np.clip(_filled(table["trend"], 0), 0, len(TRENDS) - 1).astype(np.int64)
            trend = pa.array(np.array(TRENDS, dtype=object)[trends], _TEXT)
            offsets = instants.offsets()
            columns = {
                "recorded_at": instants.times(),
                "utc_offset_minutes": offsets,
                "utc_offset_source": pc.if_else(offsets.is_valid(), "record", pa.scalar(None, _TEXT)),
                "value": _one(table["value"]),
                "unit": pa.repeat(pa.scalar(MG_DL), len(place)),
                "value_text": _one(table["value"]).cast(_TEXT),
                "reading_type": self._reading_types(table, record_of),
                "trend": pc.if_else(pc.equal(trend, ""), pa.scalar(None, _TEXT), trend),
                "device": self.devices.take(record_of),
                "line": pa.array(place, _INT),
                "ambiguous_time": pa.repeat(pa.scalar(False), len(place)),
            }
            parts.append(
                pa.table(
                    [
                        columns[field.name] if field.name in columns else pa.nulls(len(place), field.type)
                        for field in READINGS_SCHEMA
                    ],
                    names=READINGS_SCHEMA.names,
                ).cast(READINGS_SCHEMA)
            )
        return pa.concat_tables(parts)

    def _reading_types(self, table: pa.Table, record_of: npt.NDArray[np.int64]) -> pa.Array:
        if any(name in self.resource for name in SENSORS):
            return pa.repeat(pa.scalar("cgm"), table.num_rows)
        worn = _filled(self.table["glucose_sensor_usage"], 0)[record_of] > 0
        moving = _filled(table["trend"], 0) > 0
        return pc.if_else(pa.array(worn | moving, pa.bool_()), "cgm", "strip")

    def _stages(self) -> pa.Array:
        """Each sleep's hypnogram as JSON text, null where there is none."""
        table, record_of, _ = self._items(HYPNOGRAM, HYPNOGRAM_COLUMNS)
        starts = self._instants(table["time"], record_of).us
        levels = _filled(table["level"], 0).astype(np.int64)
        texts: list[str | None] = []
        for number in range(len(self.records)):
            mine = record_of == number
            begin, end = int(self.started.us[number]), int(self.ended.us[number])
            texts.append(_hypnogram(starts[mine], levels[mine], begin, end))
        return pa.array(texts, _TEXT)


def _hypnogram(
    starts: npt.NDArray[np.int64], levels: npt.NDArray[np.int64], begin: int, end: int
) -> str | None:
    """A stage lasts until the next sample, the last one until the sleep's end."""
    order = np.argsort(starts, kind="stable")
    starts, levels = np.clip(starts[order], begin, end), levels[order]
    first = np.flatnonzero(np.diff(levels, prepend=-1))
    seconds = np.append((starts[first] - begin) // 1_000_000, (end - begin) // 1_000_000).tolist()
    found = [
        {"stage": STAGES[level], "start": seconds[place], "seconds": seconds[place + 1] - seconds[place]}
        for place, level in enumerate(levels[first].tolist())
        if level in STAGES and seconds[place + 1] > seconds[place]
    ]
    return orjson.dumps(found).decode() if found else None


def _devices(resource: str, table: pa.Table) -> pa.Array:
    """`GARMIN Forerunner 255`: the connection, and the device where the record names one."""
    names = pc.coalesce(_one(table["device_name"]), _one(table["device_manufacturer"]), pa.scalar("", _TEXT))
    prefix = f"{resource} ".casefold()
    return pa.array(
        [
            resource
            if name.casefold() in ("", resource.casefold())
            else f"{resource} {name[len(prefix) :] if name.casefold().startswith(prefix) else name}"
            for name in (name.strip() for name in names.to_pylist())
        ],
        _TEXT,
    )


def _counts(ids: pa.ChunkedArray) -> dict[str, int]:
    counted = _one(ids).value_counts()
    return dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))


def _kept(instants: Instants, keep: npt.NDArray[np.bool_]) -> Instants:
    return Instants(instants.us[keep], instants.offset[keep], instants.unknown[keep])


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _filled(column: pa.ChunkedArray, value: float) -> npt.NDArray[np.float64]:
    filled: npt.NDArray[np.float64] = pc.fill_null(column, float(value)).to_numpy().astype(np.float64)
    return filled
