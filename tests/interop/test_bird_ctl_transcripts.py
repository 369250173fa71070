"""The control socket beside real BIRDs of the same configuration: the same commands, equal replies.

A hub of ours tells both the same routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import (
    CALICO_TIMERS,
    AddPaths,
    BfdConfig,
    BgpConfig,
    ChannelConfig,
    Dest,
    DeviceConfig,
    DirectConfig,
    GracefulRestart,
    SpeakerConfig,
    StaticConfig,
    StaticRoute,
)
from agents.bird.ctl.reply import Dialect
from agents.bird.daemon import BirdDaemon
from agents.bird.filters import (
    ACCEPT_ALL,
    Accept,
    AddCommunity,
    Attr,
    CommunityKind,
    Filter,
    If,
    Reject,
    Set,
    net_in,
)
from agents.bird.net import Net, parse_address
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import Bird, Program
from tests.bird_ctl import Client, comparable, controlled, session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

HUB, REAL, OURS, NOBODY = "127.0.94.9", "127.0.94.1", "127.0.94.2", "127.0.94.8"
PORT = bgp_peers.PORT
ID = "10.10.68.222"
HUB_ID = "10.10.95.205"
TIMERS = replace(CALICO_TIMERS, connect_delay_s=1.0)
ROUTES = ("192.168.126.64/26", "192.168.200.0/24", "10.99.0.0/16")
STATIC = (
    StaticRoute(Net.parse("192.168.145.64/26")),
    StaticRoute(Net.parse("10.99.0.0/16"), Dest.UNREACHABLE),
    StaticRoute(Net.parse("10.98.0.0/16"), Dest.PROHIBIT),
    StaticRoute(Net.parse("10.97.0.0/16"), Dest.UNICAST, via=parse_address("10.10.95.7")),
    StaticRoute(Net.parse("10.10.95.0/24"), Dest.UNICAST, dev="lo"),
)
STATIC_TEXT = """
  route 192.168.145.64/26 blackhole; route 10.99.0.0/16 unreachable; route 10.98.0.0/16 prohibit;
  route 10.97.0.0/16 via 10.10.95.7; route 10.10.95.0/24 via "lo";
"""
BIRD1 = bgp_peers.bird1()
BIRD2 = bgp_peers.bird2()
CLIENT = bgp_peers.bird2_client()


def no(*nets: str) -> Filter:
    return Filter((If(net_in(*nets), (Reject(),)), Accept()))


def our_config() -> SpeakerConfig:
    channel = ChannelConfig(
        import_filter=no("192.168.200.0/24"),
        export_filter=no("10.10.95.0/24"),
        add_paths=AddPaths.ON,
        keep_filtered=True,
        next_hop_address=parse_address(ID),
    )
    mesh = BgpConfig(
        name="Mesh",
        neighbor=parse_ip(HUB),
        neighbor_port=PORT,
        peer_as=64512,
        local_as=64512,
        source_address=parse_ip(OURS),
        description="Connection to BGP peer",
        timers=TIMERS,
        graceful_restart=GracefulRestart.ON,
        ipv4=channel,
    )
    passive = replace(
        mesh,
        name="Node",
        neighbor=parse_ip(NOBODY),
        neighbor_port=None,
        peer_as=64513,
        passive=True,
        ipv4=ChannelConfig(add_paths=AddPaths.ON),
    )
    off = replace(passive, name="Global", neighbor=parse_ip("127.0.94.7"), passive=False)
    return SpeakerConfig(
        parse_ip(ID),
        (mesh, passive, replace(off, disabled=True)),
        (StaticConfig(STATIC),),
        direct=DirectConfig(("nosuch",)),
        device=DeviceConfig(scan_s=2),
        bfd=BfdConfig(),
        listen_port=PORT,
        hostname="kube-0",
    )


def their_config(dialect: Dialect) -> str:
    """The same in BIRD's language."""
    common = "local as 64512; multihop; graceful restart; connect delay time 1;"
    common += "connect retry time 5; error wait time 5,30;"
    imports = "if net ~ [ 192.168.200.0/24 ] then reject; accept;"
    exports = "if net ~ [ 10.10.95.0/24 ] then reject; accept;"
    channel = f"import keep filtered; import filter {{ {imports} }}; export filter {{ {exports} }};"
    if dialect is Dialect.BIRD1:
        listen = f"listen bgp address {REAL} port {PORT};"
        common += f"add paths on; source address {REAL}; gateway recursive;"
        ip, plain = channel, "export none;"
        next_hop = ""
    else:
        listen = 'hostname "kube-0";'
        common += f"strict bind on; local {REAL} port {PORT} as 64512;"
        next_hop = f"next hop address {ID};"
        ip = f"ipv4 {{ {channel} add paths on; gateway recursive; {next_hop} }};"
        plain = "ipv4 { import all; export none; add paths on; };"
    family = "" if dialect is Dialect.BIRD1 else "ipv4;"
    bfd = "" if dialect is Dialect.BIRD1 else "strict bind on;"
    return f"""
router id {ID};
{listen}
protocol static {{ {family} {STATIC_TEXT} }}
protocol device {{ scan time 2; }}
protocol direct {{ {family} interface "nosuch"; }}
protocol bfd {{ {bfd} }}
template bgp mesh {{ description "Connection to BGP peer"; {common} }}
protocol bgp Mesh from mesh {{ neighbor {HUB} port {PORT} as 64512; {ip} }}
protocol bgp Node from mesh {{ neighbor {NOBODY} as 64513; passive on; {plain} }}
protocol bgp Global from mesh {{ neighbor 127.0.94.7 as 64513; disabled; {plain} }}
"""


