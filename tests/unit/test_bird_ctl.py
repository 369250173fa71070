"""bird.ctl: the tutorial's table to the blank, commands and their limits, bad sessions."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import Limit, LimitAction
from agents.bird.ctl.command import Symbols, parse
from agents.bird.ctl.engine import Engine, Session
from agents.bird.ctl.expression import holds, parse_expression
from agents.bird.ctl.lexer import Tokens
from agents.bird.ctl.reply import CommandError, Dialect, Line, frame
from agents.bird.ctl.server import MAX_COMMAND, MAX_SESSIONS
from agents.bird.ctl.show_routes import show_route
from agents.bird.ctl.times import Times
from agents.bird.messages import UPDATE
from agents.bird.net import Afi, Net, parse_address
from agents.bird.snapshot import routes, routes_of
from emulator.addr import parse_ip
from tests.bgp_speakers import World, bgp, calico_bgp, channel, speaker_config
from tests.bird_ctl import controlled, session, utc
from tests.unit.test_bgp_kernel import attributes, neighbor, node
from tests.unit.test_bgp_update_errors import update

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agents.bird.config import SpeakerConfig
    from agents.bird.ctl.show_daemon import BfdRow
    from agents.bird.speaker import Speaker

PEER = "10.10.95.205"
SYMBOLS = Symbols(("static1", "Mesh"), ("master",))


class Host:
    """An engine's daemon without a shell."""

    def __init__(self, speaker: Speaker, wanted: SpeakerConfig | None = None) -> None:
        self.speaker = speaker
        self.time = speaker.now
        self.wanted = wanted or speaker.config
        self.ended = ""
        self.rows: Sequence[BfdRow] = ()

    def now(self) -> float:
        return self.time

    def wall(self, at: float) -> datetime.datetime:
        return utc(at)

    def settle(self) -> None:
        while self.speaker.has_work:
            self.speaker.work(now=self.time)

    def read_config(self) -> SpeakerConfig:
        return self.wanted

    def find_file(self, name: str) -> str:
        return "No such file or directory"

    def shut_down(self) -> None:
        self.ended = "down"

    def leave_for_restart(self) -> None:
        self.ended = "restart"

    def bfd_rows(self) -> Sequence[BfdRow]:
        return self.rows

    def dump_tables(self, afis: Sequence[Afi], file: str) -> Iterator[None]:
        raise PermissionError(13, "Permission denied")
        yield


def two(**changes: object) -> tuple[World, Host]:
    """10.0.0.1, whose engine is asked, and 10.0.0.2, which tells it two networks."""
    world = World()
    peer = calico_bgp("Mesh", "10.0.0.2", **changes)
    world.add(speaker_config("10.0.0.1", [peer], ["192.168.1.0/26"], hostname="kube-0"))
    other = ["192.168.2.0/26", "192.168.3.0/26"]
    world.add(speaker_config("10.0.0.2", [calico_bgp("Mesh", "10.0.0.1")], other))
    assert world.run(60, lambda: world.is_up("10.0.0.1", "10.0.0.2"))
    world.run(1)
    return world, Host(world.speakers["10.0.0.1"])


def ask(engine: Engine, line: str, session: Session | None = None) -> list[str]:
    return [
        text.rstrip("\n")
        for text in frame(engine.execute(line, session or Session()))
        if text is not None
    ]


# -- text ------------------------------------------------------------------------------------------


def test_a_line_repeats_its_code_only_when_it_changes() -> None:
    lines = [Line(1007, "a"), Line(1007, "b"), None, Line(1008, "c"), Line(0, "", last=True)]
    assert list(frame(lines)) == ["1007-a\n", " b\n", None, "1008-c\n", "0000 \n"]


def test_times_of_another_day_are_dates() -> None:
    times = Times(Dialect.BIRD1, now=100_000.0, wall=utc)
    assert times.short(99_999.0) == "18:26:39"
    assert times.short(27_999.0) == "2018-08-21"
    assert Times(Dialect.BIRD2, now=10.0, wall=utc).short(3.25) == "14:40:03.250"


def test_routes_of_the_tutorials_node() -> None:
    peer = neighbor(node())
    peer.send(UPDATE, update(attributes(PEER), Net.parse("192.168.126.64/26").key))
    times = Times(Dialect.BIRD1, now=3.0, wall=utc)
    lines = [
        line.text
        for route in routes(peer.speaker)
        for line in show_route(route, times, first=True, detail=False)
    ]
    assert lines == [
        "0.0.0.0/0          via 10.10.64.1 on eth0 [kernel1 14:40:00] * (10)",
        "10.10.64.0/20      dev eth0 [direct1 14:40:00] * (240)",
        "172.17.0.0/16      dev docker0 [direct1 14:40:00] * (240)",
        "192.168.126.64/26  via 10.10.64.1 on eth0 [Mesh 14:40:00 from 10.10.95.205] * (100/?) [i]",
        "192.168.145.64/26  blackhole [static1 14:40:00] * (200)",
        "192.168.145.64/32  dev tunl0 [direct1 14:40:00] * (240)",
        "192.168.145.65/32  dev cali6edd91665ff [kernel1 14:40:00] * (10)",
    ]


