"""`GET /v1/health/{user}/…`: a person's own rows of schema health, page by page, through row-level security."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
import sqlalchemy as sa
from fastapi import APIRouter, Header, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from health_pipeline.connections.api_tokens import Caller
from health_pipeline.receiver import answers
from health_pipeline.receiver.auth import Person
from health_pipeline.receiver.errors import RefusedError
from health_pipeline.receiver.house import House, house_of, today

#: Days where neither `start` nor a cursor says which.
_DAYS = 30
_PAGE = 200
_LONGEST_PAGE = 1000
_STATEMENT_MS = 5000

_HEADERS = {"Cache-Control": "no-store"}
_UNDEFINED_TABLE, _UNDEFINED_SCHEMA = "42P01", "3F000"

# For this transaction alone, and in one round trip. The role comes after the seal, which it may not make itself.
_AS_SUBJECT = sa.text(
    "select set_config('health.user_id', ops.seal_subject(:user), true), "
    "set_config('role', 'health_subject', true), set_config('transaction_read_only', 'on', true), "
    f"set_config('timezone', 'UTC', true), set_config('statement_timeout', '{_STATEMENT_MS}', true)"
)

Key = Callable[[str], object]


@dataclass(frozen=True)
class _Question:
    """A table as it is asked for: `order` is its key, by which pages go on, with how each part is read."""

    name: str
    table: str
    row: type[BaseModel]
    order: tuple[tuple[str, Key], ...]
    #: Besides the user's own rows. `{start}`, `{end}` and `{choice}` are bound.
    where: str = "true"

    def statement(self, *, after: bool) -> sa.TextClause:
        columns = ", ".join(self.row.model_fields)
        key = ", ".join(column for column, _ in self.order)
        marks = ", ".join(f":after_{number}" for number in range(len(self.order)))
        rest = f"and ({key}) > ({marks})" if after else ""
        return sa.text(
            f"select {columns} from {self.table} where user_id = :user and {self.where} {rest} "  # noqa: S608
            f"order by {key} limit :limit"
        )


_IN_DAYS = "local_date between :start and :end"
_DAILY = _Question(
    "daily",
    "health.daily_metrics",
    answers.Daily,
    (("metric_type", str), ("local_date", dt.date.fromisoformat)),
    f"{_IN_DAYS} and (cast(:choice as text) is null or metric_type = :choice)",
)
_SUMMARY = _Question("summary", "health.health_summary", answers.Summary, (("metric_type", str),))
_GLUCOSE = _Question(
    "glucose",
    "health.glucose_readings",
    answers.Glucose,
    (
        ("recorded_at", dt.datetime.fromisoformat),
        ("source", str),
        ("reading_type", str),
        ("source_device", str),
    ),
    # Local days lie within a day of UTC's, and the key is in UTC. As instants, of which the planner knows how many
    # there are: it then walks along the key and stops where the page is full.
    f"{_IN_DAYS} and recorded_at >= cast(cast(:start as date) - 1 as timestamp) at time zone 'UTC' "
    "and recorded_at < cast(cast(:end as date) + 2 as timestamp) at time zone 'UTC'",
)
_OF_DOCUMENTS = (("local_date", dt.date.fromisoformat), ("source", str), ("source_record_id", str))
_SLEEP = _Question("sleep", "health.sleep_sessions", answers.Sleep, _OF_DOCUMENTS, _IN_DAYS)
_WORKOUTS = _Question("workouts", "health.workouts", answers.Workout, _OF_DOCUMENTS, _IN_DAYS)
_RECOVERY = _Question(
    "recovery",
    "health.recovery_scores",
    answers.Recovery,
    (("local_date", dt.date.fromisoformat), ("method", str)),
    f"{_IN_DAYS} and method = :choice",
)
_FORECASTS = _Question(
    "forecasts",
    "(select forecasts.*, unit as metric_unit from health.forecasts inner join health.metric_types "
    "using (metric_type)) as forecasts",
    answers.Forecast,
    (("metric_type", str),),
)

Start = Annotated[dt.date | None, Query(description="First local day; 30 days before `end`.")]
End = Annotated[dt.date | None, Query(description="Last local day, included; today.")]
Limit = Annotated[int, Query(ge=1, le=_LONGEST_PAGE, description="Rows a page.")]
Cursor = Annotated[
    str | None,
    Query(
        max_length=2000, description="`next_cursor` of the page before, which has the days and choices in it."
    ),
]
NoneMatch = Annotated[
    str | None, Header(alias="If-None-Match", description="`ETag` of a page that you have.")
]
Metric = Annotated[
    str | None, Query(pattern="^[a-z0-9_]{1,64}$", description="Of this metric alone, by its name.")
]
Method = Annotated[Literal["calibrated", "seed"], Query(description="How the score is made.")]

router = APIRouter(prefix="/v1/health/{user}", tags=["read"])
_ETAG = {"ETag": {"description": "Of this page.", "schema": {"type": "string"}}}


def _responses(page: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"model": page, "headers": _ETAG},
        304: {"description": "The page is the one you have.", "headers": _ETAG},
        **answers.refusals(400, 404, 422),
    }


@router.get("/daily", responses=_responses(answers.DailyPage), summary="A value a day and metric")
def daily(
    request: Request,
    person: Person,
    start: Start = None,
    end: End = None,
    metric: Metric = None,
    limit: Limit = _PAGE,
    cursor: Cursor = None,
    none_match: NoneMatch = None,
) -> Response:
    """By metric, then day. The value of a day is that of the source that ranks first."""
    return _answer(request, person, _DAILY, start, end, metric, limit, cursor, none_match)


@router.get("/summary", responses=_responses(answers.SummaryPage), summary="How every metric is doing")
def summary(
    request: Request,
    person: Person,
    limit: Limit = _PAGE,
    cursor: Cursor = None,
    none_match: NoneMatch = None,
) -> Response:
    """Last value, means, trend, place in the own year and among others; by metric."""
    return _answer(request, person, _SUMMARY, None, None, None, limit, cursor, none_match)


@router.get("/glucose", responses=_responses(answers.GlucosePage), summary="Glucose readings")
def glucose(
    request: Request,
    person: Person,
    start: Start = None,
    end: End = None,
    limit: Limit = _PAGE,
    cursor: Cursor = None,
    none_match: NoneMatch = None,
) -> Response:
    """In the order of time, from all sources."""
    return _answer(request, person, _GLUCOSE, start, end, None, limit, cursor, none_match)


@router.get("/sleep", responses=_responses(answers.SleepPage), summary="Nights and naps")
def sleep(
    request: Request,
    person: Person,
    start: Start = None,
    end: End = None,
    limit: Limit = _PAGE,
    cursor: Cursor = None,
    none_match: NoneMatch = None,
) -> Response:
    """By the day of getting up, from all sources."""
    return _answer(request, person, _SLEEP, start, end, None, limit, cursor, none_match)


@router.get("/workouts", responses=_responses(answers.WorkoutPage), summary="Workouts")
def workouts(
    request: Request,
    person: Person,
    start: Start = None,
    end: End = None,
    limit: Limit = _PAGE,
    cursor: Cursor = None,
    none_match: NoneMatch = None,
) -> Response:
    """By day, from all sources."""
    return _answer(request, person, _WORKOUTS, start, end, None, limit, cursor, none_match)


@router.get("/recovery", responses=_responses(answers.RecoveryPage), summary="Recovery scores")
def recovery(
    request: Request,
    person: Person,
    start: Start = None,
    end: End = None,
    method: Method = "calibrated",
    limit: Limit = _PAGE,
    cursor: Cursor = None,
    none_match: NoneMatch = None,
) -> Response:
    """By day."""
    return _answer(request, person, _RECOVERY, start, end, method, limit, cursor, none_match)


@router.get("/forecasts", responses=_responses(answers.ForecastPage), summary="Where each metric is heading")
def forecasts(
    request: Request,
    person: Person,
    limit: Limit = _PAGE,
    cursor: Cursor = None,
    none_match: NoneMatch = None,
) -> Response:
    """By metric."""
    return _answer(request, person, _FORECASTS, None, None, None, limit, cursor, none_match)


def _answer(
    request: Request,
    person: Caller,
    question: _Question,
    start: dt.date | None,
    end: dt.date | None,
    choice: str | None,
    limit: int,
    cursor: str | None,
    none_match: str | None,
) -> Response:
    after: Sequence[object] = ()
    if cursor is not None:
        start, end, choice, after = _decode(question, cursor)
    else:
        end = end or today()
        if start is None:
            start = dt.date.fromordinal(max(end.toordinal() - _DAYS, 1))
        if start > end:
            raise RefusedError(422, "invalid_range", "start is after end")
    given: dict[str, object] = {"user": person.user_id, "limit": limit + 1}
    given |= {"start": start, "end": end, "choice": choice}
    given |= {f"after_{number}": part for number, part in enumerate(after)}
    rows = _rows(house_of(request), question.statement(after=bool(after)), given)
    more = len(rows) > limit
    rows = rows[:limit]
    body = orjson.dumps(
        {
            "user": person.handle,
            "time_zone": person.time_zone,
            "data": rows,
            "next_cursor": _encode(question, start, end, choice, rows[-1]) if more else None,
        },
        option=orjson.OPT_UTC_Z,
    )
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": etag}
    if none_match is not None and etag in (each.strip().removeprefix("W/") for each in none_match.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def _rows(house: House, statement: sa.TextClause, given: dict[str, object]) -> list[dict[str, Any]]:
    with house.readers.connect() as connection:
        connection.execute(_AS_SUBJECT, {"user": given["user"]})
        try:
            return [dict(row) for row in connection.execute(statement, given).mappings()]
        except sa.exc.ProgrammingError as error:
            if getattr(error.orig, "pgcode", None) in (_UNDEFINED_TABLE, _UNDEFINED_SCHEMA):
                return []  # no run has made it yet
            raise


def _encode(
    question: _Question, start: dt.date | None, end: dt.date | None, choice: str | None, row: dict[str, Any]
) -> str:
    key = [row[column] for column, _ in question.order]
    return base64.urlsafe_b64encode(orjson.dumps([question.name, start, end, choice, key])).decode()


def _decode(
    question: _Question, cursor: str
) -> tuple[dt.date | None, dt.date | None, str | None, list[object]]:
    """Where the page before ended. It is nobody's secret: whatever is in it, rows are the caller's own."""
    try:
        name, start, end, choice, key = orjson.loads(base64.b64decode(cursor.encode(), b"-_", validate=True))
        texts = [start, end, *key] + ([] if choice is None else [choice])
        if name != question.name or len(key) != len(question.order) or "\0" in "".join(texts):
            raise ValueError
        parts = [read(part) for part, (_, read) in zip(key, question.order, strict=True)]
        if any(isinstance(part, dt.datetime) and part.tzinfo is None for part in parts):
            raise ValueError
        return dt.date.fromisoformat(start), dt.date.fromisoformat(end), choice, parts
    except (ValueError, TypeError, binascii.Error, UnicodeError):
        raise RefusedError(400, "invalid_cursor", "take the cursor from the page before, as it is") from None
