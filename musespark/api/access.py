"""Who may use which route: one table, and the only way to a route is through it.

The gate asks it before anything of the application sees the request. A route that is not in `RULES` does not
exist for anybody, and a path is matched by the same pattern, on the same string, that the router uses: there is no
second reading of a path, of Host or of X-Forwarded-… that could get around it.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from musespark.accounts.verify import Identity


@dataclass(frozen=True, slots=True)
class Rule:
    """`path` is the route's template; `permission` None is open to all the world."""

    method: str
    path: str
    permission: str | None


RULES = tuple(
    Rule(*line.split())
    for line in """
    POST    /v1/chat/completions                                        chat.write
    GET     /v1/models                                                  models.read
    GET     /v1/models/{model_id}                                       models.read
    GET     /v1/usage                                                   usage.read
    GET     /v1/requests/{request_id}                                   requests.read
    GET     /v1/releases/{name}/early-access                            early_access.read
    POST    /v1/releases/{name}/early-access                            early_access.write
    GET     /v1/admin/organisations                                     organisations.read
    POST    /v1/admin/organisations                                     organisations.write
    GET     /v1/admin/organisations/{organisation_id}                   organisation.read
    PATCH   /v1/admin/organisations/{organisation_id}                   organisation.write
    GET     /v1/admin/organisations/{organisation_id}/projects          projects.read
    POST    /v1/admin/organisations/{organisation_id}/projects          projects.write
    PATCH   /v1/admin/organisations/{organisation_id}/projects/{project_id}                     projects.write
    GET     /v1/admin/organisations/{organisation_id}/service-accounts  service_accounts.read
    POST    /v1/admin/organisations/{organisation_id}/service-accounts  service_accounts.write
    DELETE  /v1/admin/organisations/{organisation_id}/service-accounts/{account_id}             service_accounts.write
    GET     /v1/admin/organisations/{organisation_id}/keys              keys.read
    POST    /v1/admin/organisations/{organisation_id}/keys              keys.write
    POST    /v1/admin/organisations/{organisation_id}/keys/{key_id}/rotate                      keys.write
    DELETE  /v1/admin/organisations/{organisation_id}/keys/{key_id}     keys.write
    GET     /v1/admin/organisations/{organisation_id}/people            people.read
    PATCH   /v1/admin/organisations/{organisation_id}/people/{person_id}                        people.write
    DELETE  /v1/admin/organisations/{organisation_id}/people/{person_id}                        people.write
    GET     /v1/admin/organisations/{organisation_id}/invitations       people.read
    POST    /v1/admin/organisations/{organisation_id}/invitations       people.write
    DELETE  /v1/admin/organisations/{organisation_id}/invitations/{invitation_id}               people.write
    GET     /v1/admin/organisations/{organisation_id}/audit             audit.read
    GET     /v1/admin/organisations/{organisation_id}/billing           billing.read
    PUT     /v1/admin/organisations/{organisation_id}/plan              organisations.write
    DELETE  /v1/admin/organisations/{organisation_id}/plan              organisations.write
    POST    /v1/admin/organisations/{organisation_id}/credits           organisations.write
    PUT     /v1/admin/organisations/{organisation_id}/caps/{subject_id}                         billing.write
    GET     /v1/admin/organisations/{organisation_id}/limits/{subject_id}                       limits.read
    PUT     /v1/admin/organisations/{organisation_id}/limits/{subject_id}                       limits.write
    GET     /v1/admin/prices                                            prices.read
    POST    /v1/admin/prices                                            prices.write
    GET     /v1/admin/plans                                             prices.read
    POST    /v1/admin/plans                                             prices.write
    GET     /v1/admin/audit                                             server_audit.read
    GET     /v1/admin/releases                                          releases.read
    POST    /v1/admin/releases                                          releases.write
    GET     /v1/admin/releases/{name}                                   releases.read
    POST    /v1/admin/releases/{name}/move                              releases.write
    POST    /v1/admin/releases/{name}/launch                            releases.write
    POST    /v1/admin/releases/{name}/ramp                              releases.write
    POST    /v1/admin/releases/{name}/data-policy                       releases.write
    POST    /v1/admin/releases/{name}/invitations                       releases.write
    DELETE  /v1/admin/releases/{name}/invitations/{organisation_id}     releases.write
    GET     /v1/admin/releases/{name}/early-access                      releases.read
    POST    /v1/admin/releases/{name}/early-access/admit                releases.write
    GET     /v1/admin/aliases                                           releases.read
    PUT     /v1/admin/aliases/{alias}                                   releases.write
    DELETE  /v1/admin/aliases/{alias}                                   releases.write
    GET     /v1/auth/session                                            session.read
    POST    /v1/auth/session                                            session.read
    POST    /v1/auth/sign-out                                           session.read
    GET     /openapi.json                                               api.read
    GET     /metrics                                                    server.read
    """.strip().splitlines()
) + tuple(
    Rule(method, path, None)
    for method, path in (
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/v1/status"),
        ("POST", "/v1/auth/sign-in"),
        ("POST", "/v1/auth/invitation"),
        ("GET", "/v1/auth/oidc/start"),
        ("GET", "/v1/auth/oidc/callback"),
    )
)
PUBLIC = frozenset(rule.path for rule in RULES if rule.permission is None)
_PATTERNS = [(compile_path(rule.path)[0], rule) for rule in RULES]


def find_rule(method: str, path: str) -> Rule:
    """The rule for this route. Raises the router's 404 or 405 where none has this path, or not with this method."""
    matching = [rule for pattern, rule in _PATTERNS if pattern.match(path)]
    if not matching:
        raise HTTPException(404)
    for rule in matching:
        if rule.method == method:
            return rule
    raise HTTPException(405, headers={"Allow": ", ".join(sorted({rule.method for rule in matching}))})


def authorise(identity: Identity, rule: Rule) -> None:
    """Raise InsufficientScope if this caller may not use the route."""
    if rule.permission is not None:
        identity.require(rule.permission)
