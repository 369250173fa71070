"""The network between simulated hosts: who is reachable, how long it takes, what gets lost."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulator.errors import UsageError
from emulator.sim.datagram import SimDatagramTransport
from emulator.sim.host import SimHost, current_host
from emulator.sim.stream import SimServer, SimStreamTransport, connect_pair

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from emulator.sim.trace import EventTrace

# Linux sends SYNs at 0, 1, 3, 7, 15, 31, 63 s and gives up after 127 s (tcp_syn_retries 6).
SYN_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# An address nobody answers ARP for: three tries of one second.
ARP_FAILS_AFTER_S = 3.0
# Linux' ephemeral ports.
EPHEMERAL_PORTS = range(32768, 61000)
_ANY = ("0.0.0.0", "::", "")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """One direction between two hosts; probabilities are for datagrams, streams repeat."""

    latency_s: float = 0.0002
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


class Fabric:
    """Hosts, the quality of each link, partitions."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rng: random.Random, trace: EventTrace
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.default = LinkQuality()
        self._hosts: dict[str, SimHost] = {}
        self._by_address: dict[str, SimHost] = {}
        self._quality: dict[tuple[str, str], LinkQuality] = {}
        self._cuts: dict[frozenset[str], None] = {}
        self._servers: dict[tuple[str, int], SimServer] = {}
        self._datagram: dict[tuple[str, int], SimDatagramTransport] = {}
        self._streams: dict[SimStreamTransport, None] = {}
        self._next_port: dict[str, int] = {}

    # Hosts and links

    def host(self, name: str, *addresses: str) -> SimHost:
        """Add a machine; UsageError if its name or an address is taken."""
        if name in self._hosts:
            raise UsageError(f"host {name!r} is already there")
        for address in addresses:
            if address in self._by_address:
                owner = self._by_address[address].name
                raise UsageError(f"address {address} already belongs to {owner!r}")
        host = SimHost(self, name, addresses)
        self._hosts[name] = host
        for address in addresses:
            self._by_address[address] = host
        return host

    def set_quality(self, one: SimHost, other: SimHost, quality: LinkQuality) -> None:
        """Set both directions between two hosts."""
        self._quality[one.name, other.name] = self._quality[other.name, one.name] = quality

    def quality(self, source: SimHost, destination: SimHost) -> LinkQuality:
        """The quality of one direction; a host reaches itself at once."""
        if source is destination:
            return LinkQuality(latency_s=0.0)
        return self._quality.get((source.name, destination.name), self.default)

    def partition(self, ones: Iterable[SimHost], others: Iterable[SimHost]) -> None:
        """Cut every link between two groups: streams hold their bytes, datagrams are lost."""
        others = tuple(others)
        for one in ones:
            for other in others:
                self._cuts[frozenset((one.name, other.name))] = None
                self.trace.record("partition", one.name, other.name)

    def heal(self) -> None:
        """Mend every link; held bytes go on."""
        self._cuts.clear()
        self.trace.record("heal")
        for stream in list(self._streams):
            stream.kick()

    def is_reachable(self, source: SimHost, destination: SimHost) -> bool:
        """True if a packet sent now would arrive."""
        if not (source.is_up and destination.is_up):
            return False
        return source is destination or (
            frozenset((source.name, destination.name)) not in self._cuts
        )

    def cut(self, host: SimHost) -> None:
        """The machine is gone: its sockets exist no more, nobody is told."""
        self.trace.record("down", host.name)
        self._unbind(host)
        for stream in self._streams_of(host):
            stream.vanish()

    def close_sockets(self, host: SimHost) -> None:
        """The processes of a machine are gone: its kernel closes what they left open."""
        self.trace.record("stopped", host.name)
        self._unbind(host)
        for stream in self._streams_of(host):
            stream.close()

    def _unbind(self, host: SimHost) -> None:
        for key, server in list(self._servers.items()):
            if server.host is host:
                del self._servers[key]
        for address, endpoint in list(self._datagram.items()):
            if endpoint.host is host:
                del self._datagram[address]

    def _streams_of(self, host: SimHost) -> list[SimStreamTransport]:
        return [stream for stream in self._streams if stream.host is host]

    def resolve(self, name: str) -> str:
        """An address of a host name or literal; OSError as getaddrinfo's for unknown names."""
        if name in self._hosts:
            return self._hosts[name].address
        if name in _LOOPBACK:
            return self._here().address
        if name in self._by_address or name.replace(".", "").isdigit():
            return name
        raise OSError(-2, f"Name or service not known: {name}")

    def _here(self) -> SimHost:
        host = current_host.get()
        if host is None:
            # Code of the test itself runs on a machine outside.
            host = self._hosts.get("observer") or self.host("observer", "192.0.2.1")
        if not host.is_up:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        return host

    def _ephemeral(self, address: str, used: dict[tuple[str, int], Any]) -> int:
        for _ in EPHEMERAL_PORTS:
            port = self._next_port.get(address, EPHEMERAL_PORTS.start)
            following = port + 1
            self._next_port[address] = (
                following if following in EPHEMERAL_PORTS else EPHEMERAL_PORTS.start
            )
            if (address, port) not in used:
                return port
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    # Streams

    async def connect(
        self, factory: Callable[[], Any], name: str, port: int
    ) -> tuple[SimStreamTransport, Any]:
        """Connect as Linux does: refused at once, or ETIMEDOUT after 127 s of silence."""
        here, address = self._here(), self.resolve(name)
        there = self._by_address.get(address)
        if there is None:
            await asyncio.sleep(ARP_FAILS_AFTER_S)
            raise OSError(errno.EHOSTUNREACH, f"Connect call failed ('{address}', {port})")
        for wait_s in SYN_WAITS_S:
            if self.is_reachable(here, there):
                latency_s = self.quality(here, there).latency_s
                await asyncio.sleep(latency_s)
                if self.is_reachable(here, there):
                    return await self._handshake(factory, here, there, address, port)
            await asyncio.sleep(wait_s)
        raise TimeoutError(errno.ETIMEDOUT, f"Connect call failed ('{address}', {port})")

    async def _handshake(
        self, factory: Callable[[], Any], here: SimHost, there: SimHost, address: str, port: int
    ) -> tuple[SimStreamTransport, Any]:
        server = self._servers.get((address, port))
        verdict = "accept" if server is not None else "refuse"
        self.trace.record("connect", here.name, there.name, port, verdict)
        back_s = self.quality(there, here).latency_s
        if server is None:
            await asyncio.sleep(back_s)
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, f"Connect call failed ('{address}', {port})"
            )
        source = (here.address, self._ephemeral(here.address, {}))
        protocol = factory()
        client, accepted = connect_pair(self, here, source, server, (address, port))
        self._streams[client] = self._streams[accepted] = None
        server.accept(accepted)
        await asyncio.sleep(back_s)
        client.start(protocol)
        return client, protocol

    def forget_stream(self, stream: SimStreamTransport) -> None:
        """A connection has ended at this end."""
        self._streams.pop(stream, None)

    def listen(self, factory: Callable[[], Any], hosts: list[str | None], port: int) -> SimServer:
        """Listen on addresses of the current host; EADDRINUSE as on Linux."""
        here = self._here()
        addresses: list[str] = []
        for name in hosts:
            if name is None or name in _ANY:
                addresses += here.addresses
                continue
            address = self.resolve(name)
            if address not in here.addresses:
                raise OSError(errno.EADDRNOTAVAIL, f"{here.name} has no address {address}")
            addresses.append(address)
        if not port:
            port = self._ephemeral(here.address, self._servers)
        server = SimServer(self, here, factory, tuple((address, port) for address in addresses))
        for key in server.addresses:
            if key in self._servers:
                raise OSError(errno.EADDRINUSE, f"address already in use: {key[0]}:{key[1]}")
        for key in server.addresses:
            self._servers[key] = server
        return server

    def close_server(self, server: SimServer) -> None:
        """Stop listening."""
        for key in server.addresses:
            if self._servers.get(key) is server:
                del self._servers[key]

    # Datagrams

    def open_datagram(
        self,
        factory: Callable[[], Any],
        local: tuple[str, int] | None,
        remote: tuple[str, int] | None,
    ) -> tuple[SimDatagramTransport, Any]:
        """Bind a UDP socket on the current host."""
        here = self._here()
        name, port = (local[0], int(local[1])) if local is not None else ("", 0)
        wildcard = name in _ANY
        address = here.address if wildcard else self.resolve(name)
        if address not in here.addresses:
            raise OSError(errno.EADDRNOTAVAIL, f"{here.name} has no address {address}")
        if not port:
            port = self._ephemeral(address, self._datagram)
        keys = tuple((a, port) for a in (here.addresses if wildcard else (address,)))
        if any(key in self._datagram for key in keys):
            raise OSError(errno.EADDRINUSE, f"address already in use: {address}:{port}")
        peer = (self.resolve(remote[0]), int(remote[1])) if remote is not None else None
        transport = SimDatagramTransport(self, here, keys, peer)
        for key in keys:
            self._datagram[key] = transport
        protocol = factory()
        transport.start(protocol)
        return transport, protocol

    def close_datagram(self, transport: SimDatagramTransport) -> None:
        """Unbind."""
        for key in transport.addresses:
            if self._datagram.get(key) is transport:
                del self._datagram[key]

    def datagram_at(self, address: tuple[str, int]) -> SimDatagramTransport | None:
        """The socket bound to an address."""
        return self._datagram.get(address)

    def send(
        self,
        source: SimHost,
        destination_ip: str,
        size: int,
        kind: str,
        deliver: Callable[[SimHost], None],
    ) -> None:
        """Send one datagram: draw its fate, call ``deliver(host)`` where and when it arrives."""
        there = self._by_address.get(destination_ip)
        if not source.is_up:
            return
        if there is None or not self.is_reachable(source, there):
            self.trace.record(kind, source.name, destination_ip, size, "unreachable")
            return
        quality, rng = self.quality(source, there), self.rng
        copies = 1
        if quality.loss and rng.random() < quality.loss:
            copies = 0
        elif quality.duplicate and rng.random() < quality.duplicate:
            copies = 2
        self.trace.record(kind, source.name, there.name, size, copies)
        for _ in range(copies):
            delay_s = quality.latency_s
            if quality.jitter_s:
                delay_s += rng.random() * quality.jitter_s
            if quality.reorder and rng.random() < quality.reorder:
                delay_s += quality.latency_s + quality.jitter_s
            self.loop.call_later(
                delay_s, self._arrive, there, deliver, context=there.context.copy()
            )

    @staticmethod
    def _arrive(there: SimHost, deliver: Callable[[SimHost], None]) -> None:
        if there.is_up:
            deliver(there)
