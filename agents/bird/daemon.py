"""The shell around ``Speaker``: sockets, one timer, one queue of turns; no decisions.

Every input goes to the core with the loop's time, then everything the core wants is done: bytes are
written, connections dialled and closed, the timer set again.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from agents.bird.events import Dial, Event, HangUp, PeerListChanged, ProtocolLogged
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.runtime.listener import BACKLOG

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from agents.bird.config import SpeakerConfig
    from agents.bird.speaker import Speaker

# linux/tcp.h and linux/in.h; Python's socket module has no names for these.
TCP_MD5SIG: Final = 14
IP_MINTTL: Final = 21
# DSCP class selector 6, what routers mark BGP with (RFC 4271 says nothing, BIRD sets it).
TOS_CONTROL: Final = 0xC0
# A peer that does not take the last message does not hold the socket longer.
CLOSE_S: Final = 5.0
# The send buffer beyond which routes wait as names, not as bytes; BIRD has 64 KiB per socket.
HIGH_WATER: Final = 1 << 20
# Connections that wait for their peer's configuration: as many as a route reflector has clients
# that all start at once.
MAX_STRANGERS: Final = 1024
# Received at once: about 50,000 prefixes, 10 ms of thinking.
READ_SIZE: Final = 256 * 1024

Address = tuple[str, int]


def _reason(error: OSError | None) -> str:
    """strerror's words, "" for a plain end."""
    if error is None:
        return ""
    if isinstance(error, TimeoutError):
        return "Connection timed out"
    inner = getattr(error, "errno", None)
    if inner is not None:
        return os.strerror(inner)
    return str(error)


def set_md5(sock: socket.socket, peer: str, key: str) -> None:
    """Sign and check TCP segments to and from one address (RFC 2385); "" takes the key away."""
    octets = key.encode()
    address = struct.pack("=HH4s120x", socket.AF_INET, 0, socket.inet_aton(peer))
    value = address + struct.pack("=BBHi80s", 0, 0, len(octets), 0, octets)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, value)


