"""flannel agents against etcd over real sockets: Podwire's own, and Debian's where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest

from agents.flannel.daemon import FlannelConfig, LeaseRevokedError, run_flannel
from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import Route
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.client import EtcdClient
from etcd.server.config import EtcdConfig
from etcd.server.daemon import EtcdServer
from tests.flannel_kernel import RememberingKernel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

REAL_ETCD = os.environ.get("PODWIRE_TEST_ETCD") or shutil.which("etcd")
SERVERS = [
    "podwire",
    pytest.param(
        "debian",
        marks=pytest.mark.skipif(
            REAL_ETCD is None, reason="no etcd on PATH and PODWIRE_TEST_ETCD is not set"
        ),
    ),
]
SUBNETS = b"/coreos.com/network/subnets/"


@contextlib.asynccontextmanager
async def podwire_etcd() -> AsyncIterator[str]:
    config = EtcdConfig(listen_port=0, durability="memory")
    async with EtcdServer(config, RoleEnv(real_clock(), random.Random(1))) as server:
        yield server.endpoint


@contextlib.asynccontextmanager
async def debian_etcd(folder: Path) -> AsyncIterator[str]:
    assert REAL_ETCD is not None
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        client, peer = one.getsockname()[1], two.getsockname()[1]
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    process = await asyncio.create_subprocess_exec(
        REAL_ETCD, "--data-dir", str(folder / "etcd"), "--listen-client-urls", url,
        "--advertise-client-urls", url, "--listen-peer-urls", peer_url,
        "--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"default={peer_url}",
        "--log-level", "error", stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{client}"
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture(params=SERVERS)
async def etcd(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    server = podwire_etcd() if request.param == "podwire" else debian_etcd(tmp_path)
    async with server as endpoint:
        yield endpoint


async def write_config(client: EtcdClient, network: str = "10.3.0.0/16", **more: Any) -> None:
    extra = "".join(f',"{name}":{value}' for name, value in more.items())
    document = f'{{"Network":"{network}","Backend":{{"Type":"vxlan"}}{extra}}}'
    await client.put(b"/coreos.com/network/config", document.encode())


class Agent:
    """One flanneld as a task."""

    def __init__(self, endpoint: str, folder: Path, number: int, **options: Any) -> None:
        self.ip = f"172.17.4.{number}"
        self.kernel = RememberingKernel(self.ip, number)
        self.is_ready = asyncio.Event()
        self.config = FlannelConfig(
            (endpoint,), self.ip, str(folder / f"{number}" / "subnet.env"), **options
        )
        self.env = RoleEnv(
            real_clock(), random.Random(number), on_ready=lambda _: self.is_ready.set()
        )

    async def run(self) -> None:
        await run_flannel(self.config, self.env, self.kernel)

    def subnet_env(self) -> dict[str, str]:
        with open(self.config.subnet_file) as file:
            return dict(line.strip().split("=") for line in file)


@contextlib.asynccontextmanager
async def running(*agents: Agent) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run agents until the block ends; it begins when all of them are ready."""
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [group.create_task(agent.run(), name=agent.ip) for agent in agents]
        for agent in agents:
            await agent.is_ready.wait()
        yield tasks
        for task in tasks:
            task.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_thirty_agents_at_once_never_hold_one_subnet_twice(etcd: str, tmp_path: Path) -> None:
    holders: dict[bytes, set[bytes]] = {}

    async def observe(client: EtcdClient, started: asyncio.Event) -> None:
        async with client.watch(SUBNETS, prefix=True) as batches:
            started.set()
            async for batch in batches:
                for event in batch.events:
                    assert event.kind == "PUT"
                    holders.setdefault(event.kv.key, set()).add(event.kv.value[:30])

    async with EtcdClient([etcd]) as client:
        # 31 subnets for 30 nodes: nearly every first choice collides.
        await write_config(client, "10.3.0.0/19", SubnetLen=24)
        agents = [Agent(etcd, tmp_path, number) for number in range(1, 31)]
        started = asyncio.Event()
        watcher = asyncio.create_task(observe(client, started), name="observer")
        await started.wait()
        async with running(*agents):
            await until(lambda: all(len(agent.kernel.routes()) == 29 for agent in agents))
            envs = [agent.subnet_env()["FLANNEL_SUBNET"] for agent in agents]
        await until(lambda: len(holders) >= 30)
        assert not watcher.done()
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        assert len(set(envs)) == 30
        assert len(holders) == 30
        assert all(len(values) == 1 for values in holders.values())
        # Being stopped, no agent gave its lease back.
        assert (await client.get(SUBNETS, prefix=True)).count == 30


