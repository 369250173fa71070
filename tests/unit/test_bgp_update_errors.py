"""What each malformed message gets: RFC 4271 §6 and RFC 7606, one test per case.

An external peer (AS 65001) has announced 192.168.9.0/24; a case sends one message more.  Answers:
``keep`` the session stays and the route too, ``withdraw`` the session stays and the route is gone
(treat-as-withdraw), "c/s" is the NOTIFICATION before the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agents.bird.attribute_encoder import attribute
from agents.bird.capabilities import Capabilities
from agents.bird.filters import ACCEPT_ALL
from agents.bird.messages import (
    KEEPALIVE,
    MARKER,
    NOTIFICATION,
    OPEN,
    ROUTE_REFRESH,
    UPDATE,
    Open,
    message,
)
from agents.bird.net import Afi, Net
from emulator.addr import parse_ip
from tests.bgp_speakers import HandPeer, bgp, channel, speaker_config

if TYPE_CHECKING:
    from agents.bird.attributes import Attrs
    from agents.bird.config import BgpConfig

CAPABILITIES = Capabilities(families=(1,), route_refresh=True, as4=65001, enhanced_refresh=True)
NET = Net.parse("192.168.9.0/24")
NLRI = NET.key

ORIGIN = attribute(0x40, 1, b"\x00")
AS_PATH = attribute(0x40, 2, bytes.fromhex("0201 0000fde9"))
NEXT_HOP = attribute(0x40, 3, bytes((10, 0, 0, 9)))
GOOD = ORIGIN + AS_PATH + NEXT_HOP


def update(attributes: bytes, nlri: bytes = NLRI, withdrawn: bytes = b"") -> bytes:
    return (
        len(withdrawn).to_bytes(2, "big")
        + withdrawn
        + len(attributes).to_bytes(2, "big")
        + attributes
        + nlri
    )


def external(**changes: object) -> BgpConfig:
    return bgp("x", "10.0.0.9", peer_as=65001, passive=True, **changes)


def peer_with_route(config: BgpConfig | None = None, asn: int = 65001) -> HandPeer:
    peer = HandPeer(speaker_config("10.0.0.1", [config or external()]))
    peer.establish(
        Capabilities(families=(1,), route_refresh=True, as4=asn, enhanced_refresh=True), asn=asn
    )
    peer.send(UPDATE, update(GOOD))
    assert peer.nets() == ["192.168.9.0/24"]
    return peer


def answer(peer: HandPeer) -> str:
    """What became of the session and its route."""
    notifications = peer.bodies(NOTIFICATION)
    if notifications:
        assert peer.closed
        assert peer.nets() == []
        return f"{notifications[0][0]}/{notifications[0][1]}"
    assert not peer.closed
    peer.send(KEEPALIVE)
    assert not peer.closed
    return "keep" if peer.nets() == ["192.168.9.0/24"] else "withdraw"


def header(length: int, kind: int, body: bytes = b"", marker: bytes = MARKER) -> bytes:
    return marker + length.to_bytes(2, "big") + bytes((kind,)) + body


HEADERS = {
    "marker not all ones": (header(19, 4, marker=b"\xff" * 15 + b"\0"), "1/1"),
    "length 18": (header(18, 4), "1/2"),
    "length 4097": (header(4097, 2, bytes(4078)), "1/2"),
    "KEEPALIVE of 20": (header(20, 4, b"\0"), "1/2"),
    "UPDATE of 22": (header(22, 2, bytes(3)), "1/2"),
    "type 0": (header(19, 0), "1/3"),
    "type 9": (header(19, 9), "1/3"),
    "OPEN in Established": (message(OPEN, Open(65001, 240, 1, CAPABILITIES).body()), "5/3"),
    "ROUTE-REFRESH of 24": (message(ROUTE_REFRESH, bytes((0, 1, 0, 1, 0))), "7/1"),
    "ROUTE-REFRESH of an unknown family": (message(ROUTE_REFRESH, bytes((0, 77, 0, 1))), "keep"),
    "ROUTE-REFRESH of an unknown subtype": (message(ROUTE_REFRESH, bytes((0, 1, 77, 1))), "keep"),
    "BoRR": (message(ROUTE_REFRESH, bytes((0, 1, 1, 1))), "keep"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_header_and_state_errors(case: str) -> None:
    data, expected = HEADERS[case]
    peer = peer_with_route()
    peer.send_bytes(data)
    assert answer(peer) == expected


def test_a_long_route_refresh_without_enhanced_refresh_is_a_bad_length() -> None:
    peer = HandPeer(speaker_config("10.0.0.1", [external()]))
    peer.establish(Capabilities(families=(1,), route_refresh=True, as4=65001), asn=65001)
    peer.send(ROUTE_REFRESH, bytes((0, 1, 0, 1, 0)))
    assert answer(peer) == "1/2"


def path(*octets: int) -> bytes:
    return attribute(0x40, 2, bytes(octets))


def reach(value: bytes, flags: int = 0x80) -> bytes:
    return attribute(flags, 14, value)


OWN_AS = attribute(0x40, 2, bytes.fromhex("0202 0000fde9 0000fc00"))
HOP = bytes((10, 0, 0, 9))

UPDATES = {
    "withdrawn length overflows": (b"\x00\xff\x00\x00", "3/1"),
    "attribute length overflows": (b"\x00\x00\x00\xff\x40", "3/1"),
    "missing ORIGIN": (update(AS_PATH + NEXT_HOP), "withdraw"),
    "missing AS_PATH": (update(ORIGIN + NEXT_HOP), "withdraw"),
    "missing NEXT_HOP": (update(ORIGIN + AS_PATH), "withdraw"),
    "ORIGIN 5": (update(attribute(0x40, 1, b"\x05") + AS_PATH + NEXT_HOP), "withdraw"),
    "ORIGIN of 2 octets": (update(attribute(0x40, 1, b"\0\0") + AS_PATH + NEXT_HOP), "withdraw"),
    "ORIGIN with flags 0xC0": (
        update(attribute(0xC0, 1, b"\0") + AS_PATH + NEXT_HOP),
        "withdraw",
    ),
    "AS_PATH segment overruns": (
        update(ORIGIN + path(2, 9, 0, 0, 0xFD, 0xE9) + NEXT_HOP),
        "withdraw",
    ),
    "AS_PATH segment of type 9": (
        update(ORIGIN + path(9, 1, 0, 0, 0xFD, 0xE9) + NEXT_HOP),
        "withdraw",
    ),
    "AS_PATH with an empty segment": (update(ORIGIN + path(2, 0) + NEXT_HOP), "withdraw"),
    "NEXT_HOP of 3 octets": (
        update(ORIGIN + AS_PATH + attribute(0x40, 3, b"\x0a\0\0")),
        "withdraw",
    ),
    **{
        f"NEXT_HOP {'.'.join(map(str, hop))}": (
            update(ORIGIN + AS_PATH + attribute(0x40, 3, bytes(hop))),
            "withdraw",
        )
        for hop in ((0, 0, 0, 0), (224, 0, 0, 1), (240, 0, 0, 1), (127, 0, 0, 1), (10, 0, 0, 1))
    },
    "MED of 5 octets": (update(GOOD + attribute(0x80, 4, bytes(5))), "withdraw"),
    "COMMUNITIES of 5 octets": (update(GOOD + attribute(0xC0, 8, bytes(5))), "withdraw"),
    "EXTENDED COMMUNITIES of 7": (update(GOOD + attribute(0xC0, 16, bytes(7))), "withdraw"),
    "LARGE COMMUNITIES of 11": (update(GOOD + attribute(0xC0, 32, bytes(11))), "withdraw"),
    "empty COMMUNITIES": (update(GOOD + attribute(0xC0, 8, b"")), "withdraw"),
    "CLUSTER_LIST of 5 from outside": (update(GOOD + attribute(0x80, 10, bytes(5))), "keep"),
    "ATOMIC_AGGREGATE of 1": (update(GOOD + attribute(0x40, 6, b"\0")), "keep"),
    "AGGREGATOR of 5": (update(GOOD + attribute(0xC0, 7, bytes(5))), "keep"),
    "ATOMIC_AGGREGATE with flags 0xC0": (update(GOOD + attribute(0xC0, 6, b"")), "withdraw"),
    "AS4_PATH with flags 0x80": (
        update(GOOD + attribute(0x80, 17, bytes.fromhex("0201 0000fde9"))),
        "withdraw",
    ),
    "MP_REACH with flags 0xC0": (
        update(ORIGIN + AS_PATH + reach(b"\0\1\1\4" + HOP + b"\0" + NLRI, 0xC0), b""),
        "withdraw",
    ),
    "MP_UNREACH with flags 0xC0": (
        update(attribute(0xC0, 15, b"\0\1\1" + NLRI), b""),
        "3/1",
    ),
    "MP_REACH beside NLRI without NEXT_HOP": (
        update(ORIGIN + AS_PATH + reach(b"\0\1\1\4" + HOP + b"\0" + NLRI), b"\x08\x0b"),
        "withdraw",
    ),
    "ORIGIN 5 without NLRI": (update(attribute(0x40, 1, b"\x05") + AS_PATH, b""), "3/1"),
    "ORIGIN 5 beside MP_UNREACH": (
        update(attribute(0x40, 1, b"\x05") + attribute(0x80, 15, b"\0\1\1" + NLRI), b""),
        "3/1",
    ),
    "ORIGIN alone beside MP_UNREACH": (
        update(ORIGIN + attribute(0x80, 15, b"\0\2\1\x40" + bytes(8)), b""),
        "keep",
    ),
    "unknown well-known 99": (update(GOOD + attribute(0x40, 99, b"\1")), "3/2"),
    "duplicate ORIGIN": (update(GOOD + attribute(0x40, 1, b"\x02")), "keep"),
    "duplicate MP_REACH": (
        update(ORIGIN + AS_PATH + 2 * reach(b"\0\1\1\4" + HOP + b"\0" + NLRI), b""),
        "3/1",
    ),
    "MP_REACH of IPv4": (
        update(ORIGIN + AS_PATH + reach(b"\0\1\1\4" + HOP + b"\0" + NLRI), b""),
        "keep",
    ),
    "MP_REACH next hop of 5": (
        update(ORIGIN + AS_PATH + reach(b"\0\1\1\5" + HOP + b"\0\0" + NLRI), b""),
        "3/9",
    ),
    "MP_REACH of 3 octets": (update(ORIGIN + AS_PATH + reach(b"\0\1\1"), b""), "3/9"),
    "MP_UNREACH of 2 octets": (update(attribute(0x80, 15, b"\0\1"), b""), "3/9"),
    "MP_REACH of a family not negotiated": (
        update(ORIGIN + AS_PATH + reach(b"\0\2\1\x10" + bytes(16) + b"\0\x40" + bytes(8)), b""),
        "keep",
    ),
    "NLRI of length 33": (update(GOOD, b"\x21" + bytes(5)), "3/10"),
    "truncated NLRI": (update(GOOD, b"\x18\xc0\xa8"), "3/10"),
    "own AS in the path": (update(ORIGIN + OWN_AS + NEXT_HOP), "withdraw"),
    "first AS is not the peer's": (
        update(ORIGIN + attribute(0x40, 2, bytes.fromhex("0201 0000aaaa")) + NEXT_HOP),
        "keep",
    ),
    "AS 0 in the path": (update(ORIGIN + path(2, 1, 0, 0, 0, 0) + NEXT_HOP), "withdraw"),
    "CONFED segment": (update(ORIGIN + path(3, 1, 0, 0, 0xFD, 0xE9) + NEXT_HOP), "withdraw"),
    "the last attribute overruns": (update(GOOD + bytes((0xC0, 8, 40, 1))), "withdraw"),
    "extended length where it need not be": (
        update(bytes((0x50, 1, 0, 1, 0)) + AS_PATH + NEXT_HOP),
        "keep",
    ),
    "reversed order": (update(NEXT_HOP + AS_PATH + ORIGIN), "keep"),
    "host bits in the NLRI": (update(GOOD, b"\x14\xc0\xa8\x0f"), "keep"),
    "attributes without NLRI": (update(GOOD, b""), "keep"),
    "End-of-RIB": (bytes(4), "keep"),
    "the prefix 127.0.0.0/8": (update(GOOD, b"\x08\x7f"), "keep"),
    "LOCAL_PREF from outside": (update(GOOD + attribute(0x40, 5, bytes(4))), "keep"),
    "ORIGINATOR_ID from outside": (update(GOOD + attribute(0x80, 9, HOP)), "keep"),
}


@pytest.mark.parametrize("case", UPDATES)
def test_update_errors(case: str) -> None:
    body, expected = UPDATES[case]
    peer = peer_with_route()
    peer.send(UPDATE, body)
    if case == "host bits in the NLRI":
        assert peer.nets() == ["192.168.9.0/24", "192.168.0.0/20"]
        peer.send(UPDATE, update(b"", b"", b"\x14\xc0\xa8\x00"))
    assert answer(peer) == expected


def best(peer: HandPeer) -> Attrs:
    found = peer.speaker.tables[Afi.IPV4].best(NLRI)
    assert found is not None
    return found.attrs


def test_local_pref_and_reflection_attributes_from_outside_are_ignored() -> None:
    peer = peer_with_route()
    extra = attribute(0x40, 5, bytes((0, 0, 0, 9))) + attribute(0x80, 9, HOP)
    peer.send(UPDATE, update(GOOD + extra + attribute(0x80, 10, bytes(4))))
    assert best(peer).local_pref == 100
    assert best(peer).originator_id is None
    assert best(peer).cluster_list == b""


def test_the_first_of_duplicate_attributes_wins() -> None:
    peer = peer_with_route()
    peer.send(UPDATE, update(GOOD + attribute(0x40, 1, b"\x02")))
    assert best(peer).origin == 0


def test_cluster_list_of_5_octets_from_inside_is_treated_as_withdraw() -> None:
    peer = peer_with_route(bgp("x", "10.0.0.9", passive=True), asn=64512)
    peer.send(UPDATE, update(GOOD + attribute(0x80, 10, bytes(5))))
    assert answer(peer) == "withdraw"


def test_enforce_first_as_refuses_another_first_as() -> None:
    peer = peer_with_route(external(enforce_first_as=True))
    other = attribute(0x40, 2, bytes.fromhex("0201 0000aaaa"))
    peer.send(UPDATE, update(ORIGIN + other + NEXT_HOP))
    assert answer(peer) == "withdraw"


def test_allow_local_as_takes_that_many_of_our_own() -> None:
    peer = peer_with_route(external(allow_local_as=1))
    peer.send(UPDATE, update(ORIGIN + OWN_AS + NEXT_HOP))
    assert answer(peer) == "keep"


def test_a_loopback_next_hop_is_taken_from_a_loopback_peer() -> None:
    config = bgp("x", "127.0.0.9", peer_as=65001, passive=True)
    peer = HandPeer(speaker_config("10.0.0.1", [config]), neighbor="127.0.0.9")
    peer.establish(CAPABILITIES, asn=65001)
    peer.send(UPDATE, update(ORIGIN + AS_PATH + attribute(0x40, 3, bytes((127, 0, 0, 9)))))
    assert peer.nets() == ["192.168.9.0/24"]


def test_unknown_attributes_pass_on_with_partial_or_not_at_all() -> None:
    other = bgp("y", "10.0.0.8", peer_as=65002, passive=True)
    peer = HandPeer(speaker_config("10.0.0.1", [external(), other]))
    peer.establish(CAPABILITIES, asn=65001)
    number = peer.speaker.accepted(parse_ip("10.0.0.8"), now=0.0)
    assert number is not None
    second = Capabilities(families=(1,), as4=65002)
    for data in (
        message(OPEN, Open(65002, 240, 8, second).body()),
        message(KEEPALIVE),
    ):
        peer.speaker.receive_data(number, data, now=0.0)
    peer.pump()
    first, peer.number = peer.number, number
    unknown = attribute(0xC0, 199, b"abc") + attribute(0x80, 198, b"xyz")
    peer.speaker.receive_data(first, message(UPDATE, update(GOOD + unknown)), now=0.0)
    peer.pump()
    sent = peer.bodies(UPDATE)[-1]
    assert bytes((0xE0, 199, 3)) + b"abc" in sent
    assert b"xyz" not in sent


OPENS = {
    "version 3": (b"\x03" + Open(65001, 240, 9, CAPABILITIES).body()[1:], "2/1"),
    "wrong AS": (Open(65009, 240, 9, Capabilities(families=(1,))).body(), "2/2"),
    "AS 0": (Open(0, 240, 9, Capabilities(families=(1,))).body(), "2/2"),
    "router id 0": (Open(65001, 240, 0, CAPABILITIES).body(), "2/3"),
    "hold time 1": (Open(65001, 1, 9, CAPABILITIES).body(), "2/6"),
    "unknown optional parameter": (
        Open(65001, 240, 9).body()[:-1] + bytes((4, 77, 2, 0, 0)),
        "2/4",
    ),
    "no common family": (Open(65001, 240, 9, Capabilities(families=(2,))).body(), "2/7"),
    "capability overruns": (Open(65001, 240, 9).body()[:-1] + bytes((4, 2, 2, 1, 9)), "2/0"),
    "parameters overrun": (Open(65001, 240, 9).body()[:-1] + bytes((9, 2, 2, 1, 0)), "2/0"),
}


@pytest.mark.parametrize("case", OPENS)
def test_open_errors(case: str) -> None:
    body, expected = OPENS[case]
    peer = HandPeer(speaker_config("10.0.0.1", [external()]))
    peer.send(OPEN, body)
    assert answer(peer) == expected


GOOD_OPENS = {
    "without capabilities": Open(65001, 240, 9).body(),
    "with an unknown capability": Open(65001, 240, 9).body()[:-1] + bytes((6, 2, 4, 199, 2, 1, 1)),
    "of RFC 9072": Open(65001, 240, 9).body()[:-1]
    + b"\xff\xff\x00\x09"
    + b"\x02\x00\x06"
    + bytes((1, 4, 0, 1, 0, 1)),
}


@pytest.mark.parametrize("case", GOOD_OPENS)
def test_unusual_but_good_opens(case: str) -> None:
    peer = HandPeer(speaker_config("10.0.0.1", [external()]))
    peer.send(OPEN, GOOD_OPENS[case])
    peer.send(KEEPALIVE)
    assert peer.speaker.peers["x"].session is not None


def test_keepalive_in_open_sent_and_update_in_open_confirm() -> None:
    peer = HandPeer(speaker_config("10.0.0.1", [external()]))
    peer.send(KEEPALIVE)
    assert answer(peer) == "5/1"
    peer = HandPeer(speaker_config("10.0.0.1", [external()]))
    peer.send(OPEN, Open(65001, 240, 9, CAPABILITIES).body())
    peer.send(UPDATE, update(GOOD))
    assert answer(peer) == "5/2"


def test_a_notification_is_never_answered() -> None:
    peer = peer_with_route()
    peer.send(NOTIFICATION, b"\x06\x04")
    assert peer.bodies(NOTIFICATION) == []
    assert peer.closed
    assert peer.nets() == []


def test_long_capabilities_leave_in_rfc_9072_form_and_come_back() -> None:
    many = Capabilities(families=(1, 2), as4=7, add_path=((1, 3),), unknown=())
    opened = Open(7, 90, 1, many)
    assert Open.parse(opened.body()) == opened


def test_extended_messages_carry_more_than_4096_octets() -> None:
    config = bgp(
        "x",
        "10.0.0.9",
        passive=True,
        extended_messages=True,
        ipv4=channel(export_filter=ACCEPT_ALL),
    )
    routes = [f"10.{i // 256}.{i % 256}.0/24" for i in range(3000)]
    peer = HandPeer(speaker_config("10.0.0.1", [config], routes))
    peer.establish(Capabilities(families=(1,), as4=64512, extended_message=True))
    assert max(map(len, peer.bodies(UPDATE))) > 11000
