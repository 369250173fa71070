"""The driver of one node's kernel: its clock, its timers, and the real sockets of its NIC.

``KernelDriver`` runs any kernel on an event loop; ``UnderlayDriver`` adds the underlay: VXLAN
datagrams on the node's port 8472, everything else that crosses the emulated physical network as
whole IPv4 packets on its carrier port.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from emulator.addr import format_ip
from emulator.errors import UsageError
from emulator.runtime.underlay_socket import UnderlaySocket

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence

    from emulator.runtime.underlay_socket import Address

VXLAN_PORT: Final = 8472  # the Linux kernel's default, not IANA's 4789
CARRIER_PORT: Final = 8473
# Sockets VXLAN is sent from, so that flows differ in their outer source port (RFC 7348 section 5)
# as on a real network; more would only cost file descriptors.
SOURCE_SOCKETS: Final = 4
# Times to look for that many free consecutive ports; each loopback address has its own 28,000.
SOURCE_PORT_TRIES: Final = 100
# What is taken from one socket in one turn of the loop.  The bytes matter more: ACKs go out once a
# turn, and a sender whose whole window (512 KiB) is taken in one turn has nothing to do meanwhile.
MAX_RECEIVES_PER_TURN: Final = 64
MAX_BYTES_PER_TURN: Final = 128 * 1024


class Egress(Protocol):
    """What leaves the node through its NIC; see ARCHITECTURE.md, "The kernel"."""

    @property
    def dst_ip(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def segment_size(self) -> int: ...
    @property
    def src_port(self) -> int: ...


class UnderlayEdge(Protocol):
    """The emulated NIC, as the driver sees it."""

    @property
    def egress(self) -> MutableSequence[Any]:
        """What waits to leave (``Egress``); whoever takes it clears it."""

    def receive_vxlan(
        self, src_ip: int, src_port: int, payload: bytes, segment_size: int
    ) -> None: ...

    def receive_carrier(self, payload: bytes, segment_size: int) -> None: ...

    def peer_set(self, ip: int, mac: bytes) -> None: ...

    def peer_del(self, ip: int) -> None: ...


class TimedKernel(Protocol):
    """What a driver needs of a kernel."""

    on_work: Callable[[], None]

    def get_timer(self) -> float | None: ...

    def handle_timer(self) -> None: ...


class Peer(NamedTuple):
    """Where another node's emulated address really lives."""

    ip: int
    vxlan: Address
    carrier: Address


class UnderlayCounters(NamedTuple):
    """Datagrams, and what was dropped and why."""

    sent: int
    received: int
    send_drops: int  # the kernel's buffer and our queue were full, or the send failed
    unknown_peer_sent: int  # no peer is set for the destination
    unknown_peer_received: int  # from a host that is no peer
    last_error: str


