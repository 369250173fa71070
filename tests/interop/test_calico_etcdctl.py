"""Calico's IPAM seen with the real etcdctl, and on a real etcd."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from agents.calico.client import ResourceClient
from agents.calico.datastore import EtcdDatastore, Query
from agents.calico.ipam.assign import AssignRequest
from agents.calico.ipam.check import PREFIXES, check
from agents.calico.ipam.ipam import Ipam
from agents.calico.resources import new_resource
from agents.calico.startup import NodeFacts, start_node
from emulator.runtime.clock import real_clock
from etcd.client import EtcdClient
from tests.etcd_servers import NO_REAL_ETCD, memory_etcd, real_etcd, real_etcd_binary

if TYPE_CHECKING:
    from pathlib import Path

etcdctl = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")


async def run_etcdctl(endpoint: str, *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("etcdctl", "--endpoints", f"http://{endpoint}", *words),
        stdout=asyncio.subprocess.PIPE,
        env={"ETCDCTL_API": "3"},
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


@etcdctl
async def test_etcdctl_shows_the_keys_calico_shows(tmp_path: Path) -> None:
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as client:
        store, clock, rng = EtcdDatastore(client), real_clock(), random.Random(1)
        ipam, resources = Ipam(store, clock), ResourceClient(store, clock, rng)
        for name, address in (("kube-0", "10.10.68.222/20"), ("kube-1", "10.10.95.205/20")):
            await start_node(NodeFacts(name, address), resources, ipam, rng, tmp_path / name)
            tunnel = {"node": name, "type": "ipipTunnelAddress"}
            await ipam.auto_assign(
                AssignRequest(
                    name, handle=f"ipip-tunnel-addr-{name}", secondary=tunnel, use="Tunnel"
                )
            )
        await ipam.auto_assign(AssignRequest("kube-1", handle="k8s-pod-network.abc"))
        shown = await run_etcdctl(server.endpoint, "get", "--prefix", "--keys-only", "/calico/ipam")
        assert shown.split() == [
            "/calico/ipam/v2/assignment/ipv4/block/192.168.126.64-26",
            "/calico/ipam/v2/assignment/ipv4/block/192.168.145.64-26",
            "/calico/ipam/v2/handle/ipip-tunnel-addr-kube-0",
            "/calico/ipam/v2/handle/ipip-tunnel-addr-kube-1",
            "/calico/ipam/v2/handle/k8s-pod-network.abc",
            "/calico/ipam/v2/host/kube-0",
            "/calico/ipam/v2/host/kube-0/ipv4/block/192.168.145.64-26",
            "/calico/ipam/v2/host/kube-1",
            "/calico/ipam/v2/host/kube-1/ipv4/block/192.168.126.64-26",
        ]
        values = {
            key: await run_etcdctl(
                server.endpoint, "get", "--print-value-only", f"/calico/ipam/v2/{key}"
            )
            for key in (
                "host/kube-1",
                "host/kube-1/ipv4/block/192.168.126.64-26",
                "handle/k8s-pod-network.abc",
                "assignment/ipv4/block/192.168.126.64-26",
            )
        }
        block = json.loads(values.pop("assignment/ipv4/block/192.168.126.64-26"))
        assert block["affinity"] == "host:kube-1"
        assert block["allocations"][:3] == [0, 1, None]
        assert list(values.values()) == [
            "{}\n",
            '{"state":"confirmed","deleted":false}\n',
            '{"block":{"192.168.126.64/26":1},"deleted":false}\n',
        ]


@pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)
async def test_hosts_race_on_a_real_etcd_without_a_double(tmp_path: Path) -> None:
    async with real_etcd(tmp_path) as endpoint:
        clock, rng = real_clock(), random.Random(1)
        clients = [EtcdClient([endpoint], rng=rng) for _ in range(12)]
        stores = [EtcdDatastore(client) for client in clients]
        resources = ResourceClient(stores[0], clock, rng)
        pool = {"cidr": "10.0.0.0/25", "blockSize": 28}
        await resources.create(new_resource("IPPool", "p", pool))
        for number in range(12):
            await resources.create(new_resource("Node", f"n{number}", {}))
        got: list[str] = []

        async def work(number: int) -> None:
            ipam = Ipam(stores[number], clock)
            for turn in range(10):
                request = AssignRequest(f"n{number}", handle=f"h{number}-{turn}")
                (ip,) = (await ipam.auto_assign(request)).ips
                got.append(str(ip))
                if turn % 3 == 2:
                    await ipam.release_by_handle(f"h{number}-{turn}")
                    got.remove(str(ip))

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(work(number))
        assert len(got) == len(set(got)) == 84
        found = await stores[0].read(*(Query(prefix, prefix=True) for prefix in PREFIXES))
        report = check(kvp for kvps in found.results for kvp in kvps)
        assert len(report.allocations) == 84
        assert (report.leaked_handles, report.missing_handles) == ((), ())
        for client in clients:
            await client.close()
