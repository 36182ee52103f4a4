"""The keys that seal tenants' secrets: a file that only the hub's user reads, made by whoever needs it first."""

import os
import tempfile
from pathlib import Path

from kernel.errors import Invalid
from kernel.files import sync_directory
from scheduler.secrets import Vault, new_vault_key


class MalformedVaultKey(Invalid):
    """The key file holds something else."""

    sentence = (
        "{file} does not hold Fernet keys, one a line. Restore it; what it sealed cannot be opened otherwise."
    )


class VaultKeyExposed(Invalid):
    """Others may read the key file."""

    sentence = "{file} may be read by others; take their rights away (chmod 600)."


def open_vault(file: Path) -> Vault:
    """The vault of the keys in a file. Raises MalformedVaultKey, VaultKeyExposed."""
    if not file.exists():
        _make(file)
    if file.stat().st_mode & 0o077:
        raise VaultKeyExposed(file=file)
    keys = [line.strip() for line in file.read_bytes().splitlines() if line.strip()]
    if not keys:
        raise MalformedVaultKey(file=file)
    try:
        return Vault(keys)
    except ValueError as error:
        raise MalformedVaultKey(file=file) from error


def _make(file: Path) -> None:
    """Two that make it at once end with one key: the file appears whole, and only once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".secrets-")
    try:
        with os.fdopen(handle, "wb") as made:
            made.write(new_vault_key() + b"\n")
            made.flush()
            os.fsync(made.fileno())
        file.hardlink_to(name)
        sync_directory(file.parent)  # what it seals is lost without it
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()
