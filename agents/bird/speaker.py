"""The whole speaker, sans IO: protocols, tables and time behind one interface.

The shell passes in what happened (``connected``, ``receive_data``, ``connection_lost``,
``accepted``, ``handle_timer``, ``work``) and afterwards drains ``next_event`` and ``data_to_send``.
Everything a person can see comes from ``snapshot``.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

from agents.bird.events import Event, MessageTap, PeerListChanged, ProtocolLogged
from agents.bird.kernel import (
    DirectProtocol,
    Interface,
    KernelPort,
    KernelProtocol,
    StaticProtocol,
)
from agents.bird.net import Afi
from agents.bird.nexthop import Resolver
from agents.bird.peer import Peer
from agents.bird.peer_host import Life
from agents.bird.rib import Table

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from agents.bird.config import BgpConfig, SpeakerConfig
    from agents.bird.fsm import Connection


class Speaker:
    """One BGP daemon."""

    def __init__(
        self,
        config: SpeakerConfig,
        rng: random.Random,
        *,
        now: float,
        kernel: KernelPort | None = None,
        tap: MessageTap | None = None,
        recover: bool = False,
    ) -> None:
        """``recover`` is BIRD's ``-R``: leave the kernel alone until the peers told everything."""
        self.config = config
        self.rng = rng
        self.now = now
        self.tap = tap
        self.router_id = config.router_id
        self.started_at = now
        self.configured_at = now
        self.tables = {afi: Table(afi) for afi in Afi}
        self.resolvers = {afi: Resolver(table) for afi, table in self.tables.items()}
        self.peers: dict[str, Peer] = {}
        # By the neighbour's address.
        self._at: dict[int, list[Peer]] = {}
        self.statics: dict[str, StaticProtocol] = {}
        self.direct: DirectProtocol | None = None
        self.kernel: KernelProtocol | None = None
        self.interfaces: Sequence[Interface] = ()
        self.recovery_until: float | None = now + config.recovery_wait_s if recover else None
        self.is_stopping = False
        self.since: dict[str, float] = {}
        self._port = kernel
        self._events: deque[Event] = deque()
        self._connections: dict[int, tuple[Peer, Connection | None]] = {}
        self._numbers = 0
        # Connections that ended with something still to say.
        self._farewells: dict[int, Connection] = {}
        # Peers something happened to in this turn; with something to send; with work to do.
        self._touched: dict[int, Peer] = {}
        self._talking: dict[int, Peer] = {}
        self._busy: dict[int, Peer] = {}
        # Deadlines of peers; an entry counts while it is the peer's ``noted_timer``.
        self._timers: list[tuple[float, int, Peer]] = []
        self._serial = 0
        self._leaving: list[Peer] = []
        self._scan_at: float | None = now if kernel is not None else None
        self._apply(config, now)
        self._turn(now)

    # Configuration

    def configure(self, config: SpeakerConfig, *, now: float) -> None:
        """Put another configuration in force; untouched sessions stay up."""
        self.now = now
        self.configured_at = now
        if config.router_id != self.router_id:
            self.router_id = config.router_id
            for peer in list(self.peers.values()):
                self._leave(peer, now, changed=True)
        self.config = config
        self._apply(config, now)
        self._turn(now)

    def _apply(self, config: SpeakerConfig, now: float) -> None:
        self._apply_static(config, now)
        self._apply_kernel(config, now)
        self._scan(now)
        wanted = {bgp.name: bgp for bgp in config.bgp}
        for name, peer in list(self.peers.items()):
            new = wanted.get(name)
            if new is None:
                self._leave(peer, now, changed=False)
            elif new != peer.config:
                self._change(peer, new, now)
        for name, bgp in wanted.items():
            if name not in self.peers:
                self._join(bgp, now)
        self.peers = {name: self.peers[name] for name in wanted}
        self._at = {}
        for peer in self.peers.values():
            self._at.setdefault(peer.config.neighbor, []).append(peer)
        self.recovery_moved()
        self._events.append(PeerListChanged())

    def _join(self, config: BgpConfig, now: float) -> None:
        peer = Peer(config, self, now)
        self.peers[config.name] = peer
        if not any(left.config.neighbor == config.neighbor for left in self._leaving):
            peer.start(now)
        self.touch(peer)

    def _change(self, peer: Peer, new: BgpConfig, now: float) -> None:
        was_disabled = peer.config.disabled
        self.touch(peer)
        if peer.reconfigure(new):
            if new.disabled and not was_disabled:
                peer.disable(now)
            elif was_disabled and not new.disabled:
                peer.enable(now)
            return
        self._leave(peer, now, changed=True)
        self._join(new, now)

    def _leave(self, peer: Peer, now: float, *, changed: bool) -> None:
        del self.peers[peer.config.name]
        peer.remove(now, changed=changed)
        self._leaving.append(peer)
        self.touch(peer)

    def _apply_static(self, config: SpeakerConfig, now: float) -> None:
        wanted = {static.name: static for static in config.static}
        for name in [name for name in self.statics if name not in wanted]:
            gone = self.statics.pop(name)
            for channel in gone.channels.values():
                channel.withdraw(0, list(channel.received))
        for name, static in wanted.items():
            have = self.statics.get(name)
            if have is None:
                self.statics[name] = StaticProtocol(static, self.tables, self.resolvers)
                self.since[name] = now
            elif have.config.preference != static.preference:
                for channel in have.channels.values():
                    channel.withdraw(0, list(channel.received))
            self.statics[name].config = static

    def _apply_kernel(self, config: SpeakerConfig, now: float) -> None:
        if config.direct is None:
            if self.direct is not None:
                for channel in self.direct.channels.values():
                    channel.withdraw(0, list(channel.received))
            self.direct = None
        elif self.direct is None:
            self.direct = DirectProtocol(config.direct, self.tables, self.resolvers)
            self.since[config.direct.name] = now
        else:
            self.direct.config = config.direct
        table = self.tables[Afi.IPV4]
        if config.kernel is None or self._port is None:
            if self.kernel is not None:
                table.exporters.remove(self.kernel)
                self.kernel.shut_down()
                self.kernel.channel.withdraw(0, list(self.kernel.channel.received))
            self.kernel = None
        elif self.kernel is None:
            self.kernel = KernelProtocol(config.kernel, table, self.resolvers[Afi.IPV4], self._port)
            self.kernel.held = self.recovering
            self.since[config.kernel.name] = now
            table.exporters.append(self.kernel)
        else:
            self.kernel.reconfigure(config.kernel)

    # PeerHost

    @property
    def recovering(self) -> bool:
        """True while our own graceful restart goes on."""
        return self.recovery_until is not None

    @property
    def preserved(self) -> tuple[Afi, ...]:
        """The kernel kept forwarding through our restart if its protocol persists."""
        kernel = self.config.kernel
        if not self.recovering or kernel is None:
            return ()
        return (Afi.IPV4,) if kernel.persist and kernel.graceful_restart else ()

    def emit(self, event: Event) -> None:
        """Queue an event."""
        self._events.append(event)

    def register(self, peer: Peer) -> int:
        """A new connection's number."""
        self._numbers += 1
        self._connections[self._numbers] = (peer, None)
        return self._numbers

    def unregister(self, number: int) -> None:
        """The connection is over; what it has to say is still fetched."""
        peer, _ = self._connections.pop(number)
        for connection in (peer.session, peer.outgoing, peer.incoming):
            if connection is not None and connection.number == number and connection.out:
                self._farewells[number] = connection

    def recovery_moved(self) -> None:
        """See ``PeerHost``: our restart may be over."""
        if self.recovering and not self.waiting_for():
            self._recovered()

    def waiting_for(self) -> list[Peer]:
        """The peers whose End-of-RIB our restart waits for."""
        if not self.recovering:
            return []
        return [peer for peer in self.peers.values() if self._awaited(peer)]

    def _awaited(self, peer: Peer) -> bool:
        if not peer.enabled or peer.config.graceful_restart == "off":
            return False
        session = peer.session
        if session is None or session.terms is None:
            return True
        restart = session.terms.peer_restart
        if restart is None or restart.restarting:
            return False
        return any(afi not in peer.end_of_rib_seen for afi in session.terms.families)

    def _recovered(self) -> None:
        self.recovery_until = None
        self.emit(ProtocolLogged("", "Graceful restart done"))
        if self.kernel is not None:
            self.kernel.held = False
            # What our former life left there and nobody announces any more goes now.
            self._scan_at = self.now
        for peer in self.peers.values():
            self.touch(peer)
            for exporter in peer.exporters.values():
                exporter.held = False

    # Inputs of the shell

    def connected(self, number: int, *, now: float) -> None:
        """A ``Dial`` succeeded."""
        connection = self._find(number)
        if connection is not None:
            self._input(connection[0], now)
            connection[1].connected(now=now)
            self._settle(connection[0], now)

    def connection_lost(self, number: int, reason: str, *, now: float) -> None:
        """A dial failed or a connection ended; ``reason`` is strerror's, "" for a plain end."""
        connection = self._find(number)
        if connection is not None:
            self._input(connection[0], now)
            connection[1].lost(reason, now=now)
            self._settle(connection[0], now)

    def accepted(self, neighbor: int, *, now: float) -> int | None:
        """Somebody connected from this emulated address; a number, or None to close it."""
        self.now = now
        for peer in self.peers_at(neighbor):
            if peer.enabled:
                connection = peer.accept(now)
                self._settle(peer, now)
                return None if connection is None else connection.number
        self.emit(ProtocolLogged("", "Unexpected connect from unknown address"))
        return None

    def peers_at(self, neighbor: int) -> Sequence[Peer]:
        """The configured protocols of a neighbour's emulated address."""
        return self._at.get(neighbor, ())

    def has_neighbor(self, neighbor: int) -> bool:
        """True if somebody at this address is configured."""
        return neighbor in self._at

    def receive_data(self, number: int, data: bytes, *, now: float) -> None:
        """Bytes of a peer."""
        connection = self._find(number)
        if connection is not None:
            self._input(connection[0], now)
            connection[1].receive_data(data, now=now)
            self._settle(connection[0], now)

    def set_congested(self, number: int, congested: bool, *, now: float) -> None:
        """The shell's send buffer of a connection is full, or has room again."""
        found = self._find(number)
        if found is None:
            return
        peer, connection = found
        connection.set_congested(congested, now=now)
        if connection is peer.session:
            for exporter in peer.exporters.values():
                exporter.congested = congested
        self.touch(peer)
        self._turn(now)

    def bfd_down(self, neighbor: int, *, now: float) -> None:
        """BFD says the neighbour does not answer."""
        self.now = now
        for peer in self.peers_at(neighbor):
            if peer.config.bfd is not None:
                peer.bfd_down(now)
                self._settle(peer, now)

    def kernel_changed(self, *, now: float) -> None:
        """Something in the kernel changed: look now instead of at the next scan."""
        if self._port is not None:
            self._scan_at = now

    def get_timer(self) -> float | None:
        """When ``handle_timer`` is due."""
        timers = self._timers
        while timers and timers[0][2].noted_timer != timers[0][0]:
            heapq.heappop(timers)
        at = timers[0][0] if timers else None
        for other in (self.recovery_until, self._scan_at):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def handle_timer(self, *, now: float) -> None:
        """Expire what is due."""
        self.now = now
        if self._scan_at is not None and now >= self._scan_at:
            self._scan(now)
        if self.recovery_until is not None and now >= self.recovery_until:
            self._recovered()
        timers = self._timers
        while timers and timers[0][0] <= now:
            at, _, peer = heapq.heappop(timers)
            if peer.noted_timer == at:
                peer.noted_timer = None
                peer.handle_timer(now)
                peer.settle(now)
                self.touch(peer)
        self._turn(now)

    def touch(self, peer: Peer) -> None:
        """Look after a peer at the end of this turn."""
        self._touched[id(peer)] = peer

    @property
    def has_work(self) -> bool:
        """True while ``work`` should be called again soon."""
        return bool(self._busy) or (self.kernel is not None and self.kernel.busy)

    def work(self, *, now: float) -> None:
        """Do a slice of what waits: feeds, flushes, writing the kernel."""
        self.now = now
        for peer in list(self._busy.values()):
            peer.work(now)
            self.touch(peer)
        self._turn(now)

    # Outputs

    def next_event(self) -> Event | None:
        """The next event, None when there is none."""
        return self._events.popleft() if self._events else None

    def data_to_send(self) -> list[tuple[int, bytes]]:
        """What waits for each connection."""
        found = [(number, c.data_to_send()) for number, c in self._farewells.items()]
        self._farewells.clear()
        for peer in self._talking.values():
            for connection in (peer.session, peer.outgoing, peer.incoming):
                if connection is not None and connection.out:
                    found.append((connection.number, connection.data_to_send()))  # noqa: PERF401
        self._talking.clear()
        return found

    # Commands

    def find(self, name: str) -> Peer | None:
        """A BGP protocol by name."""
        return self.peers.get(name)

    def disable(self, name: str, *, now: float, text: str = "") -> bool:
        """False if it was disabled already; KeyError for an unknown name."""
        peer = self.peers[name]
        self.now = now
        if not peer.enabled:
            return False
        peer.disable(now, text)
        self._settle(peer, now)
        return True

    def enable(self, name: str, *, now: float) -> bool:
        """False if it was enabled already; KeyError for an unknown name."""
        peer = self.peers[name]
        self.now = now
        if peer.enabled:
            return False
        peer.enable(now)
        self._settle(peer, now)
        return True

    def restart(self, name: str, *, now: float) -> None:
        """Restart a protocol; KeyError for an unknown name."""
        peer = self.peers[name]
        self.now = now
        peer.restart(now)
        self._settle(peer, now)

    def reload(
        self, name: str, *, now: float, incoming: bool = True, outgoing: bool = True
    ) -> bool:
        """Ask for all routes again and repeat ours; False if the peer cannot be asked."""
        peer = self.peers[name]
        self.now = now
        done = peer.reload_in() if incoming else True
        if outgoing:
            peer.reload_out()
        self._settle(peer, now)
        return done

    def shut_down(self, *, now: float, text: str = "") -> None:
        """``down``: every peer hears Cease/2, the kernel loses our routes unless they persist."""
        self.now = now
        self.is_stopping = True
        for peer in self.peers.values():
            peer.disable(now, text)
            self.touch(peer)
        self._turn(now)
        if self.kernel is not None:
            self.kernel.shut_down()

    def leave_for_restart(self, *, now: float) -> None:
        """``graceful restart``: close everything without a word; the kernel keeps our routes."""
        self.now = now
        self.is_stopping = True
        if self.kernel is not None:
            # What follows from the end of the sessions is not for the kernel to see.
            self.kernel.held = True
        for peer in self.peers.values():
            peer.enabled = False
            peer.hang_up_silently(now)
            self.touch(peer)
        self._turn(now)

    # Inside

    def _find(self, number: int) -> tuple[Peer, Connection] | None:
        entry = self._connections.get(number)
        if entry is None:
            return None
        peer = entry[0]
        for connection in (peer.session, peer.outgoing, peer.incoming):
            if connection is not None and connection.number == number:
                return peer, connection
        return None

    def _input(self, peer: Peer, now: float) -> None:
        self.now = now

    def _settle(self, peer: Peer, now: float) -> None:
        peer.settle(now)
        self.touch(peer)
        self._turn(now)

    def _turn(self, now: float) -> None:
        """What follows every input: next hops, the kernel, waiting routes, deadlines."""
        for resolver, table in zip(self.resolvers.values(), self.tables.values(), strict=True):
            if table.igp_changed:
                resolver.refresh()
        if self.kernel is not None and self.kernel.busy:
            self.kernel.work()
        while self._touched:
            key, peer = self._touched.popitem()
            peer.flush_output()
            self._look_after(key, peer, now)

    def _look_after(self, key: int, peer: Peer, now: float) -> None:
        self._talking[key] = peer
        if peer.removed and peer.life is Life.DOWN:
            self._busy.pop(key, None)
            peer.noted_timer = None
            self._left(peer, now)
            return
        if peer.busy:
            self._busy[key] = peer
        else:
            self._busy.pop(key, None)
        at = peer.get_timer()
        if at != peer.noted_timer:
            peer.noted_timer = at
            if at is not None:
                self._serial += 1
                heapq.heappush(self._timers, (at, self._serial, peer))

    def _left(self, peer: Peer, now: float) -> None:
        """A removed protocol is gone: its successor may start."""
        if peer not in self._leaving:
            return
        self._leaving.remove(peer)
        for other in self.peers.values():
            if other.config.neighbor == peer.config.neighbor:
                other.start(now)
                self.touch(other)

    def _scan(self, now: float) -> None:
        """Look at the kernel (device, direct, static and kernel protocols)."""
        if self._port is not None:
            self.interfaces = self._port.interfaces()
            self._scan_at = now + self._scan_interval()
            local = frozenset(address.address for i in self.interfaces for address in i.addresses)
            for resolver, table in zip(self.resolvers.values(), self.tables.values(), strict=True):
                if resolver.local != local:
                    resolver.local = local
                    table.igp_changed = True
        if self.direct is not None:
            self.direct.update(self.interfaces, now)
        for static in self.statics.values():
            static.update(self.interfaces, now)
        if self.kernel is not None:
            self.kernel.scan(self.interfaces, now)

    def _scan_interval(self) -> float:
        intervals = [self.config.device.scan_s]
        if self.config.kernel is not None:
            intervals.append(self.config.kernel.scan_s)
        return min(intervals)
