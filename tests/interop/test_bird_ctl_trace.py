"""``debug`` beside real BIRDs: one story, told by a hub of ours to both, and the lines of each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import (
    CALICO_TIMERS,
    BgpConfig,
    ChannelConfig,
    Dest,
    GracefulRestart,
    Limit,
    LimitAction,
    SpeakerConfig,
    StaticConfig,
    StaticRoute,
)
from agents.bird.ctl.reply import Dialect
from agents.bird.daemon import BirdDaemon
from agents.bird.filters import ACCEPT_ALL, Accept, Filter, If, Reject, net_in
from agents.bird.net import Net, parse_address
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import Bird
from tests.bird_ctl import Client, controlled, session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HUB, REAL, OURS = "127.0.93.9", "127.0.93.1", "127.0.93.2"
PORT = bgp_peers.PORT
ID = "10.10.68.222"
TIMERS = replace(CALICO_TIMERS, connect_delay_s=1.0)
PROGRAMS = {Dialect.BIRD1: bgp_peers.bird1(), Dialect.BIRD2: bgp_peers.bird2()}
CLIENT = bgp_peers.bird2_client()
STATIC = (
    "route 10.50.0.0/16 blackhole; route 10.52.0.0/16 unreachable; route 10.77.0.0/16 prohibit;"
)


def no(net: str) -> Filter:
    return Filter((If(net_in(net), (Reject(),)), Accept()))


def our_config() -> SpeakerConfig:
    mesh = BgpConfig(
        name="Mesh",
        neighbor=parse_ip(HUB),
        neighbor_port=PORT,
        peer_as=64512,
        local_as=64512,
        source_address=parse_ip(OURS),
        timers=TIMERS,
        graceful_restart=GracefulRestart.ON,
        ipv4=ChannelConfig(
            import_filter=no("10.55.0.0/16"),
            export_filter=no("10.77.0.0/16"),
            import_limit=Limit(4, LimitAction.BLOCK),
            next_hop_address=parse_address(ID),
        ),
    )
    static = StaticConfig(
        (
            StaticRoute(Net.parse("10.50.0.0/16")),
            StaticRoute(Net.parse("10.52.0.0/16"), Dest.UNREACHABLE),
            StaticRoute(Net.parse("10.77.0.0/16"), Dest.PROHIBIT),
        )
    )
    return SpeakerConfig(parse_ip(ID), (mesh,), (static,), listen_port=PORT)


def their_config(dialect: Dialect) -> str:
    common = "multihop; graceful restart; connect delay time 1; connect retry time 5;"
    channel = """import filter { if net = 10.55.0.0/16 then reject; accept; };
    export filter { if net = 10.77.0.0/16 then reject; accept; }; import limit 4 action block;"""
    if dialect is Dialect.BIRD1:
        family, listen = "", f"listen bgp address {REAL} port {PORT};"
        common += f"local as 64512; source address {REAL}; {channel}"
    else:
        family, listen = "ipv4;", ""
        common += f"local {REAL} port {PORT} as 64512; strict bind on;"
        common += f"ipv4 {{ {channel} next hop address {ID}; }};"
    return f"""
