"""BFD's sockets: both kinds of sessions on loopback, packets from too far, noise, taken ports."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
from typing import TYPE_CHECKING

import pytest

from agents.bird.bfd import BfdPacket, BfdState
from agents.bird.bfd_daemon import BfdDaemon
from agents.bird.config import BfdOptions
from agents.bird.events import BfdUnwanted, BfdWanted
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from tests.bgp_peers import until

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = "127.0.98.1", "127.0.98.2"
# A busy machine may not look at its sockets for some 100 ms.
FAST = BfdOptions(min_tx_s=0.05, min_rx_s=0.05, idle_tx_s=0.05, multiplier=20)


@contextlib.contextmanager
def watching(host: str) -> Iterator[tuple[BfdDaemon, list[int]]]:
    down: list[int] = []
    daemon = BfdDaemon(
        host,
        random.Random(host),
        logging.getLogger("bfd"),
        resolve=format_ip,
        name_of=parse_ip,
        on_down=down.append,
    )
    daemon.start()
    try:
        yield daemon, down
    finally:
        daemon.close()


def want(neighbor: str, *, multihop: bool) -> BfdWanted:
    return BfdWanted("peer", parse_ip(neighbor), 0, multihop, FAST)


def state(daemon: BfdDaemon) -> str:
    rows = daemon.rows()
    return rows[0].state if rows else ""


@pytest.mark.parametrize("multihop", [False, True])
async def test_two_daemons_watch_each_other(multihop: bool) -> None:
    with watching(A) as (ours, ours_down):
        with watching(B) as (theirs, _):
            ours.event(want(B, multihop=multihop))
            theirs.event(want(A, multihop=multihop))
            await until(lambda: state(ours) == state(theirs) == "Up", "both are up")
            assert ours.rows()[0].interface == ("" if multihop else "eth0")
            assert ours_down == []
        await until(lambda: ours_down == [parse_ip(B)], "the dead neighbour is reported")
        assert state(ours) == "Down"
        ours.event(BfdUnwanted("peer", parse_ip(B)))
        assert ours.rows() == ()


async def test_noise_and_packets_from_beyond_the_link_change_nothing() -> None:
    with watching(A) as (ours, _), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        ours.event(want(B, multihop=False))
        sender.bind((B, 0))
        packet = BfdPacket(BfdState.DOWN, 9, 0, 3, 50_000, 50_000).emit()
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 254)
        for data in (packet, b"", b"x", packet[:23], bytes(24)):
            sender.sendto(data, (A, 3784))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        sender.sendto(b"\xff" * 200, (A, 3784))
        # A session of the other kind is another session.
        sender.sendto(packet, (A, 4784))
        # From Down it leads nowhere, but it is heard: whatever was sent before it is as well.
        (number,) = (each for each, key in ours._by_number.items() if not key[1])
        silent = BfdPacket(BfdState.UP, 9, number, 7, 50_000, 50_000)
        sender.sendto(silent.emit(), (A, 3784))
        await until(lambda: ours.rows()[0].timeout_s == pytest.approx(0.35), "it was heard")
        assert state(ours) == "Down"
        sender.sendto(packet, (A, 3784))
        await until(lambda: state(ours) == "Init", "the near packet counts")


async def test_a_taken_port_is_one_line() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((A, 4784))
        refused = pytest.raises(UsageError, match=f"BFD cannot listen on {A}:4784: Address already")
        with refused, watching(A):
            pass
