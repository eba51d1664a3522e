"""What a raw store is, and the frame in which every store keeps an object's bytes.

A store holds bytes by key and knows nothing of formats, people or the warehouse. `open_store` makes one from
a URL; `folder` and `s3` are the two kinds.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import zstandard

from health_pipeline.raw.keys import parse_key

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Largest object that is decompressed, in bytes, unless a store is told otherwise.
MAX_CONTENT_BYTES = 4 * 1024**3

# Part of what "the same bytes give the same object" means: changing it changes every new frame.
_LEVEL = 3
_CHUNK_BYTES = 1024**2
# A frame may ask its reader for as much memory as its window; level 3 asks for 2 MiB.
_MAX_WINDOW_BYTES = 8 * 1024**2
# No zstd frame header is longer.
_HEADER_BYTES = 18

_SSE_VARIABLE = "HEALTH_PIPELINE_RAW_SSE"
_SSE_KEY_VARIABLE = "HEALTH_PIPELINE_RAW_SSE_KMS_KEY_ID"


class RawStoreError(Exception):
    """Anything that goes wrong with a raw store or an object in it."""


class RawStoreUnavailableError(RawStoreError):
    """The store cannot be reached or refuses the work (down, full, no access, no bucket). Try again later."""


class RawObjectMissingError(RawStoreError):
    """There is no object with this key."""


class RawObjectCorruptError(RawStoreError):
    """The stored bytes are not those whose hash is in the key."""


class RawObjectTooLargeError(RawStoreError):
    """An object that would decompress to more than the store's limit."""


class ContentMismatchError(ValueError):
    """Bytes offered under a key that carries the hash of other bytes."""


@dataclass(frozen=True, slots=True)
class PutResult:
    """`created` is False where the object was there already; `stored_bytes` is its compressed size."""

    created: bool
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing: its compressed size, and when the store took it (UTC)."""

    key: str
    stored_bytes: int
    modified_at: dt.datetime


class RawStore(Protocol):
    """Objects by key. Safe to share between threads and processes.

    Every method may raise RawStoreUnavailableError, and InvalidKeyError for a key not made by `object_key`.
    """

    def put(self, key: str, content: bytes) -> PutResult:
        """Store bytes unless the key is taken; they are durable when this returns, whoever wrote them.

        Never overwrites: of concurrent calls exactly one has `created`. Raises ContentMismatchError.
        """

    def put_file(self, key: str, path: Path) -> PutResult:
        """`put` of a file of any size, in a few megabytes of memory. Gives the same frame as `put`."""

    def get(self, key: str) -> bytes:
        """The bytes as they were put, verified against the hash in the key.

        Raises RawObjectMissingError, RawObjectCorruptError, RawObjectTooLargeError.
        """

    def open(self, key: str) -> BinaryIO:
        """The bytes as a forward-only stream in a few megabytes of memory; close it after use.

        Raises RawObjectMissingError and RawObjectTooLargeError at once, RawObjectCorruptError at the latest
        on reaching the end: what was read before the end is not verified yet.
        """

    def exists(self, key: str) -> bool:
        """Whether there is an object with this key."""

    def delete(self, key: str) -> None:
        """Erase an object, with every version of it that the store keeps. Nothing happens if it is gone."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in order of key. Half-written ones are not there."""


def open_store(
    url: str, *, create_bucket: bool = False, max_content_bytes: int = MAX_CONTENT_BYTES
) -> RawStore:
    """The store at `file:///folder`, a plain path, or `s3://bucket/prefix?sse=aws:kms&sse_kms_key_id=…`.

    S3 endpoint, region and credentials come from boto3's own settings (`AWS_ENDPOINT_URL_S3`, `AWS_PROFILE`,
    …). The encryption asked of S3 comes from the query, else from HEALTH_PIPELINE_RAW_SSE and
    HEALTH_PIPELINE_RAW_SSE_KMS_KEY_ID, else it is the bucket's own. `create_bucket` makes a missing bucket.

    Raises ValueError for a URL it does not understand, without repeating credentials found in it.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from health_pipeline.raw.s3 import S3RawStore

        if "@" in parts.netloc or ":" in parts.netloc or not parts.netloc:
            raise ValueError("raw store URL must be s3://bucket/prefix; credentials go in AWS_… settings")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        sse = options.pop("sse", None) or os.environ.get(_SSE_VARIABLE) or None
        sse_kms_key_id = options.pop("sse_kms_key_id", None) or os.environ.get(_SSE_KEY_VARIABLE) or None
        if options:
            raise ValueError(
                f"raw store URL has unknown options {sorted(options)}; known: sse, sse_kms_key_id"
            )
        return S3RawStore(
            parts.netloc,
            unquote(parts.path).strip("/"),
            sse=sse,
            sse_kms_key_id=sse_kms_key_id,
            create_bucket=create_bucket,
            max_content_bytes=max_content_bytes,
        )

    from health_pipeline.raw.folder import FolderRawStore

    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query:
            raise ValueError("raw store URL of a folder must be file:///absolute/path")
        root = Path(unquote(parts.path))
    elif "://" in url:
        raise ValueError(f"raw store URL has scheme {parts.scheme!r}; use s3://, file:// or a path")
    elif not url:
        raise ValueError("raw store URL is empty; use s3://bucket/prefix, file:///absolute/path or a path")
    else:
        root = Path(url).expanduser()
    return FolderRawStore(root, max_content_bytes=max_content_bytes)


def check_content(key: str, content: bytes) -> None:
    """Raise ContentMismatchError unless the key carries the hash of these bytes."""
    if hashlib.sha256(content).hexdigest() != parse_key(key).sha256:
        raise ContentMismatchError(f"content is not what the hash in its key says: {key}")


def check_file(key: str, path: Path) -> None:
    """`check_content` of a file."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != parse_key(key).sha256:
            raise ContentMismatchError(f"content is not what the hash in its key says: {key}")


