"""Our speaker beside ExaBGP, whose JSON says what it read in our messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agents.bird.attributes import community_pairs, large_triples, path_first
from agents.bird.config import Timers
from agents.bird.daemon import BirdDaemon
from agents.bird.filters import Accept, AddCommunity, Attr, CommunityKind, Filter, PrependAs, Set
from agents.bird.net import Afi, Net, format_address, parse_address
from agents.bird.speaker import Speaker
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import PORT, process, until
from tests.bgp_speakers import bgp, channel, speaker_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OURS = "127.0.101.1"
THEIRS = "127.0.101.2"
OUR_ID = "10.10.64.1"
THEIR_ID = "10.10.64.14"
QUICK = Timers(connect_delay_s=0.2, connect_retry_s=2, error_wait_min_s=0.3, error_wait_max_s=1)

DAEMON = bgp_peers.exabgp()
pytestmark = pytest.mark.skipif(DAEMON is None, reason=bgp_peers.NO_EXABGP)

CONFIG = """
process ctl {{ run {python} {script}; encoder json; }}
neighbor {ours} {{
  router-id {their_id}; local-address {theirs}; local-as 65014; peer-as 64512; hold-time 9;
  {connect}
  md5-password "calico";
  capability {{ graceful-restart 60; }}
  family {{ ipv4 unicast; ipv6 unicast; }}
  api {{ processes [ ctl ]; neighbor-changes; receive {{ parsed; update; }} }}
}}
"""

# Copies lines of a FIFO to ExaBGP and what ExaBGP tells to a file.
SCRIPT = """
import os, threading
os.chdir(os.path.dirname(__file__))
def tell():
    fd = os.open("orders", os.O_RDWR)
    while True:
        os.write(1, os.read(fd, 65536))
