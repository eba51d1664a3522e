"""The token vault: tokens are encrypted with Fernet (AES-128-CBC with HMAC-SHA256) before they are stored."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from health_pipeline.settings import Settings, load_settings

KEY_FILE = "vault.key"


class VaultError(RuntimeError):
    """A token cannot be read: the key it was written with is not among those given."""


class Vault:
    """Encrypts with the newest key and decrypts with whichever key an entry names."""

    def __init__(self, keys: list[str]) -> None:
        try:
            self._keys = {_key_id(key): Fernet(key) for key in keys}
        except ValueError:
            raise VaultError(
                "the vault's key is not a Fernet key (32 bytes, URL-safe base64); check HEALTH_PIPELINE_VAULT_KEY"
            ) from None
        self._newest = _key_id(keys[0])

    def encrypt(self, text: str) -> tuple[str, bytes]:
        """The key's id and the ciphertext."""
        return self._newest, self._keys[self._newest].encrypt(text.encode())

    def decrypt(self, key_id: str, ciphertext: bytes) -> str:
        try:
            return self._keys[key_id].decrypt(ciphertext).decode()
        except KeyError:
            raise VaultError(
                f"a token was encrypted with the key {key_id}, which is not among the vault's keys; "
                "give it in HEALTH_PIPELINE_VAULT_KEY after the newest, or connect the account again"
            ) from None
        except InvalidToken:
            raise VaultError(f"a token does not decrypt with the key {key_id}; it was altered") from None


def open_vault(settings: Settings | None = None) -> Vault:
    """The vault with the keys of the environment, else with the key file of the home, made on first use."""
    settings = settings or load_settings()
    if settings.vault_key is not None:
        return Vault([key.strip() for key in settings.vault_key.get_secret_value().split(",")])
    return Vault(_key_file(settings.home_path / KEY_FILE).split())


def _key_file(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.read_text()
    except FileNotFoundError:
        pass
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(Fernet.generate_key() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # the first of two commands wins; a key is never replaced
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text()


def _key_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]
