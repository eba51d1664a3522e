"""A raw store in a bucket of any S3 service that knows conditional writes."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import io
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from health_pipeline.raw.keys import is_key, parse_key
from health_pipeline.raw.store import (
    MAX_CONTENT_BYTES,
    ObjectInfo,
    PutResult,
    RawObjectMissingError,
    RawStoreUnavailableError,
    check_file,
    compress,
    decompress,
    frames,
    open_content,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

#: Size of a part of a multipart upload; objects of less are sent at once. S3 asks for 5 MiB at least, and
#: takes 10 000 parts at most.
PART_BYTES = 8 * 1024**2

_CONTENT_TYPE = "application/zstd"
# Tells our own write, whose answer was lost and which botocore sent again, from another's.
_WRITER = "writer"
_CONFLICT_ATTEMPTS = 5
_STREAM_ATTEMPTS = 3
_SSE = ("AES256", "aws:kms", "aws:kms:dsse")

_BUCKET_HINT = "create the bucket, or set HEALTH_PIPELINE_RAW_URL to one that exists"
_HINTS = {
    "NoSuchBucket": f"the bucket does not exist; {_BUCKET_HINT}",
    "AccessDenied": "access denied; the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject, "
    "s3:DeleteObjectVersion, s3:AbortMultipartUpload, s3:ListBucket and s3:ListBucketVersions",
    "NotImplemented": "the service does not know conditional writes (If-None-Match), which a raw store needs",
    "403": "access denied; check the credentials and the bucket's policy",
    "InvalidAccessKeyId": "the access key is not known there; check AWS_ACCESS_KEY_ID and the endpoint",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; renew the credentials",
}


class S3RawStore:
    """Objects of a bucket, under a prefix. Endpoint, region and credentials are boto3's own settings.

    `sse` is the server-side encryption to ask for (`AES256`, `aws:kms` or `aws:kms:dsse`, with the key's id
    in `sse_kms_key_id`), None for the bucket's own. Timeouts are in seconds, for one of `attempts` tries.
    A server that is away is reported within about `attempts * connect_timeout` seconds and the pauses
    between tries, which are of at most one second, then two.

    `put` has one winner on any service whose conditional PUT is atomic. Files of PART_BYTES and more (once
    compressed) go up in parts, and some services (SeaweedFS 4.48) check the condition of the last step before
    they take it: several writers of the same file at the same moment can then each be told that they created
    it. They wrote the same bytes, so the object is right whoever was last.

    Nothing is sent on making a store, unless `create_bucket`.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        sse: str | None = None,
        sse_kms_key_id: str | None = None,
        create_bucket: bool = False,
        max_content_bytes: int = MAX_CONTENT_BYTES,
        attempts: int = 3,
        connect_timeout: float = 3.0,
        read_timeout: float = 30.0,
    ) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        if sse is not None and sse not in _SSE:
            raise ValueError(f"server-side encryption {sse!r} is not one of {', '.join(_SSE)}")
        if sse_kms_key_id is not None and (sse is None or not sse.startswith("aws:kms")):
            raise ValueError("sse_kms_key_id needs sse=aws:kms or sse=aws:kms:dsse")
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._max_content_bytes = max_content_bytes
        self._encryption: dict[str, Any] = {}
        if sse is not None:
            self._encryption["ServerSideEncryption"] = sse
        if sse_kms_key_id is not None:
            self._encryption["SSEKMSKeyId"] = sse_kms_key_id
        try:
            # A session of its own: boto3's default one must not be used from several threads.
            self._client: S3Client = boto3.Session().client(
                "s3",
                config=Config(
                    connect_timeout=connect_timeout,
                    read_timeout=read_timeout,
                    retries={"mode": "standard", "total_max_attempts": attempts},
                    max_pool_connections=32,
                    # Every write carries a SHA-256 and every read is checked against one, so botocore's own
                    # checksums, which not every S3 service takes, would add nothing.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except BotoCoreError as error:
            raise RawStoreUnavailableError(f"S3 is not set up ({error}); check the AWS_… settings") from error
        except ValueError:
            # botocore repeats the URL, which may hold a password.
            raise RawStoreUnavailableError(
                "the endpoint of S3 is no URL; check AWS_ENDPOINT_URL_S3"
            ) from None
        endpoint = self._client.meta.endpoint_url
        self._endpoint_is_secret = "@" in endpoint
        self._where = f"bucket {bucket} at {_without_credentials(endpoint)}"
        if create_bucket:
            self._create_bucket()

    def __repr__(self) -> str:
        return f"S3RawStore({self.bucket!r}, {self.prefix.rstrip('/')!r})"

    def put(self, key: str, content: bytes) -> PutResult:
        return self._put_bytes(key, compress(key, content))

    def put_file(self, key: str, path: Path) -> PutResult:
        with path.open("rb") as source:
            if (known := self._head(key)) is not None:
                check_file(key, path)
                return PutResult(created=False, stored_bytes=known["ContentLength"])
            size = os.fstat(source.fileno()).st_size
            for attempt in range(_CONFLICT_ATTEMPTS):
                source.seek(0)
                parts = _parts(frames(key, source, size))
                first = next(parts)
                if len(first) < PART_BYTES:
                    return self._put_bytes(key, first)
                writer = secrets.token_hex(16)
                result = self._put_parts(key, writer, first, parts)
                if result is not None:
                    return result
                _pause(attempt)
        raise self._too_many_conflicts()

    def get(self, key: str) -> bytes:
        with _Stored(self, key) as stored:
            frame = stored.read_whole()
        return decompress(key, frame, self._max_content_bytes)

    def open(self, key: str) -> BinaryIO:
        stored = io.BufferedReader(_Stored(self, key), 1024**2)
        return open_content(key, stored, self._max_content_bytes)

    def exists(self, key: str) -> bool:
        return self._head(key) is not None

    def delete(self, key: str) -> None:
        from botocore.exceptions import ClientError

        name = self._name(key)
        with self._errors():
            try:
                pages = self._client.get_paginator("list_object_versions").paginate(
                    Bucket=self.bucket, Prefix=name
                )
                versions = [
                    found["VersionId"]
                    for page in pages
                    for found in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
                    if found["Key"] == name
                ]
            except ClientError as error:
                if _code(error) not in {"NotImplemented", "MethodNotAllowed"}:
                    raise
                # A service without versions.
                self._client.delete_object(Bucket=self.bucket, Key=name)
                return
            for version in versions:
                self._client.delete_object(Bucket=self.bucket, Key=name, VersionId=version)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors():
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            ):
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self.prefix)
                    if is_key(key):
                        yield ObjectInfo(key, found["Size"], found["LastModified"].astimezone(dt.UTC))

    def _name(self, key: str) -> str:
        parse_key(key)
        return self.prefix + key

    def _head(self, key: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        name = self._name(key)
        with self._errors():
            try:
                return dict(self._client.head_object(Bucket=self.bucket, Key=name))
            except ClientError as error:
                if _status(error) != 404:
                    raise
            # The answer to HEAD has no body that would say what is missing.
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if _status(error) == 404:
                    raise RawStoreUnavailableError(
                        f"raw store {self._where}: {_HINTS['NoSuchBucket']}"
                    ) from None
                # Not every role that may write objects may ask about buckets.
                if _status(error) != 403:
                    raise
            return None

    def _put_bytes(self, key: str, frame: bytes) -> PutResult:
        from botocore.exceptions import ClientError

        writer = secrets.token_hex(16)
        for attempt in range(_CONFLICT_ATTEMPTS):
            with self._errors():
                try:
                    self._client.put_object(
                        Bucket=self.bucket,
                        Key=self._name(key),
                        Body=frame,
                        IfNoneMatch="*",
                        ChecksumSHA256=_checksum(frame),
                        ContentType=_CONTENT_TYPE,
                        Metadata={_WRITER: writer},
                        **self._encryption,
                    )
                except ClientError as error:
                    if (result := self._lost_to(key, writer, error)) is not None:
                        return result
                else:
                    return PutResult(created=True, stored_bytes=len(frame))
            _pause(attempt)
        raise self._too_many_conflicts()

    def _put_parts(self, key: str, writer: str, first: bytes, others: Iterable[bytes]) -> PutResult | None:
        """Upload in parts; None where another request was in the way and the whole must be sent again."""
        from botocore.exceptions import ClientError

        name = self._name(key)
        with self._errors():
            upload_id = self._client.create_multipart_upload(
                Bucket=self.bucket,
                Key=name,
                ContentType=_CONTENT_TYPE,
                ChecksumAlgorithm="SHA256",
                Metadata={_WRITER: writer},
                **self._encryption,
            )["UploadId"]
            completed = False
            try:
                stored_bytes = 0
                done: list[CompletedPartTypeDef] = []
                for number, part in enumerate(_chain(first, others), start=1):
                    checksum = _checksum(part)
                    answer = self._client.upload_part(
                        Bucket=self.bucket,
                        Key=name,
                        UploadId=upload_id,
                        PartNumber=number,
                        Body=part,
                        ChecksumSHA256=checksum,
                    )
                    done.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum})
                    stored_bytes += len(part)
                try:
                    self._client.complete_multipart_upload(
                        Bucket=self.bucket,
                        Key=name,
                        UploadId=upload_id,
                        IfNoneMatch="*",
                        MultipartUpload={"Parts": done},
                    )
                except ClientError as error:
                    return self._lost_to(key, writer, error)
                completed = True
                return PutResult(created=True, stored_bytes=stored_bytes)
            finally:
                if not completed:
                    # What cannot be aborted now is left to the bucket's lifecycle rule.
                    with suppress(Exception):
                        self._client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload_id)

    def _lost_to(self, key: str, writer: str, error: Any) -> PutResult | None:
        """What became of a refused conditional write; None to write again. Raises any other error."""
        # 412: there is an object. 409: there was another request for it at the same time. 404: a multipart
        # upload that is no more, because an earlier try of ours completed it.
        if _status(error) not in {409, 412} and _code(error) != "NoSuchUpload":
            raise error
        known = self._head(key)
        if known is None:
            return None
        return PutResult(
            created=known.get("Metadata", {}).get(_WRITER) == writer, stored_bytes=known["ContentLength"]
        )

    def _create_bucket(self) -> None:
        from botocore.exceptions import ClientError

        region = self._client.meta.region_name
        with self._errors():
            try:
                if region in {None, "us-east-1", "aws-global"}:
                    self._client.create_bucket(Bucket=self.bucket)
                else:
                    self._client.create_bucket(
                        Bucket=self.bucket,
                        CreateBucketConfiguration={"LocationConstraint": region},  # type: ignore[typeddict-item]
                    )
            except ClientError as error:
                if _code(error) != "BucketAlreadyOwnedByYou":
                    raise

    def _too_many_conflicts(self) -> RawStoreUnavailableError:
        return RawStoreUnavailableError(
            f"raw store {self._where}: other requests for the same object were in the way "
            f"{_CONFLICT_ATTEMPTS} times"
        )

    @contextmanager
    def _errors(self, key: str | None = None) -> Iterator[None]:
        """botocore's errors as ours, without credentials: an endpoint's URL is all that could hold them."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
        )

        try:
            yield
        except ClientError as error:
            code = _code(error)
            if key is not None and code in {"NoSuchKey", "404"}:
                raise RawObjectMissingError(f"no raw object {key} in {self._where}") from None
            raise RawStoreUnavailableError(
                f"raw store {self._where}: {_HINTS.get(code, f'{error.operation_name} failed with {code}')}"
            ) from error
        except NoCredentialsError as error:
            raise RawStoreUnavailableError(
                f"raw store {self._where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE, or give the machine a role"
            ) from error
        except (BotoCoreError, OSError) as error:
            raise RawStoreUnavailableError(
                f"raw store {self._where} cannot be reached ({type(error).__name__})"
            ) from (None if self._endpoint_is_secret else error)


class _Stored(io.RawIOBase):
    """The stored bytes of an object as a stream, which goes on where it was when its connection breaks.

    A service may hang up on a reader that takes its time, as a parser of a large file does.
    """

    def __init__(self, store: S3RawStore, key: str) -> None:
        self._store = store
        self._name = store._name(key)
        self._position = 0
        with store._errors(key):
            answer = store._client.get_object(Bucket=store.bucket, Key=self._name)
        self._body = answer["Body"]
        self._etag = answer["ETag"]
        self._size = answer["ContentLength"]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        data = self._read(wanted)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def read_whole(self) -> bytes:
        """All the stored bytes at once; not after `read`."""
        return self._read(self._size)

    def _read(self, count: int) -> bytes:
        from botocore.exceptions import BotoCoreError

        for _ in range(_STREAM_ATTEMPTS):
            with suppress(BotoCoreError, OSError):
                if len(data := self._body.read(count)) == count:
                    return data
            self._body.close()
            with self._store._errors():
                self._body = self._store._client.get_object(
                    Bucket=self._store.bucket,
                    Key=self._name,
                    Range=f"bytes={self._position}-",
                    IfMatch=self._etag,
                )["Body"]
        with self._store._errors():
            return self._body.read(count)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


def _parts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces gathered into parts of PART_BYTES, of which only the last may be shorter."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= PART_BYTES:
            yield bytes(memoryview(buffer)[:PART_BYTES])
            del buffer[:PART_BYTES]
    if buffer:
        yield bytes(buffer)


def _chain(first: bytes, others: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _checksum(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode("ascii")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _pause(attempt: int) -> None:
    time.sleep((0.05 + secrets.randbelow(100) / 1000) * 2**attempt)


def _without_credentials(endpoint_url: str) -> str:
    parts = urlsplit(endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
