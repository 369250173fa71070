"""What our speaker makes of an UPDATE, and of many for one network, is what BIRD 2 makes of them.

Left out of the malformed ones is where the two differ on purpose (test_bgp_update_errors.py): AS 0,
next hops that are no hosts', cut prefixes, unknown well-known attributes.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest

from agents.bird.attribute_encoder import attribute
from agents.bird.attribute_types import OPTIONAL
from agents.bird.attributes import community_pairs, format_path, large_triples
from agents.bird.capabilities import Capabilities
from agents.bird.messages import (
    KEEPALIVE,
    MAX_EXTENDED_MESSAGE,
    NOTIFICATION,
    OPEN,
    UPDATE,
    Framer,
    Open,
    message,
)
from agents.bird.net import Afi, Net, format_address
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from tests import bgp_peers
from tests.bgp_peers import PORT, Bird, until
from tests.bgp_speakers import HandPeer, bgp, channel, speaker_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CASES = 100
BIRD2 = bgp_peers.bird2()
CLIENT = bgp_peers.bird2_client()
pytestmark = pytest.mark.skipif(BIRD2 is None or CLIENT is None, reason=bgp_peers.NO_BIRD2)
HERE = "127.0.105.250"
INSIDE, OUTSIDE = 64512, 65001
NEXT_HOP = 3
# MP_REACH_NLRI, MP_UNREACH_NLRI.
NETWORKS = (14, 15)
# The last octet of networks announced when all was said.
MARK = 200


class Attribute(NamedTuple):
    flags: int
    kind: int
    value: bytes


def prefix(case: int, last: int = 1) -> bytes:
    return bytes((24, 198, case, last))


def good(asn: int, med: int) -> list[Attribute]:
    path = b"" if asn == INSIDE else b"\2\1" + struct.pack(">I", asn)
    found = [
        Attribute(0x40, 1, b"\0"),
        Attribute(0x40, 2, path),
        Attribute(0x40, NEXT_HOP, bytes((10, 10, 64, 9))),
        Attribute(0x80, 4, struct.pack(">I", med)),
    ]
    return [*found, Attribute(0x40, 5, struct.pack(">I", 100))] if asn == INSIDE else found


def more(case: int) -> list[Attribute]:
    """Attributes that a route may have beside."""
    six = bytes.fromhex("fd000064000000000000000000000009")
    net = bytes((64, 0x20, 1, 0x0D, 0xB8, 0, case, 0, 0))
    return [
        Attribute(0x40, 6, b""),
        Attribute(0xC0, 7, struct.pack(">I", 65001) + bytes((10, 0, 0, 1))),
        Attribute(0xC0, 8, struct.pack(">4H", 1, 2, 3, 4)),
        Attribute(0x80, 9, bytes((1, 2, 3, 4))),
        Attribute(0x80, 10, bytes((1, 2, 3, 4))),
        Attribute(0x80, 14, b"\0\2\1\x10" + six + b"\0" + net),
        Attribute(0x80, 14, b"\0\1\1\4" + bytes((10, 10, 64, 9)) + b"\0" + prefix(case, 2)),
        Attribute(0x80, 15, b"\0\2\1" + net),
        Attribute(0x80, 15, b"\0\1\1" + prefix(case)),
        Attribute(0xC0, 16, bytes.fromhex("0002000a00000014")),
        Attribute(0xC0, 17, b"\2\1" + struct.pack(">I", 65001)),
        Attribute(0xC0, 18, struct.pack(">I", 65001) + bytes(4)),
        Attribute(0xC0, 32, struct.pack(">3I", 1, 2, 3)),
        Attribute(0xC0, 77, b"abc"),
        Attribute(0x80, 78, b"abc"),
    ]


PATHS = (
    b"\1\2" + struct.pack(">2I", 65001, 7),
    b"\2\2" + struct.pack(">2I", 65001, INSIDE),
    b"\3\1" + struct.pack(">I", 65001),
    b"\2\0",
    b"\2\1" + struct.pack(">I", 7),
    b"\5\1" + struct.pack(">I", 65001),
    b"\2\1" + struct.pack(">I", 65001) + b"\1\1" + struct.pack(">I", 9),
)


def harm(rng: random.Random, attributes: list[Attribute]) -> None:
    """Do something to one of the attributes."""
    at = rng.randrange(len(attributes))
    one = attributes[at]
    flag = rng.choice((0x80, 0x40, 0x20, 0x08))
    if one.kind in (77, 78) and flag == OPTIONAL:
        flag = 0x40
    cut = rng.randrange(len(one.value) + 1)
    octet = rng.choice((0, 1, 255, rng.randrange(256)))
    match rng.choice(("drop", "flags", "cut", "grow", "octet", "again", "order", "path", "empty")):
        case "drop":
            del attributes[at]
        case "flags":
            attributes[at] = one._replace(flags=one.flags ^ flag)
        case "cut" if one.kind not in NETWORKS:
            attributes[at] = one._replace(value=one.value[:cut])
        case "grow" if one.kind not in NETWORKS:
            attributes[at] = one._replace(value=one.value + rng.randbytes(rng.randrange(1, 5)))
        case "octet" if one.kind not in (NEXT_HOP, *NETWORKS) and cut < len(one.value):
            value = one.value[:cut] + bytes((octet,)) + one.value[cut + 1 :]
            attributes[at] = one._replace(value=value)
        case "again":
            attributes.insert(rng.randrange(len(attributes) + 1), one)
        case "order":
            rng.shuffle(attributes)
        case "path":
            value = rng.choice(PATHS)
            attributes[:] = [a._replace(value=value) if a.kind == 2 else a for a in attributes]
        case "empty":
            attributes[at] = one._replace(value=b"")


def update(attributes: bytes, nlri: bytes, withdrawn: bytes = b"") -> bytes:
    lengths = len(withdrawn).to_bytes(2, "big"), len(attributes).to_bytes(2, "big")
    return lengths[0] + withdrawn + lengths[1] + attributes + nlri


def malformed(rng: random.Random, case: int, asn: int) -> bytes:
    attributes = good(asn, med=2) + rng.choices(more(case), k=rng.randrange(3))
    for _ in range(rng.randrange(1, 4)):
        if attributes:
            harm(rng, attributes)
    block = b"".join(attribute(*one) for one in attributes)
    if block and rng.random() < 0.1:
        block = block[: -rng.randrange(1, 3)]
    nlri = rng.choices(
        (prefix(case), b"", prefix(case) + prefix(case, 2), prefix(case) + b"\x21" + bytes(5)),
        (8, 2, 1, 1),
    )[0]
    return update(block, nlri, rng.choices((b"", prefix(case), prefix(case, 3)), (8, 1, 1))[0])


Route = tuple[object, ...]
Verdict = tuple[int, int] | dict[str, Route]


def capabilities(asn: int) -> Capabilities:
    return Capabilities(families=(1, 2), route_refresh=True, as4=asn, enhanced_refresh=True)


def our_verdict(asn: int, case: int, body: bytes) -> Verdict:
    config = bgp("x", "10.0.0.9", peer_as=asn, passive=True, ipv4=channel(), ipv6=channel())
    peer = HandPeer(speaker_config("10.0.0.1", [config]))
    peer.establish(capabilities(asn), asn=asn)
    peer.send(UPDATE, first(asn, case))
    peer.send(UPDATE, body)
    for said in peer.bodies(NOTIFICATION):
        return said[0], said[1]
    found: dict[str, Route] = {}
    for afi in Afi:
        for key, paths in peer.speaker.tables[afi].items():
            a = paths[0].attrs
            assert a.origin is not None
            found[str(Net.from_key(afi, key))] = (
                ("IGP", "EGP", "Incomplete")[a.origin],
                format_path(a.as_path),
                format_address(a.next_hop[:16]),
                str(a.med or ""),
                str(a.local_pref),
                "".join(f"({x},{y})" for x, y in community_pairs(a.communities)),
                "".join(f"({x},{y},{z})" for x, y, z in large_triples(a.large_communities)),
                len(a.ext_communities) // 8,
                bool(a.aggregator),
                a.atomic_aggregate,
                a.originator_id is not None,
                len(a.cluster_list) // 4,
            )
    return found


def first(asn: int, case: int, last: int = 1) -> bytes:
    """A sound announcement."""
    return update(b"".join(attribute(*one) for one in good(asn, med=1)), prefix(case, last))


def shown(text: str) -> dict[int, dict[str, Route]]:
    """BIRD's ``show route all`` by neighbour and network."""
    routes: dict[tuple[int, str], dict[str, str]] = {}
    said: dict[str, str] = {}
    for line in text.splitlines():
        if head := re.match(r"(\S+/\d+)\s.*\[p(\d+) ", line):
            said = routes.setdefault((int(head.group(2)), head.group(1)), {})
        if named := re.match(r"\tBGP\.(\w+): ?(.*)", line):
            said[named.group(1)] = named.group(2).strip()
    found: dict[int, dict[str, Route]] = {}
    for (case, net), a in routes.items():
        found.setdefault(case, {})[net] = (
            a.get("origin"),
            a.get("as_path", ""),
            a.get("next_hop", "").partition(" ")[0],
            "" if a.get("med") == "0" else a.get("med", ""),
            a.get("local_pref"),
            a.get("community", "").replace(" ", ""),
            a.get("large_community", "").replace(" ", ""),
            a.get("ext_community", "").count("("),
            "aggregator" in a,
            "atomic_aggr" in a,
            "originator_id" in a,
            len(a.get("cluster_list", "").split()),
        )
    return found


