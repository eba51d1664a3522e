"""Both kinds of raw store, and a way round each to what it keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import boto3

from health_pipeline.raw.folder import FolderRawStore
from health_pipeline.raw.s3 import S3RawStore
from health_pipeline.raw.store import RawStore, open_store


class Backend(ABC):
    """A store, and its medium without the store."""

    url: str
    store: RawStore

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The stored bytes of a key."""

    @abstractmethod
    def write(self, key: str, stored: bytes) -> None:
        """Put any bytes under any name."""

    @abstractmethod
    def half_written(self) -> int:
        """How many writes have begun and not ended."""

    @abstractmethod
    def clear(self) -> None:
        """Remove everything, half-written objects too."""


class FolderBackend(Backend):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()
        self.store = open_store(self.url)
        assert isinstance(self.store, FolderRawStore)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, stored: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored)

    def half_written(self) -> int:
        return len(list((self.root / ".incoming").iterdir()))

    def clear(self) -> None:
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_file():
                path.unlink()
            elif path.name != ".incoming":
                path.rmdir()


class S3Backend(Backend):
    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.url = f"s3://{bucket}/raw"
        self.client: Any = boto3.Session().client("s3")
        self.store = open_store(self.url, create_bucket=True)
        assert isinstance(self.store, S3RawStore)

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=f"raw/{key}")["Body"].read()

    def write(self, key: str, stored: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"raw/{key}", Body=stored)

    def half_written(self) -> int:
        return len(self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ()))

    def clear(self) -> None:
        for found in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ()):
            self.client.abort_multipart_upload(
                Bucket=self.bucket, Key=found["Key"], UploadId=found["UploadId"]
            )
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for found in page.get("Contents", ()):
                self.client.delete_object(Bucket=self.bucket, Key=found["Key"])
