"""The short form of tests/benchmarks/durability.py: nothing that was acknowledged is lost."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import datetime as dt

import durability
import pytest

from health_pipeline.connections.callback import callback_path
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import get
from health_pipeline.receiver.secrets import Secrets


def test_what_was_acknowledged_survives_kills_of_receiver_and_database() -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are found through /proc")
    today = dt.datetime.now(dt.UTC).date()
    window = Window(today - dt.timedelta(days=6), today - dt.timedelta(days=2))
    # Not pytest's folder: paths of Unix sockets must be short.
    home = Path(tempfile.mkdtemp(prefix="durability-"))
    with durability.house(home, with_s3=False) as (system, warehouse, settings, sandbox):
        system.start("receiver")
        system.wait_for_receiver()
        api, secret = sandbox.app.state.apis["terra"], Secrets(settings).of(get("terra"))[0]
        bodies = [call.body for call in durability.calls(sandbox, settings, window)]
        sending = [lambda body=body: api.signed(body, secret) for body in bodies for _ in range(20)]
        sent = durability.Sent()
        sender = threading.Thread(
            target=durability.send,
            args=(system, callback_path(settings, get("terra")), sending, sent),
            kwargs={"until": time.monotonic() + 120},
        )
        sender.start()
        for part in ("receiver", "postgres"):
            time.sleep(1.0)
            assert system.kill(part)
        sender.join()
        assert durability.patiently(lambda: durability.lost(warehouse, settings, sent)) == []
    assert len(sent.accepted) == len(bodies)
    assert sum(sent.accepted.values()) == len(sending)
    # The kills met traffic: somebody was told to come again.
    assert sum(count for answer, count in sent.answers.items() if answer != "200") > 0
