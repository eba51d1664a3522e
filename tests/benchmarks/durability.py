"""What was answered with 2xx is never lost, whatever is killed: receiver, database, raw store, run, daemon.

    python tests/benchmarks/durability.py --seed 1 --kills 12

A sender posts signed webhooks, each several times and in a random order, and writes down every 2xx; meanwhile
parts of the system are killed with -9 and started again. In the end each acknowledged event has its row and its
raw object with the same bytes, every event is processed, and the days of all people are as they lived them.
Prints a line of JSON; exit code 1 where something is lost or wrong. Waits of minutes between tries are cut short.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import boto3
import httpx
import sqlalchemy as sa
from seaweed import SeaweedServer, weed_binary

from health_pipeline.connections.callback import callback_path
from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import open_store
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.runtime.comparison import compare_with_truth
from health_pipeline.runtime.dagster_home import prepare
from health_pipeline.runtime.processes import free_port
from health_pipeline.sandbox.routers import WebhookCall
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.settings import Settings, load_settings
from health_pipeline.warehouse.connection import Warehouse, close_warehouse, open_warehouse
from health_pipeline.warehouse.dbt_project import ensure_manifest

PEOPLE = ("ada", "ben", "chen")
WORKSPACE = Path(__file__).resolve().parents[2] / "workspace.yaml"


@dataclass
class Sent:
    """What was acknowledged: the digests of bodies, as often as they were."""

    accepted: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, digest: str, answer: str, good: bool) -> None:
        with self.lock:
            self.answers[answer] = self.answers.get(answer, 0) + 1
            if good:
                self.accepted[digest] = self.accepted.get(digest, 0) + 1


class System:
    """The processes of a house, each to be killed and started again."""

    def __init__(self, home: Path, environment: dict[str, str], weed: SeaweedServer | None) -> None:
        self.home = home
        self.environment = {**os.environ, **environment, "DURABILITY": str(home), "PYTHONWARNINGS": "ignore"}
        self.weed = weed
        self.port = free_port(None)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        commands = {
            "receiver": [sys.executable, "-m", "health_pipeline.cli", "receiver", "--port", str(self.port)],
            "daemon": [
                str(Path(sys.executable).with_name("dagster-daemon")), "run", "--workspace", str(WORKSPACE)
            ],
        }  # fmt: skip
        with (self.home / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                commands[name], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_for_receiver(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=2).is_success:
                    return
            time.sleep(0.1)
        raise RuntimeError("the receiver does not answer")

    def kill(self, name: str) -> bool:
        """Kill a part with -9 and start it again; False where it was not there to be killed."""
        if name in self._children:
            child = self._children[name]
            child.kill()
            child.wait()
            self.start(name)
            return True
        if name == "postgres":
            state = self.home / "postgres" / "server.json"
            # Its supervisor starts it again.
            with contextlib.suppress(OSError, ValueError):
                os.kill(json.loads(state.read_text())["postmaster_pid"], signal.SIGKILL)
                return True
            return False
        if name == "raw store" and self.weed is not None:
            self.weed.kill()
            self.weed.start()
            return True
        if name == "run":
            for pid in self._runs():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    def _runs(self) -> list[int]:
        """Processes that the daemon's code server started for runs, or that were forked for them."""
        commands, parents = {}, {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if f"DURABILITY={self.home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    commands[int(folder.name)] = (folder / "cmdline").read_bytes()
                    # After the name, which is in brackets and may have spaces: state, parent.
                    parents[int(folder.name)] = int(
                        (folder / "stat").read_text().rpartition(")")[2].split()[1]
                    )
        forkers = {pid for pid, command in commands.items() if b"multiprocessing.forkserver" in command}
        return [
            pid
            for pid, command in commands.items()
            if b"multiprocessing.spawn" in command or (pid in forkers and parents[pid] in forkers)
        ]

    def stop(self) -> None:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for pid in self._runs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def house(
    home: Path, *, with_s3: bool, providers: Sequence[str] = ("terra",)
) -> Iterator[tuple[System, Warehouse, Settings, RunningSandbox]]:
    """Postgres, raw store and sandbox, with everybody connected; nothing of it is running yet."""
    before = dict(os.environ)
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, before)
        environment = {"HEALTH_PIPELINE_HOME": str(home)}
        weed = None
        if with_s3:
            weed = stack.enter_context(SeaweedServer())
            os.environ.update(weed.environment)
            boto3.client("s3").create_bucket(Bucket="raw")
            environment |= {**weed.environment, "HEALTH_PIPELINE_RAW_URL": "s3://raw/objects"}
        sandbox = stack.enter_context(run_in_thread())
        environment["HEALTH_PIPELINE_SANDBOX_URL"] = sandbox.url
        os.environ.update(environment)
        load_settings.cache_clear()
        settings = load_settings()
        warehouse = open_warehouse(settings)
        stack.callback(close_warehouse)
        with warehouse.engine.begin() as connection:
            for handle in PEOPLE:
                ensure_user(connection, handle, "Europe/Berlin")
        for name in providers:
            for handle in PEOPLE:
                # Not everybody has everything.
                with contextlib.suppress(ConsentError):
                    connect_sandbox_person(settings, warehouse, open_vault(settings), get(name), handle)
        environment |= prepare(settings, warehouse)
        system = System(home, environment, weed)
        stack.callback(system.stop)
        yield system, warehouse, settings, sandbox


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    load_settings.cache_clear()


def calls(sandbox: RunningSandbox, settings: Settings, window: Window) -> list[WebhookCall]:
    """What Terra would push of everybody's days, signed."""
    api = sandbox.app.state.apis["terra"]
    secret = Secrets(settings).of(get("terra"))[0]
    found = []
    for handle in PEOPLE:
        day = window.start
        while day <= window.end:
            with contextlib.suppress(LookupError):
                found += api.webhooks(handle, day, secret)
            day += dt.timedelta(days=1)
    return found


