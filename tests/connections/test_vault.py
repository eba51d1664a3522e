"""The vault's keys, on disk and in the environment, and what it makes of tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from health_pipeline.connections.vault import KEY_FILE, Vault, VaultError, open_vault
from health_pipeline.settings import Settings

CANARY = "canary-token-91c2"

OPEN = """
import sys
from pathlib import Path
from health_pipeline.connections.vault import open_vault
from health_pipeline.settings import Settings
sys.stdin.readline()
vault = open_vault(Settings(home=Path(sys.argv[1])))
print(vault.encrypt("x")[0])
"""


def with_keys(home: Path, *keys: str) -> Vault:
    return open_vault(Settings(home=home, vault_key=SecretStr(", ".join(keys))))


def key() -> str:
    return Fernet.generate_key().decode()


def test_the_key_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        key_id, ciphertext = open_vault(Settings(home=tmp_path)).encrypt(CANARY)
    finally:
        os.umask(umask)
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    content = path.read_bytes()
    assert open_vault(Settings(home=tmp_path)).decrypt(key_id, ciphertext) == CANARY
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == [KEY_FILE]
    assert CANARY.encode() not in ciphertext


def test_processes_that_start_together_share_one_key(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(tmp_path / "home")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda process: process.communicate("go\n", timeout=60), processes))
    assert [process.returncode for process in processes] == [0] * 4, ended
    assert len({output for output, _ in ended}) == 1
    assert [each.name for each in (tmp_path / "home").iterdir()] == [KEY_FILE]


def test_threads_that_start_together_share_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: open_vault(Settings(home=tmp_path)).encrypt("x")[0], range(8)))
    assert len(set(ids)) == 1
    assert [each.name for each in tmp_path.iterdir()] == [KEY_FILE]


def test_what_a_killed_command_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """In a container every command has the same process id."""
    (tmp_path / f"{KEY_FILE}.{os.getpid()}").write_text("half a k")
    key_id, ciphertext = open_vault(Settings(home=tmp_path)).encrypt(CANARY)
    assert open_vault(Settings(home=tmp_path)).decrypt(key_id, ciphertext) == CANARY


@pytest.mark.parametrize("content", ["", "\n", "not a key\n"])
def test_a_key_file_that_holds_no_key_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(VaultError, match=KEY_FILE) as refused:
        open_vault(Settings(home=tmp_path))
    assert str(tmp_path) in str(refused.value)
    assert (tmp_path / KEY_FILE).read_text() == content


@pytest.mark.parametrize("value", ["", " ", "secret-canary", "ä", f"{'k' * 43}=,short"])
def test_a_setting_that_is_no_key_is_named_and_not_repeated(tmp_path: Path, value: str) -> None:
    with pytest.raises(VaultError, match="HEALTH_PIPELINE_VAULT_KEY") as refused:
        open_vault(Settings(home=tmp_path, vault_key=SecretStr(value)))
    assert "canary" not in str(refused.value)
    assert not (tmp_path / KEY_FILE).exists()


def test_keys_rotate(tmp_path: Path) -> None:
    old, new = key(), key()
    old_id, written = with_keys(tmp_path, old).encrypt(CANARY)
    both = with_keys(tmp_path, new, old)
    assert both.decrypt(old_id, written) == CANARY
    new_id, rewritten = both.encrypt(CANARY)
    assert new_id != old_id
    assert with_keys(tmp_path, new).decrypt(new_id, rewritten) == CANARY
    with pytest.raises(
        VaultError, match=rf"the key {old_id}.*HEALTH_PIPELINE_VAULT_KEY after the newest"
    ) as refused:
        with_keys(tmp_path, new).decrypt(old_id, written)
    assert old not in str(refused.value)
    assert old_id not in old


def test_a_changed_ciphertext_is_refused(tmp_path: Path) -> None:
    vault = with_keys(tmp_path, key())
    key_id, ciphertext = vault.encrypt(CANARY)
    for position in (0, 12, len(ciphertext) // 2, len(ciphertext) - 3):
        changed = bytearray(ciphertext)
        changed[position] ^= 1
        with pytest.raises(VaultError, match="altered") as refused:
            vault.decrypt(key_id, bytes(changed))
        assert CANARY not in str(refused.value)
    for cut in (b"", ciphertext[:-4]):
        with pytest.raises(VaultError, match="altered"):
            vault.decrypt(key_id, cut)


def test_the_same_token_never_looks_the_same(tmp_path: Path) -> None:
    vault = with_keys(tmp_path, key())
    assert vault.encrypt(CANARY)[1] != vault.encrypt(CANARY)[1]
