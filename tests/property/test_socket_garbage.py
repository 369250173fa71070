"""Whatever arrives: a socket table gives a verdict, it never raises."""

from __future__ import annotations

import random
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.netstack.packet import Packet
from emulator.netstack.sock.segment import Segment, emit_packet, parse_segment
from emulator.netstack.sock.table import SocketTable
from emulator.netstack.sock.tcp import Endpoint
from emulator.wire.tcp import Options

US, THEM = 0x0A020105, 0x0A020207


class Namespace:
    """Swallows what is sent."""

    def output(self, data, *, oif="", mark=0, gso_size=0) -> None:
        assert len(data) == int.from_bytes(data[2:4], "big")

    def source_address(self, dst: int) -> int:
        return US

    def route_refusal(self, dst: int) -> None:
        return None

    def route_mtu(self, dst: int) -> int:
        return 1450

    def is_local(self, ip: int) -> bool:
        return True

    def poke(self) -> None: ...


def packet(proto: int, body: bytes, gso_size: int = 0) -> Packet:
    header = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(body), 1, 0, 64, proto, 0, THEM, US)
    return Packet(header + body, gso_size=gso_size)


@settings(max_examples=300, deadline=None)
@given(
    bodies=st.lists(
        st.tuples(
            st.sampled_from([1, 6, 17]),
            st.sampled_from([b"", struct.pack("!HH", 5000, 80), struct.pack("!HH", 5000, 53)]),
            st.binary(max_size=80),
            st.sampled_from([0, 1000]),
        ),
        max_size=10,
    )
)
def test_garbage_never_raises(bodies) -> None:
    now = 0.0
    table = SocketTable(Namespace(), clock=lambda: now, rng=random.Random(1))
    table.tcp_listen(0, 80)
    table.udp_bind(0, 53)
    table.ping_open()
    table.tcp_connect(Endpoint(THEM, 5000), Endpoint(US, 80))
    for proto, ports, rest, gso_size in bodies:
        arrived = packet(proto, ports + rest, gso_size)
        if proto == 1:
            table.icmp_error(arrived)
            table.icmp_echo_reply(arrived)
        else:
            table.deliver(arrived)
        table.handle_timer()
        now += 0.1


@given(
    seq=st.integers(0, 2**32 - 1),
    ack=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 63),
    window=st.integers(0, 65535),
    payload=st.binary(max_size=100),
    options=st.builds(
        Options,
        mss=st.none() | st.integers(0, 65535),
        wscale=st.none() | st.integers(0, 14),
        sack_ok=st.booleans(),
        timestamps=st.none(),
        sack=st.lists(
            st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=3
        ).map(tuple),
    ),
)
def test_a_segment_is_what_was_emitted(seq, ack, flags, window, payload, options) -> None:
    segment = Segment(seq, ack, flags, window, payload, options)
    data = emit_packet(US, THEM, 1, 2, 3, segment)
    assert parse_segment(data, 20, US, THEM, 0) == segment
