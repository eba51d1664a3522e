"""Glucose files as people download them: Dexcom Clarity, LibreView, Nightscout, xDrip+, Glooko, plain CSV.

All write the days from `start` to `end`, both included, as the person's wall clock had them, and nothing
after `until`. `out` is a path or a text buffer; each writer returns how many glucose readings it wrote.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.glucose import HIGHEST, LOWEST, Readings, meals, midnight, readings
from health_pipeline.sandbox.life import Life, life_of
from health_pipeline.sandbox.people import EPOCH, Person

Unit = Literal["mg/dL", "mmol/L"]
Output = str | Path | TextIO

#: mg/dL in one mmol/L of glucose (molar mass 180.156 g/mol).
MG_DL_PER_MMOL_L = 18.0156

_TRANSMITTER_DAYS = 90


@contextmanager
def _open(out: Output) -> Iterator[TextIO]:
    if isinstance(out, str | Path):
        with Path(out).open("w", encoding="utf-8", newline="") as file:
            yield file
    else:
        yield out


def _value(mg_dl: int, unit: Unit) -> str:
    return str(mg_dl) if unit == "mg/dL" else f"{mg_dl / MG_DL_PER_MMOL_L:.1f}"


def _eaten(
    person: Person, life: Life, start: dt.date, end: dt.date, until: dt.datetime | None
) -> Iterator[tuple[int, int, float]]:
    """(time, grams, units) of the meals between two local midnights."""
    first, last = midnight(life, start), midnight(life, end + dt.timedelta(days=1))
    for day in life.days(start - dt.timedelta(days=1), end):
        for meal in meals(life, day):
            if first <= meal.time < last and (until is None or meal.time <= until.timestamp()):
                yield meal.time, meal.carbs, meal.insulin


_CLARITY_COLUMNS = {
    "index": "Index",
    "time": "Timestamp (YYYY-MM-DDThh:mm:ss)",
    "event": "Event Type",
    "subtype": "Event Subtype",
    "patient": "Patient Info",
    "info": "Device Info",
    "device": "Source Device ID",
    "glucose": "Glucose Value ({u})",
    "insulin": "Insulin Value (u)",
    "carbs": "Carb Value (grams)",
    "duration": "Duration (hh:mm:ss)",
    "rate": "Glucose Rate of Change ({u}/min)",
    "age": "Transmitter Time (Long Integer)",
    "transmitter": "Transmitter ID",
}


def write_clarity(
    person: Person,
    start: dt.date,
    end: dt.date,
    out: Output,
    *,
    unit: Unit = "mg/dL",
    spaced_time: bool = False,
    until: dt.datetime | None = None,
) -> int:
    """A Dexcom Clarity export: metadata rows, then readings, carbohydrates and insulin by time.

    Readings beyond the sensor's limits are the words Low and High. `spaced_time` gives the newer
    `2026-05-01 0:01:47` for `2026-05-01T00:01:47`.
    """
    life = life_of(person)
    seen = readings(person, start, end, until=until)
    serial = person.uuid("dexcom").replace("-", "").upper()

    def stamp(instant: int) -> str:
        local = life.timeline.local(instant)
        return f"{local:%Y-%m-%d} {local.hour}:{local:%M:%S}" if spaced_time else f"{local:%Y-%m-%dT%H:%M:%S}"

    def transmitter(instant: int) -> tuple[str, str]:
        epoch = dt.datetime.combine(EPOCH, dt.time(), dt.UTC).timestamp()
        number, age = divmod(int(instant - epoch), _TRANSMITTER_DAYS * 86_400)
        return str(age + 7200), f"8{serial[number % 20 : number % 20 + 5]}"

    def row(**cells: str) -> list[str]:
        return [cells.get(name, "") for name in _CLARITY_COLUMNS]

    device = "iPhone G6"
    first, last = person.name.split(" ", 1)
    rate = "3" if unit == "mg/dL" else "0.2"
    rows = [
        row(event="FirstName", patient=first),
        row(event="LastName", patient=last),
        row(event="DateOfBirth", patient=f"{person.birth_year}-07-01"),
        row(event="Device", info="Dexcom G6 Mobile App", device=device),
        row(event="Alert", subtype="Fall", device=device, rate=rate),
        row(event="Alert", subtype="High", device=device, glucose=_value(250, unit)),
        row(event="Alert", subtype="Low", device=device, glucose=_value(70, unit)),
        row(event="Alert", subtype="Signal Loss", device=device, duration="00:20:00"),
        row(event="Alert", subtype="Rise", device=device, rate=rate),
        row(event="Alert", subtype="Urgent Low", device=device, glucose=_value(55, unit)),
        row(event="Alert", subtype="Urgent Low Soon", device=device, glucose=_value(55, unit)),
    ]
    events: list[tuple[int, list[str]]] = []
    for time, mg_dl in zip(seen.time.tolist(), seen.mg_dl.tolist(), strict=True):
        word = "Low" if mg_dl < LOWEST else "High" if mg_dl > HIGHEST else _value(mg_dl, unit)
        age, identity = transmitter(time)
        events.append(
            (
                time,
                row(
                    time=stamp(time), event="EGV", device=device, glucose=word, age=age, transmitter=identity
                ),
            )
        )
    for time, grams, units in _eaten(person, life, start, end, until):
        cells = {"time": stamp(time), "device": device}
        events.append((time, row(event="Carbs", carbs=str(grams), **cells)))
        if units:
            cells |= {"event": "Insulin", "subtype": "Fast-Acting", "insulin": f"{units:g}"}
            events.append((time, row(**cells)))
    events.sort(key=lambda event: event[0])
    with _open(out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.format(u=unit) for header in _CLARITY_COLUMNS.values())
        for number, line in enumerate([*rows, *(line for _, line in events)], start=1):
            writer.writerow([str(number), *line[1:]])
    return int(seen.time.size)


_LIBRE_HEADER = {
    "en": (
        "Device,Serial Number,Device Timestamp,Record Type,Historic Glucose {u},Scan Glucose {u},"
        "Non-numeric Rapid-Acting Insulin,Rapid-Acting Insulin (units),Non-numeric Food,"
        "Carbohydrates (grams),Carbohydrates (servings),Non-numeric Long-Acting Insulin,"
        "Long-Acting Insulin Value (units),Notes,Strip Glucose {u},Ketone mmol/L,Meal Insulin (units),"
        "Correction Insulin (units),User Change Insulin (units)"
    ),
    "de": (
        "Gerät,Seriennummer,Gerätezeitstempel,Aufzeichnungstyp,Glukosewert-Verlauf {u},Glukose-Scan {u},"
        "Nicht numerisches schnellwirkendes Insulin,Schnellwirkendes Insulin (Einheiten),"
        "Nicht numerische Nahrungsdaten,Kohlenhydrate (Gramm),Kohlenhydrate (Portionen),"
        "Nicht numerisches Depotinsulin,Depotinsulin (Einheiten),Notizen,Glukose-Teststreifen {u},"
        "Keton mmol/L,Mahlzeiteninsulin (Einheiten),Korrekturinsulin (Einheiten),"
        "Insulin-Änderung durch Anwender (Einheiten)"
    ),
}


def write_libreview(
    person: Person,
    start: dt.date,
    end: dt.date,
    out: Output,
    *,
    unit: Unit = "mg/dL",
    date_order: Literal["DMY", "MDY"] = "DMY",
    language: Literal["en", "de"] = "en",
    until: dt.datetime | None = None,
) -> int:
    """A LibreView export: a quarter-hourly history, scans between, food and insulin.

    Times have no seconds and no zone: `31-12-2026 18:05`, or `12-31-2026 06:05 PM` for `MDY`. German files
    have a decimal comma.
    """
    life = life_of(person)
    seen = readings(person, start, end, until=until)
    serial = person.uuid("libre").upper()
    pattern = "%d-%m-%Y %H:%M" if date_order == "DMY" else "%m-%d-%Y %I:%M %p"

    def number(text: str) -> str:
        return text.replace(".", ",") if language == "de" else text

    def row(time: int, kind: int, **cells: str) -> tuple[int, int, list[str]]:
        line = [""] * 19
        line[:4] = ["FreeStyle LibreLink", serial, f"{life.timeline.local(time):{pattern}}", str(kind)]
        for name, text in cells.items():
            line[{"history": 4, "scan": 5, "insulin": 7, "carbs": 9}[name]] = text
        return time, kind, line

    first = int(seen.time[0]) // 300 if seen.time.size else 0
    scanned = noise.uniform(noise.key(person.seed, person.handle, "scans"), first, seen.time.size).tolist()
    lines: list[tuple[int, int, list[str]]] = []
    for time, mg_dl, luck in zip(seen.time.tolist(), seen.mg_dl.tolist(), scanned, strict=True):
        text = number(_value(min(max(mg_dl, LOWEST), HIGHEST), unit))
        if time // 300 % 3 == 0:
            lines.append(row(time, 0, history=text))
        elif luck < 0.04:
            lines.append(row(time, 1, scan=text))
    count = len(lines)
    for time, grams, units in _eaten(person, life, start, end, until):
        lines.append(row(time, 5, carbs=str(grams)))
        if units:
            lines.append(row(time, 4, insulin=number(f"{units:g}")))
    lines.sort(key=lambda line: line[:2])
    day_format = "%d-%m-%Y" if date_order == "DMY" else "%m-%d-%Y"
    made = (
        f"{end + dt.timedelta(days=1):{day_format}} "
        + ("08:00" if date_order == "DMY" else "08:00 AM")
        + " UTC"
    )
    words = {
        "en": ("Glucose Data", "Generated on", "Generated by"),
        "de": ("Glukose-Werte", "Erstellt am", "Erstellt von"),
    }
    title, on, by = words[language]
    with _open(out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([title, on, made, by, person.name])
        writer.writerow(_LIBRE_HEADER[language].format(u=unit).split(","))
        writer.writerows(line for _, _, line in lines)
    return count


_DIRECTIONS = (
    (-3.0, "DoubleDown", 7),
    (-2.0, "SingleDown", 6),
    (-1.0, "FortyFiveDown", 5),
    (1.0, "Flat", 4),
    (2.0, "FortyFiveUp", 3),
    (3.0, "SingleUp", 2),
)


def _direction(rate: float) -> tuple[str, int]:
    """Nightscout's word and number for a rate in mg/dL a minute."""
    for limit, word, trend in _DIRECTIONS:
        if rate <= limit:
            return word, trend
    return "DoubleUp", 1