def test_a_session_is_shown_with_what_it_agreed_on() -> None:
    world, host = two()
    host.time = world.now
    shown = ask(Engine(host), "show protocols all Mesh")
    assert shown[1].startswith("1002-Mesh     BGP      master   up     14:40:0")
    assert shown[1].endswith("Established   ")
    assert "     Session:          internal multihop AS4 add-path-rx add-path-tx" in shown
    shown = ask(Engine(host, dialect=Dialect.BIRD2), "show protocols all Mesh")
    assert "         RX: ipv4" in shown
    assert "     State:          UP" in shown


def test_limits_are_shown_where_they_are_set() -> None:
    limited = channel(import_limit=Limit(10, LimitAction.RESTART))
    world = World()
    world.add(speaker_config("10.0.0.1", [bgp("Mesh", "10.0.0.2", ipv4=limited)]))
    shown = ask(Engine(Host(world.speakers["10.0.0.1"])), "show protocols all Mesh")
    assert "   Import limit:   10" in shown
    assert "     Action:       restart" in shown


def test_a_restart_in_progress_is_what_readiness_looks_for() -> None:
    world = World()
    speaker = world.add(speaker_config("10.0.0.1", [calico_bgp("Mesh", "10.0.0.2")]), recover=True)
    shown = ask(Engine(Host(speaker)), "show status")
    assert shown == [
        "1000-BIRD v0.3.3+birdv1.6.8",
        "1011-Router ID is 10.0.0.1",
        " Current server time is 2018-08-21 14:40:00",
        " Last reboot on 2018-08-21 14:40:00",
        " Last reconfiguration on 2018-08-21 14:40:00",
        "0024-Graceful restart recovery in progress",
        "   Waiting for 1 protocols to recover",
        "   Wait timer is 240/240",
        "0013 Daemon is up and running",
    ]


def test_every_kind_of_attribute_is_printed() -> None:
    world, host = two()
    net = Net.parse("192.168.2.0/26")
    (route,) = routes_of(host.speaker, net)
    attrs = route.attrs._replace(
        as_path=bytes((2, 2)) + (65001).to_bytes(4, "big") + (65002).to_bytes(4, "big"),
        atomic_aggregate=True,
        aggregator=(65002).to_bytes(4, "big") + parse_address("10.9.9.9"),
        originator_id=parse_ip("10.0.0.7"),
        cluster_list=parse_address("10.0.0.8") + parse_address("10.0.0.9"),
        ext_communities=bytes.fromhex("0002fde8000000640102c000020100644304000000000001"),
        unknown=((0xE0, 99, b"\1\2"),),
    )
    times = Times(Dialect.BIRD1, now=world.now, wall=utc)
    shown = [
        line.text
        for line in show_route(replace(route, attrs=attrs), times, first=True, detail=True)
    ]
    assert shown[0].endswith("(100/-) [AS65002i]")
    assert shown[1:] == [
        "\tType: BGP unicast univ",
        "\tBGP.origin: IGP",
        "\tBGP.as_path: 65001 65002",
        "\tBGP.next_hop: 10.0.0.2",
        "\tBGP.local_pref: 100",
        "\tBGP.atomic_aggr: ",
        "\tBGP.aggregator: 10.9.9.9 AS65002",
        "\tBGP.originator_id: 10.0.0.7",
        "\tBGP.cluster_list: 10.0.0.8 10.0.0.9",
        "\tBGP.ext_community: (rt, 65000, 100) (rt, 192.0.2.1, 100) (generic, 0x43040000, 0x1)",
        "\tBGP.63 [t]: 01 02",
    ]


