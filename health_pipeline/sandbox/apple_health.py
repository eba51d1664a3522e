"""Apple Health's export.xml of a person who has a phone, a watch, a scale and a cuff.

Written from what the Health app exports, in its words and with its faults: the document type that is none, one
offset for all times (that of the phone at the export), units as the person has set them, blood pressure both in
a correlation and beside it, records that are there twice, the address of a device in its description. `true_days`
and `true_values` say what it comes to.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO
from xml.sax.saxutils import quoteattr

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import activity, heart_rate
from health_pipeline.sandbox.glucose import meals
from health_pipeline.sandbox.life import Day, Life, life_of
from health_pipeline.sandbox.night import AWAKE, DEEP, LIGHT, REM, nights
from health_pipeline.sandbox.people import Person

_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE HealthData [
<!-- HealthKit Export Version: 14 -->
<!ELEMENT HealthData (ExportDate,Me,(Record|Correlation|Workout|ActivitySummary)*)>
<!ELEMENT WorkoutStatistics (MetadataEntry*)
<!ATTLIST WorkoutStatistics
  type CDATA #REQUIRED
  startDate CDATA #REQUIRED
  startDate CDATA #REQUIRED
>
]>
"""
_QUANTITY = "HKQuantityTypeIdentifier"
_STAGES = {DEEP: "AsleepDeep", LIGHT: "AsleepCore", REM: "AsleepREM", AWAKE: "Awake"}
_POUNDS_PER_KG = 1 / 0.45359237
_EPOCH_SECONDS = 30
_BUCKET = 20
#: Watches measure the pulse more often than a sample has to show.
_EVERY_PULSE = 6


@dataclass(frozen=True, slots=True)
class Device:
    """Something that writes into Health: its name, as its owner has it, and hardware."""

    name: str
    kind: str
    hardware: str

    @property
    def label(self) -> str:
        """Name and hardware, with plain spaces."""
        return f"{self.name.replace(chr(0xA0), ' ')} ({self.hardware})"


@dataclass(frozen=True, slots=True)
class TrueDay:
    """What a local day comes to: steps by the watch, and by the phone while there was no watch; seconds asleep."""

    date: dt.date
    steps: int
    sleep_seconds: int | None


@dataclass(frozen=True, slots=True)
class TrueValue:
    """What was measured or eaten at an instant (epoch seconds), in the units that Health was not asked for: metres,
    kilograms, degrees Celsius, per cent, mg/dL, grams."""

    metric_type: str
    instant: int
    value: float


def devices_of(person: Person) -> tuple[Device, Device]:
    """The watch, and the phone."""
    first = person.name.split()[0]
    return (
        Device(f"{first}\u2019s Apple\u00a0Watch", "Watch", "Watch6,2"),
        Device(f"{first}\u2019s iPhone", "iPhone", "iPhone14,5"),
    )


def write_apple_health(
    person: Person, start: dt.date, end: dt.date, out: TextIO, *, exported: dt.datetime
) -> int:
    """Write the person's days from `start` to `end`, both included; returns the number of records.

    `exported` is when, in the zone of the phone: its offset is printed with every time.
    """
    writer = _Writer(person, out, exported)
    life = life_of(person)
    days = life.days(start, end)
    out.write(
        _HEAD
        + f'<HealthData locale="en_GB">\n <ExportDate value="{_stamp(exported, exported.timestamp())}"/>\n'
    )
    for write in (_pulse, _steps, _body, _meals, _stood, _sleep, _workouts):
        for day in days:
            write(writer, life, day)
    out.write("</HealthData>\n")
    return writer.records


def true_days(person: Person, start: dt.date, end: dt.date) -> list[TrueDay]:
    """The local days from `start` to `end`, by the clock on the wall where the person was.

    Only the days in between are whole: nights and hours at the edges belong to days outside.
    """
    life = life_of(person)
    steps: dict[dt.date, int] = {}
    asleep: dict[dt.date, int] = {}
    for day in life.days(start, end):
        for first, count, _, on_watch, by_phone in _walks(life, day):
            date = life.timeline.local(first).date()
            steps[date] = steps.get(date, 0) + (count if on_watch else by_phone)
        for night in nights(life, day):
            if night.kind == "main" and day.night_worn:
                date = life.timeline.local(night.wake).date()
                asleep[date] = asleep.get(date, 0) + night.total_sleep
    return [TrueDay(date, steps[date], asleep.get(date)) for date in sorted(steps) if start < date <= end]


