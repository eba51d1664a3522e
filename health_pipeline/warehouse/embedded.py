"""An embedded PostgreSQL server that runs while commands use it, and no longer.

Every process that uses the server holds a lease: a shared lock on one file, which the kernel gives back
however the process ends. A detached supervisor owns the server, restarts it if it dies, and stops it when
nobody holds a lease any more. No process has to outlive another, and none is left behind.

State of the server lives in `<home>/postgres/`:

| File | What it is |
|---|---|
| `lease.lock` | shared by users of the server; the supervisor stops when it can have it exclusively |
| `start.lock` | held by the one process that starts or destroys the server |
| `supervisor.lock` | held by the supervisor as long as it lives |
| `server.json` | port and process ids; present while the server accepts connections |
| `password`, `port` | of the superuser `health` (mode 0600), and of the last start |
| `postgres.log`, `supervisor.log` | logs |
| `data/` | the cluster |
| `location` | where the cluster is instead, when the server's user cannot reach the home |
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

HOST = "127.0.0.1"
SUPERUSER = "health"
MAINTENANCE_DATABASE = "postgres"
#: Clusters whose home the server's unprivileged user cannot reach, one folder a home.
SYSTEM_DIRECTORY = Path("/var/lib/health-pipeline")
EXTERNAL_HINT = "To use a PostgreSQL server of your own instead, set HEALTH_PIPELINE_DATABASE_URL."

#: Seconds for a start, long enough for crash recovery of `max_wal_size` on a slow disk.
START_TIMEOUT = 300.0
#: Seconds a stop may take before it counts as stuck; the supervisor has sent SIGKILL by then.
STOP_TIMEOUT = 120.0
POLL_INTERVAL = 0.02
LOG_SIZE_LIMIT = 10 * 2**20

logger = logging.getLogger(__name__)


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot be used. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a running server is, and how to log in as its superuser."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)

    def url(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        """SQLAlchemy URL of `database`, password included; `driver="postgresql"` gives a libpq URL."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"{driver}://{login}@{self.host}:{self.port}/{quote(database, safe='')}"

    def libpq_env(self, database: str) -> dict[str, str]:
        """Environment variables with which psql, pg_dump and other libpq programs reach `database`."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": database,
        }


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the supervisor tells others while its server accepts connections."""

    port: int
    postmaster_pid: int
    supervisor_pid: int


