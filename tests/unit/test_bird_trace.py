"""What ``debug`` tells with each flag: the lines BIRD 1.6.8 and 2.0.12 wrote in the same places."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.capabilities import Capabilities
from agents.bird.config import BfdConfig, Dest, DeviceConfig, DirectConfig, KernelConfig
from agents.bird.ctl.reply import Dialect
from agents.bird.ctl.trace import ProtocolTrace
from agents.bird.filters import Accept, Filter, If, Reject, net_in
from agents.bird.kernel import Interface, InterfaceAddress, KernelRoute, KernelWay
from agents.bird.messages import UPDATE
from agents.bird.net import Net, parse_address
from tests.bgp_speakers import HandPeer, bgp, channel, speaker_config
from tests.unit.test_bgp_update_errors import GOOD, update

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAGS = ("states", "routes", "filters", "interfaces", "events", "packets")
CAPABILITIES = Capabilities(families=(1,), as4=64512)


def no(net: str) -> Filter:
    return Filter((If(net_in(net), (Reject(),)), Accept()))


def key(text: str) -> bytes:
    return Net.parse(text).key


def listen(peer: HandPeer, name: str, dialect: Dialect, *flags: str) -> list[str]:
    """The lines a protocol tells from now on."""
    lines: list[str] = []
    speaker = peer.speaker

    def index_of(dev: str) -> int:
        return next(i.index for i in speaker.local.interfaces if i.name == dev)

    static = name in speaker.local.statics
    trace = ProtocolTrace(name, flags, dialect, lines.append, index_of, is_static=static)
    speaker.set_trace(name, trace)
    return lines


def session(dialect: Dialect, *flags: str) -> list[str]:
    """A session begins, a route is refused, one taken, one withdrawn, then the peer is gone."""
    settings = channel(import_filter=no("10.55.0.0/16"), export_filter=no("10.77.0.0/16"))
    peer = HandPeer(
        speaker_config(
            "10.0.0.1",
            [bgp("Mesh", "10.0.0.9", passive=True, ipv4=settings)],
            ["10.50.0.0/16", "10.77.0.0/16"],
        )
    )
    peer.lose()
    lines = listen(peer, "Mesh", dialect, *flags)
    peer.connect()
    peer.establish(CAPABILITIES)
    peer.send(UPDATE, update(GOOD, key("10.55.0.0/16") + key("10.60.0.0/16")))
    peer.send(UPDATE, update(b"", b"", key("10.60.0.0/16")))
    peer.lose()
    return lines


SESSION = {
    (Dialect.BIRD1, "states"): """
Mesh: Connected to table master
Mesh: State changed to feed
Mesh: State changed to up
Mesh: State changed to stop
Mesh: State changed to down
Mesh: Starting
Mesh: State changed to start""",
    (Dialect.BIRD2, "states"): """
Mesh: State changed to up
Mesh: State changed to stop
Mesh: State changed to flush
Mesh: State changed to down
Mesh: Starting
Mesh: State changed to start""",
    (Dialect.BIRD1, "routes"): """
Mesh < added 10.50.0.0/16 blackhole
Mesh > added [best] 10.60.0.0/16 unreachable
Mesh > removed [sole] 10.60.0.0/16 unreachable""",
    (Dialect.BIRD2, "routes"): """
Mesh.ipv4 < added 10.50.0.0/16 0L 1G blackhole
Mesh.ipv4 > added [best] 10.60.0.0/16 0L 2G unreachable
Mesh.ipv4 > removed [sole] 10.60.0.0/16 0L 2G unreachable""",
    (Dialect.BIRD1, "filters"): """
Mesh < filtered out 10.77.0.0/16 blackhole
Mesh > filtered out 10.55.0.0/16 unreachable
Mesh < rejected by protocol 10.60.0.0/16 unreachable""",
    (Dialect.BIRD1, "interfaces"): "",
    (Dialect.BIRD1, "events"): """
Mesh: Incoming connection from 10.0.0.9 (port 0) accepted
Mesh: BGP session established
Mesh: Connection closed
Mesh: BGP session closed
Mesh: Down
Mesh: Started""",
    (Dialect.BIRD1, "packets"): """
Mesh: Sending OPEN(ver=4,as=64512,hold=240,id=0a000001)
Mesh: Got OPEN(as=64512,hold=240,id=0a000009)
Mesh: Sending KEEPALIVE
Mesh: Got KEEPALIVE
Mesh: Sending UPDATE
Mesh: Sending END-OF-RIB
Mesh: Got UPDATE
Mesh: Got UPDATE""",
    (Dialect.BIRD2, "packets"): """
