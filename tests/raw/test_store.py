from __future__ import annotations

import datetime as dt
import errno
import hashlib
import io
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from backends import Backend, FolderBackend, S3Backend
from botocore.exceptions import ConnectionClosedError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.raw.folder import FolderRawStore
from health_pipeline.raw.keys import InvalidKeyError, ObjectKey, object_key, parse_key
from health_pipeline.raw.s3 import PART_BYTES, S3RawStore
from health_pipeline.raw.store import (
    ContentMismatchError,
    PutResult,
    RawObjectCorruptError,
    RawObjectMissingError,
    RawObjectTooLargeError,
    RawStore,
    RawStoreUnavailableError,
    open_store,
)

SUBJECT = uuid.UUID("5b1f0f3e-6f0e-4f0c-9a53-0d8f4c1a7e21")
DAY = dt.date(2026, 11, 20)


def key_of(
    content: bytes,
    *,
    provider: str = "oura",
    date: dt.date = DAY,
    subject: uuid.UUID = SUBJECT,
    entity: str = "daily_sleep",
) -> str:
    return object_key(provider, date, subject, hashlib.sha256(content).hexdigest(), entity, ".json")


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What each of `count` threads, let loose at once, returned."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# --- Keys ---------------------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)


@given(
    provider=names,
    entity=names,
    content=st.binary(max_size=50),
    date=st.dates(min_value=dt.date(1000, 1, 1)),
    subject=st.uuids(version=4),
    suffix=st.sampled_from([".json", ".csv", ".tar.gz", ".bin"]),
)
def test_key_says_what_it_was_made_of(
    provider: str, entity: str, content: bytes, date: dt.date, subject: uuid.UUID, suffix: str
) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    key = object_key(provider, date, subject, sha256, entity, suffix)
    assert key == (
        f"provider={provider}/shard={sha256[:2]}/date={date}/subject={subject.hex}"
        f"/entity={entity}/{sha256}{suffix}.zst"
    )
    assert parse_key(key) == ObjectKey(provider, date, subject, entity, sha256, suffix)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("provider", "../oura"),
        ("provider", "oura/evil"),
        ("provider", ""),
        ("provider", "Oura"),
        ("entity", "daily/sleep"),
        ("entity", "sleep\n"),
        ("sha256", "ABC"),
        ("sha256", "a" * 63),
        ("suffix", "json"),
        ("suffix", "./x"),
        ("suffix", ".json\n"),
        ("subject", 42),
        ("subject", "42"),
        ("subject", uuid.uuid5(uuid.NAMESPACE_URL, "user 42")),
        ("subject", uuid.UUID(int=42)),
        ("date", dt.datetime(2026, 11, 20)),
        ("date", "2026-11-20"),
    ],
)
def test_key_refuses_a_bad_part_by_name(part: str, value: object) -> None:
    parts: dict[str, Any] = {
        "provider": "oura",
        "date": DAY,
        "subject": SUBJECT,
        "sha256": "a" * 64,
        "entity": "sleep",
        "suffix": ".json",
    }
    assert object_key(**parts)
    with pytest.raises(InvalidKeyError, match=part):
        object_key(**{**parts, part: value})


def test_store_takes_no_other_key(store: RawStore) -> None:
    good = key_of(b"x")
    wrong_shard = good.replace("shard=2d", "shard=2e")
    assert wrong_shard != good
    for key in ("", "a", "../../etc/passwd", f"../{good}", f"{good}/..", good.upper(), wrong_shard):
        for call in (store.get, store.exists, store.delete, store.open, lambda k: store.put(k, b"x")):
            with pytest.raises(InvalidKeyError):
                call(key)


# --- Bytes in, bytes out ------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=2000), st.sampled_from([b"", b"\0" * 1_500_000, noise(1_100_000)]))
)
def test_round_trip(store: RawStore, content: bytes) -> None:
    key = key_of(content)
    result = store.put(key, content)
    assert store.get(key) == content
    with store.open(key) as stream:
        assert stream.read() == content
    assert {info.key: info.stored_bytes for info in store.list()}[key] == result.stored_bytes


def test_stream_reads_by_lines(store: RawStore) -> None:
    lines = [b"%d,beats\n" % number for number in range(200_000)]
    store.put(key_of(b"".join(lines)), b"".join(lines))
    with store.open(key_of(b"".join(lines))) as stream:
        assert list(stream) == lines


