"""Endings: what must not outlive a session, and what a hostile peer cannot do to the speaker."""

from __future__ import annotations

import gc
import ipaddress

import pytest

from agents.bird.attribute_encoder import encode
from agents.bird.attributes import Attrs
from agents.bird.capabilities import Capabilities
from agents.bird.config import AddPaths, Limit, LimitAction, Timers
from agents.bird.events import Dial, ProtocolLogged
from agents.bird.filters import REJECT_ALL
from agents.bird.messages import (
    KEEPALIVE,
    NOTIFICATION,
    OPEN,
    ROUTE_REFRESH,
    UPDATE,
    Framer,
    Open,
    message,
)
from agents.bird.mrt import rib_attributes
from agents.bird.net import Afi
from agents.bird.speaker import Speaker
from agents.bird.update import announcements
from emulator.addr import parse_ip
from tests.bgp_speakers import HandPeer, World, bgp, calico_bgp, channel, speaker_config
from tests.unit.test_bgp_restart import BOTH, INSIDE, capable, keys, learnt, with_routes
from tests.unit.test_bgp_update_errors import update

PLAIN = Capabilities(families=(1,), route_refresh=True, as4=64512)
WITH_IDS = Capabilities(families=(1,), route_refresh=True, as4=64512, add_path=((1, 3),))
REFRESH = message(ROUTE_REFRESH, bytes((0, 1, 0, 1)))


def opened(capabilities: Capabilities = PLAIN) -> bytes:
    return Open(64512, 240, parse_ip("10.0.0.9"), capabilities).body()


def test_a_connection_waiting_beside_a_session_ends_with_it() -> None:
    peer = with_routes(PLAIN)
    session = peer.number
    peer.connect()
    peer.speaker.connection_lost(session, "Connection reset by peer", now=peer.now)
    peer.pump()
    assert peer.closed
    assert learnt(peer) == []
    peer.connect()
    peer.establish(PLAIN)
    assert peer.speaker.peers["x"].session is not None


def test_a_dialled_connection_hears_of_the_collision_it_lost() -> None:
    peer = HandPeer(speaker_config("10.0.0.1", [bgp("x", "10.0.0.9")]))
    peer.pass_time(5)
    dialled = peer.speaker.peers["x"].connections.outgoing
    assert dialled is not None
    peer.speaker.connected(dialled.number, now=peer.now)
    assert dict(peer.speaker.data_to_send())[dialled.number][18] == OPEN
    for piece in (message(OPEN, opened()), message(KEEPALIVE)):
        peer.speaker.receive_data(peer.number, piece, now=peer.now)
    farewell = dict(peer.speaker.data_to_send())[dialled.number]
    assert (farewell[18], farewell[19:21]) == (NOTIFICATION, b"\x06\x07")


def test_a_restart_is_not_held_up_by_a_peer_that_cannot_restart() -> None:
    config = speaker_config(
        "10.0.0.1", [calico_bgp("x", "10.0.0.9", passive=True)], ["10.1.0.0/24"]
    )
    peer = HandPeer(config)
    peer.speaker = Speaker(config, peer.speaker.rng, now=0.0, recover=True)
    peer.connect()
    peer.establish(PLAIN)
    assert not peer.speaker.recovering
    assert len(peer.bodies(UPDATE)) == 2


def test_a_restart_is_not_held_up_by_a_peer_that_was_taken_out() -> None:
    one = calico_bgp("x", "10.0.0.9", passive=True)
    speaker = World().add(speaker_config("10.0.0.1", [one]), recover=True)
    assert speaker.recovering
    speaker.configure(speaker_config("10.0.0.1"), now=1.0)
    assert not speaker.recovering


def test_what_was_stale_before_a_second_restart_is_gone() -> None:
    """RFC 4724 §4.2: consecutive restarts must not keep a route for ever."""
    peer = with_routes(capable())
    peer.lose()
    peer.connect()
    peer.establish(capable())
    peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    assert learnt(peer) == list(BOTH)
    peer.lose()
    assert learnt(peer) == [BOTH[0]]


def test_a_session_lost_while_it_repeats_its_routes_loses_none() -> None:
    peer = with_routes(capable())
    peer.send(ROUTE_REFRESH, bytes((0, 1, 1, 1)))
    peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    peer.lose()
    assert learnt(peer) == list(BOTH)


@pytest.mark.parametrize("enhanced", [True, False])
def test_requests_to_repeat_do_not_pile_up(enhanced: bool) -> None:
    peer = with_routes(capable(enhanced_refresh=enhanced))
    peer.speaker.set_congested(peer.number, True, now=peer.now)
    peer.received.clear()
    peer.send_bytes(REFRESH * 1000)
    peer.speaker.set_congested(peer.number, False, now=peer.now)
    peer.pump()
    assert len(peer.received) == (3 if enhanced else 1)
    peer.received.clear()
    peer.send_bytes(REFRESH)
    assert len(peer.received) == (3 if enhanced else 1), "the next request is answered again"


def test_a_peer_with_no_routes_to_repeat_gets_its_answer_each_time() -> None:
    peer = HandPeer(speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True)]))
    peer.establish(capable())
    for _ in range(3):
        peer.received.clear()
        peer.send_bytes(REFRESH)
        assert [body[2] for body in peer.bodies(ROUTE_REFRESH)] == [1, 2]


def test_paths_of_one_network_count_for_the_limit() -> None:
    limited = channel(add_paths=AddPaths.ON, receive_limit=Limit(5, LimitAction.BLOCK))
    config = bgp("x", "10.0.0.9", passive=True, ipv4=limited)
    peer = HandPeer(speaker_config("10.0.0.1", [config]))
    peer.establish(WITH_IDS)
    for path_id in range(20):
        peer.send(UPDATE, update(INSIDE, path_id.to_bytes(4, "big") + keys("192.168.9.0/24")))
    assert len(peer.speaker.peers["x"].exchange.channels[Afi.IPV4].received) == 5


@pytest.mark.parametrize("action", [LimitAction.WARN, LimitAction.BLOCK])
def test_a_limit_that_ends_nothing_is_named_once_in_a_session(action: LimitAction) -> None:
    limited = channel(import_limit=Limit(1, action))
    peer = HandPeer(speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True, ipv4=limited)]))

    def said() -> list[str]:
        for i in range(5):
            data = message(UPDATE, update(INSIDE, keys(f"192.168.{i}.0/24")))
            peer.speaker.receive_data(peer.number, data, now=peer.now)
            peer.speaker.data_to_send()
        events = peer.speaker.take_events()
        return [e.text for e in events if isinstance(e, ProtocolLogged)]

    peer.establish(PLAIN)
    warning = f"Protocol x hits route import limit (1), action: {action}"
    assert said() == [warning]
    assert said() == []
    peer.lose()
    peer.connect()
    peer.establish(PLAIN)
    assert said() == [warning]


def test_a_repeated_route_is_not_a_new_one_because_a_filter_refused_it() -> None:
    limited = channel(import_filter=REJECT_ALL, receive_limit=Limit(1, LimitAction.DISABLE))
    peer = HandPeer(speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True, ipv4=limited)]))
    peer.establish(PLAIN)
    for _ in range(3):
        peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    assert not peer.closed


def test_a_peer_that_refuses_at_once_is_not_dialled_without_a_pause() -> None:
    world = World()
    hasty = bgp("b", "10.0.0.2", timers=Timers(connect_delay_s=0.0))
    world.add(speaker_config("10.0.0.1", [hasty]))
    world.run(10)
    assert 1 < sum(isinstance(event, Dial) for _, _, event in world.events) < 20


def test_attributes_that_no_message_can_hold_are_not_sent() -> None:
    """A 2-octet AS_PATH of an extended message, widened, is longer than any message."""
    path = (b"\x02\xff" + b"\0\0\xfd\xe9" * 255) * 100
    attrs = Attrs(origin=0, as_path=path, next_hop=bytes((10, 0, 0, 9)))
    block = encode(attrs, as4=True, next_hop=True)
    assert announcements(Afi.IPV4, block, attrs.next_hop, [b"\x08\x0a"], 65535) == []
    assert len(rib_attributes(attrs)) < 100


@pytest.mark.parametrize("hop", ["::", "ff02::1"])
def test_an_ipv6_next_hop_that_is_no_host_takes_its_routes_away(hop: str) -> None:
    both = Capabilities(families=(1, 2), route_refresh=True, as4=64512)
    config = bgp("x", "10.0.0.9", passive=True, ipv6=channel())
    peer = HandPeer(speaker_config("10.0.0.1", [config]))
    peer.establish(both)

    def reach(address: str) -> bytes:
        value = b"\0\2\1\x10" + ipaddress.IPv6Address(address).packed + b"\0\x20\x20\x01\x0d\xb8"
        return update(
            bytes.fromhex("40010100 400200 40050400000064") + bytes((0x80, 14, len(value))) + value,
            b"",
        )

    peer.send(UPDATE, reach("fd00::1"))
    assert len(peer.speaker.tables[Afi.IPV6].routes) == 1
    peer.send(UPDATE, reach(hop))
    assert len(peer.speaker.tables[Afi.IPV6].routes) == 0
    assert not peer.closed


def test_a_next_hop_lives_as_long_as_a_route_that_was_received_with_it() -> None:
    config = bgp("x", "10.0.0.9", passive=True, ipv4=channel(import_filter=REJECT_ALL))
    peer = HandPeer(speaker_config("10.0.0.1", [config]))
    peer.establish(PLAIN)
    peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    gc.collect()
    resolver = peer.speaker.resolvers[Afi.IPV4]
    kept = next(iter(peer.speaker.peers["x"].exchange.channels[Afi.IPV4].received.values()))
    assert resolver.entry(bytes((10, 0, 0, 9))) is kept.hop


