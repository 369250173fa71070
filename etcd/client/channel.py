"""The client's way to some server: endpoints, dialing, failover, retries, authentication."""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from emulator.errors import UsageError
from etcd.client.access import TokenHolder, client_tls, is_stale
from etcd.client.transport import (
    ONE_ENDPOINT,
    SEVERAL_ENDPOINTS,
    ClientConnection,
    ClientStream,
    NotSentError,
)
from etcd.core.errors import Code, EtcdError
from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from etcd.core.access import EtcdAccess
    from etcd.core.http2.hpack import Header

R = TypeVar("R", bound=Message)

# One endpoint's dial; a dead host would otherwise hold a call for the kernel's two minutes, and a
# process that is stopped accepts for ever.
DIAL_TIMEOUT_S = 5.0
# The same when others may answer sooner.
DIAL_TIMEOUT_OF_SEVERAL_S = 2.0
# What a member says that is cut off from its cluster (rpctypes/error.go): another may not be.
_LEADERLESS = ("etcdserver: no leader", "etcdserver: request timed out")
# Pauses between rounds of all endpoints (gRPC's backoff starts at 1 s; one machine is quicker).
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 3.0
# Tokens fetched for one call; more than one only when users are being changed at that moment.
MAX_RENEWALS = 3


class Backoff:
    """Growing pauses with jitter (20 % either way) from a given generator."""

    def __init__(self, rng: random.Random | None) -> None:
        self._rng = rng
        self._next_s = BACKOFF_MIN_S

    def reset(self) -> None:
        """Start small again."""
        self._next_s = BACKOFF_MIN_S

    async def sleep(self) -> None:
        """Pause, longer each time."""
        pause = self._next_s
        self._next_s = min(pause * 2, BACKOFF_MAX_S)
        if self._rng is not None:
            pause *= 0.8 + 0.4 * self._rng.random()
        await asyncio.sleep(pause)


def _look_at(task: asyncio.Task[ClientConnection]) -> None:
    """Count a failed dial as seen: those who waited for it may all have given up."""
    if not task.cancelled():
        task.exception()


def _split(endpoint: str) -> tuple[str, int, bool]:
    """Return (host, port, https) of ``host:port`` or an http(s) URL."""
    scheme, _, rest = endpoint.rpartition("://")
    host, _, port = rest.rstrip("/").rpartition(":")
    if scheme not in ("", "http", "https") or not host or not port.isdigit():
        raise UsageError(f"etcd endpoint {endpoint!r}: write host:port or http(s)://host:port")
    return host.strip("[]"), int(port), scheme == "https"


