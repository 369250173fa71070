"""BFD beside Debian's BIRD 2 on loopback addresses: up, what is shown, failover of the session."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.bfd_daemon import BfdDaemon
from agents.bird.config import BfdConfig, BfdOptions, BgpConfig
from agents.bird.ctl.reply import Dialect
from agents.bird.ctl.show_daemon import show_bfd
from agents.bird.ctl.times import Times
from agents.bird.daemon import BirdDaemon
from agents.bird.speaker import Speaker
from emulator.addr import format_ip, parse_ip
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import Bird, until
from tests.bgp_speakers import bgp, channel, speaker_config
from tests.bird_ctl import utc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

OURS, THEIRS, OUR_ID, THEIR_ID = "127.0.95.1", "127.0.95.2", "10.10.64.1", "10.10.64.2"
BIRD2 = bgp_peers.bird2()
CLIENT = bgp_peers.bird2_client()
OPTIONS = BfdOptions(min_tx_s=0.1, min_rx_s=0.1, multiplier=3)
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(BIRD2 is None or CLIENT is None, reason=bgp_peers.NO_BIRD2),
    pytest.mark.skipif(os.geteuid() != 0, reason="BIRD's BFD asks for a priority that is root's"),
]


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Bird]:
    assert BIRD2 is not None
    assert CLIENT is not None
    bfd = "protocol bfd { strict bind on; multihop { interval 100 ms; multiplier 3; }; }"
    neighbor = f"neighbor {OURS} port {bgp_peers.PORT} as 64512"
    protocol = f"protocol bgp ours from loop {{ {neighbor}; bfd on; graceful restart; }}"
    routes = "route 192.168.2.0/26 blackhole;"
    text = bgp_peers.bird2_config(THEIRS, THEIR_ID, protocol, routes, extra=bfd)
    found = Bird(BIRD2, CLIENT, tmp_path, text)
    try:
        yield found
    finally:
        with contextlib.suppress(AssertionError):
            found.signal(signal.SIGCONT)
        found.stop()


class Watched:
    """Our daemon and its BFD."""

    def __init__(self, peer: BgpConfig) -> None:
        now = asyncio.get_running_loop().time()
        config = speaker_config(
            OUR_ID, [peer], ["192.168.1.0/26"], bfd=BfdConfig(), listen_port=bgp_peers.PORT
        )
        log = logging.getLogger("bfd")
        self.bfd = BfdDaemon(
            OURS,
            random.Random(4),
            log,
            resolve=format_ip,
            name_of=parse_ip,
            on_down=self._down,
        )
        self.daemon = BirdDaemon(
            Speaker(config, random.Random(4), now=now),
            log,
            listen=(OURS, bgp_peers.PORT),
            on_event=self.bfd.event,
        )
        self.down_at = 0.0

    def _down(self, neighbor: int) -> None:
        loop = asyncio.get_running_loop()
        self.down_at = loop.time()
        self.daemon.speaker.bfd_down(neighbor, now=loop.time())
        self.daemon.after_input()

    @property
    def peer_is_up(self) -> bool:
        return self.daemon.speaker.peers["bird"].session is not None

    @property
    def state(self) -> str:
        return self.bfd.rows()[0].state if self.bfd.rows() else ""

    @property
    def networks(self) -> int:
        return sum(len(table.routes) for table in self.daemon.speaker.tables.values())


@contextlib.asynccontextmanager
async def watched(bird: Bird, options: BfdOptions = OPTIONS) -> AsyncIterator[Watched]:
    peer = bgp(
        "bird",
        THEIRS,
        bfd=options,
        source_address=parse_ip(OURS),
        ipv4=channel(next_hop_address=parse_ip(OUR_ID).to_bytes(4, "big")),
    )
    peer = replace(peer, timers=replace(peer.timers, connect_delay_s=0.2, error_wait_min_s=0.3))
    ours = Watched(peer)
    ours.bfd.start()
    try:
        async with alive(ours.daemon):
            await asyncio.to_thread(bird.start)
            await until(lambda: ours.peer_is_up, "BGP is up")
            await until(lambda: ours.state == "Up", "BFD is up")
            yield ours
    finally:
        ours.bfd.close()


async def test_both_show_the_same_session(bird: Bird) -> None:
    async with watched(bird) as ours:

        async def theirs() -> list[str]:
            return (await asyncio.to_thread(bird.ask, "show bfd sessions")).splitlines()[1:]

        async with asyncio.timeout(20):
            while not any(" Up " in line for line in await theirs()):
                await asyncio.sleep(0.05)
        await until(lambda: ours.bfd.rows()[0].timeout_s == pytest.approx(0.3), "the fast interval")
        times = Times(Dialect.BIRD2, asyncio.get_running_loop().time(), utc)
        have = [line.text for line in show_bfd(ours.bfd.rows(), "bfd1", times)]
        want = await theirs()
        # All but the address and since when.
        assert [line[25:48] + line[60:] for line in have] == [
            line[25:48] + line[60:] for line in want
        ]
        assert have[2].startswith(THEIRS)


async def test_a_stopped_bird_costs_its_session_in_less_than_half_a_second(bird: Bird) -> None:
    async with watched(bird) as ours:
        assert ours.networks >= 2
        loop = asyncio.get_running_loop()
        stopped = loop.time()
        bird.signal(signal.SIGSTOP)
        await until(lambda: not ours.peer_is_up, "the session ends")
        await until(lambda: ours.networks == 1, "its routes are gone")
        assert ours.down_at - stopped < 0.5
        assert ours.daemon.speaker.peers["bird"].last_error == ("Error: ", "BFD session down")
        bird.signal(signal.SIGCONT)
        await until(lambda: ours.peer_is_up and ours.state == "Up", "all is up again")


async def test_with_graceful_bfd_routes_outlive_the_session(bird: Bird) -> None:
    async with watched(bird, replace(OPTIONS, graceful=True)) as ours:
        known = ours.networks
        bird.signal(signal.SIGSTOP)
        await until(lambda: not ours.peer_is_up, "the session ends")
        assert ours.networks == known
