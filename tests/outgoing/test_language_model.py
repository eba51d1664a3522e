"""A language model's words: asked once, judged, kept or not, counted, and not more often than a person's limit."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from health_pipeline.engine.narrative import prompt, prompt_sha256
from health_pipeline.outgoing.language_model import Rewriting, rewrite_narratives
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.engine_tables import ensure_engine_tables

TODAY = dt.date(2026, 11, 21)


class Model:
    """An endpoint that speaks chat completions, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.says: list[Any] = []
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                model.asked.append(body | {"path": self.path})
                model.keys.append(self.headers["authorization"])
                said = model.says.pop(0)
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                choice = {"message": {"role": "assistant", "content": said}}
                answer = {"choices": [choice], "usage": {"prompt_tokens": 90, "completion_tokens": 20}}
                self.wfile.write(b"oops" if isinstance(said, int) else json.dumps(answer).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/"


@pytest.fixture
def model() -> Iterator[Model]:
    served = Model()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


@pytest.fixture
def told(warehouse: Warehouse) -> Warehouse:
    """Ada's narratives of today, yesterday and last week."""
    ensure_engine_tables(warehouse)
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql("insert into ops.users (handle) values ('ada')")
        for day, score in (("2026-11-21", 60), ("2026-11-20", 70), ("2026-11-12", 80)):
            template = f"Recovery is {score} of 100."
            connection.execute(
                sa.text(
                    "insert into health.narratives select user_id, 'day ' || :day, :day, :words, 'template', :words, "
                    ":sha from ops.users"
                ),
                {"day": day, "words": template, "sha": prompt_sha256(template)},
            )
    return warehouse


def rewrite(warehouse: Warehouse, url: str | None, name: str | None = "small-1") -> Rewriting:
    settings = Settings(narrative_url=url, narrative_model=name, narrative_api_key=SecretStr("k3y"))
    return rewrite_narratives(warehouse, settings, today=TODAY)


def rows(warehouse: Warehouse, query: str) -> list[Any]:
    with warehouse.engine.connect() as connection:
        return list(connection.execute(sa.text(query)).mappings())


SHOWN = "select subject, sentence, author from health.narratives order by subject desc"
LOG = "select * from ops.ai_audit_log order by entry_id"


def test_good_words_are_taken_and_bad_ones_leave_the_template(told: Warehouse, model: Model) -> None:
    model.says = ["You are at 60 of 100 today.", "You are at 99 of 100."]
    assert rewrite(told, model.url) == Rewriting(accepted=1, rejected=1)
    today, yesterday, _ = rows(told, SHOWN)
    assert (today["sentence"], today["author"]) == ("You are at 60 of 100 today.", "small-1")
    assert (yesterday["sentence"], yesterday["author"]) == ("Recovery is 70 of 100.", "template")
    accepted, rejected = rows(told, LOG)
    assert accepted["prompt"] == prompt("Recovery is 60 of 100.")
    assert (accepted["prompt_tokens"], accepted["completion_tokens"], accepted["decision"]) == (
        90,
        20,
        "accepted",
    )
    assert (rejected["decision"], rejected["answer"]) == ("rejected", "You are at 99 of 100.")
    assert rejected["reason"] == "numbers that are not among the facts: 99"
    assert [asked["path"] for asked in model.asked] == ["/v1/chat/completions"] * 2
    assert (model.asked[0]["model"], model.keys[0]) == ("small-1", "Bearer k3y")
    # Nobody is asked the same twice.
    assert rewrite(told, model.url) == Rewriting()


def test_what_fails_is_asked_again_later(told: Warehouse, model: Model) -> None:
    model.says = [503, None]
    assert rewrite(told, model.url) == Rewriting(failed=2)
    assert [row["reason"] for row in rows(told, LOG)] == ["answered 503", "the answer has no words"]
    model.says = ["At 60 of 100.", "At 70 of 100."]
    assert rewrite(told, model.url) == Rewriting(accepted=2)
    assert rewrite(told, "http://127.0.0.1:9/v1") == Rewriting()


def test_the_limit_of_a_day_is_the_databases(told: Warehouse, model: Model) -> None:
    with told.engine.begin() as connection:
        connection.exec_driver_sql("update ops.users set ai_daily_limit = 1")
    model.says = ["At 60 of 100.", "At 70 of 100."]
    assert rewrite(told, model.url) == Rewriting(accepted=1, over_limit=1)
    assert len(model.asked) == 1
    with (
        told.engine.begin() as connection,
        pytest.raises(sa.exc.IntegrityError, match="daily limit of 1 calls"),
    ):
        connection.exec_driver_sql(
            "insert into ops.ai_audit_log (user_id, local_date, subject, model, prompt, prompt_sha256) "
            "select user_id, date '2026-11-21', 'day', 'm', 'p', 's' from ops.users"
        )
    # Another day has its own.
    with told.engine.begin() as connection:
        connection.exec_driver_sql("update ops.ai_audit_log set recorded_at = recorded_at - interval '1 day'")
    assert rewrite(told, model.url) == Rewriting(accepted=1)


def test_nothing_is_asked_without_an_endpoint_or_in_the_open(told: Warehouse) -> None:
    assert rewrite(told, None) == Rewriting()
    with pytest.raises(ValueError, match="has to be https"):
        rewrite(told, "http://example.org/v1")
    with pytest.raises(ValueError, match="which model"):
        rewrite(told, "https://example.org/v1", None)
    assert rows(told, LOG) == []
