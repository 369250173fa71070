"""The flow cache changes nothing but speed: two equal worlds, one of which never uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.addr import parse_ip
from emulator.netstack.trace import TraceFilter
from emulator.wire import ipv4, tcp, udp, vxlan
from emulator.wire.ethernet import Frame
from tests.joined_kernels import Segment

if TYPE_CHECKING:
    from emulator.netstack.packet import Drop, Packet

RULES = """*nat
:SVC - [0:0]
-A PREROUTING -d 10.3.0.1/32 -j SVC
-A OUTPUT -d 10.3.0.1/32 -j SVC
-A SVC -p udp -j DNAT --to-destination 10.2.1.2:5353
-A SVC -p tcp -j DNAT --to-destination 10.2.3.2:8080
-A POSTROUTING -s 10.2.2.9/32 -o flannel.1 -j MASQUERADE
COMMIT
*filter
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -d 10.2.3.77/32 -j DROP
-A INPUT -p udp --dport 8472 -j ACCEPT
COMMIT
"""


class Sink:
    """A pod's sockets that keep what they get."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def deliver(self, packet: Packet) -> Drop | None:
        self.got.append(packet.data)
        return None


class World:
    """Node 0 of three, with one pod; node 1 sends, node 2 is where forwarded packets go."""

    def __init__(self, *, cached: bool) -> None:
        self.net = Segment(3)
        self.kernel = self.net.kernels[0]
        self.root = self.kernel.root
        self.root.netfilter.restore(RULES)
        self.pod = self.net.pod(0, 2)
        self.net.ping(self.root, "10.2.1.2")
        self.net.ping(self.root, "10.2.3.1")
        self.sink = self.pod.sockets = Sink()
        self.nic = self.root.device("eth0")
        if not cached:
            self.kernel.trace_arm(TraceFilter.udp(b"nothing holds this"))

    def receive(self, packets: list[bytes]) -> None:
        """Node 1's overlay sends these, in batches of equal length as UDP_GRO makes them."""
        mac = self.root.link("flannel.1").mac
        src = self.net.kernels[1].root.link("flannel.1").mac
        batch: list[bytes] = []
        for data in [*packets, None]:
            datagram = data and vxlan.Vxlan(1, Frame(mac, src, 0x0800, data).emit()).emit()
            if batch and (datagram is None or len(datagram) > len(batch[0])
                          or len(batch[-1]) < len(batch[0])):  # fmt: skip
                self.nic.receive_vxlan(self.net.node_ip(1), 40000, b"".join(batch), len(batch[0]))
                batch = []
            if datagram:
                batch.append(datagram)

    def observe(self) -> dict[str, object]:
        """Everything a person could see."""
        datagrams = []
        for item in self.nic.take_egress():
            size = item.segment_size or len(item.payload) or 1
            datagrams += [
                (item.dst_ip, item.kind, item.payload[at : at + size])
                for at in range(0, len(item.payload), size)
            ]
        got, self.sink.got = self.sink.got, []
        netfilter = self.root.netfilter
        return {
            "egress": datagrams,
            "delivered": got,
            "rules": [
                (table.name, chain.name, rule.spec.save(), rule.counter.packets, rule.counter.bytes)
                for table in netfilter.tables.values()
                for chain in table.chains.values()
                for rule in chain.rules
            ],
            "policies": [
                (chain.name, chain.counter.packets, chain.counter.bytes)
                for table in netfilter.tables.values()
                for chain in table.chains.values()
            ],
            "links": [ns.links() for ns in (self.root, self.pod)],
            "drops": {r: (c.packets, c.bytes) for r, c in self.root.drops.items()},
            "connections": [
                (c.original, c.reply, c.status, c.packets, c.octets, c.expire_at)
                for c in netfilter.conntrack
            ],
        }


hosts = st.sampled_from(["10.2.2.2", "10.2.2.9"])
places = st.sampled_from(["10.2.1.2", "10.2.3.2", "10.3.0.1", "10.2.3.77"])


@st.composite
def flows(draw) -> list[bytes]:
    """A run of packets of one flow, one of which may be odd."""
    src, dst = parse_ip(draw(hosts)), parse_ip(draw(places))
    size = draw(st.sampled_from([0, 1, 37, 64, 1400]))
    count = draw(st.integers(1, 6))
    ttl = draw(st.sampled_from([64, 62, 2, 1]))
    # TCP for the pod's own socket is joined, which is another test's story.
    proto = 17 if dst == parse_ip("10.2.1.2") else draw(st.sampled_from([6, 17]))
    sport = draw(st.sampled_from([5000, 5001]))
    flags = draw(st.sampled_from([tcp.SYN, tcp.ACK, tcp.ACK, tcp.ACK | tcp.PSH, tcp.FIN | tcp.ACK]))
    plain = draw(st.booleans())
    out = []
    for number in range(count):
        if proto == 17:
            body = udp.Udp(sport, 53, bytes(size)).emit(src, dst, with_checksum=plain)
        else:
            body = tcp.Tcp(sport, 80, number * size, 7, flags, 100, bytes(size)).emit(src, dst)
        ident = draw(st.sampled_from([0, 1, 0xFFFF, 0x1234])) + number & 0xFFFF
        df = draw(st.sampled_from([0, ipv4.DF]))
        out.append(ipv4.build(src, dst, proto, body, ttl=ttl, ident=ident, frag=df))
    odd = draw(st.integers(-1, count - 1))
    kind = draw(st.sampled_from(["checksum", "length", "short", "none"]))
    if odd >= 0 and kind == "checksum":
        data = bytearray(out[odd])
        data[10] ^= draw(st.integers(1, 255))
        out[odd] = bytes(data)
    elif odd >= 0 and kind == "length":
        out[odd] = ipv4.with_total_length(out[odd][:20], 5000, 1, 0) + out[odd][20:]
    elif odd >= 0 and kind == "short":
        out[odd] = out[odd][:-1]
    return out


@st.composite
def replies(draw) -> list[bytes]:
    """What the pod answers."""
    src, dst = parse_ip("10.2.1.2"), parse_ip(draw(hosts))
    sport = draw(st.sampled_from([53, 5353]))
    body = udp.Udp(sport, 5000, bytes(draw(st.integers(0, 100)))).emit(src, dst)
    return [ipv4.build(src, dst, 17, body, ident=draw(st.integers(0, 65535)))] * 2


steps = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), flows()),
        st.tuples(st.just("receive"), flows()),
        st.tuples(st.just("output"), replies()),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 40.0])),
        st.tuples(st.just("rule"), st.sampled_from(["-s 10.2.2.2/32 -j DROP", "-p udp"])),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=80, deadline=None)
@given(steps)
def test_nobody_can_tell_the_cache_from_the_slow_path(story) -> None:
    worlds = (World(cached=True), World(cached=False))
    for kind, argument in story:
        seen = []
        for world in worlds:
            match kind:
                case "receive":
                    # Twice: the first time teaches, the second repeats.
                    world.receive(argument)
                    world.receive(argument)
                case "output":
                    for data in argument:
                        world.pod.output(data)
                case "wait":
                    world.net.advance(argument)
                case "rule":
                    world.root.netfilter.restore(f"*filter\n-A FORWARD {argument}\nCOMMIT\n")
            seen.append(world.observe())
        for what, value in seen[0].items():
            assert value == seen[1][what], (kind, what)
