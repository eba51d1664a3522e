"""What the API answers. Instants are UTC (RFC 3339), dates are the person's local days, units are said."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_OFFSET = "Minutes that the person's local time was ahead of UTC."
_LOCAL_DAY = "The person's local day."
_SOURCE = "Provider or kind of file it comes from."
_UNIT = "UCUM unit of the values."


class Answer(BaseModel):
    """Nothing is in an answer that is not said here."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    code: str = Field(description="For machines; does not change.")
    message: str = Field(description="For people; may change.")


class ErrorAnswer(Answer):
    """Any refusal."""

    error: ErrorDetail


class Daily(Answer):
    """A metric of a day."""

    metric_type: str = Field(description="Name in the catalogue.")
    local_date: dt.date = Field(description=_LOCAL_DAY)
    metric_value: float = Field(description="The day's value, in metric_unit.")
    metric_unit: str = Field(description=_UNIT)
    source: str = Field(description="The source that ranks first.")
    sources_seen: list[str] = Field(description="All sources that have the metric on the day, best first.")
    sample_count: int = Field(description="Measurements that the value was made of.")
    coverage: float = Field(description="Share of the day, 0 to 1, that they span.")


class Summary(Answer):
    """How a metric is doing. Periods end on last_date."""

    metric_type: str = Field(description="Name in the catalogue.")
    metric_unit: str = Field(description=_UNIT)
    source: str = Field(description="The source of the last day.")
    last_date: dt.date = Field(description="The last local day with a value.")
    last_value: float
    mean_7d: float | None
    mean_30d: float | None
    days_30d: int = Field(description="Days with a value among the 30.")
    trend_per_week: float | None = Field(description="metric_unit a week; null under 14 days with a value.")
    days_365d: int = Field(description="Days with a value among the 365.")
    own_percentile: float | None = Field(description="Percent of those days below the last.")
    cohort_size: int | None = Field(description="People compared with; null where they are too few.")
    cohort_percentile: float | None = Field(description="Percent of those people below the last value.")


class Glucose(Answer):
    """A reading."""

    recorded_at: dt.datetime = Field(description="UTC.")
    glucose_mg_dl: float = Field(description="mg/dL; 39 and 401 for a sensor's words Low and High.")
    reading_type: Literal["cgm", "scan", "strip", "calibration"]
    censored: Literal["low", "high"] | None = Field(description="Beyond the sensor's range, and where.")
    trend: str | None = Field(description="The source's arrow.")
    trend_mg_dl_per_minute: float | None = Field(description="mg/dL a minute.")
    source: str = Field(description=_SOURCE)
    source_device: str = Field(description="Device as the source names it, empty if it does not.")
    utc_offset_minutes: int = Field(description=_OFFSET)
    local_date: dt.date = Field(description=_LOCAL_DAY)


class SleepStage(Answer):
    stage: str = Field(description="deep, light, rem, awake, or asleep where no stage is told.")
    start: float = Field(description="Seconds since started_at.")
    seconds: float


class Sleep(Answer):
    """A night or nap, of the day of getting up."""

    local_date: dt.date = Field(description="Local day of getting up.")
    source: str = Field(description=_SOURCE)
    source_record_id: str = Field(description="The source's id of the sleep.")
    started_at: dt.datetime = Field(description="Going to bed, UTC.")
    ended_at: dt.datetime = Field(description="Getting up, UTC.")
    utc_offset_minutes: int | None = Field(description=f"{_OFFSET} At the start.")
    end_utc_offset_minutes: int | None = Field(description=f"{_OFFSET} At the end.")
    sleep_type: str | None
    is_main_sleep: bool | None = Field(description="False for naps and short sleeps.")
    time_in_bed_seconds: int | None
    sleep_seconds: int | None
    deep_sleep_seconds: int | None
    light_sleep_seconds: int | None
    rem_sleep_seconds: int | None
    awake_seconds: int | None
    latency_seconds: int | None
    efficiency_percent: float | None
    average_hrv_ms: float | None = Field(description="Mean RMSSD, ms.")
    lowest_heart_rate_bpm: float | None
    average_heart_rate_bpm: float | None
    average_breath_per_minute: float | None
    stages: list[SleepStage] | None = Field(description="In order; null where the source gives totals only.")


class Workout(Answer):
    """A workout as its source reports it; the same from two sources is two."""

    local_date: dt.date = Field(description="Local day of the start.")
    source: str = Field(description=_SOURCE)
    source_record_id: str = Field(description="The source's id of the workout.")
    started_at: dt.datetime = Field(description="UTC.")
    ended_at: dt.datetime = Field(description="UTC.")
    utc_offset_minutes: int | None = Field(description=_OFFSET)
    activity: str = Field(description="The source's word for it.")
    intensity: str | None = Field(description="easy, moderate or hard, where the source says.")
    duration_seconds: int
    calories_kcal: float | None
    distance_m: float | None
    average_heart_rate_bpm: float | None
    max_heart_rate_bpm: float | None
    elevation_gain_m: float | None


