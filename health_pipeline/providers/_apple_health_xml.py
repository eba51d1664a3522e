"""Apple's export.xml as batches of records: a forward read, in memory that does not grow with the file.

Phones write files that are not XML: a broken document type (iOS 16), attributes given twice, control
characters. The document type is left out, and with it every entity; the rest is mended tag by tag, and what
cannot be mended costs the record it is in.

Nearly all of a file is records that stand on lines of their own, with the same attributes in the same order. One
regular expression reads a chunk of these, four times as fast as a parser of XML tells Python of them; every other
line goes to the parser.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from html import unescape
from itertools import accumulate, groupby
from operator import itemgetter
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

#: A record as phones write it, with its metadata if it has any; else, as the last group, any line.
_LINE = re.compile(
    r'[ \t]*<Record type="([^"<&\n]+)" sourceName="([^"<\n]+)"(?: sourceVersion="[^"<\n]*")?'
    r'(?: device="[^",<\n]*([^"<\n]*)")?(?: unit="([^"<\n]+)")?(?: creationDate="[^"<\n]*")?'
    r' startDate="([^"<&\n]+)" endDate="([^"<&\n]+)"(?: value="([^"<&\n]+)")?'
    r'(?:/>\n|>\n((?:[ \t]*<MetadataEntry key="[^"<\n]*" value="[^"<\n]*"/>\n)+)[ \t]*</Record>\n)'
    r"|([^\n]*\n)"
)
_METADATA_ENTRY = re.compile(r'key="([^"]*)" value="([^"]*)"')
_other_line = itemgetter(-1)

_ROOT_AGAIN = b"<HealthData>"
#: What any element may hold: where the parser cannot take it, what it was given before is broken.
_ANYTHING = b"<_/>"
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
class Records:
    """Records as columns of their attributes, as written; None or nothing where there is none.

    `details` are what follows the first comma in `device`, with the comma. `metadata` is by row.
    """

    kind: list[str | None] = field(default_factory=list)
    source_name: list[str | None] = field(default_factory=list)
    details: list[str | None] = field(default_factory=list)
    unit: list[str | None] = field(default_factory=list)
    start: list[str | None] = field(default_factory=list)
    end: list[str | None] = field(default_factory=list)
    value: list[str | None] = field(default_factory=list)
    line: list[int] = field(default_factory=list)
    metadata: dict[int, dict[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kind)

    def extend(self, others: Records) -> None:
        place = len(self)
        self.kind += others.kind
        self.source_name += others.source_name
        self.details += others.details
        self.unit += others.unit
        self.start += others.start
        self.end += others.end
        self.value += others.value
        self.line += others.line
        self.metadata |= {place + row: said for row, said in others.metadata.items()}

    def append(self, attributes: Element) -> None:
        get = attributes.get
        self.kind.append(get("type"))
        self.source_name.append(get("sourceName"))
        self.details.append(_details_of(get("device")))
        self.unit.append(get("unit"))
        self.start.append(get("startDate"))
        self.end.append(get("endDate"))
        self.value.append(get("value"))
        self.line.append(attributes["line"])

    def of(self, rows: list[int]) -> Records:
        """These rows alone."""
        if len(rows) == len(self):
            return self
        return Records(
            [self.kind[row] for row in rows],
            [self.source_name[row] for row in rows],
            [self.details[row] for row in rows],
            [self.unit[row] for row in rows],
            [self.start[row] for row in rows],
            [self.end[row] for row in rows],
            [self.value[row] for row in rows],
            [self.line[row] for row in rows],
            {place: self.metadata[row] for place, row in enumerate(rows) if row in self.metadata},
        )

    def element(self, row: int) -> Element:
        """One row with its attributes by name."""
        said = {
            "type": self.kind[row],
            "value": self.value[row],
            "unit": self.unit[row],
            "startDate": self.start[row],
            "endDate": self.end[row],
        }
        return {name: text for name, text in said.items() if text is not None} | {"line": self.line[row]}


@dataclass(slots=True)
class Batch:
    """Records, and workouts as attributes by name with `line`, metadata and `statistics`.

    `broken` are the lines where the file is not XML: each has cost a record. `skipped` counts the elements of
    no use, by their name, and the records of a type that is not wanted.
    """

    records: Records = field(default_factory=Records)
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
        #: The record or workout that is open: its metadata, and its statistics.
        self._owner: Element | None = None
        self._line_offset = 0
        self._next_line = 1
        self._may_be_within = False
        #: Bytes that the present parser has been given.
        self._fed = 0
        self._parser = self._new_parser()

    def _new_parser(self) -> expat.XMLParserType:
        parser = expat.ParserCreate("UTF-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        return parser

    @property
    def is_between(self) -> bool:
        """Whether no record or workout is open, to which something may be added."""
        return self._owner is None

    def read(self, content: str) -> None:
        """Read whole lines."""
        found = _LINE.findall(content)
        if not any(map(_other_line, found)):
            self._add(found)
            return
        for is_other, rows in groupby(found, lambda row: bool(row[-1])):
            if is_other:
                self.parse("".join(map(_other_line, rows)).encode())
            else:
                self._add(list(rows))

    def _add(self, rows: list[tuple[str, ...]]) -> None:
        """Take records that `_LINE` has found one after the other."""
        if self._may_be_within:
            self._parse(_ANYTHING)
            self._may_be_within = False
        if self.closed or not rows:
            return
        self._owner = None
        kind, source_name, details, unit, start, end, value, metadata, _ = zip(*rows, strict=True)
        line = list(
            accumulate((said.count("\n") + 2 if said else 1 for said in metadata), initial=self._next_line)
        )
        lines = line.pop() - self._next_line
        self._next_line += lines
        self._line_offset += lines
        records = Records(
            [*kind],
            [_unescaped(text) for text in source_name],
            [_unescaped(text) for text in details],
            [_unescaped(text) if text else None for text in unit],
            [*start],
            [*end],
            [text or None for text in value],
            line,
            _metadata_of(metadata),
        )
        if not self._wanted.issuperset(kind):
            self.batch.skipped.update(each for each in kind if each not in self._wanted)
            records = records.of([row for row, each in enumerate(kind) if each in self._wanted])
        self.batch.records.extend(records)

    def parse(self, content: bytes) -> None:
        """Read whole lines, or the last one. Where they are not XML, go on with the next element that begins a line."""
        self._may_be_within = True
        self._parse(content)
        self._next_line += content.count(b"\n")

    def _parse(self, content: bytes) -> None:
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
            self._owner = {}
            if kind in self._wanted or kind is None:
                attributes["line"] = self._line_offset + self._parser.CurrentLineNumber
                self.batch.records.append(attributes)
                self.batch.records.metadata[len(self.batch.records) - 1] = self._owner
            else:
                self.batch.skipped[kind] += 1
        elif name == "MetadataEntry":
            if self._owner is not None and (key := attributes.get("key")) in METADATA:
                self._owner[key] = attributes.get("value", "")
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
        if name in ("Record", "Workout"):
            self._owner = None
        elif name == "HealthData":
            self.closed = True

    def take(self) -> Batch:
        """What was read since the last time."""
        batch, self.batch = self.batch, Batch()
        return batch


def _metadata_of(written: tuple[str, ...]) -> dict[int, dict[str, str]]:
    """Of each row that has metadata of use, the values by their keys."""
    found = {}
    for row, text in enumerate(written):
        if text:
            said = {key: _unescaped(value) for key, value in _METADATA_ENTRY.findall(text) if key in METADATA}
            if said:
                found[row] = said
    return found


def _details_of(device: str | None) -> str:
    """What a device's text says after the address, which is another in every export, and often in every record."""
    return "" if device is None else "".join(device.partition(",")[1:])


def _unescaped(text: str) -> str:
    return _without_entities(text) if "&" in text else text


@lru_cache(maxsize=4096)
def _without_entities(text: str) -> str:
    return unescape(text)


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
            reader.read(_mended(content))
            if len(reader.batch.records) >= records and reader.is_between:
                yield reader.take()
        if reader.closed:
            break
        more = stream.read(_CHUNK_BYTES)
        if not more:
            break
        rest += more
        if len(rest) > _LONGEST_TAG:
            reader.parse(_mended(rest).encode())
            rest = b""
    if not reader.closed and rest:
        reader.parse(_mended(rest).encode())
    last = reader.take()
    last.cut_at = None if reader.closed else reader.line
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


def _mended(content: bytes) -> str:
    """The same lines without what no XML may hold."""
    content = content.translate(None, _CONTROLS)
    # Of one byte, which is rare, the search is ten times as fast.
    if b"#" in content and b"&#" in content:
        content = _BAD_REFERENCE.sub(b"", content)
    if b"<WorkoutStatistics" in content:
        content = _STATISTICS.sub(_once_each, content)
    return content.decode("utf-8", "replace")


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
