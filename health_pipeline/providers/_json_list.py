"""Lists of objects out of JSON files: an array, an envelope around one, or one object a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from health_pipeline.providers._delimited import to_utf8
from health_pipeline.providers.base import UnreadableFileError

_BLANK = b" \t\r\n\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Element:
    """One item of the list. `line` counts from 1; `refused` says why it is not an object, None if it is."""

    line: int
    location: str
    value: Mapping[str, Any]
    refused: str | None = None


def looks_like_json(content: bytes) -> bool:
    """Whether a file starts as a JSON array or object, in UTF-8 or UTF-16."""
    return content[:256].replace(b"\0", b"").lstrip(_BLANK + b"\xff\xfe")[:1] in (b"[", b"{")


def read_elements(content: bytes, envelopes: Sequence[str], kind: str) -> list[Element]:
    """The objects of a file: `[…]`, `{"<envelope>": […]}`, or NDJSON, whose bad lines are kept as refused.

    UnreadableFileError: empty or binary, JSON that breaks off, no list in it, an empty list.
    """
    data = to_utf8(content)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if not data.lstrip().startswith(b"{"):
            raise UnreadableFileError(
                f"the {kind} JSON breaks off or is damaged at character {error.pos}; download it again"
            ) from error
        return _read_lines(data, kind)
    path = "$"
    if isinstance(document, dict):
        name = next((name for name in envelopes if isinstance(document.get(name), list)), None)
        if name is None and "\n" not in data.decode().strip() and document and not _nested(document):
            return [Element(1, "line 1", document)]
        if name is None:
            raise UnreadableFileError(
                f"the JSON holds no list of {kind} records; expected an array or one under "
                + " or ".join(f'"{envelope}"' for envelope in envelopes)
            )
        path, document = f"$.{name}", document[name]
    if not isinstance(document, list) or not document:
        raise UnreadableFileError(f"the {kind} JSON is an empty list; download a longer period")
    return [
        Element(number + 1, f"{path}[{number}]", item)
        if isinstance(item, dict)
        else Element(number + 1, f"{path}[{number}]", {}, "not_an_object")
        for number, item in enumerate(document)
    ]


def text_of(value: object) -> str:
    """A JSON scalar as a file of text would write it; nothing for null, booleans, lists and objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _nested(document: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict | list) for value in document.values())


def _read_lines(data: bytes, kind: str) -> list[Element]:
    elements = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            item = orjson.loads(line)
        except orjson.JSONDecodeError:
            item = None
        refused = None if isinstance(item, dict) else "not_an_object" if item else "unparsable_json"
        elements.append(Element(number, f"line {number}", item if isinstance(item, dict) else {}, refused))
    if all(element.refused for element in elements):
        raise UnreadableFileError(
            f"the {kind} JSON breaks off or is damaged, and is not one object a line; download it again"
        )
    return elements
