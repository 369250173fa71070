"""What our speaker and Debian's BIRD 2 seldom say to each other, on real TCP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.attributes import format_path, large_triples
from agents.bird.config import GracefulRestart, Timers
from agents.bird.daemon import BirdDaemon
from agents.bird.filters import Accept, AddCommunity, CommunityKind, Filter, PrependAs
from agents.bird.net import Net, parse_address
from agents.bird.speaker import Speaker
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import PORT, Bird, bird2_config, until
from tests.bgp_speakers import bgp, channel, speaker_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from agents.bird.config import BgpConfig
    from agents.bird.rib import Path as Route

OURS, OUR_ID = "127.0.104.1", "10.10.64.1"
THEIRS, THEIR_ID = "127.0.104.2", "10.10.64.2"
MINE, HIS = "192.168.1.0/26", "192.168.2.0/26"
QUICK = Timers(
    connect_delay_s=0.2, connect_retry_s=2, error_wait_min_s=0.3, error_wait_max_s=1, hold_s=90
)
BIRD2 = bgp_peers.bird2()
CLIENT = bgp_peers.bird2_client()
pytestmark = pytest.mark.skipif(BIRD2 is None or CLIENT is None, reason=bgp_peers.NO_BIRD2)


def families(**changes: object) -> dict[str, object]:
    return {"ipv4": channel(next_hop_address=parse_address(OUR_ID), **changes)}


def peer(**changes: object) -> BgpConfig:
    source = int.from_bytes(parse_address(OURS), "big")
    settings: dict[str, object] = {"source_address": source, "timers": QUICK, **families()}
    return bgp("bird", THEIRS, **{**settings, **changes})


def theirs(options: str = "", *, marks: str = "", asn: int = 64512, port: int = PORT) -> str:
    """BIRD's configuration; ``marks`` is what its export filter does to its route."""
    neighbor = f"neighbor {OURS} port {PORT} as 64512"
    protocol = f"protocol bgp ours from loop {{ {neighbor}; {options} }}"
    route = HIS if port == PORT else "192.168.3.0/26"
    text = bird2_config(THEIRS, THEIR_ID, protocol, f"route {route} blackhole;")
    text = text.replace(f"port {PORT} as 64512;\n", f"port {port} as {asn};\n")
    return text.replace("then reject; accept;", f"then reject; {marks} accept;")


@contextlib.asynccontextmanager
async def running(*peers: BgpConfig) -> AsyncIterator[BirdDaemon]:
    """Our daemon, until the block ends."""
    config = speaker_config(OUR_ID, peers, [MINE], listen_port=PORT)
    speaker = Speaker(config, random.Random(7), now=asyncio.get_running_loop().time())
    daemon = BirdDaemon(speaker, logging.getLogger("bird"), listen=(OURS, PORT))
    async with alive(daemon):
        yield daemon


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Bird]:
    """A BIRD 2 that is not started yet."""
    assert BIRD2 is not None
    assert CLIENT is not None
    found = Bird(BIRD2, CLIENT, tmp_path, theirs())
    try:
        yield found
    finally:
        found.stop()


def start(bird: Bird, text: str) -> None:
    bird.config.write_text(text)
    bird.start()


def best(daemon: BirdDaemon, text: str = HIS) -> Route | None:
    net = Net.parse(text)
    return daemon.speaker.tables[net.afi].best(net.key)


async def learned(daemon: BirdDaemon, text: str = HIS) -> Route:
    await until(lambda: best(daemon, text) is not None, f"{text} is learned")
    route = best(daemon, text)
    assert route is not None
    return route


async def shown(bird: Bird, text: str) -> str:
    """BIRD's words on our route, once they have ``text`` in them."""
    command = f"show route {MINE} all"
    await until(lambda: text in bird.ask(command), f"{text!r} in {command!r}")
    return bird.ask(command)


