"""confd as a daemon: the datastore changes, the speaker and the files follow."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from agents.calico.confd import daemon
from agents.calico.confd.daemon import CONFIG_DIR, ConfdConfig, run_confd
from agents.calico.ipam.model import affinity_key, affinity_value, block_key
from agents.calico.net import Cidr
from agents.calico.resources import key_of_resource, new_resource
from agents.calico.testing import MemoryDatastore
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agents.bird.config import SpeakerConfig


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(8):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


class Api:
    """The API server as far as confd asks it: for Secrets."""

    def __init__(self) -> None:
        self.password: str | Exception = "first"
        self.asked = 0

    async def get(self, resource: object, namespace: str, name: str) -> dict[str, Any]:
        self.asked += 1
        if isinstance(self.password, Exception):
            raise self.password
        return {"data": {"key": base64.b64encode(self.password.encode()).decode()}}


class Running:
    """One confd on node ``own``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = MemoryDatastore()
        self.api = Api()
        self.configs: list[SpeakerConfig] = []
        self.ready = asyncio.Event()
        self.put("Node", "own", {"bgp": {"ipv4Address": "10.0.0.1/24"}})

    def put(self, kind: str, name: str, spec: dict[str, Any]) -> str:
        resource = new_resource(kind, name, spec)
        key = key_of_resource(resource)
        self.store.put(key, resource)
        return key

    def sessions(self) -> dict[str, str]:
        """Names and passwords of the sessions that are not disabled."""
        return {bgp.name: bgp.password for bgp in self.configs[-1].bgp if not bgp.disabled}

    def text(self, name: str) -> str:
        """A file of bird's configuration, "" while there is none."""
        try:
            return (self.root / CONFIG_DIR / name).read_text()
        except OSError:
            return ""


@contextlib.asynccontextmanager
async def confd(root: Path) -> AsyncIterator[Running]:
    running = Running(root)
    env = RoleEnv(real_clock(), random.Random(1), logging.getLogger("podwire.confd"))
    env = dataclasses.replace(env, on_ready=lambda info: running.ready.set())
    task = asyncio.create_task(
        run_confd(
            ConfdConfig("own", root),
            env,
            running.store,
            running.api,  # type: ignore[arg-type]
            running.configs.append,
        )
    )
    try:
        async with asyncio.timeout(8):
            await running.ready.wait()
        yield running
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_nodes_that_come_and_go_are_peers_that_come_and_go(tmp_path: Path) -> None:
    async with confd(tmp_path) as running:
        assert running.sessions() == {}
        key = running.put("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24"}})
        await until(lambda: "Mesh_10_0_0_2" in running.sessions(), "the other node is a peer")
        await until(lambda: "Mesh_10_0_0_2" in running.text("bird.cfg"), "the file names it")
        running.store.remove(key)
        await until(lambda: running.sessions() == {}, "the other node is none")
        await until(lambda: "Mesh_10_0_0_2" not in running.text("bird.cfg"), "the file forgets it")


async def test_files_that_cannot_be_written_hold_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "RETRY_S", 0.05)
    (tmp_path / "etc").write_text("no directory")
    async with confd(tmp_path) as running:
        running.put("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24"}})
        await until(lambda: "Mesh_10_0_0_2" in running.sessions(), "the other node is a peer")
        await until(lambda: "Not a directory" in caplog.text, "it is said")
        (tmp_path / "etc").unlink()
        await until(lambda: "Mesh_10_0_0_2" in running.text("bird.cfg"), "the file is there")
        assert caplog.text.count("Not a directory") == 1


async def test_a_claim_is_announced_once_its_block_bears_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "RETRY_S", 0.02)
    block = Cidr.parse("192.168.1.0/26")
    async with confd(tmp_path) as running:
        running.store.put(block_key(block), {"cidr": str(block), "affinity": "host:other"})
        running.store.put(affinity_key("own", block), affinity_value("confirmed"))
        running.put("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24"}})
        await until(lambda: bool(running.sessions()), "the change after the claim is carried out")
        assert running.configs[-1].static[0].routes == ()
        running.store.put(block_key(block), {"cidr": str(block), "affinity": "host:own"})
        await until(lambda: len(running.configs[-1].static[0].routes) == 1, "it is announced")


async def test_a_broken_resource_is_named_and_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with confd(tmp_path) as running:
        running.put("Node", "broken", {"bgp": {"ipv4Address": "10.0.0.9/24", "asNumber": "x"}})
        running.put("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24", "asNumber": "1.10"}})
        await until(lambda: "Mesh_10_0_0_2" in running.sessions(), "the sound node is a peer")
        assert list(running.sessions()) == ["Mesh_10_0_0_2"]
        assert running.configs[-1].bgp[0].peer_as == 65546
        assert "Node broken is left out: error with field ASNumber" in caplog.text


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (ApiUnreachableError("connection refused", sent=False), True),
        (ApiError(503, "ServiceUnavailable", "starting"), True),
        (ApiError(404, "NotFound", "no such Secret"), False),
    ],
)
async def test_a_password_is_forgotten_only_with_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, kept: bool
) -> None:
    monkeypatch.setattr(daemon, "RETRY_S", 0.02)
    peer = {
        "peerIP": "10.9.0.1",
        "asNumber": 65001,
        "password": {"secretKeyRef": {"name": "s", "key": "key"}},
    }
    async with confd(tmp_path) as running:
        running.put("BGPPeer", "tor", peer)
        await until(lambda: bool(running.configs[-1].bgp), "the session is made")
        assert running.sessions() == {"Global_10_9_0_1": "first"}
        running.api.password = failure
        running.put("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24"}})
        await until(lambda: len(running.configs[-1].bgp) == 2, "the next change is carried out")
        assert ("Global_10_9_0_1" in running.sessions()) == kept
        running.api.password = "second"
        await until(
            lambda: running.sessions().get("Global_10_9_0_1") == "second", "it is asked again"
        )
