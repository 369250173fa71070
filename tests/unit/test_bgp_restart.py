"""Refresh, graceful restart and its long-lived and notification forms, message by message."""

from __future__ import annotations

import pytest

from agents.bird import export, intake
from agents.bird.attributes import GRACEFUL_SHUTDOWN, LLGR_STALE, NO_LLGR
from agents.bird.capabilities import Capabilities, LongLived, Restart
from agents.bird.config import AddPaths, BfdConfig, BfdOptions, GracefulRestart
from agents.bird.events import BfdUnwanted, BfdWanted, Dial
from agents.bird.messages import (
    KEEPALIVE,
    NOTIFICATION,
    OPEN,
    ROUTE_REFRESH,
    UPDATE,
    Open,
    message,
)
from agents.bird.net import Afi, Net
from agents.bird.restart import STALE_PATH_S
from agents.bird.snapshot import protocols
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from tests.bgp_speakers import (
    HandPeer,
    World,
    bgp,
    calico_bgp,
    channel,
    speaker_config,
)
from tests.unit.test_bgp_update_errors import update

BOTH = ("192.168.1.0/24", "192.168.2.0/24")
INSIDE = bytes.fromhex("40010100 400200 4003040a000009 40050400000064")
END_OF_RIB = bytes(4)
RESTART = Restart(120, False, False, ((1, True),))


def keys(*nets: str) -> bytes:
    return b"".join(Net.parse(net).key for net in nets)


def capable(**changes: object) -> Capabilities:
    settings: dict[str, object] = {
        "families": (1,),
        "route_refresh": True,
        "as4": 64512,
        "enhanced_refresh": True,
        "restart": RESTART,
        **changes,
    }
    return Capabilities(**settings)  # type: ignore[arg-type]


def with_routes(capabilities: Capabilities, **changes: object) -> HandPeer:
    settings: dict[str, object] = {"graceful_restart": GracefulRestart.ON, **changes}
    config = bgp("x", "10.0.0.9", passive=True, **settings)
    peer = HandPeer(speaker_config("10.0.0.1", [config], ["10.1.0.0/24"]))
    peer.establish(capabilities)
    peer.send(UPDATE, update(INSIDE, keys(*BOTH)))
    return peer


def learnt(peer: HandPeer) -> list[str]:
    return sorted(net for net in peer.nets() if net in BOTH)


def test_a_request_is_answered_between_borr_and_eorr() -> None:
    peer = with_routes(capable())
    peer.received.clear()
    peer.send(ROUTE_REFRESH, bytes((0, 1, 0, 1)))
    assert [(kind, body.hex()) for kind, body in peer.received if kind == ROUTE_REFRESH] == [
        (ROUTE_REFRESH, "00010101"),
        (ROUTE_REFRESH, "00010201"),
    ]
    assert [kind for kind, _ in peer.received] == [ROUTE_REFRESH, UPDATE, ROUTE_REFRESH]


def test_requests_that_come_faster_than_answers_are_answered_together() -> None:
    peer = with_routes(capable())
    peer.received.clear()
    request = message(ROUTE_REFRESH, bytes((0, 1, 0, 1)))
    peer.send_bytes(request * 50)
    assert [kind for kind, _ in peer.received] == [ROUTE_REFRESH, UPDATE, ROUTE_REFRESH]


def test_without_enhanced_refresh_the_routes_come_alone() -> None:
    peer = with_routes(capable(enhanced_refresh=False))
    peer.received.clear()
    peer.send(ROUTE_REFRESH, bytes((0, 1, 0, 1)))
    assert [kind for kind, _ in peer.received] == [UPDATE]


def test_what_a_peer_does_not_repeat_before_eorr_is_gone() -> None:
    peer = with_routes(capable())
    peer.send(ROUTE_REFRESH, bytes((0, 1, 1, 1)))
    peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    assert learnt(peer) == list(BOTH)
    peer.send(ROUTE_REFRESH, bytes((0, 1, 2, 1)))
    assert learnt(peer) == [BOTH[0]]


