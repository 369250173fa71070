"""Our speaker beside FRR's bgpd, which resets a session for what others treat as withdrawn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agents.bird.config import AddPaths, GracefulRestart, Timers
from agents.bird.daemon import BirdDaemon
from agents.bird.net import Afi, Net, format_address, parse_address
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import PORT, process, until
from tests.bgp_speakers import bgp, channel, speaker_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OURS = "127.0.103.1"
THEIRS = "127.0.103.2"
OUR_ID = "10.10.64.1"
THEIR_ID = "10.10.64.15"
QUICK = Timers(connect_delay_s=0.2, connect_retry_s=2, error_wait_min_s=0.3, error_wait_max_s=1)

DAEMON = bgp_peers.frr_bgpd()
pytestmark = pytest.mark.skipif(DAEMON is None, reason=bgp_peers.NO_FRR)

CONFIG = f"""
hostname frr
log stdout informational
router bgp 65015
 bgp router-id {THEIR_ID}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 timers bgp 3 9
 neighbor {OURS} remote-as 64512
 neighbor {OURS} port {PORT}
 neighbor {OURS} password calico
 neighbor {OURS} timers connect 1
 neighbor {OURS} update-source {THEIRS}
 neighbor {OURS} disable-connected-check
 neighbor {OURS} ebgp-multihop 5
 address-family ipv4 unicast
  network 10.244.55.0/26
  neighbor {OURS} activate
  neighbor {OURS} soft-reconfiguration inbound
  neighbor {OURS} addpath-tx-all-paths
  neighbor {OURS} route-map NH out
 exit-address-family
!
route-map NH permit 10
 set ip next-hop {THEIR_ID}
!
"""


def arguments_of(directory: Path) -> list[str]:
    """bgpd's, with its files below ``directory``."""
    return [
        *("-f", str(directory / "bgpd.conf"), "-Z", "-S", "-l", THEIRS, "-p", str(PORT)),
        *("-A", THEIRS, "-P", "0", "-i", str(directory / "run/bgpd.pid")),
        *("--vty_socket", str(directory / "run")),
    ]


class World:
    """Our speaker and bgpd."""

    def __init__(self, directory: Path, speaker: Speaker, daemon: BirdDaemon) -> None:
        self._sockets = directory / "run"
        self.speaker = speaker
        self.daemon = daemon
        self.pid = 0
        self.peer = speaker.peers["frr"]

    def ask(self, *commands: str) -> str:
        """Commands, one after the other in one session, as vtysh gives them to bgpd.

        A command ends with NUL, its answer with three and a status.
        """
        said = ""
        with socket.socket(socket.AF_UNIX) as vty:
            vty.settimeout(bgp_peers.WAIT_S)
            vty.connect(str(self._sockets / "bgpd.vty"))
            for command in ("enable", *commands):
                vty.sendall(command.encode() + b"\0")
                answer = b""
                while len(answer) < 4 or answer[-4:-1] != bytes(3):
                    data = vty.recv(65536)
                    assert data, "bgpd closed its terminal"
                    answer += data
                said = answer[:-4].decode()
        return said

    def route(self, net: str) -> dict[str, Any] | None:
        """The first path bgpd has to a network."""
        with contextlib.suppress(ValueError):
            paths = json.loads(self.ask(f"show bgp ipv4 unicast {net} json")).get("paths")
            return paths[0] if paths else None
        return None


