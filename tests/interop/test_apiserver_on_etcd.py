"""The API server over the real etcd protocol: keys, restart, foreign writes, races."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from agents.apiserver.etcd_store import EtcdStore
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from etcd.client import EtcdClient
from etcd.server.config import EtcdConfig
from etcd.server.daemon import EtcdServer
from tests.api_servers import TOKEN, World, api_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PODS = "/api/v1/namespaces/default/pods"
SERVICES = "/api/v1/namespaces/default/services"


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
async def http(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    context = ssl.create_default_context(cafile=world.pki.ca)
    async with aiohttp.ClientSession(
        world.url,
        connector=aiohttp.TCPConnector(ssl=context),
        headers={"Authorization": f"Bearer {TOKEN}"},
    ) as session:
        yield session


def pod(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


async def test_objects_are_json_below_registry_and_survive_a_restart(
    tmp_path: Path, etcd: EtcdClient
) -> None:
    clock = real_clock()
    service = {"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}
    async with api_server(tmp_path, EtcdStore(etcd, clock.monotonic)) as world, http(world) as c:
        made = await (await c.post(SERVICES, json=service)).json()
        assert (await c.post(PODS, json=pod("a"))).status == 201
    kept = await etcd.get(b"/registry/services/specs/default/s")
    stored = json.loads(kept.kvs[0].value)
    assert str(kept.kvs[0].mod_revision) == made["metadata"]["resourceVersion"]
    assert stored["spec"]["clusterIP"] == made["spec"]["clusterIP"]
    assert "resourceVersion" not in stored["metadata"]
    async with api_server(tmp_path, EtcdStore(etcd, clock.monotonic)) as world, http(world) as c:
        assert (await (await c.get(f"{SERVICES}/s")).json()) == made
        taken = {"nodePort": made["spec"]["ports"][0]["nodePort"], "port": 81}
        clash = {"metadata": {"name": "t"}, "spec": {"type": "NodePort", "ports": [taken]}}
        answer = await (await c.post(SERVICES, json=clash)).json()
        assert answer["message"].endswith("provided port is already allocated")


async def test_a_watch_sees_what_others_write_to_etcd(tmp_path: Path, etcd: EtcdClient) -> None:
    async with (
        api_server(tmp_path, EtcdStore(etcd, real_clock().monotonic)) as world,
        http(world) as c,
    ):
        made = await (await c.post(PODS, json=pod("a"))).json()
        version = made["metadata"]["resourceVersion"]
        async with c.get(PODS, params={"watch": "true", "resourceVersion": version}) as stream:
            await etcd.delete(b"/registry/pods/default/a")
            async with asyncio.timeout(30):
                event = json.loads(await stream.content.readline())
        assert (event["type"], event["object"]["metadata"]["name"]) == ("DELETED", "a")
        assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)


async def test_of_many_who_update_one_version_one_wins(tmp_path: Path, etcd: EtcdClient) -> None:
    async with (
        api_server(tmp_path, EtcdStore(etcd, real_clock().monotonic)) as world,
        http(world) as c,
    ):
        made = await (await c.post(PODS, json=pod("a"))).json()

        async def put(i: int) -> int:
            body = {**made, "metadata": {**made["metadata"], "labels": {"by": str(i)}}}
            return (await c.put(f"{PODS}/a", json=body)).status

        codes = sorted(await asyncio.gather(*(put(i) for i in range(8))))
        assert codes == [200] + [409] * 7

        async def patch(i: int) -> int:
            body = {"metadata": {"annotations": {f"k{i}": "v"}}}
            headers = {"Content-Type": "application/merge-patch+json"}
            answer = await c.patch(f"{PODS}/a", data=json.dumps(body), headers=headers)
            return answer.status

        assert set(await asyncio.gather(*(patch(i) for i in range(4)))) == {200}
        final = await (await c.get(f"{PODS}/a")).json()
        assert len(final["metadata"]["annotations"]) == 4


async def test_services_made_at_once_never_share_a_port_or_address(
    tmp_path: Path, etcd: EtcdClient
) -> None:
    async with (
        api_server(tmp_path, EtcdStore(etcd, real_clock().monotonic)) as world,
        http(world) as c,
    ):

        async def make(i: int) -> tuple[str, int]:
            spec = {"type": "NodePort", "ports": [{"port": 80}]}
            body = {"metadata": {"name": f"s{i}"}, "spec": spec}
            made = await (await c.post(SERVICES, json=body)).json()
            return made["spec"]["clusterIP"], made["spec"]["ports"][0]["nodePort"]

        made = await asyncio.gather(*(make(i) for i in range(30)))
        assert len({ip for ip, _ in made}) == 30
        assert len({port for _, port in made}) == 30


async def test_events_expire_with_a_lease(tmp_path: Path, etcd: EtcdClient) -> None:
    async with (
        api_server(tmp_path, EtcdStore(etcd, real_clock().monotonic)) as world,
        http(world) as c,
    ):
        body = {
            "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"},
            "reason": "Started",
            "message": "Started container c",
        }
        assert (await c.post("/api/v1/namespaces/default/events", json=body)).status == 201
        kept = await etcd.get(b"/registry/events/default/e")
        status = await etcd.lease_time_to_live(kept.kvs[0].lease)
        assert 3600 <= status.ttl_s <= 3660
        modern = await c.get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        assert (await modern.json())["regarding"]["name"] == "a"
