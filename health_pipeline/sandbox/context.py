"""What every router of a sandbox shares: its people, its clock and its settings."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from health_pipeline.sandbox.people import Person

Clock = Callable[[], dt.datetime]


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a sandbox behaves.

    `clients` maps each registered client id to its secret. `page_size` is how many samples a page of a time
    series has, `document_page_size` how many documents.
    """

    clients: Mapping[str, str] = field(default_factory=lambda: {"sandbox": "sandbox-secret"})
    access_token_seconds: int = 86_400
    page_size: int = 1000
    document_page_size: int = 50


class Sandbox:
    """The state routers share. `now` is aware; nothing later than it exists."""

    def __init__(self, people: list[Person], seed: int, now: Clock, settings: Settings) -> None:
        self.people = {person.handle: person for person in people}
        self.seed = seed
        self.settings = settings
        self._clock = now
        self._fixed: dt.datetime | None = None

    def now(self) -> dt.datetime:
        """The sandbox's time, in UTC.

        Raises:
            ValueError: the clock gave a time without a zone.
        """
        instant = self._fixed or self._clock()
        if instant.tzinfo is None:
            raise ValueError("the sandbox's clock must give times with a zone")
        return instant.astimezone(dt.UTC)

    def fix_time(self, instant: dt.datetime | None) -> None:
        """Stop the clock at an instant, or let it run again."""
        self._fixed = instant