def frames(key: str, source: BinaryIO, size: int) -> Iterator[bytes]:
    """One zstd frame, in pieces, of the `size` bytes of a source. The same bytes give the same frame.

    Raises ContentMismatchError at the end, before the last piece, if they are not those of the key.
    """
    digest = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(
        level=_LEVEL, write_checksum=True, write_content_size=True
    ).compressobj(size=size)
    remaining = size
    while remaining and (chunk := source.read(min(_CHUNK_BYTES, remaining))):
        remaining -= len(chunk)
        digest.update(chunk)
        if piece := compressor.compress(chunk):
            yield piece
    if remaining or digest.hexdigest() != parse_key(key).sha256:
        raise ContentMismatchError(f"content is not what the hash in its key says: {key}")
    yield compressor.flush()


def compress(key: str, content: bytes) -> bytes:
    """The frame of some bytes, the same as `frames` gives. Raises ContentMismatchError."""
    return b"".join(frames(key, io.BytesIO(content), len(content)))


def decompress(key: str, stored: bytes, max_content_bytes: int) -> bytes:
    """The bytes in a frame. Raises RawObjectCorruptError, RawObjectTooLargeError."""
    check_frame_header(key, stored[:_HEADER_BYTES], max_content_bytes)
    try:
        content = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompress(
            stored, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise RawObjectCorruptError(f"raw object does not decompress ({error}): {key}") from None
    if hashlib.sha256(content).hexdigest() != parse_key(key).sha256:
        raise RawObjectCorruptError(f"raw object is not what the hash in its key says: {key}")
    return content


def check_frame_header(key: str, header: bytes, max_content_bytes: int) -> None:
    """Refuse a frame by what it says of itself, before any memory is taken for its content.

    zstd gives an error, and no more bytes, where a frame holds more than its header says.
    """
    try:
        declared = zstandard.get_frame_parameters(header).content_size
    except zstandard.ZstdError as error:
        raise RawObjectCorruptError(f"raw object is not a zstd frame ({error}): {key}") from None
    if declared == zstandard.CONTENTSIZE_UNKNOWN:
        raise RawObjectCorruptError(f"raw object's frame does not say its size: {key}")
    if declared > max_content_bytes:
        raise RawObjectTooLargeError(
            f"raw object has {declared} bytes, more than the limit of {max_content_bytes} "
            f"(max_content_bytes): {key}"
        )


class _Content(io.RawIOBase):
    """The decompressed bytes of a stored stream, verified against the key's hash at its end."""

    def __init__(self, key: str, stored: BinaryIO, max_content_bytes: int) -> None:
        self._key = key
        self._stored = stored
        self._max = max_content_bytes
        self._digest = hashlib.sha256()
        self._expected = parse_key(key).sha256
        self._read = 0
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self._reader = decompressor.stream_reader(stored, closefd=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        try:
            count = self._reader.readinto(buffer)
        except zstandard.ZstdError as error:
            raise RawObjectCorruptError(f"raw object does not decompress ({error}): {self._key}") from None
        self._read += count
        if self._read > self._max:
            raise RawObjectTooLargeError(
                f"raw object has more than {self._max} bytes (max_content_bytes): {self._key}"
            )
        self._digest.update(memoryview(buffer)[:count])
        # A frame cut short ends without an error; its hash tells.
        if count == 0 and memoryview(buffer).nbytes and self._digest.hexdigest() != self._expected:
            raise RawObjectCorruptError(f"raw object is not what the hash in its key says: {self._key}")
        return count

    def close(self) -> None:
        if not self.closed:
            with suppress(Exception):
                self._stored.close()
        super().close()


def open_content(key: str, stored: io.BufferedReader[Any], max_content_bytes: int) -> BinaryIO:
    """A decompressing, verifying stream over a stored one, which it closes.

    Raises RawObjectCorruptError, RawObjectTooLargeError.
    """
    try:
        check_frame_header(key, stored.peek(_HEADER_BYTES)[:_HEADER_BYTES], max_content_bytes)
    except BaseException:
        stored.close()
        raise
    return io.BufferedReader(_Content(key, stored, max_content_bytes), _CHUNK_BYTES)
