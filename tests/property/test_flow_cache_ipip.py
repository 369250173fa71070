"""IP in IP through the flow cache changes nothing but speed, policy rules and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.addr import parse_ip
from emulator.netstack.trace import TraceFilter
from emulator.wire import ipip, ipv4, tcp, udp
from tests.calico_kernels import CalicoSegment

if TYPE_CHECKING:
    from emulator.netstack.packet import Drop, Packet

RULES = """*filter
:cali-tw - [0:0]
-A INPUT -p 4 -s 172.17.4.0/24 -j ACCEPT
-A INPUT -p 4 -j DROP
-A FORWARD -o cali+ -j cali-tw
-A cali-tw -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw -m conntrack --ctstate INVALID -j DROP
-A cali-tw -j MARK --set-xmark 0x0/0x10000
-A cali-tw -p udp -m udp --dport 53 -j MARK --set-xmark 0x10000/0x10000
-A cali-tw -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-tw -p tcp -j ACCEPT
-A cali-tw -j DROP
COMMIT
"""
HERE, THERE, ONWARD = "192.168.0.2", "192.168.0.67", "192.168.0.130"


class Sink:
    """A pod's sockets that keep what they get."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def deliver(self, packet: Packet) -> Drop | None:
        self.got.append(packet.data)
        return None


class World:
    """Node 0 of three with one pod; node 1 sends in IP in IP, node 2 is beyond."""

    def __init__(self, *, cached: bool) -> None:
        self.net = CalicoSegment(3)
        self.kernel = self.net.kernels[0]
        self.root = self.kernel.root
        self.root.netfilter.restore(RULES)
        self.pod = self.net.pod(0, 2)
        self.net.ping(self.root, HERE)
        self.net.ping(self.root, "172.17.4.203")
        self.net.ping(self.root, "172.17.4.202")
        self.sink = self.pod.sockets = Sink()
        self.nic = self.root.device("eth0")
        if not cached:
            self.kernel.trace_arm(TraceFilter.udp(b"nothing holds this"))

    def receive(self, packets: list[bytes], outer: tuple[str, int, int]) -> None:
        """Batches of equal length, as UDP_GRO makes them."""
        src, ident = parse_ip(outer[0]), outer[1]
        batch: list[bytes] = []
        for number, data in enumerate([*packets, None]):
            wrapped = data and ipip.encapsulate(
                data, src, self.net.node_ip(0), ident=(ident + number) & 0xFFFF
            )
            if wrapped and number == outer[2]:
                wrapped = wrapped[:10] + bytes((wrapped[10] ^ 0x55,)) + wrapped[11:]
            if batch and (wrapped is None or len(wrapped) > len(batch[0])
                          or len(batch[-1]) < len(batch[0])):  # fmt: skip
                self.nic.receive_carrier(b"".join(batch), len(batch[0]))
                batch = []
            if wrapped:
                batch.append(wrapped)

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
            "rules": netfilter.snapshot(),
            "links": [ns.links() for ns in (self.root, self.pod)],
            "drops": {r: (c.packets, c.bytes) for r, c in self.root.drops.items()},
            "connections": [
                (c.original, c.reply, c.status, c.packets, c.octets, c.expire_at)
                for c in netfilter.conntrack
            ],
        }


@st.composite
def flows(draw) -> list[bytes]:
    """A run of packets of one flow, one of which may be odd."""
    src, dst = parse_ip(THERE), parse_ip(draw(st.sampled_from([HERE, ONWARD])))
    size = draw(st.sampled_from([0, 1, 37, 1400]))
    count = draw(st.integers(1, 6))
    proto = 17 if dst == parse_ip(HERE) else draw(st.sampled_from([6, 17]))
    flags = draw(st.sampled_from([tcp.SYN, tcp.ACK, tcp.ACK | tcp.PSH, tcp.FIN | tcp.ACK]))
    port = draw(st.sampled_from([53, 54]))
    tos, ttl = draw(st.sampled_from([0, 2, 0x10])), draw(st.sampled_from([64, 2, 1]))
    out = []
    for number in range(count):
        if proto == 17:
            body = udp.Udp(5000, port, bytes(size)).emit(src, dst)
        else:
            body = tcp.Tcp(5000, 80, number * size, 7, flags, 100, bytes(size)).emit(src, dst)
        df = draw(st.sampled_from([0, ipv4.DF]))
        out.append(ipv4.build(src, dst, proto, body, ttl=ttl, ident=number, frag=df, tos=tos))
    odd = draw(st.integers(-1, count - 1))
    if odd >= 0:
        data = bytearray(out[odd])
        data[10] ^= draw(st.integers(1, 255))
        out[odd] = bytes(data)
    return out


@st.composite
def replies(draw) -> list[bytes]:
    """What the pod answers, through the tunnel."""
    src, dst = parse_ip(HERE), parse_ip(draw(st.sampled_from([THERE, ONWARD])))
    body = udp.Udp(53, 5000, bytes(draw(st.integers(0, 100)))).emit(src, dst)
    return [ipv4.build(src, dst, 17, body, ident=draw(st.integers(0, 65535)))] * 2


# The outer source and first identification, and which outer header is corrupt.
senders = st.tuples(
    st.sampled_from(["172.17.4.202", "10.9.9.9"]), st.integers(0, 65535), st.integers(-3, 5)
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), flows(), senders),
        st.tuples(st.just("receive"), flows(), senders),
        st.tuples(st.just("output"), replies(), st.none()),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 40.0]), st.none()),
        st.tuples(st.just("rule"), st.sampled_from(["-i tunl0 -j DROP", "-p udp"]), st.none()),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=80, deadline=None)
@given(steps)
def test_nobody_can_tell_ip_in_ip_on_the_short_way_from_the_long_one(story) -> None:
    worlds = (World(cached=True), World(cached=False))
    for kind, argument, sender in story:
        seen = []
        for world in worlds:
            match kind:
                case "receive":
                    # Twice: the first time teaches, the second repeats.
                    world.receive(argument, sender)
                    world.receive(argument, sender)
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


def test_both_directions_of_a_tunnelled_flow_use_the_cache() -> None:
    world = World(cached=True)
    src, dst = parse_ip(THERE), parse_ip(HERE)
    asked = ipv4.build(src, dst, 17, udp.Udp(5000, 53, b"question").emit(src, dst))
    answer = ipv4.build(dst, src, 17, udp.Udp(53, 5000, b"answer").emit(dst, src))
    for _ in range(4):
        world.receive([asked] * 16, ("172.17.4.202", 1, -1))
        world.pod.output(answer)
    cache = world.kernel.flows
    cache.hits = cache.misses = 0
    world.receive([asked] * 16, ("172.17.4.202", 1, -1))
    world.pod.output(answer)
    assert (cache.hits, cache.misses) == (17, 0)
