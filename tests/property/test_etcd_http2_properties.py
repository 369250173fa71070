"""HTTP/2 and HPACK: what one end sends the other receives; garbage is only a protocol error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.errors import WireError
from etcd.core import grpc
from etcd.core.errors import EtcdError
from etcd.core.http2 import connection as h2
from etcd.core.http2 import frames as f
from etcd.core.http2 import hpack, huffman

NAMES = st.binary(min_size=1, max_size=20)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=8)
BLOCK = hpack.encode([(b":path", b"/x"), (b"content-type", b"application/grpc")])
SETTINGS = f.frame(f.SETTINGS, 0, 0)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_huffman_round_trip(data: bytes) -> None:
    assert huffman.decode(huffman.encode(data)) == data


@settings(deadline=None)
@given(HEADERS)
def test_header_blocks_round_trip(headers: list[tuple[bytes, bytes]]) -> None:
    decoder = hpack.Decoder()
    assert decoder.decode(hpack.encode(headers)) == headers
    assert decoder.decode(hpack.encode(headers)) == headers


@settings(deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=5))
def test_any_header_block_parses_or_is_a_wire_error(blocks: list[bytes]) -> None:
    decoder = hpack.Decoder()
    for block in blocks:
        try:
            decoder.decode(block)
        except WireError:
            return


def _literal_indexed(name: bytes, value: bytes) -> bytes:
    parts = [b"\x40"]
    for text in (name, value):
        parts += [hpack.encode_integer(len(text), 7, 0), text]
    return b"".join(parts)


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=2000)), min_size=1, max_size=12))
def test_the_dynamic_table_remembers_the_newest_first(
    headers: list[tuple[bytes, bytes]],
) -> None:
    decoder = hpack.Decoder()
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        assert decoder.decode(_literal_indexed(name, value)) == [(name, value)]
        kept.insert(0, (name, value))
        while sum(len(n) + len(v) + 32 for n, v in kept) > hpack.TABLE_BYTES:
            kept.pop()
        for at, entry in enumerate(kept):
            assert decoder.decode(hpack.encode_integer(62 + at, 7, 0x80)) == [entry]


def _deliver(
    sender: h2.Http2Connection, receiver: h2.Http2Connection, cuts: list[int]
) -> list[h2.Event]:
    data = sender.data_to_send()
    events: list[h2.Event] = []
    at = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        events += receiver.receive_data(data[at:cut], now=0.0)
        at = cut
    return events


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=70_000), min_size=1, max_size=4),
    st.lists(st.integers(0, 10**6), max_size=6),
    st.integers(0, 70_000),
)
def test_whatever_a_client_sends_arrives_in_any_pieces_and_windows(
    bodies: list[bytes], cuts: list[int], window: int
) -> None:
    client, server = h2.Http2Connection(client=True), h2.Http2Connection(client=False)
    streams = [client.open_stream(BLOCK) for _ in bodies]
    for stream_id, body in zip(streams, bodies, strict=True):
        client.send_data(stream_id, body, end_stream=True)
    got = dict.fromkeys(streams, b"")
    ended = set()
    for _ in range(50):
        events = _deliver(client, server, cuts)
        for event in events:
            assert not isinstance(event, h2.Failed)
            if isinstance(event, h2.DataReceived):
                got[event.stream_id] += event.data
                server.acknowledge(event.stream_id, event.flow_bytes)
                if event.end_stream:
                    ended.add(event.stream_id)
        answers = _deliver(server, client, cuts)
        assert not any(isinstance(event, h2.Failed) for event in answers)
        if len(ended) == len(bodies):
            break
    assert list(got.values()) == bodies
    # And back, through windows the client keeps small.
    for stream_id, body in zip(streams, bodies, strict=True):
        server.respond(stream_id, BLOCK, body, BLOCK)
    back = dict.fromkeys(streams, b"")
    for _ in range(50):
        for event in _deliver(server, client, [window]):
            assert not isinstance(event, h2.Failed)
            if isinstance(event, h2.DataReceived):
                back[event.stream_id] += event.data
                client.acknowledge(event.stream_id, event.flow_bytes)
        _deliver(client, server, [])
    assert list(back.values()) == bodies
    assert client.open_streams == server.open_streams == 0


FRAMES = st.builds(
    lambda kind, flags, stream, payload: f.frame(kind, flags, stream, payload),
    st.integers(0, 12),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0x25, 0x2D]),
    st.integers(0, 9),
    st.one_of(
        st.binary(max_size=40),
        st.just(BLOCK),
        st.just(bytes(4)),
        st.just(b"\0\0\0\1"),
        st.just(bytes(8)),
    ),
)


@settings(deadline=None)
@given(st.lists(st.one_of(FRAMES, st.binary(max_size=30)), max_size=20), st.booleans())
def test_any_frames_are_events_or_one_protocol_error(parts: list[bytes], client: bool) -> None:
    connection = h2.Http2Connection(client=client)
    if client:
        connection.open_stream(BLOCK)
        connection.open_stream(BLOCK)
    connection.receive_data(SETTINGS if client else f.PREFACE + SETTINGS, now=0.0)
    failures = 0
    for part in parts:
        events = connection.receive_data(part, now=0.0)
        failures += sum(isinstance(event, h2.Failed) for event in events)
    assert failures == int(connection.failed)
    assert failures <= 1


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_first_bytes_are_a_preface_or_a_failure(data: bytes) -> None:
    connection = h2.Http2Connection(client=False)
    connection.receive_data(data, now=0.0)
    assert connection.failed or f.PREFACE.startswith(data[: len(f.PREFACE)])


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_messages_are_cut_out_of_any_pieces(messages: list[bytes], piece: int) -> None:
    reader = grpc.MessageReader(1000)
    data = b"".join(grpc.frame(message) for message in messages)
    got = []
    for at in range(0, len(data), piece):
        got += reader.feed(data[at : at + piece])
    assert got == messages
    assert not reader.partial


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=10))
def test_any_message_bytes_are_messages_or_an_error(pieces: list[bytes]) -> None:
    reader = grpc.MessageReader(20)
    try:
        for piece in pieces:
            assert all(len(message) <= 20 for message in reader.feed(piece))
    except EtcdError:
        return


def test_a_flood_of_pings_ends_the_connection() -> None:
    connection = h2.Http2Connection(client=False)
    connection.receive_data(f.PREFACE + SETTINGS, now=0.0)
    ping = f.frame(f.PING, 0, 0, bytes(8))
    events = connection.receive_data(ping * (h2.IDLE_FRAME_BURST + 10), now=0.0)
    assert isinstance(events[-1], h2.Failed)
    assert events[-1].code == f.ErrorCode.ENHANCE_YOUR_CALM


def test_a_header_block_that_never_ends_ends_the_connection() -> None:
    connection = h2.Http2Connection(client=False)
    connection.receive_data(f.PREFACE + SETTINGS + f.frame(f.HEADERS, 0, 1, BLOCK), now=0.0)
    more = f.frame(f.CONTINUATION, 0, 1, bytes(10_000))
    events = connection.receive_data(more * 10, now=0.0)
    assert [type(event) for event in events] == [h2.Failed]


def test_a_small_block_cannot_become_a_large_list() -> None:
    decoder = hpack.Decoder()
    decoder.decode(_literal_indexed(b"x", bytes(4000)))
    bomb = hpack.encode_integer(62, 7, 0x80) * 100
    with pytest.raises(WireError, match="header list above"):
        decoder.decode(bomb)