def true_values(person: Person, start: dt.date, end: dt.date) -> list[TrueValue]:
    """Every value of the days whose unit in the file is not that of the catalogue, and every meal."""
    life = life_of(person)
    stride = body.step_length(person)
    found = []
    for day in life.days(start, end):
        found += [
            TrueValue("distance", first, count * stride)
            for first, count, _, on_watch, _ in _walks(life, day)
            if on_watch
        ]
        found += [TrueValue("carbohydrates", meal.time, float(meal.carbs)) for meal in meals(life, day)]
        weighed = body.weigh_in(life, day)
        if weighed is not None:
            found += [
                TrueValue("weight", weighed.instant, weighed.weight),
                TrueValue("body_fat", weighed.instant, weighed.fat_percent),
                TrueValue("body_temperature", weighed.instant, 36.6 + day.temperature),
                TrueValue("blood_glucose", weighed.instant, _fasting(day)),
                TrueValue("blood_pressure_systolic", weighed.instant, float(weighed.systolic)),
                TrueValue("blood_pressure_diastolic", weighed.instant, float(weighed.diastolic)),
            ]
    return found


def _fasting(day: Day) -> float:
    """Blood glucose before breakfast, mg/dL."""
    return 84.0 + day.index % 12


class _Writer:
    def __init__(self, person: Person, out: TextIO, exported: dt.datetime) -> None:
        self.person = person
        self.watch, self.phone = devices_of(person)
        self.records = 0
        self._out = out
        self._exported = exported

    def record(
        self,
        kind: str,
        value: str,
        unit: str | None,
        device: Device | None,
        first: float,
        last: float,
        *,
        source: str = "",
        zone: str | None = None,
        indent: str = " ",
        prefix: str = _QUANTITY,
    ) -> None:
        """One Record, at instants in epoch seconds."""
        self.records += 1
        metadata = (
            f'\n{indent} <MetadataEntry key="HKTimeZone" value="{zone}"/>\n{indent}</Record>' if zone else ""
        )
        self._out.write(
            f'{indent}<Record type="{prefix}{kind}" {self.written_by(device, source)}'
            + (f' unit="{unit}"' if unit else "")
            + f" {self.times(first, last)} value={quoteattr(value)}{'>' if zone else '/>'}{metadata}\n"
        )

    def written_by(self, device: Device | None, source: str = "") -> str:
        """Attributes that name source and device."""
        if device is None:
            return f'sourceName={quoteattr(source)} sourceVersion="3.2"'
        # Where in the phone's memory the device was, which says nothing to anybody.
        pointer = 0x280000000 + noise.key(self.person.seed, device.name, self.records) % 0x4000000
        text = (
            f"<<HKDevice: 0x{pointer:x}>, name:{device.kind}, manufacturer:Apple Inc., model:{device.kind}, "
            f"hardware:{device.hardware}, software:10.1>"
        )
        return f'sourceName={quoteattr(device.name)} sourceVersion="10.1" device={quoteattr(text)}'

    def times(self, first: float, last: float) -> str:
        """Attributes that say when."""
        begun, ended = _stamp(self._exported, first), _stamp(self._exported, last)
        return f'creationDate="{ended}" startDate="{begun}" endDate="{ended}"'

    def line(self, text: str) -> None:
        self._out.write(text + "\n")


def _stamp(exported: dt.datetime, instant: float) -> str:
    return dt.datetime.fromtimestamp(instant, dt.timezone(exported.utcoffset() or dt.timedelta())).strftime(
        "%Y-%m-%d %H:%M:%S %z"
    )


def _pulse(writer: _Writer, life: Life, day: Day) -> None:
    seen = heart_rate(life, day)
    for time, bpm in list(zip(seen.time.tolist(), seen.bpm.tolist(), strict=True))[::_EVERY_PULSE]:
        writer.record("HeartRate", str(bpm), "count/min", writer.watch, time, time)


