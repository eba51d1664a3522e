"""What a parser may give, Postgres holds: every table of every provider, values at the ends of their types."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from health_pipeline.providers.base import QUARANTINE_SCHEMA, Parsed, Provider
from health_pipeline.providers.registry import all_providers
from health_pipeline.staging.tables import ensure_tables, sql_type, table_schemas

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
_INSTANTS = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): _TEXT,
    pa.date32(): st.dates(),
    pa.timestamp("us"): _INSTANTS,
    pa.timestamp("us", "UTC"): _INSTANTS.map(lambda value: value.replace(tzinfo=dt.UTC)),
}


#: The ends of each type, and the text that is easiest to spoil.
ENDS: dict[pa.DataType, tuple[Any, Any]] = {
    pa.bool_(): (False, True),
    pa.int16(): (-(2**15), 2**15 - 1),
    pa.int32(): (-(2**31), 2**31 - 1),
    pa.int64(): (-(2**63), 2**63 - 1),
    pa.float64(): (-sys.float_info.max, sys.float_info.min),
    pa.string(): ("", 'nul \0, tab \t, line\r\n, \\N, "quote", 血糖, \U0001f9b6'),
    pa.date32(): (dt.date.min, dt.date.max),
    pa.timestamp("us"): (dt.datetime(1, 1, 1), dt.datetime.max),
    pa.timestamp("us", "UTC"): tuple(
        value.replace(tzinfo=dt.UTC) for value in (dt.datetime(1, 1, 1), dt.datetime.max)
    ),
}


def rows_of(schema: pa.Schema) -> st.SearchStrategy[pa.Table]:
    """A row of any values, the ends of all types, and nulls where columns may be null."""
    fields = {field.name: VALUES[field.type] for field in schema}

    def table(row: dict[str, Any]) -> pa.Table:
        nulls = {name: None if schema.field(name).nullable else value for name, value in row.items()}
        ends = [{field.name: ENDS[field.type][end] for field in schema} for end in (0, 1)]
        return pa.Table.from_pylist([row, nulls, *ends], schema=schema)

    return st.fixed_dictionaries(fields).map(table)


def tables_of(provider: Provider) -> st.SearchStrategy[dict[str, pa.Table]]:
    return st.fixed_dictionaries({entity.name: rows_of(entity.schema) for entity in provider.entities})


@pytest.mark.parametrize("name", [name for name, provider in all_providers().items() if provider.entities])
@settings(
    max_examples=2,
    deadline=None,
    database=None,
    # Every example is a load: a failure is shown as it was found.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_what_the_schema_allows_is_stored_as_it_is(staging: Any, name: str, data: st.DataObject) -> None:
    provider = all_providers()[name]
    tables = data.draw(tables_of(provider))
    refused = data.draw(rows_of(QUARANTINE_SCHEMA))
    parsed = Parsed(tables, refused, records_in=refused.num_rows, records_loaded=0)
    # What comes in parts goes another way into the tables.
    in_parts = None if provider.parse_stream is None else lambda _: iter([parsed])
    staging.provider = replace(provider, parse=lambda _: parsed, parse_stream=in_parts)
    staging.received += 1
    raw_object_id = staging.deliver(str(staging.received).encode(), provider.entities[0].name)
    report = staging.stage()
    assert report.records_quarantined == refused.num_rows
    expectations = {**tables, "quarantine": refused}
    for (table, sent), found in zip(
        expectations.items(), read(staging, expectations, raw_object_id), strict=True
    ):
        expected = sent.to_pylist()
        for row in expected:
            for column, value in row.items():
                # The one character that Postgres text cannot hold.
                row[column] = value.replace("\0", "\ufffd") if isinstance(value, str) else value
        assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, expected)), table


def read(staging: Any, tables: Mapping[str, pa.Table], raw_object_id: int) -> Iterator[pa.Table]:
    """The rows of an object in each of the tables, by one connection: to make one takes longer than to read."""
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(staging.warehouse.libpq_url()) as connection, connection.cursor() as cursor:
        for table, sent in tables.items():
            columns = ", ".join(f'"{column}"' for column in sent.column_names)
            cursor.execute(
                f'select {columns} from {staging.schema}."{table}" where _raw_object_id = {raw_object_id}'
            )
            yield cursor.fetch_arrow_table()


def test_columns_are_those_of_the_arrow_schema(staging: Any) -> None:
    for provider in all_providers().values():
        for _ in range(2):
            with staging.warehouse.engine.begin() as connection:
                ensure_tables(connection, provider)
        inspector = sa.inspect(staging.warehouse.engine)
        for table, schema in table_schemas(provider).items():
            columns = inspector.get_columns(table, schema=f"staging_{provider.name}")
            assert [column["name"] for column in columns] == schema.names
            assert [column["nullable"] for column in columns] == [field.nullable for field in schema]
            assert schema.names[:2] == ["_raw_object_id", "_load_id"]
            assert inspector.get_indexes(table, schema=f"staging_{provider.name}")


def test_a_type_without_a_column_names_those_there_are() -> None:
    with pytest.raises(TypeError, match=r"no column type for uint8; use one of bool, .*double") as refused:
        sql_type(pa.uint8())
    assert "timestamp[us, tz=UTC]" in str(refused.value)
