"""How many calls a second the receiver takes, and what hostile clients cost the others.

    python tests/benchmarks/receiver_load.py [--seconds 10] [--start 20]

A receiver of its own (`health-pipeline receiver`: its own process, an embedded Postgres and a raw folder in a new
home) is sent WHOOP's signed notices of fifty connected people, each another one, at rising rates. The load is open:
calls leave when they are due, whatever became of those before, and their time counts from when they were due. The
rate rises until the 95th percentile of the accepts is over 100 ms; half of the last good rate is held longer, alone
and beside hostile clients: connections that say nothing or a byte a second, calls with wrong signatures, and bodies
that are too long. Senders are processes of their own, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import itertools
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import sqlalchemy as sa

from health_pipeline.warehouse.connection import open_warehouse

SECRET = "load-secret"
PEOPLE = 50
#: The 95th percentile that the rate is measured by, s.
WANTED_P95 = 0.1
#: Calls that are under way at the same time, at most: beyond, the receiver is not keeping up.
MOST_OPEN = 400
HOSTILE_CONNECTIONS = 600


@dataclass(frozen=True)
class Measured:
    """Answers by status, and the times of the accepts, s, in ascending order."""

    rate: float
    statuses: Counter[str]
    seconds: list[float]

    def percentile(self, percent: float) -> float:
        if not self.seconds:
            return float("inf")
        return self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * percent / 100))]

    @property
    def is_good(self) -> bool:
        return self.percentile(95) <= WANTED_P95 and set(self.statuses) == {"200"}

    def __str__(self) -> str:
        p50, p95, p99 = (f"{1000 * self.percentile(percent):5.0f}" for percent in (50, 95, 99))
        answers = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        return f"{self.rate:6.0f}/s  p50 {p50} ms  p95 {p95} ms  p99 {p99} ms  {answers}"


def notice(signed: bool = True) -> bytes:
    """A request with WHOOP's notice of a sleep that nobody has heard of."""
    person = int.from_bytes(os.urandom(2)) % PEOPLE
    body = orjson.dumps(
        {
            "user_id": 1000 + person,
            "id": str(uuid.uuid4()),
            "type": "sleep.updated",
            "trace_id": str(uuid.uuid4()),
        }
    )
    timestamp = str(int(time.time() * 1000)).encode()
    proof = hmac.digest((SECRET if signed else "guess").encode(), timestamp + body, hashlib.sha256)
    return (
        b"POST /webhooks/whoop HTTP/1.1\r\nHost: receiver\r\nContent-Type: application/json\r\n"
        b"X-WHOOP-Signature: %b\r\nX-WHOOP-Signature-Timestamp: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (base64.b64encode(proof), timestamp, len(body), body)
    )


