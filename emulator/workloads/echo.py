"""Servers that tell what they were asked and by whom: whoami, agnhost, hello-app, http-echo."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from emulator.workloads.httpd import peer_of, serve_until_stopped

if TYPE_CHECKING:
    from emulator.workloads.context import ContainerContext


def _text(body: str, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=body.encode(), headers={"Content-Type": "text/plain; charset=utf-8"}
    )


def _flag(argv: tuple[str, ...], name: str, default: str) -> str:
    """The value of ``-name=value``, ``--name=value`` or ``--name value`` (Go's flag package)."""
    for index, word in enumerate(argv):
        key, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and key == name:
            if equals:
                return value
            if index + 1 < len(argv):
                return argv[index + 1]
    return default


def _query(request: web.BaseRequest, name: str) -> str:
    return parse_qs(urlsplit(request.raw_path).query, keep_blank_values=True).get(name, [""])[0]


def _request_text(request: web.BaseRequest) -> str:
    version = request.version
    lines = [f"{request.method} {request.raw_path} HTTP/{version.major}.{version.minor}"]
    lines.append(f"Host: {request.headers.get('Host', '')}")
    lines += [
        f"{name.title()}: {value}"
        for name, value in sorted(request.headers.items())
        if name.lower() != "host"
    ]
    return "\n".join(lines)


async def _serve(ctx: ContainerContext, handler: Any, port: int) -> int:
    try:
        await serve_until_stopped(ctx, handler, port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        ctx.complain(f"listen tcp :{port}: bind: {reason}")
        return 1
    return 0


async def whoami(ctx: ContainerContext) -> int:
    """traefik/whoami: ``--port`` (80), ``--name``; / in text, /api in JSON, /health."""
    name = _flag(ctx.argv, "name", ctx.env.get("WHOAMI_NAME", ""))
    port = int(_flag(ctx.argv, "port", ctx.env.get("WHOAMI_PORT_NUMBER", "80")))

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        peer, peer_port = peer_of(request)
        if request.path == "/health":
            return web.Response(status=200)
        if request.path == "/api":
            document = {
                "hostname": ctx.hostname,
                "ip": list(ctx.addresses),
                "headers": {key.title(): [value] for key, value in request.headers.items()},
                "url": request.raw_path,
                "host": request.headers.get("Host", ""),
                "method": request.method,
                "remoteAddr": f"{peer}:{peer_port}",
                **({"name": name} if name else {}),
            }
            return web.Response(
                body=json.dumps(document, separators=(",", ":")).encode() + b"\n",
                headers={"Content-Type": "application/json"},
            )
        lines = [f"Name: {name}"] if name else []
        lines.append(f"Hostname: {ctx.hostname}")
        lines += [f"IP: {address}" for address in ctx.addresses]
        lines.append(f"RemoteAddr: {peer}:{peer_port}")
        return _text("\n".join(lines) + "\n" + _request_text(request) + "\n\n")

    ctx.print(f"Starting up on port {port}")
    return await _serve(ctx, handle, port)


class _NetexecDatagrams(asyncio.DatagramProtocol):
    """agnhost netexec's UDP side: ``hostname``, ``echo TEXT``, ``clientip``."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        words = data.decode("utf-8", "replace").strip().split(" ", 1)
        answer = ""
        match words[0].lower():
            case "hostname":
                answer = self._hostname
            case "echo" if len(words) > 1:
                answer = words[1]
            case "clientip":
                answer = f"{addr[0]}:{addr[1]}"
        if answer and self._transport is not None:
            self._transport.sendto(answer.encode(), addr)


async def agnhost(ctx: ContainerContext) -> int:
    """registry.k8s.io/e2e-test-images/agnhost: ``netexec``, ``serve-hostname``, ``pause``."""
    verb = ctx.argv[1] if len(ctx.argv) > 1 else "pause"
    if verb == "pause":
        ctx.print("Paused")
        await ctx.stop.wait()
        return 0
    if verb not in ("netexec", "serve-hostname"):
        ctx.complain(f'Error: unknown command "{verb}" for "app"\nRun \'app --help\' for usage.')
        return 1

    async def hostname_only(request: web.BaseRequest) -> web.StreamResponse:
        return _text(ctx.hostname)

    if verb == "serve-hostname":
        return await _serve(ctx, hostname_only, int(_flag(ctx.argv, "port", "9376")))

    async def netexec(request: web.BaseRequest) -> web.StreamResponse:
        ctx.print(f"{request.method} {request.raw_path}")
        match request.path:
            case "/":
                return _text(f"NOW: {ctx.clock.rfc3339_micro()}")
            case "/hostname" | "/hostName":
                return _text(ctx.hostname)
            case "/clientip":
                peer, port = peer_of(request)
                return _text(f"{peer}:{port}")
            case "/echo":
                code = _query(request, "code")
                stated = re.fullmatch("[1-9][0-9]{2}", code)
                return _text(_query(request, "msg"), int(code) if stated else 200)
            case "/healthz":
                return web.Response(status=200)
            case "/header":
                return _text(request.headers.get(_query(request, "key"), ""))
            case "/exit":
                ctx.stop.set()
                return web.Response(status=200)
        return _text("404 page not found\n", 404)

    udp_port = int(_flag(ctx.argv, "udp-port", "8081"))
    transport = None
    if udp_port > 0:
        transport, _ = await ctx.network.create_datagram_endpoint(
            lambda: _NetexecDatagrams(ctx.hostname), local_addr=("0.0.0.0", udp_port)
        )
    try:
        return await _serve(ctx, netexec, int(_flag(ctx.argv, "http-port", "8080")))
    finally:
        if transport is not None:
            transport.close()


async def hello_app(ctx: ContainerContext) -> int:
    """google-samples/hello-app on $PORT (8080)."""
    version = ctx.env.get("HELLO_VERSION", "1.0.0")

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        ctx.complain(f"Serving request: {request.path}")
        return _text(f"Hello, world!\nVersion: {version}\nHostname: {ctx.hostname}\n")

    port = int(ctx.env.get("PORT", "8080"))
    ctx.complain(f"Server listening on port {port}")
    return await _serve(ctx, handle, port)


async def http_echo(ctx: ContainerContext) -> int:
    """hashicorp/http-echo: ``-text`` (required), ``-listen`` (:5678)."""
    text = _flag(ctx.argv, "text", ctx.env.get("ECHO_TEXT", ""))
    if not text:
        ctx.complain("Missing -text option!")
        return 127

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return _text(text + "\n")

    port = int(_flag(ctx.argv, "listen", ":5678").rpartition(":")[2])
    ctx.complain(f"Server is listening on :{port}")
    return await _serve(ctx, handle, port)


async def pause(ctx: ContainerContext) -> int:
    """registry.k8s.io/pause: sleeps until SIGTERM."""
    await ctx.stop.wait()
    ctx.complain("Shutting down, got signal: Terminated")
    return 0
