"""The token vault: tokens are encrypted with Fernet (AES-128-CBC with HMAC-SHA256) before they are stored."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from health_pipeline.settings import Settings, load_settings

KEY_FILE = "vault.key"


class VaultError(RuntimeError):
    """A key is not one, or a token cannot be read with the keys given."""


class Vault:
    """Encrypts with the newest key (the first) and decrypts with whichever key an entry names.

    Raises VaultError where one of the keys is not one.
    """

    def __init__(self, keys: list[str]) -> None:
        try:
            self._keys = {_key_id(key): Fernet(key) for key in keys}
            self._newest = _key_id(keys[0])
        except (ValueError, IndexError):
            raise VaultError("not a Fernet key (32 bytes, URL-safe base64)") from None

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
    """The vault with the keys of the environment, else with the key file of the home, made on first use.

    Raises VaultError, which names the setting or the file, where a key is not one.
    """
    settings = settings or load_settings()
    path = settings.home_path / KEY_FILE
    try:
        if settings.vault_key is not None:
            return Vault([key.strip() for key in settings.vault_key.get_secret_value().split(",")])
        return Vault(_key_file(path).split())
    except VaultError as error:
        if settings.vault_key is not None:
            raise VaultError(f"HEALTH_PIPELINE_VAULT_KEY is {error}") from None
        raise VaultError(
            f"{path} is {error}; restore it. Without it no stored token can be read: move it away only to "
            "connect every account again"
        ) from None


def _key_file(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.read_text()
    except FileNotFoundError:
        pass
    # A name of its own: in a container every command, and what a killed one left, has the same process id.
    descriptor, draft = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(Fernet.generate_key() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # the first of two commands wins; a key is never replaced
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink()
    return path.read_text()


def _key_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]