def nightscout_entries(
    person: Person, start: dt.date, end: dt.date, *, until: dt.datetime | None = None
) -> list[dict[str, Any]]:
    """Entries as `entries.json` has them: newest first, always mg/dL, 39 and 401 for what is out of range."""
    life = life_of(person)
    seen: Readings = readings(person, start, end, until=until)
    entries: list[dict[str, Any]] = []
    before: tuple[int, int] | None = None
    for time, mg_dl in zip(seen.time.tolist(), seen.mg_dl.tolist(), strict=True):
        sgv = min(max(mg_dl, LOWEST - 1), HIGHEST + 1)
        rate = (sgv - before[1]) * 60 / (time - before[0]) if before and time - before[0] < 900 else None
        word, trend = ("NONE", 0) if rate is None else _direction(rate)
        text = f"{dt.datetime.fromtimestamp(time, dt.UTC):%Y-%m-%dT%H:%M:%S}.000Z"
        entries.append(
            {
                "_id": person.uuid("nightscout", time).replace("-", "")[:24],
                "sgv": sgv,
                "date": time * 1000,
                "dateString": text,
                "trend": trend,
                "direction": word,
                "device": "share2",
                "type": "sgv",
                "utcOffset": life.timeline.offset_seconds(time) // 60,
                "sysTime": text,
            }
        )
        before = (time, sgv)
    return entries[::-1]


