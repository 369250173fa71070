"""Running etcds for tests: ours in this loop or as a process, and the real one if it is installed.

The real etcd is ``etcd`` on PATH, or the file or directory PODWIRE_TEST_ETCD names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import sys
from typing import TYPE_CHECKING

from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.client import EtcdClient
from etcd.server import EtcdConfig, EtcdServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NO_REAL_ETCD = "no real etcd: install etcd-server or set PODWIRE_TEST_ETCD to the binary"
START_TIMEOUT_S = 20.0

# What `python -c` runs to serve: argv is data_dir, port, durability, snapshot_bytes.
SERVE = """
import asyncio, random, sys
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.server import EtcdConfig, run_etcd

def ready(info):
    print(info.rpartition("/")[2], flush=True)

config = EtcdConfig(
    data_dir=sys.argv[1],
    listen_port=int(sys.argv[2]),
    durability=sys.argv[3],
    snapshot_bytes=int(sys.argv[4]),
)
env = RoleEnv(real_clock(), random.Random(1), on_ready=ready)
asyncio.run(run_etcd(config, env))
"""


def real_etcd_binary() -> str | None:
    """Return the path of a real etcd, None if there is none."""
    given = os.environ.get("PODWIRE_TEST_ETCD")
    if given and os.path.isdir(given):
        given = os.path.join(given, "etcd")
    if given and os.access(given, os.X_OK):
        return given
    return shutil.which("etcd")


def role_env() -> RoleEnv:
    return RoleEnv(real_clock(), random.Random(1))


def memory_etcd(**config: object) -> EtcdServer:
    """Return our server without files, on a free port; use it with ``async with``."""
    return EtcdServer(EtcdConfig(listen_port=0, durability="memory", **config), role_env())  # type: ignore[arg-type]


def disk_etcd(data_dir: Path, port: int = 0, **config: object) -> EtcdServer:
    """Return our server on a directory."""
    return EtcdServer(
        EtcdConfig(data_dir=str(data_dir), listen_port=port, **config),  # type: ignore[arg-type]
        role_env(),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def process_etcd(
    data_dir: Path,
    *,
    port: int = 0,
    durability: str = "fsync",
    snapshot_bytes: int = 64 * 1024**2,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run our server as a process; yield it and its endpoint.  It is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE),
        *(str(data_dir), str(port), durability, str(snapshot_bytes)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            endpoint = (await process.stdout.readline()).decode().strip()
        yield process, endpoint
    finally:
        await kill(process)


async def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL a process and reap it; nothing happens if it is gone."""
    if process.returncode is None:
        process.kill()
    await process.communicate()


@contextlib.asynccontextmanager
async def real_etcd(data_dir: Path) -> AsyncIterator[str]:
    """Run the real etcd; yield its endpoint."""
    binary = real_etcd_binary()
    assert binary is not None, NO_REAL_ETCD
    client, peer = free_port(), free_port()
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    process = await asyncio.create_subprocess_exec(
        binary,
        *("--data-dir", str(data_dir), "--logger", "zap", "--log-level", "error"),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", f"default={peer_url}"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        endpoint = f"127.0.0.1:{client}"
        async with EtcdClient([endpoint], timeout_s=START_TIMEOUT_S) as probe:
            await probe.get(b"health")
        yield endpoint
    finally:
        await kill(process)
