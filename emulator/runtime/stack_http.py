"""aiohttp's client and server over the emulated network, unchanged above the connection."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

from aiohttp import ClientConnectorError, web
from aiohttp.client_exceptions import ClientConnectorCertificateError, ClientConnectorDNSError
from aiohttp.client_exceptions import ClientConnectorSSLError as ConnectorSSLError
from aiohttp.connector import BaseConnector
from aiohttp.helpers import ceil_timeout

if TYPE_CHECKING:
    from aiohttp.client import ClientTimeout
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace

    from emulator.runtime.stack import StackNetwork


class StackConnector(BaseConnector):
    """A connector that dials through a StackNetwork: ``ClientSession(connector=…)``."""

    allowed_protocol_schema_set = frozenset({"", "http", "https", "ws", "wss"})

    def __init__(self, network: StackNetwork, **options: Any) -> None:
        """``options`` are those of aiohttp's BaseConnector (limit, force_close …)."""
        super().__init__(loop=network.loop, **options)
        self._network = network

    def _context(self, req: ClientRequest) -> ssl.SSLContext | None:
        if not req.is_ssl():
            return None
        if isinstance(req.ssl, ssl.SSLContext):
            return req.ssl
        context = ssl.create_default_context()
        if req.ssl is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        host, port = req.url.raw_host, req.url.port
        assert host is not None
        assert port is not None
        try:
            async with ceil_timeout(timeout.sock_connect, ceil_threshold=timeout.ceil_threshold):
                _, protocol = await self._network.create_connection(
                    self._factory,
                    host,
                    port,
                    ssl=self._context(req),
                    server_hostname=req.server_hostname,
                )
        except ssl.CertificateError as error:
            raise ClientConnectorCertificateError(req.connection_key, error) from error
        except ssl.SSLError as error:
            raise ConnectorSSLError(req.connection_key, error) from error
        except socket.gaierror as error:
            raise ClientConnectorDNSError(req.connection_key, error) from error
        except OSError as error:
            if error.errno is None and isinstance(error, TimeoutError):
                raise
            raise ClientConnectorError(req.connection_key, error) from error
        return protocol


class StackSite(web.BaseSite):
    """A site of an aiohttp runner that listens inside a namespace."""

    __slots__ = ("_host", "_network", "_port")

    def __init__(
        self,
        runner: web.BaseRunner,
        network: StackNetwork,
        host: str | None,
        port: int,
        *,
        backlog: int = 128,
    ) -> None:
        """``host`` None is every address of the namespace, ``port`` 0 a free one."""
        super().__init__(runner, backlog=backlog)
        self._network = network
        self._host = host
        self._port = port

    @property
    def name(self) -> str:
        return f"http://{self._host or '0.0.0.0'}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._port

    async def start(self) -> None:
        """Listen; OSError as ``StackNetwork.create_server``."""
        await super().start()
        assert self._runner.server is not None
        server = await self._network.create_server(
            self._runner.server, self._host, self._port, backlog=self._backlog
        )
        self._server = server
        self._port = server.address[1]
