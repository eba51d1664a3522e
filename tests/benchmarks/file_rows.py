"""Files and memory: an Apple Health export against a reader of it, a glucose sensor's rows, a long backfill."""

from __future__ import annotations

import datetime as dt
import importlib
import io
import json
import resource
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "canonical"), str(TESTS / "benchmarks")]

import sqlalchemy as sa  # noqa: E402
from apple_export import write_export  # noqa: E402
from canonical_lab import Lab  # noqa: E402
from canonical_rows import RECEIVED, USERS, deliver  # noqa: E402
from measure import Bench, Figure, build, settle, stopwatch  # noqa: E402

_PEER = "healthkit-to-sqlite"
_MEMORY_MB = 200


def figures(bench: Bench) -> Iterator[Figure]:
    yield from _apple(bench)
    yield from _glucose(bench)
    yield from _backfill(bench)


def _apple(bench: Bench) -> Iterator[Figure]:
    sizes = (20, 40) if bench.quick else (200, 2_000)
    for megabytes in sizes:
        path = bench.folder / f"export-{megabytes}.zip"
        bench.say(f"writing an Apple export of {megabytes} MB")
        written = write_export(path, megabytes)
        records = written.total() - written["ActivitySummary"]
        with bench.lab() as lab:
            child = _in_child(lab, path, "apple_health")
            if megabytes == sizes[0]:
                built = build(lab)["all"]
                (row,) = lab.rows("select count(*) as rows from health.health_metrics")
                if row["rows"] != records:
                    raise RuntimeError(f"{row['rows']} of {records} records arrived")
                theirs = _peer(bench, path)
                if theirs is None:
                    bench.say(f"{_PEER} cannot be installed: no figure against it")
                else:
                    yield Figure(
                        f"Apple export of {megabytes} MB to canonical rows", f"{_PEER}, the same file into SQLite",
                        "records/s", records / (child["seconds"] + built), records / theirs, 2, True,
                        f"upload and staging {child['seconds']:.1f} s, dbt {built:.1f} s; {_PEER} {theirs:.1f} s",
                    )  # fmt: skip
        yield Figure(
            f"peak memory over an Apple export of {megabytes} MB", f"{_MEMORY_MB} MB", "MB",
            child["megabytes"], _MEMORY_MB, 1, False,
        )  # fmt: skip
        path.unlink()


def _glucose(bench: Bench) -> Iterator[Figure]:
    rows = bench.size(1_000_000, 200_000)
    path = bench.folder / "glucose.csv"
    first = dt.datetime(2016, 1, 1, tzinfo=dt.UTC)
    with path.open("w") as file:
        file.write("timestamp,glucose (mg/dL)\n")
        for number in range(rows):
            moment = first + dt.timedelta(minutes=5 * number)
            file.write(f"{moment:%Y-%m-%dT%H:%M:%SZ},{70 + number * 7 % 150}\n")
    with bench.lab() as lab:
        child = _in_child(lab, path, "glucose_csv")
        settle(lab)
        copying = _copied(lab)
        yield Figure(
            "sensor CSV to staging", "COPY of the parsed rows as CSV from memory", "seconds",
            child["seconds"], copying, 2, False, f"{rows:,} rows",
        )  # fmt: skip


def _backfill(bench: Bench) -> Iterator[Figure]:
    peaks = []
    for rows in (bench.size(500_000, 100_000), bench.size(5_000_000, 500_000)):
        with bench.lab() as lab:
            users = [lab.user(f"person-{number}", "UTC") for number in range(USERS)]
            bench.say(f"delivering {rows:,} samples")
            deliver(lab, users, rows // USERS, 5_000, RECEIVED)
            peaks.append(_in_child(lab, None, "oura")["megabytes"])
    yield Figure(
        "peak memory of staging ten times the samples", "of staging them once", "MB", peaks[1], peaks[0], 1.3, False
    )  # fmt: skip


def _copied(lab: Lab) -> float:
    """Seconds that COPY takes to put the parsed rows from memory into a table like the staging table."""
    lab.execute("create table copied (like staging_glucose_csv.readings including all)")
    with lab.warehouse.engine.begin() as connection:
        cursor = connection.connection.cursor()
        text = io.StringIO()
        cursor.copy_expert("copy staging_glucose_csv.readings to stdout csv", text)
        text.seek(0)
        with stopwatch() as seconds:
            cursor.copy_expert("copy copied from stdin csv", text)
    return seconds()


def _peer(bench: Bench, path: Path) -> float | None:
    """Seconds that the peer takes; None where it cannot be had.

    It reads no document type that phones have written since iOS 16, so it gets the file without one.
    """
    home = bench.folder / "peer"
    if not home.exists():
        venv.create(home, with_pip=True)
        command = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", _PEER]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return None
    plain = bench.folder / "plain.zip"
    with (
        zipfile.ZipFile(path) as archive,
        archive.open("apple_health_export/export.xml") as export,
        zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as out,
        out.open("apple_health_export/export.xml", "w", force_zip64=True) as target,
    ):
        head = export.read(1_000_000)
        start, end = head.index(b"<!DOCTYPE"), head.index(b"]>\n") + 3
        target.write(head[:start] + head[end:])
        while more := export.read(1_000_000):
            target.write(more)
    with stopwatch() as seconds:
        subprocess.run(
            [str(home / "bin" / _PEER), str(plain), str(bench.folder / "peer.db")],
            check=True,
            capture_output=True,
        )
    plain.unlink()
    return seconds()


def _in_child(lab: Lab, path: Path | None, kind: str) -> dict[str, float]:
    """Upload a file, where there is one, and stage what there is, in a process of its own.

    Seconds without its start, and its peak memory.
    """
    url = lab.warehouse.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, __file__, url, str(lab.store.root), str(path or ""), kind],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _child(url: str, raw: str, path: str, kind: str) -> None:
    from health_pipeline.connections.users import ensure_user
    from health_pipeline.ingestion.upload import upload
    from health_pipeline.providers import registry
    from health_pipeline.raw.store import open_store
    from health_pipeline.staging.load import stage
    from health_pipeline.warehouse.connection import Warehouse

    warehouse = Warehouse(sa.make_url(url), sa.make_url(url))
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "ada", "Europe/Berlin")
    store = open_store(raw)
    provider = registry.get(kind)
    # What every such process has imported by then; what comes in parts has no need of the others.
    for each in ("adbc_driver_postgresql", *(["dlt", "pandas"] if provider.parse_stream is None else [])):
        importlib.import_module(each)
    began = time.perf_counter()
    if path:
        upload(warehouse, store, user, Path(path), kind=kind)
    stage(warehouse, store, provider)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "megabytes": _peak_megabytes()}))


def _peak_megabytes() -> float:
    """Of this process alone: what `getrusage` says begins with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


if __name__ == "__main__":
    _child(*sys.argv[1:])
