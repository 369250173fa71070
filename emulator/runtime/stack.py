"""asyncio over one namespace's emulated stack: what a pod's program uses as its network."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.sock.ping import ECHO_REPLY
from emulator.netstack.sock.tcp import Endpoint
from emulator.netstack.sock.tcp_state import State
from emulator.runtime.stack_transport import (
    StackDatagramTransport,
    StackTransport,
    address_of,
    endpoint_of,
    error_of,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from emulator.netstack.sock.ping import EchoAnswer, PingSocket
    from emulator.netstack.sock.table import SocketTable, TcpListener

    Resolver = Callable[[str], Awaitable[Sequence[str]]]

P = TypeVar("P", bound=asyncio.BaseProtocol)
D = TypeVar("D", bound=asyncio.DatagramProtocol)

DEFAULT_STREAM_LIMIT: Final = 64 * 1024  # asyncio's own default for StreamReader
PING_PAYLOAD: Final = bytes(range(8, 64))  # 56 bytes, as ping(8) fills them


class StackNamespace(Protocol):
    """What a StackNetwork needs of a network namespace."""

    @property
    def sockets(self) -> SocketTable: ...


class PingResult(NamedTuple):
    """An echo's answer and the time it took in seconds."""

    answer: EchoAnswer
    rtt_s: float

    @property
    def ok(self) -> bool:
        """True for an echo reply, False for an ICMP error."""
        return self.answer.icmp_type == ECHO_REPLY


