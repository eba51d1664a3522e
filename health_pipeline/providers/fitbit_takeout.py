"""Fitbit in Google Takeout ("Fitbit", since 2026 "Google Health"): the zip, or one of its JSON or CSV files.

There are two generations beside each other, partly of the same days: "Global Export Data" in JSON, without a zone,
and "…_GoogleData" in CSV, in UTC. Where both have a day, the CSV counts. Google describes neither; source of the
contract: open readers of such exports.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import orjson

from health_pipeline.providers._archive import (
    UnreadableMemberError,
    open_archive,
    read_member,
    rewindable,
)
from health_pipeline.providers._export_csv import header_of
from health_pipeline.providers._export_records import ENTITIES, Collector, Ints
from health_pipeline.providers._fitbit_takeout_csv import KINDS as CSV_KINDS
from health_pipeline.providers._fitbit_takeout_csv import Stages, kind_of, read_table
from health_pipeline.providers._fitbit_takeout_json import (
    Clock,
    clock_of,
    exercise,
    resting,
    series,
    sleeps,
    times_of,
    weighing,
    weight_unit,
)
from health_pipeline.providers._json import original_text
from health_pipeline.providers._parts import telling, whole
from health_pipeline.providers._zip_stream import is_zip, member_names
from health_pipeline.providers.base import Parsed, Provider, RawDocument, RawFile, UnreadableFileError

_FOLDER = re.compile(r"(?:^|/)(?:Takeout/(?:Fitbit|Google Health)/|Global Export Data/|[^/]*_GoogleData/)")
_JSON = re.compile(r"(?:^|/)(heart_rate|steps|resting_heart_rate|sleep|weight|exercise)-[\d-]+\.json$")
_US_TIME = r'"\d\d/\d\d/\d\d \d\d:\d\d:\d\d"'
_MARKS: Mapping[str, re.Pattern[str]] = {
    "heart_rate": re.compile(rf'"dateTime"\s*:\s*{_US_TIME},\s*"value"\s*:\s*\{{\s*"bpm"'),
    "resting_heart_rate": re.compile(
        rf'"dateTime"\s*:\s*{_US_TIME},\s*"value"\s*:\s*\{{\s*"(?:date|value|error)"\s*:'
    ),
    "sleep": re.compile(r'"mainSleep"\s*:|"logId"\s*:\s*\d+,\s*"dateOfSleep"'),
    "weight": re.compile(r'"weight"\s*:[^{}]*"date"\s*:\s*"\d\d/\d\d/\d\d"'),
    "exercise": re.compile(rf'"activityName"\s*:[^]]*"startTime"\s*:\s*{_US_TIME}'),
}
#: Any of its numbers of minutes: steps, calories and distances look alike.
_SERIES_MARK = re.compile(rf'"dateTime"\s*:\s*{_US_TIME},\s*"value"\s*:\s*"')
#: Files that are looked into to tell the clock.
_TELLING_FILES = 20


def parse_stream(file: RawFile) -> Iterator[Parsed]:
    """Heart rate, steps, distance, sleeps, weighings and workouts, a part for each file.

    The clock of the JSON series (UTC or the wall's) is told by the whole archive, and the report says by what;
    weights are in the unit that agrees with the body mass index beside them. A record that does not fit is
    refused alone, with its place; files of other kinds are counted as `other_file`.

    UnreadableFileError: an archive that is damaged or encrypted; local times and no time zone; a file that does
    not say what its numbers are.
    """
    with rewindable(file.content) as content:
        head = content.read(64)
        content.seek(0)
        collector = Collector(file.entity, file.time_zone)
        if is_zip(head):
            with open_archive(content) as archive:
                yield from telling(_Archive(collector, archive).parts())
        else:
            yield from _single(collector, content)


def parse(document: RawDocument) -> Parsed:
    """`parse_stream` of a file that is in memory."""
    return whole(parse_stream, document)


def sniff(head: bytes) -> float:
    """Sure of the export's folders, of its month-first times in JSON, and of headers that only it has."""
    if is_zip(head):
        names = member_names(head)
        if any(_FOLDER.search(name) for name in names):
            return 0.95
        # Another product's files may come first, or a long page about what is in the archive.
        return 0.5 if any(name.startswith("Takeout/") for name in names) else 0.0
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    if text.lstrip().startswith("["):
        return 0.9 if _json_kind(text) or _SERIES_MARK.search(text) else 0.0
    return 0.9 if kind_of(header_of(head)) else 0.0


def _json_kind(text: str) -> str | None:
    return next((kind for kind, mark in _MARKS.items() if mark.search(text)), None)


def _single(collector: Collector, content: IO[bytes]) -> Iterator[Parsed]:
    whole_file = content.read()
    text = whole_file[:65536].decode("utf-8", "replace")
    reader = _Reader(collector)
    if (kind := kind_of(header_of(whole_file))) is not None:
        reader.csv(kind, whole_file, "$")
    elif (name := _json_kind(text)) is not None:
        entries = _entries(collector, whole_file, "$")
        if entries is not None:
            if name in ("heart_rate", "exercise"):
                reader.tell_clock([entries] if name == "heart_rate" else [], [])
            reader.json(name, entries, "$")
    elif _SERIES_MARK.search(text):
        raise UnreadableFileError(
            "the file has times and numbers, and does not say of what (steps, calories, distance): upload the "
            "archive it is from"
        )
    else:
        collector.refuse("malformed_body", "$", original_text(whole_file))
    yield collector.parsed()


def _entries(collector: Collector, content: bytes, place: str) -> list[Any] | None:
    try:
        found = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, list):
        return found
    collector.refuse("malformed_body", place, original_text(content))
    return None