def hub_config() -> SpeakerConfig:
    """Tells both the same, with every kind of attribute."""
    tag = Filter(
        (
            Set(Attr.MED, 5),
            AddCommunity(CommunityKind.STANDARD, (64512, 120)),
            AddCommunity(CommunityKind.LARGE, (1, 2, 3)),
            Accept(),
        )
    )
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
            ipv4=ChannelConfig(
                export_filter=tag,
                import_filter=ACCEPT_ALL,
                add_paths=AddPaths.ON,
                next_hop_address=parse_address(HUB_ID),
            ),
        )
        for name, address in (("real", REAL), ("ours", OURS))
    )
    static = StaticConfig(tuple(StaticRoute(Net.parse(net)) for net in ROUTES))
    return SpeakerConfig(parse_ip(HUB_ID), peers, (static,), listen_port=PORT)


@contextlib.asynccontextmanager
async def hub() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    speaker = Speaker(hub_config(), random.Random(1), now=loop.time())
    daemon = BirdDaemon(speaker, logging.getLogger("hub"), listen=(HUB, PORT))
    async with alive(daemon):
        yield


@contextlib.contextmanager
def real_bird(program: Program, directory: Path, dialect: Dialect) -> Iterator[Bird]:
    assert CLIENT is not None
    found = Bird(program, CLIENT, directory, their_config(dialect))
    try:
        found.start()
        yield found
    finally:
        found.stop()


