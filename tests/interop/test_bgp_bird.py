"""Our speaker beside Debian's BIRD 2 and BIRD 1.6 over real TCP on loopback addresses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import AddPaths, GracefulRestart, Timers
from agents.bird.daemon import BirdDaemon
from agents.bird.events import Dial, Event
from agents.bird.filters import Accept, Filter, If, Reject, net_in
from agents.bird.net import Afi, Net, format_address, parse_address
from agents.bird.speaker import Speaker
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import Bird, bird2_config, until
from tests.bgp_speakers import bgp, channel, speaker_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from agents.bird.config import BgpConfig, SpeakerConfig

OURS = "127.0.92.1"
OUR_ID = "10.10.64.1"
OUR_HOP = parse_address(OUR_ID)
THEIRS = "127.0.92.2"
THEIR_ID = "10.10.64.2"
QUICK = Timers(
    connect_delay_s=0.2, connect_retry_s=2, error_wait_min_s=0.3, error_wait_max_s=1, hold_s=90
)

BIRD2 = bgp_peers.bird2()
BIRD1 = bgp_peers.bird1()
CLIENT = bgp_peers.bird2_client()
needs_bird2 = pytest.mark.skipif(BIRD2 is None or CLIENT is None, reason=bgp_peers.NO_BIRD2)
needs_bird1 = pytest.mark.skipif(BIRD1 is None or CLIENT is None, reason=bgp_peers.NO_BIRD1)


def peer(**changes: object) -> BgpConfig:
    settings: dict[str, object] = {
        "source_address": OURS_INT,
        "timers": QUICK,
        "graceful_restart": GracefulRestart.ON,
        "ipv4": channel(next_hop_address=OUR_HOP),
        **changes,
    }
    return bgp("bird", THEIRS, **settings)


OURS_INT = int.from_bytes(parse_address(OURS), "big")


def config(*peers: BgpConfig, routes: tuple[str, ...] = ("192.168.1.0/26",)) -> SpeakerConfig:
    return speaker_config(OUR_ID, peers or (peer(),), routes, listen_port=bgp_peers.PORT)


@contextlib.asynccontextmanager
async def running(
    settings: SpeakerConfig,
    *,
    recover: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> AsyncIterator[BirdDaemon]:
    """Our daemon, until the block ends."""
    loop = asyncio.get_running_loop()
    speaker = Speaker(settings, random.Random(7), now=loop.time(), recover=recover)
    daemon = BirdDaemon(
        speaker, logging.getLogger("bird"), listen=(OURS, bgp_peers.PORT), on_event=on_event
    )
    async with alive(daemon):
        yield daemon


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Bird]:
    """A BIRD 2 that is not started yet."""
    assert BIRD2 is not None
    assert CLIENT is not None
    found = Bird(BIRD2, CLIENT, tmp_path, their_config())
    try:
        yield found
    finally:
        found.stop()


def their_config(options: str = "", routes: str = "route 192.168.2.0/26 blackhole;") -> str:
    neighbor = f"neighbor {OURS} port {bgp_peers.PORT} as 64512"
    protocol = f"protocol bgp ours from loop {{ {neighbor}; {options} }}"
    return bird2_config(THEIRS, THEIR_ID, protocol, routes)


def nets(daemon: BirdDaemon, afi: Afi = Afi.IPV4) -> dict[str, int]:
    """Networks with how many routes each has."""
    table = daemon.speaker.tables[afi]
    return {str(Net.from_key(afi, key)): len(paths) for key, paths in table.items()}


def is_up(daemon: BirdDaemon) -> bool:
    return daemon.speaker.peers["bird"].session is not None


async def learned(daemon: BirdDaemon, net: str, *, there: bool = True) -> None:
    await until(lambda: (net in nets(daemon)) is there, f"{net} {'known' if there else 'gone'}")


async def shown(bird: Bird, command: str, text: str, *, there: bool = True) -> None:
    await until(
        lambda: (text in bird.ask(command)) is there,
        f"{text!r} {'in' if there else 'not in'} {command!r}",
    )


@needs_bird2
@pytest.mark.parametrize(("ours", "theirs"), [(False, "passive on;"), (True, "")])
async def test_routes_both_ways_whoever_connects(bird: Bird, ours: bool, theirs: str) -> None:
    bird.config.write_text(their_config(theirs))
    bird.start()
    async with running(config(peer(passive=ours))) as daemon:
        await learned(daemon, "192.168.2.0/26")
        await shown(bird, "show route", "192.168.1.0/26")
        best = daemon.speaker.tables[Afi.IPV4].best(Net.parse("192.168.2.0/26").key)
        assert best is not None
        assert format_address(best.attrs.next_hop) == THEIR_ID
        assert "BGP.next_hop: 10.10.64.1" in bird.ask("show route 192.168.1.0/26 all")
        # Withdrawals both ways.
        daemon.configure(config(peer(passive=ours), routes=("192.168.7.0/26",)))
        await shown(bird, "show route", "192.168.1.0/26", there=False)
        await shown(bird, "show route", "192.168.7.0/26")
        bird.configure(their_config(theirs, "route 192.168.8.0/26 blackhole;"))
        await learned(daemon, "192.168.8.0/26")
        await learned(daemon, "192.168.2.0/26", there=False)
        assert is_up(daemon)


@needs_bird2
async def test_both_connecting_at_once_settle_on_one_session(bird: Bird) -> None:
    async with running(config()) as daemon:
        bird.start()
        await learned(daemon, "192.168.2.0/26")
        await shown(bird, "show protocols ours", "Established")


@needs_bird2
async def test_route_refresh_both_ways(bird: Bird) -> None:
    bird.start()
    async with running(config()) as daemon:
        await learned(daemon, "192.168.2.0/26")
        channel_ = daemon.speaker.peers["bird"].exchange.channels[Afi.IPV4]
        before = channel_.stats.imp_updates_received
        assert daemon.speaker.reload("bird", now=daemon.loop.time(), outgoing=False)
        daemon.after_input()
        await until(lambda: channel_.stats.imp_updates_received > before, "a repeated route")
        await learned(daemon, "192.168.2.0/26")
        exporter = daemon.speaker.peers["bird"].exchange.exporters[Afi.IPV4]
        sent = exporter.channel.stats.exp_updates_accepted
        assert "reloading" in bird.ask("reload in ours")
        await until(lambda: exporter.channel.stats.exp_updates_accepted > sent, "a repetition")
        await shown(bird, "show route", "192.168.1.0/26")


@needs_bird2
async def test_bird_killed_and_started_again_keeps_its_routes_meanwhile(bird: Bird) -> None:
    bird.config.write_text(their_config("graceful restart on;"))
    bird.start()
    async with running(config()) as daemon:
        await learned(daemon, "192.168.2.0/26")
        bird.kill()
        await until(lambda: not is_up(daemon), "the loss of the session")
        assert "192.168.2.0/26" in nets(daemon)
        # It comes back with another route instead, which End-of-RIB makes final.
        bird.config.write_text(
            their_config("graceful restart on;", "route 192.168.9.0/26 blackhole;")
        )
        bird.start("-R")
        await learned(daemon, "192.168.9.0/26")
        await learned(daemon, "192.168.2.0/26", there=False)


@needs_bird2
async def test_bird_that_is_stopped_in_order_loses_its_routes_at_once(bird: Bird) -> None:
    bird.config.write_text(their_config("graceful restart on;"))
    bird.start()
    async with running(config()) as daemon:
        await learned(daemon, "192.168.2.0/26")
        bird.stop()
        await learned(daemon, "192.168.2.0/26", there=False)
        assert daemon.speaker.peers["bird"].last_error == ("Received: ", "Administrative shutdown")


@needs_bird2
async def test_bird_keeps_our_routes_while_we_restart(bird: Bird) -> None:
    bird.config.write_text(their_config("graceful restart on;"))
    bird.start()
    async with running(config()) as daemon:
        await shown(bird, "show route", "192.168.1.0/26")
        daemon.leave_for_restart()
        await shown(bird, "show protocols all ours", "Neighbor graceful restart active")
        assert "192.168.1.0/26" in bird.ask("show route")
    async with running(config(routes=("192.168.5.0/26",)), recover=True) as daemon:
        await shown(bird, "show route", "192.168.5.0/26")
        await shown(bird, "show route", "192.168.1.0/26", there=False)
        await until(lambda: not daemon.speaker.recovering, "the end of our restart")


@needs_bird2
async def test_a_stopped_peer_is_given_up_when_its_hold_time_is_over(bird: Bird) -> None:
    bird.config.write_text(their_config("hold time 3; graceful restart off;"))
    bird.start()
    async with running(config()) as daemon:
        await learned(daemon, "192.168.2.0/26")
        bird.signal(signal.SIGSTOP)
        try:
            await learned(daemon, "192.168.2.0/26", there=False)
        finally:
            bird.signal(signal.SIGCONT)
        assert daemon.speaker.peers["bird"].last_error == ("BGP Error: ", "Hold timer expired")
        await learned(daemon, "192.168.2.0/26")


@needs_bird2
async def test_add_path_carries_every_route_both_ways(tmp_path: Path, bird: Bird) -> None:
    """A second protocol of ours announces the same network: BIRD sees both paths, and so do we."""
    options = "ipv4 { add paths on; };"
    bird.config.write_text(their_config(options))
    bird.start()
    both = channel(next_hop_address=OUR_HOP, add_paths=AddPaths.ON)
    async with running(config(peer(ipv4=both), routes=("192.168.2.0/26",))) as daemon:
        await until(lambda: nets(daemon).get("192.168.2.0/26") == 2, "two routes with us")
        await until(
            lambda: (
                bird.ask("show route 192.168.2.0/26").count("static1") == 1
                and "ours" in bird.ask("show route 192.168.2.0/26")
            ),
            "two routes with BIRD",
        )
        assert daemon.speaker.peers["bird"].exchange.exporters[Afi.IPV4].wants_all_paths


@needs_bird2
async def test_bird_reflects_a_clients_routes_to_us_and_we_to_it(bird: Bird) -> None:
    bird.config.write_text(their_config("rr client;"))
    bird.start()
    async with running(config()) as daemon:
        await learned(daemon, "192.168.2.0/26")
        await shown(bird, "show route", "192.168.1.0/26")
        assert "route-reflector" in bird.ask("show protocols all ours")


def _keep_dials(dials: list[Event], event: Event) -> None:
    if isinstance(event, Dial):
        dials.append(event)


@needs_bird2
async def test_md5_with_the_right_password_and_with_a_wrong_one(bird: Bird) -> None:
    bird.config.write_text(their_config('password "calico";'))
    bird.start()
    async with running(config(peer(password="calico"))) as daemon:
        await learned(daemon, "192.168.2.0/26")
    dials: list[Event] = []
    hasty = replace(QUICK, connect_retry_s=0.3)
    wrong = config(peer(password="other", timers=hasty))
    async with running(wrong, on_event=partial(_keep_dials, dials)) as daemon:
        # Its segments are ignored: another attempt, and another, but no session.
        await until(lambda: len(dials) >= 3, "the third attempt")
        assert not is_up(daemon)


@needs_bird2
@pytest.mark.parametrize(("ours", "theirs"), [(False, "passive on;"), (True, "")])
async def test_ttl_security_whoever_connects(bird: Bird, ours: bool, theirs: str) -> None:
    bird.config.write_text(their_config(f"{theirs} ttl security on; multihop 2;"))
    bird.start()
    secure = peer(passive=ours, ttl_security=True, multihop=2)
    async with running(config(secure)) as daemon:
        await learned(daemon, "192.168.2.0/26")


@needs_bird2
async def test_a_peer_without_ttl_security_is_not_heard(bird: Bird) -> None:
    """It sends 64 where 254 is asked for: it hears our OPEN, we do not hear its."""
    bird.config.write_text(their_config("passive on; multihop 64;"))
    bird.start()
    async with running(config(peer(ttl_security=True, multihop=2))) as daemon:
        await shown(bird, "show protocols ours", "OpenConfirm")
        assert str(daemon.speaker.peers["bird"].state) == "OpenSent"
        assert not is_up(daemon)


@needs_bird2
async def test_external_session_prepends_and_drops_local_pref(bird: Bird) -> None:
    text = their_config().replace("as 64512;\n  multihop", "as 65010;\n  multihop")
    bird.config.write_text(text)
    bird.start()
    async with running(config(peer(peer_as=65010))) as daemon:
        await learned(daemon, "192.168.2.0/26")
        await shown(bird, "show route 192.168.1.0/26 all", "BGP.as_path: 64512")


@needs_bird2
async def test_ipv6_routes_over_the_ipv4_session(bird: Bird) -> None:
    hop = parse_address("fd00:64::1")
    text = their_config("ipv6 { import all; export all; next hop address fd00:64::2; };")
    text += "protocol static six { ipv6; route fd00:2::/64 blackhole; }\n"
    bird.config.write_text(text)
    bird.start()
    dual = peer(ipv6=channel(next_hop_address=hop))
    async with running(config(dual, routes=("192.168.1.0/26", "fd00:1::/64"))) as daemon:
        await until(lambda: "fd00:2::/64" in nets(daemon, Afi.IPV6), "an IPv6 route with us")
        await shown(bird, "show route table master6 all", "fd00:1::/64")
        assert "BGP.next_hop: fd00:64::1" in bird.ask("show route table master6 fd00:1::/64 all")


@needs_bird2
async def test_bird_answers_garbage_of_ours_and_we_wait_out_the_error(bird: Bird) -> None:
    bird.start()
    async with running(config()) as daemon:
        await learned(daemon, "192.168.2.0/26")
        session = daemon.speaker.peers["bird"].session
        assert session is not None
        session.out.append(b"\0" * 19)
        daemon.speaker.touch(daemon.speaker.peers["bird"])
        daemon.speaker.work(now=daemon.loop.time())
        daemon.after_input()
        await until(
            lambda: (
                daemon.speaker.peers["bird"].last_error
                == ("Received: ", "Connection not synchronized")
            ),
            "BIRD's NOTIFICATION",
        )
        await until(lambda: is_up(daemon), "the next session")


@needs_bird2
async def test_a_changed_filter_needs_no_new_session(bird: Bird) -> None:
    bird.start()
    async with running(config()) as daemon:
        await learned(daemon, "192.168.2.0/26")
        await shown(bird, "show route", "192.168.1.0/26")
        since = daemon.speaker.peers["bird"].connections.established_at
        refuse = Filter((If(net_in("192.168.0.0/16+"), (Reject(),)), Accept()))
        strict = channel(next_hop_address=OUR_HOP, export_filter=refuse, import_filter=refuse)
        daemon.configure(config(peer(ipv4=strict)))
        await shown(bird, "show route", "192.168.1.0/26", there=False)
        assert "192.168.2.0/26" not in nets(daemon)
        daemon.configure(config())
        await shown(bird, "show route", "192.168.1.0/26")
        assert "192.168.2.0/26" in nets(daemon)
        assert daemon.speaker.peers["bird"].connections.established_at == since


@needs_bird1
async def test_calicos_own_bird_learns_and_announces(tmp_path: Path) -> None:
    """BIRD 1.6.8 with Calico's template, less what only Calico's fork knows."""
    assert BIRD1 is not None
    assert CLIENT is not None
    bird = Bird(
        BIRD1,
        CLIENT,
        tmp_path,
        f"""
log stderr all;
router id {THEIR_ID};
listen bgp address {THEIRS} port {bgp_peers.PORT};
protocol device {{ scan time 60; }}
protocol static {{ route 10.10.64.0/24 via "lo"; route 192.168.2.0/26 blackhole; }}
protocol bgp ours {{
  description "Connection to BGP peer";
  local as 64512; neighbor {OURS} port {bgp_peers.PORT} as 64512; source address {THEIRS};
  multihop; gateway recursive; import all;
  export filter {{ if net = 10.10.64.0/24 then reject; bgp_next_hop = {THEIR_ID}; accept; }};
  add paths on; graceful restart;
  connect delay time 2; connect retry time 5; error wait time 5,30;
}}
""",
    )
    bird.start()
    try:
        both = channel(next_hop_address=OUR_HOP, add_paths=AddPaths.ON)
        async with running(config(peer(ipv4=both))) as daemon:
            await learned(daemon, "192.168.2.0/26")
            await shown(bird, "show route", "192.168.1.0/26")
            capabilities = bird.ask("show protocols all ours")
            assert "refresh enhanced-refresh restart-able llgr-aware AS4" in capabilities
            assert "add-path-rx add-path-tx" in capabilities
    finally:
        bird.stop()
