"""The index of the raw store: one row an effective receipt, in the order of receipt."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa

from health_pipeline.connections.users import ensure_user
from health_pipeline.raw.folder import FolderRawStore
from health_pipeline.raw.index import (
    ConflictingUploadError,
    Delivery,
    Receipt,
    count_received,
    receive,
    subject_id_of,
)
from health_pipeline.raw.store import PutResult, RawStoreUnavailableError
from health_pipeline.warehouse.connection import Warehouse

DAY = dt.date(2026, 11, 20)
NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


class Index:
    """A warehouse with two users, a store, and ways to deliver to them."""

    def __init__(self, warehouse: Warehouse, store: FolderRawStore) -> None:
        self.engine, self.store = warehouse.engine, store
        with self.engine.begin() as connection:
            self.ada = ensure_user(connection, "ada").user_id
            self.ben = ensure_user(connection, "ben").user_id

    def delivery(self, content: bytes, hours: int = 0, **rest: Any) -> Delivery:
        values: dict[str, Any] = {
            "provider": "oura",
            "entity": "sleep",
            "user_id": self.ada,
            "door": "fetch",
            "content": content,
            "received_at": NOON + hours * HOUR,
            "partition_start": DAY,
            "partition_end": DAY,
            "content_type": "application/json",
        }
        return Delivery(**{**values, **rest})

    def upload(self, content: bytes, day: int, time_zone: str | None = "Europe/London") -> Receipt:
        """A file that came `day` days after the first."""
        came = DAY + dt.timedelta(days=day)
        rest = {"provider": "libreview", "entity": "readings", "door": "upload", "content_type": "text/csv"}
        return self.take(
            content, day * 24, partition_start=came, partition_end=came, time_zone=time_zone, **rest
        )

    def take(self, content: bytes, hours: int = 0, **rest: Any) -> Receipt:
        return receive(self.engine, self.store, [self.delivery(content, hours, **rest)])[0]

    def rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text("select * from ops.raw_objects order by raw_object_id")))

    def objects(self) -> list[str]:
        return [info.key for info in self.store.list()]


@pytest.fixture
def index(warehouse: Warehouse, tmp_path: Path) -> Iterator[Index]:
    yield Index(warehouse, FolderRawStore(tmp_path / "raw"))


def test_a_receipt_is_an_object_and_a_row_about_it(index: Index) -> None:
    content = b'{"data": []}' * 50
    receipt = index.take(
        content, time_zone="Europe/London", context={"cursor": "2"}, partition_end=DAY + dt.timedelta(days=2)
    )
    (row,) = index.rows()
    assert receipt == Receipt(row.raw_object_id, True, hashlib.sha256(content).hexdigest(), len(content))
    assert (row.provider, row.entity, row.door) == ("oura", "sleep", "fetch")
    assert (row.received_at, row.sha256, row.size_bytes) == (NOON, receipt.sha256, len(content))
    assert (row.partition_start, row.partition_end) == (DAY, DAY + dt.timedelta(days=2))
    assert (row.data_start_date, row.data_end_date) == (None, None)
    assert (row.time_zone, row.context) == ("Europe/London", {"cursor": "2"})
    assert row.object_key.endswith(".json.zst")
    assert index.objects() == [row.object_key]
    assert index.store.get(row.object_key) == content
    (info,) = index.store.list()
    assert row.stored_bytes == info.stored_bytes < len(content)


def test_the_same_bytes_twice_are_one_object_and_one_row(index: Index) -> None:
    first = index.take(b"night")
    again = index.take(b"night", hours=5)
    assert again == replace(first, created=False)
    together = receive(index.engine, index.store, [index.delivery(b"night", 6), index.delivery(b"night", 6)])
    assert [receipt.created for receipt in together] == [False, False]
    assert len(index.rows()) == len(index.objects()) == 1
    assert index.rows()[0].received_at == NOON


def test_the_same_bytes_of_others_are_theirs(index: Index) -> None:
    index.take(b"nothing")
    for other in ({"user_id": index.ben}, {"entity": "workout"}, {"provider": "whoop"}):
        assert index.take(b"nothing", hours=1, **other).created
    assert len(index.rows()) == len(index.objects()) == 4
    assert len({row.subject_id for row in index.rows()}) == 2


def test_going_back_to_an_earlier_version_is_a_third_receipt(index: Index) -> None:
    first, second = index.take(b"A"), index.take(b"B", hours=1)
    third = index.take(b"A", hours=2)
    assert third.created
    assert [row.sha256 for row in index.rows()] == [first.sha256, second.sha256, first.sha256]
    assert [row.received_at for row in index.rows()] == [NOON + hours * HOUR for hours in range(3)]
    assert len(index.objects()) == 2
    assert {row.object_key for row in index.rows()} == set(index.objects())
    # From here on the newest says what is known already.
    assert index.take(b"A", hours=3) == replace(third, created=False)
    assert index.take(b"B", hours=4).created
    assert len(index.rows()) == 4


def test_news_of_other_days_or_of_the_same_answer_supersede_nothing(index: Index) -> None:
    week = dt.timedelta(days=7)
    page_1, page_2 = receive(
        index.engine, index.store, [index.delivery(b"page 1"), index.delivery(b"page 2")]
    )
    index.take(b"next week", hours=1, partition_start=DAY + week, partition_end=DAY + week)
    index.take(b"other entity", hours=1, entity="workout")
    index.take(b"other person", hours=1, user_id=index.ben)
    assert index.take(b"page 1", hours=2) == replace(page_1, created=False)
    assert index.take(b"page 2", hours=2) == replace(page_2, created=False)
    assert len(index.rows()) == 5


def test_an_older_answer_that_comes_late_supersedes_nothing(index: Index) -> None:
    newest = index.take(b"A", hours=2)
    assert index.take(b"B", hours=1).created
    assert index.take(b"A", hours=3) == replace(newest, created=False)


def test_a_file_uploaded_again_after_a_corrected_one_counts_again(index: Index) -> None:
    """A file's partition is the day it came: the correction has another, and is about the same days."""
    assert index.upload(b"first", day=0).created
    assert index.upload(b"corrected", day=1).created
    assert index.upload(b"first", day=2).created
    assert not index.upload(b"first", day=3).created
    assert [row.partition_start.day for row in index.rows()] == [20, 21, 22]


