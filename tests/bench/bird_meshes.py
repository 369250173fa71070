"""Full meshes of Debian's BIRD with Calico's timers, to compare a cluster's start with."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bgp_peers import bird1, bird2

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 11792
TIMEOUT_S = 120.0
NODES = 30

_TIMERS = "connect delay time 2; connect retry time 5; error wait time 5,30; graceful restart;"


def _host(number: int) -> str:
    return f"127.90.{number // 250}.{number % 250 + 1}"


def _bird1(number: int, count: int) -> str:
    """One node's bird.cfg as BIRD 1.6 reads it: both sides of every session dial."""
    peers = "".join(
        f"protocol bgp Mesh_{other} {{ local as 64512;"
        f" neighbor {_host(other)} port {PORT} as 64512;"
        f" source address {_host(number)}; multihop; gateway recursive; import all; export all;"
        f" add paths on; {_TIMERS} }}\n"
        for other in range(count)
        if other != number
    )
    return (
        f"router id 10.90.{number // 250}.{number % 250 + 1};\n"
        f"listen bgp address {_host(number)} port {PORT};\nprotocol device {{ scan time 60; }}\n"
        f"protocol static {{ route 10.244.{number}.0/26 blackhole; }}\n{peers}"
    )


def _bird2(number: int, count: int) -> str:
    """The same in BIRD 2's language."""
    peers = "".join(
        f"protocol bgp Mesh_{other} {{ local {_host(number)} port {PORT} as 64512;"
        f" neighbor {_host(other)} port {PORT} as 64512; multihop; strict bind on; {_TIMERS}"
        " ipv4 { import all; export all; add paths on; }; }\n"
        for other in range(count)
        if other != number
    )
    return (
        f"router id 10.90.{number // 250}.{number % 250 + 1};\n"
        "protocol device { scan time 60; }\n"
        f"protocol static {{ ipv4; route 10.244.{number}.0/26 blackhole; }}\n{peers}"
    )


def established(control: Path) -> int:
    """How many sessions one BIRD has up."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control))
        client.settimeout(5)
        text = client.recv(4096)
        client.sendall(b"show protocols\n")
        while b"\n0000 " not in text:
            text += client.recv(65536)
        return text.count(b"Established")


@contextlib.contextmanager
def _daemons(kind: str, count: int, directory: Path) -> Iterator[list[Path]]:
    program = bird1() if kind == "bird1" else bird2()
    assert program is not None
    configure = _bird1 if kind == "bird1" else _bird2
    for number in range(count):
        (directory / f"{number}.conf").write_text(configure(number, count))
    running = [
        subprocess.Popen(
            [
                *(program.path, "-f" if kind == "bird2" else "-d"),
                *("-c", str(directory / f"{number}.conf")),
                *("-s", str(directory / f"{number}.ctl"), "-P", str(directory / f"{number}.pid")),
            ],
            env=program.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(count)
    ]
    try:
        yield [directory / f"{number}.ctl" for number in range(count)]
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


async def start_s(kind: str, count: int = NODES) -> float | None:
    """Seconds until all sessions of a mesh are up; None without that BIRD or if they never are."""
    if (bird1() if kind == "bird1" else bird2()) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="pw-birds-") as text:
        began = time.monotonic()
        with _daemons(kind, count, Path(text)) as controls:
            waiting = list(controls)
            while waiting and time.monotonic() - began < TIMEOUT_S:
                await asyncio.sleep(0.05)
                waiting = [each for each in waiting if not _is_up(each, count - 1)]
            return None if waiting else time.monotonic() - began


def _is_up(control: Path, sessions: int) -> bool:
    try:
        return established(control) == sessions
    except OSError:
        return False
