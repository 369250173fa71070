"""The node's hand of ``…/proxy/…``: HTTP requests of the API server into the emulated network.

The API server's process has no address there, so it asks the kubelet of the pod's node:
``/proxy/http/10.2.3.4/80/path`` is fetched from the node's own network namespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import web
from yarl import URL

from emulator.runtime.stack_http import StackConnector

if TYPE_CHECKING:
    from emulator.runtime.stack import StackNetwork

# Meaningful for one connection only (RFC 9110 section 7.6.1), or made anew by the next hop.
HOP_BY_HOP: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "content-length", "content-encoding"),
    )
)
CONNECT_TIMEOUT_S: Final = 10.0


class HttpProxy:
    """Fetches over one namespace; ``close`` ends its connections."""

    def __init__(self, network: StackNetwork) -> None:
        self._network = network
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer with what the address answers; 503 with the reason when it does not."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=StackConnector(self._network, limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept", "User-Agent"),
            )
        info = request.match_info
        authority = f"{info['host']}:{info['port']}"
        raw_path = request.raw_path.split("/", 5)[5] if request.raw_path.count("/") > 4 else ""
        url = URL(f"{info['scheme']}://{authority}/{raw_path}", encoded=True)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in HOP_BY_HOP and name.lower() not in ("authorization", "host")
        }
        if request.content_length is not None:
            headers["Content-Length"] = str(request.content_length)
        body = request.content if request.can_read_body else None
        response = web.StreamResponse()
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body, allow_redirects=False, ssl=False
            ) as answer:
                response.set_status(answer.status, answer.reason)
                for name, value in answer.headers.items():
                    if name.lower() not in HOP_BY_HOP:
                        response.headers.add(name, value)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            if response.prepared:
                # The answer has begun: its end is missing, and that is all the caller can be told.
                raise ConnectionResetError(f"the answer broke off: {error}") from None
            text = f"error trying to reach service: {_cause(error, authority)}"
            raise web.HTTPServiceUnavailable(text=text) from None


def _cause(error: Exception, authority: str) -> str:
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, ConnectionRefusedError):
        return f"dial tcp {authority}: connect: connection refused"
    if isinstance(inner, TimeoutError):
        return f"dial tcp {authority}: i/o timeout"
    return str(inner) or type(inner).__name__
