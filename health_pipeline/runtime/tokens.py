"""`health-pipeline token`: what people's own programs may read."""

from __future__ import annotations

from collections.abc import Sequence

from health_pipeline.connections import api_tokens
from health_pipeline.connections.api_tokens import Created
from health_pipeline.connections.users import require_user
from health_pipeline.warehouse.connection import Warehouse


def create_token(warehouse: Warehouse, handle: str, scopes: Sequence[str], days: int | None) -> Created:
    """Raises LookupError for an unknown user, ValueError."""
    with warehouse.engine.connect() as connection:
        user = require_user(connection, handle)
    return api_tokens.create(warehouse.engine, user.user_id, scopes, days)