def test_stored_object_is_one_standard_zstd_frame_with_size_and_checksum(backend: Backend) -> None:
    content = b'{"data": []}' * 1000
    backend.store.put(key_of(content), content)
    stored = backend.read(key_of(content))
    frame = zstandard.get_frame_parameters(stored)
    assert (frame.content_size, frame.has_checksum) == (len(content), True)
    assert zstandard.decompress(stored) == content
    assert len(stored) < len(content) / 10


@pytest.mark.parametrize("size", [0, 1, 1_000_000, 2 * 1024**2, 2 * 1024**2 + 1])
def test_same_bytes_give_the_same_object_by_either_door(backend: Backend, tmp_path: Path, size: int) -> None:
    content = (b"abcdefghij" * (size // 10 + 1))[: size // 2] + noise(size - size // 2)
    key, path = key_of(content), tmp_path / "upload"
    path.write_bytes(content)
    first = backend.store.put(key, content)
    frame = backend.read(key)
    backend.store.delete(key)
    assert backend.store.put_file(key, path) == first == PutResult(True, len(frame))
    assert backend.read(key) == frame


def test_same_bytes_twice_are_one_object(backend: Backend, tmp_path: Path) -> None:
    content = b'{"steps": 1}'
    path = tmp_path / "upload"
    path.write_bytes(content)
    first = backend.store.put(key_of(content), content)
    before = list(backend.store.list())
    assert first.created
    for again in (backend.store.put(key_of(content), content), backend.store.put_file(key_of(content), path)):
        assert again == PutResult(created=False, stored_bytes=first.stored_bytes)
    assert list(backend.store.list()) == before
    assert len(before) == 1
    age = dt.datetime.now(dt.UTC) - before[0].modified_at
    assert abs(age) < dt.timedelta(minutes=1)


@pytest.mark.parametrize("size", [100, PART_BYTES + 100])
def test_content_that_is_not_what_the_key_says_is_not_stored(
    backend: Backend, tmp_path: Path, size: int
) -> None:
    content, other = noise(size, 1), noise(size, 2)
    path = tmp_path / "upload"
    path.write_bytes(content)
    for _ in range(2):  # Absent, then present: the answer is the same.
        with pytest.raises(ContentMismatchError):
            backend.store.put(key_of(other), content)
        with pytest.raises(ContentMismatchError):
            backend.store.put_file(key_of(other), path)
        assert backend.half_written() == 0
        backend.store.put(key_of(other), other)
    assert backend.store.get(key_of(other)) == other


def test_missing_object(store: RawStore) -> None:
    key = key_of(b"never stored")
    assert not store.exists(key)
    with pytest.raises(RawObjectMissingError, match=key):
        store.get(key)
    with pytest.raises(RawObjectMissingError, match=key):
        store.open(key)
    store.delete(key)


def test_delete_takes_one_object_and_its_traces(backend: Backend) -> None:
    other_subject = uuid.uuid4()
    keys = [key_of(b"one"), key_of(b"two"), key_of(b"one", subject=other_subject)]
    for key, content in zip(keys, (b"one", b"two", b"one"), strict=True):
        backend.store.put(key, content)
    backend.store.delete(keys[2])
    assert not backend.store.exists(keys[2])
    assert [info.key for info in backend.store.list()] == sorted(keys[:2])
    if isinstance(backend, FolderBackend):
        assert not [path for path in backend.root.rglob("*") if other_subject.hex in path.name]
    assert backend.store.put(keys[2], b"one").created


def test_list_by_prefix_in_order(backend: Backend) -> None:
    expected = {}
    for number in range(30):
        content = b"%d" % number
        key = key_of(
            content,
            provider=("oura", "oura_ring", "whoop")[number % 3],
            date=DAY + dt.timedelta(days=number % 2),
        )
        expected[key] = backend.store.put(key, content).stored_bytes
    for stranger in (".DS_Store", "provider=oura/notes.txt", "provider=oura/shard=00/x.json.zst"):
        backend.write(stranger, b"not ours")

    def listed(prefix: str) -> list[tuple[str, int]]:
        return [(info.key, info.stored_bytes) for info in backend.store.list(prefix)]

    some_key = next(iter(expected))
    for prefix in (
        "",
        "provider=oura",
        "provider=oura/",
        "provider=whoop/shard=",
        some_key[:60],
        some_key,
        "x",
    ):
        assert listed(prefix) == sorted(item for item in expected.items() if item[0].startswith(prefix))
    assert len(listed("provider=oura/")) == 10
    assert all(info.modified_at.utcoffset() == dt.timedelta(0) for info in backend.store.list())


# --- Writers at the same time, and writers that die ---------------------------------------------------------


def test_race_has_one_winner(backend: Backend) -> None:
    # Stores of their own, as processes have.
    stores = [open_store(backend.url) for _ in range(2)]
    # The S3 server makes losers wait for seconds.
    for turn in range(1 if isinstance(backend, S3Backend) else 5):
        content = noise(20_000, seed=turn)
        results = in_threads(16, lambda n: stores[n % 2].put(key_of(content), content))  # noqa: B023
        assert sorted(result.created for result in results) == [False] * 15 + [True], results
        assert len({result.stored_bytes for result in results}) == 1
        assert backend.store.get(key_of(content)) == content
    assert backend.half_written() == 0


def test_race_of_large_files_leaves_one_whole_object(backend: Backend, tmp_path: Path) -> None:
    content = noise(PART_BYTES + 1000)
    path = tmp_path / "upload"
    path.write_bytes(content)
    results = in_threads(4, lambda _: backend.store.put_file(key_of(content), path))
    winners = sum(result.created for result in results)
    # This S3 server's conditional completion of multipart uploads is not atomic.
    assert winners == 1 or (winners > 1 and isinstance(backend, S3Backend)), results
    assert len({result.stored_bytes for result in results}) == 1
    assert len(list(backend.store.list())) == 1
    assert backend.store.get(key_of(content)) == content
    assert backend.half_written() == 0


def test_puts_and_deletes_of_neighbours_do_not_disturb_each_other(backend: Backend) -> None:
    content = b"same folder"

    def work(number: int) -> None:
        for _ in range(15):
            if number % 2:
                backend.store.put(key_of(content), content)
            else:
                backend.store.delete(key_of(content))

    assert in_threads(4, work) == [None] * 4


WRITER = """
import sys, time
from pathlib import Path
from health_pipeline.raw import folder, s3
from health_pipeline.raw.store import frames, open_store

url, key, path, pieces = sys.argv[1:]

def hang(*args):
    for number, piece in enumerate(frames(*args)):
        if number == int(pieces):
            print("written so far", flush=True)
            time.sleep(60)
        yield piece

folder.frames = s3.frames = hang
open_store(url).put_file(key, Path(path))
"""


def test_object_of_a_killed_writer_is_not_there(backend: Backend, tmp_path: Path) -> None:
    content = noise(2 * PART_BYTES)
    key, path = key_of(content), tmp_path / "upload"
    path.write_bytes(content)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, backend.url, key, str(path), "14"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written so far\n"
    assert backend.half_written() == 1
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()

    assert backend.half_written() == 1
    assert not backend.store.exists(key)
    assert list(backend.store.list()) == []
    with pytest.raises(RawObjectMissingError):
        backend.store.get(key)
    assert backend.store.put_file(key, path).created
    assert backend.store.get(key) == content


# --- Objects that are not what they should be ---------------------------------------------------------------


def frame_with(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def with_wrong_size(frame: bytes, size: int) -> bytes:
    """A frame of more than 65 791 bytes of content that says it has `size`."""
    at = frame.index(zstandard.get_frame_parameters(frame).content_size.to_bytes(4, "little"))
    return frame[:at] + size.to_bytes(4, "little") + frame[at + 4 :]


ORIGINAL = b'{"bpm": 61}' * 20_000 + noise(100_000)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda frame: frame[:50_000] + bytes([frame[50_000] ^ 1]) + frame[50_001:], id="bit"),
        pytest.param(lambda frame: frame[: len(frame) // 2], id="half"),
        pytest.param(lambda frame: frame[:-5], id="last bytes"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"{}", id="not zstd"),
        pytest.param(lambda _: frame_with(b"someone else's bytes"), id="another object"),
        pytest.param(lambda _: frame_with(ORIGINAL, write_content_size=False), id="no size"),
        pytest.param(lambda frame: with_wrong_size(frame, 70_000), id="more than it says"),
        pytest.param(lambda frame: with_wrong_size(frame, 400_000), id="less than it says"),
    ],
)
def test_corrupt_object_is_detected(backend: Backend, damage: Callable[[bytes], bytes]) -> None:
    key = key_of(ORIGINAL)
    backend.store.put(key, ORIGINAL)
    backend.write(key, damage(backend.read(key)))
    with pytest.raises(RawObjectCorruptError, match=key):
        backend.store.get(key)
    with pytest.raises(RawObjectCorruptError, match=key), backend.store.open(key) as stream:
        while stream.read(10_000):
            pass


def test_bomb_is_refused_before_it_takes_memory(backend: Backend) -> None:
    bomb = b"\0" * 50_000_000
    key = key_of(bomb)
    backend.write(key, frame_with(bomb))
    limited = open_store(backend.url, max_content_bytes=10_000_000)
    del bomb
    tracemalloc.start()
    try:
        with pytest.raises(RawObjectTooLargeError, match="max_content_bytes"):
            limited.get(key)
        with pytest.raises(RawObjectTooLargeError, match="max_content_bytes"):
            limited.open(key)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert len(backend.store.get(key)) == 50_000_000


def test_frame_that_asks_for_a_huge_window_is_refused(backend: Backend) -> None:
    content = noise(1000) * 20_000
    window = zstandard.ZstdCompressionParameters(window_log=26)
    compressor = zstandard.ZstdCompressor(compression_params=window).compressobj(size=len(content))
    backend.write(key_of(content), compressor.compress(content) + compressor.flush())
    with pytest.raises(RawObjectCorruptError), backend.store.open(key_of(content)) as stream:
        stream.read()


def test_gigabyte_uploads_take_little_memory(backend: Backend, tmp_path: Path) -> None:
    size = 64 * 1024**2
    path = tmp_path / "upload"
    with path.open("wb") as file:
        for number in range(size // 2**20):
            file.write(noise(2**20, seed=number))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = object_key("apple_health", DAY, SUBJECT, digest, "upload", ".zip")
    tracemalloc.start()
    try:
        result = backend.store.put_file(key, path)
        put_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        received = hashlib.sha256()
        with backend.store.open(key) as stream:
            while chunk := stream.read(2**20):
                received.update(chunk)
        open_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.created
    assert result.stored_bytes >= size
    assert received.hexdigest() == digest
    assert put_peak < 40_000_000
    assert open_peak < 15_000_000


# --- The folder ---------------------------------------------------------------------------------------------


def test_folder_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_store(str(tmp_path / "home" / "raw")).put(key_of(b"x"), b"x")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_folder_sweeps_up_after_dead_writers_only(tmp_path: Path) -> None:
    open_store(str(tmp_path))
    dead, alive = tmp_path / ".incoming" / "dead.tmp", tmp_path / ".incoming" / "alive.tmp"
    for path, hours in ((dead, 25), (alive, 23)):
        path.write_bytes(b"half")
        then = time.time() - hours * 3600
        os.utime(path, (then, then))
    open_store(str(tmp_path))
    assert (dead.exists(), alive.exists()) == (False, True)


def test_folder_that_is_full_says_so_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RawStoreUnavailableError, match=rf"{tmp_path}.*No space left"):
        store.put(key_of(b"x"), b"x")
    monkeypatch.undo()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert store.put(key_of(b"x"), b"x").created


def test_folder_object_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def log_fsync(descriptor: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def log_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name file descriptors by")
    store = open_store(str(tmp_path))
    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "link", log_link)
    store.put(key_of(b"x"), b"x")
    at = events.index("link")
    assert [Path(event).suffix for event in events[:at]] == [".tmp"]
    folders = (tmp_path / key_of(b"x")).parents
    assert events[at + 1 :] == [str(folder) for folder in folders if folder.is_relative_to(tmp_path)]
    # The names of the folders of a day are on disk then: nobody has to wait for them again.
    events.clear()
    other = key_of(b"x", entity="another")
    store.put(other, b"x")
    assert [Path(event).name for event in events[2:]] == [
        "entity=another",
        *(folder.name for folder in list((tmp_path / other).parents)[1:3]),
    ]
    # Unless they were taken away meanwhile, by whomever.
    shutil.rmtree(next(tmp_path.glob("provider=*")))
    events.clear()
    store.put(other, b"x")
    assert events[2:] == [
        str(folder) for folder in (tmp_path / other).parents if folder.is_relative_to(tmp_path)
    ]


def test_folder_removed_by_a_deletion_while_writing_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    link = os.link

    def link_too_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        target.parent.rmdir()
        link(source, target)

    monkeypatch.setattr(os, "link", link_too_late)
    assert store.put(key_of(b"x"), b"x").created
    assert store.get(key_of(b"x")) == b"x"


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RawStoreUnavailableError, match="file"):
        open_store(str(tmp_path / "file"))
    store = open_store(str(tmp_path / "raw"))
    (tmp_path / "raw" / ".incoming").rmdir()
    (tmp_path / "raw").rmdir()
    with pytest.raises(RawStoreUnavailableError, match="raw"):
        store.get(key_of(b"x"))
    with pytest.raises(RawStoreUnavailableError, match="raw"):
        list(store.list())


# --- S3 -----------------------------------------------------------------------------------------------------


def every_call(store: RawStore, tmp_path: Path) -> dict[str, Callable[[], Any]]:
    key, path = key_of(b"x"), tmp_path / "x"
    path.write_bytes(b"x")
    return {
        "put": lambda: store.put(key, b"x"),
        "put_file": lambda: store.put_file(key, path),
        "get": lambda: store.get(key),
        "open": lambda: store.open(key),
        "exists": lambda: store.exists(key),
        "delete": lambda: store.delete(key),
        "list": lambda: list(store.list()),
    }


def test_missing_bucket_is_said_to_be_missing(seaweed: Any, tmp_path: Path) -> None:
    for call in every_call(open_store("s3://no-such-bucket"), tmp_path).values():
        with pytest.raises(
            RawStoreUnavailableError, match=r"no-such-bucket .*create the bucket, or set HEALTH"
        ):
            call()


def test_bucket_is_made_on_request_and_kept(seaweed: Any) -> None:
    open_store("s3://made-here", create_bucket=True).put(key_of(b"x"), b"x")
    assert open_store("s3://made-here", create_bucket=True).get(key_of(b"x")) == b"x"


def test_prefixes_share_a_bucket_and_nothing_else(seaweed: Any) -> None:
    one, two = open_store("s3://raw-test/one", create_bucket=True), open_store("s3://raw-test/one/two")
    one.put(key_of(b"x"), b"x")
    two.put(key_of(b"y"), b"y")
    assert [info.key for info in one.list()] == [key_of(b"x")]
    assert [info.key for info in two.list()] == [key_of(b"y")]


def test_server_that_is_away_is_reported_in_seconds_without_secrets(
    seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seaweed import free_ports

    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:hunter2@{endpoint}")
    store = open_store("s3://raw-test")
    calls = every_call(store, tmp_path)
    began = time.monotonic()
    results = in_threads(len(calls), lambda number: list(calls.values())[number]())
    assert time.monotonic() - began < 8
    for result in results:
        assert isinstance(result, RawStoreUnavailableError)
        assert f"bucket raw-test at http://{endpoint} cannot be reached" in str(result)
        trace = "".join(traceback.format_exception(result))
        assert seaweed.identity.secret_key not in trace
        assert "hunter2" not in trace


def test_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "user:hunter2@host")
    with pytest.raises(RawStoreUnavailableError, match="AWS_ENDPOINT_URL_S3") as caught:
        open_store("s3://bucket")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_server_that_does_not_answer_is_given_up(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        store = S3RawStore("raw-test", attempts=2, read_timeout=0.3)
        began = time.monotonic()
        with pytest.raises(RawStoreUnavailableError, match="cannot be reached"):
            store.put(key_of(b"x"), b"x")
        assert time.monotonic() - began < 4


def test_wrong_secret_is_named_and_not_shown(
    seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    for name, call in every_call(open_store("s3://raw-test"), tmp_path).items():
        hint = "check the credentials" if name in {"exists", "put_file"} else "check AWS_SECRET_ACCESS_KEY"
        with pytest.raises(RawStoreUnavailableError, match=hint) as caught:
            call()
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("way", ["query", "environment"])
def test_encryption_is_asked_for(
    seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    url = "s3://raw-test/raw"
    if way == "query":
        url += "?sse=AES256"
    else:
        monkeypatch.setenv("HEALTH_PIPELINE_RAW_SSE", "AES256")
    store = open_store(url, create_bucket=True)
    backend = S3Backend("raw-test")
    large = noise(PART_BYTES + 1)
    (tmp_path / "large").write_bytes(large)
    for content in (b"small", large):
        store.delete(key_of(content))
        (tmp_path / "content").write_bytes(content)
        assert store.put_file(key_of(content), tmp_path / "content").created
        head = backend.client.head_object(Bucket="raw-test", Key=f"raw/{key_of(content)}")
        assert head["ServerSideEncryption"] == "AES256"
        assert store.get(key_of(content)) == content


def test_delete_erases_every_version(seaweed: Any) -> None:
    store = open_store("s3://versioned", create_bucket=True)
    client: Any = S3Backend("versioned").client
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    for content in (b"x", b"y"):
        store.put(key_of(content), content)
        client.delete_object(Bucket="versioned", Key=key_of(content))
        store.put(key_of(content), content)
    store.delete(key_of(b"x"))
    left = client.list_object_versions(Bucket="versioned")
    keys = {found["Key"] for kind in ("Versions", "DeleteMarkers") for found in left.get(kind, ())}
    assert keys == {key_of(b"y")}
    assert store.get(key_of(b"y")) == b"y"


@pytest.mark.parametrize("size", [100, PART_BYTES + 100])
def test_write_whose_answer_was_lost_is_still_ours(seaweed: Any, tmp_path: Path, size: int) -> None:
    content = noise(size, seed=99)
    (tmp_path / "upload").write_bytes(content)
    store = S3RawStore("raw-test", "lost", create_bucket=True)
    store.delete(key_of(content))
    client: Any = store._client
    lost: list[str] = []

    def send_and_lose_the_answer(request: Any, **_: Any) -> None:
        if not lost:
            lost.append(request.url)
            assert client._endpoint.http_session.send(request).status_code == 200
            if isinstance(request.body, io.IOBase):
                request.body.seek(0)
            raise ConnectionClosedError(endpoint_url=request.url)

    for operation in ("PutObject", "CompleteMultipartUpload"):
        client.meta.events.register(f"before-send.s3.{operation}", send_and_lose_the_answer)
    assert store.put_file(key_of(content), tmp_path / "upload").created
    assert len(lost) == 1
    assert store.get(key_of(content)) == content
    assert not store.put_file(key_of(content), tmp_path / "upload").created


def test_stream_goes_on_after_its_connection_broke(seaweed: Any) -> None:
    content = noise(6_000_000)
    store = S3RawStore("raw-test", "broken", create_bucket=True)
    store.put(key_of(content), content)
    with store.open(key_of(content)) as stream:
        start = stream.read(1_500_000)
        inner: Any = stream
        inner.raw._stored.raw._body.close()
        assert start + stream.read() == content


# --- URLs ---------------------------------------------------------------------------------------------------


def test_open_store_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url, folder in (
        ((tmp_path / "with space").as_uri(), tmp_path / "with space"),
        (f"file://localhost{tmp_path}/l", tmp_path / "l"),
        (str(tmp_path / "plain"), tmp_path / "plain"),
        ("relative/raw", tmp_path / "relative" / "raw"),
        ("~/home", tmp_path / "home"),
    ):
        store = open_store(url)
        assert isinstance(store, FolderRawStore)
        assert store.root == folder
        assert folder.is_dir()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "empty"),
        ("gs://bucket", "scheme 'gs'"),
        ("file://host/share", "file:///absolute/path"),
        ("s3://", "s3://bucket/prefix"),
        ("s3://key:hunter2@bucket/prefix", "credentials go in AWS_"),
        ("s3://bucket?ssl=1", "ssl"),
        ("s3://bucket?sse=rot13", "rot13"),
        ("s3://bucket?sse_kms_key_id=1", "sse=aws:kms"),
    ],
)
def test_open_store_refuses_what_it_does_not_understand(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
