"""Where the server listens: several addresses, unix sockets, its own certificate, taken ports."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import aiohttp
import pytest

from emulator.errors import UsageError
from etcd.client import EtcdClient
from etcd.server.config import ListenAddress
from tests.etcd_servers import disk_etcd, memory_etcd

if TYPE_CHECKING:
    from pathlib import Path

LOCAL = "127.0.0.1"


async def test_a_taken_port_leaves_no_directory_behind(tmp_path: Path) -> None:
    with socket.create_server((LOCAL, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on {LOCAL}:{port}: Address already"):
            await disk_etcd(tmp_path / "new", port).start()
    assert not (tmp_path / "new").exists()


async def test_every_address_serves_the_same_store(tmp_path: Path) -> None:
    path = str(tmp_path / "etcd.sock")
    addresses = (
        ListenAddress(LOCAL, 0),
        ListenAddress("127.0.0.2", 0),
        ListenAddress("", 0, path=path),
    )
    async with memory_etcd(listen_at=addresses) as server:
        first, second, third = server.listeners.urls
        assert third == f"unix://{path}"
        async with EtcdClient([first]) as one, EtcdClient([second]) as two:
            await one.put(b"k", b"v")
            assert (await two.get(b"k")).kvs[0].value == b"v"
        connector = aiohttp.UnixConnector(path)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://etcd/version") as answer,
        ):
            assert answer.status == 200
    assert not (tmp_path / "etcd.sock").exists()


async def test_metrics_addresses_answer_health_and_nothing_else() -> None:
    async with memory_etcd(metrics_at=(ListenAddress(LOCAL, 0),)) as server:
        port = server.listeners.metrics_port
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{LOCAL}:{port}/health") as answer:
                assert (await answer.json(content_type=None))["health"] == "true"
            async with session.get(f"http://{LOCAL}:{port}/version") as answer:
                assert answer.status == 404


async def test_its_own_certificate_is_made_once(tmp_path: Path) -> None:
    addresses = (ListenAddress(LOCAL, 0, tls=True),)
    seen = []
    for _ in range(2):
        async with disk_etcd(tmp_path / "data", listen_at=addresses, auto_tls=True) as server:
            ca = tmp_path / "data" / "fixtures" / "client" / "cert.pem"
            assert ca.stat().st_mode & 0o077 == 0
            seen.append(ca.read_bytes())
            context = ssl.create_default_context(cafile=str(ca))
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"https://{server.endpoint}/health", ssl=context) as answer,
            ):
                assert answer.status == 200
    assert seen[0] == seen[1]