async def test_lease_has_flannels_key_value_and_ttl(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        agent = Agent(etcd, tmp_path, 201)
        async with running(agent):
            found = (await client.get(SUBNETS, prefix=True)).kvs
            assert len(found) == 1
            mac = next(link.mac.hex(":") for link in agent.kernel.links() if link.vni)
            assert found[0].value.decode() == (
                '{"PublicIP":"172.17.4.201","PublicIPv6":null,"BackendType":"vxlan",'
                f'"BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}'
            )
            status = await client.lease_time_to_live(found[0].lease, keys=True)
            assert status.granted_ttl_s == 86400
            assert status.keys == (found[0].key,)
            env = agent.subnet_env()
        subnet = found[0].key.removeprefix(SUBNETS).decode().replace("-", "/")
        assert env["FLANNEL_NETWORK"] == "10.3.0.0/16"
        assert env["FLANNEL_SUBNET"] == subnet.replace(".0/", ".1/")
        assert (env["FLANNEL_MTU"], env["FLANNEL_IPMASQ"]) == ("1450", "true")


async def test_docker_options_are_written_beside_subnet_env(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        path = tmp_path / "flannel_docker_opts.env"
        async with running(Agent(etcd, tmp_path, 1, docker_opts_file=str(path))):
            assert 'DOCKER_OPT_MTU="--mtu=1450"\n' in path.read_text()


async def test_unwritable_directory_is_said(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        (tmp_path / "1").write_text("a file where a directory should be")
        with pytest.raises(UsageError, match="Failed to write subnet file"):
            await Agent(etcd, tmp_path, 1).run()


async def test_agent_waits_for_the_config(
    etcd: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with EtcdClient([etcd]) as client:
        agent = Agent(etcd, tmp_path, 1)
        task = asyncio.create_task(agent.run(), name="agent")
        await until(lambda: caplog.text.count("Couldn't fetch network config") >= 2)
        assert not agent.is_ready.is_set()
        await write_config(client)
        async with asyncio.timeout(20):
            await agent.is_ready.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_leases_written_by_others_are_programmed_and_removed(
    etcd: str, tmp_path: Path
) -> None:
    key = SUBNETS + b"10.3.30.0-24"
    old_value = b'{"PublicIP":"1.1.1.1","BackendType":"vxlan","BackendData":{"VtepMAC":"%s"}}'
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        agent = Agent(etcd, tmp_path, 1, rules_resync_s=0.05)
        async with running(agent):
            kernel = agent.kernel
            await client.put(SUBNETS + b"nonsense", b"x")
            await client.put(SUBNETS + b"10.3.31.0-24", b"x")
            await client.put(key, old_value % b"02:00:00:00:00:01")
            await until(kernel.routes)
            dst = Prefix.parse("10.3.30.0/24")
            assert kernel.routes() == [Route(dst, "flannel.1", dst.network, onlink=True)]
            assert kernel.fdb()[0].dst == parse_ip("1.1.1.1")
            await client.put(key, old_value % b"02:00:00:00:00:02")
            await until(lambda: [e.mac[-1] for e in kernel.neighs() if e.mac] == [2])
            assert [entry.mac[-1] for entry in kernel.fdb()] == [2]
            await client.delete(key)
            await until(lambda: not kernel.routes())
            assert (kernel.neighs(), kernel.fdb()) == ([], [])


async def test_restarted_agent_keeps_its_subnet_and_file(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        first = Agent(etcd, tmp_path, 1)
        async with running(first):
            before = first.subnet_env()
        second = Agent(etcd, tmp_path, 1)
        async with running(second):
            assert second.subnet_env() == before
        assert (await client.get(SUBNETS, prefix=True)).count == 1


async def test_previous_subnet_is_taken_again_after_the_lease_is_gone(
    etcd: str, tmp_path: Path
) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        first = Agent(etcd, tmp_path, 1)
        async with running(first):
            before = first.subnet_env()
        await client.delete(SUBNETS, prefix=True)
        second = Agent(etcd, tmp_path, 1)
        async with running(second):
            assert second.subnet_env() == before


async def test_revoked_lease_ends_the_modern_agent(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        agent = Agent(etcd, tmp_path, 1)
        task = asyncio.create_task(agent.run(), name="agent")
        await agent.is_ready.wait()
        await client.delete(SUBNETS, prefix=True)
        async with asyncio.timeout(20):
            with pytest.raises(LeaseRevokedError, match="was deleted or has expired"):
                await task


async def test_revoked_lease_is_taken_anew_in_the_2017_profile(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        agent = Agent(etcd, tmp_path, 1, profile="2017")
        async with running(agent):
            before = (await client.get(SUBNETS, prefix=True)).kvs[0]
            assert b"PublicIPv6" not in before.value
            agent.is_ready.clear()
            await client.delete(SUBNETS, prefix=True)
            await agent.is_ready.wait()
            after = (await client.get(SUBNETS, prefix=True)).kvs[0]
            assert (after.key, after.value) == (before.key, before.value)


async def test_reservation_stays_a_reservation(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        key = SUBNETS + b"10.3.77.0-24"
        await client.put(key, b'{"PublicIP":"172.17.4.9"}')
        agent = Agent(etcd, tmp_path, 9)
        async with running(agent):
            found = (await client.get(key)).kvs[0]
            assert found.lease == 0
            assert b"VtepMAC" in found.value
            assert agent.subnet_env()["FLANNEL_SUBNET"] == "10.3.77.1/24"


async def test_short_leases_are_renewed_in_time(etcd: str, tmp_path: Path) -> None:
    async with EtcdClient([etcd]) as client:
        await write_config(client)
        agent = Agent(etcd, tmp_path, 1, ttl_s=2)
        async with running(agent):
            first = (await client.get(SUBNETS, prefix=True)).kvs[0]

            async def renewals() -> int:
                found = (await client.get(first.key)).kvs
                assert found, "the lease expired"
                return int(found[0].version)

            async with asyncio.timeout(20):
                while await renewals() < 3:
                    await asyncio.sleep(0.05)