@contextlib.asynccontextmanager
async def frr(directory: Path, *, timers: Timers = QUICK, **changes: Any) -> AsyncIterator[World]:
    assert DAEMON is not None
    (directory / "run").mkdir()
    (directory / "bgpd.conf").write_text(CONFIG)
    peer = bgp(
        "frr",
        THEIRS,
        peer_as=65015,
        source_address=int.from_bytes(parse_address(OURS), "big"),
        password="calico",
        timers=timers,
        graceful_restart=GracefulRestart.ON,
        ipv4=channel(next_hop_address=parse_address(OUR_ID), **changes),
    )
    config = speaker_config(OUR_ID, [peer], ["192.168.1.0/26"], listen_port=PORT)
    speaker = Speaker(config, random.Random(1), now=asyncio.get_running_loop().time())
    daemon = BirdDaemon(speaker, logging.getLogger("bird"), listen=(OURS, PORT))
    async with alive(daemon):
        with process(DAEMON, arguments_of(directory), directory / "frr.log") as pid:
            world = World(directory, speaker, daemon)
            world.pid = pid
            await until(lambda: world.peer.session is not None, "a session")
            yield world


async def test_routes_go_both_ways_are_repeated_and_go_away(tmp_path: Path) -> None:
    async with frr(tmp_path) as world:
        table, key = world.speaker.tables[Afi.IPV4], Net.parse("10.244.55.0/26").key
        await until(lambda: world.route("192.168.1.0/26"), "our route with FRR")
        path = world.route("192.168.1.0/26")
        assert path is not None
        assert path["aspath"]["string"] == "64512"
        assert path["nexthops"][0]["ip"] == OUR_ID
        await until(lambda: key in table.routes, "FRR's route with us")
        best = table.best(key)
        assert best is not None
        assert format_address(best.attrs.next_hop) == THEIR_ID

        session, stats = world.peer.session, world.peer.exchange.channels[Afi.IPV4].stats
        before = stats.imp_updates_received
        assert world.speaker.reload("frr", now=asyncio.get_running_loop().time())
        world.daemon.after_input()
        await until(lambda: stats.imp_updates_received > before, "FRR repeats its routes")
        world.ask(f"clear bgp ipv4 unicast {OURS} in")
        world.ask("configure terminal", "router bgp 65015", "address-family ipv4 unicast",
                  "no network 10.244.55.0/26")  # fmt: skip
        await until(lambda: key not in table.routes, "FRR's withdrawal")
        kept = world.peer.config
        world.daemon.configure(speaker_config(OUR_ID, [kept], listen_port=PORT))
        await until(lambda: world.route("192.168.1.0/26") is None, "our withdrawal")
        assert world.peer.session is session, world.peer.last_error


async def test_paths_have_identifiers_both_ways(tmp_path: Path) -> None:
    async with frr(tmp_path, add_paths=AddPaths.ON) as world:
        session = world.peer.session
        assert session is not None
        assert session.terms is not None
        assert session.terms.add_path_rx == session.terms.add_path_tx == (Afi.IPV4,)
        table, key = world.speaker.tables[Afi.IPV4], Net.parse("10.244.55.0/26").key
        await until(lambda: key in table.routes, "FRR's route with us")
        best = table.best(key)
        assert best is not None
        assert best.path_id > 0
        await until(lambda: world.route("192.168.1.0/26"), "our route with FRR")


async def test_a_frozen_bgpd_is_given_up_when_its_hold_time_is_over(tmp_path: Path) -> None:
    async with frr(tmp_path, timers=replace(QUICK, hold_s=3)) as world:
        table, key = world.speaker.tables[Afi.IPV4], Net.parse("10.244.55.0/26").key
        await until(lambda: key in table.routes, "FRR's route with us")
        os.kill(world.pid, signal.SIGSTOP)
        try:
            await until(lambda: world.peer.session is None, "the session is over")
            assert world.peer.last_error == ("BGP Error: ", "Hold timer expired")
            await until(lambda: key not in table.routes, "so is its route")
        finally:
            os.kill(world.pid, signal.SIGCONT)
        await until(lambda: key in table.routes, "all is back")


