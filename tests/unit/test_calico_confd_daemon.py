"""confd as a daemon: the datastore changes, the speaker and the files follow."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any

from agents.calico.confd import daemon
from agents.calico.confd.daemon import CONFIG_DIR, NAMESPACE, ConfdConfig, run_confd
from agents.calico.datastore import Create
from agents.calico.ipam.model import affinity_key, affinity_value, block_key
from agents.calico.net import Cidr
from agents.calico.resources import key_of_resource, new_resource
from emulator.kubeclient import RestClient
from emulator.kubeclient.resource import SECRETS
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from tests.calico_memory import MemoryDatastore
from tests.kube_fakes import FakeApi
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from agents.bird.config import SpeakerConfig


class Running:
    """One confd on node ``own``."""

    def __init__(self, root: Path, api: FakeApi) -> None:
        self.root = root
        self.store = MemoryDatastore()
        self.api = api
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

    def set_password(self, text: str) -> None:
        """Write the Secret as kubectl does."""
        data = {"key": base64.b64encode(text.encode()).decode()}
        self.api.put(SECRETS, {"metadata": {"namespace": NAMESPACE, "name": "s"}, "data": data})

    def text(self, name: str) -> str:
        """A file of bird's configuration, "" while there is none."""
        try:
            return (self.root / CONFIG_DIR / name).read_text()
        except OSError:
            return ""


@contextlib.asynccontextmanager
async def confd(root: Path) -> AsyncIterator[Running]:
    async with (
        FakeApi() as api,
        RestClient(api.config, rng=random.Random(2)) as client,
        _confd(Running(root, api), client) as running,
    ):
        yield running


@contextlib.asynccontextmanager
async def _confd(running: Running, client: RestClient) -> AsyncIterator[Running]:
    env = RoleEnv(real_clock(), random.Random(1), logging.getLogger("podwire.confd"))
    env = dataclasses.replace(env, on_ready=lambda info: running.ready.set())
    task = asyncio.create_task(
        run_confd(
            ConfdConfig("own", running.root), env, running.store, client, running.configs.append
        )
    )
    try:
        async with asyncio.timeout(30):
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
    tries = 0

    def render(*of: Any) -> dict[str, str]:
        nonlocal tries
        tries += 1
        return real_render(*of)

    real_render = daemon.render
    monkeypatch.setattr(daemon, "render", render)
    monkeypatch.setattr(daemon, "QUIET_S", 0.01)
    monkeypatch.setattr(daemon, "RETRY_S", 0.01)
    in_the_way = tmp_path / CONFIG_DIR / "bird.cfg"
    in_the_way.mkdir(parents=True)
    async with confd(tmp_path) as running:
        running.put("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24"}})
        await until(lambda: "Mesh_10_0_0_2" in running.sessions(), "the other node is a peer")
        await until(lambda: tries >= 4, "it is tried again")
        assert caplog.text.count("Is a directory") == 1
        in_the_way.rmdir()
        await until(lambda: "Mesh_10_0_0_2" in running.text("bird.cfg"), "the file is there")


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


async def test_claims_written_in_one_transaction_are_all_announced(tmp_path: Path) -> None:
    async with confd(tmp_path) as running:
        writes: list[Create] = []
        for block in map(Cidr.parse, ("192.168.1.0/26", "192.168.2.0/26")):
            writes += [
                Create(block_key(block), {"cidr": str(block), "affinity": "host:own"}),
                Create(affinity_key("own", block), affinity_value("confirmed")),
            ]
        await running.store.commit(*writes)
        await until(
            lambda: bool(running.configs) and len(running.configs[-1].static[0].routes) == 2,
            "both are announced",
        )


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


async def test_a_session_that_cannot_be_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reflector = {"ipv4Address": "10.0.0.1/24", "routeReflectorClusterID": "244.0.0.1"}
    async with confd(tmp_path) as running:
        running.put("Node", "own", {"bgp": reflector})
        # As the AS of a session is another than the node's, the peer is no client of it.
        odd = {"peerIP": "10.9.0.1", "asNumber": 64512, "localASNumber": 65001}
        running.put("BGPPeer", "odd", odd)
        running.put("BGPPeer", "sound", {"peerIP": "10.9.0.2", "asNumber": 65001})
        await until(lambda: "Global_10_9_0_2" in running.sessions(), "the sound peer is there")
        assert list(running.sessions()) == ["Global_10_9_0_2"]
        assert "BGP peer Global_10_9_0_1 is left out" in caplog.text
        await until(lambda: "Global_10_9_0_2" in running.text("bird.cfg"), "there is a file")
        assert "Global_10_9_0_1" not in running.text("bird.cfg")
        assert "Only internal neighbor can be RR client" in caplog.text


async def test_a_password_changes_and_is_forgotten_only_with_its_secret(tmp_path: Path) -> None:
    peer = {
        "peerIP": "10.9.0.1",
        "asNumber": 65001,
        "password": {"secretKeyRef": {"name": "s", "key": "key"}},
    }
    async with confd(tmp_path) as running:
        running.set_password("first")
        running.put("BGPPeer", "tor", peer)
        await until(lambda: bool(running.sessions()), "the session is made")
        assert running.sessions() == {"Global_10_9_0_1": "first"}
        running.set_password("second")
        await until(
            lambda: running.sessions().get("Global_10_9_0_1") == "second", "the new one is taken"
        )
        # Nobody to ask now: a session must not end for that.
        await running.api.stop()
        running.put("Node", "other", {"bgp": {"ipv4Address": "10.0.0.2/24"}})
        await until(lambda: len(running.configs[-1].bgp) == 2, "the next change is carried out")
        assert running.sessions()["Global_10_9_0_1"] == "second"


async def test_a_session_waits_for_its_secret(tmp_path: Path) -> None:
    peer = {
        "peerIP": "10.9.0.1",
        "asNumber": 65001,
        "password": {"secretKeyRef": {"name": "s", "key": "key"}},
    }
    async with confd(tmp_path) as running:
        running.put("BGPPeer", "tor", peer)
        await until(lambda: bool(running.configs[-1].bgp), "the session is known")
        assert running.sessions() == {}
        await until(lambda: "Peers of every node" in running.text("bird.cfg"), "there is a file")
        assert "Global_10_9_0_1" not in running.text("bird.cfg")
        running.set_password("first")
        await until(lambda: bool(running.sessions()), "the session is made")
        await until(lambda: 'password "first";' in running.text("bird.cfg"), "the file has it")
        running.api.remove(SECRETS, NAMESPACE, "s")
        await until(lambda: not running.sessions(), "the password is forgotten")
