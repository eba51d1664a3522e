"""Apple Health exports of any size, for measuring: the shapes of a real one, of a phone and a watch.

`python tests/benchmarks/apple_export.py FILE MEGABYTES` writes FILE (`.zip` or `.xml`) whose XML has about
that many megabytes, and prints how many records it has.
"""

from __future__ import annotations

import datetime as dt
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: As phones write it since iOS 16: the declaration of WorkoutStatistics is broken.
HEADER = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE HealthData [
<!-- HealthKit Export Version: 14 -->
<!ELEMENT HealthData (ExportDate,Me,(Record|Correlation|Workout|ActivitySummary|ClinicalRecord)*)>
<!ATTLIST HealthData
  locale CDATA #REQUIRED
>
<!ELEMENT WorkoutStatistics (MetadataEntry*)
<!ATTLIST WorkoutStatistics
  type CDATA #REQUIRED
  startDate CDATA #REQUIRED
  startDate CDATA #REQUIRED
>
]>
<HealthData locale="en_GB">
 <ExportDate value="2026-11-20 09:00:00 +0100"/>
 <Me HKCharacteristicTypeIdentifierDateOfBirth="1990-02-02"/>
"""
_START = dt.datetime(2015, 1, 1)
# An apostrophe and a no-break space, as phones write them.
_WATCH = (
    'sourceName="Ada\u2019s Apple\u00a0Watch" sourceVersion="10.1" device="&lt;&lt;HKDevice: 0x{pointer:x}&gt;, '
    'name:Apple Watch, manufacturer:Apple Inc., model:Watch, hardware:Watch6,2, software:10.1&gt;"'
)
_PHONE = (
    'sourceName="Ada\u2019s iPhone" sourceVersion="17.1" device="&lt;&lt;HKDevice: 0x{pointer:x}&gt;, '
    'name:iPhone, manufacturer:Apple Inc., model:iPhone, hardware:iPhone14,5, software:17.1&gt;"'
)
#: Type, unit, device, seconds between records, seconds that one spans, lowest and highest value.
_SERIES = (
    ("HeartRate", "count/min", _WATCH, 240, 0, 45, 150),
    ("StepCount", "count", _WATCH, 1200, 540, 5, 900),
    ("StepCount", "count", _PHONE, 1500, 600, 5, 900),
    ("DistanceWalkingRunning", "km", _WATCH, 1200, 540, 0.01, 0.8),
    ("ActiveEnergyBurned", "kcal", _WATCH, 300, 240, 0.1, 12),
    ("BasalEnergyBurned", "kcal", _WATCH, 600, 590, 8, 13),
    ("OxygenSaturation", "%", _WATCH, 7200, 0, 0.91, 1.0),
    ("RespiratoryRate", "count/min", _WATCH, 3600, 0, 11, 19),
)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix == ".zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive,
            archive.open("apple_health_export/export.xml", "w", force_zip64=True) as file,
        ):
            yield file
    else:
        with path.open("wb") as file:
            yield file


def write_export(path: Path, megabytes: float, *, seed: int = 1) -> Counter[str]:
    """Write an export and count what it holds: records by type, `ActivitySummary`."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    budget = megabytes * 1_000_000
    # A record has about 390 bytes; the days that fill the budget.
    a_day = sum(86_400 / every for _, _, _, every, *_ in _SERIES) * 390
    days = max(1, round(budget / a_day))
    with _opened(path) as file:
        file.write(HEADER.encode())
        for name, unit, device, every, span, low, high in _SERIES:
            lines: list[str] = []
            moment, end = (
                _START + dt.timedelta(seconds=chance.randrange(60)),
                _START + dt.timedelta(days=days),
            )
            while moment < end:
                value = chance.uniform(low, high)
                text = f"{value:.0f}" if high > 20 else f"{value:.4f}"
                last = moment + dt.timedelta(seconds=span)
                lines.append(
                    f' <Record type="HKQuantityTypeIdentifier{name}" '
                    f'{device.format(pointer=0x282000000 + 64 * chance.randrange(4000))} unit="{unit}" '
                    f'creationDate="{last} +0100" startDate="{moment} +0100" endDate="{last} +0100" '
                    f'value="{text}"/>\n'
                )
                moment += dt.timedelta(seconds=chance.randrange(every // 2, every * 3 // 2))
                if len(lines) == 10_000:
                    file.write("".join(lines).encode())
                    counts[name] += len(lines)
                    lines = []
            file.write("".join(lines).encode())
            counts[name] += len(lines)
        for number in range(days):
            file.write(
                f' <ActivitySummary dateComponents="{(_START + dt.timedelta(days=number)).date()}" '
                'activeEnergyBurned="500" activeEnergyBurnedUnit="kcal"/>\n'.encode()
            )
        counts["ActivitySummary"] = days
        file.write(b"</HealthData>\n")
    return counts


if __name__ == "__main__":
    written = write_export(Path(sys.argv[1]), float(sys.argv[2]))
    print(f"{written.total()} records: {dict(written)}")