def write_nightscout(
    person: Person, start: dt.date, end: dt.date, out: Output, *, until: dt.datetime | None = None
) -> int:
    """A Nightscout `entries.json`."""
    entries = nightscout_entries(person, start, end, until=until)
    with _open(out) as file:
        file.write(json.dumps(entries, separators=(",", ":")))
    return len(entries)


def write_xdrip(
    person: Person, start: dt.date, end: dt.date, out: Output, *, until: dt.datetime | None = None
) -> int:
    """The table in an xDrip+ export: all sensor values, then calibrations, then what was eaten and injected."""
    life = life_of(person)
    seen = readings(person, start, end, until=until)

    def row(instant: int, *cells: object) -> str:
        return ";".join([f"{life.timeline.local(instant):%d.%m.%Y;%H:%M}", *map(str, cells)]) + "\n"

    pairs = list(zip(seen.time.tolist(), seen.mg_dl.tolist(), strict=True))
    calibrations = pairs[100::288]
    with _open(out) as file:
        file.write("DAY;TIME;UDT_CGMS;BG_LEVEL;CH_GR;BOLUS;REMARK\n")
        file.writelines(row(time, max(mg_dl, 14), "", "", "", "") for time, mg_dl in pairs)
        file.writelines(row(time, "", mg_dl, "", "", "") for time, mg_dl in calibrations)
        for time, grams, units in _eaten(person, life, start, end, until):
            injected = f"{units:g}" if units else ""
            file.write(row(time, "", "", grams, injected, 'the "usual"; with rice' if grams > 60 else ""))
    return len(pairs) + len(calibrations)