class Connections:
    """Connections that are kept between calls, as a provider's sender keeps them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, request: bytes) -> str:
        """The status of the answer, or what happened instead."""
        try:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
            writer.write(request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            return type(error).__name__
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return head.split(b" ", 2)[1].decode()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)


def send(port: int, rate: float, seconds: float) -> Measured:
    """An open load of so many calls a second."""
    return asyncio.run(_send(port, rate, seconds))


async def _send(port: int, rate: float, seconds: float) -> Measured:
    connections = Connections(port)
    statuses: Counter[str] = Counter()
    times: list[float] = []

    async def one(due: float) -> None:
        status = await connections.call(notice())
        statuses[status] += 1
        if status == "200":
            times.append(time.perf_counter() - due)

    started = time.perf_counter()
    open_calls: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if len(open_calls) >= MOST_OPEN:
            statuses["not sent"] += 1
            continue
        task = asyncio.create_task(one(due))
        open_calls.add(task)
        task.add_done_callback(open_calls.discard)
    await asyncio.gather(*open_calls)
    return Measured(rate, statuses, sorted(times))


def annoy(port: int, seconds: float) -> Counter[str]:
    """Be hostile for a while: slow connections, wrong signatures (200 a second), large bodies (5 a second)."""
    return asyncio.run(_annoy(port, seconds))


async def _annoy(port: int, seconds: float) -> Counter[str]:
    did: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def slow(number: int) -> None:
        head = b"POST /webhooks/whoop HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100000\r\n\r\n"
        said = [b"", head[:20], head][number % 3]
        await asyncio.sleep(number / HOSTILE_CONNECTIONS)
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                did["slow connections"] += 1
                writer.write(said)
                while time.monotonic() < until and not reader.at_eof() and not writer.is_closing():
                    writer.write(b"x" if said else b"")
                    await asyncio.sleep(1)
                writer.close()
            await asyncio.sleep(0.2)

    async def forged() -> None:
        connections = Connections(port)
        while time.monotonic() < until:
            did[f"forged {await connections.call(notice(signed=False))}"] += 1
            await asyncio.sleep(0.02)

    async def large() -> None:
        head = b"POST /webhooks/whoop HTTP/1.1\r\nHost: receiver\r\nContent-Type: application/json\r\n"
        request = head + b"Content-Length: 2000000\r\n\r\n" + b"x" * 2_000_000
        while time.monotonic() < until:
            did[f"large {await Connections(port).call(request)}"] += 1
            await asyncio.sleep(0.4)

    await asyncio.gather(
        *(slow(number) for number in range(HOSTILE_CONNECTIONS)),
        *(forged() for _ in range(4)),
        large(),
        large(),
    )
    return did


@contextlib.contextmanager
def receiver() -> Iterator[int]:
    """A receiver of its own, with people who are connected; its port."""
    with tempfile.TemporaryDirectory(prefix="receiver-load-") as home:
        os.environ["HEALTH_PIPELINE_HOME"] = home
        warehouse = open_warehouse()
        with warehouse.engine.begin() as connection:
            for person in range(PEOPLE):
                connection.execute(
                    sa.text(
                        "with made as (insert into ops.users (handle) values (:handle) returning user_id) "
                        "insert into ops.provider_accounts (user_id, provider, provider_user_id, status) "
                        "select user_id, 'whoop', :id, 'active' from made"
                    ),
                    {"handle": f"person {person}", "id": str(1000 + person)},
                )
        port = 18700
        log = Path(home) / "receiver.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "health_pipeline.cli", "receiver", "--port", str(port)],
                env={
                    **os.environ,
                    "HEALTH_PIPELINE_WHOOP_WEBHOOK_SECRET": SECRET,
                    "HEALTH_PIPELINE_WEBHOOK_RATE": "100000",
                },
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            for _ in itertools.repeat(None, 300):
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"http://127.0.0.1:{port}/healthz")
                    break
                time.sleep(0.1)
            yield port
            with warehouse.engine.connect() as connection:
                events, without = connection.execute(
                    sa.text(
                        "select count(*), count(*) filter (where raw_object_id is null) from ops.webhook_events"
                    )
                ).one()
            print(f"{events} events kept, {without} without a raw object")
        finally:
            process.terminate()
            process.wait(30)
            warehouse.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10, help="of each rate")
    parser.add_argument("--start", type=float, default=20, help="calls a second to begin with")
    parser.add_argument("--growth", type=float, default=1.25)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    context = multiprocessing.get_context("spawn")
    with receiver() as port, ProcessPoolExecutor(2, mp_context=context) as senders:
        senders.submit(send, port, 10, 3).result()
        rate, good = arguments.start, 0.0
        while True:
            measured = senders.submit(send, port, rate, arguments.seconds).result()
            if not measured.is_good:
                # A neighbour on the machine may have had its moment.
                print(measured, " again")
                measured = senders.submit(send, port, rate, arguments.seconds).result()
            print(measured, flush=True)
            if not measured.is_good:
                break
            good, rate = rate, rate * arguments.growth
        print(f"good up to {good:.0f}/s; p95 of accept breaks {1000 * WANTED_P95:.0f} ms at {rate:.0f}/s")
        if not good:
            return
        half = good / 2
        alone = senders.submit(send, port, half, 2 * arguments.seconds).result()
        print(f"half, alone    {alone}", flush=True)
        hostile = senders.submit(annoy, port, 2 * arguments.seconds + 4)
        time.sleep(3)
        beside = senders.submit(send, port, half, 2 * arguments.seconds).result()
        print(f"half, hostile  {beside}", flush=True)
        print(dict(hostile.result()))
        for percent in (50, 95, 99):
            print(
                f"p{percent}: hostile clients cost x{beside.percentile(percent) / alone.percentile(percent):.2f}"
            )


if __name__ == "__main__":
    main()
