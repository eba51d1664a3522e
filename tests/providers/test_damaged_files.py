"""Files of every kind with their bytes damaged: read as far as they go, or refused in words. No crash, no hang, and
every record that was seen is loaded, skipped or quarantined (which `Parsed` refuses to be made without)."""

from __future__ import annotations

import datetime as dt
import io
from functools import cache
from pathlib import Path

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.providers.base import Parsed, Provider, RawDocument, RawFile, UnreadableFileError
from health_pipeline.providers.registry import all_providers, recognise

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
RECEIVED = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
KINDS = {name: provider for name, provider in all_providers().items() if provider.sniff is not None}
#: What the samples of a kind need said; the answers of APIs need nothing.
CONTEXT: dict[str, dict[str, str]] = {"fitbit": {"date": "2026-08-01"}}
WORKBOOK = "workbook of dexcom_clarity"


@cache
def content_of(name: str) -> bytes:
    if name != WORKBOOK:
        return (SAMPLES / name).read_bytes()
    book, out = openpyxl.Workbook(write_only=True), io.BytesIO()
    sheet = book.create_sheet()
    for line in (SAMPLES / "dexcom_clarity" / "clarity_mmol_l.csv").read_text("utf-8-sig").splitlines()[:60]:
        sheet.append(line.split(","))
    book.save(out)
    return out.getvalue()


FILES = [
    *(f"{kind}/{path.name}" for kind in KINDS for path in sorted((SAMPLES / kind).glob("*"))),
    WORKBOOK,
]
#: Where a damage lies, how long it is, what it is, and bytes for it.
DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 10_000_000),
        st.integers(0, 400),
        st.sampled_from(["write", "insert", "remove", "repeat", "cut"]),
        st.binary(max_size=12)
        | st.sampled_from([b",", b'"', b"\n", b"{", b"]", b"<", b"\0", b"9" * 400, b"-1"]),
    ),
    min_size=1,
    max_size=5,
)


def damaged(content: bytes, damages: list[tuple[int, int, str, bytes]]) -> bytes:
    found = bytearray(content)
    for where, length, how, new in damages:
        first = where % (len(found) + 1)
        if how == "write":
            found[first : first + len(new)] = new
        elif how == "insert":
            found[first:first] = new
        elif how == "remove":
            del found[first : first + length]
        elif how == "repeat":
            found[first:first] = found[first : first + length]
        else:
            del found[first:]
    return bytes(found)


def read(provider: Provider, content: bytes) -> list[Parsed]:
    entity, context = provider.entities[0].name, CONTEXT.get(provider.name, {})
    if provider.parse_stream is None:
        return [provider.parse(RawDocument(entity, content, RECEIVED, "Europe/Berlin", context))]
    file = RawFile(entity, io.BytesIO(content), RECEIVED, "Europe/Berlin", context)
    return list(provider.parse_stream(file))


def kind_of(name: str) -> Provider:
    return KINDS["dexcom_clarity" if name == WORKBOOK else name.split("/")[0]]


def check(name: str, damages: list[tuple[int, int, str, bytes]]) -> None:
    kind, content = kind_of(name), damaged(content_of(name), damages)
    try:
        recognise(content[: 64 * 1024])
    except UnreadableFileError as error:
        assert len(str(error)) > 20
    try:
        parts = read(kind, content)
    except UnreadableFileError as error:
        assert len(str(error)) > 20
        return
    for part in parts:
        for table_name, table in part.tables.items():
            assert table.schema == kind.entity(table_name).schema
            table.validate(full=True)
        assert part.quarantine["reason"].null_count == part.quarantine["location"].null_count == 0


def test_there_is_a_file_of_every_kind() -> None:
    assert {name.split("/")[0] for name in FILES} - {WORKBOOK} == set(KINDS)
    assert [
        name
        for name in FILES
        if not sum(part.records_loaded for part in read(kind_of(name), content_of(name)))
    ] == []
    assert recognise(content_of(WORKBOOK)).name == "dexcom_clarity"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(damages=DAMAGE)
def test_a_damaged_file_is_read_or_refused(name: str, damages: list[tuple[int, int, str, bytes]]) -> None:
    check(name, damages)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(damages=DAMAGE)
def test_many_damaged_files(name: str, damages: list[tuple[int, int, str, bytes]]) -> None:
    check(name, damages)
