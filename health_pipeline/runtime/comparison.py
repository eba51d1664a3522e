"""What the warehouse says of the sandbox's people, held against what they really did, value by value."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from health_pipeline.providers.base import Provider, Window
from health_pipeline.warehouse.connection import Warehouse

#: Of sums of a day's many rows, by which their order may change them.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Difference:
    """A day's value that is not as it was lived; `stored` or `true` is None where there is none."""

    provider: str
    handle: str
    metric_type: str
    local_date: dt.date
    true: float | None
    stored: float | None

    def words(self) -> str:
        stored = "missing" if self.stored is None else f"{self.stored:.6g}"
        true = "there was none" if self.true is None else f"it was {self.true:.6g}"
        return f"{self.provider}, {self.handle}, {self.local_date}: {self.metric_type} is {stored}, {true}"


@dataclass(slots=True)
class Comparison:
    """One provider's values of all its people, of the days of `window`.

    A value that did not come, or that nobody lived, is as wrong as one that differs. On the window's first and
    last day it is not, but `cut`: a night or a provider's day reaches over them, and only its part was asked
    for. `untold` are daily values that the sandbox states no truth of: metrics it does not state, and days
    at the edge that are not over.
    """

    provider: str
    window: Window
    equal: int = 0
    cut: list[Difference] = field(default_factory=list)
    wrong: list[Difference] = field(default_factory=list)
    untold: int = 0

    @property
    def compared(self) -> int:
        return self.equal + len(self.cut) + len(self.wrong)


#: The daily value of each source alone, by the rule of `by_source` in models/marts/daily_metrics.sql.
_DAILY = sa.text(
    """
    with daily as (
        select
            users.handle, metrics.metric_type, metrics.local_date, catalogue.daily_aggregation,
            metrics.metric_value as value, metrics.recorded_at,
            greatest(coalesce(extract(epoch from metrics.ended_at - metrics.recorded_at), 1), 1)::double precision
                as weight
        from health.health_metrics as metrics
        inner join ops.users using (user_id)
        inner join health.metric_types as catalogue using (metric_type)
        where metrics.source = :provider and metrics.local_date between :start and :end
    )

    select
        handle, metric_type, local_date,
        case daily_aggregation
            when 'sum' then sum(value order by recorded_at)
            when 'mean' then avg(value order by recorded_at)
            when 'min' then min(value)
            when 'max' then max(value)
            when 'last' then (array_agg(value order by recorded_at desc))[1]
            when 'duration_weighted' then
                sum(value * weight order by recorded_at) / sum(weight order by recorded_at)
        end as value
    from daily
    group by handle, metric_type, local_date, daily_aggregation
    order by handle, local_date, metric_type
    """
)

_CONNECTED = sa.text(
    "select handle from ops.provider_accounts inner join ops.users using (user_id) "
    "where provider = :provider order by handle"
)


def compare_with_truth(
    warehouse: Warehouse, sandbox: str, providers: Sequence[Provider], window: Window
) -> list[Comparison]:
    """Compare the daily values of every connected person with the sandbox's truth, provider by provider.

    Of a provider that gives all it has, whatever days are asked for, all days up to the window's last are compared.
    """
    import httpx

    since = dt.date.fromisoformat(
        httpx.get(f"{sandbox}/healthz", timeout=30).raise_for_status().json()["since"]
    )
    found = []
    for provider in providers:
        rules = {entity.window for entity in provider.entities if entity.endpoint is not None}
        first = since if rules == {"everything"} else window.start
        found.append(_compare(warehouse, sandbox, provider.name, Window(first, window.end)))
    return found


def _compare(warehouse: Warehouse, sandbox: str, provider: str, window: Window) -> Comparison:
    import httpx

    span = {"start": window.start, "end": window.end}
    with warehouse.engine.connect() as connection:
        handles = connection.execute(_CONNECTED, {"provider": provider}).scalars().all()
        stored: dict[tuple[str, str, dt.date], float] = {
            (row.handle, row.metric_type, row.local_date): row.value
            for row in connection.execute(_DAILY, {"provider": provider, **span})
        }
    found = Comparison(provider, window)
    told: set[tuple[str, str, dt.date]] = set()
    with httpx.Client(base_url=sandbox, timeout=120) as client:
        for handle in handles:
            answer = client.get(
                f"/__truth/{provider}/{handle}", params={k: str(v) for k, v in span.items()}
            ).raise_for_status()
            for true in answer.json()["values"]:
                key = (handle, true["metric_type"], dt.date.fromisoformat(true["local_date"]))
                told.add(key)
                value = stored.get(key)
                if value is not None and _equal(value, true["value"], true["tolerance"]):
                    found.equal += 1
                else:
                    at_edge = key[2] in (window.start, window.end)
                    (found.cut if at_edge else found.wrong).append(
                        Difference(provider, *key, true["value"], value)
                    )
    metrics = {metric for _, metric, _ in told}
    for key in sorted(stored.keys() - told):
        if key[1] not in metrics or key[2] in (window.start, window.end):
            found.untold += 1
        else:
            found.wrong.append(Difference(provider, *key, None, stored[key]))
    return found


def _equal(stored: float, true: float, tolerance: float) -> bool:
    return abs(stored - true) <= tolerance + _ROUNDING * max(1.0, abs(true))
