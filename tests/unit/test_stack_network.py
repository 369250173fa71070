"""asyncio and aiohttp over the emulated sockets of two hosts, and the errors Linux gives."""

from __future__ import annotations

import asyncio
import datetime
import errno
import io
import random
import socket
import ssl

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from emulator.addr import format_ip, parse_ip
from emulator.netstack.packet import Drop, DropReason, Packet
from emulator.netstack.sock.table import SocketTable
from emulator.netstack.sock.tcp import Endpoint
from emulator.netstack.sock.tcp_state import State
from emulator.runtime.stack import StackNetwork
from emulator.runtime.stack_http import StackConnector, StackSite
from tests.waiting import until

A, B, NOBODY = "10.2.1.1", "10.2.2.2", "10.2.9.9"


class Wire:
    """Hosts joined by the event loop: every packet arrives one turn later."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.hosts: dict[int, Host] = {}
        self.filter = lambda packet: True

    def host(self, address: str) -> Host:
        host = Host(self, parse_ip(address), random.Random(address))
        self.hosts[host.ip] = host
        return host

    def carry(self, packet: Packet) -> None:
        target = self.hosts.get(packet.dst)
        if target is None or not self.filter(packet):
            return
        self.loop.call_soon(target.arrive, packet)


class Host:
    """The least namespace the sockets need."""

    def __init__(self, wire: Wire, ip: int, rng: random.Random) -> None:
        self.wire, self.ip = wire, ip
        self.sockets = SocketTable(self, clock=wire.loop.time, rng=rng)
        self.timer: asyncio.TimerHandle | None = None
        self.poked = False
        self.mtu = 1450
        self.network = StackNetwork(self, wire.loop)

    def output(self, data: bytes, *, oif: str = "", mark: int = 0, gso_size: int = 0):
        packet = Packet(data, gso_size=gso_size)
        if packet.dst == self.ip or packet.dst >> 24 == 127:
            self.wire.loop.call_soon(self.arrive, packet)
        else:
            self.wire.carry(packet)

    def source_address(self, dst: int) -> int | None:
        return dst if dst >> 24 == 127 else self.ip if dst >> 24 == 10 else None

    def route_refusal(self, dst: int) -> DropReason | None:
        return None if self.source_address(dst) else DropReason.NO_ROUTE

    def route_mtu(self, dst: int) -> int:
        return 65536 if dst >> 24 == 127 else self.mtu

    def is_local(self, ip: int) -> bool:
        return ip == self.ip or ip >> 24 == 127

    def poke(self) -> None:
        if not self.poked:
            self.poked = True
            self.wire.loop.call_soon(self.run)

    def arrive(self, packet: Packet) -> Drop | None:
        drop = self.sockets.deliver(packet)
        if drop is not None and drop.icmp is not None:
            self.refuse(packet, *drop.icmp)
        self.poke()
        return drop

    def refuse(self, packet: Packet, icmp_type: int, code: int) -> None:
        """Send an ICMP error back (checksums left out: nobody here looks)."""
        body = bytes((icmp_type, code, 0, 0, 0, 0, 0, 0)) + packet.data[:28]
        header = bytes((0x45, 0, 0, 20 + len(body), 0, 0, 0, 0, 64, 1, 0, 0))
        addresses = packet.dst.to_bytes(4, "big") + packet.src.to_bytes(4, "big")
        error = Packet(header + addresses + body)
        self.wire.loop.call_soon(self.wire.hosts[packet.src].sockets.icmp_error, error)
        self.wire.loop.call_soon(self.wire.hosts[packet.src].poke)

    def run(self) -> None:
        self.poked = False
        self.sockets.handle_timer()
        if self.timer is not None:
            self.timer.cancel()
        at = self.sockets.get_timer()
        if at is not None:
            self.timer = self.wire.loop.call_at(at, self.run)

    def live(self) -> list[State]:
        """States of the TCP sockets that still hold resources."""
        return [row.tcp.state for row in self.sockets.sockets() if row.proto == "tcp"]


@pytest.fixture
async def wire():
    wire = Wire()
    wire.host(A)
    wire.host(B)
    yield wire
    for host in wire.hosts.values():
        host.sockets.close()
        if host.timer is not None:
            host.timer.cancel()
    await asyncio.sleep(0)


@pytest.fixture
def a(wire: Wire) -> Host:
    return wire.hosts[parse_ip(A)]


@pytest.fixture
def b(wire: Wire) -> Host:
    return wire.hosts[parse_ip(B)]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_streams_echo_and_close_in_order(a: Host, b: Host) -> None:
    server = await b.network.start_server(echo, None, 7)
    reader, writer = await a.network.open_connection(B, 7)
    assert writer.get_extra_info("peername") == (B, 7)
    assert writer.get_extra_info("sockname")[0] == A
    data = random.Random(1).randbytes(3_000_000)

    async def send() -> None:
        for start in range(0, len(data), 50_000):
            writer.write(data[start : start + 50_000])
            await writer.drain()
        writer.write_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        received = group.create_task(reader.read())
    assert received.result() == data
    writer.close()
    await writer.wait_closed()
    await until(lambda: b.live() == [State.LISTEN])
    assert a.live() == [State.TIME_WAIT]
    server.close()
    await server.wait_closed()


async def test_nobody_listening_is_connection_refused(a: Host) -> None:
    with pytest.raises(ConnectionRefusedError, match=r"Connect call failed \('10.2.2.2', 81\)"):
        await a.network.open_connection(B, 81)
    assert a.live() == []


async def test_icmp_unreachable_while_connecting_is_no_route_to_host(wire: Wire, a, b) -> None:
    def reject(packet: Packet) -> bool:
        if packet.proto == 6:
            b.refuse(packet, 3, 1)
        return False

    wire.filter = reject
    with pytest.raises(OSError, match="Connect call failed") as caught:
        await a.network.open_connection(B, 80)
    assert caught.value.errno == errno.EHOSTUNREACH


async def test_no_route_is_network_unreachable(a: Host) -> None:
    with pytest.raises(OSError, match="Network is unreachable") as caught:
        await a.network.open_connection("8.8.8.8", 80)
    assert caught.value.errno == errno.ENETUNREACH


async def test_binding_twice_or_to_a_foreign_address_is_refused(b: Host) -> None:
    server = await b.network.start_server(echo, None, 80)
    with pytest.raises(OSError, match="address already in use"):
        await b.network.start_server(echo, B, 80)
    with pytest.raises(OSError, match="cannot assign requested address"):
        await b.network.start_server(echo, A, 81)
    server.close()
    (await b.network.start_server(echo, B, 80)).close()


async def test_abort_is_connection_reset_at_the_other_end(a: Host, b: Host) -> None:
    accepted: list[asyncio.StreamWriter] = []
    await b.network.start_server(lambda r, w: accepted.append(w), None, 80)
    reader, _ = await a.network.open_connection(B, 80)
    await until(lambda: bool(accepted))
    accepted[0].transport.abort()
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_a_reader_that_pauses_makes_the_writer_pause_and_both_go_on(a, b) -> None:
    got = bytearray()
    transports: list[asyncio.Transport] = []

    class Slow(asyncio.Protocol):
        def connection_made(self, transport) -> None:
            transport.pause_reading()
            transports.append(transport)

        def data_received(self, data: bytes) -> None:
            got.extend(data)

    class Writer(asyncio.Protocol):
        paused = False
        lost: object = "not yet"

        def pause_writing(self) -> None:
            self.paused = True

        def resume_writing(self) -> None:
            self.paused = False

        def connection_lost(self, error: Exception | None) -> None:
            self.lost = error

    await b.network.create_server(Slow, None, 80)
    transport, writer = await a.network.create_connection(Writer, B, 80)
    data = random.Random(2).randbytes(3_000_000)
    transport.write(data)
    assert writer.paused
    await until(lambda: bool(transports))
    row = next(r.tcp for r in b.sockets.sockets() if r.tcp.state is State.ESTABLISHED)
    await until(lambda: b.sockets.sockets()[-1].tcp.receive_queue > 400_000)
    assert row.receive_queue < 600_000
    assert not got
    transports[0].resume_reading()
    await until(lambda: not writer.paused)
    transport.close()
    await until(lambda: len(got) == len(data))
    assert bytes(got) == data
    await until(lambda: writer.lost is None)


async def test_backlog_full_drops_further_syns(a: Host, b: Host) -> None:
    listener = b.sockets.tcp_listen(0, 80, backlog=2)
    clients = [a.sockets.tcp_connect(Endpoint(parse_ip(B), 80)) for _ in range(6)]
    await until(lambda: len(listener.accept_queue) == 2 and listener.overflows > 0)
    assert len(listener.accept_queue) <= 3
    for client in clients:
        client.abort()


async def test_names_resolve_through_hosts_then_resolver_then_fail(a: Host, b: Host) -> None:
    await b.network.start_server(echo, None, 7)
    a.network.hosts["web"] = [B]
    (await a.network.open_connection("web", 7))[1].close()

    async def resolver(name: str) -> list[str]:
        return [B] if name == "redis.default.svc" else []

    a.network.resolver = resolver
    (await a.network.open_connection("redis.default.svc", 7))[1].close()
    with pytest.raises(socket.gaierror, match="Name or service not known"):
        await a.network.open_connection("nowhere", 7)


async def test_loopback_connects_a_host_to_itself(a: Host) -> None:
    server = await a.network.start_server(echo, "127.0.0.1", 0)
    reader, writer = await a.network.open_connection("localhost", server.address[1])
    writer.write(b"x" * 1_000_000)
    writer.write_eof()
    assert len(await reader.read()) == 1_000_000
    writer.close()


async def test_a_protocol_that_raises_loses_its_own_connection_only(a: Host, b: Host) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    class Broken(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            raise ValueError("bug")

        def connection_lost(self, error: Exception | None) -> None:
            told.append(error)

    await b.network.create_server(Broken, None, 80)
    reader, writer = await a.network.open_connection(B, 80)
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert isinstance(told[1], ValueError)
    (await a.network.open_connection(B, 80))[1].close()


def tls_contexts(directory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a fresh certificate for ``web``, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("web")]), critical=False)
        .sign(key, hashes.SHA256())
    ).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "pem").write_bytes(secret + certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "pem")
    return server, ssl.create_default_context(cadata=certificate.decode())


async def test_tls_runs_over_the_emulated_transport(a: Host, b: Host, tmp_path) -> None:
    server, client = tls_contexts(tmp_path)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await writer.start_tls(server)
        except OSError:
            return  # the client did not trust us
        await echo(reader, writer)

    await b.network.start_server(serve, None, 443)
    a.network.hosts["web"] = [B]
    reader, writer = await a.network.open_connection("web", 443, ssl=client)
    writer.write(b"secret" * 50_000)
    assert await reader.readexactly(300_000) == b"secret" * 50_000
    writer.close()
    await writer.wait_closed()
    with pytest.raises(ssl.SSLCertVerificationError):
        await a.network.open_connection(B, 443, ssl=client)
    connector = StackConnector(a.network)
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get("https://web/")


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[tuple[bytes, tuple[str, int]]] = []
        self.errors: list[Exception] = []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.append((data, addr))
        if data.startswith(b"?"):
            self.transport.sendto(b"!" + data, addr)

    def error_received(self, error: Exception) -> None:
        self.errors.append(error)


async def test_datagrams_travel_both_ways(a: Host, b: Host) -> None:
    _, server = await b.network.create_datagram_endpoint(Datagrams, (B, 53))
    transport, client = await a.network.create_datagram_endpoint(Datagrams, remote_addr=(B, 53))
    transport.sendto(b"?name")
    await until(lambda: bool(client.got))
    assert client.got == [(b"!?name", (B, 53))]
    port = transport.get_extra_info("sockname")[1]
    assert server.got == [(b"?name", (A, port))]
    assert 32768 <= port <= 60999
    with pytest.raises(OSError, match="Address already in use"):
        await b.network.create_datagram_endpoint(Datagrams, (B, 53))


async def test_a_connected_datagram_socket_hears_of_a_closed_port(a: Host) -> None:
    transport, client = await a.network.create_datagram_endpoint(Datagrams, remote_addr=(B, 9))
    transport.sendto(b"x")
    await until(lambda: bool(client.errors))
    assert isinstance(client.errors[0], ConnectionRefusedError)


# -- aiohttp -------------------------------------------------------------------------------------


async def upload(request: web.Request) -> web.Response:
    size = 0
    async for chunk in request.content.iter_chunked(65536):
        size += len(chunk)
    return web.json_response({"size": size, "peer": request.remote})


async def download(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for number in range(50):
        await response.write(bytes([number]) * 40_000)
    await response.write_eof()
    return response


async def talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
    return socket


@pytest.fixture
async def site(b: Host):
    app = web.Application(client_max_size=10**8)
    gone = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(30)
        finally:
            gone.set()
        return web.Response()

    app.router.add_post("/upload", upload)
    app.router.add_get("/download", download)
    app.router.add_get("/talk", talk)
    app.router.add_get("/hang", hang)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await StackSite(runner, b.network, None, 80).start()
    yield gone
    await runner.cleanup()


async def test_http_keeps_alive_and_streams_both_ways(a: Host, b: Host, site) -> None:
    async with aiohttp.ClientSession(connector=StackConnector(a.network)) as session:
        body = random.Random(3).randbytes(5_000_000)
        for _ in range(2):
            async with session.post(f"http://{B}/upload", data=io.BytesIO(body)) as response:
                assert await response.json() == {"size": len(body), "peer": A}
        async with session.get(f"http://{B}/download") as response:
            assert response.headers["Transfer-Encoding"] == "chunked"
            assert await response.read() == b"".join(bytes([n]) * 40_000 for n in range(50))
        assert b.live().count(State.ESTABLISHED) == 1, "one kept-alive connection"


async def test_http_websocket(a: Host, site) -> None:
    async with (
        aiohttp.ClientSession(connector=StackConnector(a.network)) as session,
        session.ws_connect(f"http://{B}/talk") as talk,
    ):
        await talk.send_str("hello")
        assert await talk.receive_str() == "HELLO"


async def test_http_server_notices_a_client_that_went_away(a: Host, site) -> None:
    async with aiohttp.ClientSession(connector=StackConnector(a.network)) as session:
        with pytest.raises(TimeoutError):
            await session.get(f"http://{B}/hang", timeout=aiohttp.ClientTimeout(total=0.05))
        await asyncio.wait_for(site.wait(), 5)


async def test_a_port_beyond_all_ports_is_refused_at_once(a: Host) -> None:
    for attempt in (
        a.network.open_connection(B, 99999),
        a.network.create_server(asyncio.Protocol, None, 99999),
    ):
        with pytest.raises(OSError, match="port must be 0-65535"):
            await attempt


async def test_http_client_errors_are_aiohttps_own(a: Host) -> None:
    async with aiohttp.ClientSession(connector=StackConnector(a.network)) as session:
        with pytest.raises(aiohttp.ClientConnectorError, match="Cannot connect to host"):
            await session.get(f"http://{B}:81/")
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await session.get("http://nowhere/")


def test_addresses_print_as_given() -> None:
    assert format_ip(parse_ip(NOBODY)) == NOBODY