def test_a_file_uploaded_again_after_one_of_other_days_does_not(index: Index) -> None:
    for number, (content, month) in enumerate([(b"october", 10), (b"november", 11)]):
        receipt = index.upload(content, day=number)
        days = {
            "start": dt.date(2026, month, 1),
            "end": dt.date(2026, month, 20),
            "id": receipt.raw_object_id,
        }
        with index.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "update ops.raw_objects set data_start_date = :start, data_end_date = :end "
                    "where raw_object_id = :id"
                ),
                days,
            )
    assert not index.upload(b"october", day=5).created
    assert len(index.rows()) == 2


def test_eight_threads_with_the_same_bytes_make_one_row(index: Index) -> None:
    barrier = Barrier(8)

    def take(number: int) -> Receipt:
        barrier.wait()
        return index.take(b"night", hours=number % 3)

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(take, range(8)))
    assert [receipt.created for receipt in receipts].count(True) == 1
    assert len({receipt.raw_object_id for receipt in receipts}) == 1
    assert len(index.rows()) == len(index.objects()) == 1


def test_writers_of_several_people_do_not_wait_for_each_other_for_ever(index: Index) -> None:
    together = Barrier(2)

    def take(users: tuple[int, int]) -> int:
        for number in range(15):
            together.wait(timeout=10)
            deliveries = [index.delivery(b"%d" % number, user_id=user) for user in users]
            receive(index.engine, index.store, deliveries)
        return number

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(take, [(index.ada, index.ben), (index.ben, index.ada)])) == [14, 14]
    assert len(index.rows()) == 30


