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
from emulator.apimachinery.status import StatusError, forbidden, unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from agents.apiserver.tokens import ServiceAccountTokens

# What system:public-info-viewer may see.
OPEN_PATHS: Final = ("/healthz", "/livez", "/readyz", "/version", "/version/")
_VERBS: Final = {"POST": "create", "PUT": "update", "HEAD": "get"}
_OF_COLLECTIONS: Final = {"get": "list", "delete": "deletecollection"}
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
        """The user; StatusError 401 for credentials that are wrong, 403 for none at all.

        Who shows nothing is ``system:anonymous``, who may see the open paths only.
        """
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
        if request.path in OPEN_PATHS:
            return ANONYMOUS
        raise _denied(request, ANONYMOUS)

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


def _denied(request: web.BaseRequest, user: UserInfo) -> StatusError:
    """403 in the words of the real server's authorization (responsewriters/errors.go)."""
    verb = _VERBS.get(request.method, request.method.lower())
    parts = [part for part in request.path.split("/") if part]
    fixed = {"api": 2, "apis": 3}.get(parts[0] if parts else "", 0)
    group, rest = (parts[1] if fixed == 3 and len(parts) > 1 else ""), parts[fixed:]
    if not fixed or not rest:
        text = f'forbidden: User "{user.name}" cannot {verb} path "{request.path}"'
        return StatusError(403, "Forbidden", text, {})
    where = "at the cluster scope"
    if rest[0] == "namespaces" and len(rest) > 1:
        where = f'in the namespace "{rest[1]}"'
        if len(rest) > 2 and rest[2] not in ("status", "finalize"):
            rest = rest[2:]
    plural, name, subresource = (*rest, "", "")[:3]
    if not name:
        verb = _OF_COLLECTIONS.get(verb, verb)
        if verb == "list" and request.query.get("watch") in ("true", "1"):
            verb = "watch"
    resource = f"{plural}/{subresource}" if subresource else plural
    text = f'User "{user.name}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
    return forbidden(plural, group, name, text)


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
