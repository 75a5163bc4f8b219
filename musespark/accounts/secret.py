"""What a key looks like, and the pepper that turns it into what is stored.

A secret is `sk-muse-` + 43 base62 characters (256 random bits) + 6 base62 characters, the CRC-32 of everything before.
The checksum lets a secret scanner, and us, tell a real key from a look-alike without asking a database. With 256 random
bits a plain keyed hash is enough: slow password hashes protect guessable things.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
import zlib
from pathlib import Path

from musespark.errors import StateError

PREFIX = "sk-muse-"
PEPPER_BYTES = 32
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BODY_CHARACTERS = 43  # 62^43 > 2^256
_CHECKSUM_CHARACTERS = 6  # 62^6 > 2^32
_DISPLAY_CHARACTERS = len(PREFIX) + 4
SECRET_CHARACTERS = len(PREFIX) + _BODY_CHARACTERS + _CHECKSUM_CHARACTERS


def new_secret() -> str:
    head = PREFIX + _base62(secrets.randbits(256), _BODY_CHARACTERS)
    return head + _checksum(head)


def new_token(prefix: str) -> str:
    """A secret of another kind, such as `inv-muse-…` and `ses-muse-…`: 256 random bits."""
    return prefix + _base62(secrets.randbits(256), _BODY_CHARACTERS)


def is_well_formed(secret: str) -> bool:
    """True if `secret` has the shape and the checksum of a key; says nothing about whether the key exists."""
    if len(secret) != SECRET_CHARACTERS or not secret.startswith(PREFIX) or not secret.isascii():
        return False
    head, checksum = secret[:-_CHECKSUM_CHARACTERS], secret[-_CHECKSUM_CHARACTERS:]
    return head[len(PREFIX) :].isalnum() and hmac.compare_digest(checksum, _checksum(head))


def display_prefix(secret: str) -> str:
    """The part that lists may show: enough to recognise a key, 232 secret bits short of using it."""
    return secret[:_DISPLAY_CHARACTERS]


def new_id(kind: str) -> str:
    """A public name such as `key_4fQ…`: 96 random bits, safe to show and to log."""
    return f"{kind}_{_base62(secrets.randbits(96), 17)}"


def _checksum(head: str) -> str:
    return _base62(zlib.crc32(head.encode("ascii")), _CHECKSUM_CHARACTERS)


def _base62(number: int, characters: int) -> str:
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


class Pepper:
    """The server's own secret. It lies beside the database, never in it: a copy of the database alone opens nothing."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self.id = self._mac(b"pepper-id", b"").hex()[:16]

    def key_digest(self, secret: str) -> bytes:
        return self._mac(b"key", secret.encode())

    def token_digest(self, purpose: str, token: str) -> bytes:
        """What is stored of another secret, such as an invitation; `purpose` keeps the kinds apart."""
        return self._mac(purpose.encode(), token.encode())

    def cache_salt(self, organisation_id: str) -> bytes:
        """What separates one organisation's cached prefixes from another's; 32 bytes that no client can know."""
        return self._mac(b"cache-salt", organisation_id.encode())

    def _mac(self, purpose: bytes, message: bytes) -> bytes:
        return hmac.new(self._value, purpose + b"\0" + message, hashlib.sha256).digest()

    def __repr__(self) -> str:
        return f"Pepper(id={self.id!r})"


def read_pepper(path: Path) -> Pepper | None:
    """The pepper in `path`, or None if there is no such file. Raises StateError if the file is damaged."""
    try:
        value = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}; the server needs it to check keys") from None
    if len(value) != PEPPER_BYTES:
        raise StateError(
            f"{path} holds {len(value)} bytes instead of {PEPPER_BYTES}: it is damaged; restore it from a backup, or "
            f"remove the state folder {path.parent} and make new keys"
        )
    return Pepper(value)


def create_pepper(path: Path) -> Pepper:
    """Write a new pepper, whole or not at all, readable by its owner only.

    If another process made one in the meantime, that one is returned.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".pepper-")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(PEPPER_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)  # unlike a rename, this fails when `path` exists
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
    pepper = read_pepper(path)
    assert pepper is not None
    return pepper