@pytest.mark.parametrize(
    ("condition", "fulfilled"),
    [
        ("(rt, 65000, 100) ~ bgp_ext_community", True),
        ("(rt, 192.0.2.1, 100) ~ bgp_ext_community", True),
        ("(rt, 65000, 101) ~ bgp_ext_community", False),
        ("(ro, 65000, 100) ~ bgp_ext_community", False),
        ("(generic, 0x43040000, 1) ~ bgp_ext_community", True),
        ("bgp_ext_community ~ [ (rt, 65000, *) ]", True),
        ("bgp_ext_community ~ [ (rt, 65000, 1..99), (ro, 1, *) ]", False),
        ("(64512, 1, 2) ~ bgp_large_community", True),
        ("bgp_large_community ~ [ (64512, 1, 3..9), (64512, 2, *) ]", False),
        ("bgp_large_community ~ [ (64512, *, *) ]", True),
        ("bgp_community ~ [ (64512, 100..200) ]", True),
        ("bgp_community ~ [ (64512, 121..200) ]", False),
        ("bgp_community ~ [ (64512, 1, *) ]", False),
    ],
)
def test_conditions_on_communities_of_all_kinds(condition: str, fulfilled: bool) -> None:
    _, host = two()
    (route,) = routes_of(host.speaker, Net.parse("192.168.2.0/26"))
    attrs = route.attrs._replace(
        communities=bytes.fromhex("fc000078"),
        ext_communities=bytes.fromhex("0002fde8000000640102c000020100644304000000000001"),
        large_communities=bytes.fromhex("0000fc000000000100000002"),
    )
    expression = parse_expression(Tokens(condition, Dialect.BIRD1, lambda _: False))
    assert holds(expression, replace(route, attrs=attrs)) is fulfilled


# -- commands --------------------------------------------------------------------------------------


def test_configure_undoes_what_nobody_confirms() -> None:
    _, host = two()
    engine = Engine(host)
    before = host.speaker.config
    host.wanted = replace(before, hostname="renamed")
    assert ask(engine, "configure timeout 5")[1:] == [
        "0022-Undo scheduled in 5 s",
        "0003 Reconfigured",
    ]
    assert host.speaker.config.hostname == "renamed"
    due = engine.get_timer()
    assert due == pytest.approx(host.time + 5)
    host.time = due
    engine.handle_timer(now=due)
    assert host.speaker.config.hostname == "kube-0"
    assert engine.get_timer() is None
    assert ask(engine, "configure undo") == ["0021-Undo requested", "0019 Nothing to do"]


def test_what_was_disabled_by_hand_stays_so_when_confd_speaks() -> None:
    _, host = two()
    engine = Engine(host)
    ask(engine, "disable static1")
    ask(engine, "disable Mesh")
    assert ask(engine, "show route count") == ["0014 0 of 0 routes for 0 networks"]
    engine.configure(replace(host.wanted, hostname="other"))
    assert ask(engine, "show route count") == ["0014 0 of 0 routes for 0 networks"]
    ask(engine, "enable static1")
    assert ask(engine, "show route count") == ["0014 1 of 1 routes for 1 networks"]


def test_files_other_than_confds_configure_nothing() -> None:
    _, host = two()
    engine = Engine(host, config_name="/etc/bird.cfg")
    assert ask(engine, 'configure "/etc/bird.cfg"')[-1] == "0003 Reconfigured"
    assert ask(engine, 'configure "/etc/other"') == [
        "0002-Reading configuration from /etc/other",
        "8002 /etc/other: No such file or directory",
    ]


def test_a_restricted_session_only_looks() -> None:
    _, host = two()
    engine, mine = Engine(host, dialect=Dialect.BIRD2), Session()
    assert ask(engine, "restrict", mine) == ["0016 Access restricted"]
    for line in ("configure", "disable all", "down", "graceful restart", "debug all all"):
        assert ask(engine, line, mine) == ["8007 Access denied"]
    assert host.ended == ""
    assert ask(engine, "graceful restart") == ["0025 Graceful restart requested"]
    assert host.ended == "restart"


def test_down_and_failed_dumps_say_so() -> None:
    _, host = two()
    engine = Engine(host)
    assert ask(engine, "down") == ["0007 Shutdown requested"]
    assert host.ended == "down"
    assert ask(engine, 'mrt dump table "master" to "x"') == [
        "8002 Unable to open MRT file 'x': Permission denied"
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", 9001),
        ("show route 10.0.0.1/8", 9001),
        ("show route 10.0.0.0/33", 9001),
        ("show route 1.2.3.400", 9001),
        ("show route where net ~", 9001),
        ("eval " + "(" * 2000, 9001),
        ("eval " + "!" * 2000 + "true", 9001),
        ("show route where defined(nosuch)", 9001),
        ("disable", 9001),
        ("graceful restart", 9001),
        ("debug Mesh { nosuch }", 9001),
        ('disable "x', 9001),
    ],
)
def test_what_is_not_understood_is_refused(line: str, code: int) -> None:
    with pytest.raises(CommandError) as refused:
        parse(line, SYMBOLS, Dialect.BIRD1)
    assert refused.value.line.code == code


# -- the socket ------------------------------------------------------------------------------------


