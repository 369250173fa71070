"""Calico's resources by kubectl: the same keys Calico's own programs use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from typing import TYPE_CHECKING

import pytest

from agents.apiserver.config import StorageRoot
from agents.apiserver.etcd_store import EtcdStore
from agents.calico import crds, resources
from agents.calico.client import ResourceClient
from agents.calico.datastore import EtcdDatastore
from emulator.cluster.roles import calico_admission
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.client import EtcdClient
from etcd.server.config import EtcdConfig
from etcd.server.daemon import EtcdServer
from tests.api_servers import World, api_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

POOL = """
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: extra}
spec: {cidr: 10.9.0.0/16, natOutgoing: true}
"""


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdClient]:
    env = RoleEnv(real_clock(), random.Random(1), logging.getLogger("etcd"))
    config = EtcdConfig(listen_port=0, data_dir=str(tmp_path / "etcd"), durability="memory")
    async with (
        EtcdServer(config, env) as server,
        EtcdClient([f"http://127.0.0.1:{server.port}"]) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def cluster(folder: Path, etcd: EtcdClient) -> AsyncIterator[World]:
    roots = {crds.GROUP: StorageRoot(resources.ROOT, resources.API_VERSION)}
    store = EtcdStore(etcd, real_clock().monotonic)
    async with api_server(
        folder,
        store,
        definitions=crds.definitions(),
        storage_roots=roots,
        admissions={crds.GROUP: calico_admission},
    ) as world:
        yield world


async def test_what_kubectl_writes_is_where_calico_looks(tmp_path: Path, etcd: EtcdClient) -> None:
    async with cluster(tmp_path, etcd) as world:
        assert "extra created" in await world.ok("create", "-f", "-", stdin=POOL)
        (kv,) = (await etcd.get(resources.resource_key("IPPool", "extra").encode())).kvs
        stored = json.loads(kv.value)
        assert (stored["kind"], stored["apiVersion"]) == ("IPPool", "projectcalico.org/v3")
        assert "resourceVersion" not in stored["metadata"]
        calico = ResourceClient(EtcdDatastore(etcd), real_clock(), random.Random(1))
        assert (await calico.get("IPPool", "extra"))["spec"]["blockSize"] == 26
        await world.ok(
            "patch", "ippool", "extra", "--type=merge", "-p", '{"spec":{"ipipMode":"Always"}}'
        )
        assert (await calico.get("IPPool", "extra"))["spec"]["ipipMode"] == "Always"
        await world.ok("delete", "ippool", "extra")
        assert (await etcd.get(resources.ROOT.encode(), prefix=True)).kvs == ()


async def test_what_calico_writes_kubectl_shows_and_watches(
    tmp_path: Path, etcd: EtcdClient
) -> None:
    async with cluster(tmp_path, etcd) as world:
        calico = ResourceClient(EtcdDatastore(etcd), real_clock(), random.Random(1))
        watching = await world.spawn("get", "ippools", "-w", "-o", "name")
        await calico.create(
            {
                "kind": "IPPool",
                "apiVersion": "projectcalico.org/v3",
                "metadata": {"name": "default-ipv4-ippool"},
                "spec": {"cidr": "192.168.0.0/16", "ipipMode": "Always"},
            }
        )
        async with asyncio.timeout(10):
            assert watching.stdout is not None
            line = await watching.stdout.readline()
        watching.terminate()
        await watching.communicate()
        assert line == b"ippool.crd.projectcalico.org/default-ipv4-ippool\n"
        shown = json.loads(await world.ok("get", "ippools", "-o", "json"))
        (pool,) = shown["items"]
        assert pool["apiVersion"] == "crd.projectcalico.org/v1"
        assert pool["spec"]["cidr"] == "192.168.0.0/16"
        assert "ippools.crd.projectcalico.org" in await world.ok("get", "crd", "-o", "name")


async def test_resources_of_calico_are_found_after_a_restart(
    tmp_path: Path, etcd: EtcdClient
) -> None:
    async with cluster(tmp_path, etcd) as world:
        await world.ok("create", "-f", "-", stdin=POOL)
    async with cluster(tmp_path, etcd) as world:
        assert "extra" in await world.ok("get", "ippools")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "{cidr: 10.9.0.0/16, ipipmode: Always}",
            'IPPool in version "v1" cannot be handled as a IPPool: strict decoding error: '
            'unknown field "spec.ipipmode"',
        ),
        (
            "{cidr: 10.9.0.0/33}",
            'The IPPool "odd" is invalid: IPPool.Spec.CIDR: Invalid value: "10.9.0.0/33": '
            "IPPool CIDR must be a valid subnet",
        ),
        (
            "{cidr: 10.9.128.0/17}",
            "IPPool(odd) CIDR overlaps with IPPool(extra) CIDR 10.9.0.0/16",
        ),
    ],
)
async def test_kubectl_is_refused_what_calicoctl_is(
    tmp_path: Path, etcd: EtcdClient, spec: str, said: str
) -> None:
    async with cluster(tmp_path, etcd) as world:
        await world.ok("create", "-f", "-", stdin=POOL)
        odd = POOL.replace("extra", "odd").replace("{cidr: 10.9.0.0/16, natOutgoing: true}", spec)
        for verb in ("create", "apply"):
            code, _, err = await world.kubectl(verb, "-f", "-", stdin=odd)
            assert code == 1
            assert said in err
        assert await world.ok("get", "ippools", "-o", "name") == (
            "ippool.crd.projectcalico.org/extra\n"
        )


async def test_a_pool_keeps_its_range_whoever_patches_it(tmp_path: Path, etcd: EtcdClient) -> None:
    async with cluster(tmp_path, etcd) as world:
        await world.ok("apply", "-f", "-", stdin=POOL)
        patch = ("patch", "ippool", "extra", "--type=merge", "-p")
        for change, said in (
            ('{"spec":{"cidr":"10.10.0.0/16"}}', "IPPool CIDR cannot be modified"),
            ('{"spec":{"blockSize":28}}', "IPPool BlockSize cannot be modified"),
        ):
            code, _, err = await world.kubectl(*patch, change)
            assert code == 1
            assert said in err
        # kubectl asks for warnings only where it patches; the field goes no further.
        code, _, err = await world.kubectl(*patch, '{"spec":{"natoutgoing":true}}')
        assert (code, err) == (0, 'Warning: unknown field "spec.natoutgoing"\n')
        assert "natoutgoing" not in await world.ok("get", "ippool", "extra", "-o", "yaml")
        # What is the same in other words is no change.
        await world.ok(*patch, '{"spec":{"blockSize":26,"disabled":true}}')
        await world.ok("delete", "ippool", "extra")


async def test_kubectl_hears_of_what_nobody_enforces(tmp_path: Path, etcd: EtcdClient) -> None:
    manifest = """
