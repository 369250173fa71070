"""nginx, whoami and agnhost served to curl, wget and raw bytes, over loopback sockets.

The network is the host's here: texts and bytes are what is tested, not packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from emulator.runtime.clock import Clock
from emulator.shell.context import Buffer, ShellContext
from emulator.shell.files import MemoryFiles
from emulator.shell.registry import run_command
from emulator.workloads.context import ContainerContext
from emulator.workloads.images import default_registry, image_env, image_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

EPOCH = 1_525_874_322.0


class LoopbackNetwork:
    """A pod's network as far as these programs use it; listening ports are ephemeral."""

    def __init__(self) -> None:
        self.ports: dict[int, int] = {}

    async def create_server(self, factory: Any, host: str, port: int) -> asyncio.Server:
        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        self.ports[port] = server.sockets[0].getsockname()[1]
        return server

    async def open_connection(self, host: str, port: int, *, limit: int, **_: Any) -> Any:
        return await asyncio.open_connection(host, port, limit=limit)

    async def getaddrinfo(self, host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Pod:
    """One container and a place beside it to run commands in."""

    def __init__(self, image: str, *argv: str) -> None:
        found = default_registry().resolve(image)
        self.network = LoopbackNetwork()
        self.out, self.err = Buffer(), Buffer()
        start = asyncio.get_running_loop().time()
        self.clock = Clock(asyncio.get_running_loop().time, EPOCH - start)
        self.files = MemoryFiles(self.clock.time, files=image_files(found), directories=("/tmp",))
        definition = found.definition
        words = (*definition.entrypoint, *(argv or definition.command))
        self.program = definition.programs[words[0].rpartition("/")[2]]
        self.context = ContainerContext(
            argv=words,
            env=image_env(found),
            hostname="web-0",
            addresses=("127.0.0.1", "10.2.59.13"),
            network=cast("Any", self.network),
            files=self.files,
            stdout=self.out,
            stderr=self.err,
            stdin=None,
            stop=asyncio.Event(),
            clock=self.clock,
            rng=random.Random(1),
            run=cast("Any", None),
        )

    def port(self, number: int = 80) -> int:
        return self.network.ports[number]

    async def run(
        self, *argv: str, style: str = "gnu", era: str = "modern"
    ) -> tuple[int, str, str]:
        out, err = Buffer(), Buffer()
        context = ShellContext(
            kernel=cast("Any", None),
            ns=cast("Any", None),
            network=cast("Any", self.network),
            files=self.files,
            hostname="w1",
            env={},
            stdout=out,
            stderr=err,
            clock=self.clock,
            rng=random.Random(1),
            style=style,
            era=era,
        )
        return await run_command(context, argv), out.text, err.text


@contextlib.asynccontextmanager
async def running(image: str, *argv: str, port: int = 80) -> AsyncIterator[Pod]:
    pod = Pod(image, *argv)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(cast("Any", pod.program(pod.context)))
        while port not in pod.network.ports:
            await asyncio.sleep(0)
        yield pod
        pod.context.stop.set()
        assert await task == 0


async def raw(port: int, data: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def test_nginx_answers_byte_for_byte_as_the_real_one() -> None:
    async with running("nginx:1.7.9") as nginx:
        answer = await raw(nginx.port(), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = answer.partition("\r\n\r\n")
        assert head.split("\r\n") == [
            "HTTP/1.1 200 OK",
            "Server: nginx/1.7.9",
            "Date: Wed, 09 May 2018 13:58:42 GMT",
            "Content-Type: text/html",
            "Content-Length: 612",
            "Last-Modified: Tue, 23 Dec 2014 16:25:09 GMT",
            "Connection: close",
            'ETag: "54999765-264"',
            "Accept-Ranges: bytes",
        ]
        assert len(body) == 612
        assert nginx.out.text == (
            '127.0.0.1 - - [09/May/2018:13:58:42 +0000] "GET / HTTP/1.1" 200 612 "-" "-" "-"\n'
        )


async def test_nginx_errors_have_its_own_pages() -> None:
    async with running("nginx:1.22.1") as nginx:
        missing = await raw(
            nginx.port(), b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert missing.startswith("HTTP/1.1 404 Not Found\r\nServer: nginx/1.22.1\r\n")
        assert missing.endswith("<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n")
        assert "Content-Length: 153\r\n" in missing
        garbage = await raw(nginx.port(), b"GARBAGE\r\n\r\n")
        assert garbage.startswith("HTTP/1.1 400 Bad Request\r\n")
        assert "<center><h1>400 Bad Request</h1></center>" in garbage
        posted = await raw(
            nginx.port(),
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )
        assert posted.startswith("HTTP/1.1 405 Not Allowed\r\n")
        assert 'open() "/usr/share/nginx/html/nope" failed (2: No such file or directory)' in (
            nginx.err.text
        )


async def test_an_idle_client_that_half_closes_is_closed_too() -> None:
    async with running("nginx:1.22.1") as nginx:
        reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port())
        writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_nginx_serves_ranges_conditions_and_changed_files() -> None:
    async with running("nginx:1.22.1") as nginx:
        part = await raw(
            nginx.port(),
            b"GET / HTTP/1.1\r\nHost: x\r\nRange: bytes=0-10\r\nConnection: close\r\n\r\n",
        )
        assert "206 Partial Content" in part
        assert "Content-Range: bytes 0-10/615\r\n" in part
        assert part.endswith("\r\n\r\n<!DOCTYPE h")
        nginx.files.write("/usr/share/nginx/html/index.html", b"mine\n")
        assert (await nginx.run("curl", "-s", f"127.0.0.1:{nginx.port()}"))[1] == "mine\n"


async def test_keepalive_serves_several_requests() -> None:
    async with running("nginx:1.7.9") as nginx:
        answers = await raw(
            nginx.port(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.0\r\n\r\n"
        )
        assert answers.count("HTTP/1.") == 2
        assert "Connection: keep-alive\r\n" in answers
        assert '"HEAD / HTTP/1.0" 200 0' in nginx.out.text


async def test_curl_writes_out_what_is_asked() -> None:
    async with running("nginx:1.7.9") as nginx:
        url = f"http://127.0.0.1:{nginx.port()}/"
        assert await nginx.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\\n", url) == (
            0,
            "200\n",
            "",
        )
        status, out, _ = await nginx.run("curl", "-sI", url)
        assert (status, out.splitlines()[0]) == (0, "HTTP/1.1 200 OK")
        assert (await nginx.run("curl", "-sf", url + "x"))[0] == 22
        await nginx.run("curl", "-s", url, era="2017")
        assert '"curl/7.29.0"' in nginx.out.text


async def test_curl_verbose_shows_the_exchange() -> None:
    async with running("nginx:1.7.9") as nginx:
        port = nginx.port()
        _, _, err = await nginx.run("curl", "-sv", f"127.0.0.1:{port}")
        assert err.splitlines()[:7] == [
            f"*   Trying 127.0.0.1:{port}...",
            f"* Connected to 127.0.0.1 (127.0.0.1) port {port} (#0)",
            "> GET / HTTP/1.1",
            f"> Host: 127.0.0.1:{port}",
            "> User-Agent: curl/7.88.1",
            "> Accept: */*",
            "> ",
        ]
        assert err.splitlines()[-1] == "* Connection #0 to host 127.0.0.1 left intact"


async def test_wget_speaks_gnu_and_busybox() -> None:
    async with running("nginx:1.7.9") as nginx:
        url = f"http://127.0.0.1:{nginx.port()}"
        status, _, err = await nginx.run("wget", url, era="2017")
        assert status == 0
        assert re.sub(r"\d\d:\d\d:\d\d", "T", err).splitlines()[:5] == [
            f"--2018-05-09 T--  {url}/",
            f"Connecting to 127.0.0.1:{nginx.port()}... connected.",
            "HTTP request sent, awaiting response... 200 OK",
            "Length: 612 [text/html]",
            "Saving to: ‘index.html’",
        ]
        assert re.fullmatch(r"     0K {55}100% {1,2}\S+=\S+s", err.splitlines()[6])
        assert err.splitlines()[-2].endswith("‘index.html’ saved [612/612]")
        assert nginx.files.read("/index.html") == nginx.files.read(
            "/usr/share/nginx/html/index.html"
        )
        status, out, err = await nginx.run("wget", "-qO-", url, style="busybox")
        assert (status, len(out), err) == (0, 612, "")
        status, _, err = await nginx.run("wget", "-O-", f"{url}/nope", style="busybox")
        assert status == 1
        assert err.splitlines()[-1] == "wget: server returned error: HTTP/1.1 404 Not Found"


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_refused_and_unknown_hosts_have_the_real_texts_and_codes() -> None:
    async with running("nginx:1.7.9") as pod:
        port = closed_port()
        status, _, err = await pod.run("curl", f"http://127.0.0.1:{port}/")
        assert status == 7
        assert re.fullmatch(
            rf"curl: \(7\) Failed to connect to 127\.0\.0\.1 port {port} after \d+ ms: "
            r"Couldn't connect to server\n",
            err,
        )
        assert await pod.run("curl", "http://nohost.invalid/") == (
            6,
            "",
            "curl: (6) Could not resolve host: nohost.invalid\n",
        )
        status, _, err = await pod.run("wget", "-q", f"http://127.0.0.1:{port}/")
        assert (status, err) == (4, "")
        status, _, err = await pod.run("wget", f"http://127.0.0.1:{port}/", style="busybox")
        assert err.splitlines()[-1] == (
            "wget: can't connect to remote host (127.0.0.1): Connection refused"
        )
        assert (await pod.run("curl"))[0] == 2
        assert (await pod.run("curl", "--bogus"))[2].startswith("curl: option --bogus: is unknown")
        assert (await pod.run("curl", "ftpx://a/"))[0] == 1


@pytest.mark.parametrize(
    ("behaviour", "code"), [("empty", 52), ("silent", 28), ("short", 18), ("reset", 56)]
)
async def test_servers_that_misbehave(behaviour: str, code: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if behaviour == "silent":
            await reader.read()
        elif behaviour == "short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        elif behaviour == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        pod = Pod("nginx:1.7.9")
        limit = "0.1" if behaviour == "silent" else "10"
        status, _, err = await pod.run("curl", "-m", limit, f"127.0.0.1:{port}")
        assert status == code
        assert err.startswith(f"curl: ({code}) ")
        await done.wait()
    finally:
        server.close()


@contextlib.asynccontextmanager
async def answering(answer: Callable[[int, int], str]) -> AsyncIterator[tuple[int, list[int]]]:
    """A server that answers ``(port, number)`` to ``/<number>``: its port, what it was asked."""
    asked: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await reader.readuntil(b"\r\n\r\n")).split()
        asked.append(int(words[1].rpartition(b"/")[2]))
        writer.write(f"HTTP/1.1 {answer(port, asked[-1])}Content-Length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    try:
        yield port, asked
    finally:
        server.close()


@pytest.mark.parametrize("location", ["/a/{}", "{}", "http://127.0.0.1:{port}/a/{}"])
async def test_redirects_are_followed_where_they_lead(location: str) -> None:
    def answer(port: int, number: int) -> str:
        if number == 3:
            return "200 OK\r\n"
        return f"302 Found\r\nLocation: {location.format(number + 1, port=port)}\r\n"

    async with answering(answer) as (port, asked):
        pod, url = Pod("nginx:1.7.9"), f"127.0.0.1:{port}/a/0"
        assert (await pod.run("curl", "-s", url))[0] == 0
        assert asked == [0]
        shown = await pod.run("curl", "-sL", "-w", "%{http_code} %{num_redirects}", url)
        assert shown == (0, "200 3", "")
        assert asked == [0, 0, 1, 2, 3]
        del asked[:]
        assert (await pod.run("wget", "-qO-", url))[0] == 0
        assert asked == [0, 1, 2, 3]
        if location != "{}":
            assert (await pod.run("wget", "-qO-", url, style="busybox"))[0] == 0
            assert asked == [0, 1, 2, 3] * 2


async def test_redirects_without_end_are_given_up() -> None:
    async with answering(lambda _, n: f"302 Found\r\nLocation: /{n + 1}\r\n") as (port, asked):
        pod, url = Pod("nginx:1.7.9"), f"http://127.0.0.1:{port}/0"
        # Silent but for errors.
        assert await pod.run("curl", "-sSL", url) == (
            47,
            "",
            "curl: (47) Maximum (50) redirects followed\n",
        )
        assert asked == [*range(51)]
        assert await pod.run("curl", "-sL", url) == (47, "", "")
        status, _, err = await pod.run("wget", url)
        assert (status, err.splitlines()[-1]) == (8, "20 redirections exceeded.")
        assert (await pod.run("wget", url, style="busybox"))[0] == 1


async def test_only_a_redirect_leads_elsewhere() -> None:
    async with answering(lambda *_: "201 Created\r\nLocation: /9\r\n") as (port, asked):
        assert (await Pod("nginx:1.7.9").run("curl", "-sL", f"127.0.0.1:{port}/0"))[0] == 0
        assert asked == [0]
    async with answering(lambda *_: "404 Not Found\r\nLocation: /9\r\n") as (port, asked):
        assert (await Pod("nginx:1.7.9").run("curl", "-sL", f"127.0.0.1:{port}/0"))[0] == 0
        assert asked == [0]


async def test_whoami_tells_who_asked() -> None:
    async with running("traefik/whoami") as pod:
        status, out, _ = await pod.run("curl", "-s", f"127.0.0.1:{pod.port()}/path?x=1")
        lines = out.splitlines()
        assert status == 0
        assert lines[:3] == ["Hostname: web-0", "IP: 127.0.0.1", "IP: 10.2.59.13"]
        assert lines[3].startswith("RemoteAddr: 127.0.0.1:")
        assert lines[4:6] == ["GET /path?x=1 HTTP/1.1", f"Host: 127.0.0.1:{pod.port()}"]


def agnhost_paths() -> list[tuple[str, Callable[[str], bool]]]:
    return [
        ("/hostname", lambda text: text == "web-0"),
        ("/echo?msg=hi", lambda text: text == "hi"),
        ("/clientip", lambda text: text.startswith("127.0.0.1:")),
    ]


async def test_agnhost_netexec_answers_its_paths() -> None:
    image = "registry.k8s.io/e2e-test-images/agnhost:2.39"
    async with running(image, "netexec", "--udp-port=-1", port=8080) as pod:
        for path, good in agnhost_paths():
            _, out, _ = await pod.run("curl", "-s", f"127.0.0.1:{pod.port(8080)}{path}")
            assert good(out), path
