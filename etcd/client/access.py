"""What a client shows an etcd and whom it believes: etcdctl's --user, --cacert, --cert, --key."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
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

    from etcd.core.http2.hpack import Header

# Texts with which a server tells that it wants a newer token.
_STALE: Final = (INVALID_AUTH_TOKEN[1], AUTH_OLD_REVISION[1], USER_EMPTY[1])


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """How to be let in; empty fields say nothing.

    ``user`` and ``password`` name an etcd user; the files are PEM: ``cacert`` the authority of the
    server's certificate (empty: the system's), ``cert`` and ``key`` the client's own certificate.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    cacert: str = ""
    cert: str = ""
    key: str = ""

    @classmethod
    def parse(
        cls, user: str = "", password: str = "", cacert: str = "", cert: str = "", key: str = ""
    ) -> EtcdAccess:
        """Take the flags as etcdctl does: ``user`` may be ``NAME:PASSWORD``.

        Raises UsageError for flags that contradict each other.
        """
        name, colon, inline = user.partition(":")
        if colon and password:
            raise UsageError("--user: holds a password although --password is given, too")
        if bool(cert) != bool(key):
            raise UsageError("--cert and --key: give both or none")
        if (colon or password) and not name:
            raise UsageError("--user: the user's name is empty")
        if name and not colon and not password:
            raise UsageError(f"--user: no password for {name!r}; write NAME:PASSWORD")
        return cls(name, inline if colon else password, cacert, cert, key)

    def tls(self) -> ssl.SSLContext | None:
        """Return a TLS context, None when no file is named; UsageError for unusable files."""
        if not self.cacert and not self.cert:
            return None
        try:
            context = ssl.create_default_context(cafile=self.cacert or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.cacert, self.cert, self.key)))
            raise UsageError(f"TLS files {files} for etcd: {error}") from None
        return context


# Nobody, over plain text or with the system's authorities.
NO_ACCESS: Final = EtcdAccess()


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
