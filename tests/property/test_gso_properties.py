"""Cutting and joining TCP segments: every piece is a valid packet, together they are the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.netstack import gso
from emulator.wire import ipv4, tcp

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
A, B = 0x0A020102, 0x0A020202


@st.composite
def super_segments(draw) -> tuple[bytes, int]:
    stamps = draw(st.none() | st.builds(tcp.Timestamps, u32, u32))
    segment = tcp.Tcp(
        *(draw(u16), draw(u16), draw(u32), draw(u32)),
        draw(st.sampled_from([tcp.ACK, tcp.ACK | tcp.PSH, tcp.ACK | tcp.FIN | tcp.PSH])),
        draw(u16),
        draw(st.binary(min_size=1, max_size=4000)),
        tcp.Options(timestamps=stamps),
    )
    packet = ipv4.build(
        A, B, 6, segment.emit(A, B), ident=draw(u16), frag=ipv4.DF, ttl=draw(st.integers(1, 255))
    )
    return packet, draw(st.integers(1, 1500))


@given(super_segments(), st.binary(max_size=22))
def test_pieces_are_valid_and_add_up(given_: tuple[bytes, int], prefix: bytes) -> None:
    data, size = given_
    whole = ipv4.Ipv4.parse(data)
    segment = tcp.Tcp.parse(whole.payload, A, B)
    pieces = gso.segments(data, size, prefix)
    seq, body = segment.seq, b""
    for number, piece in enumerate(pieces):
        assert piece.startswith(prefix)
        packet = ipv4.Ipv4.parse(piece[len(prefix) :])
        part = tcp.Tcp.parse(packet.payload, A, B)
        last = number == len(pieces) - 1
        assert packet._replace(payload=b"", ident=0) == whole._replace(payload=b"", ident=0)
        assert packet.ident == (whole.ident + number) & 0xFFFF
        assert part.seq == seq
        assert part.flags == (segment.flags if last else segment.flags & ~(tcp.FIN | tcp.PSH))
        assert (part.ack, part.window, part.options) == (
            *(segment.ack, segment.window, segment.options),
        )
        assert len(part.payload) == size or last
        seq = (seq + len(part.payload)) & 0xFFFFFFFF
        body += part.payload
    assert body == segment.payload


@given(super_segments())
def test_joining_undoes_cutting(given_: tuple[bytes, int]) -> None:
    data, size = given_
    pieces = gso.segments(data, size)
    header_len = 20 + (data[32] >> 4) * 4
    first = pieces[0][:header_len]
    again = gso.joined(first, [p[header_len:] for p in pieces], pieces[-1][33])
    packet = ipv4.Ipv4.parse(again)
    assert packet._replace(payload=b"") == ipv4.Ipv4.parse(data)._replace(payload=b"")
    assert tcp.Tcp.parse(packet.payload, A, B, verify=False) == tcp.Tcp.parse(
        ipv4.Ipv4.parse(data).payload, A, B
    )
