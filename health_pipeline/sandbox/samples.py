"""Write the raw payloads under `data/samples`: `python -m health_pipeline.sandbox.samples [folder]`.

They are what the sandbox serves for fixed people and days, so every run gives the same bytes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import sys
from pathlib import Path

import httpx
import orjson

from health_pipeline.sandbox import fitbit, fitbit_takeout, garmin_connect, health_auto_export, health_connect
from health_pipeline.sandbox.app import create_app
from health_pipeline.sandbox.apple_health import write_apple_health
from health_pipeline.sandbox.archives import pack
from health_pipeline.sandbox.files import (
    Unit,
    glooko_tables,
    write_clarity,
    write_glucose_csv,
    write_libreview,
    write_nightscout,
    write_xdrip,
)
from health_pipeline.sandbox.fit import workout_fit
from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.recorded import recorded

#: A time at which all of it has come to be.
NOW = dt.datetime(2026, 9, 5, 12, tzinfo=dt.UTC)


async def _answers(root: Path) -> None:
    """What each provider's API answers to its sample requests."""
    app = create_app(now=lambda: NOW)
    transport = httpx.ASGITransport(app)
    for name, api in app.state.apis.items():
        if not api.samples:
            continue
        (root / name).mkdir(parents=True, exist_ok=True)
        headers = dict(api.sample_headers(api.sample_person))
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://sandbox/{name}", headers=headers
        ) as http:
            for file, asked in api.samples.items():
                body = {"data": asked.form} if asked.form is not None else {"json": asked.json}
                answer = await http.request(asked.method, asked.path, params=asked.params, **body)
                answer.raise_for_status()
                (root / name / file).write_bytes(answer.content)


def _glucose(root: Path) -> None:
    ada, dana = person("ada"), person("dana")
    start, end = dt.date(2026, 8, 20), dt.date(2026, 8, 22)
    units: tuple[tuple[str, Unit], ...] = (("mg_dl", "mg/dL"), ("mmol_l", "mmol/L"))
    for name, unit in units:
        # Days on which the sensor says Low and High.
        extreme = dt.date(2025, 10, 28), dt.date(2025, 10, 31)
        write_clarity(dana, *extreme, root / "dexcom_clarity" / f"clarity_{name}.csv", unit=unit)
        write_libreview(ada, start, end, root / "libreview" / f"libreview_{name}.csv", unit=unit)
        write_glucose_csv(ada, start, end, root / "glucose_csv" / f"glucose_{name}.csv", unit=unit)
    # The night in which Chicago's clocks go back.
    autumn = root / "dexcom_clarity" / "clarity_clock_change.csv"
    write_clarity(dana, dt.date(2026, 10, 31), dt.date(2026, 11, 2), autumn, spaced_time=True)
    write_libreview(ada, start, end, root / "libreview" / "libreview_month_first.csv", date_order="MDY")
    write_libreview(
        ada, start, end, root / "libreview" / "libreview_german.csv", unit="mmol/L", language="de"
    )
    write_nightscout(dana, start, start, root / "nightscout" / "entries.json")
    (root / "glooko" / "export_dana.zip").write_bytes(pack(glooko_tables(dana, start, start)))
    (root / "glooko" / "cgm_data_1.csv").write_bytes(
        glooko_tables(ada, start, start, unit="mmol/L")["CGM data/cgm_data_1.csv"]
    )
    table = io.StringIO()
    write_xdrip(dana, start, start, table)
    packed = pack({"export20260823-093005.csv": table.getvalue().encode()})
    (root / "xdrip" / "exportCSV20260823-093005.zip").write_bytes(packed)


def _fitbit(root: Path) -> None:
    """What somebody kept of the old Web API: a day with training, and the nights around it."""
    life = life_of(person("ben"))
    day, start, end = dt.date(2026, 8, 6), dt.date(2026, 8, 5), dt.date(2026, 8, 7)
    answers = {
        "activities_date": fitbit.day_of_activities(life, day),
        "steps_15min": fitbit.steps_of_day(life, day, 15),
        "heart_15min": fitbit.heart_of_day(life, day, 15),
        "sleep": fitbit.sleeps(life, start, end),
        "weight": fitbit.weighings(life, start, end),
    }
    for name, answer in answers.items():
        (root / "fitbit" / f"{name}.json").write_bytes(orjson.dumps(answer))


