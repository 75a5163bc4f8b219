"""Who does something, for the audit log: a person, a key, or somebody at the command line of the machine."""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass
from typing import Literal

ActorKind = Literal["machine", "key", "person", "system"]


@dataclass(frozen=True, slots=True)
class Actor:
    """`source` is where it came from: a network address, or the machine for its command line."""

    kind: ActorKind
    id: str
    name: str
    source: str
    request_id: str | None = None


def machine() -> Actor:
    """Whoever runs a command on the machine: who can read the state folder may do everything."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return Actor("machine", "machine", user[:320], f"command line on {socket.gethostname()}"[:200])


SYSTEM = Actor("system", "system", "the server itself", "this process")
