"""An OpenID Connect provider as a process of its own, which can be told to lie.

    python -m tests.integration.provider

Prints its address. `GET /lie?about=…` chooses what its next tokens are wrong about; who comes to
its authorisation page is sent back at once.

"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import secrets
import time
from typing import Any

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

_KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
_OTHER = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})


class Provider:
    def __init__(self) -> None:
        self.base = ""
        self.lie = ""
        self._codes: dict[str, dict[str, str]] = {}

    async def told(self, request: web.Request) -> web.Response:
        self.lie = request.query.get("about", "")
        return web.Response()

    async def well_known(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": "http://127.0.0.1:1/other" if self.lie == "issuer" else self.base,
                "authorization_endpoint": f"{self.base}/authorize",
                "token_endpoint": f"{self.base}/token",
                "jwks_uri": f"{self.base}/keys",
            }
        )

    async def keys(self, _request: web.Request) -> web.Response:
        return web.json_response({"keys": [_KEY.as_dict(private=False)]})

    async def authorize(self, request: web.Request) -> web.Response:
        code = secrets.token_urlsafe(16)
        self._codes[code] = dict(request.query)
        back = f"{request.query['redirect_uri']}?code={code}&state={request.query['state']}"
        raise web.HTTPFound(back)

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self._codes.pop(str(form["code"]), None)
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge:
            return web.json_response({"error": "invalid_grant"}, status=400)
        claims: dict[str, Any] = {
            "iss": self.base,
            "aud": "somebody-else" if self.lie == "audience" else "cellpay",
            "exp": int(time.time()) + (-3600 if self.lie == "expiry" else 300),
            "nonce": "another" if self.lie == "nonce" else asked["nonce"],
            "email": "eve@example.com" if self.lie == "person" else "ann@example.com",
            "email_verified": self.lie != "verified",
        }
        header = {"alg": "RS256", "kid": "one"}
        token = jwt.encode(header, claims, _OTHER if self.lie == "key" else _KEY)
        if self.lie == "none":
            body = token.split(".")[1]
            head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
            token = f"{head}.{body}."
        return web.json_response({"id_token": token, "access_token": "a", "token_type": "Bearer"})


async def main() -> None:
    provider = Provider()
    application = web.Application()
    application.router.add_get("/lie", provider.told)
    application.router.add_get("/.well-known/openid-configuration", provider.well_known)
    application.router.add_get("/keys", provider.keys)
    application.router.add_get("/authorize", provider.authorize)
    application.router.add_post("/token", provider.token)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address: Any = runner.addresses[0]
    provider.base = f"http://127.0.0.1:{address[1]}"
    print(provider.base, flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(main())
