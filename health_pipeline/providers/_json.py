"""JSON records to Arrow tables, column by column, with the records that do not fit told apart by name.

A provider declares its columns (`Column`); `read_records` makes the table of a whole page. A clean page costs
one conversion a column. Where a column refuses, it is halved until the bad records are found: they go to
quarantine with the field named, and the good ones beside them are loaded as if the bad had never been there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._arrow import text_column
from health_pipeline.providers.base import QUARANTINE_SCHEMA

UTC_TIMESTAMP = pa.timestamp("us", "UTC")
NUMBERS = pa.list_(pa.float64())

#: Longest original kept in quarantine, in bytes; the raw object has the whole of it.
MAX_ORIGINAL_BYTES = 4096

_REFUSALS = (pa.ArrowException, ArithmeticError, TypeError, ValueError)
_OFFSET = r"(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"
_MAX_NAME_LENGTH = 80
#: By exact type: to Python, and to Arrow in a list of numbers, True is a number.
_NUMBER_TYPES = {int, float, type(None)}


@dataclass(frozen=True, slots=True)
class Column:
    """A value of a record and the column it becomes.

    `path` is the place in the record, dots between the levels (`contributors.deep_sleep`). `name` is the
    column, by default the path with underscores. `offset` names a second column for the UTC offset, in
    minutes, that the timestamp was printed with. A `required` value may be neither absent nor null, unless
    the whole object it lies in is; an `always` required one not even then. `convert` takes the place of the
    type's own conversion: it raises ValueError or TypeError for values it refuses, each judged for itself.
    """

    path: str
    type: pa.DataType
    name: str = ""
    required: bool = False
    offset: str | None = None
    convert: Callable[[Sequence[Any]], pa.Array] | None = None
    always: bool = False

    @property
    def column(self) -> str:
        return self.name or self.path.replace(".", "_")

    def fields(self) -> list[pa.Field]:
        nullable = not self.always and (not self.required or "." in self.path)
        fields = [pa.field(self.column, self.type, nullable=nullable)]
        if self.offset is not None:
            fields.append(pa.field(self.offset, pa.int16(), nullable=nullable))
        return fields


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that does not fit. `index` is its place in the page, `field` the path that is wrong or absent.

    `field` is None where the record is not an object at all.
    """

    index: int
    reason: Literal["missing_field", "wrong_type"]
    field: str | None


@dataclass(frozen=True, slots=True)
class Records:
    """The good records of a page as a table, in page order, and the others."""

    table: pa.Table
    refused: list[Refused]


class MalformedBodyError(ValueError):
    """A body that is not JSON of the expected outline. The message says what is wrong, without content."""


