"""Health Connect's export: a zip with one SQLite database, of the tables and columns of AOSP's Health Fitness module.

A watch's app and the phone's own count steps; the watch's measures pulse and sleep, a scale's writes weights, a
sensor's and a meter's write glucose. Older apps leave the zone offset out.
"""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

from health_pipeline.sandbox import body
from health_pipeline.sandbox.archives import pack
from health_pipeline.sandbox.glucose import readings
from health_pipeline.sandbox.night import AWAKE, DEEP, LIGHT, REM
from health_pipeline.sandbox.recorded import Recorded, stage_runs

_COMMON = (
    "row_id integer primary key autoincrement, uuid blob, last_modified_time integer, app_info_id integer"
)
_INTERVAL = (
    f"{_COMMON}, start_time integer, start_zone_offset integer, end_time integer, end_zone_offset integer, "
    "local_date integer"
)
_INSTANT = f"{_COMMON}, time integer, zone_offset integer, local_date integer"
_TABLES = {
    "application_info_table": "row_id integer primary key autoincrement, package_name text, app_name text",
    "steps_record_table": f"{_INTERVAL}, count integer",
    "active_calories_burned_record_table": f"{_INTERVAL}, energy real",
    "heart_rate_record_table": _INTERVAL,
    "heart_rate_record_series_table": "parent_key integer, beats_per_minute integer, epoch_millis integer",
    "weight_record_table": f"{_INSTANT}, weight real",
    "blood_pressure_record_table": f"{_INSTANT}, systolic real, diastolic real",
    "blood_glucose_record_table": f"{_INSTANT}, level real, specimen_source integer",
    "sleep_session_record_table": f"{_INTERVAL}, title text",
    "sleep_stages_table": (
        "parent_key integer, stage_start_time integer, stage_end_time integer, stage_type integer"
    ),
    "exercise_session_record_table": f"{_INTERVAL}, exercise_type integer, title text",
    "nutrition_record_table": f"{_INTERVAL}, energy real, total_carbohydrate real",
    "cycling_pedaling_cadence_record_table": _INTERVAL,
}
WATCH, PHONE, SCALE, SENSOR, METER = (
    "com.watch.app",
    "com.phone.app",
    "com.scale.app",
    "com.cgm.app",
    "com.meter.app",
)
_APPS = (WATCH, PHONE, SCALE, SENSOR, METER)
_STAGES = {AWAKE: 1, LIGHT: 4, DEEP: 5, REM: 6}
_EXERCISES = {"cycling": 4, "hiking": 21, "running": 33, "strength_training": 45, "walking": 53, "yoga": 57}
#: The phone is in a pocket half of each hour.
_SHARE_OF_PHONE = 0.5
_INTERSTITIAL, _CAPILLARY = 1, 2
_MG_DL_PER_MMOL_L = 18.0156