def glooko_tables(person: Person, start: dt.date, end: dt.date, *, unit: Unit = "mg/dL") -> dict[str, bytes]:
    """The tables of a Glooko export by their names in its archive: a sensor's, newest first, a meter's, and insulin."""
    life = life_of(person)
    seen = readings(person, start, end)
    serial = person.uuid("glooko")[:8].upper()

    def table(header: str, rows: list[tuple[int, str]]) -> bytes:
        lines = [f"Name:{person.name},Date Range:{start} - {end}", header]
        lines += [
            f"{life.timeline.local(time):%Y-%m-%d %H:%M},{cells},{serial}" for time, cells in reversed(rows)
        ]
        return "\r\n".join([*lines, ""]).encode()

    pairs = list(zip(seen.time.tolist(), seen.mg_dl.tolist(), strict=True))
    return {
        "CGM data/cgm_data_1.csv": table(
            f"Timestamp,CGM Glucose Value ({unit}),Serial Number",
            [(time, _value(min(max(mg_dl, LOWEST), HIGHEST), unit)) for time, mg_dl in pairs],
        ),
        "BG data/bg_data_1.csv": table(
            f"Timestamp,Glucose Value ({unit}),Manual Reading,Serial Number",
            [(time, f"{_value(mg_dl, unit)},M") for time, mg_dl in pairs[90::250]],
        ),
        "Insulin data/insulin_data_1.csv": table(
            "Timestamp,Total Bolus (U),Serial Number",
            [(time, f"{units:g}") for time, _, units in _eaten(person, life, start, end, None) if units],
        ),
    }


def write_glucose_csv(
    person: Person,
    start: dt.date,
    end: dt.date,
    out: Output,
    *,
    unit: Unit = "mg/dL",
    until: dt.datetime | None = None,
) -> int:
    """Two columns, `timestamp` (ISO 8601 with offset) and the glucose in the unit its header names."""
    life = life_of(person)
    seen = readings(person, start, end, until=until)
    with _open(out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["timestamp", f"glucose ({unit})"])
        for time, mg_dl in zip(seen.time.tolist(), seen.mg_dl.tolist(), strict=True):
            value = _value(min(max(mg_dl, LOWEST - 1), HIGHEST + 1), unit)
            writer.writerow([life.timeline.local(time).isoformat(), value])
    return int(seen.time.size)


#: Writers by the name of their format, with file name ending.
FORMATS: dict[str, tuple[Callable[..., int], str]] = {
    "dexcom_clarity": (write_clarity, "csv"),
    "libreview": (write_libreview, "csv"),
    "nightscout": (write_nightscout, "json"),
    "xdrip": (write_xdrip, "csv"),
    "glucose_csv": (write_glucose_csv, "csv"),
}
