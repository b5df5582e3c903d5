"""A token server as distribution's `docs/spec/auth` describes it, whose tokens docker-registry verifies."""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from certificates import Certificate

ISSUER, SERVICE = "nixsnap tests", "the registry"


class TokenServer:
    """Gives tokens, signed with a certificate's key.

    Args:
        certificate: Which the registry has among its root certificates.
        passwords: By user; the user of no name is everyone else.
        rights: By user and repository, the actions that are granted: `{"pusher": {"team/app": "pull,push"}}`.
        identity_tokens: Users by the token that stands for their password.
        lifetime_seconds: Of a token.

    Attributes:
        port: Where it listens.
        asked: `METHOD user scope` for each request that was granted something or nothing, in order.
    """

    def __init__(
        self,
        certificate: Certificate,
        *,
        passwords: Mapping[str, str],
        rights: Mapping[str, Mapping[str, str]],
        identity_tokens: Mapping[str, str] | None = None,
        lifetime_seconds: int = 60,
    ) -> None:
        self.asked: list[str] = []
        self._certificate = certificate
        self._passwords = passwords
        self._rights = rights
        self._identity_tokens = identity_tokens or {}
        self._lifetime_seconds = lifetime_seconds
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(daemon=True, target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def registry_settings(self) -> dict[str, Any]:
        """The `auth` section of a docker-registry that believes it."""
        return {
            "token": {
                "realm": f"http://localhost:{self.port}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self._certificate.certificate),
            }
        }

    def user_of(self, authorization: str) -> str | None:
        """Who a header says to be; None where the password is wrong."""
        if not authorization:
            return ""
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        return user if self._passwords.get(user) == password else None

    def user_of_form(self, form: Mapping[str, str]) -> str | None:
        """Who a form says to be."""
        if form.get("grant_type") == "refresh_token":
            return self._identity_tokens.get(form["refresh_token"])
        user = form.get("username", "")
        return user if self._passwords.get(user) == form.get("password") else None

    def grant(self, method: str, user: str, scopes: list[str]) -> str:
        """Make a token for as much of the scopes as the user has rights for."""
        self.asked.append(f"{method} {user} {' '.join(sorted(scopes))}")
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = set(self._rights.get(user, {}).get(name, "").split(","))
            access.append({"type": kind, "name": name, "actions": sorted(allowed & set(actions.split(",")))})
        return self._sign(user, access)

    def _sign(self, user: str, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        der = ssl.PEM_cert_to_DER_cert(self._certificate.certificate.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "exp": now + self._lifetime_seconds,
            "nbf": now - 10,
            "iat": now,
            "jti": str(len(self.asked)),
            "access": access,
        }
        signed = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", self._certificate.key]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
        return f"{signed}.{_encode(signature)}"


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _handler_for(tokens: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            scopes = [value for name, value in parse_qsl(urlsplit(self.path).query) if name == "scope"]
            self._answer("token", tokens.user_of(self.headers.get("Authorization", "")), scopes)

        def do_POST(self) -> None:
            form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self._answer("access_token", tokens.user_of_form(form), re.split(" +", form["scope"]))

        def _answer(self, name: str, user: str | None, scopes: list[str]) -> None:
            if user is None:
                self._send(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]})
                return
            token = tokens.grant(self.command, user, scopes)
            self._send(200, {name: token, "expires_in": tokens._lifetime_seconds})

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler
