"""An HTTP server inside a pod: aiohttp's protocol over the emulated TCP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from emulator.workloads.context import ContainerContext

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ErrorPage = Callable[[web.BaseRequest, int], web.StreamResponse]

# nginx's keepalive_timeout; the others do not close earlier.
KEEPALIVE_S = 65.0
# How long connections may finish after SIGTERM; a fast shutdown in nginx's words.
SHUTDOWN_S = 0.5
# After a half-close, requests already sent are taken up within this time; then the rest ends.
HALF_CLOSE_S = 0.05
# One request's body; client_max_body_size of nginx.
MAX_BODY_BYTES = 1024 * 1024


class _Protocol(web.RequestHandler):
    """aiohttp's protocol with the program's own page for requests that do not parse."""

    __slots__ = ("_error_page",)

    _error_page: ErrorPage

    async def start(self) -> None:
        """aiohttp's loop over requests; a connection may be lost before it begins."""
        if self._manager is not None:
            await super().start()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes a bool here
        """A client that half-closes still gets its answers, as from nginx."""
        self._loop.call_later(HALF_CLOSE_S, self._no_more_requests)
        return True

    def _no_more_requests(self) -> None:
        """Close now if idle (where ``close`` would only end the task), else after the answers."""
        if self._waiter is not None:
            self.force_close()
        else:
            self.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        self.keep_alive(False)
        # aiohttp takes what it cannot parse for HTTP/1.0; servers answer it in their own version.
        request._version = HttpVersion11
        return self._error_page(request, status)


class _Server(web.Server):
    def __init__(self, handler: Handler, error_page: ErrorPage) -> None:
        super().__init__(handler)
        self._error_page = error_page

    def __call__(self) -> web.RequestHandler:
        protocol = _Protocol(
            self,
            loop=self._loop,
            access_log=None,  # type: ignore[arg-type]  # None is "no access log" to aiohttp
            keepalive_timeout=KEEPALIVE_S,
        )
        protocol._error_page = self._error_page
        return protocol


def plain_error(request: web.BaseRequest, status: int) -> web.StreamResponse:
    """Go's and Python's way: the status alone, no page."""
    return web.Response(status=status, headers={"Connection": "close"})


async def serve_until_stopped(
    ctx: ContainerContext,
    handler: Handler,
    port: int,
    *,
    error_page: ErrorPage = plain_error,
    host: str = "0.0.0.0",
    extra_ports: tuple[int, ...] = (),
) -> None:
    """Serve until ``ctx.stop``; raises the OSError of a port that cannot be bound."""
    server = _Server(handler, error_page)
    listeners: list[asyncio.AbstractServer] = []
    try:
        for each in (port, *extra_ports):
            listeners.append(await ctx.network.create_server(server, host, each))  # noqa: PERF401
        await ctx.stop.wait()
    finally:
        for listener in listeners:
            listener.close()
        await server.shutdown(SHUTDOWN_S)


def peer_of(request: web.BaseRequest) -> tuple[str, int]:
    """(address, port) of the client as the pod's own stack sees it."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return (str(peer[0]), int(peer[1])) if peer else ("", 0)