def database(seen: Recorded) -> bytes:
    """The database, with the same bytes each time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.db"
        connection = sqlite3.connect(path)
        connection.execute("pragma page_size = 1024")
        connection.execute("pragma user_version = 17")
        for name, columns in _TABLES.items():
            connection.execute(f"create table {name} ({columns})")
        _Writer(connection, seen).write()
        connection.commit()
        connection.execute("vacuum")
        connection.close()
        content = bytearray(path.read_bytes())
    # The version of the library that wrote it.
    content[96:100] = bytes(4)
    return bytes(content)


def export(seen: Recorded) -> bytes:
    """`Health Connect.zip`."""
    return pack({"health_connect_export.db": database(seen)})


class _Writer:
    def __init__(self, connection: sqlite3.Connection, seen: Recorded) -> None:
        self._connection = connection
        self._seen = seen

    def write(self) -> None:
        seen = self._seen
        for app in _APPS:
            self._insert("application_info_table", package_name=app, app_name=app.split(".")[1])
        for at, steps in zip(seen.minutes.tolist(), seen.steps.tolist(), strict=True):
            self._interval("steps_record_table", at, at + 60, WATCH, count=steps)
            if at % 3600 < 3600 * _SHARE_OF_PHONE:
                self._interval("steps_record_table", at, at + 60, PHONE, count=steps)
        self._pulse()
        for weighed in seen.weighings:
            # An app of old: no offset.
            self._instant(
                "weight_record_table", weighed.instant, SCALE, zone=False, weight=1000 * weighed.weight
            )
            self._instant(
                "blood_pressure_record_table",
                weighed.instant,
                SCALE,
                systolic=weighed.systolic,
                diastolic=weighed.diastolic,
            )
        self._glucose()
        for night in seen.nights:
            row_id = self._interval("sleep_session_record_table", night.bed, night.wake, WATCH, title=None)
            for after, seconds, stage in stage_runs(night):
                self._insert(
                    "sleep_stages_table",
                    parent_key=row_id,
                    stage_start_time=1000 * (night.bed + after),
                    stage_end_time=1000 * (night.bed + after + seconds),
                    stage_type=_STAGES[stage],
                )
        for done in seen.workouts:
            self._interval(
                "exercise_session_record_table",
                done.start,
                done.end,
                WATCH,
                exercise_type=_EXERCISES.get(done.activity, 58),
            )
            kcal = round(body.workout_kcal(seen.person, done), 1)
            self._interval(
                "active_calories_burned_record_table", done.start, done.end, WATCH, energy=1000 * kcal
            )
        noon = seen.midnight(seen.dates[0]) + 12 * 3600
        self._interval(
            "nutrition_record_table", noon, noon + 900, PHONE, energy=640_000, total_carbohydrate=72.5
        )
        self._interval(
            "nutrition_record_table", noon + 3600, noon + 3660, PHONE, energy=2_000, total_carbohydrate=None
        )
        self._interval("cycling_pedaling_cadence_record_table", noon, noon + 60, PHONE)

    def _pulse(self) -> None:
        """A record an hour, with its samples."""
        parent: tuple[int, int] | None = None
        for at, bpm in zip(self._seen.pulse_at.tolist(), self._seen.pulse.tolist(), strict=True):
            hour = at - at % 3600
            if parent is None or parent[0] != hour:
                parent = hour, self._interval("heart_rate_record_table", hour, hour + 3600, WATCH)
            self._insert(
                "heart_rate_record_series_table",
                parent_key=parent[1],
                beats_per_minute=bpm,
                epoch_millis=1000 * at,
            )

    def _glucose(self) -> None:
        if self._seen.person.cgm is None:
            return
        found = readings(self._seen.person, self._seen.dates[0], self._seen.dates[-1])
        for place, (at, mg_dl) in enumerate(zip(found.time.tolist(), found.mg_dl.tolist(), strict=True)):
            level = mg_dl / _MG_DL_PER_MMOL_L
            table = "blood_glucose_record_table"
            self._instant(table, at, SENSOR, level=level, specimen_source=_INTERSTITIAL)
            if place % 100 == 50:
                self._instant(table, at + 30, METER, level=level, specimen_source=_CAPILLARY)

    def _interval(self, table: str, start: int, end: int, app: str, **values: Any) -> int:
        return self._insert(
            table,
            **self._common(table, start, app),
            start_time=1000 * start,
            start_zone_offset=60 * self._seen.offset_minutes(start),
            end_time=1000 * end,
            end_zone_offset=60 * self._seen.offset_minutes(end),
            **values,
        )

    def _instant(self, table: str, at: int, app: str, *, zone: bool = True, **values: Any) -> int:
        offset = 60 * self._seen.offset_minutes(at) if zone else None
        return self._insert(
            table, **self._common(table, at, app), time=1000 * at, zone_offset=offset, **values
        )

    def _common(self, table: str, at: int, app: str) -> dict[str, Any]:
        return {
            "uuid": UUID(self._seen.person.uuid("health_connect", table, app, at)).bytes,
            "last_modified_time": 1000 * at + 5000,
            "app_info_id": _APPS.index(app) + 1,
            "local_date": (at + 60 * self._seen.offset_minutes(at)) // 86_400,
        }

    def _insert(self, table: str, **values: Any) -> int:
        names, marks = ", ".join(values), ", ".join("?" for _ in values)
        cursor = self._connection.execute(
            f"insert into {table} ({names}) values ({marks})",  # noqa: S608
            list(values.values()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid
