"""Read-only SQL on the warehouse, as an analyst or as one person."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from health_pipeline.connections.users import require_user
from health_pipeline.warehouse.connection import Warehouse

if TYPE_CHECKING:
    import pyarrow as pa


class QueryError(RuntimeError):
    """The database refused the statement; the message is its own."""


def run_query(warehouse: Warehouse, statement: str, *, as_user: str | None = None) -> pa.Table:
    """One statement, read-only. `as_user` sees the rows of that user alone, by row-level security.

    Raises QueryError, LookupError for an unknown user.
    """
    from adbc_driver_manager import Error
    from adbc_driver_postgresql import dbapi

    user_id = None
    if as_user is not None:
        with warehouse.engine.connect() as connection:
            user_id = require_user(connection, as_user).user_id
    with dbapi.connect(warehouse.libpq_url()) as connection, connection.cursor() as cursor:
        if user_id is not None:
            # Sealed for this session: a statement that sets the user anew sees nothing.
            cursor.execute(f"select set_config('health.user_id', ops.seal_subject({int(user_id)}), false)")
            cursor.fetchall()
            cursor.execute("set role health_subject")
        cursor.execute("set transaction read only")
        try:
            # The driver speaks the extended protocol, which takes one statement and no more.
            cursor.execute(statement)
            table = cursor.fetch_arrow_table()
        except Error as error:
            raise QueryError(_words(error)) from None
    return table.rename_columns(_distinct(table.column_names))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names as they are, and `count_2` for the second `count`: SQL allows it, a table of ours does not."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        while seen[name] > 1 and f"{name}_{seen[name]}" in names:
            seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return distinct


def _words(error: Exception) -> str:
    text = str(error).split("\n")
    lines = [line.split("ERROR:", 1)[-1].strip() for line in text if line.strip()]
    return " ".join(lines[:2])


def to_csv(table: pa.Table) -> str:
    """Header and rows; a cell that a spreadsheet would take for a formula is defused."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([[_cell(value) for value in row.values()] for row in table.to_pylist()])
    return out.getvalue()


def to_json(table: pa.Table) -> str:
    """An array of objects, times in ISO 8601."""
    import orjson

    rows = table.to_pylist()
    return orjson.dumps(rows, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value.isoformat() if hasattr(value, "isoformat") else value