apiVersion: crd.projectcalico.org/v1
kind: HostEndpoint
metadata: {name: h}
spec: {node: a, interfaceName: eth0}
"""
    policy = """
apiVersion: crd.projectcalico.org/v1
kind: GlobalNetworkPolicy
metadata: {name: default.p}
spec: {ingress: [{action: Allow, http: {methods: [GET]}}]}
"""
    async with cluster(tmp_path, etcd) as world:
        for verb in ("apply", "replace"):
            code, _, err = await world.kubectl(verb, "-f", "-", stdin=manifest)
            assert code == 0, err
            assert "Warning: HostEndpoint h: host endpoints are not enforced" in err
        code, _, err = await world.kubectl("label", "hostendpoint", "h", "a=b")
        assert "Warning: HostEndpoint h" in err
        code, _, err = await world.kubectl("create", "-f", "-", stdin=policy)
        assert code == 1
        assert "http needs Calico's application layer policy, which is not emulated" in err


async def test_what_others_leave_below_calico_s_root_hides_nothing(
    tmp_path: Path, etcd: EtcdClient
) -> None:
    deep = b"[" * 5000 + b"]" * 5000
    before = {"garbage": b"garbage", "list": b"[]", "deep": deep}
    for name, value in before.items():
        await etcd.put(resources.resource_key("IPPool", name).encode(), value)
    async with cluster(tmp_path, etcd) as world:
        await world.ok("create", "-f", "-", stdin=POOL)
        for name, value in before.items():
            await etcd.put(resources.resource_key("IPPool", f"late-{name}").encode(), value)
        assert await world.ok("get", "ippools", "-o", "name") == (
            "ippool.crd.projectcalico.org/extra\n"
        )
        # One that was an object and is no more is gone; it may be one again.
        key = resources.resource_key("IPPool", "extra").encode()
        (kv,) = (await etcd.get(key)).kvs
        await etcd.put(key, deep)
        assert await world.ok("get", "ippools", "-o", "name") == ""
        await etcd.put(key, kv.value)
        assert "extra" in await world.ok("get", "ippools")


async def test_a_name_is_made_up_for_what_is_judged(tmp_path: Path, etcd: EtcdClient) -> None:
    async with cluster(tmp_path, etcd) as world:
        endpoint = {
            "apiVersion": "crd.projectcalico.org/v1",
            "kind": "HostEndpoint",
            "metadata": {"generateName": "made-"},
            "spec": {"node": "kube-0", "interfaceName": "eth0"},
        }
        made = await world.ok("create", "-f", "-", "-o", "name", stdin=json.dumps(endpoint))
        assert made.startswith("hostendpoint.crd.projectcalico.org/made-")
        endpoint["metadata"] = {}
        err = await world.fails("create", "-f", "-", stdin=json.dumps(endpoint))
        assert "name or generateName is required" in err
