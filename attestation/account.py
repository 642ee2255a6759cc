"""Whose account a command signs with: a key from the environment, an encrypted keystore, or a program that signs.

A key is never an argument: arguments show in the list of processes and in the shell's history.
"""

import asyncio
import getpass
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eth_account import Account

from attestation.registry.errors import SignerError
from attestation.registry.signer import CommandSigner, LocalSigner, Signer

DEFAULT_KEY_ENV: Final = "TOLLSEAL_AGENT_KEY"


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the signing account comes from: exactly one of the three."""

    env: str | None
    keystore: Path | None
    command: str | None
    password_fd: int | None = None
    password_env: str | None = None


async def open_signer(keys: Keys) -> Signer:
    """The account that signs.

    Raises:
        SignerError: there is no usable key. The message never quotes one.
    """
    if keys.command is not None:
        return await CommandSigner.open(keys.command)
    if keys.keystore is not None:
        return await _from_keystore(keys, keys.keystore)
    name = keys.env or DEFAULT_KEY_ENV
    value = os.environ.get(name)
    if not value:
        raise SignerError(
            f"{name} is not set", hint="Set it to the private key, or name a --keystore, a --signer or a --key-env."
        )
    return _from_key(value, name)


async def _from_keystore(keys: Keys, path: Path) -> Signer:
    try:
        content = json.loads(await asyncio.to_thread(path.read_text, "utf-8"))
    except (OSError, ValueError) as error:
        raise SignerError(f"{path} is no keystore: it cannot be read as JSON") from error
    password = _password(keys, path)
    try:
        key = await asyncio.to_thread(Account.decrypt, content, password)
    except Exception:
        # The library's message may quote what it decrypted.
        raise SignerError(f"{path} cannot be opened: another password, or no keystore of version 3") from None
    return _from_key("0x" + bytes(key).hex(), str(path))


def _password(keys: Keys, path: Path) -> str:
    if keys.password_fd is not None:
        try:
            with os.fdopen(keys.password_fd, encoding="utf-8", closefd=False) as stream:
                return stream.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SignerError(f"file descriptor {keys.password_fd} holds no password") from error
    if keys.password_env is not None:
        value = os.environ.get(keys.password_env)
        if value is None:
            raise SignerError(f"{keys.password_env} is not set")
        return value
    if not sys.stdin.isatty():
        raise SignerError("there is nobody to ask for the keystore's password: use --password-fd or --password-env")
    return getpass.getpass(f"Password of {path}: ")


def _from_key(value: str, where: str) -> Signer:
    try:
        return LocalSigner(Account.from_key(value))
    except Exception:
        # The library's message may quote the key.
        raise SignerError(f"{where} holds no private key (0x and 64 hex digits)") from None
