"""The upload door: what is kept of a file, and what is said of one that cannot be read."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import sqlalchemy as sa

from health_pipeline.connections.users import UserRecord, ensure_user
from health_pipeline.ingestion import upload as upload_module
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import UnreadableFileError
from health_pipeline.providers.registry import all_providers
from health_pipeline.raw.index import ConflictingUploadError
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.connection import Warehouse

SAMPLES = Path(__file__).parents[2] / "data" / "samples"

LOCAL = b"timestamp,glucose,unit\n2026-03-01 08:00,100,mg/dL\n2026-03-01 08:05,102,mg/dL\n"
ABSOLUTE = b"timestamp,glucose,unit\n2026-03-01T08:00:00Z,100,mg/dL\n2026-03-01T08:05:00Z,102,mg/dL\n"

#: Content, the kind it is said to be, and what is said of it.
REFUSED: list[tuple[bytes, str | None, str]] = [
    (b"", None, "empty; export it again"),
    (b"  \r\n\n", None, "empty; export it again"),
    (b"\x89PNG\r\n\x1a\n" + bytes(200), None, "known kinds are .*libreview"),
    (b"PK\x03\x04" + bytes(100), None, "known kinds are"),
    (bytes(range(256)) * 4, None, "cannot be read|no known kind"),
    (b"a,b,c\n1,2,3\n", None, "no known kind; known are .*dexcom_clarity.*name it with the upload"),
    (b'{"steps": [1, 2]}', None, "no known kind"),
    (
        b'{"dataSourceId": "derived:com.google.weight:x", "point": []}',
        None,
        "Google Fit's .* upload Health Connect",
    ),
    (
        b"com.samsung.shealth.tracker.heart_rate,7006003,3\nstart_time,time_offset\n",
        None,
        "Samsung Health, whose format cannot be confirmed: .* upload the export",
    ),
    (b'{"BPDataList": [], "BPUnit": 0}', None, "iHealth's API, .* upload the export"),
    (b"[]", "nightscout", "."),
    (LOCAL.splitlines()[0] + b"\n", None, "."),
    (LOCAL, "oura", "oura is not a kind of file; its data is fetched over HTTP"),
    (
        LOCAL,
        "libre",
        "no kind of file 'libre'; there are .*dexcom_clarity, .*libreview, nightscout",
    ),
    (LOCAL, "libreview", "."),
]


@pytest.fixture
def ada(warehouse: Warehouse) -> UserRecord:
    with warehouse.engine.begin() as connection:
        return ensure_user(connection, "ada", "Europe/London")


@pytest.fixture
def nomad(warehouse: Warehouse) -> UserRecord:
    with warehouse.engine.begin() as connection:
        return ensure_user(connection, "nomad")


def rows(warehouse: Warehouse) -> list[Any]:
    with warehouse.engine.connect() as connection:
        return list(connection.execute(sa.text("select * from ops.raw_objects order by raw_object_id")))


def assert_nothing_stored(warehouse: Warehouse, store: RawStore) -> None:
    assert rows(warehouse) == []
    assert list(store.list()) == []


def test_a_file_is_kept_byte_for_byte_and_indexed(
    warehouse: Warehouse, store: RawStore, ada: UserRecord
) -> None:
    content = b"\xef\xbb\xbf" + LOCAL.replace(b"\n", b"\r\n")
    came = dt.datetime(2026, 3, 2, 23, 30, tzinfo=dt.UTC)
    taken = upload(warehouse, store, ada, content, received_at=came, context={"date_order": "dmy"})
    assert taken.provider.name == "glucose_csv"
    assert (taken.parsed.records_in, taken.parsed.records_loaded) == (2, 2)
    (row,) = rows(warehouse)
    assert (row.provider, row.entity, row.door) == ("glucose_csv", "readings", "upload")
    assert (row.partition_start, row.partition_end) == (came.date(), came.date())
    assert (row.received_at, row.time_zone, row.context) == (came, "Europe/London", {"date_order": "dmy"})
    assert row.content_type == "text/csv"
    assert store.get(row.object_key) == content
    again = upload(warehouse, store, ada, content)
    assert (again.receipt.created, again.receipt.raw_object_id) == (False, row.raw_object_id)
    assert len(rows(warehouse)) == 1


def test_every_sample_is_recognised_by_its_content(
    warehouse: Warehouse, store: RawStore, ada: UserRecord
) -> None:
    kinds = {name for name, provider in all_providers().items() if provider.door == "upload"}
    files = sorted(path for path in SAMPLES.glob("*/*") if path.parent.name in kinds)
    assert {path.parent.name for path in files} == kinds
    for path in files:
        taken = upload(warehouse, store, ada, path.read_bytes())
        assert taken.provider.name == path.parent.name, path.name
        assert taken.parsed.records_loaded > 0, path.name
        assert taken.parsed.quarantine.num_rows == 0, path.name
    assert {row.content_type for row in rows(warehouse) if row.provider == "nightscout"} == {
        "application/json"
    }
    assert len(rows(warehouse)) == len(files)


def test_a_file_that_cannot_be_read_says_why_and_is_not_stored(
    warehouse: Warehouse, store: RawStore, ada: UserRecord
) -> None:
    for content, kind, said in REFUSED:
        with pytest.raises(UnreadableFileError, match=said) as refused:
            upload(warehouse, store, ada, content, kind=kind)
        assert len(str(refused.value)) > 20
    assert_nothing_stored(warehouse, store)


def test_local_times_without_a_zone_ask_for_one(
    warehouse: Warehouse, store: RawStore, nomad: UserRecord
) -> None:
    with pytest.raises(UnreadableFileError, match="--timezone AREA/CITY"):
        upload(warehouse, store, nomad, LOCAL)
    with pytest.raises(UnreadableFileError, match="Mars/Phobos"):
        upload(warehouse, store, nomad, LOCAL, time_zone="Mars/Phobos")
    assert_nothing_stored(warehouse, store)
    # Times with an offset need none.
    assert upload(warehouse, store, nomad, ABSOLUTE).parsed.records_loaded == 2
    assert rows(warehouse)[0].time_zone is None


def test_a_zone_given_goes_before_the_users_and_may_not_change(
    warehouse: Warehouse, store: RawStore, ada: UserRecord
) -> None:
    taken = upload(warehouse, store, ada, LOCAL, time_zone="America/New_York")
    first = taken.parsed.tables["readings"]["recorded_at"][0].as_py()
    assert first == dt.datetime(2026, 3, 1, 13, 0, tzinfo=dt.UTC)
    assert rows(warehouse)[0].time_zone == "America/New_York"
    with pytest.raises(ConflictingUploadError, match=r"America/New_York.*Europe/London"):
        upload(warehouse, store, ada, LOCAL)
    assert len(rows(warehouse)) == 1


def test_bad_rows_do_not_keep_a_file_out(warehouse: Warehouse, store: RawStore, ada: UserRecord) -> None:
    taken = upload(
        warehouse, store, ada, LOCAL + b"2026-03-01 08:10,abc,mg/dL\nnot a date,99,mg/dL\n2026-03-01 08:"
    )
    assert taken.parsed.records_loaded == 2
    assert taken.parsed.quarantine.num_rows == 3
    assert len(rows(warehouse)) == 1


def test_a_parser_that_breaks_tells_its_kind_and_no_datum(
    warehouse: Warehouse, store: RawStore, ada: UserRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> Any:
        raise ZeroDivisionError("glucose 100 of canary")

    providers = dict(all_providers())
    providers["glucose_csv"] = replace(providers["glucose_csv"], parse=broken)
    monkeypatch.setattr(upload_module, "all_providers", lambda: MappingProxyType(providers))
    with pytest.raises(UnreadableFileError, match=r"ZeroDivisionError.*please report") as refused:
        upload(warehouse, store, ada, LOCAL, kind="glucose_csv")
    assert "canary" not in str(refused.value)
    assert refused.value.__context__ is None
    assert_nothing_stored(warehouse, store)


def test_a_large_table_is_judged_by_its_ends(
    warehouse: Warehouse, store: RawStore, ada: UserRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "_WHOLE_BYTES", 2_000)
    monkeypatch.setattr(upload_module, "_END_BYTES", 400)

    def table(days: list[str]) -> bytes:
        return "".join(["timestamp,glucose,unit\n", *(f"{day} 08:00,100,mg/dL\n" for day in days)]).encode()

    # The dates of the ends may be of May or December, those between may not.
    ends = ["05/12/2019", "06/12/2019"] * 10
    for content in (table([*ends, *["13/12/2019"] * 90, *ends]), table(["2019-12-05"] * 150)):
        assert upload(warehouse, store, ada, content).receipt.size_bytes == len(content) > 2_000
    kept = rows(warehouse)
    assert len(kept) == 2
    # People stand one after the other in a file.
    head = TWO_PEOPLE.splitlines()[0] + b"\n"
    people = [b"%d,4/13/2016,13162\n" % person for person in (1503960366, 1624580081)]
    for content, said in (
        (head + people[0] * 100 + people[1] * 100, "participant"),
        (table(["05/12/2019"] * 150), "--date-order"),
    ):
        with pytest.raises(UnreadableFileError, match=said):
            upload(warehouse, store, ada, content)
    assert rows(warehouse) == kept


TWO_PEOPLE = (
    b"Id,ActivityDate,TotalSteps\n"
    b"1503960366,4/12/2016,13162\n1503960366,4/13/2016,10735\n1624580081,4/12/2016,8163\n"
)


def test_what_a_kind_takes_besides_the_file(warehouse: Warehouse, store: RawStore, ada: UserRecord) -> None:
    with pytest.raises(UnreadableFileError, match="participant"):
        upload(warehouse, store, ada, TWO_PEOPLE)
    with pytest.raises(
        UnreadableFileError, match=r"fitabase by unit; what there is: participant: .*date_order: "
    ):
        upload(warehouse, store, ada, TWO_PEOPLE, context={"participant": "1503960366", "unit": "mg/dL"})
    assert_nothing_stored(warehouse, store)
    context = {"participant": "1503960366", "date_order": "mdy"}
    taken = upload(warehouse, store, ada, TWO_PEOPLE, context=context)
    assert (taken.parsed.records_loaded, taken.provider.name) == (2, "fitabase")
    assert rows(warehouse)[0].context == context


def test_a_kind_that_is_fetched_elsewhere_may_be_named_for_its_files(
    warehouse: Warehouse, store: RawStore, ada: UserRecord
) -> None:
    content = (SAMPLES / "fitbit" / "sleep.json").read_bytes()
    assert upload(warehouse, store, ada, content, kind="fitbit").provider.name == "fitbit"
