"""Our speaker beside GoBGP: the strict judge of NEXT_HOP, with a password."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import AddPaths, GracefulRestart, Timers
from agents.bird.daemon import BirdDaemon
from agents.bird.net import Afi, Net, format_address, parse_address
from agents.bird.speaker import Speaker
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import process, until
from tests.bgp_speakers import bgp, channel, speaker_config

if TYPE_CHECKING:
    from pathlib import Path

OURS = "127.0.102.1"
THEIRS = "127.0.102.2"
OUR_ID = "10.10.64.1"
THEIR_ID = "10.10.64.2"
QUICK = Timers(connect_delay_s=0.2, connect_retry_s=2, error_wait_min_s=0.3, error_wait_max_s=1)

DAEMON = bgp_peers.gobgpd()
CLIENT = bgp_peers.gobgp()
pytestmark = pytest.mark.skipif(DAEMON is None or CLIENT is None, reason=bgp_peers.NO_GOBGP)

CONFIG = f"""
[global.config]
  as = 65010
  router-id = "{THEIR_ID}"
  port = {bgp_peers.PORT}
  local-address-list = ["{THEIRS}"]
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{OURS}"
    peer-as = 64512
    auth-password = "calico"
  [neighbors.transport.config]
    local-address = "{THEIRS}"
    passive-mode = true
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv4-unicast"
"""


def ask(*words: str) -> str:
    assert CLIENT is not None
    return CLIENT.run("-u", THEIRS, "-p", "50052", *words)


async def test_gobgp_learns_and_announces_with_a_password(tmp_path: Path) -> None:
    assert DAEMON is not None
    (tmp_path / "gobgp.toml").write_text(CONFIG)
    arguments = ["-f", "gobgp.toml", f"--api-hosts={THEIRS}:50052", "--pprof-disable", "-p"]
    peer = bgp(
        "gobgp",
        THEIRS,
        peer_as=65010,
        source_address=int.from_bytes(parse_address(OURS), "big"),
        password="calico",
        timers=QUICK,
        ipv4=channel(next_hop_address=parse_address(OUR_ID)),
    )

    loop = asyncio.get_running_loop()
    first = speaker_config(OUR_ID, [peer], ["192.168.1.0/26"], listen_port=bgp_peers.PORT)
    speaker = Speaker(first, random.Random(1), now=loop.time())
    daemon = BirdDaemon(speaker, logging.getLogger("bird"), listen=(OURS, bgp_peers.PORT))
    table = speaker.tables[Afi.IPV4]
    with process(DAEMON, arguments, tmp_path / "gobgp.log"):
        async with alive(daemon):
            await until(lambda: speaker.peers["gobgp"].session is not None, "a session")
            await until(lambda: "192.168.1.0/26" in ask("global", "rib"), "our route with GoBGP")
            (entry,) = json.loads(ask("global", "rib", "-j"))["192.168.1.0/26"]
            text = json.dumps(entry)
            assert OUR_ID in text
            assert "64512" in text
            ask("global", "rib", "add", "10.244.77.0/26", "nexthop", THEIR_ID)
            key = Net.parse("10.244.77.0/26").key
            await until(lambda: key in table.routes, "GoBGP's route with us")
            best = table.best(key)
            assert best is not None
            assert format_address(best.attrs.next_hop) == THEIR_ID
            ask("global", "rib", "del", "10.244.77.0/26")
            await until(lambda: key not in table.routes, "GoBGP's withdrawal")
            daemon.configure(speaker_config(OUR_ID, [peer], listen_port=bgp_peers.PORT))
            await until(lambda: "192.168.1.0/26" not in ask("global", "rib"), "our withdrawal")


RESTARTING = """
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 20
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv4-unicast"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
    [neighbors.afi-safis.add-paths.config]
      receive = true
      send-max = 4
"""


async def test_a_killed_gobgp_keeps_its_routes_until_it_is_back(tmp_path: Path) -> None:
    assert DAEMON is not None
    text = CONFIG.replace('    auth-password = "calico"\n', "")
    head, _, _ = text.partition("  [[neighbors.afi-safis]]")
    (tmp_path / "gobgp.toml").write_text(head + RESTARTING)
    arguments = ["-f", "gobgp.toml", f"--api-hosts={THEIRS}:50052", "--pprof-disable", "-p"]
    ipv4 = channel(next_hop_address=parse_address(OUR_ID), add_paths=AddPaths.ON)
    peer = bgp(
        "gobgp",
        THEIRS,
        peer_as=65010,
        source_address=int.from_bytes(parse_address(OURS), "big"),
        timers=QUICK,
        graceful_restart=GracefulRestart.ON,
        ipv4=ipv4,
    )
    config = speaker_config(OUR_ID, [peer], ["192.168.1.0/26"], listen_port=bgp_peers.PORT)
    speaker = Speaker(config, random.Random(1), now=asyncio.get_running_loop().time())
    daemon = BirdDaemon(speaker, logging.getLogger("bird"), listen=(OURS, bgp_peers.PORT))
    ours, table = speaker.peers["gobgp"], speaker.tables[Afi.IPV4]
    repeated, lost = (Net.parse(f"10.244.{i}.0/26").key for i in (77, 78))
    async with alive(daemon):
        with process(DAEMON, arguments, tmp_path / "first.log") as pid:
            await until(lambda: ours.session is not None, "a session")
            for i in (77, 78):
                ask("global", "rib", "add", f"10.244.{i}.0/26", "nexthop", THEIR_ID)
            await until(lambda: {repeated, lost} <= table.routes.keys(), "GoBGP's routes with us")
            os.kill(pid, signal.SIGKILL)
            await until(lambda: ours.session is None, "GoBGP is gone")
            assert {repeated, lost} <= table.routes.keys()
        with process(DAEMON, [*arguments, "-r"], tmp_path / "second.log"):
            await until(lambda: ours.session is not None, "GoBGP is back")
            # It kept no forwarding and has nothing to repeat until it is told anew.
            await until(lambda: lost not in table.routes, "what it forgot is gone")
            ask("global", "rib", "add", "10.244.77.0/26", "nexthop", THEIR_ID)
            await until(lambda: repeated in table.routes, "what it says again is there")
            await until(lambda: "192.168.1.0/26" in ask("global", "rib"), "our route with GoBGP")
