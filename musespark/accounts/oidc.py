"""Signing in by OpenID Connect: the authorisation code flow with PKCE, state and nonce, by Authlib.

Who comes back with a verified email and is a person here, or was invited, is signed in. The provider is one that the
operator has chosen; nothing that a visitor sends names an address that we would fetch.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from musespark.accounts import audit, invitations, people, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.secret import Pepper
from musespark.accounts.sessions import NewSession, Sessions
from musespark.errors import InvalidRequest, SetupError, SignInFailed, TooManySignIns

SIGN_IN_S = 600  # from the redirect to the provider until they must be back
MOST_ON_THEIR_WAY = 10_000  # anybody can start one, so the rows need a bound
DISCOVERY_S = 3600
TIMEOUT_S = 10.0
LEEWAY_S = 60  # clocks differ
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]  # never "none", and no shared secrets


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """`redirect_uri` is our callback as the browser reaches it, registered with the provider."""

    issuer: str
    client_id: str
    client_secret: str
    redirect_uri: str

    def __repr__(self) -> str:
        return f"OidcSettings(issuer={self.issuer!r}, client_id={self.client_id!r})"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where to send the browser, and the state that its cookie keeps until it is back."""

    url: str
    state: str


class Oidc:
    """Thread-safe. Calls ask the provider, so never on an event loop."""

    def __init__(self, settings: OidcSettings, database: Database, pepper: Pepper, sessions: Sessions) -> None:
        self._settings = settings
        self._database = database
        self._pepper = pepper
        self._sessions = sessions
        self._lock = threading.Lock()
        self._provider: tuple[float, dict[str, Any], Any] | None = None  # (fresh until, metadata, keys)

    def start(self) -> Redirect:
        """Raises SetupError if the provider does not answer, or not as itself."""
        metadata, _ = self._discover()
        state, nonce, verifier = (secrets.token_urlsafe(n) for n in (32, 32, 48))
        with self._client() as client:
            url, _ = client.create_authorization_url(
                metadata["authorization_endpoint"], state=state, nonce=nonce, code_verifier=verifier
            )
        now, table = int(time.time()), tables.oidc_sign_ins
        with self._database.write() as connection:
            connection.execute(sa.delete(table).where(table.c.expires_at < now))
            on_their_way = connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            if on_their_way >= MOST_ON_THEIR_WAY:
                raise TooManySignIns("too many people are signing in; try again in a moment", retry_after_ms=10_000)
            connection.execute(
                sa.insert(table).values(
                    digest=self._pepper.token_digest("oidc-state", state),
                    nonce=nonce,
                    code_verifier=verifier,
                    expires_at=now + SIGN_IN_S,
                )
            )
        return Redirect(str(url), state)

    def finish(self, parameters: Mapping[str, str], cookie_state: str | None, address: str) -> NewSession:
        """What the provider sent the browser back with. Raises SignInFailed; the state is good for one try."""
        state = parameters.get("state", "")
        if not state or cookie_state is None or not hmac.compare_digest(state.encode(), cookie_state.encode()):
            raise SignInFailed("this sign-in was not started in this browser; start again at /v1/auth/oidc/start")
        begun = self._take(state)
        if "code" not in parameters:
            raise SignInFailed(f"the provider refused: {parameters.get('error', 'it sent no code')[:80]!r}")
        claims = self._claims(parameters["code"], begun)
        person_id, organisation_id, email = self._person(claims, address)
        session = self._sessions.begin(person_id, address, organisation_id)
        with self._database.write() as connection:
            actor = Actor("person", person_id, email, address)
            organisation = session.organisation_id
            audit.record(connection, actor, "sign_in.oidc", person_id, organisation_id=organisation, email=email)
        return session

    def _take(self, state: str) -> sa.Row[Any]:
        table, digest = tables.oidc_sign_ins, self._pepper.token_digest("oidc-state", state)
        with self._database.write() as connection:
            row = connection.execute(sa.select(table).where(table.c.digest == digest)).one_or_none()
            connection.execute(sa.delete(table).where(table.c.digest == digest))
        if row is None or row.expires_at <= time.time():
            raise SignInFailed("this sign-in was used already or took too long; start again at /v1/auth/oidc/start")
        return row

    def _claims(self, code: str, begun: sa.Row[Any]) -> dict[str, Any]:
        """The claims of a valid ID token. OpenID Connect Core 1.0, section 3.1.3.7, says what to check."""
        import httpx
        from authlib.common.errors import AuthlibBaseError
        from joserfc import jwt
        from joserfc.errors import JoseError

        metadata, keys = self._discover()
        try:
            with self._client() as client:
                token = client.fetch_token(
                    metadata["token_endpoint"],
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=begun.code_verifier,
                )
            id_token = jwt.decode(token["id_token"], keys, algorithms=ALGORITHMS)
            registry = jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "value": metadata["issuer"]},
                aud={"essential": True, "value": self._settings.client_id},
                exp={"essential": True},
                iat={"essential": True},
                sub={"essential": True},
                nonce={"essential": True, "value": begun.nonce},
            )
            registry.validate(id_token.claims)
        except (AuthlibBaseError, JoseError, httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            raise SignInFailed(f"the provider's answer is not valid ({type(error).__name__}); try again") from None
        claims = dict(id_token.claims)
        audience = claims["aud"]
        shared = (isinstance(audience, list) and len(audience) > 1) or "azp" in claims
        if shared and claims.get("azp") != self._settings.client_id:
            raise SignInFailed("the provider's token is for another application")
        return claims

    def _person(self, claims: Mapping[str, Any], address: str) -> tuple[str, str | None, str]:
        """The person of these claims, their organisation if they have just joined one, and their email."""
        subject, issuer = str(claims["sub"])[:255], self._settings.issuer
        table = tables.oidc_identities
        with self._database.write() as connection:
            known = sa.select(table.c.person_id).where(table.c.issuer == issuer, table.c.subject == subject)
            person_id = connection.scalar(known)
            if person_id is not None:
                found = connection.execute(sa.select(tables.people).where(tables.people.c.id == person_id)).one()
                if found.disabled_at is not None:
                    raise SignInFailed("this account is disabled")
                return person_id, None, found.email
            email = _verified_email(claims)
            row = connection.execute(sa.select(tables.people).where(tables.people.c.email == email)).one_or_none()
            if row is not None and row.disabled_at is not None:
                raise SignInFailed("this account is disabled")
            waiting = invitations.open_invitations(connection, email)
            if row is None and not waiting:
                raise SignInFailed(f"nobody has invited {email}; ask an owner of your organisation")
            name = str(claims.get("name") or email)[:200]
            person_id = people.insert_person(connection, email, name, None) if row is None else row.id
            for invitation in waiting:
                invitations.join(connection, person_id, email, invitation, address)
            connection.execute(
                sa.insert(table).values(
                    issuer=issuer, subject=subject, person_id=person_id, created_at=int(time.time())
                )
            )
        return person_id, waiting[-1].organisation_id if waiting else None, email

    def _client(self) -> Any:
        from authlib.integrations.httpx_client import OAuth2Client

        settings = self._settings
        return OAuth2Client(
            settings.client_id,
            settings.client_secret,
            scope="openid email profile",
            redirect_uri=settings.redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
        )

    def _discover(self) -> tuple[dict[str, Any], Any]:
        """The provider's metadata and keys, an hour old at most. OpenID Connect Discovery 1.0, section 4."""
        import httpx
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        with self._lock:
            if self._provider is not None and time.monotonic() < self._provider[0]:
                return self._provider[1], self._provider[2]
            issuer = self._settings.issuer
            try:
                with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
                    answer = client.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration").raise_for_status()
                    metadata = answer.json()
                    keys = KeySet.import_key_set(client.get(metadata["jwks_uri"]).raise_for_status().json())
                if metadata["issuer"] != issuer:
                    raise SetupError(f"{issuer} calls itself {metadata['issuer']!r}; check MUSESPARK_OIDC_ISSUER")
            except (httpx.HTTPError, httpx.InvalidURL, JoseError, KeyError, TypeError, ValueError) as error:
                raise SignInFailed(f"the provider {issuer} does not answer as one ({type(error).__name__})") from None
            self._provider = (time.monotonic() + DISCOVERY_S, metadata, keys)
            return metadata, keys


def _verified_email(claims: Mapping[str, Any]) -> str:
    """An email that the provider vouches for: an unverified one could be anybody's."""
    if claims.get("email_verified") is not True:
        raise SignInFailed("the provider has not verified your email, so it says nothing about who you are")
    try:
        return people.checked_email(str(claims.get("email", "")))
    except InvalidRequest:
        raise SignInFailed("the provider gave no usable email") from None
