"""Whether every record that came in went somewhere: of the loads that nobody has looked at yet."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.staging.drift import NEWEST_LOADS
from health_pipeline.staging.tables import schema_name


@dataclass(frozen=True, slots=True)
class Account:
    """What the objects of some loads held. `quarantine_rows` are there, `records_quarantined` were counted."""

    objects: int
    records_in: int
    records_loaded: int
    records_quarantined: int
    records_skipped: int
    quarantine_rows: int

    @property
    def balances(self) -> bool:
        gone = self.records_loaded + self.records_quarantined + self.records_skipped
        return gone == self.records_in and self.quarantine_rows == self.records_quarantined


def account_of_new_loads(engine: sa.Engine, provider: str) -> Account:
    """Of the finished loads that have not been found right; those that are right are not looked at again."""
    schema = schema_name(provider)
    query = f"""
        with unchecked as materialized (select load_id from {schema}.loads where finished and not accounted)
        select
            count(*) as objects,
            coalesce(sum(records_in), 0)::bigint as records_in,
            coalesce(sum(records_loaded), 0)::bigint as records_loaded,
            coalesce(sum(records_quarantined), 0)::bigint as records_quarantined,
            coalesce(sum((select sum(value::bigint) from jsonb_each_text(records_skipped))), 0)::bigint
                as records_skipped,
            (
                select count(*) from {schema}.quarantine
                inner join {schema}.staged_objects as done
                    on done.raw_object_id = _raw_object_id and done.load_id = _load_id
                where _load_id = any(array(select load_id from unchecked))
            ) as quarantine_rows,
            array(select load_id from unchecked) as loads
        from {schema}.staged_objects
        where load_id = any(array(select load_id from unchecked))
    """  # noqa: S608
    with engine.begin() as connection:
        found = dict(connection.execute(sa.text(query)).mappings().one())
        loads = found.pop("loads")
        account = Account(**found)
        if account.balances and loads:
            connection.execute(
                sa.text(f"update {schema}.loads set accounted = true where load_id = any(:loads)"),  # noqa: S608
                {"loads": loads},
            )
    return account


@dataclass(frozen=True, slots=True)
class Refused:
    """Records of a provider's newest loads, and how many of them are in quarantine, by reason."""

    records: int
    reasons: dict[str, int]


def refused_lately(engine: sa.Engine, provider: str) -> Refused:
    """What is in `health.metric_quarantine` of the objects of the newest loads, whoever refused it."""
    schema = schema_name(provider)
    objects = f"""
        select raw_object_id, records_in from {schema}.staged_objects
        where load_id = any(array(
            select load_id from {schema}.loads where finished order by load_id desc limit :loads
        ))
    """  # noqa: S608
    with engine.connect() as connection:
        bound = {"loads": NEWEST_LOADS}
        total = f"select coalesce(sum(records_in), 0)::bigint from ({objects}) as objects"  # noqa: S608
        records = connection.execute(sa.text(total), bound).scalar_one()
        rows = connection.execute(
            sa.text(
                "select reason, count(*) as rows from health.metric_quarantine "  # noqa: S608
                f"where raw_object_id in (select raw_object_id from ({objects}) as objects) "
                "group by reason order by count(*) desc, reason"
            ),
            bound,
        ).all()
    return Refused(records, {row.reason: row.rows for row in rows})
