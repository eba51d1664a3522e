"""The watched folder and the watched S3 prefix: one test body for both."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from health_pipeline.ingestion.inbox import (
    FolderInbox,
    Inbox,
    S3Inbox,
    inbox_fingerprint,
    open_inbox,
    receive_new_files,
    unseen_files,
)
from health_pipeline.raw.store import PutResult, RawStore, RawStoreUnavailableError
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

CSV = b"timestamp,glucose,unit\n2026-03-01T08:00:00Z,100,mg/dL\n"
OTHER = CSV + b"2026-03-01T08:05:00Z,101,mg/dL\n"


class Place(ABC):
    """Where people drop files."""

    inbox: Inbox

    @abstractmethod
    def put(self, location: str, content: bytes) -> None: ...

    @abstractmethod
    def remove(self, location: str) -> None: ...


class Folder(Place):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.inbox = open_inbox(str(root))
        assert isinstance(self.inbox, FolderInbox)
        self._changes = 0

    def put(self, location: str, content: bytes) -> None:
        path = self.root / location
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        # A clock that ticks between two changes, however quick the test is.
        self._changes += 1
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + self._changes))

    def remove(self, location: str) -> None:
        (self.root / location).unlink()


class Bucket(Place):
    def __init__(self, name: str) -> None:
        import boto3

        self.client: Any = boto3.client("s3")
        self.client.create_bucket(Bucket=name)
        self.bucket = name
        self.inbox = open_inbox(f"s3://{name}/in/box/")
        assert isinstance(self.inbox, S3Inbox)
        self.client.put_object(Bucket=name, Key="elsewhere/ada/glucose.csv", Body=CSV)
        self._put: set[str] = set()

    def put(self, location: str, content: bytes) -> None:
        if location in self._put:
            # S3 tells the time of a change to the second.
            time.sleep(1.05)
        self._put.add(location)
        self.client.put_object(Bucket=self.bucket, Key=f"in/box/{location}", Body=content)

    def remove(self, location: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"in/box/{location}")


@pytest.fixture(params=["folder", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Place:
    if request.param == "folder":
        return Folder(tmp_path / "in box")
    for name, value in request.getfixturevalue("seaweed").environment.items():
        monkeypatch.setenv(name, value)
    return Bucket(f"inbox-{os.urandom(4).hex()}")


def seen(warehouse: Warehouse) -> dict[str, tuple[str, str | None]]:
    """State and message of the newest look at each file."""
    with warehouse.engine.connect() as connection:
        rows = connection.execute(
            sa.text("select location, state, message from ops.inbox_files order by seen_at")
        )
        return {row.location: (row.state, row.message) for row in rows}


def objects(warehouse: Warehouse) -> list[Any]:
    with warehouse.engine.connect() as connection:
        return list(
            connection.execute(
                sa.text(
                    "select users.handle, raw.* from ops.raw_objects as raw join ops.subjects using (subject_id) "
                    "join ops.users using (user_id) order by raw_object_id"
                )
            )
        )


def look(warehouse: Warehouse, store: RawStore, place: Place) -> tuple[int, int]:
    report = receive_new_files(warehouse, store, place.inbox)
    return report.received, report.rejected


def test_a_file_is_taken_once_for_the_user_of_its_folder(
    warehouse: Warehouse, store: RawStore, place: Place
) -> None:
    assert look(warehouse, store, place) == (0, 0)
    place.put("ada/glucose.csv", CSV)
    place.put("ben/2026/march/glucose file.csv", OTHER)
    assert len(unseen_files(warehouse.engine, place.inbox)) == 2
    assert look(warehouse, store, place) == (2, 0)
    taken = objects(warehouse)
    assert {(row.handle, store.get(row.object_key)) for row in taken} == {("ada", CSV), ("ben", OTHER)}
    assert {row.door for row in taken} == {"upload"}
    assert unseen_files(warehouse.engine, place.inbox) == []
    assert look(warehouse, store, place) == (0, 0)
    # The file stays where it is.
    with place.inbox.local("ada/glucose.csv") as path:
        assert path.read_bytes() == CSV


def test_a_file_that_changed_is_taken_again_and_back_again(
    warehouse: Warehouse, store: RawStore, place: Place
) -> None:
    for content in (CSV, OTHER, CSV):
        place.put("ada/glucose.csv", content)
        assert look(warehouse, store, place) == (1, 0)
    assert [store.get(row.object_key) for row in objects(warehouse)] == [CSV, OTHER, CSV]
    assert look(warehouse, store, place) == (0, 0)


def test_a_copy_is_looked_at_and_adds_nothing(warehouse: Warehouse, store: RawStore, place: Place) -> None:
    place.put("ada/glucose.csv", CSV)
    place.put("ada/glucose (1).csv", CSV)
    assert look(warehouse, store, place) == (2, 0)
    assert len(objects(warehouse)) == 1
    with warehouse.engine.connect() as connection:
        ids = connection.execute(sa.text("select raw_object_id from ops.inbox_files")).scalars().all()
    assert ids == [objects(warehouse)[0].raw_object_id] * 2


def test_a_refused_file_is_told_once_and_stops_no_other(
    warehouse: Warehouse, store: RawStore, place: Place
) -> None:
    bad = {
        "ada/empty.csv": (b"", "empty"),
        "ada/holiday.png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read"),
        "ada/notes.txt": (b"buy milk", "no known kind"),
        "ada/local.csv": (CSV.replace(b"T08:00:00Z", b" 08:00"), "--timezone"),
        "Ada Okafor/glucose.csv": (CSV, "lower-case letters"),
        "glucose.csv": (CSV, "folder of the inbox named like the user"),
    }
    for location, (content, _) in bad.items():
        place.put(location, content)
    place.put("zoe/glucose.csv", CSV)
    assert look(warehouse, store, place) == (1, len(bad))
    assert [row.handle for row in objects(warehouse)] == ["zoe"]
    found = seen(warehouse)
    assert found.pop("zoe/glucose.csv") == ("received", None)
    assert found.keys() == bad.keys()
    for location, (_, words) in bad.items():
        state, message = found[location]
        assert state == "rejected"
        assert words in str(message), location
    assert look(warehouse, store, place) == (0, 0)
    assert unseen_files(warehouse.engine, place.inbox) == []
    # Mended, it is a new file.
    place.put("ada/empty.csv", CSV)
    assert look(warehouse, store, place) == (1, 0)
    assert seen(warehouse)["ada/empty.csv"] == ("received", None)


def test_hidden_files_and_those_on_their_way_wait(
    warehouse: Warehouse, store: RawStore, place: Place
) -> None:
    for name in (".DS_Store", "ada/.glucose.csv", "ada/.trash/glucose.csv", ".git/ada/glucose.csv"):
        place.put(name, CSV)
    for suffix in ("part", "tmp", "crdownload"):
        place.put(f"ada/glucose.csv.{suffix}", CSV)
    assert look(warehouse, store, place) == (0, 0)
    assert seen(warehouse) == {}
    place.put("ada/glucose.csv", CSV)
    assert look(warehouse, store, place) == (1, 0)


def test_a_file_that_is_gone_when_its_turn_comes_stops_no_other(
    warehouse: Warehouse, store: RawStore, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put("ada/glucose.csv", CSV)
    place.put("ben/glucose.csv", OTHER)
    local = place.inbox.local

    class Vanishing:
        entries = place.inbox.entries

        def local(self, location: str) -> AbstractContextManager[Path]:
            if location.startswith("ada"):
                place.remove(location)
            return local(location)

    with caplog.at_level(logging.WARNING):
        report = receive_new_files(warehouse, store, Vanishing())
    assert (report.received, report.rejected) == (1, 0)
    assert seen(warehouse).keys() == {"ben/glucose.csv"}
    assert "ada/glucose.csv cannot be opened" in caplog.text
    place.put("ada/glucose.csv", CSV)
    assert look(warehouse, store, place) == (1, 0)


def test_a_store_that_is_away_leaves_files_for_the_next_look(
    warehouse: Warehouse, store: RawStore, tmp_path: Path
) -> None:
    place = Folder(tmp_path / "inbox")
    for name in ("ada", "ben", "chen"):
        place.put(f"{name}/glucose.csv", CSV)

    class Away:
        def put_file(self, key: str, path: Path) -> PutResult:
            if len(objects(warehouse)) == 1:
                raise RawStoreUnavailableError("the bucket does not answer")
            return store.put_file(key, path)

    with pytest.raises(RawStoreUnavailableError):
        receive_new_files(warehouse, Away(), place.inbox)  # type: ignore[arg-type]
    assert seen(warehouse).keys() == {"ada/glucose.csv"}
    assert look(warehouse, store, place) == (2, 0)
    assert [row.handle for row in objects(warehouse)] == ["ada", "ben", "chen"]


def test_the_name_of_a_set_of_files_changes_with_any_of_them(warehouse: Warehouse, tmp_path: Path) -> None:
    place = Folder(tmp_path / "inbox")
    place.put("ada/a.csv", CSV)
    names = [inbox_fingerprint(unseen_files(warehouse.engine, place.inbox))]
    assert names[0] == inbox_fingerprint(unseen_files(warehouse.engine, place.inbox))
    for change in ("ada/b.csv", "ada/a.csv"):
        place.put(change, OTHER)
        names.append(inbox_fingerprint(unseen_files(warehouse.engine, place.inbox)))
    assert len(set(names)) == 3


def test_an_address_of_a_folder_may_be_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(tmp_path / "in box")
    place.put("ada/glucose.csv", CSV)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ((tmp_path / "in box").as_uri(), "~/in box"):
        assert [entry.location for entry in open_inbox(url).entries()] == ["ada/glucose.csv"]