class ServerFiles:
    """Paths and small files of one home's server, shared by its users and its supervisor."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "postgres"
        self.lease_lock = self.root / "lease.lock"
        self.start_lock = self.root / "start.lock"
        self.supervisor_lock = self.root / "supervisor.lock"
        self.state = self.root / "server.json"
        self.password = self.root / "password"
        self.port = self.root / "port"
        self.location = self.root / "location"
        self.server_log = self.root / "postgres.log"
        self.supervisor_log = self.root / "supervisor.log"

    @property
    def system_base(self) -> Path:
        """Where this home's cluster goes if the home cannot hold it."""
        return SYSTEM_DIRECTORY / hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]

    @property
    def base(self) -> Path:
        """The folder that has the cluster: this one, or the one recorded in `location`."""
        try:
            return Path(self.location.read_text().strip())
        except FileNotFoundError:
            return self.root

    @property
    def data(self) -> Path:
        return self.base / "data"

    def create_root(self) -> None:
        """Create the folder; only its owner may list it, yet a server running as another user may pass."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self.root.stat().st_uid == os.geteuid():
            self.root.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def read_state(self) -> ServerState | None:
        try:
            return ServerState(**json.loads(self.state.read_text()))
        except FileNotFoundError:
            return None

    def write_private(self, path: Path, text: str) -> None:
        """Replace `path`, mode 0600; readers, and a machine that crashes, have the old or the new text."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            _give_to_owner_of(path.parent, descriptor)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)

    def supervisor_alive(self) -> bool:
        try:
            descriptor = os.open(self.supervisor_lock, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two who ask at once do not take each other for the supervisor.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def open_log(path: Path) -> int:
    """Open a log for appending, mode 0600; one that has grown beyond 10 MB becomes `<name>.1` first."""
    if path.exists() and path.stat().st_size > LOG_SIZE_LIMIT:
        path.replace(path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    _give_to_owner_of(path.parent, descriptor)
    return descriptor


def log_tail(path: Path, lines: int = 15, since: int = 0) -> str:
    """The last lines of a log, none of those before byte `since`, for an error message."""
    try:
        with path.open("rb") as log:
            log.seek(max(since, log.seek(0, os.SEEK_END) - 16384))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return f"({path} does not exist)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or f"({path} is empty)"


def wait_lock(path: Path, operation: int, timeout: float) -> int | None:
    """Lock `path` with flock and return its descriptor, which holds the lock until it is closed.

    None when others still hold it after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _give_to_owner_of(path.parent, descriptor)
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            # A lock on a file that was deleted meanwhile (`destroy`) excludes nobody.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_INTERVAL)


def _give_to_owner_of(directory: Path, descriptor: int) -> None:
    """Keep a home usable by its owner after root has run a command in it."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def query_row(address: ServerAddress, query: str) -> tuple[str, ...] | None:
    """The one row of a query on a new connection; None while the server does not take connections.

    Raises `EmbeddedPostgresError` if it refuses the password.
    """
    import psycopg2  # type: ignore[import-untyped]

    try:
        connection = psycopg2.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            password=address.password,
            dbname=MAINTENANCE_DATABASE,
            connect_timeout=10,
            application_name="health-pipeline",
            # Not what PGSSLMODE, PGOPTIONS and the like in the user's environment ask of other servers.
            sslmode="disable",
            gssencmode="disable",
            options="",
        )
    except psycopg2.OperationalError as error:
        if "authentication failed" in str(error):
            raise EmbeddedPostgresError(
                f"the embedded PostgreSQL on port {address.port} refuses the password in its `password` "
                "file; put the right one back there. " + EXTERNAL_HINT
            ) from None
        return None
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            row = cursor.fetchone()
    except psycopg2.OperationalError:
        return None
    finally:
        connection.close()
    return tuple(row or ())


class EmbeddedPostgres:
    """The embedded server of one home.

    Instances are cheap, safe to share between threads, and each holds a lease of its own. A forked child
    shares its parent's lease; a program started with exec does not.
    """

    def __init__(self, home: Path) -> None:
        self._files = ServerFiles(home.expanduser().resolve())
        self._lease: int | None = None
        self._mutex = threading.Lock()

    def acquire(self) -> ServerAddress:
        """Take a lease, start the server if it is not running, and return its address.

        The first start creates the cluster, which takes seconds. Called again, it checks the server and
        starts it anew if need be.

        Raises `EmbeddedPostgresError` if the server cannot be started, or runs without durable commits.
        """
        with self._mutex, errors_named(self._files):
            leased_before = self._lease is not None
            try:
                if self._lease is None:
                    self._lease = self._take_lease()
                return self._running() or self._start()
            except BaseException:
                if not leased_before:
                    self._close_lease()
                raise

    def release(self) -> None:
        """Give the lease back. With the last one, the server stops within a second or so."""
        with self._mutex:
            self._close_lease()

    @contextlib.contextmanager
    def lease(self) -> Iterator[ServerAddress]:
        """The server's address for the length of a `with` block."""
        address = self.acquire()
        try:
            yield address
        finally:
            self.release()

    def running(self) -> ServerAddress | None:
        """The address of the server if it runs now, without starting it or keeping it up."""
        with errors_named(self._files):
            return self._running()

    def destroy(self) -> None:
        """Stop the server and delete the cluster with everything in it.

        Raises `EmbeddedPostgresError`, having deleted nothing, while other processes hold leases.
        """
        with self._mutex, errors_named(self._files):
            self._close_lease()
            files = self._files
            # The second is the cluster of a home that was deleted at this path.
            elsewhere = {files.base, *([files.system_base] if os.geteuid() == 0 else [])} - {files.root}
            if not files.root.exists() and not any(base.exists() for base in elsewhere):
                return
            files.create_root()
            with self._start_lock():
                lease = wait_lock(files.lease_lock, fcntl.LOCK_EX, timeout=1.0)
                if lease is None:
                    raise EmbeddedPostgresError(
                        f"the embedded PostgreSQL of {files.home} is in use by another process; "
                        "end that first"
                    )
                try:
                    self._stop_supervisor()
                    for base in (*elsewhere, files.root):
                        end_orphans(base / "data")
                    for base in elsewhere:
                        if base.exists():
                            shutil.rmtree(base)
                    # In one step, or a command that waits for a lease would make its lock file in a folder
                    # that is being deleted.
                    files.root.rename(files.root.with_name(f"postgres.removed-{os.getpid()}"))
                    for removed in files.home.glob("postgres.removed-*"):
                        shutil.rmtree(removed)
                finally:
                    os.close(lease)

    def _take_lease(self) -> int:
        for _ in range(10):
            self._files.create_root()
            # The folder goes away under us if another command destroys it.
            with contextlib.suppress(FileNotFoundError):
                lease = wait_lock(self._files.lease_lock, fcntl.LOCK_SH, STOP_TIMEOUT)
                if lease is not None:
                    return lease
        raise EmbeddedPostgresError(
            f"the embedded PostgreSQL of {self._files.home} is being destroyed by another command; "
            "try again when that has ended"
        )

    def _running(self) -> ServerAddress | None:
        if not self._files.supervisor_alive():
            return None
        state = self._files.read_state()
        if state is None:
            return None
        address = ServerAddress(HOST, state.port, SUPERUSER, self._files.password.read_text())
        return address if query_row(address, "select 1") is not None else None

    def _start(self) -> ServerAddress:
        """Start a supervisor unless there is one, and wait until the server accepts connections."""
        with self._start_lock():
            deadline = time.monotonic() + START_TIMEOUT
            supervisors = 0
            while time.monotonic() < deadline:
                if (address := self._running()) is not None:
                    return address
                # One that is alive is starting, recovering or stopping: wait for what comes of it.
                if not self._files.supervisor_alive():
                    supervisors += 1
                    if supervisors > 3:
                        break
                    self._spawn_supervisor(deadline)
                else:
                    time.sleep(POLL_INTERVAL)
        raise EmbeddedPostgresError(
            f"the embedded PostgreSQL of {self._files.home} does not stay up. {EXTERNAL_HINT}\n"
            f"End of {self._files.server_log}:\n{log_tail(self._files.server_log)}"
        )

    @contextlib.contextmanager
    def _start_lock(self) -> Iterator[None]:
        descriptor = wait_lock(self._files.start_lock, fcntl.LOCK_EX, START_TIMEOUT)
        if descriptor is None:
            raise EmbeddedPostgresError(
                f"another command has been starting the embedded PostgreSQL of {self._files.home} for "
                f"{START_TIMEOUT:.0f} s; see {self._files.supervisor_log}"
            )
        try:
            yield
        finally:
            os.close(descriptor)

    def _spawn_supervisor(self, deadline: float) -> None:
        """Start the supervisor and wait for its one line on stdout: ready, or the reason why not."""
        files = self._files
        since = files.supervisor_log.stat().st_size if files.supervisor_log.exists() else 0
        log = open_log(files.supervisor_log)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "health_pipeline.warehouse._supervisor", str(files.home)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=_supervisor_environment(),
                start_new_session=True,
            )
        finally:
            os.close(log)
        assert process.stdout is not None
        with process.stdout as pipe:
            report = _read_all(pipe.fileno(), deadline)
        process.wait()
        if report is None:
            raise EmbeddedPostgresError(
                f"the embedded PostgreSQL of {files.home} did not start within {START_TIMEOUT:.0f} s. "
                f"{EXTERNAL_HINT}\nEnd of {files.server_log}:\n{log_tail(files.server_log)}"
            )
        if not report:
            raise EmbeddedPostgresError(
                f"the supervisor of the embedded PostgreSQL of {files.home} died at start. {EXTERNAL_HINT}\n"
                f"End of {files.supervisor_log}:\n{log_tail(files.supervisor_log, since=since)}"
            )
        if (error := json.loads(report).get("error")) is not None:
            raise EmbeddedPostgresError(error)

    def _stop_supervisor(self) -> None:
        files = self._files
        deadline = time.monotonic() + STOP_TIMEOUT
        signalled = False
        while files.supervisor_alive():
            # The file may be there only later: a supervisor can be starting for a command that was killed.
            if not signalled and (state := files.read_state()) is not None:
                os.kill(state.supervisor_pid, signal.SIGTERM)
                signalled = True
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"the embedded PostgreSQL of {files.home} does not stop; see {files.supervisor_log}"
                )
            time.sleep(POLL_INTERVAL)

    def _close_lease(self) -> None:
        # Closed, not unlocked: unlocking would take the lease from a forked process that shares it.
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None