class StackServer(asyncio.AbstractServer):
    """A listening socket that makes a transport and a protocol of each connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: TcpListener,
        factory: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        self._loop = loop
        self._listener: TcpListener | None = listener
        self._factory = factory
        self._scheduled = False
        self._transports: dict[StackTransport, None] = {}
        self._closed = loop.create_future()
        self.address = address_of(listener.local)
        # Stock servers give their sockets here; there are none, see ``address``.
        self.sockets: tuple[socket.socket, ...] = ()
        listener.notify = self._wake

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._accept)

    def _accept(self) -> None:
        self._scheduled = False
        # At most a backlog's worth a turn, as the stock server does.
        for _ in range(self._listener.backlog if self._listener is not None else 0):
            connection = self._listener.accept() if self._listener is not None else None
            if connection is None:
                return
            transport = StackTransport(self._loop, connection, self._factory(), self)
            self._transports[transport] = None
            transport.start()
        if self._listener is not None and self._listener.accept_queue:
            self._wake()

    def _detach(self, transport: StackTransport) -> None:
        self._transports.pop(transport, None)
        self._check_closed()

    def _check_closed(self) -> None:
        if self._listener is None and not self._transports and not self._closed.done():
            self._closed.set_result(None)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._listener is not None

    def close(self) -> None:
        """Stop listening; connections already accepted go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._check_closed()

    async def start_serving(self) -> None:
        """A server listens from its creation on: nothing is left to do."""

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close."""
        try:
            await self._loop.create_future()
        finally:
            self.close()

    async def wait_closed(self) -> None:
        """Wait until the server and every connection it accepted are closed."""
        await asyncio.shield(self._closed)


class StackPing:
    """An ICMP echo socket to await answers on; several requests may be under way."""

    def __init__(self, sock: PingSocket) -> None:
        self._socket = sock
        self._arrived = asyncio.Event()
        sock.notify = self._arrived.set

    def __enter__(self) -> StackPing:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def ident(self) -> int:
        """The ICMP identifier of its requests."""
        return self._socket.ident

    def send(
        self,
        dst: str,
        seq: int,
        data: bytes = PING_PAYLOAD,
        *,
        ttl: int = 64,
        dont_fragment: bool = True,
    ) -> None:
        """Send an echo request to a literal address; raises OSError as sendto(2) would."""
        self._socket.send(parse_ip(dst), seq, data, ttl=ttl, dont_fragment=dont_fragment)

    async def receive(self) -> EchoAnswer:
        """Wait for the next reply or ICMP error."""
        while (answer := self._socket.receive()) is None:
            self._arrived.clear()
            await self._arrived.wait()
        return answer

    def close(self) -> None:
        """Let the identifier go."""
        self._socket.close()


class StackNetwork:
    """The sockets of one namespace as asyncio offers those of the host.

    ``hosts`` is its /etc/hosts (name → addresses); ``resolver`` is asked for other names and gives
    their addresses, or raises OSError.
    """

    def __init__(
        self,
        ns: StackNamespace,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        hosts: Mapping[str, Sequence[str]] | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._table = ns.sockets
        self._loop = loop or asyncio.get_running_loop()
        self.hosts = {"localhost": ["127.0.0.1"], **(hosts or {})}
        self.resolver = resolver

    @property
    def sockets(self) -> SocketTable:
        """The pure socket table below, for what asyncio has no form for."""
        return self._table

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    async def getaddrinfo(self, host: str) -> list[str]:
        """Return the addresses of a name or literal; socket.gaierror if it has none."""
        with contextlib.suppress(UsageError):
            return [format_ip(parse_ip(host))]
        known = self.hosts.get(host)
        if known:
            return list(known)
        if self.resolver is not None:
            found = await self.resolver(host)
            if found:
                return list(found)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def _endpoint(self, host: str, port: int) -> Endpoint:
        return endpoint_of(((await self.getaddrinfo(host))[0], port))

    # -- TCP -----------------------------------------------------------------------------------

    async def create_connection(
        self,
        factory: Callable[[], P],
        host: str,
        port: int,
        *,
        local_addr: tuple[str, int] | None = None,
        ssl: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> tuple[asyncio.Transport, P]:
        """Connect and return ``(transport, protocol)``, over TLS if ``ssl`` is a context.

        Tries each address of the name in turn.  Raises the OSError of Linux: refused, timed out,
        no route to host, network unreachable; socket.gaierror for an unknown name.
        """
        local = Endpoint(0, 0)
        if local_addr is not None:
            local = await self._endpoint(local_addr[0] or "0.0.0.0", local_addr[1])
        failure: OSError | None = None
        for address in await self.getaddrinfo(host):
            try:
                transport, protocol = await self._connect(
                    factory if ssl is None else asyncio.Protocol,
                    endpoint_of((address, port)),
                    local,
                )
                break
            except OSError as error:
                failure = error
        else:
            assert failure is not None
            raise failure
        if ssl is None:
            return transport, protocol  # type: ignore[return-value]
        return await self._secure(transport, factory(), ssl, server_hostname or host)

    async def _secure(
        self, transport: StackTransport, protocol: P, context: ssl.SSLContext, name: str
    ) -> tuple[asyncio.Transport, P]:
        try:
            secure = await self._loop.start_tls(transport, protocol, context, server_hostname=name)
        except BaseException:
            transport.abort()
            raise
        assert secure is not None
        protocol.connection_made(secure)
        return secure, protocol

    async def _connect(
        self, factory: Callable[[], asyncio.BaseProtocol], remote: Endpoint, local: Endpoint
    ) -> tuple[StackTransport, asyncio.BaseProtocol]:
        connection = self._table.tcp_connect(remote, local)
        changed = self._loop.create_future()

        def notify() -> None:
            if not changed.done():
                changed.set_result(None)

        connection.notify = notify
        try:
            await changed
        except asyncio.CancelledError:
            connection.abort()
            raise
        if connection.state is State.CLOSED:
            number = connection.error or errno.ECONNABORTED
            raise error_of(number, f"Connect call failed {address_of(remote)}")
        protocol = factory()
        transport = StackTransport(self._loop, connection, protocol)
        transport.start()
        await asyncio.sleep(0)  # connection_made runs before we return, as in asyncio
        return transport, protocol

    async def create_server(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str | None,
        port: int,
        *,
        backlog: int = 100,
    ) -> StackServer:
        """Listen at ``host`` (None or "" is any) and ``port`` (0 is a free one).

        Raises OSError EADDRINUSE or EADDRNOTAVAIL with asyncio's text.
        """
        local = await self._endpoint(host or "0.0.0.0", port)
        try:
            listener = self._table.tcp_listen(local.ip, local.port, backlog)
        except OSError as error:
            text = f"error while attempting to bind on address {address_of(local)}: "
            raise OSError(error.errno, text + str(error.strerror).lower()) from None
        return StackServer(self._loop, listener, factory)

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        limit: int = DEFAULT_STREAM_LIMIT,
        local_addr: tuple[str, int] | None = None,
        ssl: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As asyncio.open_connection."""
        reader = asyncio.StreamReader(limit=limit, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self.create_connection(
            lambda: protocol,
            *(host, port),
            local_addr=local_addr,
            ssl=ssl,
            server_hostname=server_hostname,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)

    async def start_server(
        self,
        client_connected: Callable[
            [asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None
        ],
        host: str | None,
        port: int,
        *,
        limit: int = DEFAULT_STREAM_LIMIT,
        backlog: int = 100,
    ) -> StackServer:
        """As asyncio.start_server."""

        def factory() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=limit, loop=self._loop)
            return asyncio.StreamReaderProtocol(reader, client_connected, loop=self._loop)

        return await self.create_server(factory, host, port, backlog=backlog)

    # -- UDP -----------------------------------------------------------------------------------

    async def create_datagram_endpoint(
        self,
        factory: Callable[[], D],
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
        *,
        reuse_address: bool = False,
    ) -> tuple[StackDatagramTransport, D]:
        """As loop.create_datagram_endpoint."""
        local, remote = Endpoint(0, 0), None
        if local_addr is not None:
            local = await self._endpoint(local_addr[0] or "0.0.0.0", local_addr[1])
        if remote_addr is not None:
            remote = await self._endpoint(*remote_addr)
        sock = self._table.udp_bind(*local, remote, reuse_address=reuse_address)
        protocol = factory()
        transport = StackDatagramTransport(self._loop, sock, protocol)
        await asyncio.sleep(0)
        return transport, protocol

    # -- ICMP ----------------------------------------------------------------------------------

    def open_ping(self, source: str = "") -> StackPing:
        """Open an ICMP echo socket; a context manager."""
        return StackPing(self._table.ping_open(parse_ip(source) if source else 0))

    async def ping(
        self,
        dst: str,
        *,
        seq: int = 1,
        data: bytes = PING_PAYLOAD,
        ttl: int = 64,
        timeout: float = 1.0,
        dont_fragment: bool = True,
        source: str = "",
    ) -> PingResult | None:
        """Send one echo request and return its answer, None if there was none in ``timeout`` s.

        Raises OSError where sendto(2) would (no route, prohibited) and socket.gaierror.
        """
        address = (await self.getaddrinfo(dst))[0]
        with self.open_ping(source) as sock:
            began = self._loop.time()
            sock.send(address, seq, data, ttl=ttl, dont_fragment=dont_fragment)
            try:
                async with asyncio.timeout(timeout):
                    answer = await sock.receive()
            except TimeoutError:
                return None
            return PingResult(answer, self._loop.time() - began)