threading.Thread(target=tell, daemon=True).start()
out = os.open("events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while data := os.read(0, 65536):
    os.write(out, data)
os._exit(0)
"""
EXPORT = Filter(
    (
        AddCommunity(CommunityKind.STANDARD, (64512, 7)),
        AddCommunity(CommunityKind.LARGE, (64512, 1, 2)),
        PrependAs(64512),
        Set(Attr.MED, 50),
        Accept(),
    )
)


class World:
    """Our speaker and ExaBGP."""

    def __init__(self, directory: Path, speaker: Speaker) -> None:
        self.directory = directory
        self.speaker = speaker
        self.peer = speaker.peers["exabgp"]

    def order(self, text: str) -> None:
        """A line of ExaBGP's API."""
        fd = os.open(self.directory / "orders", os.O_WRONLY)
        try:
            os.write(fd, f"{text}\n".encode())
        finally:
            os.close(fd)

    def updates(self) -> list[dict[str, Any]]:
        """The UPDATEs ExaBGP received from us, oldest first."""
        path = self.directory / "events"
        found = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("type") == "update":
                    found.append(event["neighbor"]["message"].get("update", {}))
        return found

    def announced(self, family: str, net: str) -> dict[str, Any] | None:
        """The attributes, with the next hop, of the last announcement of a network."""
        for update in reversed(self.updates()):
            for hop, nets in update.get("announce", {}).get(family, {}).items():
                if any(each.get("nlri") == net for each in nets):
                    return {**update["attribute"], "next-hop": hop}
        return None

    def withdrawn(self, family: str, net: str) -> bool:
        """True if a network was withdrawn."""
        return any(
            each.get("nlri") == net
            for update in self.updates()
            for each in update.get("withdraw", {}).get(family, ())
        )


@contextlib.asynccontextmanager
async def exabgp(directory: Path, *, they_connect: bool) -> AsyncIterator[tuple[World, BirdDaemon]]:
    assert DAEMON is not None
    script = directory / "ctl.py"
    script.write_text(SCRIPT)
    os.mkfifo(directory / "orders")
    (directory / "exa.conf").write_text(
        CONFIG.format(
            python=sys.executable,
            script=script,
            ours=OURS,
            theirs=THEIRS,
            their_id=THEIR_ID,
            connect=f"connect {PORT};" if they_connect else f"passive true; listen {PORT};",
        )
    )
    peer = bgp(
        "exabgp",
        THEIRS,
        peer_as=65014,
        passive=they_connect,
        source_address=int.from_bytes(parse_address(OURS), "big"),
        password="calico",
        timers=QUICK,
        ipv4=channel(next_hop_address=parse_address(OUR_ID), export_filter=EXPORT),
        ipv6=channel(next_hop_address=parse_address("fd00:64::1")),
    )
    config = speaker_config(OUR_ID, [peer], ["192.168.1.0/26", "fd00:1::/64"], listen_port=PORT)
    speaker = Speaker(config, random.Random(1), now=asyncio.get_running_loop().time())
    daemon = BirdDaemon(speaker, logging.getLogger("bird"), listen=(OURS, PORT))
    settings = bgp_peers.exabgp_settings(THEIRS)
    async with alive(daemon):
        with process(DAEMON, ["-m", "exabgp", "exa.conf"], directory / "exabgp.log", **settings):
            world = World(directory, speaker)
            await until(lambda: world.peer.session is not None, "a session")
            yield world, daemon


@pytest.mark.parametrize("they_connect", [True, False])
async def test_routes_of_both_families_go_both_ways_and_away(
    tmp_path: Path, they_connect: bool
) -> None:
    async with exabgp(tmp_path, they_connect=they_connect) as (world, daemon):
        speaker = world.speaker
        v4, v6 = "ipv4 unicast", "ipv6 unicast"
        await until(lambda: world.announced(v4, "192.168.1.0/26"), "our IPv4 route, read by ExaBGP")
        await until(lambda: world.announced(v6, "fd00:1::/64"), "our IPv6 route, read by ExaBGP")
        assert world.announced(v4, "192.168.1.0/26") == {
            "origin": "igp",
            "as-path": [64512, 64512],
            "confederation-path": [],
            "med": 50,
            "community": [[64512, 7]],
            "large-community": [[64512, 1, 2]],
            "next-hop": OUR_ID,
        }
        six = world.announced(v6, "fd00:1::/64")
        assert six is not None
        assert six["next-hop"] == "fd00:64::1"

        world.order(
            f"announce route 10.244.98.0/26 next-hop {THEIR_ID} as-path [65014 65020] "
            "community [64512:9] large-community [1:2:3]"
        )
        world.order("announce route fd00:98::/64 next-hop fd00:64::14")
        key, key6 = Net.parse("10.244.98.0/26").key, Net.parse("fd00:98::/64").key
        table, table6 = speaker.tables[Afi.IPV4], speaker.tables[Afi.IPV6]
        await until(lambda: key in table.routes and key6 in table6.routes, "ExaBGP's routes")
        best, best6 = table.best(key), table6.best(key6)
        assert best is not None
        assert best6 is not None
        assert format_address(best.attrs.next_hop) == THEIR_ID
        assert path_first(best.attrs.as_path) == 65014
        assert community_pairs(best.attrs.communities) == ((64512, 9),)
        assert large_triples(best.attrs.large_communities) == ((1, 2, 3),)
        assert format_address(best6.attrs.next_hop) == "fd00:64::14"

        world.order("withdraw route 10.244.98.0/26 next-hop 10.10.64.14")
        world.order("withdraw route fd00:98::/64 next-hop fd00:64::14")
        await until(lambda: key not in table.routes and key6 not in table6.routes, "its withdrawal")
        kept = world.peer.config
        daemon.configure(speaker_config(OUR_ID, [kept], listen_port=PORT))
        await until(lambda: world.withdrawn(v4, "192.168.1.0/26"), "our withdrawal, read by ExaBGP")
        await until(lambda: world.withdrawn(v6, "fd00:1::/64"), "the other one")
        assert world.peer.exchange.bad_updates == 0