def test_reload_asks_the_peer_to_repeat() -> None:
    peer = with_routes(capable())
    peer.received.clear()
    assert peer.speaker.reload("x", now=peer.now, outgoing=False)
    peer.pump()
    assert peer.bodies(ROUTE_REFRESH) == [bytes((0, 1, 0, 1))]


def test_families_the_peer_did_not_preserve_are_dropped_when_it_is_back() -> None:
    peer = with_routes(capable())
    peer.lose()
    assert learnt(peer) == list(BOTH)
    peer.connect()
    peer.establish(capable(restart=Restart(120, True, False, ((1, False),))))
    assert learnt(peer) == []


def test_a_family_the_peer_s_restart_does_not_name_goes_with_the_connection() -> None:
    peer = with_routes(capable(restart=Restart(120, False, False, ((2, True),))))
    peer.lose()
    assert learnt(peer) == []


def test_a_peer_that_came_back_and_never_says_that_it_is_done_is_not_waited_for_for_ever() -> None:
    peer = with_routes(capable())
    peer.lose()
    peer.connect()
    peer.establish(capable(restart=Restart(120, True, False, ((1, True),))))
    peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    for _ in range(round(STALE_PATH_S / 60) - 1):
        peer.pass_time(60)
        peer.send(KEEPALIVE)
    assert learnt(peer) == list(BOTH)
    peer.pass_time(61)
    assert learnt(peer) == [BOTH[0]]
    assert not peer.closed


def test_a_peer_that_cannot_restart_loses_its_routes_with_its_connection() -> None:
    peer = with_routes(capable(restart=Restart()))
    peer.lose("Connection reset by peer")
    assert learnt(peer) == []


def test_a_notification_ends_everything_unless_both_have_the_n_bit() -> None:
    peer = with_routes(capable())
    peer.send(NOTIFICATION, b"\x06\x04")
    assert learnt(peer) == []
    able = Restart(120, False, True, ((1, True),))
    peer = with_routes(capable(restart=able), notification_restart=True)
    peer.send(NOTIFICATION, b"\x06\x04")
    assert learnt(peer) == list(BOTH)
    peer = with_routes(capable(restart=able), notification_restart=True)
    peer.send(NOTIFICATION, b"\x06\x09\x06\x02")
    assert learnt(peer) == []


def test_with_the_n_bit_our_own_shutdown_is_a_hard_reset() -> None:
    able = Restart(120, False, True, ((1, True),))
    peer = with_routes(capable(restart=able), notification_restart=True)
    peer.speaker.disable("x", now=peer.now)
    peer.pump()
    assert peer.bodies(NOTIFICATION) == [b"\x06\x09\x06\x02"]
    assert learnt(peer) == []


def test_long_lived_routes_are_the_last_choice_and_end_in_time() -> None:
    lasting = LongLived(((1, True, 1000),))
    peer = with_routes(capable(long_lived=lasting), long_lived=GracefulRestart.ON)
    no_llgr = INSIDE + bytes((0xC0, 8, 4)) + NO_LLGR.to_bytes(4, "big")
    peer.send(UPDATE, update(no_llgr, keys(BOTH[1])))
    peer.lose()
    peer.pass_time(119)
    assert learnt(peer) == list(BOTH)
    peer.pass_time(2)
    assert learnt(peer) == [BOTH[0]]
    best = peer.speaker.tables[Afi.IPV4].best(Net.parse(BOTH[0]).key)
    assert best is not None
    assert best.attrs.communities == LLGR_STALE.to_bytes(4, "big")
    assert best.long_lived_stale
    peer.pass_time(990)
    assert learnt(peer) == [BOTH[0]]
    peer.pass_time(20)
    assert learnt(peer) == []


def test_the_restarting_speaker_says_so_and_waits_for_end_of_rib() -> None:
    config = speaker_config(
        "10.0.0.1", [calico_bgp("x", "10.0.0.9", passive=True)], ["10.1.0.0/24"]
    )
    peer = HandPeer(config)
    peer.speaker = Speaker(config, peer.speaker.rng, now=0.0, recover=True)
    peer.connect()
    assert "4006807800010100" in peer.bodies(OPEN)[0].hex()
    peer.establish(capable())
    assert peer.bodies(UPDATE) == []
    info = protocols(peer.speaker, now=0.0)[-1]
    assert info.state == "wait"
    peer.send(UPDATE, bytes(4))
    assert not peer.speaker.recovering
    assert len(peer.bodies(UPDATE)) == 2


def test_a_neighbor_back_with_path_identifiers_repeats_what_it_said_without() -> None:
    both_ways = channel(add_paths=AddPaths.ON)
    peer = with_routes(capable(), ipv4=both_ways)
    peer.lose()
    peer.connect()
    peer.establish(capable(add_path=((1, 3),)))
    peer.send(UPDATE, update(INSIDE, bytes(4) + keys(BOTH[0])))
    assert learnt(peer) == list(BOTH)
    peer.send(UPDATE, END_OF_RIB)
    assert learnt(peer) == [BOTH[0]]


def test_end_of_rib_follows_all_that_was_learnt_during_the_recovery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "FEED_SLICE", 1)
    peers = [bgp("x", "10.0.0.9", passive=True, graceful_restart=GracefulRestart.ON)]
    config = speaker_config("10.0.0.1", peers)
    peer = HandPeer(config)
    peer.speaker = Speaker(config, peer.speaker.rng, now=0.0, recover=True)
    peer.connect()
    peer.establish(capable())
    nets = [f"10.{i}.0.0/16" for i in range(4)]
    peer.speaker.configure(speaker_config("10.0.0.1", peers, nets), now=0.0)
    peer.send(UPDATE, END_OF_RIB)
    assert not peer.speaker.recovering
    told = peer.bodies(UPDATE)
    assert len(told) == 5
    assert told.index(END_OF_RIB) == 4


def test_recovery_does_not_wait_for_ever() -> None:
    config = speaker_config(
        "10.0.0.1", [calico_bgp("x", "10.0.0.9")], ["10.1.0.0/24"], recovery_wait_s=10.0
    )
    world = World()
    speaker = world.add(config, recover=True)
    world.run(9)
    assert speaker.recovering
    world.run(2)
    assert not speaker.recovering


def test_a_new_connection_of_a_long_established_peer_is_its_restart() -> None:
    peer = with_routes(capable())
    old = peer.number
    peer.pass_time(60)
    peer.send(KEEPALIVE)
    peer.connect()
    peer.send(OPEN, Open(64512, 240, parse_ip("10.0.0.9"), capable()).body())
    assert peer.speaker.peers["x"].session is None
    assert learnt(peer) == list(BOTH)
    peer.send(KEEPALIVE)
    assert peer.speaker.peers["x"].session is not None
    assert peer.number != old


def test_a_second_connection_right_after_the_first_is_a_collision() -> None:
    peer = with_routes(capable())
    peer.connect()
    peer.send(OPEN, Open(64512, 240, parse_ip("10.0.0.9"), capable()).body())
    assert peer.bodies(NOTIFICATION) == [b"\x06\x07"]
    assert peer.speaker.peers["x"].session is not None


@pytest.mark.parametrize(("graceful", "left"), [(False, 0), (True, 2)])
def test_bfd_ends_a_session_at_once(graceful: bool, left: int) -> None:
    peer = with_routes(capable(), bfd=BfdOptions(graceful=graceful))
    peer.speaker.bfd_down(parse_ip("10.0.0.9"), now=peer.now)
    peer.pump()
    assert peer.closed
    assert len(learnt(peer)) == left
    assert peer.speaker.peers["x"].last_error == ("Error: ", "BFD session down")


def test_bfd_is_asked_for_while_a_session_is_up() -> None:
    world = World()
    peers = [bgp("b", "10.0.0.2", bfd=BfdOptions())]
    world.add(speaker_config("10.0.0.1", peers, bfd=BfdConfig()))
    world.add(speaker_config("10.0.0.2", [bgp("a", "10.0.0.1")]))
    assert world.run(5, lambda: world.is_up("10.0.0.1", "10.0.0.2"))
    world.crash("10.0.0.2")
    world.run(1)
    assert asked_of_bfd(world) == [BfdWanted, BfdUnwanted]


def asked_of_bfd(world: World) -> list[type]:
    return [type(e) for _, _, e in world.events if isinstance(e, BfdWanted | BfdUnwanted)]


def test_a_session_outlives_the_end_of_bfd_and_is_watched_again_with_it() -> None:
    world = World()
    peers = [bgp("b", "10.0.0.2", bfd=BfdOptions())]
    speaker = world.add(speaker_config("10.0.0.1", peers))
    world.add(speaker_config("10.0.0.2", [bgp("a", "10.0.0.1")]))
    assert world.run(5, lambda: world.is_up("10.0.0.1", "10.0.0.2"))
    assert asked_of_bfd(world) == []
    for bfd in (BfdConfig(), BfdConfig(disabled=True), BfdConfig(), None):
        speaker.configure(speaker_config("10.0.0.1", peers, bfd=bfd), now=world.now)
        world.settle("10.0.0.1")
    assert asked_of_bfd(world) == [BfdWanted, BfdUnwanted, BfdWanted, BfdUnwanted]
    assert world.is_up("10.0.0.1", "10.0.0.2")


def test_ttl_security_asks_for_255_and_no_less_than_the_hops_allow() -> None:
    world = World()
    secure = bgp("b", "10.0.0.2", peer_as=65002, multihop=3, ttl_security=True)
    world.add(speaker_config("10.0.0.1", [secure]))
    world.run(5)
    dial = next(e for _, _, e in world.events if isinstance(e, Dial))
    assert (dial.ttl, dial.min_ttl) == (255, 253)


def test_a_peer_that_reads_nothing_gets_the_latest_state_when_it_reads_again() -> None:
    peer = with_routes(capable())
    peer.speaker.set_congested(peer.number, True, now=peer.now)
    peer.received.clear()
    x = peer.speaker.peers["x"].config
    for last in range(1, 6):
        peer.speaker.configure(speaker_config("10.0.0.1", [x], [f"10.{last}.0.0/24"]), now=0.0)
    peer.pump()
    assert peer.bodies(UPDATE) == []
    peer.speaker.set_congested(peer.number, False, now=peer.now)
    peer.pump()
    sent = b"".join(peer.bodies(UPDATE))
    assert keys("10.5.0.0/24") in sent
    assert keys("10.3.0.0/24") not in sent


def test_a_peer_that_never_reads_is_given_up() -> None:
    """RFC 9687: twice the hold time, at least eight minutes."""
    peer = with_routes(capable())
    peer.speaker.set_congested(peer.number, True, now=peer.now)
    for _ in range(8):
        peer.pass_time(59)
        peer.send(KEEPALIVE)
    assert not peer.closed
    peer.pass_time(20)
    assert peer.closed


def test_every_path_leaves_with_an_identifier_of_its_own() -> None:
    both = channel(add_paths=AddPaths.ON)
    config = bgp("x", "10.0.0.9", passive=True, ipv4=both, rr_client=True)
    other = bgp("y", "10.0.0.8", passive=True)
    peer = HandPeer(speaker_config("10.0.0.1", [config, other], ["192.168.1.0/24"]))
    peer.establish(capable(add_path=((1, 3),)))
    number = peer.number
    peer.neighbor = "10.0.0.8"
    peer.connect()
    peer.establish(capable(), router_id="10.0.0.8")
    peer.send(UPDATE, update(INSIDE, keys("192.168.1.0/24")))
    sent = peer.speaker.peers["x"].exchange.exporters[Afi.IPV4].sent
    assert sorted(key.hex() for key in sent) == [
        "0000000118c0a801",
        "0000000218c0a801",
    ]
    peer.send(UPDATE, update(b"", b"", keys("192.168.1.0/24")))
    assert [key.hex() for key in sent] == ["0000000118c0a801"]
    assert number != peer.number


def test_a_graceful_shutdown_is_honoured_between_ases_only() -> None:
    """RFC 8326 §4.2: the route of the neighbour AS becomes the last choice."""
    leaving = bytes((0xC0, 8, 4)) + GRACEFUL_SHUTDOWN.to_bytes(4, "big")
    beyond = bytes.fromhex("40010100 4002060201 0000fdea 4003040a000009")
    for asn, attributes, wanted in ((64512, INSIDE, 100), (65002, beyond, 0)):
        config = bgp("x", "10.0.0.9", passive=True, peer_as=asn)
        peer = HandPeer(speaker_config("10.0.0.1", [config]))
        peer.establish(capable(as4=asn), asn=asn)
        peer.send(UPDATE, update(attributes + leaving, keys(BOTH[0])))
        best = peer.speaker.tables[Afi.IPV4].best(Net.parse(BOTH[0]).key)
        assert best is not None
        assert best.attrs.local_pref == wanted


