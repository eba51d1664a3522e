"""Many processes, one expired token, round after round: how often is the provider asked?

    python tests/benchmarks/refresh_race.py --processes 50 --rounds 100 --kill-every 10

Every round the token is expired, all processes ask for one at once, and the sandbox counts. In a round with a kill
one process is killed: by turns between the provider's answer and our commit, or at some moment. Prints a line of
JSON; exit code 1 where a round was not as it has to be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import authlib.integrations.httpx_client  # noqa: F401 - imported once, before the processes part
import httpx
import sqlalchemy as sa

from health_pipeline.connections import accounts
from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.oauth import connect_with_hint, refresher
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.providers.registry import get
from health_pipeline.settings import Settings


def worker(commands: int, answers: int) -> None:
    """Ask for a token whenever told to; a process of its own with connections of its own."""
    engine: sa.Engine | None = None
    with os.fdopen(commands) as lines, os.fdopen(answers, "w", buffering=1) as out:
        for line in lines:
            order = json.loads(line)
            if engine is None:
                engine = sa.create_engine(order["database"], poolclass=sa.NullPool)
                settings = Settings(home=Path(order["home"]), sandbox_url=order["sandbox"])
                vault = open_vault(settings)
                refresh = refresher(endpoint_of(get("oura"), settings))
            if order["die"]:
                accounts._save_tokens = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(max(0.0, order["at"] - time.time()))
            try:
                result = {"token": accounts.access_token(engine, vault, order["account"], refresh)}
            except Exception as error:
                result = {"error": type(error).__name__, "message": str(error)}
            out.write(json.dumps(result) + "\n")


class Worker:
    def __init__(self) -> None:
        read_commands, write_commands = os.pipe()
        read_answers, write_answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(write_commands)
            os.close(read_answers)
            worker(read_commands, write_answers)
            os._exit(0)
        os.close(read_commands)
        os.close(write_answers)
        self._commands = os.fdopen(write_commands, "w", buffering=1)
        self._answers = os.fdopen(read_answers)

    def tell(self, order: dict[str, Any]) -> None:
        self._commands.write(json.dumps(order) + "\n")

    def answer(self) -> dict[str, Any] | None:
        """None from one that was killed."""
        line = self._answers.readline()
        return json.loads(line) if line else None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        # Those made later hold copies of its pipe, so that closing ours would not end it.
        self.kill()
        self._commands.close()
        self._answers.close()
        os.waitpid(self.pid, 0)


class Race:
    def __init__(self, database: str, sandbox: str, home: str) -> None:
        self.given = {"database": database, "sandbox": sandbox, "home": home}
        self.settings = Settings(home=Path(home), sandbox_url=sandbox)
        self.engine = sa.create_engine(database, poolclass=sa.NullPool)
        self.vault = open_vault(self.settings)
        self.account = self.connect()

    def connect(self) -> int:
        with self.engine.begin() as connection:
            user = ensure_user(connection, "ada")
        return accounts.save_connection(
            self.engine,
            self.vault,
            user_id=user.user_id,
            provider="oura",
            provider_user_id="ada-at-oura",
            environment="sandbox",
            tokens=connect_with_hint(endpoint_of(get("oura"), self.settings), "ada"),
            profile={},
            consent_version="race-1",
        )

    def asked(self) -> int:
        counts = httpx.get(f"{self.given['sandbox']}/__stats").raise_for_status().json()["oura"]
        return int(counts.get("refresh_token", 0))

    def round(self, workers: list[Worker], kill: str | None) -> tuple[str | None, str]:
        """What is wrong with the round, and how it ended: `renewed`, or `reconnect` after a kill."""
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("update ops.connector_tokens set expires_at = now() - interval '1 hour'")
            )
        before, at = self.asked(), time.time() + 0.05
        for number, each in enumerate(workers):
            die = kill == "before-commit" and number == 0
            # The one that is to be killed while it holds the lock comes first.
            each.tell({**self.given, "account": self.account, "die": die, "at": at - 0.04 if die else at})
        if kill == "any-time":
            time.sleep(0.05 + random.random() * 0.1)
            workers[0].kill()
        found = [each.answer() for each in workers]
        asked = self.asked() - before
        answers = [each for each in found if each is not None]
        tokens = {each["token"] for each in answers if "token" in each}
        errors = {each["error"] for each in answers if "error" in each}
        if errors == {"ReconnectError"} and not tokens and kill is not None:
            with self.engine.connect() as connection:
                row = connection.execute(
                    sa.text("select status, last_error from ops.provider_accounts")
                ).one()
            marked = row.status == "error" and "refused" in (row.last_error or "")
            self.connect()
            # The one that was killed, and one who was refused twice.
            return (None if marked and asked == 3 else f"asked {asked} times, {row}"), "reconnect"
        if errors or len(tokens) != 1:
            return f"{len(tokens)} tokens, {errors or 'no errors'}", "renewed"
        if asked != 1 and kill is None:
            return f"asked {asked} times", "renewed"
        return None, "renewed"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--kill-every", type=int, default=0)
    given = parser.parse_args()
    # What all need is imported once; and all this before there are threads or connections that a fork would share.
    get("oura")
    sa.create_engine("postgresql+psycopg2://")
    workers = [Worker() for _ in range(given.processes)]
    spare = [Worker() for _ in range(given.rounds // given.kill_every if given.kill_every else 0)]
    with ExitStack() as stack:
        stack.callback(lambda: [each.close() for each in workers + spare])
        database, sandbox = os.environ.get("RACE_DATABASE"), os.environ.get("RACE_SANDBOX")
        home = stack.enter_context(tempfile.TemporaryDirectory())
        if database is None:
            from health_pipeline.warehouse.connection import open_warehouse

            warehouse = open_warehouse(Settings(home=Path(home)))
            stack.callback(warehouse.dispose)
            database = warehouse.url.render_as_string(hide_password=False)
        if sandbox is None:
            from health_pipeline.sandbox.server import run_in_thread

            sandbox = stack.enter_context(run_in_thread()).url
        race = Race(database, sandbox, home)
        wrong, endings, started = [], {"renewed": 0, "reconnect": 0}, time.monotonic()
        for number in range(given.rounds):
            kill = None
            if given.kill_every and number % given.kill_every == given.kill_every - 1:
                kill = "any-time" if (number // given.kill_every) % 2 else "before-commit"
            problem, ending = race.round(workers, kill)
            endings[ending] += 1
            if problem is not None:
                wrong.append(f"round {number} ({kill or 'no kill'}): {problem}")
            if kill is not None:
                workers[0].close()
                workers[0] = spare.pop()
        print(
            json.dumps(
                {
                    "processes": given.processes,
                    "rounds": given.rounds,
                    **endings,
                    "seconds": round(time.monotonic() - started, 1),
                    "wrong": wrong,
                }
            )
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