class Talker:
    """One neighbour of BIRD's, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._framer = Framer()
        self._framer.limit = MAX_EXTENDED_MESSAGE
        # The NOTIFICATION's code and subcode.
        self.verdict: tuple[int, int] | None = None

    @classmethod
    async def come(cls, case: int, asn: int, router_id: int = 0x0A000009) -> Talker:
        talker = cls(
            *await asyncio.open_connection(HERE, PORT, local_addr=(f"127.0.105.{case}", 0))
        )
        talker.say(OPEN, Open(asn, 240, router_id, capabilities(asn)).body())
        talker.say(KEEPALIVE)
        # BIRD's queue of connections is short: the next one waits until it took this one.
        talker._framer.feed(await talker._reader.read(65536))
        return talker

    def say(self, kind: int, body: bytes = b"") -> None:
        self.writer.write(message(kind, body))

    async def listen(self) -> None:
        """Read until BIRD ends the session, if it does."""
        while data := await self._reader.read(65536):
            self._framer.feed(data)
            while messages := self._framer.take():
                self.verdict = next(
                    ((body[0], body[1]) for kind, body in messages if kind == NOTIFICATION),
                    self.verdict,
                )


def configuration(ases: dict[int, int], options: str = "") -> str:
    families = "ipv4 { import all; export none; }; ipv6 { import all; export none; };"
    text = """log stderr all;