@pytest.mark.parametrize(("ours", "his"), [(0, 90), (90, 0), (0, 0)])
async def test_without_a_hold_time_nobody_is_watched(bird: Bird, ours: int, his: int) -> None:
    start(bird, theirs(f"hold time {his};"))
    async with running(peer(timers=replace(QUICK, hold_s=ours))) as daemon:
        await learned(daemon)
        session = daemon.speaker.peers["bird"].session
        assert session is not None
        assert (session.timers.hold_at, session.timers.keepalive_at) == (None, None)
        assert "Hold timer:       0.000/0" in bird.ask("show protocols all ours")


async def test_a_route_about_to_go_is_the_last_choice(bird: Bird) -> None:
    """RFC 8326, from outside."""
    start(bird, theirs(marks="bgp_community.add((65535,0));", asn=65010))
    async with running(peer(peer_as=65010)) as daemon:
        assert (await learned(daemon)).attrs.local_pref == 0


async def test_the_routes_of_a_dead_bird_live_on_as_a_last_resort(bird: Bird) -> None:
    """RFC 9494: its restart time is over, its long-lived stale time begins and ends."""
    start(
        bird,
        theirs(
            "graceful restart on; graceful restart time 1; "
            "long lived graceful restart on; long lived stale time 1;"
        ),
    )
    both = {"graceful_restart": GracefulRestart.ON, "long_lived": GracefulRestart.ON}
    async with running(peer(**both)) as daemon:
        await learned(daemon)
        bird.kill()
        await until(lambda: (r := best(daemon)) and r.long_lived_stale, "it is stale")
        await until(lambda: best(daemon) is None, "it is gone")


async def test_bird_keeps_our_routes_as_a_last_resort(bird: Bird) -> None:
    start(bird, theirs("graceful restart on; long lived graceful restart on; passive on;"))
    stale = peer(
        graceful_restart=GracefulRestart.ON,
        graceful_restart_time_s=1,
        long_lived=GracefulRestart.ON,
        long_lived_stale_time_s=1,
    )
    async with running(stale) as daemon:
        await shown(bird, "BGP.local_pref: 100")
        daemon.leave_for_restart()
        await shown(bird, "BGP.community: (65535,6)")
        await until(lambda: MINE not in bird.ask("show route"), "it is gone")


async def test_messages_of_more_than_4096_octets_go_both_ways(bird: Bird) -> None:
    many = "".join(f"bgp_large_community.add((64512,1,{i}));" for i in range(2000))
    start(bird, theirs("enable extended messages on;", marks=many))
    # As many as a message of 65535 octets holds.
    adds = (AddCommunity(CommunityKind.LARGE, (64512, 1, i)) for i in range(5456))
    ours = families(export_filter=Filter((*adds, Accept())))
    async with running(peer(extended_messages=True, **ours)) as daemon:
        route = await learned(daemon)
        assert large_triples(route.attrs.large_communities)[-1] == (64512, 1, 1999)
        assert (await shown(bird, "BGP.large_community")).count("(64512, 1, ") == 5456


async def test_wide_as_numbers_pass_a_bird_that_knows_none(bird: Bird) -> None:
    """RFC 6793: AS_TRANS and AS4_PATH."""
    marks = "bgp_path.prepend(65099);"
    start(bird, theirs("enable as4 off;", marks=marks, asn=65010))
    wide = families(export_filter=Filter((PrependAs(70000, 2), PrependAs(5), Accept())))
    async with running(peer(peer_as=65010, **wide)) as daemon:
        assert format_path((await learned(daemon)).attrs.as_path) == "65010 65099"
        await shown(bird, "BGP.as_path: 64512 5 70000 70000")


async def test_two_birds_at_one_address_are_told_apart_by_their_ports(
    bird: Bird, tmp_path: Path
) -> None:
    assert BIRD2 is not None
    assert CLIENT is not None
    folder = tmp_path / "second"
    folder.mkdir()
    second = Bird(BIRD2, CLIENT, folder, theirs("passive on;", port=PORT + 1))
    start(bird, theirs("passive on;"))
    try:
        second.start()
        async with running(peer(), replace(peer(neighbor_port=PORT + 1), name="two")) as daemon:
            await learned(daemon)
            await learned(daemon, "192.168.3.0/26")
            second.stop()
            await until(lambda: best(daemon, "192.168.3.0/26") is None, "the second's is gone")
            assert best(daemon) is not None
    finally:
        second.stop()
