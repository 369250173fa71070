"""The whole speaker, sans IO: protocols, tables and time behind one interface.

The shell passes in what happened (``connected``, ``receive_data``, ``connection_lost``,
``accepted``, ``handle_timer``, ``work``) and afterwards drains ``next_event`` and ``data_to_send``.
Everything a person can see comes from ``snapshot``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from agents.bird.agenda import Agenda
from agents.bird.events import Event, MessageTap, PeerListChanged, ProtocolLogged
from agents.bird.local_protocols import LocalProtocols
from agents.bird.net import Afi
from agents.bird.nexthop import Resolver
from agents.bird.peer import Peer
from agents.bird.peer_host import Life
from agents.bird.rib import Table

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from agents.bird.config import BgpConfig, SpeakerConfig
    from agents.bird.connection import Connection
    from agents.bird.kernel import KernelPort
    from agents.bird.tracing import Trace


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
        self.local = LocalProtocols(kernel, self.tables, self.resolvers, now)
        self.recovery_until: float | None = now + config.recovery_wait_s if recover else None
        self.is_stopping = False
        self._events: deque[Event] = deque()
        self._connections: dict[int, Peer] = {}
        self._numbers = 0
        # Connections that ended with something still to say.
        self._farewells: dict[int, Connection] = {}
        self._agenda = Agenda()
        self._leaving: list[Peer] = []
        # Several messages may come at once: what follows from them is done when outputs are asked.
        self._turn_is_due = False
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
        self.local.configure(config, now, held=self.recovering)
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
        if config.bfd is not None:
            self.local.since.setdefault(config.bfd.name, now)
        self._at = {}
        for peer in self.peers.values():
            self._at.setdefault(peer.config.neighbor, []).append(peer)
            peer.follow_bfd()
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

    @property
    def watches_neighbors(self) -> bool:
        """True while there is BFD."""
        return self.config.bfd is not None and not self.config.bfd.disabled

    def emit(self, event: Event) -> None:
        """Queue an event."""
        self._events.append(event)

    def register(self, peer: Peer) -> int:
        """A new connection's number."""
        self._numbers += 1
        self._connections[self._numbers] = peer
        return self._numbers

    def unregister(self, number: int) -> None:
        """The connection is over; what it has to say is still fetched."""
        connection = self._connections.pop(number).connections.find(number)
        if connection is not None and connection.out:
            self._farewells[number] = connection

    def link_to(self, neighbor: int) -> str:
        """The interface on whose network an IPv4 address is, "" if there is none."""
        return self.local.link_to(neighbor)

    def recovery_moved(self) -> None:
        """See ``PeerHost``: our restart may be over."""
        if self.recovering and not self.waiting_for():
            self._recovered()

    def waiting_for(self) -> list[Peer]:
        """The peers whose End-of-RIB our restart waits for."""
        if not self.recovering:
            return []
        return [peer for peer in self.peers.values() if peer.is_awaited]

    def _recovered(self) -> None:
        self.recovery_until = None
        self.emit(ProtocolLogged("", "Graceful restart done"))
        if self.local.kernel is not None:
            self.local.kernel.held = False
            # What our former life left there and nobody announces any more goes now.
            self.local.scan_soon(self.now)
        for peer in self.peers.values():
            self.touch(peer)
            for exporter in peer.exchange.exporters.values():
                exporter.held = False

    # Inputs of the shell

    def connected(self, number: int, *, now: float) -> None:
        """A ``Dial`` succeeded."""
        found = self._find(number, now)
        if found is not None:
            peer, connection = found
            connection.connected(now=now)
            self._heard(peer, now)

    def connection_lost(self, number: int, reason: str, *, now: float) -> None:
        """A dial failed or a connection ended; ``reason`` is strerror's, "" for a plain end."""
        found = self._find(number, now)
        if found is not None:
            peer, connection = found
            connection.lost(reason, now=now)
            self._heard(peer, now)

    def accepted(self, neighbor: int, *, now: float, port: int = 0) -> int | None:
        """Somebody connected from this emulated address; a number, or None to close it.

        ``port`` is for the trace.
        """
        self.now = now
        for peer in self.peers_at(neighbor):
            if peer.enabled:
                connection = peer.accept(port, now)
                self._heard(peer, now)
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
        found = self._find(number, now)
        if found is not None:
            peer, connection = found
            connection.receive_data(data, now=now)
            self._heard(peer, now)

    def set_congested(self, number: int, congested: bool, *, now: float) -> None:
        """The shell's send buffer of a connection is full, or has room again."""
        found = self._find(number, now)
        if found is None:
            return
        peer, connection = found
        connection.set_congested(congested, now=now)
        if connection is peer.session:
            for exporter in peer.exchange.exporters.values():
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
        self.local.scan_soon(now)

    def get_timer(self) -> float | None:
        """When ``handle_timer`` is due."""
        at = self._agenda.next_timer()
        for other in (self.recovery_until, self.local.scan_at):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def handle_timer(self, *, now: float) -> None:
        """Expire what is due."""
        self.now = now
        scan_at = self.local.scan_at
        if scan_at is not None and now >= scan_at:
            self.local.scan_if_changed(now)
        if self.recovery_until is not None and now >= self.recovery_until:
            self._recovered()
        for peer in self._agenda.due(now):
            peer.handle_timer(now)
            peer.settle(now)
            self.touch(peer)
        self._turn(now)

    def touch(self, peer: Peer) -> None:
        """Look after a peer at the end of this turn."""
        self._agenda.touch(peer)

    @property
    def has_work(self) -> bool:
        """True while ``work`` should be called again soon."""
        kernel = self.local.kernel
        return self._agenda.has_work or (kernel is not None and kernel.busy)

    def work(self, *, now: float) -> None:
        """Do a slice of what waits: feeds, flushes, writing the kernel."""
        self.now = now
        for peer in self._agenda.busy():
            peer.work(now)
            self.touch(peer)
        self._turn(now)

    # Outputs

    def next_event(self) -> Event | None:
        """The next event, None when there is none."""
        return self._events.popleft() if self._events else None

    def take_events(self) -> list[Event]:
        """All events that wait."""
        events = list(self._events)
        self._events.clear()
        return events

    def data_to_send(self) -> list[tuple[int, bytes]]:
        """What waits for each connection; first what followed from the inputs since is done."""
        if self._turn_is_due:
            self._turn(self.now)
        found = [(number, c.data_to_send()) for number, c in self._farewells.items()]
        self._farewells.clear()
        for peer in self._agenda.talking():
            for connection in peer.connections.all():
                if connection.out:
                    found.append((connection.number, connection.data_to_send()))  # noqa: PERF401
        return found

    # Commands

    def set_trace(self, name: str, trace: Trace | None) -> None:
        """``debug``: tell a listener what a protocol does, None for nobody."""
        peer = self.peers.get(name)
        if peer is not None:
            peer.set_trace(trace)
        else:
            self.local.set_trace(name, trace)

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
        done = peer.exchange.ask_again() if incoming else True
        if outgoing:
            peer.exchange.tell_again()
        self._settle(peer, now)
        return done

    def shut_down(self, *, now: float, text: str = "") -> None:
        """``down``: every peer hears Cease/2, the kernel loses our routes unless they persist."""
        self._stop_writing(now)
        for peer in self.peers.values():
            peer.disable(now, text)
            self.touch(peer)
        self._turn(now)
        if self.local.kernel is not None:
            self.local.kernel.shut_down()

    def leave_for_restart(self, *, now: float) -> None:
        """``graceful restart``: close everything without a word; the kernel keeps our routes."""
        self._stop_writing(now)
        for peer in self.peers.values():
            peer.enabled = False
            peer.hang_up_silently(now)
            self.touch(peer)
        self._turn(now)

    def _stop_writing(self, now: float) -> None:
        """Stop; what follows from the end of the sessions is not for the kernel to see."""
        self.now = now
        self.is_stopping = True
        if self.local.kernel is not None:
            self.local.kernel.held = True

    # Inside

    def _find(self, number: int, now: float) -> tuple[Peer, Connection] | None:
        """Whose connection this is; None if it is over."""
        self.now = now
        peer = self._connections.get(number)
        connection = peer.connections.find(number) if peer is not None else None
        return None if peer is None or connection is None else (peer, connection)

    def _heard(self, peer: Peer, now: float) -> None:
        peer.settle(now)
        self.touch(peer)
        self._turn_is_due = True

    def _settle(self, peer: Peer, now: float) -> None:
        self._heard(peer, now)
        self._turn(now)

    def _turn(self, now: float) -> None:
        """What follows inputs: next hops, the kernel, waiting routes, deadlines."""
        self._turn_is_due = False
        for resolver, table in zip(self.resolvers.values(), self.tables.values(), strict=True):
            if table.igp_changed:
                resolver.refresh()
        kernel = self.local.kernel
        if kernel is not None and kernel.busy:
            kernel.work()
        for peer in self._agenda.touched():
            peer.flush_output()
            if peer.removed and peer.life is Life.DOWN:
                self._agenda.forget(peer)
                self._left(peer, now)
            else:
                self._agenda.note(peer)

    def _left(self, peer: Peer, now: float) -> None:
        """A removed protocol is gone: its successor may start."""
        if peer not in self._leaving:
            return
        self._leaving.remove(peer)
        for other in self.peers.values():
            if other.config.neighbor == peer.config.neighbor:
                other.start(now)
                self.touch(other)