router id {ID};
{listen}
protocol static {{ {family} {STATIC} }}
protocol device {{ scan time 60; }}
protocol bgp Mesh {{ neighbor {HUB} port {PORT} as 64512; {common} }}
"""


def hub_config(*nets: str) -> SpeakerConfig:
    peers = tuple(
        BgpConfig(
            name=name,
            neighbor=parse_ip(address),
            neighbor_port=PORT,
            peer_as=64512,
            local_as=64512,
            source_address=parse_ip(HUB),
            timers=TIMERS,
            passive=True,
            graceful_restart=GracefulRestart.ON,
            ipv4=ChannelConfig(export_filter=ACCEPT_ALL, import_filter=ACCEPT_ALL),
        )
        for name, address in (("real", REAL), ("ours", OURS))
    )
    static = StaticConfig(tuple(StaticRoute(Net.parse(net)) for net in nets))
    return SpeakerConfig(parse_ip("10.10.95.205"), peers, (static,), listen_port=PORT)


@dataclass
class Side:
    """One of the two, with a session that listens to it."""

    client: Client
    name: str
    updates: set[str] = field(default_factory=set)

    async def lines(self) -> list[str]:
        """What was told since the last time, comparable."""
        await self.client.ask("eval 1")
        told, self.client.echoed = self.client.echoed, []
        found = []
        for line in told:
            text = re.sub(r"127\.0\.93\.[12]\b", "ME", line.removeprefix("+"))
            text = re.sub(r"\d+L \d+G", "L G", re.sub(r"\(port \d+\)", "(port P)", text))
            if re.match(r"(Mesh|static1|Protocol)(?!.* interface (?!lo))", text):
                found.append(text)
        return found


@dataclass
class World:
    """The hub and the two it tells the same."""

    hub: BirdDaemon
    sides: tuple[Side, Side]

    async def both(self, command: str) -> None:
        for side in self.sides:
            await side.client.ask(command)

    async def told(self, *last: str) -> list[list[str]]:
        """What each said until it said all of these; sorted where BIRD's hash decides."""
        told: list[list[str]] = []
        for side in self.sides:
            lines: list[str] = []
            deadline = time.monotonic() + bgp_peers.WAIT_S
            while not all(any(text in line for line in lines) for text in last):
                assert time.monotonic() < deadline, f"{side.name} did not say {last}: {lines}"
                lines += await side.lines()
                await asyncio.sleep(0.02)
            # How many messages routes are told in is a matter of moments.
            side.updates |= {line for line in lines if line.endswith(" UPDATE")}
            told.append(sorted(line for line in lines if not line.endswith(" UPDATE")))
        return told


@contextlib.asynccontextmanager
async def world(dialect: Dialect, directory: Path) -> AsyncIterator[World]:
    program = PROGRAMS[dialect]
    if program is None or CLIENT is None:
        pytest.skip(bgp_peers.NO_BIRD1 if dialect is Dialect.BIRD1 else bgp_peers.NO_BIRD2)
    (directory / "real").mkdir()
    (directory / "ours").mkdir()
    speaker = Speaker(hub_config("10.55.0.0/16"), random.Random(1), now=0.0)
    hub = BirdDaemon(speaker, logging.getLogger("hub"), listen=(HUB, PORT))
    real = Bird(program, CLIENT, directory / "real", their_config(dialect))
    try:
        real.start()
        async with (
            alive(hub),
            controlled(our_config(), directory / "ours", listen=(OURS, PORT), dialect=dialect),
            session(directory / "real/bird.ctl") as theirs,
            session(directory / "ours/bird.ctl") as ours,
        ):
            yield World(hub, (Side(theirs, "real"), Side(ours, "ours")))
    finally:
        real.stop()


# What happens, and what both have said when it is over.
STORY = (
    ("enable Mesh", (), ("Sending END-OF-RIB", "Got END-OF-RIB")),
    ("", ("10.60.0.0/16", "10.50.0.0/16"), ("> added [best] 10.60", "> added 10.50")),
    (
        "",
        ("10.61.0.0/16", "10.62.0.0/16", "10.63.0.0/16", "10.64.0.0/16", "10.65.0.0/16"),
        ("ignored [limit] 10.65", "removed 10.50", "removed [sole] 10.60"),
    ),
    ("", (), ("removed [sole] 10.64",)),
    # Only this opens BIRD's import limit again.
    ("reload in Mesh", (), ("Got END-OF-RR",)),
    ("", ("10.60.0.0/16",), ("> added [best] 10.60",)),
    ("reload out Mesh", (), ("Sending END-OF-RR",)),
    ("disable static1", (), ("static1: State changed to down", "Sending UPDATE")),
    ("enable static1", (), ("static1: State changed to up", "Sending UPDATE", "added 10.52")),
    ("disable Mesh", (), ("Mesh: State changed to down",)),
)


@pytest.mark.parametrize("dialect", Dialect)
async def test_debug_tells_what_a_real_bird_tells(dialect: Dialect, tmp_path: Path) -> None:
    async with world(dialect, tmp_path) as w:
        await w.both("disable Mesh")
        await w.both("debug all all")
        await w.both("echo all")
        for command, nets, last in STORY:
            if command:
                await w.both(command)
            else:
                w.hub.configure(hub_config("10.55.0.0/16", *nets))
            real, ours = await w.told(*last)
            assert ours == real, command or nets
        for side in w.sides:
            assert side.updates == {"Mesh: Got UPDATE", "Mesh: Sending UPDATE"}
        # A configuration says what is told; these say nothing.
        await w.both("configure")
        await w.both("enable Mesh")
        for side in w.sides:
            side.client.echoed = []
            await asyncio.sleep(0)
            assert await side.lines() == []