def _fitabase(root: Path) -> None:
    """Two weeks of one person, days and nights, and two days by the hour."""
    life = life_of(person("ben"))
    start, end = dt.date(2026, 8, 1), dt.date(2026, 8, 14)
    exports = {
        "daily_activity": fitbit.fitabase_daily(life, start, end),
        "hourly_steps": fitbit.fitabase_hourly_steps(life, end - dt.timedelta(days=1), end),
        "sleep_day": fitbit.fitabase_sleep(life, start, end),
    }
    for name, text in exports.items():
        (root / "fitabase" / f"{name}.csv").write_text(text, encoding="utf-8")


def _apple_health(root: Path) -> None:
    """A day at home, exported in another zone."""
    exported = NOW.astimezone(dt.timezone(dt.timedelta(hours=-4)))
    with (root / "apple_health" / "export.xml").open("w", encoding="utf-8", newline="\n") as file:
        write_apple_health(person("ben"), dt.date(2026, 8, 21), dt.date(2026, 8, 21), file, exported=exported)


def _garmin_connect(root: Path) -> None:
    """Answers about three days, the account's export of them, and a workout as the watch wrote it."""
    seen = recorded(person("ben"), dt.date(2026, 8, 4), dt.date(2026, 8, 6))
    answers = {
        "heart_rate": garmin_connect.heart_rate_of_day(seen, seen.dates[-1]),
        "sleep": garmin_connect.sleep_of_day(seen, seen.nights[-1]),
        "steps": garmin_connect.steps_of_days(seen),
        "activities": garmin_connect.activities(seen),
        "weight": garmin_connect.weighings(seen),
    }
    folder = root / "garmin_connect"
    for name, answer in answers.items():
        (folder / f"{name}.json").write_bytes(orjson.dumps(answer))
    (folder / "account_export.zip").write_bytes(garmin_connect.account_export(seen))
    (folder / "workout.fit").write_bytes(workout_fit(seen, seen.workouts[-1]))


def _fitbit_takeout(root: Path) -> None:
    """Two days of an account, the last of them as CSV, too; and single files of it."""
    seen = recorded(person("ben"), dt.date(2026, 8, 5), dt.date(2026, 8, 6))
    folder = root / "fitbit_takeout"
    (folder / "takeout.zip").write_bytes(fitbit_takeout.archive(seen, seen.dates[-1]))
    for name, entries in {
        "heart_rate": fitbit_takeout.heart_rate_of_day(seen, seen.dates[0]),
        "resting_heart_rate": fitbit_takeout.resting_heart_rate(seen),
        "sleep": fitbit_takeout.sleeps(seen),
        "weight": fitbit_takeout.weights(seen),
    }.items():
        (folder / f"{name}.json").write_bytes(orjson.dumps(entries))


def _health_auto_export(root: Path) -> None:
    """A day as it was measured, and two summed up by the day."""
    last = dt.date(2026, 8, 6)
    folder = root / "health_auto_export"
    for name, first in (("measured", last), ("by_day", last - dt.timedelta(days=1))):
        seen = recorded(person("ben"), first, last)
        export = health_auto_export.export(seen, by_day=name == "by_day")
        (folder / f"{name}.json").write_bytes(orjson.dumps(export))


def _health_connect(root: Path) -> None:
    """A day of somebody with a sensor for glucose."""
    seen = recorded(person("ada"), dt.date(2026, 8, 20), dt.date(2026, 8, 20))
    folder = root / "health_connect"
    (folder / "health_connect.zip").write_bytes(health_connect.export(seen))


def write_samples(root: Path) -> list[Path]:
    """Write all samples below `root`; the files written, sorted."""
    folders = (
        "apple_health",
        "dexcom_clarity",
        "fitabase",
        "fitbit",
        "fitbit_takeout",
        "garmin_connect",
        "glooko",
        "health_auto_export",
        "health_connect",
        "libreview",
        "nightscout",
        "glucose_csv",
        "xdrip",
    )
    for provider in folders:
        (root / provider).mkdir(parents=True, exist_ok=True)
    asyncio.run(_answers(root))
    _glucose(root)
    _fitbit(root)
    _fitabase(root)
    _apple_health(root)
    _garmin_connect(root)
    _fitbit_takeout(root)
    _health_auto_export(root)
    _health_connect(root)
    return sorted(path for path in root.rglob("*") if path.is_file())


if __name__ == "__main__":
    write_samples(Path(sys.argv[1] if len(sys.argv) > 1 else "data/samples"))