def load_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`. Raises MalformedBodyError where there is none."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise MalformedBodyError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise MalformedBodyError("the body is not a JSON object")
    return body


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    return pa.schema([field for column in columns for field in column.fields()])


def read_records(records: Sequence[Any], columns: Sequence[Column]) -> Records:
    """Records (decoded JSON) as a table of `schema_of(columns)`; each is either a row of it or refused."""
    try:
        arrays = [array for column in columns for array in _read_column(records, column)]
        return Records(pa.table(arrays, schema=schema_of(columns)), [])
    except _REFUSALS:
        refused = _refused_records(records, columns)
    if not refused:
        raise AssertionError("a page was refused as a whole, but none of its records")
    good = np.ones(len(records), dtype=bool)
    good[[record.index for record in refused]] = False
    rest = read_records(list(compress(records, good)), columns)
    return Records(rest.table, refused)


def unknown_fields(records: Iterable[Any], known: Iterable[str]) -> list[str]:
    """Paths of fields that are in the records and not in `known`, sorted.

    A known path stands for its parents too, and for all below it where nothing below it is known.
    """
    tree: dict[str, Any] = {}
    for path in known:
        node = tree
        for step in path.split("."):
            node = node.setdefault(step, {})
    return sorted(_unknown(records, tree, ""))


def quarantine_table(entity: str, rows: Iterable[tuple[str, str | None, str, str]]) -> pa.Table:
    """Rows of (reason, field, location, original) as a quarantine table."""
    found = list(rows)
    columns = zip(*found, strict=True) if found else ((),) * 4
    return pa.table(
        [text_column([entity] * len(found)), *map(text_column, columns)], schema=QUARANTINE_SCHEMA
    )


def original_json(record: Any) -> str:
    """A refused record as JSON text, cut to MAX_ORIGINAL_BYTES."""
    try:
        return original_text(orjson.dumps(record))
    except orjson.JSONEncodeError:
        return "(nested too deeply to be shown)"


def original_text(content: bytes) -> str:
    """Refused bytes as text, cut to MAX_ORIGINAL_BYTES. NUL, which Postgres text cannot hold, is replaced."""
    text = content[:MAX_ORIGINAL_BYTES].decode(errors="replace").replace("\0", "\ufffd")
    return text if len(content) <= MAX_ORIGINAL_BYTES else f"{text}…"


def numbers(values: Sequence[Any], number_type: pa.DataType) -> pa.Array:
    """JSON numbers as a column. Booleans, digits in strings and cut fractions are refused, not converted."""
    kinds = set(map(type, values))
    if kinds - _NUMBER_TYPES:
        raise TypeError("not numbers")
    fractions = float in kinds and pa.types.is_integer(number_type)
    if fractions and any(type(value) is float and not value.is_integer() for value in values):
        raise ValueError("not whole numbers")
    return pa.array(values, number_type)


def strings(values: Sequence[Any]) -> pa.Array:
    array = pa.array(values, pa.string())
    if pc.any(pc.match_substring(array, "\0")).as_py():
        raise ValueError("Postgres text cannot hold NUL")
    return array


def dates(values: Sequence[Any]) -> pa.Array:
    """`2026-11-21` as date32."""
    return pa.array(values, pa.string()).cast(pa.date32())


def instants(values: Sequence[Any]) -> pa.Array:
    """ISO 8601 date-times as UTC microseconds. One without an offset is refused: its instant is unknown."""
    array = pa.array(values, pa.string()).cast(UTC_TIMESTAMP)
    year = pc.min(pc.year(array)).as_py()
    if year is not None and year < 1:
        raise ValueError("a year before 1")
    return array


def utc_offsets(values: Sequence[Any], moments: pa.Array) -> pa.Array:
    """The UTC offset, in minutes, each date-time is printed with. `moments` is `instants(values)`."""
    clock = pc.replace_substring_regex(pa.array(values, pa.string()), _OFFSET, "")
    local = clock.cast(pa.timestamp("us")).cast(pa.int64())
    return pc.divide(pc.subtract(local, moments.cast(pa.int64())), 60_000_000).cast(pa.int16())


def number_lists(values: Sequence[Any]) -> pa.Array:
    """Arrays of numbers and nulls as list<float64>."""
    if set(map(type, values)) - {list, type(None)}:
        raise TypeError("not arrays")
    items = chain.from_iterable(value for value in values if value is not None)
    if set(map(type, items)) - _NUMBER_TYPES:
        raise TypeError("not arrays of numbers")
    return pa.array(values, NUMBERS)


def _read_column(records: Sequence[Any], column: Column) -> list[pa.Array]:
    parents: Sequence[Any] = records
    *above, leaf = column.path.split(".")
    for step in above:
        parents = [None if parent is None else dict.get(parent, step) for parent in parents]
    if above:
        values = [None if parent is None else dict.get(parent, leaf) for parent in parents]
    else:
        try:
            # Twice as fast, where every record has the field.
            values = list(map(itemgetter(leaf), parents))
        except KeyError:
            values = [dict.get(record, leaf) for record in parents]
    arrays = _convert(values, column)
    excused = parents.count(None) if above and not column.always else 0
    if (column.required or column.always) and arrays[0].null_count > excused:
        raise ValueError(f"{column.path} is missing")
    return arrays


def _convert(values: Sequence[Any], column: Column) -> list[pa.Array]:
    kind = column.type
    if column.convert is not None:
        return [column.convert(values)]
    if kind == UTC_TIMESTAMP:
        moments = instants(values)
        return [moments] if column.offset is None else [moments, utc_offsets(values, moments)]
    if kind == pa.string():
        return [strings(values)]
    if kind == pa.date32():
        return [dates(values)]
    if kind == pa.bool_():
        return [pa.array(values, kind)]
    if kind == NUMBERS:
        return [number_lists(values)]
    return [numbers(values, kind)]


def _refused_records(records: Sequence[Any], columns: Sequence[Column]) -> list[Refused]:
    """The records that do not fit, in page order, each with the first column it fails at."""
    refused: dict[int, Refused] = {}
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            refused[index] = Refused(index, "wrong_type", None)
    for column in columns:
        places = []
        values = []
        for index, record in enumerate(records):
            if index in refused:
                continue
            value = _value_or_refusal(record, column)
            if isinstance(value, tuple):
                refused[index] = Refused(index, *value)
            else:
                places.append(index)
                values.append(value)
        for place in _unconvertible(values, partial(_convert, column=column)):
            refused[places[place]] = Refused(places[place], "wrong_type", column.path)
    return [refused[index] for index in sorted(refused)]


def _value_or_refusal(record: dict[str, Any], column: Column) -> Any:
    """The value at the column's path, or why there is none: a (reason, field) tuple, which JSON has not."""
    value: Any = record
    steps = column.path.split(".")
    for depth, step in enumerate(steps):
        if value is None:
            return ("missing_field", column.path) if column.always else None
        if not isinstance(value, dict):
            return "wrong_type", ".".join(steps[:depth])
        value = value.get(step)
    if value is None and (column.required or column.always):
        return "missing_field", column.path
    return value


def _unconvertible(
    values: Sequence[Any], convert: Callable[[Sequence[Any]], Any], start: int = 0
) -> list[int]:
    """Places of the values `convert` refuses, by halving."""
    if not values:
        return []
    try:
        convert(values)
        return []
    except _REFUSALS:
        if len(values) == 1:
            return [start]
    middle = len(values) // 2
    return [
        *_unconvertible(values[:middle], convert, start),
        *_unconvertible(values[middle:], convert, start + middle),
    ]


def _unknown(values: Iterable[Any], tree: dict[str, Any], prefix: str) -> set[str]:
    objects = list(values)
    if set(map(type, objects)) != {dict}:
        objects = [value for value in objects if isinstance(value, dict)]
    names: set[str] = set().union(*objects)
    found = {f"{prefix}{_printable(name)}" for name in names - tree.keys()}
    for name, below in tree.items():
        if below and name in names:
            found |= _unknown((value.get(name) for value in objects), below, f"{prefix}{name}.")
    return found


def _printable(name: str) -> str:
    text = "".join(character if character.isprintable() else "\ufffd" for character in name)
    return text if len(text) <= _MAX_NAME_LENGTH else f"{text[:_MAX_NAME_LENGTH]}…"
