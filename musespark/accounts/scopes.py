"""What somebody may do: permissions, the roles of people and the access of keys that are made of them.

A permission is `group.read` or `group.write`; a route needs exactly one (`api/access.py`), and what is not listed here
nobody has. A key's scopes only ever take away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Literal, get_args

from musespark.errors import InsufficientScope, InvalidRequest

Role = Literal["owner", "admin", "developer", "billing", "viewer"]
Access = Literal["standard", "read_only", "admin", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
ACCESSES: tuple[Access, ...] = get_args(Access)
MOST_MODELS = 100
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_READING = frozenset({"models.read", "usage.read", "requests.read", "early_access.read", "api.read", "limits.read"})
STANDARD = _READING | {"chat.write", "early_access.write"}
_VIEWER = _READING | {"organisation.read", "projects.read", "session.read"}
_DEVELOPER = _VIEWER | {"early_access.write", "keys.read", "keys.write", "service_accounts.read"}
_BILLING = _VIEWER | {"billing.read", "billing.write"}
_ADMIN = (
    _DEVELOPER
    | {"organisation.write", "projects.write", "people.read", "people.write", "service_accounts.write"}
    | {"limits.write", "audit.read"}
    | _BILLING
)
OPERATOR = (
    STANDARD
    | _ADMIN
    | {"owners.write", "organisations.read", "organisations.write", "releases.read", "releases.write"}
    | {"server_audit.read", "server.read", "prices.read", "prices.write"}
)
ROLE_PERMISSIONS: dict[Role, frozenset[str]] = {
    "owner": _ADMIN | {"owners.write"},
    "admin": _ADMIN,
    "developer": _DEVELOPER,
    "billing": _BILLING,
    "viewer": _VIEWER,
}
ACCESS_PERMISSIONS: dict[Access, frozenset[str]] = {
    "standard": STANDARD,
    "read_only": _READING,
    "admin": _ADMIN,
    "operator": OPERATOR,
}
GROUPS = frozenset(permission.partition(".")[0] for permission in OPERATOR)


def permissions_of_key(access: Access, routes: Collection[str] | None, *, internal: bool) -> frozenset[str]:
    """What a key may do. Keys of an internal organisation, the operator's own, may also read the server's metrics."""
    granted = ACCESS_PERMISSIONS[access]
    if internal and access in ("standard", "read_only"):
        granted |= {"server.read"}
    if routes is not None:
        granted = frozenset(permission for permission in granted if permission.partition(".")[0] in routes)
    return granted


def check_may_grant(held: Collection[str] | None, granted: Collection[str]) -> None:
    """Raise InsufficientScope where somebody would give away more than they have; `held` None is the machine's owner.

    What every ordinary key has may be given by anybody who may make keys at all.
    """
    missing = set() if held is None else set(granted) - set(held) - STANDARD
    if missing:
        raise InsufficientScope(
            f"this would give more than you have yourself: {', '.join(sorted(missing))}; ask an owner of the "
            "organisation, or the operator of the server"
        )


def checked_role(role: str) -> Role:
    for known in ROLES:
        if role == known:
            return known
    raise InvalidRequest(f"role is {role[:40]!r}; it must be one of {', '.join(ROLES)}", param="role")


def checked_access(access: str) -> Access:
    for known in ACCESSES:
        if access == known:
            return known
    raise InvalidRequest(f"access is {access[:40]!r}; it must be one of {', '.join(ACCESSES)}", param="access")


def checked_models(models: Collection[str] | None) -> tuple[str, ...] | None:
    """Names of releases, sorted. Raises InvalidRequest for none at all, or what is no name of a model."""
    if models is None:
        return None
    if not 1 <= len(models) <= MOST_MODELS:
        raise InvalidRequest(f"a key is for 1 to {MOST_MODELS} models, or for all if left out", param="models")
    for name in models:
        if not _MODEL_NAME.fullmatch(name):
            raise InvalidRequest(f"{name[:100]!r} is no name of a model", param="models")
    return tuple(sorted(set(models)))


def checked_routes(routes: Collection[str] | None) -> tuple[str, ...] | None:
    """Groups of permissions, sorted. Raises InvalidRequest for none at all, or an unknown one."""
    if routes is None:
        return None
    unknown = sorted(set(routes) - GROUPS)
    if unknown or not routes:
        name = unknown[0][:40] if unknown else ""
        raise InvalidRequest(f"{name!r} is no group of routes; there are {', '.join(sorted(GROUPS))}", param="routes")
    return tuple(sorted(set(routes)))


def to_column(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else json.dumps(names)


def from_column(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))