router id 10.0.0.1;
protocol device { scan time 60; }
protocol static { ipv4; route 10.0.0.0/8 via "lo"; }
protocol static six { ipv6; route fd00::/16 via "lo"; }
"""
    for case, asn in ases.items():
        text += (
            f"protocol bgp p{case} {{ local {HERE} port {PORT} as {INSIDE}; passive on; multihop; "
            f"neighbor 127.0.105.{case} as {asn}; strict bind on; {options} {families} }}\n"
        )
    return text


@pytest.mark.parametrize("asn", [OUTSIDE, INSIDE])
async def test_bird_judges_alike(asn: int, tmp_path: Path) -> None:
    assert BIRD2 is not None
    assert CLIENT is not None
    rng = random.Random(asn)
    bodies = {case: malformed(rng, case, asn) for case in range(1, CASES + 1)}
    bird = Bird(BIRD2, CLIENT, tmp_path, configuration(dict.fromkeys(bodies, asn)))
    bird.start()
    talkers: dict[int, Talker] = {}
    tasks: list[asyncio.Task[None]] = []
    theirs: dict[int, Verdict] = {}
    try:
        for case in bodies:
            talkers[case] = await Talker.come(case, asn)
            talkers[case].say(UPDATE, first(asn, case))
        tasks = [asyncio.create_task(talker.listen()) for talker in talkers.values()]
        count = f"{CASES + 1} of {CASES + 1} routes"
        await until(lambda: count in bird.ask("show route table master4 count"), "all routes")
        for case, talker in talkers.items():
            talker.say(UPDATE, bodies[case])
            talker.say(UPDATE, first(asn, case, MARK))

        def judged() -> bool:
            table = bird.ask("show route table master4")
            return all(t.verdict or f"198.{c}.{MARK}.0/24" in table for c, t in talkers.items())

        await until(judged, "BIRD has read everything")
        everything = shown(bird.ask("show route all"))
        for case, talker in talkers.items():
            routes = everything.get(case, {})
            routes.pop(f"198.{case}.{MARK}.0/24", None)
            theirs[case] = talker.verdict or routes
    finally:
        for talker in talkers.values():
            talker.writer.close()
        bird.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
    ours = {case: our_verdict(asn, case, body) for case, body in bodies.items()}
    different = {
        f"{case}: {bodies[case].hex()}": (ours[case], theirs[case])
        for case in bodies
        if ours[case] != theirs[case]
    }
    assert different == {}


# Six neighbours, three of them internal; each network is announced by some of them.
ASES = {1: INSIDE, 2: INSIDE, 3: INSIDE, 4: 65001, 5: 65001, 6: 65002}
NETWORKS_TO_CHOOSE = 150


def competitor(rng: random.Random, asn: int) -> list[Attribute]:
    """One of the routes to a network: differing little, so that late steps decide."""
    inside = asn == INSIDE
    numbers = [rng.choice((65001, 65002, 65003))] if inside else [asn]
    if inside and rng.random() < 0.3:
        numbers = []
    numbers += [7] * rng.randrange(3)
    path = bytes((2, len(numbers))) + struct.pack(f">{len(numbers)}I", *numbers) if numbers else b""
    if rng.random() < 0.15:
        path += b"\1\2" + struct.pack(">2I", 100, 200)
    found = [
        Attribute(0x40, 1, bytes((rng.choice((0, 0, 0, 1, 2)),))),
        Attribute(0x40, 2, path),
        Attribute(0x40, NEXT_HOP, bytes((10, 10, 64, 9))),
    ]
    if rng.random() < 0.6:
        found.append(Attribute(0x80, 4, struct.pack(">I", rng.choice((0, 5, 10)))))
    if inside:
        found.append(Attribute(0x40, 5, struct.pack(">I", rng.choice((100, 100, 100, 200, 50)))))
        if rng.random() < 0.3:
            found.append(Attribute(0x80, 9, bytes((10, 0, 1, rng.randrange(250)))))
        if rng.random() < 0.3:
            found.append(Attribute(0x80, 10, b"\1\1\1\1" * rng.randrange(1, 3)))
    if rng.random() < 0.1:
        # LLGR_STALE.
        found.append(Attribute(0xC0, 8, b"\xff\xff\0\6"))
    return found


def competition(rng: random.Random) -> Iterator[tuple[int, bytes]]:
    """(neighbour, UPDATE), in any order."""
    offers = [
        (who, net) for net in range(NETWORKS_TO_CHOOSE) for who in ASES if rng.random() < 0.75
    ]
    rng.shuffle(offers)
    for who, net in offers:
        block = b"".join(attribute(*one) for one in competitor(rng, ASES[who]))
        yield who, update(block, prefix(net))


def our_choice(ids: dict[int, int], updates: list[tuple[int, bytes]]) -> dict[str, str]:
    """The protocol of each network's best route."""
    peers = [
        bgp(f"p{who}", f"127.0.105.{who}", peer_as=asn, passive=True) for who, asn in ASES.items()
    ]
    speaker = Speaker(speaker_config("10.0.0.1", peers), random.Random(1), now=0.0)
    numbers: dict[int, int] = {}
    for who, asn in ASES.items():
        number = speaker.accepted(parse_ip(f"127.0.105.{who}"), now=0.0)
        assert number is not None
        numbers[who] = number
        hello = message(OPEN, Open(asn, 240, ids[who], capabilities(asn)).body())
        speaker.receive_data(number, hello + message(KEEPALIVE), now=0.0)
    for who, body in updates:
        speaker.receive_data(numbers[who], message(UPDATE, body), now=0.0)
    table = speaker.tables[Afi.IPV4]
    return {str(Net.from_key(Afi.IPV4, key)): paths[0].channel.name for key, paths in table.items()}


async def test_bird_chooses_alike(tmp_path: Path) -> None:
    assert BIRD2 is not None
    assert CLIENT is not None
    rng = random.Random(3)
    ids = dict(zip(ASES, rng.sample(range(0x0A000100, 0x0A0001FA), len(ASES)), strict=True))
    updates = list(competition(rng))
    bird = Bird(BIRD2, CLIENT, tmp_path, configuration(ASES, "deterministic med on;"))
    bird.start()
    talkers: dict[int, Talker] = {}
    try:
        for who, asn in ASES.items():
            talkers[who] = await Talker.come(who, asn, ids[who])
        for who, body in updates:
            talkers[who].say(UPDATE, body)
        count = f"{len(updates) + 1} of {len(updates) + 1} routes"
        await until(lambda: count in bird.ask("show route table master4 count"), "all routes")
        table = bird.ask("show route table master4 primary")
    finally:
        for talker in talkers.values():
            talker.writer.close()
        bird.stop()
    assert dict(re.findall(r"(198\S+) +\S+ \[(p\d)", table)) == our_choice(ids, updates)