@dataclass(slots=True)
class _Reader:
    """What is known of an export while its files are read: the clock, and the days that came as CSV."""

    collector: Collector
    clock: Clock = "wall"
    covered: dict[str, Ints] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)
    sleep_days: set[Any] = field(default_factory=set)

    def tell_clock(self, hearts: list[list[Any]], steps: list[list[Any]]) -> None:
        """From files of heart rate, and of steps."""
        days = []
        for entries in hearts:
            times = np.asarray(times_of(entries).drop_null(), dtype=np.int64)
            if len(times):
                days.append(np.array([times.min(), times.max()]))
        at: list[int] = []
        counts: list[float] = []
        for entries in steps:
            for time, entry in zip(times_of(entries).to_pylist(), entries, strict=True):
                value = entry.get("value") if isinstance(entry, dict) else None
                if time is not None and isinstance(value, str) and value.isascii() and value.isdigit():
                    at.append(time)
                    counts.append(float(value[:9]))
        self.clock, evidence = clock_of(
            self.collector.zone, days, (np.array(at, dtype=np.int64), np.array(counts, dtype=np.float64))
        )
        said = "UTC" if self.clock == "utc" else f"the wall clock of {self.collector.time_zone}"
        self.collector.notes.add(
            f"times of heart rate, steps and workouts in JSON are taken for {said}: {evidence}"
        )

    def csv(self, kind: str, content: bytes, place: str) -> None:
        days = read_table(self.collector, kind, content, place, self.stages)
        metric = CSV_KINDS[kind].covers
        if metric is not None and len(days):
            self.covered[metric] = np.union1d(self.covered.get(metric, np.zeros(0, dtype=np.int64)), days)

    def json(self, kind: str, entries: list[Any], place: str) -> None:
        collector, nothing = self.collector, np.zeros(0, dtype=np.int64)
        reads: dict[str, Callable[[], None]] = {
            "resting_heart_rate": lambda: collector.take(
                entries, place, lambda record: resting(collector, record)
            ),
            "sleep": lambda: self._sleeps(entries, place),
            "weight": lambda: self._weighings(entries, place),
            "exercise": lambda: collector.take(
                entries, place, lambda record: exercise(collector, record, self.clock)
            ),
        }
        if kind in reads:
            reads[kind]()
        else:
            series(collector, entries, place, kind, self.clock, self.covered.get(kind, nothing))

    def _sleeps(self, entries: list[Any], place: str) -> None:
        """Nights that the CSV has are left to it."""
        covered = self.covered.get("sleep", np.zeros(0, dtype=np.int64))
        others = [entry for entry in entries if not _ended_on(entry, covered)]
        if len(others) < len(entries):
            self.collector.skip("also_as_csv", len(entries) - len(others))
        sleeps(self.collector, others, place)

    def _weighings(self, entries: list[Any], place: str) -> None:
        if "weight" in self.covered:
            self.collector.skip("also_as_csv", len(entries))
            return
        unit = weight_unit(entries)
        if unit is not None:
            self.collector.notes.add(f"weights are in {unit}, by the body mass index beside them")
        self.collector.take(entries, place, lambda record: weighing(self.collector, record, unit))