def _walks(life: Life, day: Day) -> Iterator[tuple[int, int, int, bool, int]]:
    """Twenty minutes with steps each: start, steps, seconds, whether the watch was on, and what the phone counted.

    The phone is left behind in two buckets of three; without the watch it is all there is.
    """
    lived = activity(life, day)
    for number in range(0, len(lived.steps), _BUCKET):
        steps, worn = lived.steps[number : number + _BUCKET], lived.worn[number : number + _BUCKET]
        count = int(steps.sum())
        if count:
            on_watch = bool(worn.all())
            carried = not on_watch or (number // _BUCKET) % 3 == 0
            yield lived.start + 60 * number, count, 60 * len(steps), on_watch, count if carried else 0


def _steps(writer: _Writer, life: Life, day: Day) -> None:
    stride = body.step_length(life.person)
    for first, count, seconds, on_watch, by_phone in _walks(life, day):
        if on_watch:
            writer.record("StepCount", str(count), "count", writer.watch, first, first + seconds)
            miles = f"{count * stride / 1609.344:.6g}"
            writer.record("DistanceWalkingRunning", miles, "mi", writer.watch, first, first + seconds)
        if by_phone:
            # A phone that was restored from a backup has some records twice.
            for _ in range(2 if first % (6 * 3600) < 3600 else 1):
                writer.record("StepCount", str(by_phone), "count", writer.phone, first, first + seconds)


def _body(writer: _Writer, life: Life, day: Day) -> None:
    weighed = body.weigh_in(life, day)
    if weighed is None:
        return
    at, scale, cuff = weighed.instant, "Scale", "Cuff"
    writer.record("BodyMass", f"{weighed.weight * _POUNDS_PER_KG:.4f}", "lb", None, at, at, source=scale)
    writer.record("BodyFatPercentage", f"{weighed.fat_percent / 100:.4g}", "%", None, at, at, source=scale)
    pressure = (("Systolic", weighed.systolic), ("Diastolic", weighed.diastolic))
    for name, value in pressure:
        writer.record(f"BloodPressure{name}", str(value), "mmHg", None, at, at, source=cuff)
    writer.line(
        f' <Correlation type="HKCorrelationTypeIdentifierBloodPressure" {writer.written_by(None, cuff)} '
        f"{writer.times(at, at)}>"
    )
    for name, value in pressure:
        writer.record(f"BloodPressure{name}", str(value), "mmHg", None, at, at, source=cuff, indent="  ")
    writer.line(" </Correlation>")
    celsius = 36.6 + day.temperature
    writer.record(
        "BodyTemperature", f"{celsius * 9 / 5 + 32:.2f}", "degF", None, at, at, source="Thermometer"
    )
    mmol = f"{_fasting(day) / 18.01558800000541:.5f}"
    writer.record("BloodGlucose", mmol, "mmol&lt;180.1558800000541&gt;/L", None, at, at, source="Meter")


def _meals(writer: _Writer, life: Life, day: Day) -> None:
    for meal in meals(life, day):
        writer.record(
            "DietaryCarbohydrates", str(meal.carbs), "g", None, meal.time, meal.time, source="Food diary"
        )


def _stood(writer: _Writer, life: Life, day: Day) -> None:
    lived = activity(life, day)
    for number in range(0, len(lived.steps) - 59, 60):
        hour = slice(number, number + 60)
        if lived.worn[hour].any() and not lived.asleep[hour].all():
            word = "Stood" if int(lived.steps[hour].sum()) > 50 else "Idle"
            first = lived.start + 60 * number
            writer.record(
                "AppleStandHour",
                f"HKCategoryValueAppleStandHour{word}",
                None,
                writer.watch,
                first,
                first + 3600,
                prefix="HKCategoryTypeIdentifier",
            )


def _sleep(writer: _Writer, life: Life, day: Day) -> None:
    for night in nights(life, day):
        if night.kind == "rest" or not day.night_worn:
            continue
        zone = str(life.timeline.zone_at(night.bed))
        first = 0
        stages = night.stages.tolist()
        for number in range(1, len(stages) + 1):
            if number == len(stages) or stages[number] != stages[first]:
                writer.record(
                    "SleepAnalysis",
                    f"HKCategoryValueSleepAnalysis{_STAGES[stages[first]]}",
                    None,
                    writer.watch,
                    night.bed + _EPOCH_SECONDS * first,
                    night.bed + _EPOCH_SECONDS * number,
                    zone=zone,
                    prefix="HKCategoryTypeIdentifier",
                )
                first = number


def _workouts(writer: _Writer, life: Life, day: Day) -> None:
    for done in day.workouts:
        writer.records += 1
        name = "".join(part.capitalize() for part in done.activity.split("_"))
        writer.line(
            f' <Workout workoutActivityType="HKWorkoutActivityType{name}" '
            f'duration="{(done.end - done.start) / 60:.4f}" durationUnit="min" '
            f"{writer.written_by(writer.watch)} {writer.times(done.start, done.end)}>"
        )
        zone = life.timeline.zone_at(done.start)
        writer.line(f'  <MetadataEntry key="HKTimeZone" value="{zone}"/>')
        said = [("ActiveEnergyBurned", f"{body.workout_kcal(life.person, done) * 4.184:.3f}", "kJ")]
        meters = body.workout_distance(done)
        if meters is not None:
            said.append(("DistanceWalkingRunning", f"{meters / 1609.344:.6f}", "mi"))
        times = writer.times(done.start, done.end).split(" ", 3)[3]
        for kind, total, unit in said:
            # The start twice, as phones wrote it with iOS 16.
            again = times.rsplit(" endDate", 1)[0]
            writer.line(
                f'  <WorkoutStatistics type="{_QUANTITY}{kind}" {again} {times} sum="{total}" unit="{unit}"/>'
            )
        writer.line(" </Workout>")
