"""An etcd with TLS, client certificates or auth that can be restarted: ours, or the real one."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from typing import TYPE_CHECKING, Protocol

from emulator.cluster.authority import Authority
from etcd.client import NO_ACCESS, EtcdAccess, EtcdClient
from tests.etcd_servers import (
    NO_REAL_ETCD,
    START_TIMEOUT_S,
    disk_etcd,
    free_port,
    kill,
    real_etcd_binary,
)

if TYPE_CHECKING:
    from pathlib import Path

    from etcd.server import EtcdServer


class TlsFiles:
    """An authority, its certificate for a server on 127.0.0.1, and certificates of clients."""

    def __init__(self, directory: Path) -> None:
        self._authority = Authority(directory, datetime.datetime.now(datetime.UTC))
        self.ca = str(self._authority.ca.cert)
        server = self._authority.issue("server", "server", names=["127.0.0.1", "localhost"])
        self.cert, self.key = str(server.cert), str(server.key)

    def access(self, common_name: str) -> EtcdAccess:
        """Return how a client with a certificate of that name is let in."""
        pair = self._authority.issue(common_name, common_name)
        return EtcdAccess(cacert=self.ca, cert=str(pair.cert), key=str(pair.key))


class Peer(Protocol):
    """A running etcd."""

    endpoint: str

    async def restart(self) -> None:
        """End it without a word and start it again, with its data and on its port."""

    async def stop(self) -> None:
        """End it."""


class Ours:
    """Our server in this loop."""

    def __init__(self, data_dir: Path, tls: TlsFiles | None) -> None:
        self._data_dir = data_dir
        self._files = tls
        self._port = free_port()
        self._server: EtcdServer | None = None
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self._port}"

    async def restart(self) -> None:
        await self.stop()
        config: dict[str, object] = {"bcrypt_cost": 4}
        if self._files is not None:
            config |= {"cert_file": self._files.cert, "key_file": self._files.key}
            config |= {"client_ca_file": self._files.ca, "client_cert_auth": True}
        self._server = disk_etcd(self._data_dir, self._port, **config)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None


class Real:
    """The real etcd as a process."""

    def __init__(self, data_dir: Path, tls: TlsFiles | None) -> None:
        scheme = "https" if tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        self._access = NO_ACCESS if tls is None else tls.access("probe")
        self._flags = [
            *("--data-dir", str(data_dir), "--logger", "zap", "--log-level", "error"),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}", "--bcrypt-cost", "4"),
        ]
        if tls is not None:
            self._flags += ["--cert-file", tls.cert, "--key-file", tls.key]
            self._flags += ["--trusted-ca-file", tls.ca, "--client-cert-auth"]
        self._process: asyncio.subprocess.Process | None = None

    async def restart(self) -> None:
        await self.stop()
        binary = real_etcd_binary()
        assert binary is not None, NO_REAL_ETCD
        self._process = await asyncio.create_subprocess_exec(
            binary,
            *self._flags,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with EtcdClient(
            [self.endpoint], access=self._access, timeout_s=START_TIMEOUT_S
        ) as probe:
            # Whether it lets us in or not, it answers.
            with contextlib.suppress(Exception):
                await probe.leases()

    async def stop(self) -> None:
        if self._process is not None:
            await kill(self._process)
            self._process = None
