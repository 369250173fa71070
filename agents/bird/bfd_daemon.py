"""BFD's shell: UDP sockets on a node's loopback address, one timer, one session a neighbour.

Addresses of neighbours are emulated; packets go to where ``resolve`` says.  Nothing here needs a
privilege.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final

from agents.bird.bfd import (
    MULTIHOP_PORT,
    SINGLE_HOP_PORT,
    BfdPacket,
    BfdPacketError,
    BfdSession,
)
from agents.bird.ctl.show_daemon import BfdRow
from agents.bird.events import BfdUnwanted, BfdWanted
from emulator.addr import format_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    import logging
    import random
    from collections.abc import Callable

    from agents.bird.events import Event

# RFC 5881 §5: sent with it, and over one hop received with nothing less.
TTL: Final = 255
# RFC 5881 §4: source ports are from this range.
SOURCE_PORTS: Final = range(49152, 65536)
_TRIES: Final = 64
# Neighbours of one node: as many as a mesh has nodes.  BIRD has no limit.
MAX_SESSIONS: Final = 4096
# The highest priority anybody may ask for; BIRD wants 7, which is root's.
PRIORITY: Final = 6
TOS_CONTROL: Final = 0xC0
_PACKET: Final = 128
_IP_RECVTTL: Final = 12
_INT: Final = struct.Struct("i")


class BfdDaemon:
    """Watches the neighbours a speaker asks for with ``BfdWanted``."""

    def __init__(
        self,
        host: str,
        rng: random.Random,
        log: logging.Logger,
        *,
        resolve: Callable[[int], str | None],
        name_of: Callable[[str], int | None],
        on_down: Callable[[int], None],
        ports: tuple[int, int] = (SINGLE_HOP_PORT, MULTIHOP_PORT),
        nic: str = "eth0",
    ) -> None:
        """``host`` is the address packets come from and go to; ``on_down`` hears of the dead.

        ``ports`` are those of one hop and of several, ``nic`` where neighbours of one hop are.
        """
        self._nic = nic
        self._host = host
        self._rng = rng
        self._log = log
        self._resolve = resolve
        self._name_of = name_of
        self._on_down = on_down
        self._ports = dict(zip((False, True), ports, strict=True))
        # By (neighbour, multihop), and by our discriminator.
        self._sessions: dict[tuple[int, bool], BfdSession] = {}
        self._by_number: dict[int, tuple[int, bool]] = {}
        self._users: dict[str, tuple[int, bool]] = {}
        self._listeners: dict[bool, socket.socket] = {}
        self._sender: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take the sockets; UsageError if a port is taken."""
        try:
            self._sender = self._make_sender()
            for multihop in self._ports:
                self._listen(multihop)
        except UsageError:
            self.close()
            raise

    # -- what the speaker asks for -----------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Follow the speaker's requests; other events are passed over."""
        match event:
            case BfdWanted(peer=peer, neighbor=neighbor, multihop=multihop):
                key = (neighbor, multihop)
                self._users[peer] = key
                if key not in self._sessions and len(self._sessions) < MAX_SESSIONS:
                    number = self._new_number()
                    now = asyncio.get_running_loop().time()
                    self._sessions[key] = BfdSession(number, event.options, self._rng, now=now)
                    self._by_number[number] = key
            case BfdUnwanted(peer=peer):
                unwanted = self._users.pop(peer, None)
                if unwanted is not None and unwanted not in self._users.values():
                    session = self._sessions.pop(unwanted, None)
                    if session is not None:
                        del self._by_number[session.discriminator]
            case _:
                return
        self._after_input()

    def _new_number(self) -> int:
        while True:
            number = self._rng.randrange(1, 1 << 32)
            if number not in self._by_number:
                return number

    def rows(self) -> tuple[BfdRow, ...]:
        """For ``show bfd sessions``."""
        return tuple(
            BfdRow(
                format_ip(neighbor),
                "" if multihop else self._nic,
                session.state.text,
                session.since,
                session.interval_s,
                session.timeout_s,
            )
            for (neighbor, multihop), session in self._sessions.items()
        )

    def close(self) -> None:
        """Give the sockets back; neighbours are not told, as the end of BGP tells them."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        for listener in self._listeners.values():
            loop.remove_reader(listener)
            listener.close()
        if self._sender is not None:
            self._sender.close()
        self._sessions.clear()
        self._by_number.clear()

    # -- sockets -----------------------------------------------------------------------------------

    def _listen(self, multihop: bool) -> None:
        port = self._ports[multihop]
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
            listener.bind((self._host, port))
        except OSError as error:
            listener.close()
            raise UsageError(
                f"BFD cannot listen on {self._host}:{port}: {error.strerror or error}"
            ) from None
        self._listeners[multihop] = listener
        asyncio.get_running_loop().add_reader(listener, self._readable)

    def _make_sender(self) -> socket.socket:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.setblocking(False)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS_CONTROL)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                sender.bind((self._host, self._rng.choice(SOURCE_PORTS)))
                return sender
        sender.close()
        raise UsageError(f"BFD finds no free port of {self._host} to send from")

    def _readable(self) -> None:
        self._read_all()
        self._after_input()

    def _read_all(self) -> None:
        now = asyncio.get_running_loop().time()
        for multihop, listener in self._listeners.items():
            while True:
                try:
                    data, ancillary, _, address = listener.recvmsg(_PACKET, 64)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    # An ICMP error of something sent earlier.
                    self._log.debug("bfd: %s", error)
                    continue
                if multihop or _ttl(ancillary) == TTL:
                    self._received(data, address[0], multihop, now)

    def _received(self, data: bytes, host: str, multihop: bool, now: float) -> None:
        try:
            packet = BfdPacket.parse(data)
        except BfdPacketError as error:
            self._log.debug("bfd: from %s: %s", host, error)
            return
        key = self._by_number.get(packet.your_discriminator)
        if not packet.your_discriminator:
            try:
                neighbor = self._name_of(host)
            except UsageError:
                neighbor = None
            key = (neighbor, multihop) if neighbor is not None else None
        session = self._sessions.get(key) if key is not None else None
        if session is not None and key is not None and key[1] is multihop:
            session.receive(packet, now=now)

    # -- turns -------------------------------------------------------------------------------------

    def _after_input(self) -> None:
        failed = [key for key, session in self._sessions.items() if session.failed]
        for (neighbor, multihop), session in list(self._sessions.items()):
            for data in session.datagrams_to_send():
                self._send(neighbor, multihop, data)
        for key in failed:
            self._sessions[key].failed = False
        self._arm()
        for neighbor, _ in failed:
            self._log.info("bfd: session to %s down", format_ip(neighbor))
            self._on_down(neighbor)

    def _send(self, neighbor: int, multihop: bool, data: bytes) -> None:
        host = self._resolve(neighbor)
        if host is None or self._sender is None:
            return
        # A full buffer or a refused port is a lost packet, which is what BFD is about.
        with contextlib.suppress(OSError):
            self._sender.sendto(data, (host, self._ports[multihop]))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        timers = [session.get_timer() for session in self._sessions.values()]
        due = [at for at in timers if at is not None]
        if due:
            self._timer = asyncio.get_running_loop().call_at(min(due), self._fire)

    def _fire(self) -> None:
        self._timer = None
        # A loop that was busy elsewhere must not take its own delay for the neighbour's.
        self._read_all()
        now = asyncio.get_running_loop().time()
        for session in self._sessions.values():
            at = session.get_timer()
            if at is not None and at <= now:
                session.handle_timer(now=now)
        self._after_input()


def _ttl(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IP and kind == socket.IP_TTL:
            return int(_INT.unpack_from(value)[0])
    return 0
