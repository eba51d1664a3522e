"""How long a webhook takes from its sender to the canonical tables, each provider by itself.

    python tests/benchmarks/webhook_latency.py [--rounds 3] [--days 14] [--between 25 | --alone | --together]

Postgres, receiver, Dagster's daemon and the sandbox, each its own process, in a new home; everybody is connected to
every provider that calls and has some days in the tables. Then the sandbox sends the signed calls of a person's day,
one provider after another in any order, `--between` seconds apart at the mean, so that some wait for the run of those
before; with `--alone` each when the one before is done, with `--together` all providers at once. The time of an event
is from the sending to the commit that marks it as processed, which comes after the one that wrote its rows.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import sqlalchemy as sa
from durability import PEOPLE, System, house, patiently

from health_pipeline.defs.events import CALLING
from health_pipeline.providers.base import Window
from health_pipeline.runtime.run_job import run_job
from health_pipeline.runtime.webhooks import try_webhooks
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.dbt_project import ensure_manifest

#: Standard Webhooks has no sandbox of its own: `webhooks try` is for vendors.
PROVIDERS = [provider.name for provider in CALLING if provider.oauth or provider.hosted_link]
_EVENTS = """
    select provider, state, extract(epoch from received_at) as received, extract(epoch from updated_at) as processed
    from ops.webhook_events
"""


def events(warehouse: Warehouse) -> list[sa.Row[tuple[str, str, float, float]]]:
    with warehouse.engine.connect() as connection:
        return list(connection.execute(sa.text(_EVENTS)).all())


def send(settings: Settings, name: str, handle: str, day: dt.date, sent: list[tuple[str, float]]) -> None:
    try:
        try_webhooks(settings, name, handle, day)
    except LookupError:
        return  # nothing happened on the day, or the person is not there
    sent.append((name, time.time()))


def is_quiet(warehouse: Warehouse) -> bool:
    return all(event.state in ("processed", "dead") for event in events(warehouse))


def wait_until_quiet(warehouse: Warehouse, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if patiently(lambda: is_quiet(warehouse)):
            return
        time.sleep(1)


def percentile(values: list[float], percent: int) -> float:
    return (
        statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--days", type=int, default=14, help="of everybody, in the tables before")
    parser.add_argument("--between", type=float, default=25.0, help="mean seconds between the providers")
    parser.add_argument("--alone", action="store_true", help="each when the run before has ended")
    parser.add_argument("--together", action="store_true", help="all providers of a round at once")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    ensure_manifest()
    home = Path(tempfile.mkdtemp(prefix="latency-"))
    with house(home, with_s3=False, providers=PROVIDERS) as (system, warehouse, settings, _):
        os.environ["HEALTH_PIPELINE_RECEIVER_URL"] = f"http://127.0.0.1:{system.port}"
        settings = settings.model_copy(update={"receiver_url": os.environ["HEALTH_PIPELINE_RECEIVER_URL"]})
        today = dt.datetime.now(dt.UTC).date()
        window = Window(today - dt.timedelta(days=options.days), today - dt.timedelta(days=1))
        print(f"fetching {window.start} to {window.end} of {', '.join(PROVIDERS)}", file=sys.stderr)
        run_job("daily_refresh", window, settings, warehouse)
        for name in ("receiver", "daemon"):
            system.start(name)
        system.wait_for_receiver()
        result = measured(system, warehouse, settings, options, chance, window)
    print(json.dumps(result, indent=2))
    return 1 if result["not_processed"] else 0


def measured(
    system: System,
    warehouse: Warehouse,
    settings: Settings,
    options: argparse.Namespace,
    chance: random.Random,
    window: Window,
) -> dict[str, object]:
    # The first run begins to load what later ones are forked from.
    send(settings, "oura", PEOPLE[0], window.end, [])
    wait_until_quiet(warehouse, 300)
    time.sleep(30)
    before = len(events(warehouse))
    began = time.time()
    sent: list[tuple[str, float]] = []
    for number in range(options.rounds):
        names = chance.sample(PROVIDERS, len(PROVIDERS))
        day = window.end - dt.timedelta(days=number)
        threads = [
            threading.Thread(target=send, args=(settings, name, chance.choice(PEOPLE), day, sent))
            for name in names
        ]
        for thread in threads:
            thread.start()
            if options.together:
                continue
            thread.join()
            if options.alone:
                wait_until_quiet(warehouse, 300)
                # What follows the tables, alerts and scores, ends too.
                time.sleep(10 + chance.uniform(0, 3))
            else:
                time.sleep(chance.expovariate(1 / options.between))
        for thread in threads:
            thread.join()
        if options.together:
            wait_until_quiet(warehouse, 300)
    wait_until_quiet(warehouse, 600)
    found = [event for event in events(warehouse) if event.received >= began]
    taken: dict[str, list[float]] = {}
    for event in found:
        if event.state == "processed":
            taken.setdefault(event.provider, []).append(float(event.processed - event.received))
    every = [seconds for of_provider in taken.values() for seconds in of_provider]
    return {
        "events": len(found),
        "events_before": before,
        "not_processed": sum(event.state != "processed" for event in found),
        "seconds": {
            name: {
                "events": len(values),
                "p50": round(percentile(values, 50), 1),
                "p95": round(percentile(values, 95), 1),
                "max": round(max(values), 1),
            }
            for name, values in sorted({**taken, "all": every}.items())
        },
        "load": os.getloadavg(),
    }


if __name__ == "__main__":
    sys.exit(main())
