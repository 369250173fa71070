"""Sessions between speakers in virtual time, and the bytes Calico's BIRD puts on the wire."""

from __future__ import annotations

from functools import partial

from agents.bird.capabilities import Capabilities, Restart
from agents.bird.config import GracefulRestart, SpeakerConfig, StaticConfig, StaticRoute
from agents.bird.messages import NOTIFICATION, OPEN, UPDATE
from agents.bird.net import Afi, Net
from agents.bird.snapshot import protocols, routes
from tests.bgp_speakers import (
    HandPeer,
    World,
    bgp,
    calico_bgp,
    channel,
    speaker_config,
)

ADD_PATH_V4 = Capabilities(
    families=(1,), route_refresh=True, as4=64512, add_path=((1, 3),), enhanced_refresh=True
)


def test_open_is_calicos_to_the_byte() -> None:
    peer = HandPeer(speaker_config("10.10.68.222", [calico_bgp("m", "10.0.0.9", passive=True)]))
    assert peer.bodies(OPEN)[0].hex(" ") == (
        "04 fc 00 00 f0 0a 0a 44 de 22 02 20 01 04 00 01 00 01 02 00 40 06 00 78 00 01 01 00 "
        "41 04 00 00 fc 00 45 04 00 01 01 03 46 00 47 00"
    )


def test_update_and_end_of_rib_are_calicos_to_the_byte() -> None:
    config = speaker_config(
        "10.10.68.222",
        [calico_bgp("m", "10.0.0.9", passive=True)],
        ["192.168.145.64/26"],
    )
    peer = HandPeer(config)
    peer.establish(ADD_PATH_V4)
    update, end = peer.bodies(UPDATE)
    assert update.hex() == ("00000015400101004002004003040a0a44de40050400000064000000011ac0a89140")
    assert end.hex() == "00000000"


def test_two_speakers_exchange_their_blocks() -> None:
    world = World()
    world.add(speaker_config("10.0.0.1", [calico_bgp("b", "10.0.0.2")], ["192.168.1.0/26"]))
    world.add(speaker_config("10.0.0.2", [calico_bgp("a", "10.0.0.1")], ["192.168.2.0/26"]))
    assert world.run(5, lambda: "192.168.2.0/26" in world.table("10.0.0.1"))
    world.run(1)
    assert world.table("10.0.0.1") == {"192.168.1.0/26": ["static1"], "192.168.2.0/26": ["b"]}
    assert world.table("10.0.0.2") == {"192.168.1.0/26": ["a"], "192.168.2.0/26": ["static1"]}
    assert world.next_hop("10.0.0.1", "192.168.2.0/26") == "10.0.0.2"


def test_another_preference_of_static_routes_is_nothing_to_tell_a_peer() -> None:
    def config(preference: int) -> SpeakerConfig:
        own = (StaticRoute(Net.parse("10.1.0.0/16")),)
        static = StaticConfig(own, preference=preference)
        return speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True)], static=(static,))

    peer = HandPeer(config(200))
    peer.establish(Capabilities(families=(1,), as4=64512))
    peer.received.clear()
    peer.speaker.configure(config(150), now=peer.now)
    peer.pump()
    assert peer.received == []
    assert [r.attrs.preference for r in routes(peer.speaker)] == [150]


def test_a_withdrawn_block_leaves_the_other_side() -> None:
    world = World()
    world.add(speaker_config("10.0.0.1", [bgp("b", "10.0.0.2")], ["192.168.1.0/26"]))
    world.add(speaker_config("10.0.0.2", [bgp("a", "10.0.0.1")]))
    assert world.run(5, lambda: world.table("10.0.0.2"))
    world.configure(speaker_config("10.0.0.1", [bgp("b", "10.0.0.2")]))
    assert world.run(1, lambda: not world.table("10.0.0.2"))


def test_ipv6_routes_travel_over_an_ipv4_session() -> None:
    hop = Net.parse("fd00:64::11/128").network.to_bytes(16, "big")
    one = bgp("b", "10.0.0.2", ipv6=channel(next_hop_address=hop))
    two = bgp("a", "10.0.0.1", ipv6=channel())
    world = World()
    world.add(speaker_config("10.0.0.1", [one], ["fd00:126::/122", "192.168.1.0/26"]))
    world.add(speaker_config("10.0.0.2", [two]))
    assert world.run(5, lambda: world.table("10.0.0.2", Afi.IPV6))
    assert world.next_hop("10.0.0.2", "fd00:126::/122") == "fd00:64::11"
    assert world.table("10.0.0.2") == {"192.168.1.0/26": ["a"]}


