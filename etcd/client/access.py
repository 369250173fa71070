"""Tokens and TLS of a client that an etcd is to let in."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError
from etcd.core.errors import (
    AUTH_NOT_ENABLED,
    AUTH_OLD_REVISION,
    INVALID_AUTH_TOKEN,
    USER_EMPTY,
    EtcdError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from etcd.core.access import EtcdAccess
    from etcd.core.http2.hpack import Header

# Texts with which a server tells that it wants a newer token.
_STALE: Final = (INVALID_AUTH_TOKEN[1], AUTH_OLD_REVISION[1], USER_EMPTY[1])


def client_tls(access: EtcdAccess) -> ssl.SSLContext | None:
    """Return a TLS context, None when no file is named; UsageError for unusable files."""
    if not access.cacert and not access.cert:
        return None
    try:
        context = ssl.create_default_context(cafile=access.cacert or None)
        if access.cert:
            context.load_cert_chain(access.cert, access.key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, (access.cacert, access.cert, access.key)))
        raise UsageError(f"TLS files {files} for etcd: {error}") from None
    return context


def is_stale(text: str) -> bool:
    """Whether an error's text asks for a newer token."""
    return any(text.endswith(stale) for stale in _STALE)


class TokenHolder:
    """The token of one user: fetched when first needed, and again when it is known no more."""

    def __init__(self, access: EtcdAccess) -> None:
        self.active = bool(access.user)
        self._lock = asyncio.Lock()
        # None: to be fetched; empty: the server has no auth.
        self._token: str | None = None

    async def metadata(self, authenticate: Callable[[], Awaitable[str]]) -> tuple[Header, ...]:
        """Return the headers of a call; ``authenticate`` runs once for all who wait for it."""
        if not self.active:
            return ()
        token = self._token
        if token is None:
            async with self._lock:
                token = self._token
                if token is None:
                    token = self._token = await self._fetch(authenticate)
        return ((b"token", token.encode()),) if token else ()

    @staticmethod
    async def _fetch(authenticate: Callable[[], Awaitable[str]]) -> str:
        try:
            return await authenticate()
        except EtcdError as error:
            if (error.code, error.message) != AUTH_NOT_ENABLED:
                raise
            return ""

    def reject(self, used: tuple[Header, ...]) -> bool:
        """Forget the token a call used, unless that is done already; False: there is no user."""
        if self._token is not None and used == (
            ((b"token", self._token.encode()),) if self._token else ()
        ):
            self._token = None
        return self.active
