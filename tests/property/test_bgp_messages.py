"""Any octets get an answer, never an exception; whatever we encode we can read."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bird.attribute_decoder import DecodeContext, decode
from agents.bird.attribute_encoder import attribute, encode
from agents.bird.attributes import Attrs, build_path, merge_as4_path, path_length, segments
from agents.bird.capabilities import Capabilities, LongLived, Restart
from agents.bird.errors import BgpPeerError
from agents.bird.messages import (
    MARKER,
    NOTIFICATION,
    UPDATE,
    Framer,
    Open,
    RouteRefresh,
    message,
)
from agents.bird.net import Afi, Net, split_nlri, split_path_nlri
from agents.bird.update import announcements, split_update
from tests.bgp_speakers import HandPeer, bgp, calico_channel, channel, speaker_config

u32 = st.integers(0, 2**32 - 1)
asn = st.integers(1, 2**32 - 1)
flags = st.booleans()

capabilities = st.builds(
    Capabilities,
    families=st.sampled_from([(), (1,), (2,), (1, 2)]),
    route_refresh=flags,
    extended_message=flags,
    restart=st.none()
    | st.builds(
        Restart,
        st.integers(0, 4095),
        flags,
        flags,
        st.sampled_from([(), ((1, True),), ((2, False),)]),
    ),
    as4=st.none() | asn,
    add_path=st.sampled_from([(), ((1, 3),), ((1, 1), (2, 2))]),
    enhanced_refresh=flags,
    long_lived=st.none()
    | st.builds(LongLived, st.sampled_from([(), ((1, True, 3600), (2, False, 7))])),
)


@given(st.integers(0, 65535), st.integers(0, 65535), u32, capabilities)
def test_open_round_trip(wire_as: int, hold: int, router_id: int, caps: Capabilities) -> None:
    opened = Open(wire_as, hold, router_id, caps)
    assert Open.parse(opened.body()) == opened


@given(st.integers(0, 65535), st.integers(0, 255), st.integers(0, 255))
def test_refresh_round_trip(afi: int, safi: int, subtype: int) -> None:
    refresh = RouteRefresh(afi, safi, subtype)
    assert RouteRefresh.parse(refresh.body()) == refresh


paths = st.lists(
    st.tuples(st.sampled_from((1, 2)), st.lists(asn, min_size=1, max_size=5).map(tuple)), max_size=4
).map(build_path)
hops = st.tuples(st.integers(1, 126), st.integers(0, 255)).map(lambda t: bytes((*t, 3, 4)))
attrs = st.builds(
    Attrs,
    origin=st.integers(0, 2),
    as_path=paths,
    next_hop=hops,
    med=st.none() | u32,
    local_pref=u32,
    atomic_aggregate=flags,
    aggregator=st.just(b"") | st.tuples(asn, u32).map(lambda t: struct.pack(">II", *t)),
    communities=st.lists(u32, max_size=80).map(lambda v: struct.pack(f">{len(v)}I", *v)),
    originator_id=st.none() | u32,
    cluster_list=st.lists(u32, max_size=3).map(lambda v: struct.pack(f">{len(v)}I", *v)),
    ext_communities=st.binary(min_size=8, max_size=8) | st.just(b""),
    large_communities=st.binary(min_size=24, max_size=24) | st.just(b""),
    preference=st.just(100),
    krt_tunnel=st.none(),
    krt_metric=st.none(),
    unknown=st.just(()) | st.binary(max_size=9).map(lambda v: ((0xE0, 199, v),)),
)


@given(attrs, flags)
def test_attributes_round_trip_to_wide_and_narrow_peers(value: Attrs, as4: bool) -> None:
    block = encode(value, as4=as4, next_hop=True)
    found = decode(block, DecodeContext(as4=as4, internal=True))
    assert found.bad == ""
    if not as4:
        assert path_length(found.attrs.as_path) == path_length(value.as_path)
        assert [a for _, part in segments(found.attrs.as_path) for a in part] == [
            a for _, part in segments(value.as_path) for a in part
        ]
        value = value._replace(as_path=found.attrs.as_path)
    assert found.attrs == value


@given(paths, paths)
def test_merging_never_shortens_a_path(path: bytes, as4_path: bytes) -> None:
    merged = merge_as4_path(path, as4_path)
    assert path_length(merged) == path_length(path)


@st.composite
def networks(draw: st.DrawFn, afi: Afi = Afi.IPV4) -> Net:
    length = draw(st.integers(0, afi.bits))
    value = draw(st.integers(0, 2**afi.bits - 1))
    shift = afi.bits - length
    return Net(afi, value >> shift << shift, length)


@given(st.lists(networks()), st.sampled_from((Afi.IPV4, Afi.IPV6)))
def test_nlri_round_trip(nets: list[Net], afi: Afi) -> None:
    if afi is Afi.IPV6:
        nets = [Net(afi, net.network << 96, net.length) for net in nets]
    block = b"".join(net.key for net in nets)
    assert [Net.from_key(afi, key) for key in split_nlri(afi, block)] == nets
    with_ids = b"".join(i.to_bytes(4, "big") + net.key for i, net in enumerate(nets))
    assert split_path_nlri(afi, with_ids) == [(i, net.key) for i, net in enumerate(nets)]


@given(attrs, st.lists(networks(), min_size=1, max_size=3000, unique=True), st.booleans())
@settings(max_examples=30)
def test_packing_loses_nothing_and_fits(value: Attrs, nets: list[Net], extended: bool) -> None:
    limit = 65535 if extended else 4096
    block = encode(value, as4=True, next_hop=True)
    framer = Framer()
    framer.limit = limit
    keys = [net.key for net in nets]
    framer.feed(b"".join(announcements(Afi.IPV4, block, b"", keys, limit)))
    found: list[bytes] = []
    while messages := framer.take():
        for kind, body in messages:
            assert kind == UPDATE
            parts = split_update(body)
            assert parts.attributes == block
            found += split_nlri(Afi.IPV4, parts.nlri)
    assert found == keys


attribute_soup = st.lists(
    st.tuples(
        st.sampled_from((0x40, 0x80, 0xC0, 0x50, 0xE0)),
        st.sampled_from((*range(1, 20), 32, 99)),
        st.binary(max_size=40),
    ).map(lambda t: attribute(t[0] & ~0x10, t[1], t[2])),
    max_size=8,
).map(b"".join)
update_soup = st.builds(
    lambda gone, soup, nlri, cut: (
        (len(gone) + (cut == 1)).to_bytes(2, "big")
        + gone
        + (len(soup) + (cut == 2)).to_bytes(2, "big")
        + soup
        + nlri
    ),
    st.binary(max_size=12),
    attribute_soup | st.binary(max_size=60),
    st.binary(max_size=20),
    st.integers(0, 20),
)
octets = st.one_of(
    st.tuples(st.integers(0, 6), st.binary(max_size=60)).map(lambda t: message(*t)),
    update_soup.map(lambda body: message(UPDATE, body)),
    st.binary(max_size=60),
    st.binary(max_size=40).map(lambda data: MARKER + data),
)


def fuzzed(internal: bool, add_path: bool) -> HandPeer:
    remote = 64512 if internal else 65001
    ipv4 = calico_channel() if add_path else channel()
    config = bgp("x", "10.0.0.9", peer_as=remote, passive=True, ipv4=ipv4, ipv6=channel())
    peer = HandPeer(speaker_config("10.0.0.1", [config], ["192.168.1.0/26"]))
    caps = Capabilities(
        families=(1, 2),
        route_refresh=True,
        as4=remote,
        enhanced_refresh=True,
        add_path=((1, 3),) if add_path else (),
    )
    peer.establish(caps, asn=remote)
    assert peer.speaker.peers["x"].session is not None
    return peer


@settings(max_examples=300)
@given(flags, flags, st.lists(octets, max_size=6))
def test_garbage_in_established_ends_at_most_the_session(
    internal: bool, add_path: bool, data: list[bytes]
) -> None:
    peer = fuzzed(internal, add_path)
    for piece in data:
        if peer.closed:
            break
        peer.send_bytes(piece)
    if peer.closed:
        assert len(peer.bodies(NOTIFICATION)) <= 1
        assert peer.nets() == ["192.168.1.0/26"]


@settings(max_examples=100)
@given(st.lists(octets, max_size=4), st.booleans())
def test_garbage_before_the_session_is_up(data: list[bytes], with_open: bool) -> None:
    peer = HandPeer(speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True)]))
    if with_open:
        peer.send_bytes(message(1, Open(64512, 90, 9).body()))
    for piece in data:
        if peer.closed:
            break
        peer.send_bytes(piece)
    assert len(peer.bodies(NOTIFICATION)) <= 1


@settings(max_examples=60)
@given(st.lists(octets, max_size=4), st.integers(1, 7))
def test_how_the_stream_is_cut_changes_nothing(data: list[bytes], size: int) -> None:
    stream = b"".join(data)
    whole, parts = fuzzed(True, False), fuzzed(True, False)
    whole.send_bytes(stream)
    for at in range(0, len(stream), size):
        if not parts.closed:
            parts.send_bytes(stream[at : at + size])
    assert whole.received == parts.received
    assert whole.nets() == parts.nets()


@given(st.binary(max_size=80))
def test_open_raises_only_peer_errors(body: bytes) -> None:
    with contextlib.suppress(BgpPeerError):
        Open.parse(b"\x04" + bytes(9) + body)
