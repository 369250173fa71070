"""BMP to a collector of the test's own: what was there, what comes, what goes; late collectors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from agents.bird.bmp import BmpFeed
from agents.bird.capabilities import Capabilities, Restart
from agents.bird.config import GracefulRestart
from agents.bird.connections import COLLISION_WINDOW_S
from agents.bird.daemon import BirdDaemon
from agents.bird.messages import KEEPALIVE, OPEN, UPDATE, Open, message
from agents.bird.net import Net
from agents.bird.observers import BmpClient
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from emulator.runtime.clock import real_clock
from tests import bmp_collector
from tests.bgp_peers import until
from tests.bgp_speakers import HandPeer, bgp, channel, speaker_config
from tests.unit.test_bgp_restart import INSIDE
from tests.unit.test_bgp_update_errors import update

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from agents.bird.config import SpeakerConfig
    from tests.bmp_collector import Bmp

OURS, THEIRS, PORT = "127.0.97.1", "127.0.97.2", 1790


class Collector:
    """Listens and parses."""

    def __init__(self) -> None:
        self.messages: list[Bmp] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        left = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                found, left = bmp_collector.parse(left + data)
                self.messages += found
        writer.close()

    def of(self, kind: int) -> list[Bmp]:
        return [each for each in self.messages if each.kind == kind]

    def reports(self) -> list[dict[int, int]]:
        """The numbers of each statistics report."""
        return [
            {kind: int.from_bytes(value, "big") for kind, value in each.tlvs.items()}
            for each in self.of(bmp_collector.STATISTICS)
        ]

    def nets(self) -> set[str]:
        """What the peers have announced and not withdrawn."""
        known: set[str] = set()
        for each in self.of(bmp_collector.ROUTE_MONITORING):
            announced, withdrawn = each.nets()
            known = known.union(announced).difference(withdrawn)
        return known


def settings(me: str, other: str, routes: list[str], *, passive: bool) -> SpeakerConfig:
    hop = parse_ip("10.10.64.1").to_bytes(4, "big")
    family = channel(next_hop_address=hop)
    peer = bgp("peer", other, source_address=parse_ip(me), ipv4=family, passive=passive)
    return speaker_config(me, [peer], routes, listen_port=PORT, hostname="kube-0")


@contextlib.asynccontextmanager
async def running(config: SpeakerConfig, bmp: BmpClient | None = None) -> AsyncIterator[BirdDaemon]:
    now = asyncio.get_running_loop().time()
    speaker = Speaker(config, random.Random(config.router_id), now=now, tap=bmp)
    address = ".".join(map(str, config.router_id.to_bytes(4, "big")))
    daemon = BirdDaemon(
        speaker,
        logging.getLogger("bird"),
        listen=(address, PORT),
        on_event=bmp.event if bmp is not None else None,
    )
    tasks = [asyncio.create_task(daemon.run(), name="bird")]
    if bmp is not None:
        bmp.attach(speaker, daemon.ports)
        tasks.append(asyncio.create_task(bmp.run(), name="bmp"))
    try:
        yield daemon
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, BmpClient]]:
    collector = Collector()
    server = await asyncio.start_server(collector, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield collector, BmpClient(("127.0.0.1", port), real_clock(), logging.getLogger("bmp"))
    finally:
        server.close()
        for writer in collector.writers:
            writer.close()


def test_what_comes_at_once_with_a_new_session_is_not_told_of_the_old_one() -> None:
    ours = bgp("peer", "10.0.0.9", passive=True, graceful_restart=GracefulRestart.ON)
    peer = HandPeer(speaker_config("10.0.0.1", [ours]))
    capabilities = Capabilities(
        families=(1,), as4=64512, restart=Restart(120, False, False, ((1, True),))
    )
    peer.establish(capabilities)
    speaker = peer.speaker
    feed = BmpFeed(speaker, lambda at: at, lambda _: (1790, 179))
    told = b"".join(feed.start("test"))

    class Tap:
        def message(
            self, peer: str, connection: int, kind: int, body: bytes, *, received: bool, now: float
        ) -> None:
            nonlocal told
            if received:
                told += feed.message(peer, connection, kind, body, now)

    speaker.tap = Tap()
    now = peer.now + COLLISION_WINDOW_S
    number = speaker.accepted(parse_ip("10.0.0.9"), now=now)
    assert number is not None
    opened = Open(64512, 240, parse_ip("10.0.0.9"), capabilities).body()
    route = update(INSIDE, Net.parse("192.168.2.0/26").key)
    told = b""
    data = message(OPEN, opened) + message(KEEPALIVE) + message(UPDATE, route)
    speaker.receive_data(number, data, now=now)
    for event in speaker.take_events():
        told += feed.event(event, now)
    found, left = bmp_collector.parse(told)
    assert not left
    assert [each.kind for each in found] == [
        bmp_collector.PEER_DOWN,
        bmp_collector.PEER_UP,
        bmp_collector.ROUTE_MONITORING,
    ]


async def test_a_collector_hears_of_sessions_and_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.bird.observers.STATISTICS_S", 0.2)
    theirs = settings(THEIRS, OURS, ["192.168.2.0/26", "192.168.3.0/26"], passive=True)
    async with collecting() as (collector, client):
        async with running(settings(OURS, THEIRS, [], passive=False), client) as ours:
            async with running(theirs) as daemon:
                await until(lambda: len(collector.nets()) == 2, "the routes")
                first = collector.messages[0]
                assert first.kind == bmp_collector.INITIATION
                assert first.tlvs[2] == b"kube-0"
                (up,) = collector.of(bmp_collector.PEER_UP)
                assert (up.peer, up.asn, up.router_id) == (THEIRS, 64512, THEIRS)
                assert not up.legacy
                assert abs(up.at - time.time()) < 60
                assert [each[18] for each in up.bgp] == [1, 1]
                session = ours.speaker.peers["peer"].session
                assert session is not None
                ports = up.body[16:18], up.body[18:20]
                assert ours.ports(session.number) == tuple(int.from_bytes(p, "big") for p in ports)
                assert PORT in ours.ports(session.number)
                # An earlier one may tell of the session's first moments, without its routes.
                await until(lambda: {0: 0, 7: 2, 8: 2} in collector.reports(), "a report of both")
                daemon.configure(settings(THEIRS, OURS, ["192.168.2.0/26"], passive=True))
                await until(lambda: collector.nets() == {"192.168.2.0/26"}, "the withdrawal")
            await until(lambda: collector.of(bmp_collector.PEER_DOWN), "the end of the session")
            (down,) = collector.of(bmp_collector.PEER_DOWN)
            assert down.body[0] == 3
            assert down.bgp[0][18:21] == bytes((3, 6, 2))
        await until(lambda: collector.messages[-1].kind == bmp_collector.TERMINATION, "the end")


async def test_a_collector_that_comes_late_or_again_is_told_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.bird.observers.RETRY_S", 0.05)
    nets = [f"10.{i}.0.0/16" for i in range(1, 100)]
    theirs = settings(THEIRS, OURS, nets, passive=True)
    async with (
        running(theirs),
        collecting() as (collector, client),
        running(settings(OURS, THEIRS, [], passive=False), client) as ours,
    ):
        await until(lambda: len(collector.nets()) == 99, "the routes")
        collector.messages.clear()
        collector.writers[-1].transport.abort()
        await until(lambda: collector.connections == 2, "another connection")
        await until(lambda: collector.nets() == set(nets), "the routes again")
        kinds = [each.kind for each in collector.messages]
        assert kinds[:2] == [bmp_collector.INITIATION, bmp_collector.PEER_UP]
        # End-of-RIB closes the table.
        last = collector.of(bmp_collector.ROUTE_MONITORING)[-1]
        assert last.bgp == [b"\xff" * 16 + bytes((0, 23, 2, 0, 0, 0, 0))]
        assert ours.speaker.peers["peer"].session is not None


async def test_no_collector_is_told_once_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agents.bird.observers.RETRY_S", 0.01)
    dials = 0

    async def dial(*where: Any) -> Any:
        nonlocal dials
        dials += 1
        return await real_dial(*where)

    real_dial = asyncio.open_connection
    monkeypatch.setattr(asyncio, "open_connection", dial)
    client = BmpClient(("127.0.97.9", 9), real_clock(), logging.getLogger("bmp"))
    theirs = settings(THEIRS, OURS, ["192.168.2.0/26"], passive=True)
    ours = settings(OURS, THEIRS, [], passive=False)
    async with running(theirs), running(ours, client) as daemon:
        await until(lambda: daemon.speaker.peers["peer"].session is not None, "the session")
        await until(lambda: dials >= 3, "the third attempt")
    assert caplog.text.count("no collector at 127.0.97.9:9") == 1
