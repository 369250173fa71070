"""The etcd process: listener, port sniffing, lifetime."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

from etcd.core.http2.frames import PREFACE
from etcd.server.grpc_server import GrpcServerConnection
from etcd.server.keepalive import keep_alive
from etcd.server.listeners import Listeners
from etcd.server.member import Member, load_own_certificate, server_tls
from etcd.server.services import Services

if TYPE_CHECKING:
    from emulator.runtime.role import RoleEnv
    from etcd.server.config import EtcdConfig

# A connection that says nothing in this time is no client; gRPC and HTTP clients speak first.
FIRST_BYTES_TIMEOUT_S = 10.0
# What --listen-metrics-urls answers.
METRICS_PATHS = ("/metrics", "/health")
# File descriptors kept for files and listeners (etcd: reservedInternalFDNum); what the process may
# have beyond them is for connections.
RESERVED_FDS = 150


class _Sniffer(asyncio.Protocol):
    """Looks at a connection's first bytes and hands it to HTTP/2 or HTTP/1.1."""

    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._seen = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._server.crowded():
            transport.abort()
            return
        self._server.connections[self] = None
        self._timer = self._server.loop.call_later(FIRST_BYTES_TIMEOUT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._seen[: len(PREFACE)] == PREFACE[: len(self._seen)]:
            # "PRI" already tells it from every HTTP/1.1 method.
            if len(self._seen) >= 3:
                self._hand_over(self._server.grpc_protocol())
        else:
            self._hand_over(self._server.http1_protocol())

    def _hand_over(self, protocol: asyncio.Protocol) -> None:
        assert self._transport is not None
        self._leave()
        if isinstance(protocol, GrpcServerConnection):
            self._server.connections[protocol] = None
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._seen)

    def _leave(self) -> None:
        self._server.connections.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def shut_down(self) -> None:
        self.abort()

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()


class _Grpc(GrpcServerConnection):
    """A gRPC connection its server keeps count of."""

    def __init__(self, server: EtcdServer) -> None:
        super().__init__(server.member, server.services)
        self._server = server

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)
        super().connection_lost(exc)


class EtcdServer:
    """A running etcd; ``async with EtcdServer(config, env) as server`` serves until the end.

    ``await server.failed()`` returns never, but raises when the disk fails.
    """

    def __init__(self, config: EtcdConfig, env: RoleEnv) -> None:
        self.config = config
        self.env = env
        self.connections: dict[_Sniffer | GrpcServerConnection, None] = {}
        self.loop: asyncio.AbstractEventLoop
        self.member: Member
        self.services: Services
        self.listeners: Listeners
        self._http1: Http1Front | None = None
        self._metrics: Http1Front | None = None
        self._runner: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_connections = max(files - RESERVED_FDS, files // 2)
        self._said_crowded = False
        self.port = 0

    def crowded(self) -> bool:
        """Whether as many connections are open as file descriptors allow."""
        count = len(self.connections) + (self._http1.connections if self._http1 is not None else 0)
        if count < self.max_connections:
            self._said_crowded = False
            return False
        if not self._said_crowded:
            self._said_crowded = True
            self.env.log.error(
                "%d connections, new ones are refused; raise the limit of open files (ulimit -n)",
                count,
            )
        return True

    @property
    def endpoint(self) -> str:
        """The address clients dial, ``host:port``."""
        host = self.config.listen_host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Recover and listen; UsageError for a bad directory or a taken port."""
        config = self.config
        self.loop = asyncio.get_running_loop()
        # Addresses first: a taken port leaves no fresh directory behind.
        self.listeners = Listeners(self.loop)
        tls = server_tls(config)
        await self.listeners.bind(config, tls, lambda: _Sniffer(self), self.metrics_protocol)
        try:
            self.member = Member(config, self.env, self.loop)
            try:
                self.services = Services(self.member)
                if tls is not None and config.auto_tls:
                    load_own_certificate(tls, config, self.env.clock.time())
            except BaseException:
                self.member.close_files()
                raise
        except BaseException:
            self.listeners.close()
            raise
        self.port = self.listeners.port
        self.member.client_urls = config.advertise_client_urls or tuple(self.listeners.urls)
        self._runner = self.loop.create_task(self.member.run(), name="etcd.member")
        self._keeper = self.loop.create_task(
            keep_alive(self._grpc_peers, config.keepalive_interval_s, config.keepalive_timeout_s),
            name="etcd.keepalive",
        )
        await self.listeners.serve()

    def _grpc_peers(self) -> list[GrpcServerConnection]:
        return [peer for peer in self.connections if isinstance(peer, GrpcServerConnection)]

    async def failed(self) -> None:
        """Wait for the member to fail, and raise what it raised."""
        assert self._runner is not None
        await asyncio.shield(self._runner)

    async def close(self) -> None:
        """Stop listening, make pending writes durable, tell the clients, close the files."""
        self.listeners.close()
        self.member.stop()
        for connection in list(self.connections):
            connection.shut_down()
        for front in (self._http1, self._metrics):
            if front is not None:
                await front.close()
        for task in (self._keeper, self._runner):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        # Connections that do not take their last bytes at once are cut.
        await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.abort()
        self.member.close_files()

    async def __aenter__(self) -> EtcdServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def grpc_protocol(self) -> GrpcServerConnection:
        """Return the protocol of a new gRPC connection."""
        return _Grpc(self)

    def metrics_protocol(self) -> asyncio.Protocol:
        """Return the protocol of a connection to --listen-metrics-urls."""
        if self._metrics is None:
            from etcd.server.http1 import Http1Front

            self._metrics = Http1Front(self.member, self.services, only=METRICS_PATHS)
        return self._metrics.protocol()

    def http1_protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new HTTP/1.1 connection."""
        if self._http1 is None:
            # aiohttp takes longer to import than etcd to start; gRPC clients never need it.
            from etcd.server.http1 import Http1Front

            self._http1 = Http1Front(self.member, self.services)
        return self._http1.protocol()


async def run_etcd(config: EtcdConfig, env: RoleEnv) -> None:
    """Serve until cancelled.

    Raises UsageError for what the operator must change, CorruptionError for damaged data,
    StorageError when the disk fails.
    """
    async with EtcdServer(config, env) as server:
        log = env.log
        log.info("ready to serve client requests")
        for where, secure in server.listeners.names:
            if secure:
                log.info("serving client requests on %s", where)
            else:
                log.info(
                    "serving insecure client requests on %s, this is strongly discouraged!", where
                )
        env.ready(f"etcd {config.name} serves {server.listeners.urls[0]}")
        await server.failed()


if TYPE_CHECKING:
    from etcd.server.http1 import Http1Front