def test_each_family_has_its_own_preference() -> None:
    hop = Net.parse("fd00:64::11/128").network.to_bytes(16, "big")
    one = bgp("b", "10.0.0.2", ipv6=channel(next_hop_address=hop))
    two = bgp("a", "10.0.0.1", ipv4=channel(preference=120), ipv6=channel(preference=130))
    world = World()
    world.add(speaker_config("10.0.0.1", [one], ["fd00:126::/122", "192.168.1.0/26"]))
    world.add(speaker_config("10.0.0.2", [two]))
    assert world.run(5, lambda: world.table("10.0.0.2", Afi.IPV6))
    for afi, preference in ((Afi.IPV4, 120), (Afi.IPV6, 130)):
        (route,) = routes(world.speakers["10.0.0.2"], afi)
        assert route.attrs.preference == preference


def test_two_attempts_at_once_leave_one_session_that_stays() -> None:
    """RFC 4271 6.8: both sides dial in the same instant, many times over."""
    for seed in range(20):
        world = World(latency_s=0.01)
        for me, other in (("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")):
            world.add(speaker_config(me, [calico_bgp("peer", other)]), seed=seed)
        assert world.run(4, partial(world.is_up, "10.0.0.1", "10.0.0.2"))
        flaps = len(world.events)
        world.run(60)
        assert world.state("10.0.0.1", "peer") == "Established"
        downs = [e for e in world.events[flaps:] if type(e[2]).__name__ == "SessionDown"]
        assert downs == []


def test_a_crashed_peers_routes_stay_for_its_restart_time_and_no_longer() -> None:
    world = World()
    world.add(speaker_config("10.0.0.1", [calico_bgp("b", "10.0.0.2")]))
    world.add(speaker_config("10.0.0.2", [calico_bgp("a", "10.0.0.1")], ["192.168.2.0/26"]))
    assert world.run(5, lambda: world.table("10.0.0.1"))
    world.crash("10.0.0.2")
    world.run(110)
    assert world.table("10.0.0.1")
    world.run(15)
    assert world.table("10.0.0.1") == {}


def test_a_peer_that_says_goodbye_loses_its_routes_at_once() -> None:
    world = World()
    world.add(speaker_config("10.0.0.1", [calico_bgp("b", "10.0.0.2")]))
    two = world.add(speaker_config("10.0.0.2", [calico_bgp("a", "10.0.0.1")], ["192.168.2.0/26"]))
    assert world.run(5, lambda: world.table("10.0.0.1"))
    two.shut_down(now=world.now, text="maintenance until noon")
    world.settle("10.0.0.2")
    assert world.run(1, lambda: not world.table("10.0.0.1"))
    info = protocols(world.speakers["10.0.0.1"], now=world.now)[-1]
    assert 'Received: Administrative shutdown: "maintenance until noon"' in info.info


def test_silence_ends_a_session_with_hold_timer_expired() -> None:
    peer = HandPeer(speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True)]))
    peer.establish(Capabilities(families=(1,), as4=64512), hold_s=9)
    peer.pass_time(10)
    assert peer.bodies(NOTIFICATION) == [b"\x04\x00"]
    assert peer.closed


def test_the_error_wait_doubles_up_to_its_maximum() -> None:
    config = speaker_config("10.0.0.1", [bgp("x", "10.0.0.9", passive=True)])
    peer = HandPeer(config)
    waits = []
    for _ in range(5):
        peer.send_bytes(b"\0" * 19)
        x = peer.speaker.peers["x"]
        assert peer.speaker.accepted(0x0A000009, now=peer.now) is None
        waits.append(x.penalty.delay_s)
        peer.pass_time(x.penalty.delay_s)
        peer.connect()
    assert waits == [5, 10, 20, 30, 30]


def test_graceful_restart_keeps_what_the_peer_repeats_and_drops_the_rest() -> None:
    restart = Restart(120, False, False, ((1, True),))
    capabilities = Capabilities(families=(1,), as4=64512, restart=restart)
    peer = HandPeer(
        speaker_config(
            "10.0.0.1",
            [bgp("x", "10.0.0.9", passive=True, graceful_restart=GracefulRestart.ON)],
        )
    )
    peer.establish(capabilities)
    attributes = bytes.fromhex("40010100 400200 4003040a000009 40050400000064")
    both = bytes.fromhex("18c0a801 18c0a802")
    head = b"\0\0" + len(attributes).to_bytes(2, "big") + attributes
    peer.send(UPDATE, head + both)
    peer.lose("Connection reset by peer")
    assert sorted(peer.nets()) == ["192.168.1.0/24", "192.168.2.0/24"]
    peer.connect()
    peer.establish(capabilities)
    peer.send(UPDATE, head + both[:4])
    assert sorted(peer.nets()) == ["192.168.1.0/24", "192.168.2.0/24"]
    peer.send(UPDATE, bytes(4))
    assert peer.nets() == ["192.168.1.0/24"]
