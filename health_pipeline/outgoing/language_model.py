"""Kinder words for `health.narratives` by any endpoint that speaks OpenAI's chat completions; off by default.

Each question is written to `ops.ai_audit_log` before it is asked, and what became of it after: a trigger of that table
refuses more questions about a person a day than their limit. What is asked holds no name, only the template.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import sqlalchemy as sa

from health_pipeline.engine.narrative import objections, prompt, prompt_sha256
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import AiAuditEntry

#: Older days have their template.
NEWS_DAYS = 2
_TIMEOUT = 60.0
_MAX_TOKENS = 300

_DUE = sa.text(
    """
    select user_id, subject, local_date, template from health.narratives
    where local_date >= :since and author = 'template' and not exists (
        select from ops.ai_audit_log as asked
        where asked.user_id = narratives.user_id and asked.prompt_sha256 = narratives.prompt_sha256
            and asked.model = :model and asked.decision in ('accepted', 'rejected')
    )
    order by user_id, subject like 'day %' desc, local_date desc, subject
    """
)
_TAKE = sa.text(
    "update health.narratives set sentence = :sentence, author = :author "
    "where user_id = :user_id and subject = :subject and template = :template"
)


@dataclass(frozen=True, slots=True)
class Rewriting:
    """How many templates were given to the model, and what became of its words; `over_limit` counts people."""

    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    over_limit: int = 0


def rewrite_narratives(
    warehouse: Warehouse, settings: Settings, *, today: dt.date | None = None
) -> Rewriting:
    """Ask for the templates of the last days that nobody has been asked about; nothing where no endpoint is set.

    Raises ValueError where the settings cannot be used.
    """
    if settings.narrative_url is None:
        return Rewriting()
    url = settings.narrative_url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError("HEALTH_PIPELINE_NARRATIVE_URL has to be https, or on this machine")
    if not settings.narrative_model:
        raise ValueError("HEALTH_PIPELINE_NARRATIVE_MODEL is missing: which model is to be asked?")
    since = (today or dt.datetime.now(dt.UTC).date()) - dt.timedelta(days=NEWS_DAYS)
    with warehouse.engine.connect() as connection:
        due = connection.execute(_DUE, {"since": since, "model": settings.narrative_model}).mappings().all()
    counts = {"accepted": 0, "rejected": 0, "failed": 0}
    full: set[int] = set()
    key = settings.narrative_api_key
    headers = {} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"}
    with httpx.Client(timeout=_TIMEOUT, headers=headers, follow_redirects=False) as client:
        for row in due:
            if row["user_id"] in full:
                continue
            entry = _reserve(warehouse, dict(row), settings.narrative_model)
            if entry is None:
                full.add(row["user_id"])
                continue
            decision = _ask(warehouse, client, url, settings.narrative_model, dict(row), entry)
            counts[decision] += 1
    return Rewriting(**counts, over_limit=len(full))


def _reserve(warehouse: Warehouse, row: dict[str, Any], model: str) -> int | None:
    """The number of the log's entry for a question; None where the person's limit of the day is reached."""
    try:
        with warehouse.engine.begin() as connection:
            entry: int = connection.execute(
                sa.insert(AiAuditEntry)
                .values(
                    user_id=row["user_id"],
                    local_date=row["local_date"],
                    subject=row["subject"],
                    model=model,
                    prompt=prompt(row["template"]),
                    prompt_sha256=prompt_sha256(row["template"]),
                )
                .returning(AiAuditEntry.entry_id)
            ).scalar_one()
    except sa.exc.IntegrityError as error:
        if getattr(getattr(error.orig, "diag", None), "constraint_name", None) != "ai_daily_limit":
            raise
        return None
    return entry


def _ask(
    warehouse: Warehouse, client: httpx.Client, url: str, model: str, row: dict[str, Any], entry: int
) -> str:
    """Ask, judge, note; the decision."""
    said: str | None = None
    reason: str | None = None
    usage: dict[str, Any] = {}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt(row["template"])}],
        "temperature": 0,
        "max_tokens": _MAX_TOKENS,
    }
    try:
        answer = client.post(f"{url}/chat/completions", json=body)
        answer.raise_for_status()
        told = orjson.loads(answer.content)
        said = told["choices"][0]["message"]["content"]
        usage = told.get("usage") or {}
        if not isinstance(said, str):
            said, reason = None, "the answer has no words"
    except httpx.HTTPStatusError as error:
        reason = f"answered {error.response.status_code}"
    except httpx.HTTPError as error:
        reason = type(error).__name__
    except (KeyError, IndexError, TypeError, AttributeError, orjson.JSONDecodeError):
        reason = "the answer is not a chat completion"
    decision = "failed"
    if said is not None:
        said = " ".join(said.replace("\0", "").split())
        against = objections(said, row["template"])
        decision, reason = ("rejected", "; ".join(against)) if against else ("accepted", None)
    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.update(AiAuditEntry)
            .where(AiAuditEntry.entry_id == entry)
            .values(
                answer=said,
                prompt_tokens=_count(usage.get("prompt_tokens")),
                completion_tokens=_count(usage.get("completion_tokens")),
                decision=decision,
                reason=reason,
            )
        )
        if decision == "accepted":
            connection.execute(_TAKE, {**row, "sentence": said, "author": model})
    return decision


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None
