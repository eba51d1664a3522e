"""What is read of Terra's payloads: columns of each kind of record, and the arrays of samples within."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from health_pipeline.providers._json import UTC_TIMESTAMP, Column, schema_of
from health_pipeline.providers._terra_times import time_texts

_SHORT = pa.int16()
_INT = pa.int32()
_FLOAT = pa.float64()
_TEXT = pa.string()

_HEART_RATE = "heart_rate_data.summary"
_OXYGEN = "oxygen_data"
_ASLEEP, _AWAKE = "sleep_durations_data.asleep", "sleep_durations_data.awake"
_BREATHS, _SATURATION = "respiration_data.breaths_data", "respiration_data.oxygen_saturation_data"


def _numbers(parent: str, columns: Mapping[str, str]) -> tuple[Column, ...]:
    return tuple(Column(f"{parent}.{field}", _FLOAT, column) for field, column in columns.items())


FRAME = (
    Column("metadata.start_time", _TEXT, "start_text", required=True, convert=time_texts),
    Column("metadata.end_time", _TEXT, "end_text", required=True, convert=time_texts),
    Column("metadata.timestamp_localization", _FLOAT, "localization"),
    Column("device_data.name", _TEXT, "device_name"),
    Column("device_data.manufacturer", _TEXT, "device_manufacturer"),
)
_UPLOAD = Column("metadata.upload_type", _FLOAT, "upload_type")
_HEART_RATES = {
    "avg_hr_bpm": "average_heart_rate_bpm",
    "max_hr_bpm": "max_heart_rate_bpm",
    "min_hr_bpm": "min_heart_rate_bpm",
    "resting_hr_bpm": "resting_heart_rate_bpm",
    "avg_hrv_rmssd": "average_hrv_rmssd_ms",
    "avg_hrv_sdnn": "average_hrv_sdnn_ms",
}
_CALORIES = {
    "total_burned_calories": "total_burned_kcal",
    "net_activity_calories": "net_activity_kcal",
    "BMR_calories": "basal_kcal",
}

#: What is read of a record beside its frame.
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "daily": (
        _UPLOAD,
        *_numbers(
            "distance_data",
            {"steps": "steps", "distance_meters": "distance_m", "floors_climbed": "floors_climbed"},
        ),
        *_numbers("distance_data.elevation", {"gain_actual_meters": "elevation_gain_m"}),
        *_numbers("calories_data", _CALORIES),
        *_numbers(
            "active_durations_data",
            {
                f"{kind}_seconds": f"{kind}_seconds"
                for kind in (
                    *("activity", "inactivity", "rest"),
                    *("low_intensity", "moderate_intensity", "vigorous_intensity"),
                )
            },
        ),
        *_numbers(_HEART_RATE, _HEART_RATES),
        *_numbers(
            _OXYGEN,
            {"avg_saturation_percentage": "average_spo2_percent", "vo2max_ml_per_min_per_kg": "vo2_max"},
        ),
        *_numbers(
            "stress_data",
            {
                "avg_stress_level": "average_stress_level",
                "max_stress_level": "max_stress_level",
                "high_stress_duration_seconds": "high_stress_seconds",
                "rest_stress_duration_seconds": "rest_stress_seconds",
            },
        ),
        *_numbers("scores", {kind: f"{kind}_score" for kind in ("activity", "recovery", "sleep")}),
        *_numbers("strain_data", {"strain_level": "strain_level"}),
    ),
    "sleep": (
        _UPLOAD,
        Column("metadata.summary_id", _TEXT, "summary_id"),
        Column("metadata.is_nap", pa.bool_(), "is_nap"),
        *_numbers(
            _ASLEEP,
            {
                "duration_asleep_state_seconds": "asleep_seconds",
                "duration_deep_sleep_state_seconds": "deep_sleep_seconds",
                "duration_light_sleep_state_seconds": "light_sleep_seconds",
                "duration_REM_sleep_state_seconds": "rem_sleep_seconds",
            },
        ),
        *_numbers(
            _AWAKE,
            {"duration_awake_state_seconds": "awake_seconds", "sleep_latency_seconds": "latency_seconds"},
        ),
        *_numbers("sleep_durations_data.other", {"duration_in_bed_seconds": "in_bed_seconds"}),
        *_numbers("sleep_durations_data", {"sleep_efficiency": "efficiency_percent"}),
        *_numbers(_HEART_RATE, _HEART_RATES),
        *_numbers(_BREATHS, {"avg_breaths_per_min": "average_breaths_per_minute"}),
        *_numbers(_SATURATION, {"avg_saturation_percentage": "average_spo2_percent"}),
        *_numbers("temperature_data", {"delta": "temperature_deviation_celsius"}),
        *_numbers("scores", {"sleep": "sleep_score"}),
        *_numbers(
            "readiness_data", {"readiness": "readiness_score", "recovery_level": "recovery_level_score"}
        ),
    ),
    "activity": (
        _UPLOAD,
        Column("metadata.summary_id", _TEXT, "summary_id", required=True),
        Column("metadata.type", _FLOAT, "type_number", required=True),
        Column("metadata.name", _TEXT, "title"),
        *_numbers("calories_data", _CALORIES),
        *_numbers("distance_data.summary", {"distance_meters": "distance_m", "steps": "steps"}),
        *_numbers("distance_data.summary.elevation", {"gain_actual_meters": "elevation_gain_m"}),
        *_numbers(
            _HEART_RATE, {name: _HEART_RATES[name] for name in ("avg_hr_bpm", "max_hr_bpm", "min_hr_bpm")}
        ),
    ),
    "body": (
        *_numbers(_OXYGEN, {"vo2max_ml_per_min_per_kg": "vo2_max"}),
        *_numbers("hydration_data", {"day_total_water_consumption_ml": "water_ml"}),
        *_numbers("glucose_data", {"sensor_usage": "glucose_sensor_usage"}),
    ),
}


@dataclass(frozen=True, slots=True)
class Series:
    """An array of samples in a record, and the kinds of value that its items hold."""

    path: str
    values: Mapping[str, str]
    time: str = "timestamp"

    def columns(self) -> tuple[Column, ...]:
        return (
            Column(self.time, _TEXT, "time", required=True, convert=time_texts),
            *(Column(name, _FLOAT) for name in (*self.values, *self.extra())),
        )

    def extra(self) -> tuple[str, ...]:
        return (
            ("type",) if self.path.endswith("saturation_samples") or self.path.startswith(_SATURATION) else ()
        )


def _heart(parent: str) -> tuple[Series, ...]:
    return (
        Series(f"{parent}.detailed.hr_samples", {"bpm": "heart_rate"}),
        Series(f"{parent}.detailed.hrv_samples_rmssd", {"hrv_rmssd": "hrv_rmssd"}),
        Series(f"{parent}.detailed.hrv_samples_sdnn", {"hrv_sdnn": "hrv_sdnn"}),
    )


_DAY_OXYGEN = (
    Series(f"{_OXYGEN}.saturation_samples", {"percentage": "spo2"}),
    Series(f"{_OXYGEN}.vo2_samples", {"vo2max_ml_per_min_per_kg": "vo2_max"}),
)
SERIES: Mapping[str, tuple[Series, ...]] = {
    "daily": (
        *_heart("heart_rate_data"),
        *_DAY_OXYGEN,
        Series("stress_data.body_battery_samples", {"level": "body_battery"}),
    ),
    "sleep": (*_heart("heart_rate_data"), Series(f"{_SATURATION}.samples", {"percentage": "spo2"})),
    "activity": (*_heart("heart_rate_data"),),
    "body": (
        *_heart("heart_data.heart_rate_data"),
        *_DAY_OXYGEN,
        Series("temperature_data.body_temperature_samples", {"temperature_celsius": "body_temperature"}),
        Series("temperature_data.skin_temperature_samples", {"temperature_celsius": "skin_temperature"}),
        Series(
            "blood_pressure_data.blood_pressure_samples",
            {"systolic_bp": "blood_pressure_systolic", "diastolic_bp": "blood_pressure_diastolic"},
        ),
        Series(
            "measurements_data.measurements",
            {
                "weight_kg": "weight_kg",
                "height_cm": "height_cm",
                "bodyfat_percentage": "body_fat_percent",
                "BMI": "bmi",
                "bone_mass_g": "bone_mass_g",
                "muscle_mass_g": "muscle_mass_g",
                "lean_mass_g": "lean_mass_g",
                "visceral_fat_level": "visceral_fat_level",
            },
            time="measurement_time",
        ),
    ),
}
#: Detailed readings are more, and may be less accurate: at the same instant the others count.
GLUCOSE = ("glucose_data.blood_glucose_samples", "glucose_data.detailed_blood_glucose_samples")
GLUCOSE_COLUMNS = (
    Column("timestamp", _TEXT, "time", required=True, convert=time_texts),
    Column("blood_glucose_mg_per_dL", _FLOAT, "value"),
    Column("trend_arrow", _FLOAT, "trend"),
)
TRENDS = ("", "falling_quickly", "falling", "flat", "rising", "rising_quickly")
#: Connections that are continuous sensors; of any other, readings without a sign of one are finger sticks.
SENSORS = ("FREESTYLE", "LIBRE", "ABBOTT", "DEXCOM", "EVERSENSE", "MEDTRONIC", "NIGHTSCOUT", "TIDEPOOL")
HYPNOGRAM = "sleep_durations_data.hypnogram_samples"
HYPNOGRAM_COLUMNS = (
    Column("timestamp", _TEXT, "time", required=True, convert=time_texts),
    Column("level", _FLOAT, "level", required=True),
)
#: `SleepLevel`; 0 is a time that could not be measured.
STAGES = {1: "awake", 2: "asleep", 3: "awake", 4: "light", 5: "deep", 6: "rem"}


def _leaves(parent: str, names: str) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" for name in names.split())


_HEIGHTS = "avg_meters gain_planned_meters loss_actual_meters max_meters min_meters"
_MEASURED = (
    "bmi bmr bodyfat_percentage bone_mass_g estimated_fitness_age height_cm insulin_units lean_mass_g "
    "muscle_mass_g rmr skin_fold_mm visceral_fat_level water_percentage weight_kg"
)

#: Fields we know and leave in raw, with all below them.
LEFT_IN_RAW: Mapping[str, tuple[str, ...]] = {
    "daily": (
        *("MET_data", "data_enrichment", "tag_data", "distance_data.detailed", "distance_data.swimming"),
        *_leaves(
            "active_durations_data",
            "activity_levels_samples num_continuous_inactive_periods standing_hours_count standing_seconds",
        ),
        *_leaves("calories_data", "calorie_samples net_intake_calories"),
        *_leaves("distance_data.elevation", _HEIGHTS),
        *_leaves(_OXYGEN, "day_avg_vo2max_ml_per_min_per_kg"),
        *_leaves(
            "stress_data",
            "activity_stress_duration_seconds low_stress_duration_seconds medium_stress_duration_seconds "
            "samples stress_duration_seconds stress_rating",
        ),
    ),
    "sleep": (
        "data_enrichment",
        *_leaves(
            _BREATHS,
            "start_time end_time max_breaths_per_min min_breaths_per_min on_demand_reading samples",
        ),
        *_leaves(_SATURATION, "start_time end_time"),
        "respiration_data.snoring_data",
        f"{_ASLEEP}.num_REM_events",
        *_leaves(
            _AWAKE,
            "duration_long_interruption_seconds duration_short_interruption_seconds num_out_of_bed_events "
            "num_wakeup_events wake_up_latency_seconds",
        ),
        "sleep_durations_data.other.duration_unmeasurable_sleep_seconds",
    ),
    "activity": (
        *("MET_data", "TSS_data", "active_durations_data", "cheat_detection", "data_enrichment"),
        *("energy_data", "lap_data", "movement_data", "oxygen_data", "polyline_map_data", "position_data"),
        *("power_data", "strain_data", "work_data", "distance_data.detailed"),
        *_leaves("distance_data.summary", "floors_climbed swimming"),
        *_leaves("distance_data.summary.elevation", _HEIGHTS),
        *_leaves("calories_data", "calorie_samples net_intake_calories"),
        *_leaves("metadata", "city country state"),
        *_leaves(_HEART_RATE, "avg_hrv_rmssd avg_hrv_sdnn resting_hr_bpm"),
    ),
    "body": (
        *("ketone_data", "heart_data.heart_rate_data.summary"),
        *_leaves("blood_pressure_data", "day_avg_diastolic_bp day_avg_systolic_bp"),
        *_leaves(
            "glucose_data",
            "daily_patterns day_avg_blood_glucose_mg_per_dL day_avg_blood_glucose_mg_per_dl "
            "day_avg_detailed_blood_glucose_mg_per_dL gmi time_in_range",
        ),
        *_leaves(
            "heart_data",
            "afib_classification_samples ecg_signal pulse_wave_velocity_samples rr_interval_samples",
        ),
        *_leaves("hydration_data", "day_avg_hydration_kg hydration_amount_samples"),
        *(f"measurements_data.day_avg_{name}" for name in _MEASURED.split()),
        *_leaves(_OXYGEN, "avg_saturation_percentage day_avg_vo2max_ml_per_min_per_kg"),
        *_leaves(
            "temperature_data",
            "ambient_temperature_samples day_avg_ambient_temperature_celsius "
            "day_avg_body_temperature_celsius day_avg_skin_temperature_celsius",
        ),
    ),
}
LEFT_IN_ALL = (
    *_leaves(
        "device_data",
        "activation_timestamp data_provided hardware_version last_upload_date other_devices serial_number "
        "software_version",
    ),
    *_leaves(_HEART_RATE, "hr_zone_data user_max_hr_bpm"),
)

#: `day` is null where times are printed in UTC: the first instant of a local day may be of the day before.
_OUTLINE = {
    "daily": [("day", pa.date32(), True)],
    "body": [("day", pa.date32(), True)],
    "sleep": [("stages", _TEXT, True)],
    "activity": [("activity", _TEXT, False)],
}
COUNTED = {
    "daily": ("spo2", "hrv_sdnn", "vo2_max"),
    "sleep": ("spo2", "hrv_sdnn"),
    "activity": (),
    "body": ("vo2_max",),
}


def _schema(entity: str) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", _TEXT, nullable=False),
            pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
            pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
            pa.field("utc_offset_minutes", _SHORT),
            pa.field("end_utc_offset_minutes", _SHORT),
            *(pa.field(name, type_, nullable=nullable) for name, type_, nullable in _OUTLINE[entity]),
            pa.field("device", _TEXT, nullable=False),
            *(field.with_nullable(True) for field in schema_of(COLUMNS[entity])),
            *(pa.field(f"{kind}_samples", _INT, nullable=False) for kind in COUNTED[entity]),
        ]
    )


SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("document_id", _TEXT, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", _SHORT),
        pa.field("value", _FLOAT, nullable=False),
        pa.field("device", _TEXT, nullable=False),
    ]
)
SCHEMAS: Mapping[str, pa.Schema] = {entity: _schema(entity) for entity in COLUMNS}