class KernelDriver:
    """Runs a kernel's timers on an event loop, and hands on what leaves it."""

    def __init__(
        self,
        kernel: TimedKernel,
        *,
        loop: asyncio.AbstractEventLoop,
        drain: Callable[[], None] | None = None,
    ) -> None:
        """``drain`` is called after each turn of work, to carry away what the NIC collected."""
        self._kernel = kernel
        self._loop = loop
        self._drain = drain
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._scheduled = False
        self._inside = False
        self._running = False

    def start(self) -> None:
        """Take the kernel over."""
        self._running = True
        self._kernel.on_work = self.wake
        self.wake()

    def stop(self) -> None:
        """Let the kernel rest: no timer fires any more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """Have the kernel looked after in this turn of the loop, once for however many calls."""
        if not self._scheduled and not self._inside and self._running:
            self._scheduled = True
            self._loop.call_soon(self.run)

    def _fire(self) -> None:
        self._timer = None
        self.run()

    def run(self) -> None:
        """Do everything that is due now."""
        self._scheduled = False
        if not self._running:
            return
        kernel = self._kernel
        self._inside = True  # what wakes us now is looked at before we leave
        try:
            at = kernel.get_timer()
            if at is not None and at <= self._loop.time():
                kernel.handle_timer()
            if self._drain is not None:
                self._drain()
            at = kernel.get_timer()
        finally:
            self._inside = False
        if at is None:
            return
        if at <= self._loop.time():
            self.wake()
            return
        # A timer that is armed too early only finds nothing to do; re-arming costs more.
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._fire)


class UnderlayDriver:
    """A node's kernel joined to the real network by UDP sockets on ``host``."""

    def __init__(
        self,
        kernel: TimedKernel,
        device: UnderlayEdge,
        host: str,
        *,
        vxlan_port: int = VXLAN_PORT,
        carrier_port: int = CARRIER_PORT,
        loop: asyncio.AbstractEventLoop | None = None,
        offload: bool = True,
        shared_host: bool = False,
    ) -> None:
        """``host`` is the node's underlay address; port 0 takes a free one.

        ``shared_host`` is for hosts with one loopback address: nodes are told apart by their ports,
        so VXLAN leaves from the port it comes in on.  ``offload`` False does without UDP_SEGMENT
        and UDP_GRO even where the kernel has them.
        """
        self._device = device
        self._host = host
        self._ports = (vxlan_port, carrier_port)
        self._loop = loop or asyncio.get_running_loop()
        self._offload = offload
        self._driver = KernelDriver(kernel, loop=self._loop, drain=self._send_egress)
        self._peers: dict[int, Peer] = {}
        self._shared = shared_host
        # Where a peer's datagrams come from: its host, or its two ports where hosts are shared.
        self._origins: dict[str | Address, int] = {}
        self._vxlan: UnderlaySocket | None = None
        self._carrier: UnderlaySocket | None = None
        self._sources: list[UnderlaySocket] = []
        self._by_port: dict[int, UnderlaySocket] = {}
        self._sockets: list[UnderlaySocket] = []
        self._unknown_sent = 0
        self._unknown_received = 0

    async def start(self) -> None:
        """Bind the sockets and take the kernel over; OSError if a port is taken."""
        try:
            self._vxlan = self._open(self._ports[0])
            self._carrier = self._open(self._ports[1])
            self._sources = [self._vxlan] if self._shared else self._open_sources()
        except OSError:
            await self.close()
            raise
        self._by_port = {sock.address[1]: sock for sock in self._sources}
        self._loop.add_reader(self._vxlan.fileno(), self._read_vxlan, self._vxlan)
        self._loop.add_reader(self._carrier.fileno(), self._read_carrier, self._carrier)
        self._driver.start()

    def _open(self, port: int) -> UnderlaySocket:
        sock = UnderlaySocket((self._host, port), offload=self._offload)
        self._sockets.append(sock)
        return sock

    def _open_sources(self) -> list[UnderlaySocket]:
        """Bind consecutive ports: a vxlan device is told a range (``srcport``)."""
        for _ in range(SOURCE_PORT_TRIES):
            opened = len(self._sockets)
            first = self._open(0).address[1]
            try:
                for step in range(1, SOURCE_SOCKETS):
                    self._open(first + step)
            except (OSError, OverflowError):
                for sock in self._sockets[opened:]:
                    sock.close()
                del self._sockets[opened:]
                continue
            return self._sockets[opened:]
        raise OSError(
            errno.EADDRINUSE,
            f"no {SOURCE_SOCKETS} consecutive free UDP ports at {self._host} for VXLAN to be "
            f"sent from",
        )

    async def close(self) -> None:
        """Stop the kernel's timers and close the sockets."""
        self._driver.stop()
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        self._sockets.clear()
        self._by_port.clear()
        self._sources.clear()
        self._vxlan = self._carrier = None

    # -- what others need to know ---------------------------------------------------------------

    @property
    def vxlan_port(self) -> int:
        """The port VXLAN comes in on."""
        assert self._vxlan is not None, "start() first"
        return self._vxlan.address[1]

    @property
    def carrier_port(self) -> int:
        """The port whole IPv4 packets come in on."""
        assert self._carrier is not None, "start() first"
        return self._carrier.address[1]

    @property
    def source_ports(self) -> tuple[int, int]:
        """First and last of the ports VXLAN really leaves from: a vxlan device's ``srcport``."""
        return min(self._by_port), max(self._by_port)

    @property
    def offload(self) -> tuple[bool, bool]:
        """Whether this kernel has UDP_SEGMENT and UDP_GRO."""
        assert self._vxlan is not None, "start() first"
        return self._vxlan.gso, self._vxlan.gro

    def counters(self) -> UnderlayCounters:
        """A snapshot."""
        return UnderlayCounters(
            sum(sock.sent_datagrams for sock in self._sockets),
            sum(sock.received_datagrams for sock in self._sockets),
            sum(sock.send_drops for sock in self._sockets),
            self._unknown_sent,
            self._unknown_received,
            next((sock.last_error for sock in self._sockets if sock.last_error), ""),
        )

    def wake(self) -> None:
        """Have the kernel looked after soon (a change from outside may have made work)."""
        self._driver.wake()

    # -- peers ---------------------------------------------------------------------------------

    def set_peer(
        self,
        ip: int,
        host: str,
        vxlan_port: int = VXLAN_PORT,
        carrier_port: int = CARRIER_PORT,
        *,
        mac: bytes | None = None,
    ) -> None:
        """Say where the node with the emulated address ``ip`` really lives.

        With ``mac`` the emulated segment also answers ARP for it.  UsageError where another peer
        already has that underlay host (or port, where the host is shared): VXLAN's source port is
        free, so the host must tell them apart.
        """
        peer = Peer(ip, (host, vxlan_port), (host, carrier_port))
        for origin in self._origins_of(peer):
            known = self._origins.get(origin)
            if known is not None and known != ip:
                raise UsageError(
                    f"underlay host {host} already belongs to {format_ip(known)}, "
                    f"not to {format_ip(ip)}: every node needs an underlay address of its own"
                )
        self.del_peer(ip)
        self._origins.update(dict.fromkeys(self._origins_of(peer), ip))
        self._peers[ip] = peer
        if mac is not None:
            self._device.peer_set(ip, mac)

    def del_peer(self, ip: int) -> None:
        """Forget a node; nothing if it is not known."""
        peer = self._peers.pop(ip, None)
        if peer is not None:
            for origin in self._origins_of(peer):
                del self._origins[origin]
            self._device.peer_del(ip)

    def _origins_of(self, peer: Peer) -> tuple[str | Address, ...]:
        return (peer.vxlan, peer.carrier) if self._shared else (peer.vxlan[0],)

    def peers(self) -> tuple[Peer, ...]:
        """Every peer, in the order they were set."""
        return tuple(self._peers.values())

    # -- moving bytes --------------------------------------------------------------------------

    def _send_egress(self) -> None:
        egress = self._device.egress
        if not egress:
            return
        pending: list[Egress] = list(egress)
        egress.clear()
        for item in pending:
            peer = self._peers.get(item.dst_ip)
            if peer is None:
                self._unknown_sent += 1
            elif item.kind == "vxlan":
                sock = self._by_port.get(item.src_port) or self._sources[0]
                self._send(sock, peer.vxlan, item)
            elif self._carrier is not None:
                self._send(self._carrier, peer.carrier, item)

    def _send(self, sock: UnderlaySocket, to: Address, item: Egress) -> None:
        sock.send(to, item.payload, item.segment_size)
        if sock.backlogged:
            self._loop.add_writer(sock.fileno(), self._write, sock)

    def _write(self, sock: UnderlaySocket) -> None:
        sock.flush()
        if not sock.backlogged:
            self._loop.remove_writer(sock.fileno())

    def _read_vxlan(self, sock: UnderlaySocket) -> None:
        origins, receive = self._origins, self._device.receive_vxlan
        room = MAX_BYTES_PER_TURN
        for _ in range(MAX_RECEIVES_PER_TURN):
            batch = sock.receive() if room > 0 else None
            if batch is None:
                break
            room -= len(batch.payload)
            source = batch.source
            ip = origins.get(source if self._shared else source[0])
            if ip is None:
                self._unknown_received += 1
            else:
                receive(ip, source[1], batch.payload, batch.segment_size)
        self._driver.wake()

    def _read_carrier(self, sock: UnderlaySocket) -> None:
        origins, receive = self._origins, self._device.receive_carrier
        room = MAX_BYTES_PER_TURN
        for _ in range(MAX_RECEIVES_PER_TURN):
            batch = sock.receive() if room > 0 else None
            if batch is None:
                break
            room -= len(batch.payload)
            if (batch.source if self._shared else batch.source[0]) in origins:
                receive(batch.payload, batch.segment_size)
            else:
                self._unknown_received += 1
        self._driver.wake()