class Recovery(Answer):
    """A day's recovery score. Components are 0 to 100, null where there is no data for them."""

    local_date: dt.date = Field(description=_LOCAL_DAY)
    method: Literal["calibrated", "seed"]
    recovery_score: float = Field(description="0 to 100.")
    score_low: float = Field(description="Lower end of the 80 % range.")
    score_high: float = Field(description="Upper end of the 80 % range.")
    stress_component: float | None
    sleep_component: float | None
    heart_rate_component: float | None
    load_component: float | None
    baseline_days: int = Field(description="Days in the shortest baseline behind the score.")
    explanation: str


class Forecast(Answer):
    """Where a metric is heading. Ranges are 90 %."""

    metric_type: str = Field(description="Name in the catalogue.")
    metric_unit: str = Field(description=_UNIT)
    as_of_date: dt.date = Field(description="The last local day with a value.")
    source: str | None = Field(description="Source whose days it rests on.")
    n_days: int = Field(description="Days with a value in the 30-day window.")
    slope_per_day: float | None = Field(description="metric_unit a day.")
    predicted_7d: float | None
    low_7d: float | None
    high_7d: float | None
    predicted_14d: float | None
    low_14d: float | None
    high_14d: float | None
    predicted_30d: float | None
    low_30d: float | None
    high_30d: float | None
    target_value: float | None = Field(description="The person's goal.")
    target_date: dt.date | None
    projected_date: dt.date | None = Field(description="When the line meets the goal.")
    projected_reason: str
    sentence: str = Field(description="The forecast in words.")


class Page(Answer):
    user: str
    time_zone: str | None = Field(description="IANA zone of the person's home; null while nobody said it.")
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class DailyPage(Page):
    data: list[Daily]


class SummaryPage(Page):
    data: list[Summary]


class GlucosePage(Page):
    data: list[Glucose]


class SleepPage(Page):
    data: list[Sleep]


class WorkoutPage(Page):
    data: list[Workout]


class RecoveryPage(Page):
    data: list[Recovery]


class ForecastPage(Page):
    data: list[Forecast]


class Accepted(Answer):
    """It will be done; `location` tells how far it is."""

    job_id: int
    status: str
    location: str = Field(description="Path of the job.")


class Refused(Answer):
    reason: str
    count: int
    places: list[str] = Field(description="Where in the file, the first ten.")


class FileReport(Answer):
    """What a file held and where it went."""

    kind: str = Field(description="Kind of file, found by its content.")
    known: bool = Field(description="These bytes were uploaded before.")
    records_read: int
    records_loaded: int = Field(description="Records that could be read.")
    in_warehouse: int = Field(description="Values, readings, sleeps and workouts that come from the file.")
    loaded: dict[str, int] = Field(description="The same by what they are.")
    duplicates: int = Field(description="Records that were known, or are in the file twice.")
    skipped: dict[str, int] = Field(description="Records of kinds that are not kept.")
    quarantined: list[Refused]
    sources: dict[str, int] = Field(description="Values by device.")
    zone_rules: dict[str, int] = Field(description="Values by whence the offset of local time is known.")
    first_at: dt.datetime | None = Field(description="UTC.")
    last_at: dt.datetime | None = Field(description="UTC.")
    notes: list[str]


class Job(Answer):
    """A piece of work somebody asked for."""

    job_id: int
    kind: Literal["sync", "backfill", "reconcile", "upload", "webhook"]
    provider: str
    status: Literal["requested", "queued", "running", "done", "failed", "cancelled"]
    start: dt.date = Field(description="First local day asked for; of an upload, the day of receipt (UTC).")
    end: dt.date
    windows_done: int = Field(description="Stretches of days that are fetched.")
    windows_total: int | None
    objects_new: int = Field(description="Answers or files that were new.")
    last_error: str | None
    created_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    file: FileReport | None = Field(description="Of an upload that has ended.")


class Link(Answer):
    """Where to send the person."""

    url: str
    expires_at: dt.datetime


class Erased(Answer):
    objects: int
    staged_rows: int
    derived_rows: int


class Disconnected(Answer):
    """The connection has ended."""

    provider: str
    left: str | None = Field(description="What only the person can do, at the provider.")
    erased: Erased | None = Field(description="What was erased, where that was asked for.")
    job_id: int | None = Field(description="Computes anew what other sources have of the same days.")


_MEANINGS = {
    400: "The cursor, or the body, is none.",
    401: "No token that is good.",
    403: "The token is for something else.",
    404: "There is no such thing, or not for this token.",
    408: "Nothing came for too long.",
    409: "Things are not as they have to be for this.",
    413: "Too large.",
    415: "Not of a kind that is taken.",
    422: "A parameter is wrong.",
    503: "Something that we need is away; come again.",
}


def refusal(status: int) -> dict[str, Any]:
    """What a refusal looks like, for the documentation."""
    return {"model": ErrorAnswer, "description": _MEANINGS[status]}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer besides: these, and what any route with a token may."""
    return {status: refusal(status) for status in sorted({*statuses, 401, 403, 503})}


#: What a route that takes JSON may answer besides.
BODY = (400, 408, 413, 422)