@pytest.mark.parametrize("zone", ["America/New_York", "UTC"])
def test_a_file_under_another_zone_is_refused_with_the_way_out(index: Index, zone: str) -> None:
    index.upload(b"file", day=0)
    with pytest.raises(ConflictingUploadError) as refused:
        index.upload(b"file", day=1, time_zone=zone)
    message = str(refused.value)
    assert "time zone Europe/London" in message
    assert zone in message
    assert "Upload it with the same time zone" in message
    assert len(index.rows()) == len(index.objects()) == 1
    assert not index.upload(b"file", day=1).created


def test_a_zone_said_later_is_taken_and_one_left_out_stays(index: Index) -> None:
    """Without a zone only times with an offset were read: a zone changes none of them, and adds the others."""
    assert index.upload(b"file", day=0, time_zone=None).created
    assert not index.upload(b"file", day=1, time_zone=None).created
    assert index.upload(b"file", day=2, time_zone="Europe/London").created
    assert not index.upload(b"file", day=3, time_zone="Europe/London").created
    assert not index.upload(b"file", day=4, time_zone=None).created
    assert [row.time_zone for row in index.rows()] == [None, "Europe/London"]
    assert len(index.objects()) == 1


def test_without_its_object_there_is_no_row(index: Index) -> None:
    class Full(FolderRawStore):
        def put(self, key: str, content: bytes) -> PutResult:
            if content == b"second":
                raise RawStoreUnavailableError("the disk is full")
            return super().put(key, content)

    deliveries = [index.delivery(content) for content in (b"first", b"second", b"third")]
    with pytest.raises(RawStoreUnavailableError, match="the disk is full"):
        receive(index.engine, Full(index.store.root), deliveries)
    assert index.rows() == []
    assert len(index.objects()) == 1
    # The next try finds the first object there, and a row comes for each.
    assert [receipt.created for receipt in receive(index.engine, index.store, deliveries)] == [True] * 3
    assert [row.object_key in index.objects() for row in index.rows()] == [True] * 3
    assert len(index.objects()) == 3


def test_an_object_without_its_row_is_received_again(index: Index) -> None:
    """The database refuses the row after the object was stored."""
    with pytest.raises(sa.exc.IntegrityError):
        index.take(b"night", door="window")
    assert index.rows() == []
    (orphan,) = index.objects()
    assert index.take(b"night").created
    assert [row.object_key for row in index.rows()] == [orphan]
    assert index.store.get(orphan) == b"night"


def test_subjects_are_random_and_one_a_user(index: Index) -> None:
    with ThreadPoolExecutor(6) as pool:

        def ask(user_id: int) -> uuid.UUID:
            with index.engine.begin() as connection:
                return subject_id_of(connection, user_id)

        found = list(pool.map(ask, [index.ada] * 6))
        other = ask(index.ben)
    assert len(set(found)) == 1
    assert other != found[0]
    assert found[0].version == other.version == 4


def test_received_objects_are_counted_by_provider_and_days(index: Index) -> None:
    index.take(b"12345")
    index.take(b"123", partition_start=DAY - dt.timedelta(days=3), partition_end=DAY)
    index.take(
        b"1",
        provider="whoop",
        partition_start=DAY + dt.timedelta(days=1),
        partition_end=DAY + dt.timedelta(days=1),
    )
    assert count_received(index.engine, DAY, DAY) == {"oura": (2, 8)}
    assert count_received(index.engine, DAY - dt.timedelta(days=2), DAY - dt.timedelta(days=1)) == {
        "oura": (1, 3)
    }
    assert count_received(index.engine, DAY, DAY + dt.timedelta(days=1)) == {"oura": (2, 8), "whoop": (1, 1)}
    assert count_received(index.engine, DAY + dt.timedelta(days=9), DAY + dt.timedelta(days=9)) == {}
