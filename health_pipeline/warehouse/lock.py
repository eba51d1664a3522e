"""A name that one process at a time may hold, and that a process gives up by dying."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def hold(engine: sa.Engine, name: str) -> Iterator[bool]:
    """True inside the block where nobody else holds `name`; False, at once, where somebody does.

    It is a session's advisory lock: however the process ends, the server lets go of it. Behind a pooler it
    needs a session of its own (PgBouncer: `pool_mode = session`).
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        key = {"name": name}
        held = connection.execute(
            sa.text("select pg_try_advisory_lock(hashtextextended(:name, 0))"), key
        ).scalar_one()
        try:
            yield held
        finally:
            if held:
                connection.execute(sa.text("select pg_advisory_unlock(hashtextextended(:name, 0))"), key)
