"""`health-pipeline vault rotate`: a new key for all tokens, while everything else goes on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.accounts import VAULT_LOCK, record_failure
from health_pipeline.connections.vault import Vault, VaultError, key_id, new_key, read_keys, write_key_file
from health_pipeline.settings import Settings
from health_pipeline.warehouse.lock import hold
from health_pipeline.warehouse.models import ConnectorToken, OAuthState, VaultKey, WebhookSubscription


@dataclass(frozen=True, slots=True)
class Rotation:
    """`unreadable` are accounts whose tokens no key at hand could read; their people have to connect again."""

    key_id: str
    retired: tuple[str, ...]
    tokens: int
    unreadable: tuple[int, ...]

    def words(self, settings: Settings) -> str:
        text = f"{self.tokens} accounts' tokens are encrypted with the key {self.key_id} now"
        if self.retired:
            text += f"; no token is left of {', '.join(self.retired)}"
            if settings.vault_key is not None:
                text += ", so it can go from HEALTH_PIPELINE_VAULT_KEY"
        return text


def rotate(engine: sa.Engine, settings: Settings) -> Rotation:
    """Encrypt every token anew: with the first key of HEALTH_PIPELINE_VAULT_KEY, or with a new one of the key file.

    Interrupted, it goes on when it is called again. Processes that run meanwhile read the key file again when they
    meet the new key; with keys from the environment each of them has to have been given the new key before.
    Raises VaultError, also where another rotation is under way.
    """
    with hold(engine, "vault:rotate") as held:
        if not held:
            raise VaultError("another rotation is under way")
        keys = _keys_to_use(engine, settings)
        vault = Vault(keys)
        _activate(engine, vault.newest)
        tokens, unreadable = _encrypt_anew(engine, vault)
        if settings.vault_key is None:
            write_key_file(settings, keys[:1])
        return Rotation(vault.newest, tuple(key_id(key) for key in keys[1:]), tokens, tuple(unreadable))


def _keys_to_use(engine: sa.Engine, settings: Settings) -> list[str]:
    keys = read_keys(settings)
    if settings.vault_key is not None:
        with engine.connect() as connection:
            active = connection.execute(
                sa.select(VaultKey.key_id).where(VaultKey.active)
            ).scalar_one_or_none()
        if len(keys) == 1 and active in (None, key_id(keys[0])):
            raise VaultError(
                "put the new key before the old one in HEALTH_PIPELINE_VAULT_KEY (new,old), restart what runs, and "
                "say this again"
            )
        return keys
    if len(keys) > 1:
        return keys  # a rotation that was interrupted
    keys = [new_key(), *keys]
    # On disk before anything is encrypted with it.
    write_key_file(settings, keys)
    return keys


def _activate(engine: sa.Engine, newest: str) -> None:
    """From here on nobody encrypts with another key; whoever was about to has done so."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": VAULT_LOCK}
        )
        connection.execute(
            sa.update(VaultKey)
            .where(VaultKey.active, VaultKey.key_id != newest)
            .values(active=False, retired_at=sa.func.now())
        )
        connection.execute(
            insert(VaultKey)
            .values(key_id=newest, active=True)
            .on_conflict_do_update(
                index_elements=[VaultKey.key_id], set_={"active": True, "retired_at": None}
            )
        )


def _encrypt_anew(engine: sa.Engine, vault: Vault) -> tuple[int, list[int]]:
    old = sa.select(ConnectorToken.account_id).where(ConnectorToken.key_id != vault.newest)
    with engine.connect() as connection:
        accounts = list(connection.execute(old.order_by(ConnectorToken.account_id)).scalars())
    done, unreadable = 0, []
    for account_id in accounts:
        # A row at a time: a renewal under way is waited for, and holds up no other.
        with engine.begin() as connection:
            row = connection.execute(
                sa.select(ConnectorToken).where(ConnectorToken.account_id == account_id).with_for_update()
            ).one_or_none()
            if row is None or row.key_id == vault.newest:
                continue
            try:
                values = {"access_token": _anew(vault, row.key_id, row.access_token)}
                if row.refresh_token is not None:
                    values["refresh_token"] = _anew(vault, row.key_id, row.refresh_token)
            except VaultError:
                unreadable.append(account_id)
                continue
            connection.execute(
                sa.update(ConnectorToken)
                .where(ConnectorToken.account_id == account_id)
                .values(key_id=vault.newest, **values)
            )
            done += 1
    for account_id in unreadable:
        record_failure(engine, account_id, "its tokens cannot be read; connect again", reconnect=True)
    _encrypt_states_anew(engine, vault)
    _encrypt_webhook_secrets_anew(engine, vault)
    return done, unreadable


def _encrypt_states_anew(engine: sa.Engine, vault: Vault) -> None:
    """The same for people on their way to consent; what cannot be read is of no use to anybody."""
    with engine.begin() as connection:
        connection.execute(
            sa.delete(OAuthState).where(
                sa.or_(OAuthState.used_at.isnot(None), OAuthState.expires_at < sa.func.now())
            )
        )
        rows = connection.execute(
            sa.select(OAuthState.state_sha256, OAuthState.key_id, OAuthState.code_verifier)
            .where(OAuthState.key_id.isnot(None), OAuthState.key_id != vault.newest)
            .with_for_update()
        ).all()
        for row in rows:
            this = OAuthState.state_sha256 == row.state_sha256
            try:
                verifier = _anew(vault, row.key_id, row.code_verifier)
            except VaultError:
                connection.execute(sa.delete(OAuthState).where(this))
            else:
                connection.execute(
                    sa.update(OAuthState).where(this).values(key_id=vault.newest, code_verifier=verifier)
                )


def _encrypt_webhook_secrets_anew(engine: sa.Engine, vault: Vault) -> None:
    """The same for what providers sign their calls with; what cannot be read is asked for anew by the daily run."""
    with engine.begin() as connection:
        rows = connection.execute(
            sa.select(
                WebhookSubscription.subscription_id, WebhookSubscription.key_id, WebhookSubscription.secret
            )
            .where(WebhookSubscription.key_id.isnot(None), WebhookSubscription.key_id != vault.newest)
            .with_for_update()
        ).all()
        for row in rows:
            values: dict[str, object] = {"key_id": None, "secret": None}
            with suppress(VaultError):
                values = {"key_id": vault.newest, "secret": _anew(vault, row.key_id, row.secret)}
            connection.execute(
                sa.update(WebhookSubscription)
                .where(WebhookSubscription.subscription_id == row.subscription_id)
                .values(**values)
            )


def _anew(vault: Vault, key: str, ciphertext: bytes) -> bytes:
    return vault.encrypt(vault.decrypt(key, ciphertext))[1]