def _ended_on(entry: Any, days: Ints) -> bool:
    date = entry.get("dateOfSleep") if isinstance(entry, dict) else None
    try:
        day = np.datetime64(date, "D").astype(np.int64) if isinstance(date, str) else None
    except ValueError:
        return False
    return day is not None and bool(np.isin(day, days))


class _Archive:
    """The files of an export, those in CSV first."""

    def __init__(self, collector: Collector, archive: zipfile.ZipFile) -> None:
        self._collector = collector
        self._archive = archive
        self._reader = _Reader(collector)
        self._tables: list[zipfile.ZipInfo] = []
        self._json: list[tuple[str, zipfile.ZipInfo]] = []
        for member in archive.infolist():
            if member.is_dir():
                continue
            found = _JSON.search(member.filename)
            if found is not None:
                self._json.append((found.group(1), member))
            elif member.filename.lower().endswith(".csv"):
                self._tables.append(member)
            else:
                collector.skip("other_file")

    def parts(self) -> Iterator[Parsed]:
        # Stages first: the sleeps they are of come with them.
        for member in sorted(self._tables, key=lambda each: "sleepstages" not in each.filename.lower()):
            content = self._read(member)
            if content is None:
                continue
            kind = kind_of(header_of(content))
            if kind is None:
                self._collector.skip("other_file")
            else:
                self._reader.csv(kind, content, member.filename)
                if kind != "stages":
                    yield self._collector.parsed()
        if any(kind in ("heart_rate", "steps", "exercise") for kind, _ in self._json):
            self._reader.tell_clock(self._some("heart_rate"), self._some("steps"))
        for kind, member in self._json:
            content = self._read(member)
            entries = None if content is None else _entries(self._collector, content, member.filename)
            if entries is not None:
                self._reader.json(kind, entries, member.filename)
            yield self._collector.parsed()
        yield self._collector.parsed()

    def _read(self, member: zipfile.ZipInfo) -> bytes | None:
        try:
            return read_member(self._archive, member)
        except UnreadableMemberError as error:
            self._collector.refuse(str(error), member.filename, "{}")
            return None

    def _some(self, kind: str) -> list[list[Any]]:
        """The first files of a kind, those that can be read."""
        found = []
        for member in [each for name, each in self._json if name == kind][:_TELLING_FILES]:
            try:
                entries = orjson.loads(read_member(self._archive, member))
            except (UnreadableMemberError, orjson.JSONDecodeError):
                continue
            if isinstance(entries, list):
                found.append(entries)
        return found


PROVIDER = Provider(
    name="fitbit_takeout",
    title="Fitbit in Google Takeout",
    door="upload",
    entities=ENTITIES,
    parse=parse,
    parse_stream=parse_stream,
    sniff=sniff,
)