def send(
    system: System,
    path: str,
    sending: list[Callable[[], WebhookCall]],
    sent: Sent,
    *,
    threads: int = 8,
    until: float,
) -> None:
    """Post each call until it is acknowledged, as vendors do, but sooner; sign it anew for each try."""
    url = f"http://127.0.0.1:{system.port}{path}"

    def one(make: Callable[[], WebhookCall]) -> None:
        while time.monotonic() < until:
            call = make()
            digest = hashlib.sha256(call.body).hexdigest()
            try:
                answer = httpx.post(url, content=call.body, headers=dict(call.headers), timeout=30)
            except httpx.HTTPError as error:
                sent.note(digest, type(error).__name__, False)
            else:
                sent.note(digest, str(answer.status_code), answer.is_success)
                if answer.is_success:
                    return
            time.sleep(0.2)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, sending))


def lost(warehouse: Warehouse, settings: Settings, sent: Sent) -> list[str]:
    """Acknowledged bodies without an event, or whose raw object is not there or holds other bytes."""
    store = open_store(settings.raw_location)
    with warehouse.engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "select split_part(provider_event_id, ':', 1) as digest, object_key, sha256 "
                "from ops.webhook_events inner join ops.raw_objects using (raw_object_id)"
            )
        ).all()
    kept = {
        row.digest
        for row in rows
        if row.digest == row.sha256 == hashlib.sha256(store.get(row.object_key)).hexdigest()
    }
    return sorted(sent.accepted.keys() - kept)


def patiently(work: Callable[[], object], seconds: float = 60) -> object:
    """Try until the database is there again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except sa.exc.DBAPIError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def waiting(warehouse: Warehouse) -> int:
    """Events that are not processed; those put off are made due."""
    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.text(
                "update ops.webhook_events set next_try_at = now(), attempts = 0 "
                "where state = 'pending' and next_try_at > now() + interval '10 seconds'"
            )
        )
        connection.execute(
            sa.text(
                "update ops.webhook_events set next_try_at = now(), attempts = 0 where state = 'processing' "
                "and updated_at < now() - interval '150 seconds'"
            )
        )
        found = connection.execute(
            sa.text("select count(*) from ops.webhook_events where state <> 'processed'")
        ).scalar_one()
    return int(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--between", type=float, default=8.0, help="mean seconds between kills")
    parser.add_argument("--repeats", type=int, default=5, help="each call is delivered up to so often")
    options = parser.parse_args()
    # What is ended ends all that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chance = random.Random(options.seed)
    today = dt.datetime.now(dt.UTC).date()
    # Two days ago is over everywhere, and nothing of it changes while this runs.
    window = Window(today - dt.timedelta(days=options.days + 1), today - dt.timedelta(days=2))
    ensure_manifest()
    home = Path(tempfile.mkdtemp(prefix="durability-"))
    with house(home, with_s3=weed_binary() is not None) as (system, warehouse, settings, sandbox):
        for name in ("receiver", "daemon"):
            system.start(name)
        system.wait_for_receiver()
        api, secret = sandbox.app.state.apis["terra"], Secrets(settings).of(get("terra"))[0]
        bodies = [call.body for call in calls(sandbox, settings, window)]
        sending = [
            (lambda body=body: api.signed(body, secret))
            for body in bodies
            for _ in range(chance.randint(1, options.repeats))
        ]
        chance.shuffle(sending)
        sent, killed = Sent(), {}
        limit = time.monotonic() + 600
        # Spread over the time of the kills, so that each meets traffic.
        pace = options.kills * options.between / max(len(sending), 1) * 8

        def paced(make: Callable[[], WebhookCall]) -> Callable[[], WebhookCall]:
            def slowly() -> WebhookCall:
                time.sleep(chance.uniform(0, 2 * pace))
                return make()

            return slowly

        sender = threading.Thread(
            target=send,
            args=(
                system,
                callback_path(settings, get("terra")),
                [paced(make) for make in sending],
                sent,
            ),
            kwargs={"until": limit},
        )
        sender.start()
        for _ in range(options.kills):
            time.sleep(chance.expovariate(1 / options.between))
            parts = ["receiver", "postgres", "raw store", "run", "daemon"]
            chance.shuffle(parts)
            # Each in its turn; a run can be killed only while there is one.
            parts.sort(key=lambda part: killed.get(part, 0))
            part = next((part for part in parts if system.kill(part)), None)
            killed[str(part)] = killed.get(str(part), 0) + 1
            print(f"killed {part}", file=sys.stderr)
        sender.join()
        print(f"sent; answers {sent.answers}", file=sys.stderr)
        gone = patiently(lambda: lost(warehouse, settings, sent))
        deadline = time.monotonic() + 900
        while (left := patiently(lambda: waiting(warehouse))) and time.monotonic() < deadline:
            time.sleep(5)
        (comparison,) = compare_with_truth(warehouse, sandbox.url, [get("terra")], window)
        result = {
            "seed": options.seed,
            "killed": killed,
            "calls": len(sending),
            "bodies": len(bodies),
            "answers": sent.answers,
            "acknowledged": len(sent.accepted),
            "lost": len(gone),  # type: ignore[arg-type]
            "not_processed": left,
            "values_compared": comparison.compared,
            "values_wrong": len(comparison.wrong),
        }
        print(json.dumps(result))
        for wrong in comparison.wrong[:5]:
            print(wrong.words(), file=sys.stderr)
    bad = result["lost"] or left or comparison.wrong or len(sent.accepted) < len(bodies)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