@contextlib.contextmanager
def errors_named(files: ServerFiles) -> Iterator[None]:
    """Turn an OSError (a full disk, a folder of another user) into an error that names the server."""
    try:
        yield
    except PermissionError as error:
        raise EmbeddedPostgresError(
            f"no permission for {error.filename or files.root}: the embedded PostgreSQL of {files.home} "
            f"belongs to another user. Run as that user, or use another HEALTH_PIPELINE_HOME. {EXTERNAL_HINT}"
        ) from error
    except OSError as error:
        raise EmbeddedPostgresError(
            f"the embedded PostgreSQL of {files.home} cannot be used: {error}. {EXTERNAL_HINT}"
        ) from error


def _supervisor_environment() -> dict[str, str]:
    """The import path of this process, and nothing of its secrets: the supervisor may outlive the command."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, *(str(Path(path).resolve()) for path in sys.path if path)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """Everything up to end of file; None if that has not come by `deadline`."""
    received = b""
    while (remaining := deadline - time.monotonic()) > 0:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if poller.poll(remaining * 1000):
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return received
            received += chunk
    return None


def end_orphans(data: Path) -> None:
    """Stop what still runs on a cluster without a supervisor, and clear a misleading postmaster.pid.

    The caller holds the lock that makes it the only one who may start a server on this cluster.
    """
    lines = pid_file_lines(data)
    pid = int(lines[0]) if lines and lines[0].isdigit() else None
    if pid is not None and pid in _server_processes(data):
        for number, patience in ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0)):
            logger.warning("stopping orphaned server %d with %s", pid, number.name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if wait_until(lambda: pid not in _server_processes(data), patience):
                break
    # Backends outlive a killed postmaster until they next look, and hold its shared memory against a new one.
    if not wait_until(lambda: not _kill_all(_server_processes(data)), timeout=30.0):
        raise EmbeddedPostgresError(
            f"processes of an earlier server on {data} cannot be ended: {_server_processes(data)}"
        )
    if pid is not None and "postgres" not in _commands().get(pid, ""):
        # Its number may by now be another process's (a restarted container), and PostgreSQL would refuse.
        with contextlib.suppress(FileNotFoundError):
            (data / "postmaster.pid").unlink()


def _kill_all(pids: list[int]) -> list[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def cluster_name(data: Path) -> str:
    """What marks this cluster's processes in the process list."""
    return f"health-pipeline-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"


def _server_processes(data: Path) -> list[int]:
    """The postmaster and its children on this cluster, without zombies, which have no command line."""
    name = cluster_name(data)
    return [
        pid
        for pid, command in _commands().items()
        if f"cluster_name={name} " in f"{command} " or command.startswith(f"postgres: {name}:")
    ]


def _commands() -> dict[int, str]:
    """Command lines of the processes that this user can see."""
    if Path("/proc/self/cmdline").exists():
        return dict(_proc_commands())
    listing = subprocess.run(
        ["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True
    )
    rows = (line.strip().partition(" ") for line in listing.stdout.splitlines())
    return {int(pid): command.strip() for pid, _, command in rows}


def _proc_commands() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                yield int(entry.name), command.decode(errors="replace")


def pid_file_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll until `condition` holds; False if it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True
