"""The token vault: tokens are encrypted with Fernet (AES-128-CBC with HMAC-SHA256) before they are stored."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from health_pipeline.settings import Settings, load_settings

KEY_FILE = "vault.key"


class VaultError(RuntimeError):
    """A key is not one, or a token cannot be read with the keys given."""


class Vault:
    """Encrypts with the newest key (the first) and decrypts with whichever key an entry names.

    `read_again` gives the keys as they are now, for a key that has come since (`health-pipeline vault rotate`).
    Raises VaultError where one of the keys is not one.
    """

    def __init__(self, keys: Sequence[str], read_again: Callable[[], Sequence[str]] | None = None) -> None:
        self._keys = _by_id(keys)
        self.newest = next(iter(self._keys))
        self._read_again = read_again

    def knows(self, key_id: str) -> bool:
        """Whether the key is among the vault's, as they are now. Raises VaultError."""
        if key_id not in self._keys and self._read_again is not None:
            # The old ones stay: another thread may be about to read what it has in hand.
            self._keys = {**_by_id(self._read_again()), **self._keys}
        return key_id in self._keys

    def encrypt(self, text: str, key_id: str | None = None) -> tuple[str, bytes]:
        """The key's id and the ciphertext, by the newest key unless one is named."""
        key_id = key_id or self.newest
        return key_id, self._keys[key_id].encrypt(text.encode())

    def decrypt(self, key_id: str, ciphertext: bytes) -> str:
        """Raises VaultError."""
        if not self.knows(key_id):
            raise VaultError(
                f"a token was encrypted with the key {key_id}, which is not among the vault's keys; "
                "give it in HEALTH_PIPELINE_VAULT_KEY after the newest, or connect the account again"
            )
        try:
            return self._keys[key_id].decrypt(ciphertext).decode()
        except InvalidToken:
            raise VaultError(f"a token does not decrypt with the key {key_id}; it was altered") from None


def _by_id(keys: Sequence[str]) -> dict[str, Fernet]:
    try:
        found = {key_id(key): Fernet(key) for key in keys}
    except ValueError:
        found = {}
    if not found:
        raise VaultError("not a Fernet key (32 bytes, URL-safe base64)")
    return found


def open_vault(settings: Settings | None = None) -> Vault:
    """The vault with the keys of the environment, else with the key file of the home, made on first use.

    Raises VaultError, which names the setting or the file, where a key is not one.
    """
    settings = settings or load_settings()
    if settings.vault_key is not None:
        # What a process was given in its environment stays as it is.
        return Vault(read_keys(settings))
    return Vault(read_keys(settings), lambda: read_keys(settings))


def read_keys(settings: Settings) -> list[str]:
    """The keys as they are now, newest first; the key file is made where there is none. Raises VaultError."""
    path = settings.home_path / KEY_FILE
    if settings.vault_key is not None:
        keys = [key.strip() for key in settings.vault_key.get_secret_value().split(",")]
        if not _are_keys(keys):
            raise VaultError(
                "HEALTH_PIPELINE_VAULT_KEY is not a Fernet key (32 bytes, URL-safe base64), or several with commas"
            )
        return keys
    keys = key_file(path).split()
    if not _are_keys(keys):
        raise VaultError(
            f"{path} is not a Fernet key (32 bytes, URL-safe base64); restore it. Without it no stored token can "
            "be read: move it away only to connect every account again"
        )
    return keys


def write_key_file(settings: Settings, keys: Sequence[str]) -> None:
    """Replace the key file at once, for its owner alone: whoever reads it has the old keys or the new ones."""
    path = settings.home_path / KEY_FILE
    draft = _draft(path, "".join(f"{key}\n" for key in keys).encode())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def new_key() -> str:
    return Fernet.generate_key().decode()


def key_id(key: str) -> str:
    """A name for a key that tells nothing of it."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _are_keys(keys: Sequence[str]) -> bool:
    try:
        return bool(_by_id(keys))
    except VaultError:
        return False


def key_file(path: Path) -> str:
    """The text of a key file, made with a random key where there is none: for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.read_text()
    except FileNotFoundError:
        pass
    draft = _draft(path, f"{new_key()}\n".encode())
    try:
        os.link(draft, path)  # the first of two commands wins; a key is never replaced
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text()


def _draft(path: Path, content: bytes) -> Path:
    """A file beside `path`, on disk, readable by its owner alone."""
    # A name of its own: in a container every command, and what a killed one left, has the same process id.
    descriptor, draft = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(draft)
