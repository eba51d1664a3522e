"""Users by handle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import sqlalchemy as sa

from health_pipeline.connections.users import UserRecord, check_time_zone, ensure_user, require_user
from health_pipeline.warehouse.connection import Warehouse


def ensure(warehouse: Warehouse, handle: str, time_zone: str | None = None) -> UserRecord:
    with warehouse.engine.begin() as connection:
        return ensure_user(connection, handle, time_zone)


def handles(warehouse: Warehouse) -> list[str]:
    with warehouse.engine.connect() as connection:
        return list(connection.execute(sa.text("select handle from ops.users order by handle")).scalars())


def test_a_user_is_made_once_and_found_again(warehouse: Warehouse) -> None:
    first = ensure(warehouse, "ada")
    assert first.time_zone is None
    assert ensure(warehouse, "ada") == first
    assert ensure(warehouse, "ben").user_id != first.user_id
    assert handles(warehouse) == ["ada", "ben"]


def test_a_zone_is_set_once_and_never_changed(warehouse: Warehouse) -> None:
    ensure(warehouse, "ada")
    assert ensure(warehouse, "ada", "Europe/Berlin").time_zone == "Europe/Berlin"
    assert ensure(warehouse, "ada", "America/New_York").time_zone == "Europe/Berlin"
    assert ensure(warehouse, "ada").time_zone == "Europe/Berlin"


def test_handles_are_refused_by_one_rule_that_is_told(warehouse: Warehouse) -> None:
    good = ["a", "ada.o-k_1", "0day", "x" * 63]
    bad = ["", "Ada", "ada okafor", "-a", ".a", "x" * 64, "ada\n", "ada/../ben", "ädä", "ada'; --", "²"]
    for handle in good:
        assert ensure(warehouse, handle).handle == handle
    for handle in bad:
        with pytest.raises(ValueError, match="1 to 63 lower-case letters") as refused:
            ensure(warehouse, handle)
        assert repr(handle) in str(refused.value)
    assert handles(warehouse) == sorted(good)


def test_what_is_no_zone_is_refused_with_examples(warehouse: Warehouse) -> None:
    for zone in ("", "CET+1", "Berlin", "europe/berlin", "Mars/Phobos", "../etc/passwd", "+02:00"):
        for refuse in (check_time_zone, partial(ensure, warehouse, "ada")):
            with pytest.raises(
                ValueError, match="write it like Europe/Berlin or America/New_York"
            ) as refused:
                refuse(zone)
            assert repr(zone) in str(refused.value)
    assert handles(warehouse) == []


def test_who_ask_at_once_get_one_user_and_one_zone(warehouse: Warehouse) -> None:
    zones = ["Europe/Berlin", None, "America/New_York", None] * 3
    with ThreadPoolExecutor(len(zones)) as pool:
        made = list(pool.map(lambda zone: ensure(warehouse, "ada", zone), zones))
    assert len({user.user_id for user in made}) == 1
    assert handles(warehouse) == ["ada"]
    # Whoever is told a zone is told the one that holds.
    final = ensure(warehouse, "ada").time_zone
    assert {user.time_zone for user, zone in zip(made, zones, strict=True) if zone} == {final}


def test_a_first_zone_is_kept_when_two_set_one_at_once(warehouse: Warehouse) -> None:
    ensure(warehouse, "ada")
    with warehouse.engine.connect() as first, ThreadPoolExecutor(1) as pool:
        assert ensure_user(first, "ada", "Europe/Berlin").time_zone == "Europe/Berlin"
        second = pool.submit(ensure, warehouse, "ada", "America/New_York")
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        first.commit()
        assert second.result(timeout=10).time_zone == "Europe/Berlin"


def test_a_missing_user_is_told_with_those_there_are(warehouse: Warehouse) -> None:
    nobody = pytest.raises(LookupError, match="there is no user 'ada'; there is none yet")
    with warehouse.engine.connect() as connection, nobody:
        require_user(connection, "ada")
    ensure(warehouse, "ben")
    ensure(warehouse, "chen")
    with warehouse.engine.connect() as connection:
        with pytest.raises(LookupError, match="there is no user 'ada'; there is ben, chen"):
            require_user(connection, "ada")
        assert require_user(connection, "ben").handle == "ben"