Mesh: Sending OPEN(ver=4,as=64512,hold=240,id=0a000001)
Mesh: Got OPEN(as=64512,hold=240,id=10.0.0.9)
Mesh: Sending KEEPALIVE
Mesh: Got KEEPALIVE
Mesh: Sending UPDATE
Mesh: Sending END-OF-RIB
Mesh: Got UPDATE
Mesh: Got UPDATE""",
}


@pytest.mark.parametrize(("dialect", "flag"), SESSION)
def test_each_flag_tells_its_part_of_a_session(dialect: Dialect, flag: str) -> None:
    assert session(dialect, flag) == SESSION[dialect, flag].split("\n")[1:]


def test_who_begins_to_listen_hears_how_earlier_routes_end() -> None:
    peer = HandPeer(
        speaker_config("10.0.0.1", [bgp("Mesh", "10.0.0.9", passive=True)], ["10.50.0.0/16"])
    )
    peer.establish(CAPABILITIES)
    lines = listen(peer, "Mesh", Dialect.BIRD1, "routes")
    peer.speaker.configure(replace(peer.speaker.config, static=()), now=peer.now)
    assert lines == ["Mesh < removed 10.50.0.0/16 blackhole"]
    peer.speaker.set_trace("Mesh", None)
    peer.send(UPDATE, update(GOOD, key("10.60.0.0/16")))
    assert len(lines) == 1


class Port:
    """A kernel that a test changes by hand."""

    def __init__(self) -> None:
        loopback = (InterfaceAddress(b"\x7f\0\0\1", 8, "host"),)
        self.lo = Interface(1, "lo", True, True, 65536, loopback, loopback=True)
        self.d0 = Interface(3, "d0", True, True, 1500, (_address("10.9.0.1"),))
        self.generation = 0
        self.table: dict[Net, KernelRoute] = {}
        self.add(KernelRoute(Net.parse("10.44.0.0/16"), Dest.UNICAST, (WAY,), protocol="static"))

    def interfaces(self) -> Sequence[Interface]:
        return (self.lo, self.d0)

    def routes(self) -> Sequence[KernelRoute]:
        return tuple(self.table.values())

    def add(self, route: KernelRoute) -> None:
        self.table[route.net] = route

    replace = add

    def delete(self, route: KernelRoute) -> None:
        self.table.pop(route.net, None)


def _address(text: str) -> InterfaceAddress:
    return InterfaceAddress(parse_address(text), 24)


WAY = KernelWay(parse_address("10.9.0.7"), "d0")


def kernel(dialect: Dialect, name: str) -> list[str]:
    """A link goes down and up, grows an address, gets another MTU; our route is deleted."""
    port = Port()
    config = speaker_config(
        "10.0.0.1",
        [bgp("Mesh", "10.0.0.9", passive=True)],
        ["10.50.0.0/16", "10.53.0.0/16"],
        kernel=KernelConfig(learn=True, scan_s=2.0, export_filter=no("10.53.0.0/16")),
        direct=DirectConfig(("*",)),
        device=DeviceConfig(scan_s=2.0),
        bfd=BfdConfig(),
    )
    peer = HandPeer(config, kernel=port)
    peer.pass_time(3)
    lines = listen(peer, name, dialect, *FLAGS)
    up = port.d0
    for link in (replace(up, up=False, running=False), up):
        port.d0 = link
        peer.pass_time(2)
    port.d0 = replace(up, mtu=1400, addresses=(*up.addresses, _address("10.10.0.1")))
    port.table.pop(Net.parse("10.50.0.0/16"))
    peer.pass_time(2)
    return lines


def test_the_direct_protocol_tells_of_links_and_addresses() -> None:
    assert kernel(Dialect.BIRD1, "direct1") == [
        "direct1 < primary address 10.9.0.0/24 on interface d0 removed",
        "direct1 < interface d0 goes down",
        "direct1 > removed [sole] 10.9.0.0/24 dev d0",
        "direct1 < interface d0 goes up",
        "direct1 < primary address 10.9.0.0/24 on interface d0 added",
        "direct1 > added [best] 10.9.0.0/24 dev d0",
        "direct1 < interface d0 changes MTU",
        "direct1 < address 10.10.0.0/24 on interface d0 added",
        "direct1 > added [best] 10.10.0.0/24 dev d0",
    ]
    assert kernel(Dialect.BIRD2, "direct1")[4:6] == [
        "direct1 < address 10.9.0.0/24 on interface d0 added",
        "direct1.ipv4 > added [best] 10.9.0.0/24 3L 1G unicast",
    ]


def test_the_kernel_protocol_tells_of_scans_and_of_what_it_writes() -> None:
    lines = kernel(Dialect.BIRD1, "kernel1")
    assert lines[-7:] == [
        "kernel1 < interface d0 changes MTU",
        "kernel1: Scanning routing table",
        "kernel1: 10.44.0.0/16: [alien] seen",
        "kernel1: Pruning table master",
        "kernel1: 10.50.0.0/16: reinstalling",
        "kernel1: Pruning inherited routes",
        "kernel1 < rejected by protocol 10.10.0.0/24 dev d0",
    ]


@pytest.mark.parametrize("dialect", Dialect)
def test_bfd_follows_no_links(dialect: Dialect) -> None:
    assert kernel(dialect, "bfd1") == []


def test_static_routes_of_bird_2_follow_no_links() -> None:
    assert kernel(Dialect.BIRD1, "static1") == [
        "static1 < interface d0 goes down",
        "static1 < interface d0 goes up",
        "static1 < interface d0 changes MTU",
    ]
    assert kernel(Dialect.BIRD2, "static1") == []
