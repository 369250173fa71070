"""A Calico datastore with pools and nodes, in memory or on our etcd, for IPAM's tests."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from agents.calico.datastore import Create, Delete, EtcdDatastore, KVPair, Query, Update
from agents.calico.ipam.assign import AssignRequest
from agents.calico.ipam.block import AllocationBlock, ReleaseOptions
from agents.calico.ipam.ipam import Ipam
from agents.calico.ipam.model import block_key
from agents.calico.net import Cidr, Ip
from agents.calico.resources import new_resource, resource_key, to_stored
from emulator.runtime.clock import Clock
from etcd.client import EtcdClient
from tests.calico_memory import MemoryDatastore
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agents.calico.datastore import Datastore
    from agents.calico.ipam.view import Assignments

EPOCH_S = 1767225600.0


class Cluster:
    """IPAM of a cluster whose clock stands until ``now_s`` is moved."""

    def __init__(self, store: Datastore) -> None:
        self.store = store
        self.now_s = 0.0
        self.clock = Clock(lambda: self.now_s, EPOCH_S)
        self.ipam = Ipam(store, self.clock)

    async def put(self, resource: dict[str, Any]) -> None:
        """Write a resource over whatever is there."""

        key = resource_key(
            resource["kind"],
            resource["metadata"]["name"],
            resource["metadata"].get("namespace", ""),
        )
        found = (await self.store.read(Query(key))).one(0)
        stored = to_stored(resource)
        await self.store.commit(
            Update(KVPair(key, stored, found.revision)) if found else Create(key, stored)
        )

    async def pool(self, name: str, cidr: str, **spec: object) -> None:
        await self.put(new_resource("IPPool", name, {"cidr": cidr, **spec}))

    async def node(self, *names: str, **labels: str) -> None:
        for name in names:
            await self.put(new_resource("Node", name, {}, labels=labels))

    async def remove(self, kind: str, name: str) -> None:

        await self.store.commit(Delete(resource_key(kind, name)))

    async def take(self, host: str, count: int = 1, **request: Any) -> Assignments:
        pools = tuple(Cidr.parse(text) for text in request.pop("pools", ()))
        return await self.ipam.auto_assign(AssignRequest(host, count, pools=pools, **request))

    async def ips(self, host: str, count: int = 1, **request: Any) -> list[str]:
        """Take and give the addresses' texts."""
        return [str(ip) for ip in (await self.take(host, count, **request)).ips]

    async def free(self, *ips: str) -> Sequence[Ip]:
        outcome = await self.ipam.release_ips(*(ReleaseOptions(Ip.parse(ip)) for ip in ips))
        if outcome.failure is not None:
            raise outcome.failure
        return outcome.unallocated

    async def keys(self, prefix: str = "/calico/ipam/v2/") -> list[str]:
        """IPAM's keys without their common beginning."""
        found = (await self.store.read(Query(prefix, prefix=True))).results[0]
        return [kvp.key.removeprefix("/calico/ipam/v2/") for kvp in found]

    async def block(self, cidr: str) -> AllocationBlock:
        found = (await self.store.read(Query(block_key(Cidr.parse(cidr))))).one(0)
        assert found is not None, f"no block {cidr}"
        return AllocationBlock.from_value(found.value)


@contextlib.asynccontextmanager
async def cluster(kind: str = "memory") -> AsyncIterator[Cluster]:
    """A cluster on a datastore of a kind: "memory" or "etcd"."""
    if kind == "memory":
        yield Cluster(MemoryDatastore())
        return
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as client:
        yield Cluster(EtcdDatastore(client))
