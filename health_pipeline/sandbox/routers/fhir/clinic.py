"""What happens at the doctor's: a visit about every half year, with vital signs and a blood sample.

Visits are in the mornings at home: nobody sees their doctor while travelling.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.body import spo2, weigh_in
from health_pipeline.sandbox.life import Life
from health_pipeline.sandbox.people import EPOCH, Person

_EVERY_DAYS = 182
_LAB_HOURS = 26


@dataclass(frozen=True, slots=True)
class Unit:
    """How a laboratory reports an analyte: LOINC code, UCUM unit, decimals, and its value for one of ours.

    A reported value is (ours - `shift`) / `factor`.
    """

    loinc: str
    unit: str
    decimals: int
    factor: float = 1.0
    shift: float = 0.0

    def report(self, value: float) -> float:
        return round((value - self.shift) / self.factor, self.decimals)

    @property
    def rounding(self) -> float:
        """The most that rounding takes from a value, in our unit."""
        return 0.5 * 10.0**-self.decimals * self.factor


@dataclass(frozen=True, slots=True)
class Analyte:
    """A laboratory's measurand: usual value of women and men, spread within a person, and its units.

    `usual` and `spread` are in the catalogue's unit. `si` is how laboratories outside the United States
    report it, where that differs. `detection_limit` is the lowest value that is told, with `<` below it.
    """

    metric: str
    name: str
    usual: tuple[float, float]
    spread: float
    conventional: Unit
    si: Unit | None = None
    low: float | None = None
    high: float | None = None
    detection_limit: float | None = None


def _same(value: float) -> tuple[float, float]:
    return value, value


ANALYTES = (
    Analyte(
        "blood_glucose",
        "Glucose",
        _same(88),
        4,
        Unit("2345-7", "mg/dL", 0),
        Unit("14749-6", "mmol/L", 1, 18.0156),
        70,
        99,
    ),
    Analyte(
        "hba1c",
        "Hemoglobin A1c",
        _same(5.2),
        0.12,
        Unit("4548-4", "%", 1),
        Unit("59261-8", "mmol/mol", 0, 0.09148, 2.152),
    ),
    Analyte(
        "cholesterol_total",
        "Cholesterol",
        _same(182),
        10,
        Unit("2093-3", "mg/dL", 0),
        Unit("14647-2", "mmol/L", 2, 38.67),
    ),
    Analyte(
        "cholesterol_ldl",
        "LDL cholesterol",
        _same(104),
        8,
        Unit("13457-7", "mg/dL", 0),
        Unit("22748-8", "mmol/L", 2, 38.67),
    ),
    Analyte(
        "cholesterol_hdl",
        "HDL cholesterol",
        (62, 52),
        4,
        Unit("2085-9", "mg/dL", 0),
        Unit("14646-4", "mmol/L", 2, 38.67),
    ),
    Analyte(
        "triglycerides",
        "Triglycerides",
        _same(95),
        14,
        Unit("2571-8", "mg/dL", 0),
        Unit("14927-8", "mmol/L", 2, 88.57),
    ),
    Analyte(
        "creatinine",
        "Creatinine",
        (0.78, 0.95),
        0.05,
        Unit("2160-0", "mg/dL", 2),
        Unit("14682-9", "umol/L", 0, 1 / 88.4),
    ),
    Analyte("egfr", "eGFR", _same(96), 4, Unit("98979-8", "mL/min/{1.73_m2}", 0)),
    Analyte("urea_nitrogen", "Urea nitrogen", _same(13), 1.8, Unit("3094-0", "mg/dL", 0)),
    Analyte("sodium", "Sodium", _same(140), 1.2, Unit("2951-2", "mmol/L", 0), low=135, high=145),
    Analyte("potassium", "Potassium", _same(4.2), 0.2, Unit("2823-3", "mmol/L", 1), low=3.5, high=5.1),
    Analyte("chloride", "Chloride", _same(103), 1.4, Unit("2075-0", "mmol/L", 0)),
    Analyte("carbon_dioxide", "Carbon dioxide", _same(25), 1.2, Unit("2028-9", "mmol/L", 0)),
    Analyte("calcium", "Calcium", _same(9.5), 0.2, Unit("17861-6", "mg/dL", 1)),
    Analyte("albumin", "Albumin", _same(4.4), 0.14, Unit("1751-7", "g/dL", 1)),
    Analyte("alt", "ALT", (18, 26), 4, Unit("1742-6", "U/L", 0)),
    Analyte("ast", "AST", (19, 24), 3, Unit("1920-8", "U/L", 0)),
    Analyte(
        "hemoglobin",
        "Hemoglobin",
        (13.6, 15.0),
        0.4,
        Unit("718-7", "g/dL", 1),
        Unit("718-7", "g/L", 0, 0.1),
    ),
    Analyte("hematocrit", "Hematocrit", (40.5, 45.0), 1.2, Unit("4544-3", "%", 1)),
    Analyte("erythrocytes", "Erythrocytes", (4.5, 5.0), 0.14, Unit("789-8", "10*6/uL", 2)),
    Analyte("leukocytes", "Leukocytes", _same(6.2), 0.8, Unit("6690-2", "10*3/uL", 1)),
    Analyte("platelets", "Platelets", _same(250), 22, Unit("777-3", "10*3/uL", 0)),
    Analyte("tsh", "Thyrotropin", _same(1.9), 0.35, Unit("3016-3", "m[IU]/L", 2)),
    Analyte("ferritin", "Ferritin", (60, 130), 14, Unit("2276-4", "ng/mL", 0)),
    Analyte(
        "vitamin_d",
        "25-hydroxyvitamin D",
        _same(28),
        4,
        Unit("1989-3", "ng/mL", 0),
        Unit("14635-7", "nmol/L", 0, 0.400641),
    ),
    Analyte(
        "c_reactive_protein", "CRP", _same(0.9), 0.6, Unit("1988-5", "mg/L", 1), high=5, detection_limit=0.6
    ),
)

#: Whose values are not the usual ones.
_OWN: dict[str, dict[str, float]] = {
    "dana": {"blood_glucose": 150, "hba1c": 7.1},
    "eli": {"blood_glucose": 112, "hba1c": 6.0, "egfr": 74, "cholesterol_ldl": 88, "cholesterol_total": 161},
}


@dataclass(frozen=True, slots=True)
class Result:
    """A laboratory's value as it is reported, and the true one in the catalogue's unit.

    `value` is None where the sample was spoilt.
    """

    analyte: Analyte
    unit: Unit
    true: float
    value: float | None
    comparator: str | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """A visit: vital signs by metric (kg, cm, mm[Hg], Cel, /min, %, kg/m2), taken at `at`; results at `issued`.

    Instants are epoch seconds.
    """

    number: int
    date: dt.date
    at: int
    issued: int
    vitals: dict[str, float]
    results: tuple[Result, ...]


def visits(life: Life, until: float) -> Iterator[Visit]:
    """The visits before an instant, in order."""
    number = 0
    while (visit := _visit(life, number)).at <= until:
        yield visit
        number += 1


def _visit(life: Life, number: int) -> Visit:
    person = life.person
    key = noise.key(person.seed, person.handle, "visit")
    wait = 40 + int(20 * noise.uniform(key, number, 1)[0])
    date = EPOCH + dt.timedelta(days=number * _EVERY_DAYS + wait)
    zone = ZoneInfo(person.zone)
    while True:
        at = int(dt.datetime(date.year, date.month, date.day, 9, 20, tzinfo=zone).timestamp())
        day = life.day(date)
        scale = None if day is None else weigh_in(life, day)
        if day is not None and scale is not None and life.timeline.zone_at(at).key == person.zone:
            break
        date += dt.timedelta(days=1)
    height = round(person.height_m * 100, 1)
    weight = round(scale.weight, 1)
    breath = noise.normal(noise.key(key, "breath"), number, 1)[0]
    vitals = {
        "weight": weight,
        "height": height,
        "bmi": bmi(weight, height),
        "blood_pressure_systolic": float(scale.systolic),
        "blood_pressure_diastolic": float(scale.diastolic),
        "heart_rate": float(scale.pulse),
        "body_temperature": round(36.6 + day.temperature, 1),
        "respiratory_rate": float(round(14 + 1.2 * float(breath))),
        "spo2": float(round(spo2(life, day))),
    }
    results = tuple(_result(person, analyte, number) for analyte in ANALYTES)
    return Visit(number, date, at, at + _LAB_HOURS * 3600, vitals, results)


def bmi(weight: float, height: float) -> float:
    """kg/m2 of kg and cm."""
    return round(weight / (height / 100) ** 2, 1)


def _result(person: Person, analyte: Analyte, number: int) -> Result:
    usual = _OWN.get(person.handle, {}).get(analyte.metric, analyte.usual[person.sex == "male"])
    draw = noise.normal(noise.key(person.seed, person.handle, "laboratory", analyte.metric), number, 1)
    true = usual + analyte.spread * float(draw[0])
    american = person.zone.startswith("America/")
    unit = analyte.conventional if american or analyte.si is None else analyte.si
    if analyte.metric == "potassium" and number % 3 == 1:
        return Result(analyte, unit, true, None)  # haemolysed
    if analyte.detection_limit is not None and true < analyte.detection_limit:
        return Result(analyte, unit, true, unit.report(analyte.detection_limit), "<")
    return Result(analyte, unit, true, unit.report(true))