SHOWS = """
show protocols
show protocols all
show protocols all Mesh
show protocols all Global
show protocols "M*"
show protocols "no*"
show protocols nosuch
show route
show route all
show route for 10.10.95.3
show route for 192.168.126.64/27
show route for 11.1.1.1
show route 192.168.126.64/26
show route 192.168.126.0/24
show route 10.99.0.0/16 all
show route count
show route stats
show route protocol static1
show route protocol Mesh count
show route protocol nosuch
show route export Mesh
show route noexport Mesh
show route preexport Mesh
show route export Node
show route filtered
show route primary
show route table nosuch
show route where net ~ 10.0.0.0/8
show route where net ~ [ 10.0.0.0/8+, 192.168.126.64/26 ]
show route where source = RTS_BGP
show route where proto = "static1" && !(net ~ 10.0.0.0/8)
show route where bgp_med = 5 || dest = RTD_BLACKHOLE
show route where (64512,120) ~ bgp_community
show route where bgp_community ~ [ (64512,120) ]
show route where bgp_path.len = 0 count
show route where (64512,1,2) ~ bgp_large_community
show route where (rt,10,20) ~ bgp_ext_community
show route where bgp_community ~ [ (64512,*) ]
show route where bgp_community ~ [ (64512, 100..119), (1..64511,*) ]
show route where bgp_community.len = 1
show route where bgp_path ~ [= 65001 * =]
show route where bgp_path ~ [= * =]
show route where bgp_local_pref >= 100 && bgp_local_pref < 101
show route where ! defined(bgp_med)
show route where bgp_next_hop ~ 10.10.0.0/16
show route where from = 10.10.95.205
show route where ifname = "lo"
show route where scope = SCOPE_UNIVERSE
show route where preference > 100
show route where net.len = 26
show route where net.ip = 192.168.126.64
show route where net !~ 10.0.0.0/8
show route where dest ~ [RTD_BLACKHOLE, RTD_UNREACHABLE]
show route where false count
show route for x
show static
show bfd sessions
show bfd sessions bfd1
show bfd sessions static1
show bfd sessions nosuch
show protocols all bfd1
show status
show nosuch
nosuch
show
""".strip().splitlines()
ACTS = """
eval 1+2
eval 2*(3+4)-1
eval 1-2
eval 0x10
eval 5 > 3
eval 5 ~ [1..4, 7]
eval 10.0.0.0/8
eval 10.1.0.0/16 ~ 10.0.0.0/8
eval "x"
eval (1,2)
eval (rt, 10, 20)
eval (rt, 70000, 20)
eval (ro, 10.0.0.1, 20)
eval (generic, 0x43000000, 0x1)
eval (rt, 10, 20) = (rt, 10, 20)
eval (rt,10,5) ~ [(rt,10,*)]
eval (rt,11,5) ~ [(rt,10,*)]
eval (rt,10,5) ~ [(rt,10,1..4)]
eval (rt, 10)
eval [(rt,10,20)]
eval [(64512,*)]
eval [(64512,1,*)]
eval [(1..2,*)]
eval [(64512,1..5), (1,2)]
eval (64512,3) ~ [(64512,1..5)]
eval (64512,7) ~ [(64512,1..5)]
eval (64512,7,8) ~ [(64512,*,8)]
eval 1/0
eval 1 +
configure check
configure
configure timeout 20
configure confirm
configure confirm
configure undo
configure undo
configure check "/nosuch"
disable nosuch
disable "nosuch*"
disable Node
disable Node
enable Node
enable Node
enable "N*"
restart Node
restart static1
restart Global
reload Node
reload in Mesh
reload out Mesh
reload static1
reload nosuch
disable static1
show protocols
show route
disable static1
enable static1
disable bfd1
disable bfd1
show protocols bfd1
show protocols all bfd1
show bfd sessions
show bfd sessions bfd1
reload bfd1
enable bfd1
restart bfd1
reload bfd1
show bfd sessions
enable all
debug all all
debug Mesh { states, events }
debug all off
debug nosuch all
echo all
echo off
echo { trace }
dump routes
dump nosuch
mrt dump
mrt dump table "x"
disable
restrict
configure
disable static1
restart all
reload all
enable all
debug all all
down
mrt dump table "master*" to "x"
echo all
echo off
eval 1
show route count
""".strip().splitlines()
# A protocol that was just disabled may still be flushing its routes.
SAME = {REAL: "SOURCE", OURS: "SOURCE", "flush": "down "}
# Through a static route onto lo BIRD 2 resolves without gateway and metric; ours does as 1.6.
RESOLVED = {"via 10.10.95.205 on lo": "dev lo", "(100/?)": "(100)"}


async def settled(client: Client) -> None:
    """Wait until the hub's routes are there."""
    async with asyncio.timeout(20):
        while not any("192.168.126.64/26" in line for line in await client.ask("show route")):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("dialect", [Dialect.BIRD1, Dialect.BIRD2])
async def test_replies_are_those_of_a_real_bird(dialect: Dialect, tmp_path: Path) -> None:
    program = BIRD1 if dialect is Dialect.BIRD1 else BIRD2
    if program is None or CLIENT is None:
        pytest.skip(bgp_peers.NO_BIRD1 if dialect is Dialect.BIRD1 else bgp_peers.NO_BIRD2)
    version = "1.6.8" if dialect is Dialect.BIRD1 else "2.0.12"
    directories = [tmp_path / "real", tmp_path / "ours"]
    for directory in directories:
        directory.mkdir()
    async with (
        hub(),
        controlled(
            our_config(), directories[1], listen=(OURS, PORT), dialect=dialect, version=version
        ),
    ):
        config_file = {str(directories[0] / "bird.conf"): "bird.conf"}
        # BIRD is a process of its own: starting it may not hold our speakers up.
        real = contextlib.ExitStack()
        with real:
            await asyncio.to_thread(real.enter_context, real_bird(program, directories[0], dialect))
            async with (
                session(directories[0] / "bird.ctl") as theirs,
                session(directories[1] / "bird.ctl") as ours,
            ):
                await settled(theirs)
                await settled(ours)
                same = SAME | config_file
                if dialect is Dialect.BIRD2:
                    same |= RESOLVED
                different = []
                for command in [*SHOWS, *ACTS]:
                    want = comparable(await theirs.ask(command), same=same)
                    have = comparable(await ours.ask(command), same=same)
                    if want != have:
                        different.append((command, want, have))
                report = "\n".join(
                    "\n".join([f"## {command}", *difflib.unified_diff(want, have, n=1)])
                    for command, want, have in different
                )
                assert not different, report
