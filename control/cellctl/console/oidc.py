"""Sign-in by OpenID Connect: authorisation code with PKCE (OpenID Connect Core 1.0, RFC 7636).

The provider says who somebody is; which identity of the mesh acts for them is said here.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

import aiohttp
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import ConfigDict, Field, with_config

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
_ANSWER_MAX = 256 * 1024


class OidcFault(Exception):
    """The provider does not answer, or what it answers is not to be believed."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class OidcSettings:
    # https://…; http only on loopback.
    issuer: Annotated[str, Field(pattern=r"^(https://|http://127\.0\.0\.1[:/])")]
    client_id: str
    client_secret: str
    # Where the provider sends the browser back to: this console's /oidc/callback.
    redirect_url: str
    # Claim value → identity (a certificate's name). Who is not in it may not enter.
    identities: Mapping[str, str]
    claim: str = "email"


class Provider:
    """One provider. A new connection a sign-in: they are few."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings

    async def begin(self) -> tuple[str, str, Mapping[str, str]]:
        """Where to send the browser, the state it will come back with, and what to keep."""
        found = await self._ask("GET", self._well_known())
        if found.get("issuer") != self._settings.issuer:
            raise OidcFault("the provider calls itself by another name")
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._settings.client_id,
                "redirect_uri": self._settings.redirect_url,
                "scope": "openid email profile",
                "state": state,
                "nonce": nonce,
                "code_challenge": challenge.rstrip(b"=").decode(),
                "code_challenge_method": "S256",
            }
        )
        return f"{found['authorization_endpoint']}?{query}", state, {
            "nonce": nonce, "verifier": verifier,
        }  # fmt: skip

    async def end(self, code: str, kept: Mapping[str, str]) -> tuple[str, str]:
        """The name and identity of who has come back. Raises OidcFault."""
        if not code:
            raise OidcFault("the provider did not agree")
        found = await self._ask("GET", self._well_known())
        tokens = await self._ask(
            "POST",
            found["token_endpoint"],
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": self._settings.redirect_url,
                "client_id": self._settings.client_id,
                "client_secret": self._settings.client_secret,
                "code_verifier": kept["verifier"],
            },
        )
        keys = await self._ask("GET", found["jwks_uri"])
        claims = self._believed(str(tokens.get("id_token", "")), keys, kept["nonce"])
        name = str(claims.get(self._settings.claim, ""))
        if self._settings.claim == "email" and claims.get("email_verified") is False:
            raise OidcFault("the address is not verified")
        identity = self._settings.identities.get(name)
        if identity is None:
            raise OidcFault(f"{name or 'who has no ' + self._settings.claim} may not enter here")
        return name, identity

    def _believed(self, token: str, keys: Mapping[str, Any], nonce: str) -> Mapping[str, Any]:
        rules = jwt.JWTClaimsRegistry(
            leeway=30,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": self._settings.client_id},
            exp={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            decoded = jwt.decode(
                token, KeySet.import_key_set(dict(keys)), algorithms=_ALGORITHMS  # type: ignore[arg-type]
            )  # fmt: skip
            rules.validate(decoded.claims)
        except (JoseError, ValueError, KeyError) as error:
            raise OidcFault(f"the token is not to be believed: {type(error).__name__}") from None
        return decoded.claims

    def _well_known(self) -> str:
        return f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration"

    async def _ask(
        self, method: str, url: str, form: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT) as client,
                client.request(method, url, data=form, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise OidcFault(f"the provider answers {answer.status}")
                return _object(await _body(answer))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OidcFault(f"the provider does not answer: {type(error).__name__}") from None


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """All of it: `content.read(n)` would end where a packet does. Raises OidcFault."""
    found = b""
    async for chunk in answer.content.iter_any():
        found += chunk
        if len(found) > _ANSWER_MAX:
            raise OidcFault("the provider answers more than it should")
    return found


def _object(body: bytes) -> dict[str, Any]:
    import json

    try:
        found = json.loads(body)
    except ValueError:
        raise OidcFault("the provider answers no JSON") from None
    if not isinstance(found, dict):
        raise OidcFault("the provider answers no object")
    return found