def test_attributes_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_KNOWN", 3)
    peer = with_routes(capable())
    nets = [f"10.{number}.0.0/16" for number in range(2, 12)]
    for number, net in enumerate(nets):
        med = bytes((0x80, 4, 4, 0, 0, 0, number % 5))
        peer.send(UPDATE, update(INSIDE[:-7] + med + INSIDE[-7:], keys(net)))
    found = peer.speaker.peers["x"].exchange._intake
    assert found is not None
    assert 0 < len(found._known) <= 3
    table = peer.speaker.tables[Afi.IPV4]
    meds = [table.best(Net.parse(net).key).attrs.med for net in nets]  # type: ignore[union-attr]
    assert meds == [number % 5 for number in range(10)]


def test_statistics_are_counted_as_bird_counts_them() -> None:
    peer = with_routes(capable())
    peer.send(UPDATE, update(INSIDE, keys(BOTH[0])))
    peer.send(UPDATE, update(b"", b"", keys(BOTH[1], "192.168.3.0/24")))
    (info,) = protocols(peer.speaker, now=peer.now)[-1].channels
    stats = info.stats
    assert (info.imported, info.exported, info.preferred) == (1, 1, 1)
    assert (stats.imp_updates_received, stats.imp_updates_ignored) == (3, 1)
    assert stats.imp_updates_accepted == 2
    assert (stats.imp_withdraws_received, stats.imp_withdraws_ignored) == (2, 1)
    assert (stats.exp_updates_received, stats.exp_updates_rejected) == (3, 2)
    assert stats.exp_updates_accepted == 1


@pytest.mark.parametrize("is_told_late", [False, True])
def test_path_identifiers_are_remembered_as_long_as_somebody_was_told_of_them(
    is_told_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.bird.channel.LEAST_TX_IDS", 8)
    both_ways = channel(add_paths=AddPaths.ON)
    peers = [
        bgp("from", "10.0.0.8", passive=True, ipv4=both_ways, peer_as=65001),
        bgp("to", "10.0.0.9", passive=True, ipv4=both_ways),
    ]
    peer = HandPeer(speaker_config("10.0.0.1", peers))
    peer.establish(capable(add_path=((1, 3),)))
    to, exporter = peer.number, peer.speaker.peers["to"].exchange.exporters[Afi.IPV4]
    peer.neighbor = "10.0.0.8"
    peer.connect()
    peer.establish(capable(add_path=((1, 3),), as4=65001), asn=65001, router_id="10.0.0.8")
    source = peer.speaker.peers["from"].exchange.channels[Afi.IPV4]
    attributes = bytes.fromhex("40010100 4002060201 0000fde9 4003040a000008")
    net, gone = (Net.parse(text).key for text in BOTH)
    peer.send(UPDATE, update(attributes, bytes((0, 0, 0, 1)) + net))
    peer.send(UPDATE, update(attributes, bytes((0, 0, 0, 2)) + gone))
    assert len(exporter.sent) == 2
    first, second = source.tx_path_id(1), source.tx_path_id(2)
    peer.speaker.set_congested(to, is_told_late, now=peer.now)
    peer.send(UPDATE, update(b"", b"", withdrawn=bytes((0, 0, 0, 2)) + gone))
    for path_id in range(3, 30):
        route = path_id.to_bytes(4, "big") + gone
        peer.send(UPDATE, update(attributes, route))
        peer.send(UPDATE, update(b"", b"", withdrawn=route))
    peer.speaker.set_congested(to, False, now=peer.now)
    peer.pump()
    assert list(exporter.sent) == [first.to_bytes(4, "big") + net]
    assert source.tx_path_id(1) == first
    if not is_told_late:
        assert source.tx_path_id(2) != second
