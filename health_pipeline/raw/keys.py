"""Names of raw objects.

A deleted object's key can survive in a log, so only a random subject id in it stands for the person.
"""

from __future__ import annotations

import datetime as dt
import re
import uuid
from dataclasses import dataclass

#: Bytes are stored as one zstd frame, and the key says so.
COMPRESSION_SUFFIX = ".zst"

_NAME = r"[a-z][a-z0-9_]{0,62}"
_SUFFIX = r"(?:\.[a-z0-9]{1,10}){1,3}"
_KEY = re.compile(
    rf"provider=(?P<provider>{_NAME})"
    r"/shard=(?P<shard>[0-9a-f]{2})"
    r"/date=(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"/subject=(?P<subject>[0-9a-f]{32})"
    rf"/entity=(?P<entity>{_NAME})"
    rf"/(?P<sha256>[0-9a-f]{{64}})(?P<suffix>{_SUFFIX}){re.escape(COMPRESSION_SUFFIX)}",
    re.ASCII,
)


class InvalidKeyError(ValueError):
    """A key, or a part of one, that the raw store does not take."""


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """The parts of a key; `str()` is the key. `sha256` is of the bytes as received, before compression."""

    provider: str
    date: dt.date
    subject: uuid.UUID
    entity: str
    sha256: str
    suffix: str

    @property
    def shard(self) -> str:
        return self.sha256[:2]

    def __str__(self) -> str:
        return (
            f"provider={self.provider}/shard={self.shard}/date={self.date.isoformat()}"
            f"/subject={self.subject.hex}/entity={self.entity}/{self.sha256}{self.suffix}{COMPRESSION_SUFFIX}"
        )


def object_key(
    provider: str, date: dt.date, subject: uuid.UUID, sha256: str, entity: str, suffix: str
) -> str:
    """The key of one object: `provider=…/shard=…/date=…/subject=…/entity=…/<sha256><suffix>.zst`.

    The shard is the first two hex digits of the hash, so that one provider's writes of one day spread over
    256 prefixes. `date` is the day of receipt (UTC), `sha256` the hash of the uncompressed bytes in lower
    case hex, `suffix` the format's with its dot (`.json`).

    Raises InvalidKeyError naming the part: names are snake_case words, and the subject must be a random
    (version 4) UUID, because one derived from a user id leads back to the user after an erasure.
    """
    if isinstance(date, dt.datetime) or not isinstance(date, dt.date):
        raise InvalidKeyError(f"date must be a datetime.date, not {type(date).__name__}")
    if not isinstance(subject, uuid.UUID) or subject.version != 4:
        raise InvalidKeyError(
            "subject must be a random (version 4) UUID, not a user id or one derived from it"
        )
    for part, value, pattern, example in (
        ("provider", provider, _NAME, "'oura'"),
        ("entity", entity, _NAME, "'daily_sleep'"),
        ("sha256", sha256, "[0-9a-f]{64}", "64 lower-case hex digits"),
        ("suffix", suffix, _SUFFIX, "'.json'"),
    ):
        if re.fullmatch(pattern, value, re.ASCII) is None:
            raise InvalidKeyError(
                f"{part} of a raw object's key is not valid; expected something like {example}"
            )
    return str(ObjectKey(provider, date, subject, entity, sha256, suffix))


def parse_key(key: str) -> ObjectKey:
    """The parts of a key made by `object_key`. Raises InvalidKeyError for anything else, paths included."""
    match = _KEY.fullmatch(key)
    if match is None or match["shard"] != match["sha256"][:2]:
        raise InvalidKeyError("not the key of a raw object; make keys with object_key()")
    try:
        date = dt.date.fromisoformat(match["date"])
    except ValueError:
        raise InvalidKeyError("not the key of a raw object: its date does not exist") from None
    return ObjectKey(
        match["provider"],
        date,
        uuid.UUID(match["subject"]),
        match["entity"],
        match["sha256"],
        match["suffix"],
    )


def is_key(name: str) -> bool:
    """Whether a name found in a store is a raw object's, and not a stranger's file."""
    try:
        parse_key(name)
    except InvalidKeyError:
        return False
    return True
