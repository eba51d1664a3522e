"""The first wanted member of a zip, read forward: in little memory, and as far as a cut-off archive goes.

An archive's directory is at its end, where a stream has not come yet and a cut-off file never does; the header
before each member is enough. Source of the format: PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from health_pipeline.providers.base import UnreadableFileError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LOCAL, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_ENDS = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06")
_CHUNK_BYTES = 64 * 1024
#: Nobody's export is longer than this, or packs better: what is, is made to fill memories and disks.
_MAX_BYTES = 64 * 1024**3
_MAX_RATIO = 300
_RATIO_COUNTS_FROM = 256 * 1024**2
_ENCRYPTED, _SIZES_FOLLOW = 0x1, 0x8
_STORED, _DEFLATED = 0, 8

#: Whether a member is the wanted one, by its name and first bytes.
Wanted = Callable[[str, bytes], bool]


def is_zip(head: bytes) -> bool:
    """Whether a file that starts so is a zip archive with something in it."""
    return head.startswith(_LOCAL)


def member_names(head: bytes) -> list[str]:
    """Names of the members whose headers are within the first bytes of an archive."""
    names = []
    position = head.find(_LOCAL)
    while position >= 0 and len(head) >= position + 30:
        (length,) = struct.unpack_from("<H", head, position + 26)
        names.append(head[position + 30 : position + 30 + length].decode("utf-8", "replace"))
        position = head.find(_LOCAL, position + 30 + length)
    return names


class _Source:
    """Bytes of a stream, which can be put back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._rest = b""
        self.read_bytes = 0

    def chunk(self) -> bytes:
        """Some bytes; none at the end."""
        if self._rest:
            chunk, self._rest = self._rest, b""
            return chunk
        chunk = self._stream.read(_CHUNK_BYTES)
        self.read_bytes += len(chunk)
        return chunk

    def exactly(self, count: int) -> bytes | None:
        """So many bytes, None where there are fewer."""
        parts = self._rest
        while len(parts) < count:
            more = self._stream.read(_CHUNK_BYTES)
            if not more:
                self._rest = b""
                return None
            self.read_bytes += len(more)
            parts += more
        self._rest = parts[count:]
        return parts[:count]

    def put_back(self, content: bytes) -> None:
        self._rest = content + self._rest


class MemberStream(io.RawIOBase):
    """A member's bytes. `cut` says, at the end, that the archive ended before the member did, or is damaged."""

    def __init__(self, source: _Source, name: str, method: int, size: int | None, crc: int | None) -> None:
        self.name = name
        self.cut = False
        self._source = source
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if method == _DEFLATED else None
        self._left = size
        self._expected_crc = crc
        self._crc = 0
        self._given = 0
        self._started_at = source.read_bytes
        self._ready = b""
        self._done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready and not self._done:
            self._ready = self._more(len(view))
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def peek(self, count: int) -> bytes:
        """The next bytes, without taking them."""
        while len(self._ready) < count and not self._done:
            self._ready += self._more(count)
        return self._ready[:count]

    def _more(self, wanted: int) -> bytes:
        if self._inflate is not None:
            content = self._inflated(max(wanted, _CHUNK_BYTES))
        else:
            chunk = self._source.chunk()
            left = self._left if self._left is not None else len(chunk)
            content, rest = chunk[:left], chunk[left:]
            self._source.put_back(rest)
            if self._left is not None:
                self._left -= len(content)
                self._done = self._left == 0
            if not chunk:
                self._done = True
                self.cut = bool(self._left)
        self._given += len(content)
        self._crc = zlib.crc32(content, self._crc)
        packed = max(self._source.read_bytes - self._started_at, _CHUNK_BYTES)
        if self._given > _MAX_BYTES or (
            self._given > _RATIO_COUNTS_FROM and self._given / packed > _MAX_RATIO
        ):
            raise UnreadableFileError("the archive unpacks to more than any export; it is not read")
        if self._done and not self.cut:
            self.cut = self._expected_crc is not None and self._crc != self._expected_crc
        return content

    def _inflated(self, wanted: int) -> bytes:
        assert self._inflate is not None
        packed = self._inflate.unconsumed_tail or self._source.chunk()
        try:
            content = self._inflate.decompress(packed, wanted)
        except zlib.error:
            self._done = self.cut = True
            return b""
        if self._inflate.eof:
            self._done = True
            self._source.put_back(self._inflate.unused_data)
        elif not packed and not content:
            self._done = self.cut = True
        return content


def open_member(stream: BinaryIO, wanted: Wanted, peek_bytes: int = 4096) -> MemberStream | None:
    """The first member that is wanted, ready to be read; None where there is none.

    UnreadableFileError: the archive is encrypted, or packed in a way that nobody's export is.
    """
    source = _Source(stream)
    while (header := _next_header(source)) is not None:
        name, method, size, crc, flags = header
        if name.endswith("/"):
            continue
        if flags & _ENCRYPTED:
            raise UnreadableFileError("the archive is encrypted; unpack it and upload what is in it")
        if method not in (_STORED, _DEFLATED):
            raise UnreadableFileError(
                f"the archive is packed by method {method}; pack it anew as a plain zip"
            )
        member = MemberStream(source, name, method, size, crc)
        if wanted(name, member.peek(peek_bytes)):
            return member
        while member.read(_CHUNK_BYTES):
            pass
        if member.cut:
            return None
    return None


def _next_header(source: _Source) -> tuple[str, int, int | None, int | None, int] | None:
    """Name, method, size and checksum (None where they follow the member) and flags of the next member."""
    signature = source.exactly(4)
    while signature is not None and signature != _LOCAL:
        if signature in _ENDS:
            return None
        # What follows a member whose sizes were not known before: a descriptor of 12 to 24 bytes.
        more = source.exactly(1)
        signature = signature[1:] + more if more is not None else None
    fields = source.exactly(26) if signature is not None else None
    if fields is None:
        return None
    _, flags, method, _, _, crc, _, size, name_length, extra_length = struct.unpack("<HHHHHIIIHH", fields)
    name = source.exactly(name_length)
    extra = source.exactly(extra_length)
    if name is None or extra is None:
        return None
    if flags & _SIZES_FOLLOW:
        return name.decode("utf-8", "replace"), method, None, None, flags
    if size == 0xFFFFFFFF:
        size = _zip64_size(extra) or 0
    return name.decode("utf-8", "replace"), method, size, crc, flags


def _zip64_size(extra: bytes) -> int | None:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1 and length >= 8:
            return int(struct.unpack_from("<Q", extra, position + 4)[0])
        position += 4 + length
    return None
