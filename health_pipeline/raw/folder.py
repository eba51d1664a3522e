"""A raw store in a local folder: one file an object, the key is its path."""

from __future__ import annotations

import datetime as dt
import io
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from health_pipeline.raw.keys import is_key, parse_key
from health_pipeline.raw.store import (
    MAX_CONTENT_BYTES,
    ObjectInfo,
    PutResult,
    RawObjectMissingError,
    RawStoreUnavailableError,
    check_content,
    check_file,
    decompress,
    frames,
    open_content,
)

_INCOMING = ".incoming"
# A file nobody wrote to for this long belongs to a writer that died.
_STALE_SECONDS = 24 * 3600.0
# `provider=…/shard=…/date=…`: the folders that many objects are in.
_SHARED_LEVELS = 3
_MAX_REMEMBERED = 20_000


class FolderRawStore:
    """Objects as files under `root`, readable by their owner only. The file system must have hard links.

    An object is written beside the store and linked to its name when it is complete and on disk, so no reader
    ever sees half of one. What writers that died left behind is removed a day later, when a store is opened.

    Raises RawStoreUnavailableError where the folder cannot be made.
    """

    def __init__(self, root: Path, *, max_content_bytes: int = MAX_CONTENT_BYTES) -> None:
        self.root = Path(root).absolute()
        self._incoming = self.root / _INCOMING
        self._max_content_bytes = max_content_bytes
        # Folders whose names are on disk, and those of all folders above.
        self._durable: set[Path] = set()
        with self._errors("opened"):
            _make_directories(self._incoming)
        self._remove_stale()

    def __repr__(self) -> str:
        return f"FolderRawStore({str(self.root)!r})"

    def put(self, key: str, content: bytes) -> PutResult:
        path = self._path(key)
        with self._errors("written to"):
            if (known := self._known(path)) is not None:
                check_content(key, content)
                return known
            return self._write(path, frames(key, io.BytesIO(content), len(content)))

    def put_file(self, key: str, path: Path) -> PutResult:
        target = self._path(key)
        # That the file cannot be opened is no fault of the store's.
        with path.open("rb") as source:
            with self._errors("written to"):
                known = self._known(target)
            if known is not None:
                check_file(key, path)
                return known
            size = os.fstat(source.fileno()).st_size
            with self._errors("written to"):
                return self._write(target, frames(key, source, size))

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._errors("read", key):
            stored = path.read_bytes()
        return decompress(key, stored, self._max_content_bytes)

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with self._errors("read", key):
            stored = path.open("rb")
        return open_content(key, stored, self._max_content_bytes)

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with self._errors("read"):
            return _size(path) is not None

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._errors("written to"):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            parent = path.parent
            _sync(parent)
            # The folder of a subject says that there was one.
            while parent != self.root:
                try:
                    parent.rmdir()
                except OSError:
                    return
                self._durable.discard(parent)
                parent = parent.parent
                _sync(parent)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors("listed"):
            yield from _walk(self.root, "", prefix)

    def _path(self, key: str) -> Path:
        parse_key(key)
        return self.root / key

    def _known(self, path: Path) -> PutResult | None:
        size = _size(path)
        if size is None:
            return None
        # Its writer may not have got as far as this yet, and our caller is about to rely on it.
        self._sync_up(path.parent)
        return PutResult(created=False, stored_bytes=size)

    def _write(self, path: Path, pieces: Iterable[bytes]) -> PutResult:
        temporary = self._incoming / f"{secrets.token_hex(16)}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                stored_bytes = file.tell()
            created = self._link(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        self._sync_up(path.parent)
        if not created:
            stored_bytes = _size(path) or stored_bytes
        return PutResult(created, stored_bytes)

    def _link(self, temporary: Path, path: Path) -> bool:
        while True:
            try:
                self._forget_missing(path.parent)
                _make_directories(path.parent)
                os.link(temporary, path)
            except FileExistsError:
                return False
            except FileNotFoundError:
                # A deletion took a folder away while it was empty.
                if not temporary.exists():
                    raise
                continue
            return True

    def _sync_up(self, directory: Path) -> None:
        """Have what is in a folder on disk, and the names of the folders that lead to it.

        A name that this store has seen on disk is not written again: each time costs a flush of the disk.
        """
        seen = []
        while True:
            with suppress(FileNotFoundError):
                _sync(directory)
            if directory == self.root or directory in self._durable:
                break
            seen.append(directory)
            directory = directory.parent
        # Of a day's folders; below, each person and kind has its own.
        self._durable.update(
            each for each in seen if len(each.relative_to(self.root).parts) <= _SHARED_LEVELS
        )
        if len(self._durable) > _MAX_REMEMBERED:
            self._durable.clear()

    def _forget_missing(self, directory: Path) -> None:
        """Somebody else may have deleted what was durable."""
        while directory in self._durable or not directory.is_dir():
            if directory.is_dir() or directory == self.root:
                return
            self._durable.discard(directory)
            directory = directory.parent

    def _remove_stale(self) -> None:
        oldest = time.time() - _STALE_SECONDS
        with suppress(OSError), os.scandir(self._incoming) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        Path(entry.path).unlink()

    @contextmanager
    def _errors(self, doing: str, key: str | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if key is not None and isinstance(error, FileNotFoundError) and self.root.is_dir():
                raise RawObjectMissingError(f"no raw object {key} in {self.root}") from None
            raise RawStoreUnavailableError(
                f"raw store {self.root} cannot be {doing}: {error.strerror or type(error).__name__}. Check "
                "that the folder is there, has room, is this user's and on a file system with hard links"
            ) from error


def _make_directories(path: Path) -> None:
    """Make a directory and its parents, each for the owner only, whatever the umask says."""
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        _make_directories(path.parent)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _walk(directory: Path, name: str, prefix: str) -> Iterator[ObjectInfo]:
    """Objects under a directory in order of key; a listing of a store that changes may miss the changes."""
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        if not name:
            raise
        return
    for entry in entries:
        key = f"{name}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                yield from _walk(Path(entry.path), f"{key}/", prefix)
        elif key.startswith(prefix) and is_key(key):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield ObjectInfo(key, status.st_size, dt.datetime.fromtimestamp(status.st_mtime, dt.UTC))
