"""What the routes of the API need, hung on the app."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

import sqlalchemy as sa
from starlette.requests import Request

from health_pipeline.connections.vault import Vault, open_vault
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.errors import RefusedError
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

#: Connections for readers, beside those that webhooks are kept with: many readers cost no webhook.
_READERS = 8
_WAIT_SECONDS = 5


@dataclass(frozen=True)
class House:
    """The parts of this environment. `secrets` is what links are signed with."""

    settings: Settings
    warehouse: Warehouse
    store: RawStore
    secrets: Secrets = field(repr=False)

    #: The pool that people's data is read through.
    readers: sa.Engine = field(init=False)

    def __post_init__(self) -> None:
        readers = sa.create_engine(
            self.warehouse.url,
            pool_pre_ping=True,
            pool_size=_READERS,
            max_overflow=0,
            pool_timeout=_WAIT_SECONDS,
        )
        object.__setattr__(self, "readers", readers)

    @property
    def vault(self) -> Vault:
        """Raises VaultError."""
        return open_vault(self.settings)

    @property
    def public_url(self) -> str:
        """Our address as others see it; a request's own may be anybody's invention."""
        if self.settings.receiver_url is None:
            raise RefusedError(
                503, "not_configured", "this receiver does not know its address: HEALTH_PIPELINE_RECEIVER_URL"
            )
        return self.settings.receiver_url.rstrip("/")

    def dispose(self) -> None:
        """Close the readers' pool."""
        self.readers.dispose()


def house_of(request: Request) -> House:
    """The house of the app that the request came to."""
    house: House = request.app.state.house
    return house


def today() -> dt.date:
    """The day it is, or will be within hours, everywhere on earth."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(hours=14)).date()
