"""The kubelet's API on port 10250: logs, exec, attach, port-forward, proxy, pods, health.

Callers show the bearer token of the configuration; without it every path but /healthz is 401.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import socket
import ssl
from typing import TYPE_CHECKING, Any

from aiohttp import web

from agents.kubelet.exec_stream import serve_streams
from agents.kubelet.http_proxy import HttpProxy
from agents.kubelet.logs import LogOptions, read_log
from agents.kubelet.port_forward import serve_port_forward
from agents.kubelet.texts import exec_failed
from emulator.errors import UsageError
from emulator.kubeclient.meta import parse_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.container import Broadcast, Container
    from agents.kubelet.worker import PodWorker
    from emulator.runtime.clock import Clock
    from emulator.runtime.stack import StackNetwork
    from emulator.workloads.context import ByteSink

    Find = Callable[[str, str], PodWorker | None]
    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SHUTDOWN_S = 0.5
# Callers the kernel keeps waiting for the loop.
BACKLOG = 128


class KubeletServer:
    """Serves the API over the workers that ``find(namespace, name)`` gives."""

    def __init__(
        self,
        config: KubeletConfig,
        clock: Clock,
        find: Find,
        pods: Callable[[], list[Mapping[str, Any]]],
        network: StackNetwork,
    ) -> None:
        self._config = config
        self._clock = clock
        self._find = find
        self._pods = pods
        self._proxy = HttpProxy(network)
        self._runner: web.AppRunner | None = None
        self._socket: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self.port = config.listen_port

    def start(self) -> None:
        """Listen; UsageError names an address that is taken or a certificate that is bad."""
        config = self._config
        self._tls = _tls(config)
        try:
            self._socket = socket.create_server(
                (config.listen_host, config.listen_port), backlog=BACKLOG
            )
        except OSError as error:
            raise UsageError(
                f"kubelet {config.node_name}: cannot listen on "
                f"{config.listen_host}:{config.listen_port}: {error.strerror}; "
                "is another node running here?"
            ) from None
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]

    async def run(self) -> None:
        """Serve from the first caller on, until cancelled.

        On most nodes none ever comes; the HTTP server is 1 MiB that they do not spend.
        """
        assert self._socket is not None
        await _readable(self._socket)
        # Whoever follows a quiet log and leaves is noticed by the cancellation alone.
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
            handler_cancellation=True,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket, ssl_context=self._tls).start()

    async def close(self) -> None:
        """Stop listening and end the streams."""
        await self._proxy.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._socket is not None:
            self._socket.close()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._authenticate])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/pods", self._list)
        app.router.add_get("/runningpods/", self._list)
        app.router.add_get("/containerLogs/{ns}/{pod}/{container}", self._logs)
        for verb, handler in (("exec", self._exec), ("attach", self._attach)):
            app.router.add_route("*", f"/{verb}/{{ns}}/{{pod}}/{{container}}", handler)
            app.router.add_route("*", f"/{verb}/{{ns}}/{{pod}}/{{uid}}/{{container}}", handler)
        app.router.add_route("*", "/portForward/{ns}/{pod}", self._port_forward)
        app.router.add_route("*", "/portForward/{ns}/{pod}/{uid}", self._port_forward)
        path = "/proxy/{scheme:https?}/{host}/{port:[0-9]+}"
        app.router.add_route("*", path, self._proxy.serve)
        app.router.add_route("*", path + "/{path:.*}", self._proxy.serve)
        return app

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._config.token and request.path != "/healthz":
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._config.token}".encode()):
                return web.Response(status=401, text="Unauthorized")
        return await handler(request)

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self._pods()}
        )

    def _worker(self, request: web.Request) -> PodWorker:
        namespace, name = request.match_info["ns"], request.match_info["pod"]
        worker = self._find(namespace, name)
        if worker is None:
            raise web.HTTPNotFound(text=f'pod "{name}" not found\n')
        return worker

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        worker, name = self._worker(request), request.match_info["container"]
        pod = worker.pod
        if all(each.name != name for each in pod.all_containers):
            raise web.HTTPNotFound(text=f'container "{name}" not found in pod "{pod.name}"\n')
        previous = request.query.get("previous") in ("true", "1")
        log = worker.find_log(name, previous=previous)
        if log is None:
            state = worker.record.container(name)
            if previous:
                raise web.HTTPBadRequest(
                    text=f'previous terminated container "{name}" in pod "{pod.name}" not found\n'
                )
            raise web.HTTPBadRequest(
                text=f'container "{name}" in pod "{pod.name}" is waiting to start: '
                f"{_why(state.reason, state.message)}\n"
            )
        options = _log_options(request.query, self._clock.time())
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        # A reader that leaves is nobody to tell.
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            async for data in read_log(log, options, self._clock):
                await response.write(data)
            await response.write_eof()
        return response

    def _container(self, request: web.Request) -> tuple[Container | None, str]:
        worker, name = self._worker(request), request.match_info["container"]
        container = worker.containers.get(name)
        if container is not None:
            return container, ""
        if all(each.name != name for each in worker.pod.all_containers):
            return None, f'container "{name}" not found in pod "{worker.pod.name}"'
        if request.path.startswith("/attach/"):
            full = f"{worker.pod.name}_{worker.pod.namespace}"
            return None, f"unable to upgrade connection: container {name} not found in pod {full}"
        return None, f'unable to upgrade connection: container not found ("{name}")'

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        command = query.getall("command", [])
        container, failure = self._container(request)
        if not command:
            raise web.HTTPBadRequest(text="you must specify at least 1 command\n")
        if container is not None and not container.can_execute(command[0]):
            identity = f"{container.container_id} {self._clock.time()}"
            failure = exec_failed(command[0], hashlib.sha256(identity.encode()).hexdigest())
        stdin, tty = _on(query, "stdin", "input"), _on(query, "tty")

        async def session(
            reader: asyncio.StreamReader | None,
            stdout: ByteSink,
            stderr: ByteSink,
            interrupt: asyncio.Event,
        ) -> int:
            assert container is not None
            code = await container.execute(
                command,
                stdin=reader,
                stdout=stdout,
                stderr=stderr,
                interrupt=interrupt,
                tty=tty,
            )
            return code & 255

        return await serve_streams(request, session, stdin=stdin, tty=tty, failure=failure)

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        worker = self._worker(request)
        if worker.sandbox is None:
            text = f'unable to forward: pod "{worker.pod.name}" has no sandbox\n'
            raise web.HTTPNotFound(text=text)
        return await serve_port_forward(request, worker.sandbox)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        container, failure = self._container(request)
        stdin, tty = _on(request.query, "stdin", "input"), _on(request.query, "tty")

        async def session(
            reader: asyncio.StreamReader | None,
            stdout: ByteSink,
            stderr: ByteSink,
            interrupt: asyncio.Event,
        ) -> int:
            assert container is not None
            async with asyncio.TaskGroup() as group:
                copies = [
                    group.create_task(_copy(container.stdout, stdout), name="attach.stdout"),
                    group.create_task(_copy(container.stderr, stderr), name="attach.stderr"),
                ]
                feeder = None
                if reader is not None and container.stdin is not None:
                    feeder = group.create_task(_feed(reader, container.stdin), name="attach.stdin")
                await asyncio.wait(copies)
                if feeder is not None:
                    feeder.cancel()
            return 0

        return await serve_streams(request, session, stdin=stdin, tty=tty, failure=failure)


async def _copy(source: Broadcast, sink: ByteSink) -> None:
    queue = source.attach()
    try:
        while (data := await queue.get()) is not None:
            sink.write(data)
            await sink.drain()
    except BrokenPipeError:
        return
    finally:
        source.detach(queue)


async def _feed(reader: asyncio.StreamReader, target: asyncio.StreamReader) -> None:
    while data := await reader.read(4096):
        target.feed_data(data)
    target.feed_eof()


def _on(query: Mapping[str, str], *names: str) -> bool:
    return any(query.get(name) in ("true", "1") for name in names)


def _log_options(query: Mapping[str, str], now: float) -> LogOptions:
    def number(name: str) -> int | None:
        text = query.get(name)
        if text is None or text == "":
            return None
        if not text.lstrip("-").isdigit():
            raise web.HTTPBadRequest(text=f"invalid {name}: {text!r}\n")
        return max(0, int(text)) if int(text) >= 0 else None

    since_s = float(number("sinceSeconds") or 0)
    if since_time := parse_time(query.get("sinceTime")):
        since_s = max(0.001, now - since_time)
    return LogOptions(
        follow=_on(query, "follow"),
        timestamps=_on(query, "timestamps"),
        tail_lines=number("tailLines"),
        since_s=since_s,
        limit_bytes=number("limitBytes"),
    )


def _why(reason: str, message: str) -> str:
    if reason in ("ErrImagePull", "ImagePullBackOff"):
        return "trying and failing to pull image"
    return message or reason


async def _readable(listener: socket.socket) -> None:
    """Wait until somebody calls."""
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listener, called.set)
    try:
        await called.wait()
    finally:
        loop.remove_reader(listener)


def _tls(config: KubeletConfig) -> ssl.SSLContext | None:
    if not config.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"kubelet {config.node_name}: certificate {config.tls_cert}: {error}"
        ) from None
    return context
