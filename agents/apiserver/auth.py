"""Who is asking: a bearer token, a service account's token or a client certificate.

Every authenticated user may do everything (a cluster of this emulator has one tenant); anonymous
requests reach health and version endpoints only.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING, Final

from agents.apiserver.config import UserInfo
from emulator.apimachinery.status import unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from agents.apiserver.tokens import ServiceAccountTokens

OPEN_PATHS: Final = ("/healthz", "/livez", "/readyz", "/version")
ANONYMOUS: Final = UserInfo("system:anonymous", ("system:unauthenticated",))
_AUTHENTICATED: Final = "system:authenticated"
_WS_TOKEN: Final = "base64url.bearer.authorization.k8s.io."


class Authenticator:
    """Tells the user of a request."""

    def __init__(
        self, tokens: Mapping[str, UserInfo], accounts: ServiceAccountTokens | None = None
    ) -> None:
        self._accounts = accounts
        self._tokens = {
            token.encode(): UserInfo(user.name, (*user.groups, _AUTHENTICATED))
            for token, user in tokens.items()
        }

    def user(self, request: web.BaseRequest) -> UserInfo:
        """The user; StatusError 401 unless the path is open to everybody."""
        token = self._token(request)
        if token is not None:
            for known, user in self._tokens.items():
                if hmac.compare_digest(known, token):
                    return user
            account = None if self._accounts is None else self._accounts.user(token)
            if account is None:
                raise unauthorized()
            return UserInfo(account.name, (*account.groups, _AUTHENTICATED))
        user_of_certificate = _certificate_user(request)
        if user_of_certificate is not None:
            return user_of_certificate
        if request.path.startswith(OPEN_PATHS):
            return ANONYMOUS
        raise unauthorized()

    @staticmethod
    def _token(request: web.BaseRequest) -> bytes | None:
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and value.strip():
            return value.strip().encode()
        for protocol in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
            name = protocol.strip()
            if name.startswith(_WS_TOKEN):
                text = name.removeprefix(_WS_TOKEN)
                try:
                    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
                except binascii.Error:
                    return b""
        return None


def _certificate_user(request: web.BaseRequest) -> UserInfo | None:
    if request.transport is None:
        return None
    certificate = request.transport.get_extra_info("peercert")
    if not certificate:
        return None
    name = ""
    groups: list[str] = []
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                name = value
            elif key == "organizationName":
                groups.append(value)
    return UserInfo(name, (*groups, _AUTHENTICATED)) if name else None