def set_ttl(sock: socket.socket, ttl: int, min_ttl: int) -> None:
    """The TTL to send with and the least one to accept (RFC 5082)."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    if min_ttl:
        sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, min_ttl)


class BirdDaemon:
    """Runs one speaker on real (or simulated) TCP.

    ``resolve`` gives the socket address of an emulated neighbour, None while it is not known;
    ``name_of`` the emulated address of whoever connected from a host address.  Both default to
    taking addresses as they are.
    """

    def __init__(
        self,
        speaker: Speaker,
        log: logging.Logger,
        *,
        listen: Address | socket.socket | None,
        resolve: Callable[[int], Address | None] | None = None,
        name_of: Callable[[str], int | None] | None = None,
        local_host: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """``local_host`` is the host address dialled connections come from.

        ``listen`` may be a socket that listens already.  Who connects before the configuration
        knows of it waits ``patience_s`` for that instead of being sent away, as BIRD does: two
        nodes learn of each other at different moments.
        """
        self.speaker = speaker
        self.listen_address = listen
        self._patience_s = patience_s
        self._strangers: dict[_Wire, str] = {}
        self._log = log
        self._resolve = resolve or self._as_it_is
        self._name_of = name_of or parse_ip
        self._local_host = local_host
        self._on_event = on_event
        self._server: asyncio.Server | None = None
        # At the port of the configuration, where that is not the one of ``listen``.
        self._second: asyncio.Server | None = None
        self._wires: dict[int, _Wire] = {}
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._keyed: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._working = False
        self._stopped: asyncio.Event = asyncio.Event()
        self._sought: dict[asyncio.Future[Address], int] = {}
        self._failure: BaseException | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop everything runs on."""
        return asyncio.get_running_loop()

    def _as_it_is(self, ip: int) -> Address:
        return format_ip(ip), self.speaker.config.listen_port

    # Life

    async def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until cancelled or shut down; the peers then hear Cease.

        Raises OSError if the listening address cannot be bound.
        """
        try:
            if self.listen_address is not None:
                await self._start_server(self.listen_address)
            self.after_input()
            if ready is not None:
                ready()
            await self._stopped.wait()
            if self._failure is not None:
                raise self._failure
        finally:
            await self._close()

    async def _start_server(self, where: Address | socket.socket) -> None:
        if isinstance(where, socket.socket):
            self._server = await self.loop.create_server(
                lambda: _Wire(self, None), sock=where, backlog=BACKLOG
            )
        else:
            self._server = await self.loop.create_server(
                lambda: _Wire(self, None), *where, reuse_address=True, backlog=BACKLOG
            )
        self._update_keys()

    async def listen_also(self, where: socket.socket | None) -> None:
        """Take connections at a second listening socket, instead of the last such one."""
        if self._second is not None:
            self._second.close()
            self._second = None
        if where is not None:
            self._second = await self.loop.create_server(
                lambda: _Wire(self, None), sock=where, backlog=BACKLOG
            )
            self._keyed = {}
            self._update_keys()

    def _listeners(self) -> list[socket.socket]:
        """The real listening sockets; none in a simulated world."""
        servers = (self._server, self._second)
        return [sock for server in servers for sock in getattr(server, "sockets", ())]

    @property
    def port(self) -> int:
        """The port that was bound."""
        assert self._server is not None
        return cast("int", self._server.sockets[0].getsockname()[1])

    def ports(self, number: int) -> tuple[int, int]:
        """Our TCP port and the peer's of a connection; 0 for one that is gone or simulated."""
        wire = self._wires.get(number)
        sock = wire.socket if wire is not None else None
        if sock is None:
            return 0, 0
        try:
            return sock.getsockname()[1], sock.getpeername()[1]
        except OSError:
            return 0, 0

    @property
    def strangers(self) -> int:
        """How many wait for their peer's configuration."""
        return len(self._strangers)

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.speaker.is_stopping:
            self.speaker.shut_down(now=self.loop.time())
        self._drain()
        for task in self._dials.values():
            task.cancel()
        await asyncio.gather(*self._dials.values(), return_exceptions=True)
        for server in (self._server, self._second):
            if server is not None:
                server.close()
        wires = [*self._wires.values(), *self._strangers]
        self._strangers.clear()
        for wire in wires:
            wire.hang_up()
        if wires:
            # Farewells are small: one turn of the loop sends them unless the peer reads nothing.
            await asyncio.sleep(0)
        for wire in wires:
            wire.abort_if_open()

    def shut_down(self, text: str = "") -> None:
        """``down``."""
        self.speaker.shut_down(now=self.loop.time(), text=text)
        self.after_input()
        self._stopped.set()

    def leave_for_restart(self) -> None:
        """``graceful restart``: leave without a farewell."""
        self.speaker.leave_for_restart(now=self.loop.time())
        self._stopped.set()

    def configure(self, config: SpeakerConfig) -> None:
        """Put another configuration in force."""
        self.speaker.configure(config, now=self.loop.time())
        self.after_input()

    # Turns

    def after_input(self) -> None:
        """Do what the core wants now; to be called after any call of ``speaker``."""
        self._drain()
        self._arm()
        if not self._working and self.speaker.has_work:
            self._working = True
            self.loop.call_soon(self._work)

    def _work(self) -> None:
        self._working = False
        self.do(lambda: self.speaker.work(now=self.loop.time()))

    def do(self, what: Callable[[], object]) -> None:
        """Tell the core something and do what it wants then.

        A bug of the core must not end as a line in the loop's log and a session that hangs: it ends
        ``run`` with the error, and whoever supervises the daemon starts it anew.
        """
        try:
            what()
            self.after_input()
        except Exception as error:
            self._failure = error
            self._stopped.set()

    def _drain(self) -> None:
        speaker = self.speaker
        while True:
            for number, data in speaker.data_to_send():
                wire = self._wires.get(number)
                if wire is not None:
                    wire.write(data)
            event = speaker.next_event()
            if event is None:
                return
            match event:
                case Dial():
                    self._dial(event)
                case HangUp(number):
                    self._hang_up(number)
                case PeerListChanged():
                    self._update_keys()
                    if self._strangers:
                        self.loop.call_soon(self._ask_strangers)
                case ProtocolLogged(protocol, text):
                    self._log.info("%s: %s", protocol, text)
            if self._on_event is not None:
                self._on_event(event)

    def _arm(self) -> None:
        at = self.speaker.get_timer()
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at is not None:
            self._timer = self.loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = self._timer_at = None
        self.do(lambda: self.speaker.handle_timer(now=self.loop.time()))

    # Connections

    def _dial(self, dial: Dial) -> None:
        task = self.loop.create_task(self._connect(dial), name=f"bgp.dial.{dial.connection}")
        self._dials[dial.connection] = task

    async def _connect(self, dial: Dial) -> None:
        number = dial.connection
        try:
            wire = await self._open(dial)
        except OSError as error:
            reason = _reason(error) or "Connection refused"
            self.do(lambda: self.speaker.connection_lost(number, reason, now=self.loop.time()))
            return
        finally:
            self._dials.pop(number, None)
        self._wires[number] = wire
        self.do(lambda: self.speaker.connected(number, now=self.loop.time()))

    async def _address_of(self, neighbor: int) -> Address:
        """Where a neighbour is; waits for one nobody knows, as a SYN to it would.

        The connect retry timer ends the wait.
        """
        address = self._resolve(neighbor)
        if address is not None:
            return address
        found: asyncio.Future[Address] = self.loop.create_future()
        self._sought[found] = neighbor
        try:
            return await found
        finally:
            del self._sought[found]

    def addresses_changed(self) -> None:
        """``resolve`` and ``name_of`` may answer otherwise now."""
        for found, neighbor in self._sought.items():
            address = self._resolve(neighbor)
            if address is not None and not found.done():
                found.set_result(address)
        self._update_keys()
        self._ask_strangers()

    async def _open(self, dial: Dial) -> _Wire:
        loop = self.loop
        host, port = await self._address_of(dial.neighbor)
        if dial.port is not None:
            port = dial.port
        if not isinstance(loop, asyncio.SelectorEventLoop) or getattr(loop, "fabric", None):
            _, wire = await loop.create_connection(lambda: _Wire(self, dial.connection), host, port)
            return wire
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            set_ttl(sock, dial.ttl, dial.min_ttl)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS_CONTROL)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if dial.password:
                set_md5(sock, host, dial.password)
            local = self._local_host
            if local is None and self._resolve == self._as_it_is:
                local = format_ip(dial.source_address)
            if local is not None:
                sock.bind((local, 0))
            await loop.sock_connect(sock, (host, port))
            _, wire = await loop.create_connection(lambda: _Wire(self, dial.connection), sock=sock)
        except BaseException:
            sock.close()
            raise
        return wire

    def _hang_up(self, number: int) -> None:
        task = self._dials.pop(number, None)
        if task is not None:
            task.cancel()
        wire = self._wires.pop(number, None)
        if wire is not None:
            wire.hang_up()

    def _accepted(self, wire: _Wire, host: str) -> int | None:
        try:
            neighbor = self._name_of(host)
        except UsageError:
            neighbor = None
        if neighbor is None:
            self._log.info("Unexpected connect from unknown address %s", host)
            return None
        if self._patience_s and not self.speaker.has_neighbor(neighbor):
            self._let_wait(wire, host)
            return None
        number = self.speaker.accepted(neighbor, now=self.loop.time())
        if number is not None:
            self._wires[number] = wire
            self._protect(wire, neighbor)
        return number

    def _let_wait(self, wire: _Wire, host: str) -> None:
        """Keep a connection nobody knows until somebody does, or for as long as patience lasts."""
        if len(self._strangers) >= MAX_STRANGERS or wire in self._strangers:
            return
        self._strangers[wire] = host
        self.loop.call_later(self._patience_s, self._send_away, wire)

    def _send_away(self, wire: _Wire) -> None:
        host = self._strangers.pop(wire, None)
        if host is not None:
            self._log.info("Unexpected connect from unknown address %s", host)
            wire.abort()

    def _ask_strangers(self) -> None:
        """Take in those whose peer is known by now."""
        for wire, host in list(self._strangers.items()):
            neighbor = self._name_of(host)
            if neighbor is not None and self.speaker.has_neighbor(neighbor):
                del self._strangers[wire]
                self.do(functools.partial(wire.accept, host))

    def _protect(self, wire: _Wire, neighbor: int) -> None:
        """Give an accepted connection its TTL rules."""
        sock = wire.socket
        if sock is None:
            return
        for peer in self.speaker.peers_at(neighbor):
            ttl, min_ttl = peer.ttl
            set_ttl(sock, ttl, min_ttl)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return

    def _update_keys(self) -> None:
        """What neighbours want of the listening socket: a key for each password, TTL security."""
        if not self._listeners():
            return
        if any(peer.config.ttl_security for peer in self.speaker.peers.values()):
            # A peer with TTL security ignores a handshake that does not come with 255.
            for listener in self._listeners():
                listener.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        wanted: dict[str, str] = {}
        for peer in self.speaker.peers.values():
            address = self._resolve(peer.config.neighbor) if peer.config.password else None
            if address is not None:
                wanted[address[0]] = peer.config.password
        if wanted == self._keyed:
            return
        for listener in self._listeners():
            for host in self._keyed:
                if host not in wanted:
                    set_md5(listener, host, "")
            for host, key in wanted.items():
                set_md5(listener, host, key)
        self._keyed = wanted


