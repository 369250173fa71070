"""The shell around ``Speaker``: sockets, one timer, one queue of turns; no decisions.

Every input goes to the core with the loop's time, then everything the core wants is done: bytes are
written, connections dialled and closed, the timer set again.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING, cast

from agents.bird.events import Dial, Event, HangUp, PeerListChanged, ProtocolLogged
from agents.bird.strangers import Strangers
from agents.bird.tcp import dial_tcp, protect_accepted, reason_of, set_md5
from agents.bird.wire import Wire
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.runtime.listener import BACKLOG

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from agents.bird.config import SpeakerConfig
    from agents.bird.speaker import Speaker

Address = tuple[str, int]


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
        # The loop everything runs on: to be made on it.
        self.loop = asyncio.get_running_loop()
        self.listen_address = listen
        self._strangers = Strangers(patience_s, log)
        self._log = log
        self._resolve = resolve or self._as_it_is
        self._name_of = name_of or parse_ip
        self._local_host = local_host
        self._on_event = on_event
        self._server: asyncio.Server | None = None
        # At the port of the configuration, where that is not the one of ``listen``.
        self._second: asyncio.Server | None = None
        self._wires: dict[int, Wire] = {}
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._keyed: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._working = False
        self._after_is_due = False
        self._stopped: asyncio.Event = asyncio.Event()
        self._is_closed = False
        self._sought: dict[asyncio.Future[Address], int] = {}
        self._failure: BaseException | None = None

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
                lambda: Wire(self, None), sock=where, backlog=BACKLOG
            )
        else:
            self._server = await self.loop.create_server(
                lambda: Wire(self, None), *where, reuse_address=True, backlog=BACKLOG
            )
        self._update_keys()

    async def listen_also(self, where: socket.socket | None) -> None:
        """Take connections at a second listening socket, instead of the last such one."""
        if self._second is not None:
            self._second.close()
            self._second = None
        if where is not None:
            self._second = await self.loop.create_server(
                lambda: Wire(self, None), sock=where, backlog=BACKLOG
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
        try:
            if not self.speaker.is_stopping:
                self.speaker.shut_down(now=self.loop.time())
            self._drain()
        finally:
            # What ended the daemon may end this, too; the next life needs the port all the same,
            # and a kernel that nothing of this one touches any more.
            self._is_closed = True
            await self._close_sockets()

    async def _close_sockets(self) -> None:
        for server in (self._server, self._second):
            if server is not None:
                server.close()
        for task in self._dials.values():
            task.cancel()
        await asyncio.gather(*self._dials.values(), return_exceptions=True)
        wires = [*self._wires.values(), *self._strangers.release_all()]
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
        if self._is_closed:
            return
        self._drain()
        self._arm()
        if not self._working and self.speaker.has_work:
            self._working = True
            self.loop.call_soon(self._work)

    def _work(self) -> None:
        self._working = False
        self.do(lambda: self.speaker.work(now=self.loop.time()))

    def do(self, what: Callable[[], object]) -> None:
        """Tell the core something and do what it wants when all that has come was told.

        A bug of the core must not end as a line in the loop's log and a session that hangs: it ends
        ``run`` with the error, and whoever supervises the daemon starts it anew.
        """
        try:
            what()
        except Exception as error:
            self._fail(error)
            return
        if not self._after_is_due:
            self._after_is_due = True
            self.loop.call_soon(self._after)

    def _after(self) -> None:
        self._after_is_due = False
        try:
            self.after_input()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._stopped.set()

    def _drain(self) -> None:
        speaker = self.speaker
        while True:
            for number, data in speaker.data_to_send():
                wire = self._wires.get(number)
                if wire is not None:
                    wire.write(data)
            # Those of now only: what follows from them has words of its own to be sent first.
            events = speaker.take_events()
            if not events:
                return
            for event in events:
                self._act(event)

    def _act(self, event: Event) -> None:
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
                self._log.info("%s%s", f"{protocol}: " if protocol else "", text)
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
            reason = reason_of(error) or "Connection refused"
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

    async def _open(self, dial: Dial) -> Wire:
        loop = self.loop
        host, port = await self._address_of(dial.neighbor)
        if dial.port is not None:
            port = dial.port
        if not isinstance(loop, asyncio.SelectorEventLoop) or getattr(loop, "fabric", None):
            _, wire = await loop.create_connection(lambda: Wire(self, dial.connection), host, port)
            return wire
        local = self._local_host
        if local is None and self._resolve == self._as_it_is:
            local = format_ip(dial.source_address)
        sock = await dial_tcp(dial, (host, port), local)
        try:
            _, wire = await loop.create_connection(lambda: Wire(self, dial.connection), sock=sock)
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

    # WireOwner

    def accepted(self, wire: Wire, host: str) -> int | None:
        """Somebody connected: the connection's number; None to let it wait or go."""
        try:
            neighbor = self._name_of(host)
        except UsageError:
            neighbor = None
        if neighbor is None:
            self._log.info("Unexpected connect from unknown address %s", host)
            return None
        if self._strangers.are_welcome and not self.speaker.has_neighbor(neighbor):
            self._strangers.take(wire, host, self.loop)
            return None
        number = self.speaker.accepted(neighbor, now=self.loop.time(), port=wire.peer_port)
        if number is not None:
            self._wires[number] = wire
            self._protect(wire, neighbor)
        return number

    def is_stranger(self, wire: Wire) -> bool:
        """True while the connection waits for its peer to become known."""
        return wire in self._strangers

    def gone(self, wire: Wire, number: int | None) -> None:
        """The connection is over."""
        self._strangers.release(wire)
        if number is not None:
            self._wires.pop(number, None)

    def _ask_strangers(self) -> None:
        """Take in those whose peer is known by now."""
        for wire, host in self._strangers.waiting():
            neighbor = self._name_of(host)
            if neighbor is not None and self.speaker.has_neighbor(neighbor):
                self._strangers.release(wire)
                self.do(functools.partial(wire.accept, host))

    def _protect(self, wire: Wire, neighbor: int) -> None:
        """Give an accepted connection its TTL rules."""
        sock = wire.socket
        if sock is None:
            return
        for peer in self.speaker.peers_at(neighbor):
            protect_accepted(sock, *peer.ttl)
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
