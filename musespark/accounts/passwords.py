"""Passwords of people: argon2id, as RFC 9106 recommends it for machines with little memory (64 MiB, three passes)."""

from __future__ import annotations

import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from musespark.errors import InvalidRequest

SHORTEST = 12
LONGEST = 256
AT_ONCE = 2  # hashes computed together: each takes 64 MiB, and a flood of sign-ins must not take all memory

_hasher = PasswordHasher()  # the library's defaults are RFC 9106's second choice
_turn = threading.BoundedSemaphore(AT_ONCE)


def checked_password(password: str) -> str:
    """Raises InvalidRequest, which never repeats it. Any characters; length is what makes a password hard to guess."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise InvalidRequest(f"a password has {SHORTEST} to {LONGEST} characters", param="password")
    if len(set(password)) < 5:
        raise InvalidRequest("this password repeats a few characters only; take another", param="password")
    return password


def hash_password(password: str) -> str:
    with _turn:
        return _hasher.hash(checked_password(password))


def matches(stored: str | None, password: str) -> bool:
    """Whether it is the one. Takes the same time for somebody who is not known, or has no password."""
    with _turn:
        try:
            return _hasher.verify(stored or _nobody(), password[: LONGEST + 1]) and stored is not None
        except (VerificationError, InvalidHashError):
            return False


def outdated(stored: str) -> bool:
    """Whether it was hashed with weaker parameters than today's."""
    return _hasher.check_needs_rehash(stored)


_nobody_hash: list[str] = []


def _nobody() -> str:
    """A hash that no password has, made once: comparing with it costs what a real comparison costs."""
    if not _nobody_hash:
        _nobody_hash.append(_hasher.hash("\0 nobody's password"))
    return _nobody_hash[0]
