"""Zip archives with many members of interest, read one member at a time, in memory that does not grow.

An archive's directory is at its end: a stream that cannot be rewound is put into a temporary file first.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

from health_pipeline.providers.base import UnreadableFileError

_KEPT_IN_MEMORY = 16 * 1024**2
#: Nobody's export is longer than this, or packs better: what is, is made to fill memories and disks.
_MAX_BYTES = 64 * 1024**3
_MAX_RATIO = 300
_RATIO_COUNTS_FROM = 256 * 1024**2
#: Members are read whole; what is longer is refused, and nothing beside it.
_MAX_MEMBER_BYTES = 512 * 1024**2
_ENCRYPTED = 0x1


class UnreadableMemberError(ValueError):
    """A member that cannot be read, while others can. The message is a reason in snake_case."""


@contextmanager
def rewindable(stream: BinaryIO) -> Iterator[IO[bytes]]:
    """The stream, or a copy of it that can be read from any place."""
    if stream.seekable():
        yield stream
        return
    with tempfile.SpooledTemporaryFile(max_size=_KEPT_IN_MEMORY) as copy:
        shutil.copyfileobj(stream, copy, 1024**2)
        copy.seek(0)
        yield copy


@contextmanager
def open_archive(content: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """UnreadableFileError: cut off or damaged, encrypted, or made to fill disks."""
    try:
        archive = zipfile.ZipFile(content)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        raise UnreadableFileError(
            "the archive is cut off or damaged: its directory cannot be read; download it again"
        ) from None
    with archive:
        members = archive.infolist()
        if any(member.flag_bits & _ENCRYPTED for member in members):
            raise UnreadableFileError("the archive is encrypted; unpack it and upload what is in it")
        unpacked = sum(member.file_size for member in members)
        packed = max(sum(member.compress_size for member in members), 1)
        if unpacked > _MAX_BYTES or (unpacked > _RATIO_COUNTS_FROM and unpacked / packed > _MAX_RATIO):
            raise UnreadableFileError("the archive unpacks to more than any export; it is not read")
        yield archive


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes. UnreadableMemberError: `damaged_member` or `too_large`."""
    if member.file_size > _MAX_MEMBER_BYTES:
        raise UnreadableMemberError("too_large")
    try:
        with archive.open(member) as opened:
            content = opened.read(member.file_size + 1)
            rest: Any = opened.read(1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError):
        raise UnreadableMemberError("damaged_member") from None
    if len(content) != member.file_size or rest:
        raise UnreadableMemberError("damaged_member")
    return content