async def test_bgpd_answers_garbage_and_comes_back(tmp_path: Path) -> None:
    async with frr(tmp_path) as world:
        session = world.peer.session
        assert session is not None
        session.out.append(b"\xff" * 16 + b"\x00\x12\x04")
        world.speaker.touch(world.peer)
        world.daemon.configure(replace(world.speaker.config, hostname="again"))
        await until(lambda: world.peer.session is not session, "the session is over")
        assert world.peer.last_error == ("Received: ", "Bad message length")
        await until(lambda: world.peer.session is not None, "another begins")


async def test_a_shutdown_says_why(tmp_path: Path) -> None:
    async with frr(tmp_path) as world:
        now = asyncio.get_running_loop().time()
        world.speaker.disable("frr", now=now, text="maintenance")
        world.daemon.after_input()

        def reason() -> str:
            with contextlib.suppress(ValueError):
                neighbor = json.loads(world.ask(f"show bgp neighbors {OURS} json"))[OURS]
                return str(neighbor.get("lastShutdownDescription", "")) + str(
                    neighbor.get("lastNotificationReason", "")
                )
            return ""

        await until(lambda: "Administrative Shutdown" in reason(), "FRR names the reason")
        world.speaker.enable("frr", now=asyncio.get_running_loop().time())
        world.daemon.after_input()
        await until(lambda: world.peer.session is not None, "the session is back")
        key = Net.parse("10.244.55.0/26").key
        await until(lambda: key in world.speaker.tables[Afi.IPV4].routes, "so is its route")


REFLECTOR = f"""
hostname frr
router bgp 64512
 bgp router-id {THEIR_ID}
 bgp cluster-id 244.0.0.1
 no bgp default ipv4-unicast
 no bgp network import-check
"""
CLIENTS = {OURS: ("10.10.64.1", "192.168.1.0/26"), f"{OURS}1": ("10.10.64.2", "192.168.2.0/26")}


async def test_bgpd_reflects_one_speakers_routes_to_another(tmp_path: Path) -> None:
    assert DAEMON is not None
    text, families = REFLECTOR, ""
    for address in CLIENTS:
        text += f" neighbor {address} remote-as 64512\n neighbor {address} port {PORT}\n"
        text += f" neighbor {address} timers connect 1\n"
        text += f" neighbor {address} update-source {THEIRS}\n"
        families += f"  neighbor {address} activate\n"
        families += f"  neighbor {address} route-reflector-client\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "bgpd.conf").write_text(f"{text} address-family ipv4 unicast\n{families}")
    loop = asyncio.get_running_loop()
    speakers: dict[str, Speaker] = {}
    async with asyncio.TaskGroup() as group:
        tasks = []
        for address, (router_id, net) in CLIENTS.items():
            source = int.from_bytes(parse_address(address), "big")
            ipv4 = channel(next_hop_address=parse_address(router_id))
            peer = bgp("frr", THEIRS, source_address=source, timers=QUICK, ipv4=ipv4)
            config = speaker_config(router_id, [peer], [net], listen_port=PORT)
            speakers[router_id] = Speaker(config, random.Random(1), now=loop.time())
            daemon = BirdDaemon(
                speakers[router_id], logging.getLogger("bird"), listen=(address, PORT)
            )
            tasks.append(group.create_task(daemon.run(), name=f"bird.{router_id}"))
        try:
            with process(DAEMON, arguments_of(tmp_path), tmp_path / "frr.log"):
                table = speakers["10.10.64.2"].tables[Afi.IPV4]
                key = Net.parse("192.168.1.0/26").key
                await until(lambda: key in table.routes, "the first's route with the second")
                best = table.best(key)
                assert best is not None
                assert best.attrs.originator_id == parse_ip("10.10.64.1")
                assert best.attrs.cluster_list == parse_address("244.0.0.1")
                assert format_address(best.attrs.next_hop) == "10.10.64.1"
                # What comes back to its originator is refused there.
                own = speakers["10.10.64.1"].tables[Afi.IPV4].paths(key)
                assert [path.channel.name for path in own] == ["static1"]
        finally:
            for task in tasks:
                task.cancel()