class _Wire(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self, daemon: BirdDaemon, number: int | None) -> None:
        self._daemon = daemon
        self._number = number
        self._transport: asyncio.Transport | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._dialled = number is not None

    @property
    def socket(self) -> socket.socket | None:
        """The real socket, None in a simulated world."""
        assert self._transport is not None
        found = self._transport.get_extra_info("socket")
        return found if hasattr(found, "setsockopt") else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        if hasattr(self._transport, "max_size"):
            self._transport.max_size = READ_SIZE
        if self._dialled:
            return
        host = transport.get_extra_info("peername")[0]
        self._daemon.do(lambda: self.accept(host))

    def accept(self, host: str) -> None:
        """Become a peer's connection, or wait to, or end."""
        assert self._transport is not None
        self._number = self._daemon._accepted(self, host)
        if self._number is not None:
            if not self._transport.is_reading():
                self._transport.resume_reading()
        elif self in self._daemon._strangers:
            self._transport.pause_reading()
        else:
            self._transport.abort()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._number is not None and self._closing is None:
            daemon, number = self._daemon, self._number
            daemon.do(lambda: daemon.speaker.receive_data(number, data, now=daemon.loop.time()))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        number, self._number = self._number, None
        if number is None:
            self._daemon._strangers.pop(self, None)
            return
        daemon = self._daemon
        daemon._wires.pop(number, None)
        reason = _reason(exc if isinstance(exc, OSError) else None)
        daemon.do(lambda: daemon.speaker.connection_lost(number, reason, now=daemon.loop.time()))

    def pause_writing(self) -> None:
        self._congested(True)

    def resume_writing(self) -> None:
        self._congested(False)

    def _congested(self, congested: bool) -> None:
        daemon, number = self._daemon, self._number
        if number is None:
            return
        if congested:
            # The transport says so in the middle of a write: what follows is under way already.
            daemon.speaker.set_congested(number, True, now=daemon.loop.time())
        else:
            daemon.do(lambda: daemon.speaker.set_congested(number, False, now=daemon.loop.time()))

    def write(self, data: bytes) -> None:
        """Send; nothing if it is closing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hang_up(self) -> None:
        """Close after what was written is sent, but do not wait for ever."""
        self._number = None
        if self._transport is not None and self._closing is None:
            self._closing = self._daemon.loop.call_later(CLOSE_S, self._transport.abort)
            self._transport.close()

    def abort_if_open(self) -> None:
        """Close at once what is still there."""
        if self._closing is not None:
            self._closing.cancel()
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._transport.abort()
