"""Garmin Connect: answers of its own API as JSON, the zip of an account export, and FIT files.

The API is that of Garmin's apps; libraries such as garth and garminconnect keep its answers. Source of the
contract: recorded answers, and open readers of account exports; Garmin documents FIT alone.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator

import orjson

from health_pipeline.providers._archive import (
    UnreadableMemberError,
    open_archive,
    read_member,
    rewindable,
)
from health_pipeline.providers._export_records import ENTITIES, Collector
from health_pipeline.providers._fit import is_fit, read_fit
from health_pipeline.providers._garmin_connect_parse import read_body
from health_pipeline.providers._json import original_text
from health_pipeline.providers._parts import telling, whole
from health_pipeline.providers._zip_stream import is_zip, member_names
from health_pipeline.providers.base import Parsed, Provider, RawDocument, RawFile, UnreadableFileError

#: Files of an account export that hold what the catalogue knows.
_WANTED = re.compile(
    r"(?:UDSFile_[^/]*|_sleepData|_summarizedActivities|_userBioMetrics)\.json$", re.IGNORECASE
)
_EXPORT_FOLDER = re.compile(r"(?:^|/)DI[_-]CONNECT/", re.IGNORECASE)
_MARKS = re.compile(
    r'"(?:userProfilePK|userProfilePk|hrvSummaries|hrvSummary|dailySleepDTO|summarizedActivitiesExport'
    r"|sleepStartTimestampGMT|dailyWeightSummaries|dateWeightList|stressValuesArray|heartRateValues"
    r'|sleepWindowConfirmationType)"\s*:'
    r'|"activityId"\s*:\s*\d'
    r'|"calendarDate"\s*:\s*"\d{4}-\d\d-\d\d'
    r'|"path"\s*:\s*"/[a-z]+-(?:service|gateway)/'
)


def parse_stream(file: RawFile) -> Iterator[Parsed]:
    """Days, nights, weighings, series and workouts, a part for each file of an archive.

    A record that does not fit goes to quarantine with its place, alone; so does a file that is damaged. Records
    that other records sum up or repeat (weeks, a triathlon beside its parts), and scales that are Garmin's own,
    are skipped. Files of an account export that hold nothing for us are counted as `other_file`.

    UnreadableFileError: an archive that is damaged or encrypted; local days and no time zone.
    """
    with rewindable(file.content) as content:
        head = content.read(64)
        content.seek(0)
        collector = Collector(file.entity, file.time_zone)
        if is_zip(head):
            yield from telling(_archive(collector, content))
        else:
            _read(collector, content.read(), "$")
            yield collector.parsed()


def parse(document: RawDocument) -> Parsed:
    """`parse_stream` of a file that is in memory."""
    return whole(parse_stream, document)


def sniff(head: bytes) -> float:
    """Sure of FIT's mark, of an account export's folders, and of names that only Garmin Connect's JSON has."""
    if is_fit(head):
        return 0.95
    if is_zip(head):
        names = member_names(head)
        if any(_EXPORT_FOLDER.search(name) for name in names):
            return 0.95
        return 0.9 if names and all(name.lower().endswith(".fit") for name in names) else 0.0
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()
    return 0.8 if text.startswith(("{", "[")) and _MARKS.search(text) else 0.0


def _archive(collector: Collector, content: object) -> Iterator[Parsed]:
    with open_archive(content) as archive:  # type: ignore[arg-type]
        has_list = any(
            member.filename.lower().endswith("_summarizedactivities.json") for member in archive.infolist()
        )
        for member in archive.infolist():
            name = member.filename
            lower = name.lower()
            if member.is_dir():
                continue
            if not (_WANTED.search(name) or lower.endswith(".fit") or "uploadedfiles" in lower):
                collector.skip("other_file")
                continue
            try:
                inside = read_member(archive, member)
            except UnreadableMemberError as error:
                collector.refuse(str(error), name, "{}")
                continue
            if is_zip(inside):
                yield from _fit_files(collector, inside, name, has_list=has_list)
            else:
                _read(collector, inside, name, with_sessions=not has_list)
            yield collector.parsed()
        yield collector.parsed()


def _fit_files(collector: Collector, content: bytes, place: str, *, has_list: bool) -> Iterator[Parsed]:
    """The archive in the archive, of what the devices sent."""
    try:
        with open_archive(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if not member.filename.lower().endswith(".fit"):
                    collector.skip("other_file")
                    continue
                _read_member(collector, archive, member, place, has_list=has_list)
                yield collector.parsed()
    except UnreadableFileError:
        collector.refuse("damaged_member", place, "{}")


def _read_member(
    collector: Collector, archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: str, *, has_list: bool
) -> None:
    name = f"{place}/{member.filename}"
    try:
        content = read_member(archive, member)
    except UnreadableMemberError as error:
        collector.refuse(str(error), name, "{}")
    else:
        _read(collector, content, name, with_sessions=not has_list)


def _read(collector: Collector, content: bytes, place: str, *, with_sessions: bool = True) -> None:
    if is_fit(content):
        read_fit(collector, content, place, with_sessions=with_sessions)
        return
    try:
        body = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        collector.refuse("malformed_body", place, original_text(content))
        return
    read_body(collector, body, place)


PROVIDER = Provider(
    name="garmin_connect",
    title="Garmin Connect export",
    door="upload",
    entities=ENTITIES,
    parse=parse,
    parse_stream=parse_stream,
    sniff=sniff,
)
