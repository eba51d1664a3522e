"""A new key for all tokens while everybody reads and renews; the old one opens nothing after."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from connecting import EXPIRED, Connected, connect
from cryptography.fernet import Fernet
from pydantic import SecretStr

from health_pipeline.connections import rotation
from health_pipeline.connections.accounts import Tokens, access_token, active_accounts
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.oauth import refresher
from health_pipeline.connections.rotation import rotate
from health_pipeline.connections.vault import KEY_FILE, Vault, VaultError, open_vault
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import ConnectorToken


def key() -> str:
    return Fernet.generate_key().decode()


def key_ids(warehouse: Warehouse) -> set[str]:
    with warehouse.engine.connect() as connection:
        return set(connection.exec_driver_sql("select key_id from ops.connector_tokens").scalars())


def with_keys(settings: Settings, *keys: str) -> Settings:
    return settings.model_copy(update={"vault_key": SecretStr(",".join(keys))})


@pytest.fixture
def ada(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    return connect(warehouse, vault, endpoint, "ada")


def test_nobody_fails_while_keys_rotate(
    settings: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    """Readers, renewers and a process that began before the first rotation, through five of them."""
    ben = connect(warehouse, vault, endpoint, "ben")
    refresh = refresher(endpoint)
    ended, failures, reads = threading.Event(), [], [0]

    def work(account: Connected, renew: bool) -> None:
        mine = open_vault(settings)  # once, as a process does
        last = None
        while not ended.is_set():
            try:
                rejected = last if renew else None
                last = access_token(warehouse.engine, mine, account.account_id, refresh, rejected=rejected)
                reads[0] += 1
            except Exception as error:
                failures.append(error)
                return

    threads = [
        threading.Thread(target=work, args=(account, renew))
        for account in (ada, ben)
        for renew in (True, False, False)
    ]
    for thread in threads:
        thread.start()
    first_key = (settings.home_path / KEY_FILE).read_text().split()
    rotated = [rotate(warehouse.engine, settings) for _ in range(5)]
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert reads[0] > 20
    assert len({each.key_id for each in rotated}) == 5
    assert all(not each.unreadable for each in rotated)
    path: Path = settings.home_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    (left,) = path.read_text().split()
    assert left not in first_key
    assert key_ids(warehouse) == {rotated[-1].key_id}
    old = Vault(first_key)
    with pytest.raises(VaultError, match="not among the vault's keys"):
        access_token(warehouse.engine, old, ada.account_id, refresh)
    with warehouse.engine.connect() as connection:
        row = connection.execute(sa.select(ConnectorToken)).first()
    assert row is not None
    with pytest.raises(VaultError, match="altered"):
        old.decrypt(old.newest, row.access_token)


def test_a_rotation_that_was_killed_goes_on(
    settings: Settings,
    warehouse: Warehouse,
    vault: Vault,
    endpoint: Endpoint,
    ada: Connected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ben = connect(warehouse, vault, endpoint, "ben")
    real, calls = rotation._anew, []

    def once(*arguments: object) -> bytes:
        calls.append(arguments)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(rotation, "_anew", once)
        rotate(warehouse.engine, settings)
    assert len(key_ids(warehouse)) == 2
    assert len((settings.home_path / KEY_FILE).read_text().split()) == 2
    refresh = refresher(endpoint)
    for account in (ada, ben):
        assert (
            access_token(warehouse.engine, open_vault(settings), account.account_id, refresh)
            == account.tokens.access_token
        )
    again = rotate(warehouse.engine, settings)
    assert again.tokens == 1
    assert key_ids(warehouse) == {again.key_id}
    assert len((settings.home_path / KEY_FILE).read_text().split()) == 1


def test_keys_of_the_environment_rotate_when_the_new_one_is_everywhere(
    settings: Settings, warehouse: Warehouse, endpoint: Endpoint
) -> None:
    old, new = key(), key()
    before = with_keys(settings, old)
    ada = connect(warehouse, open_vault(before), endpoint, "ada", expires_at=EXPIRED)
    with pytest.raises(VaultError, match="new,old"):
        rotate(warehouse.engine, before)
    both = with_keys(settings, new, old)
    # The processes that have both write with the old one until the rotation: those that have one still read.
    first = access_token(warehouse.engine, open_vault(both), ada.account_id, refresher(endpoint))
    assert access_token(warehouse.engine, open_vault(before), ada.account_id, refresher(endpoint)) == first
    done = rotate(warehouse.engine, both)
    assert done.tokens == 1
    assert f"no token is left of {done.retired[0]}" in done.words(both)
    assert access_token(
        warehouse.engine, open_vault(with_keys(settings, new)), ada.account_id, refresher(endpoint)
    )
    assert not (settings.home_path / KEY_FILE).exists()


def test_a_process_with_the_old_key_alone_spends_no_token_it_cannot_store(
    settings: Settings, warehouse: Warehouse, endpoint: Endpoint
) -> None:
    old, new = key(), key()
    ada = connect(warehouse, open_vault(with_keys(settings, old)), endpoint, "ada", expires_at=EXPIRED)
    stale = open_vault(with_keys(settings, old))
    with warehouse.engine.begin() as connection:  # as between the switch and the row's turn
        connection.exec_driver_sql("update ops.vault_keys set active = false")
        connection.exec_driver_sql("insert into ops.vault_keys (key_id, active) values ('another', true)")

    def refresh(_: str) -> Tokens:
        raise AssertionError("asked for tokens that nobody could store")

    with pytest.raises(VaultError, match="another now, which is not among this process's"):
        access_token(warehouse.engine, stale, ada.account_id, refresh)
    assert new != old


def test_tokens_that_no_key_reads_are_told_of(
    settings: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    (settings.home_path / KEY_FILE).write_text(key())
    done = rotate(warehouse.engine, settings)
    assert done.unreadable == (ada.account_id,)
    assert active_accounts(warehouse.engine, "oura") == []
    with warehouse.engine.connect() as connection:
        told = connection.exec_driver_sql("select status, last_error from ops.provider_accounts").one()
    assert tuple(told) == ("error", "its tokens cannot be read; connect again")