async def test_a_command_too_long_costs_only_itself(tmp_path: Path) -> None:
    async with (
        controlled(speaker_config("10.0.0.1"), tmp_path),
        session(tmp_path / "bird.ctl") as client,
    ):
        assert await client.ask("x" * (MAX_COMMAND + 1)) == ["9000 Command too long"]
        assert await client.ask("y" * 5 * MAX_COMMAND) == ["9000 Command too long"]
        assert await client.ask("eval 1+2\r") == ["0023 3"]
        assert await client.ask("\0\xff") == ["9001 syntax error"]


async def test_sessions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "bird.ctl"
    async with controlled(speaker_config("10.0.0.1"), tmp_path), session(path) as client:
        others = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_SESSIONS - 1)]
        for reader, _ in others:
            await reader.readline()
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await reader.readline() == b"8007 Too many sessions\n"
        writer.close()
        assert await client.ask("eval 1") == ["0023 1"]
        for _, each in others:
            each.close()
        async with asyncio.timeout(10):
            while True:
                try:
                    async with session(path) as again:
                        assert await again.ask("eval 2") == ["0023 2"]
                        break
                except AssertionError:
                    await asyncio.sleep(0.01)


async def test_a_reader_that_stops_holds_up_nobody(tmp_path: Path) -> None:
    """Ten thousand routes are asked for and not read; others are answered, then all of it comes."""
    nets = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(10_000)]
    path = tmp_path / "bird.ctl"
    async with (
        controlled(speaker_config("10.0.0.1", (), nets), tmp_path),
        session(path) as slow,
        session(path) as other,
    ):
        slow.writer.write(b"show route\n")
        for _ in range(20):
            assert await other.ask("eval 1") == ["0023 1"]
        shown = await slow.reply()
        assert len(shown) == len(nets) + 1
        assert shown[0].startswith("1007-10.0.0.0/24")


async def test_a_session_hears_what_it_asked_to_hear(tmp_path: Path) -> None:
    peer = bgp("Mesh", "127.0.94.66", source_address=parse_ip("127.0.94.65"))
    config = speaker_config("10.0.0.1", [peer], listen_port=1790)
    async with controlled(config, tmp_path) as control, session(tmp_path / "bird.ctl") as client:
        assert await client.ask("debug all { states }") == ["0000 "]
        assert await client.ask("echo all") == ["0000 "]
        assert await client.ask("restart Mesh") == ["0012-Mesh: restarted", "0000 "]
        async with asyncio.timeout(10):
            while not any("Mesh: State changed to" in line for line in client.echoed):
                await client.ask("eval 1")
                await asyncio.sleep(0.01)
        assert control.speaker.peers["Mesh"].enabled


async def test_the_socket_goes_with_its_daemon(tmp_path: Path) -> None:
    path = tmp_path / "bird.ctl"
    # Left by one that was killed.
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    async with controlled(speaker_config("10.0.0.1"), tmp_path), asyncio.timeout(10):
        while True:
            try:
                async with session(path) as client:
                    assert await client.ask("eval 1") == ["0023 1"]
                    break
            except ConnectionRefusedError:
                await asyncio.sleep(0.001)
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()


def test_calicos_own_patterns_find_what_they_look_for() -> None:
    """What calico-node's readiness, its status and calicoctl match lines with, in effect."""
    peer = neighbor(node())
    peer.send(UPDATE, update(attributes(PEER), Net.parse("192.168.126.64/26").key))
    engine = Engine(Host(peer.speaker))
    protocols = ask(engine, "show protocols")
    assert protocols[0][5:].split() == ["name", "proto", "table", "state", "since", "info"]
    fields = next(line for line in protocols if " BGP " in line)[1:].split()
    assert fields[:4] == ["Mesh", "BGP", "master", "up"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d", fields[4])
    assert fields[5] == "Established"
    shown = "\n".join(ask(engine, "show route"))
    via = re.compile(r"(\S+)\s+via (\S+) on (\S+) \[(\S+) \S+( from (\S+))?\] (\*)?")
    dev = re.compile(r"(\S+)\s+dev (\S+) \[(\S+) \S+\] (\*)?")
    hole = re.compile(r"(\S+)\s+(blackhole|unreachable|prohibited) \[(\S+) \S+\] (\*)?")
    assert ("192.168.126.64/26", "10.10.64.1", "eth0", "Mesh") in [
        found.groups()[:4] for found in via.finditer(shown)
    ]
    assert ("192.168.145.64/32", "tunl0", "direct1", "*") in [
        m.groups() for m in dev.finditer(shown)
    ]
    assert [m.groups() for m in hole.finditer(shown)] == [
        ("192.168.145.64/26", "blackhole", "static1", "*")
    ]
    status = "\n".join(ask(engine, "show status"))
    assert "Graceful restart recovery in progress" not in status
    assert re.search(r"Router ID is (\S+)", status)
