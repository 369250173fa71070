"""The sockets of a server: bound before anything is written, served when everything is read."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from emulator.errors import UsageError
from etcd.server.config import EtcdConfig, ListenAddress

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable

# Unread connections waiting in the kernel.
BACKLOG = 1024

if TYPE_CHECKING:
    Factory = Callable[[], asyncio.Protocol]


def client_addresses(config: EtcdConfig) -> tuple[ListenAddress, ...]:
    """Return where clients are served."""
    if config.listen_at:
        return config.listen_at
    tls = config.cert_file is not None
    return (ListenAddress(config.listen_host, config.listen_port, tls),)


class Listeners:
    """Every socket a server listens on; ``urls`` of the client ones, in the order given."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._servers: list[asyncio.AbstractServer] = []
        self._paths: list[str] = []
        self.urls: list[str] = []
        # Client addresses as etcd's ready line names them, and whether they are secure.
        self.names: list[tuple[str, bool]] = []
        # The port of the first client address; 0 if it is a unix socket.
        self.port = 0
        # The port of the last metrics address.
        self.metrics_port = 0

    async def bind(
        self, config: EtcdConfig, tls: ssl.SSLContext | None, factory: Factory, metrics: Factory
    ) -> None:
        """Take every address; UsageError names one that cannot be had, and none is kept."""
        try:
            for address in client_addresses(config):
                port = await self._bind(address, tls, factory)
                self._name(address, port)
            for address in config.metrics_at:
                self.metrics_port = await self._bind(address, tls, metrics)
        except BaseException:
            self.close()
            raise

    async def _bind(
        self, address: ListenAddress, tls: ssl.SSLContext | None, factory: Factory
    ) -> int:
        context = tls if address.tls else None
        try:
            if address.path:
                server = await self._loop.create_unix_server(
                    factory, address.path, ssl=context, backlog=BACKLOG, start_serving=False
                )
                self._paths.append(address.path)
                self._servers.append(server)
                return 0
            server = await self._loop.create_server(
                factory,
                address.host,
                address.port,
                ssl=context,
                backlog=BACKLOG,
                start_serving=False,
            )
        except OSError as error:
            where = address.path or f"{address.host}:{address.port}"
            raise UsageError(
                f"etcd cannot listen on {where}: {os.strerror(error.errno or 0)}; "
                "choose another address or stop what uses it"
            ) from None
        self._servers.append(server)
        sockets = server.sockets
        return int(sockets[0].getsockname()[1]) if sockets else address.port

    def _name(self, address: ListenAddress, port: int) -> None:
        if address.path:
            self.urls.append(f"unix{'s' * address.tls}://{address.path}")
            self.names.append((address.path, address.tls))
            return
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.urls.append(f"http{'s' * address.tls}://{host}:{port}")
        self.names.append((f"{host}:{port}", address.tls))
        if len(self.urls) == 1:
            self.port = port

    async def serve(self) -> None:
        """Begin to accept connections."""
        for server in self._servers:
            # Only asyncio's own servers were told not to; a simulated one serves already.
            start = getattr(server, "start_serving", None)
            if start is not None:
                await start()

    def close(self) -> None:
        """Accept nothing more; connections go on."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._servers.clear()
        self._paths.clear()