class Channel:
    """One connection at a time, to whichever endpoint answers."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        access: EtcdAccess,
        ssl: ssl_module.SSLContext | None,
        rng: random.Random | None,
        timeout_s: float,
    ) -> None:
        if not endpoints:
            raise UsageError("etcd: no endpoint given")
        self._endpoints = [_split(endpoint) for endpoint in endpoints]
        self._ssl = client_tls(access) if ssl is None else ssl
        self.rng = rng
        self._timeout_s = timeout_s
        self._access = access
        self._tokens = TokenHolder(access)
        self._at = 0
        self._connection: ClientConnection | None = None
        # Connections left for a better one, until their last call is over.
        self._left: list[ClientConnection] = []
        self._dialing: asyncio.Task[ClientConnection] | None = None
        self._closed = False

    async def close(self) -> None:
        """Close the connection; calls in progress fail."""
        self._closed = True
        if self._dialing is not None:
            self._dialing.cancel()
            await asyncio.gather(self._dialing, return_exceptions=True)
        for connection in self._left:
            connection.close()
        if self._connection is not None:
            self._connection.close()

    # Connections ---------------------------------------------------------------------------

    async def _connect(self) -> ClientConnection:
        """Return the open connection, dialing once for all who wait for it."""
        if self._closed:
            raise NotSentError(Code.CANCELLED, "the etcd client is closed")
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._dialing is None or self._dialing.done():
            self._dialing = asyncio.create_task(self._dial(), name="etcd.client.dial")
            self._dialing.add_done_callback(_look_at)
        return await asyncio.shield(self._dialing)

    async def _dial(self) -> ClientConnection:
        """Try each endpoint once, beginning with the one after the last that failed."""
        self._left = [connection for connection in self._left if not connection.gone]
        if self._connection is not None:
            self._left.append(self._connection)
            self._connection = None
            self._at += 1
        problems = []
        for _ in self._endpoints:
            host, port, https = self._endpoints[self._at % len(self._endpoints)]
            name = f"{host}:{port}"
            try:
                self._connection = await self._dial_one(host, port, self._tls(https))
                return self._connection
            except TimeoutError:
                problems.append(f"{name}: no answer within {self._dial_timeout_s:g} s")
            except OSError as error:
                problems.append(f"{name}: {error.__class__.__name__} {error}".strip())
            self._at += 1
        raise NotSentError(Code.UNAVAILABLE, "no etcd endpoint answers: " + "; ".join(problems))

    @property
    def _dial_timeout_s(self) -> float:
        return DIAL_TIMEOUT_OF_SEVERAL_S if len(self._endpoints) > 1 else DIAL_TIMEOUT_S

    async def _dial_one(
        self, host: str, port: int, tls: ssl_module.SSLContext | None
    ) -> ClientConnection:
        """Return a connection whose server has introduced itself; OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        patience = SEVERAL_ENDPOINTS if len(self._endpoints) > 1 else ONE_ENDPOINT
        connection = ClientConnection(f"{host}:{port}", loop, patience)
        try:
            async with asyncio.timeout(self._dial_timeout_s):
                await loop.create_connection(lambda: connection, host, port, ssl=tls)
                if not await connection.introduced:
                    raise ConnectionResetError("it closed the connection without a word of HTTP/2")
        except BaseException:
            connection.abort()
            raise
        return connection

    def suspect(self, connection: ClientConnection, error: EtcdError) -> None:
        """Go elsewhere with later calls if ``error`` tells that a member lost its cluster."""
        if error.message.startswith(_LEADERLESS):
            self.leave(connection)

    def leave(self, connection: ClientConnection) -> None:
        """Go elsewhere with later calls, if there is an elsewhere; calls in progress go on."""
        if len(self._endpoints) > 1:
            connection.drain()

    def _tls(self, https: bool) -> ssl_module.SSLContext | None:
        if not https and self._ssl is None:
            return None
        if self._ssl is None:
            self._ssl = ssl_module.create_default_context()
        self._ssl.set_alpn_protocols(["h2"])
        return self._ssl

    # Calls ---------------------------------------------------------------------------------

    async def _metadata(self) -> tuple[Header, ...]:
        return await self._tokens.metadata(self._authenticate)

    async def _authenticate(self) -> str:
        request = pb.AuthenticateRequest(name=self._access.user, password=self._access.password)
        connection = await self._connect()
        data = await _exchange(connection, "/etcdserverpb.Auth/Authenticate", (), request)
        return pb.AuthenticateResponse.FromString(data).token

    def renews(self, used: tuple[Header, ...], text: str) -> bool:
        """Whether an error's text is about the token a call used and a new one will be fetched."""
        return is_stale(text) and self._tokens.reject(used)

    async def call(self, path: str, request: Message, response: type[R], *, read: bool) -> R:
        """Make a unary call.

        What never reached a server is tried again; ``read`` calls are tried again after any
        UNAVAILABLE, all after the token ran out.  Raises EtcdError, DEADLINE_EXCEEDED when the time
        of the client is over.
        """
        backoff = Backoff(self.rng)
        metadata: tuple[Header, ...] = ()
        renewals = 0
        last: EtcdError | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    connection = None
                    try:
                        metadata = await self._metadata()
                        connection = await self._connect()
                        data = await _exchange(connection, path, metadata, request)
                        return response.FromString(data)
                    except EtcdError as error:
                        last = error
                        if renewals < MAX_RENEWALS and self.renews(metadata, error.message):
                            renewals += 1
                            continue
                        if connection is not None:
                            self.suspect(connection, error)
                        if not self._retry(error, read):
                            raise
                    await backoff.sleep()
        except TimeoutError:
            cause = f" ({last.message})" if last is not None else ""
            raise EtcdError(
                Code.DEADLINE_EXCEEDED, f"etcd: no answer within {self._timeout_s:g} s{cause}"
            ) from last

    def _retry(self, error: EtcdError, read: bool) -> bool:
        if self._closed:
            return False
        return error.code == Code.UNAVAILABLE and (read or isinstance(error, NotSentError))

    async def open(self, path: str, *, leader: bool = False) -> ClientStream:
        """Begin a streaming call; EtcdError if no server can be reached now.

        ``leader``: the server ends the call when its cluster has no leader (hasleader).
        """
        metadata = token = await self._metadata()
        if leader:
            metadata = (*metadata, (b"hasleader", b"true"))
        connection = await self._connect()
        stream = await connection.open(path, metadata)
        stream.token = token
        return stream


async def _exchange(
    connection: ClientConnection, path: str, metadata: tuple[Header, ...], request: Message
) -> bytes:
    stream = await connection.open(path, metadata)
    try:
        stream.send(request.SerializeToString(), last=True)
        data = await stream.receive()
        if data is None:
            raise EtcdError(Code.INTERNAL, f"{path}: OK without a response")
        await stream.receive()
        return data
    finally:
        stream.cancel()
