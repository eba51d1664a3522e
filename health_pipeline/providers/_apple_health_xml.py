"""Apple's export.xml as batches of records: a forward read, in memory that does not grow with the file.

Phones write files that are not XML: a broken document type (iOS 16), attributes given twice, control
characters. The document type is left out, and with it every entity; the rest is mended tag by tag, and what
cannot be mended costs the record it is in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from xml.parsers import expat

from health_pipeline.providers.base import UnreadableFileError

_CHUNK_BYTES = 256 * 1024
_HEADER_BYTES = 1024 * 1024
#: A single element longer than this is no element.
_LONGEST_TAG = 16 * 1024 * 1024
_CONTROLS = bytes([*range(9), 0x0B, 0x0C, *range(0x0E, 0x20)])
_BAD_REFERENCE = re.compile(rb"&#(?:0*(?:[0-8]|1[124-9]|2\d|3[01])|x0*(?:[0-8bceBCE]|1[0-9a-fA-F]));")
_STATISTICS = re.compile(rb"<WorkoutStatistics\b[^<]*?>")
_ATTRIBUTE = re.compile(rb"\s([\w:.-]+)\s*=\s*(\"[^\"]*\"|'[^']*')")
_ROOT = re.compile(rb"<HealthData[\s>]")
_ELEMENT = re.compile(rb"\n\s*<(?:Record|Workout|Correlation|ActivitySummary|ClinicalRecord)\s")

_ROOT_AGAIN = b"<HealthData>"
_TAG_MISMATCH = expat.errors.codes[expat.errors.XML_ERROR_TAG_MISMATCH]

#: Metadata that says something about a record; everything else an app writes stays in raw.
METADATA = {
    "HKTimeZone",
    "HKWasUserEntered",
    "HKBloodGlucoseMealTime",
    "HKElevationAscended",
}
#: Elements directly below the root that are counted and carry nothing for us.
OTHERS = {
    "Correlation": "correlation",
    "ActivitySummary": "activity_summary",
    "ClinicalRecord": "clinical_record",
    "Audiogram": "audiogram",
    "VisionPrescription": "vision_prescription",
}

Element = dict[str, Any]


@dataclass(slots=True)
class Batch:
    """Records and workouts as attributes by name, with `line` and metadata; a workout has its `statistics`.

    `broken` are the lines where the file is not XML: each has cost a record. `skipped` counts the elements of
    no use, by their name, and the records of a type that is not wanted.
    """

    records: list[Element] = field(default_factory=list)
    workouts: list[Element] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    broken: list[int] = field(default_factory=list)
    cut_at: int | None = None


class _Reader:
    """Elements of one file as they come."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self._wanted = wanted
        self.batch = Batch()
        self.closed = False
        self._owner: Element | None = None
        self._line_offset = 0
        #: Bytes that the present parser has been given.
        self._fed = 0
        self._parser = self._new_parser()

    def _new_parser(self) -> expat.XMLParserType:
        parser = expat.ParserCreate("UTF-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        return parser

    def parse(self, content: bytes) -> None:
        """Read whole lines. Where they are not XML, go on with the next element that begins a line."""
        while content:
            try:
                self._parser.Parse(content, False)
            except expat.ExpatError as error:
                if self.closed:
                    return
                line = self._line_offset + error.lineno
                position = max(self._parser.ErrorByteIndex - self._fed, 0)
                if error.code != _TAG_MISMATCH or not content.startswith(b"</", position):
                    self.batch.broken.append(line)
                self._owner = None
                content = self._resumed(content, position, line)
            else:
                self._fed += len(content)
                return

    def _resumed(self, content: bytes, position: int, line: int) -> bytes:
        """What is left to read, by a new parser, after an error at a position, which is in that line."""
        found = _ELEMENT.search(content, position)
        start = found.start() + 1 if found is not None else len(content)
        self._parser = self._new_parser()
        self._parser.Parse(_ROOT_AGAIN, False)
        self._fed = len(_ROOT_AGAIN)
        self._line_offset = line + content.count(b"\n", position, start) - 1
        return content[start:]

    @property
    def line(self) -> int:
        return self._line_offset + self._parser.CurrentLineNumber

    def _start(self, name: str, attributes: Element) -> None:
        if name == "Record":
            kind = attributes.get("type")
            if kind in self._wanted or kind is None:
                attributes["line"] = self._line_offset + self._parser.CurrentLineNumber
                self.batch.records.append(attributes)
            else:
                self.batch.skipped[kind] += 1
            self._owner = attributes
        elif name == "MetadataEntry":
            if self._owner is not None and (key := attributes.get("key")) in METADATA:
                self._owner[key] = attributes.get("value")
        else:
            self._start_other(name, attributes)

    def _start_other(self, name: str, attributes: Element) -> None:
        if name == "Workout":
            attributes["line"] = self._line_offset + self._parser.CurrentLineNumber
            attributes["statistics"] = []
            self.batch.workouts.append(attributes)
            self._owner = attributes
        elif name == "WorkoutStatistics":
            if self._owner is not None and "statistics" in self._owner:
                self._owner["statistics"].append(attributes)
        elif name in OTHERS:
            self.batch.skipped[OTHERS[name]] += 1
            self._owner = None
        elif name in ("WorkoutRoute", "WorkoutActivity"):
            # What these say is of a part, not of the whole workout.
            self._owner = None

    def _end(self, name: str) -> None:
        if name == "HealthData":
            self.closed = True

    def take(self) -> Batch:
        """What was read since the last time, but for what may go on."""
        batch, self.batch = self.batch, Batch()
        owner = self._owner
        for waiting, kept in ((batch.records, self.batch.records), (batch.workouts, self.batch.workouts)):
            if waiting and waiting[-1] is owner:
                kept.append(waiting.pop())
        return batch


def read_batches(stream: BinaryIO, wanted: frozenset[str], records: int) -> Iterator[Batch]:
    """Batches of about so many records, in the order of the file. The last one says whether it was cut off.

    Records of other types than those `wanted` are counted. UnreadableFileError: there is no HealthData in it.
    """
    head, rest = _header(stream)
    reader = _Reader(wanted)
    reader.parse(b"\n" * head.count(b"\n"))
    while True:
        content, rest = _whole_lines(rest)
        if content:
            reader.parse(_mended(content))
            if len(reader.batch.records) >= records:
                yield reader.take()
        if reader.closed:
            break
        more = stream.read(_CHUNK_BYTES)
        if not more:
            break
        rest += more
        if len(rest) > _LONGEST_TAG:
            reader.parse(_mended(rest))
            rest = b""
    if not reader.closed and rest:
        reader.parse(_mended(rest))
    cut_at = None if reader.closed else reader.line
    last = reader.take()
    last.records += reader.batch.records
    last.workouts += reader.batch.workouts
    last.cut_at = cut_at
    yield last


def is_export(head: bytes) -> bool:
    """Whether a file that begins so is Apple's: its root is HealthData."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"<"):
        return False
    return b"<!DOCTYPE HealthData" in start or _ROOT.search(start) is not None


def _header(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Everything before the root, and what was read from the root on."""
    content = b""
    while len(content) < _HEADER_BYTES:
        more = stream.read(_CHUNK_BYTES)
        content += more
        if found := _ROOT.search(content):
            return content[: found.start()], content[found.start() :]
        if not more:
            break
    raise UnreadableFileError("there is no HealthData in the file; export it again from the Health app")


def _whole_lines(content: bytes) -> tuple[bytes, bytes]:
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _mended(content: bytes) -> bytes:
    """The same lines without what no XML may hold."""
    content = content.translate(None, _CONTROLS)
    if b"&#" in content:
        content = _BAD_REFERENCE.sub(b"", content)
    if b"<WorkoutStatistics" in content:
        content = _STATISTICS.sub(_once_each, content)
    try:
        content.decode()
    except UnicodeDecodeError:
        content = content.decode("utf-8", "replace").encode()
    return content


def _once_each(tag: re.Match[bytes]) -> bytes:
    """The tag with the first of each attribute."""
    text = tag.group()
    names = [name for name, _ in _ATTRIBUTE.findall(text)]
    if len(names) == len(set(names)):
        return text
    seen: set[bytes] = set()

    def first(attribute: re.Match[bytes]) -> bytes:
        name = attribute.group(1)
        if name in seen:
            return b""
        seen.add(name)
        return attribute.group()

    return _ATTRIBUTE.sub(first, text)