def test_updates_keep_a_session_alive_as_keepalives_do() -> None:
    peer = with_routes(PLAIN)
    for _ in range(5):
        peer.pass_time(200)
        peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    assert not peer.closed


def test_keepalives_follow_the_hold_time_that_was_agreed_on() -> None:
    """RFC 4271 §4.4: a configured interval shrinks with the hold time."""
    timers = Timers(hold_s=240, keepalive_s=80)
    peer = HandPeer(speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True, timers=timers)]))
    peer.establish(PLAIN, hold_s=9)
    peer.received.clear()
    peer.pass_time(8)
    assert 2 <= len(peer.bodies(KEEPALIVE)) <= 4


@pytest.mark.parametrize(("ours", "dialled_stays"), [("10.0.0.1", False), ("10.0.0.20", True)])
def test_of_two_connections_that_of_the_larger_identifier_stays(
    ours: str, dialled_stays: bool
) -> None:
    """RFC 4271 §6.8."""
    peer = HandPeer(speaker_config(ours, [bgp("x", "10.0.0.9")]))
    speaker = peer.speaker
    peer.pass_time(5)
    dialled = speaker.peers["x"].connections.outgoing
    assert dialled is not None
    speaker.connected(dialled.number, now=peer.now)
    for number in (dialled.number, peer.number):
        speaker.receive_data(number, message(OPEN, opened()), now=peer.now)
    left = speaker.peers["x"].connections
    assert (left.outgoing is not None, left.incoming is not None) == (
        dialled_stays,
        not dialled_stays,
    )


def test_a_peer_that_says_goodbye_is_dialled_without_a_penalty() -> None:
    peer = with_routes(PLAIN)
    peer.send(NOTIFICATION, b"\x06\x04")
    assert peer.speaker.peers["x"].penalty.delay_s == 0
    peer.connect()
    peer.establish(PLAIN)
    peer.send(NOTIFICATION, b"\x03\x01")
    assert peer.speaker.peers["x"].penalty.delay_s > 0


def two_peers(inside: str) -> tuple[HandPeer, Speaker]:
    """A peer to play by hand beside one inside, whose routes it is told."""
    outside = bgp("x", "10.0.0.9", peer_as=65009, passive=True)
    speaker = HandPeer(
        speaker_config("10.0.0.1", [outside, bgp("y", inside, passive=True)]), neighbor=inside
    )
    speaker.establish(PLAIN, router_id=inside)
    return speaker, speaker.speaker


def heard_outside(inside: HandPeer, attributes: bytes) -> list[bytes]:
    """What the external peer is told of a route with these attributes."""
    inside.send(UPDATE, update(attributes, keys(BOTH[0])))
    speaker = inside.speaker
    number = speaker.accepted(parse_ip("10.0.0.9"), now=inside.now)
    assert number is not None
    hello = Open(65009, 240, parse_ip("10.0.0.9"), Capabilities(families=(1,), as4=65009))
    said = b""
    for piece in (message(OPEN, hello.body()), message(KEEPALIVE)):
        speaker.receive_data(number, piece, now=inside.now)
    for _ in range(10):
        said += b"".join(data for to, data in speaker.data_to_send() if to == number)
        if not speaker.has_work:
            break
        speaker.work(now=inside.now)
    framer = Framer()
    framer.feed(said)
    found = []
    while messages := framer.take():
        found += [body for kind, body in messages if kind == UPDATE and len(body) > 4]
    return found


def test_med_of_inside_stays_inside() -> None:
    peer, _ = two_peers("10.0.0.8")
    (told,) = heard_outside(peer, INSIDE + bytes.fromhex("80040400000032"))
    assert bytes.fromhex("800404") not in told


def test_long_lived_stale_routes_are_not_for_peers_that_do_not_know_them() -> None:
    """RFC 9494 §4.3."""
    peer, _ = two_peers("10.0.0.8")
    assert heard_outside(peer, INSIDE + bytes.fromhex("c00804ffff0006")) == []


def test_a_route_that_names_us_as_its_originator_is_refused() -> None:
    """RFC 4456 §8."""
    peer = with_routes(PLAIN)
    mine = bytes.fromhex("8009040a000001")
    peer.send(UPDATE, update(INSIDE + mine, keys(BOTH[0])))
    assert learnt(peer) == [BOTH[1]]
    assert not peer.closed
    # A reflector sends everybody's routes to everybody: that is no mistake to complain of.
    (ours,) = peer.speaker.peers.values()
    assert ours.exchange.bad_updates == 0
