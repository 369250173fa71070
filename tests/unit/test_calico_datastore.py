"""Calico's datastore: compare-and-swap on our etcd and in memory, mirrors, resource client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from agents.calico.client import ResourceClient
from agents.calico.datastore import (
    MAX_TXN_OPS,
    Change,
    Check,
    Create,
    Datastore,
    Delete,
    EtcdDatastore,
    Query,
    Update,
    create,
    delete,
    get,
    list_prefix,
    update,
)
from agents.calico.errors import (
    AlreadyExistsError,
    DoesNotExistError,
    ParsingError,
    UpdateConflictError,
    ValidationError,
)
from agents.calico.mirror import Mirror
from agents.calico.resources import kind_named, new_resource, parse_key, resource_key
from emulator.runtime.clock import Clock
from etcd.client import CompactedError, EtcdClient, EtcdError
from etcd.core.errors import Code
from tests.calico_memory import MemoryChanges, MemoryDatastore
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOG = logging.Logger("test")
CLOCK = Clock(lambda: 0.0, 1767225600.0)


@contextlib.asynccontextmanager
async def opened(kind: str) -> AsyncIterator[tuple[Datastore, Callable[[str, bytes], Any]]]:
    """A datastore and a way to write raw bytes behind its back."""
    if kind == "memory":
        memory = MemoryDatastore()

        async def put(key: str, value: bytes) -> None:
            memory.put(key, value)

        yield memory, put
        return
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as client:

        async def put_etcd(key: str, value: bytes) -> None:
            await client.put(key.encode(), value)

        yield EtcdDatastore(client), put_etcd


both = pytest.mark.parametrize("kind", ["memory", "etcd"])


@both
async def test_verbs_of_one_key_compare_revisions(kind: str) -> None:
    async with opened(kind) as (store, _):
        made = await create(store, "/calico/a", {"b": 1})
        with pytest.raises(AlreadyExistsError, match="resource already exists: /calico/a"):
            await create(store, "/calico/a", {})
        assert await get(store, "/calico/a") == made
        changed = await update(store, made.with_value({"b": 2}))
        assert changed.revision > made.revision
        with pytest.raises(UpdateConflictError, match="update conflict: /calico/a"):
            await update(store, made.with_value({"b": 3}))
        with pytest.raises(UpdateConflictError):
            await delete(store, "/calico/a", made.revision)
        await delete(store, "/calico/a", changed.revision)
        with pytest.raises(DoesNotExistError):
            await delete(store, "/calico/a")
        with pytest.raises(DoesNotExistError):
            await update(store, changed)
        with pytest.raises(DoesNotExistError, match="resource does not exist: /calico/a"):
            await get(store, "/calico/a")


@both
async def test_a_commit_of_many_keys_is_all_or_nothing(kind: str) -> None:
    async with opened(kind) as (store, _):
        first = await create(store, "/calico/first", 1)
        second = await create(store, "/calico/second", 1)
        await update(store, second.with_value(2))
        with pytest.raises(UpdateConflictError, match="/calico/second"):
            await store.commit(
                Update(first.with_value(9)),
                Create("/calico/third", 9),
                Delete("/calico/second", second.revision),
            )
        assert [(kvp.key, kvp.value) for kvp in await list_prefix(store, "/calico/")] == [
            ("/calico/first", 1),
            ("/calico/second", 2),
        ]
        with pytest.raises(DoesNotExistError, match="/calico/none"):
            await store.commit(Check("/calico/none", 5), Create("/calico/third", 9))
        with pytest.raises(UpdateConflictError, match="/calico/first"):
            await store.commit(Check("/calico/first", 0), Create("/calico/third", 9))
        revision = await store.commit(
            Check("/calico/first", first.revision),
            Check("/calico/none", 0),
            Create("/calico/third", 9),
        )
        assert (await get(store, "/calico/third")).revision == revision


@both
async def test_a_read_of_many_queries_is_one_snapshot(kind: str) -> None:
    async with opened(kind) as (store, _):
        for number in range(MAX_TXN_OPS + 5):
            await create(store, f"/calico/{number:03}", number)
        snapshot = await store.read(
            Query("/calico/", prefix=True),
            *(Query(f"/calico/{number:03}") for number in range(MAX_TXN_OPS + 5)),
            Query("/calico/absent"),
        )
        assert len(snapshot.results[0]) == MAX_TXN_OPS + 5
        assert [snapshot.one(index).value for index in (1, MAX_TXN_OPS + 5)] == [0, MAX_TXN_OPS + 4]  # type: ignore[union-attr]
        assert snapshot.one(MAX_TXN_OPS + 6) is None


class Meddling:
    """An etcd client beside which somebody else writes after each of its transactions."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.written = 0

    async def txn(self, **parts: Any) -> Any:
        answer = await self.client.txn(**parts)
        self.written += 1
        await self.client.put(b"/calico/%03d" % (MAX_TXN_OPS + 1), b"%d" % -self.written)
        return answer


async def test_a_read_of_more_queries_than_one_transaction_takes_is_one_snapshot_too() -> None:
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as client:
        last = f"/calico/{MAX_TXN_OPS + 1:03}"
        await create(EtcdDatastore(client), last, 7)
        meddling = Meddling(client)
        store = EtcdDatastore(meddling)  # type: ignore[arg-type]
        snapshot = await store.read(*(Query(f"/calico/{n:03}") for n in range(MAX_TXN_OPS + 2)))
        assert meddling.written == 2
        found = snapshot.one(MAX_TXN_OPS + 1)
        assert found is not None
        assert (found.value, found.revision) == (7, snapshot.revision)
        assert (await get(EtcdDatastore(client), last)).value == -2


@both
async def test_values_nobody_can_read_are_left_out_of_lists(kind: str) -> None:
    async with opened(kind) as (store, put):
        await put("/calico/bad", b"{not json")
        await put("/calico/empty", b"")
        empty = await get(store, "/calico/empty")
        assert empty.value is None
        assert await list_prefix(store, "/calico/") == (empty,)
        with pytest.raises(ParsingError, match="failed to parse datastore entry key=/calico/bad"):
            await get(store, "/calico/bad")


@both
async def test_a_watch_tells_every_change_from_a_revision_on(kind: str) -> None:
    async with opened(kind) as (store, _):
        made = await create(store, "/calico/x", 1)
        await update(store, made.with_value(2))
        async with store.watch("/calico/", from_revision=made.revision) as changes:
            seen: list[Change] = []
            while len(seen) < 2:
                seen.extend(await anext(changes))
            await delete(store, "/calico/x")
            seen.extend(await anext(changes))
        assert [(change.kind, change.kvp.value) for change in seen] == [
            ("PUT", 1),
            ("PUT", 2),
            ("DELETE", None),
        ]


async def test_a_mirror_follows_and_reads_anew_after_a_compaction() -> None:
    store = MemoryDatastore()
    store.put("/calico/ipam/a", 1)
    store.put("/calico/other/b", 1)
    seen: list[tuple[str, ...]] = []
    mirror = Mirror(store, ["/calico/ipam/", "/calico/resources/"], seen.append, LOG)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run(), name="mirror")
        await mirror.synced.wait()
        assert seen == [("/calico/ipam/a",)]
        store.put("/calico/resources/c", 2)
        store.put("/calico/other/d", 2)
        store.remove("/calico/ipam/a")
        while len(mirror.items) != 1 or len(seen) < 2:
            await asyncio.sleep(0)
        assert list(mirror.items) == ["/calico/resources/c"]
        running.cancel()
    # Behind its back, with the history gone.
    store.put("/calico/ipam/e", 3)
    store.remove("/calico/resources/c")
    store.compact()
    with pytest.raises(CompactedError):
        store.since("/calico/", 2)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run(), name="mirror")
        while list(mirror.items) != ["/calico/ipam/e"]:
            await asyncio.sleep(0)
        running.cancel()
    assert set(seen[-1]) == {"/calico/ipam/e", "/calico/resources/c"}


async def test_one_mirror_tells_each_subscriber_of_its_own_keys() -> None:
    store = MemoryDatastore()
    store.put("/calico/ipam/a", 1)
    seen: dict[str, list[tuple[str, ...]]] = {"ipam": [], "b": []}
    # A prefix inside another is read once.
    mirror = Mirror(store, ["/calico/ipam/", "/calico/resources/", "/calico/ipam/a"], None, LOG)
    mirror.subscribe(["/calico/ipam/"], seen["ipam"].append)
    mirror.subscribe(["/calico/resources/b"], seen["b"].append)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run(), name="mirror")
        await mirror.synced.wait()
        # At first everybody hears that all is known, whatever there is.
        assert seen == {"ipam": [("/calico/ipam/a",)], "b": [()]}
        store.put("/calico/resources/c", 2)
        store.put("/calico/resources/b", 2)
        store.put("/calico/ipam/a", 2)
        while len(seen["ipam"]) < 2:
            await asyncio.sleep(0)
        assert seen["b"][1:] == [("/calico/resources/b",)]
        running.cancel()


async def test_who_subscribes_to_a_mirror_late_hears_what_is_known() -> None:
    store = MemoryDatastore()
    store.put("/calico/ipam/a", 1)
    mirror = Mirror(store, ["/calico/ipam/"], None, LOG)
    seen: list[tuple[str, ...]] = []
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run(), name="mirror")
        await mirror.synced.wait()
        mirror.subscribe(["/calico/ipam/"], seen.append)
        running.cancel()
    assert seen == [("/calico/ipam/a",)]


async def test_a_mirror_ends_even_if_a_watch_is_refused_as_it_is_told_to() -> None:
    class Refused(MemoryChanges):
        async def __aexit__(self, *exc: object) -> None:
            raise EtcdError(Code.UNAVAILABLE, "no leader")

    class Refusing(MemoryDatastore):
        def watch(
            self, prefix: str, *, from_revision: int, only: tuple[str, ...] = ()
        ) -> MemoryChanges:
            return Refused(self, only, from_revision)

    mirror = Mirror(Refusing(), ["/calico/ipam/", "/calico/resources/"], None, LOG)
    async with asyncio.timeout(0.5):
        running = asyncio.create_task(mirror.run(), name="mirror")
        await mirror.synced.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
    assert running.cancelled()


# Resources -------------------------------------------------------------------------------------


def resources(store: Datastore) -> ResourceClient:
    return ResourceClient(store, CLOCK, random.Random(1))


def pool(name: str, cidr: str, **spec: object) -> dict[str, Any]:
    return new_resource("IPPool", name, {"cidr": cidr, **spec})


def test_keys_of_resources_are_those_of_libcalico() -> None:
    root = "/calico/resources/v3/projectcalico.org/"
    assert resource_key("IPPool", "p") == f"{root}ippools/p"
    assert resource_key("NetworkPolicy", "np", "ns") == f"{root}networkpolicies/ns/np"
    assert parse_key(f"{root}networkpolicies/ns/np") == ("NetworkPolicy", "np", "ns")
    assert parse_key(f"{root}bgpconfigurations/default") == ("BGPConfiguration", "default", "")
    assert parse_key(f"{root}ippools/a/b") is None
    assert parse_key("/calico/ipam/v2/config") is None
    for text in ("pool", "IPPOOLS", "wep", "bgpconfig", "gnp", "nodes"):
        assert kind_named(text) is not None


async def test_a_created_pool_is_stored_as_libcalico_stores_it() -> None:
    store = MemoryDatastore()
    made = await resources(store).create(
        pool("default-ipv4-ippool", "192.168.0.0/16", ipipMode="Always", natOutgoing=True)
    )
    stored = json.loads(store.raw(resource_key("IPPool", "default-ipv4-ippool")))
    assert list(stored) == ["kind", "apiVersion", "metadata", "spec"]
    assert list(stored["metadata"]) == ["name", "uid", "creationTimestamp"]
    assert stored["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"
    assert stored["spec"] == {
        "cidr": "192.168.0.0/16",
        "ipipMode": "Always",
        "natOutgoing": True,
        "blockSize": 26,
        "vxlanMode": "Never",
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }
    assert made["metadata"]["resourceVersion"] == str(store.revision)
    assert await resources(store).get("IPPool", "default-ipv4-ippool") == made


async def test_writers_of_one_resource_are_told_of_each_other() -> None:
    client = resources(MemoryDatastore())
    first = await client.create(new_resource("BGPConfiguration", "default", {"asNumber": 64512}))
    second = await client.update({**first, "spec": {"asNumber": 64513}})
    with pytest.raises(UpdateConflictError, match=r"update conflict: BGPConfiguration\(default\)"):
        await client.update({**first, "spec": {}})
    applied = await client.apply(new_resource("BGPConfiguration", "default", {"asNumber": 1}))
    assert applied["metadata"]["uid"] == second["metadata"]["uid"]
    with pytest.raises(AlreadyExistsError, match=r"resource already exists: BGPConfiguration"):
        await client.create(new_resource("BGPConfiguration", "default", {}))
    with pytest.raises(UpdateConflictError):
        await client.delete("BGPConfiguration", "default", resource_version="1")
    await client.delete("BGPConfiguration", "default")
    with pytest.raises(
        DoesNotExistError, match=r"resource does not exist: BGPConfiguration\(default\) with error"
    ):
        await client.get("BGPConfiguration", "default")


async def test_policies_are_stored_under_their_tier_and_shown_without_it() -> None:
    store = MemoryDatastore()
    client = resources(store)
    await client.create(
        new_resource("GlobalNetworkPolicy", "deny", {"egress": [{"action": "Deny"}]})
    )
    await client.create(new_resource("NetworkPolicy", "knp.default.x", {}, namespace="ns"))
    root = "/calico/resources/v3/projectcalico.org/"
    assert store.keys() == [
        f"{root}globalnetworkpolicies/default.deny",
        f"{root}networkpolicies/ns/knp.default.x",
    ]
    shown = await client.get("GlobalNetworkPolicy", "deny")
    assert shown["metadata"]["name"] == "deny"
    assert shown["spec"]["types"] == ["Egress"]
    assert [each["metadata"]["name"] for each in await client.list("NetworkPolicy", "ns")] == [
        "knp.default.x"
    ]


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        (pool("p", ""), "error with field IPPool.Spec.CIDR (IPPool CIDR must be specified)"),
        (pool("p", "10.0.0.1/24"), "IPPool CIDR is not strictly masked"),
        (pool("p", "10.0.0.0/27"), "IP pool size is too small for use with Calico IPAM"),
        (pool("p", "10.0.0.0/8", blockSize=33), "IPv4 block size must be between 20 and 32"),
        (pool("p", "169.254.0.0/16"), "overlaps with IPv4 Link Local range 169.254.0.0/16"),
        (pool("p", "fd00::/64", ipipMode="Always"), "IPIP is not supported on an IPv6 IP pool"),
        (
            pool("p", "10.0.0.0/16", ipipMode="Always", vxlanMode="Always"),
            "error with field IPPool.Spec.VXLANMode = 'Always' "
            "(Cannot enable both VXLAN and IPIP on the same IPPool)",
        ),
        (pool("p", "10.0.0.0/16", nodeSelector="rack is 1"), "because of Tag: selector"),
        (pool("BAD", "10.0.0.0/16"), "a lowercase RFC 1123 subdomain"),
        (new_resource("BGPPeer", "p", {}), "PeerIP or PeerSelector must be specified"),
        (
            new_resource("BGPPeer", "p", {"peerIP": "1.2.3.4:x"}),
            "failed to validate Field: PeerIP because of Tag: omitempty,IP:port",
        ),
        (
            new_resource(
                "BGPPeer", "p", {"peerIP": "1.2.3.4", "node": "a", "nodeSelector": "all()"}
            ),
            "Node field must be empty when NodeSelector is specified",
        ),
        (
            new_resource("BGPConfiguration", "node.a", {"asNumber": 5}),
            "Cannot set asNumber on a non default BGP Configuration.",
        ),
        (
            new_resource(
                "BGPConfiguration", "default", {"communities": [{"name": "a", "value": "1:70000"}]}
            ),
            "invalid community value, expected 16 bit value",
        ),
        (new_resource("BGPFilter", "f", {"exportV4": [{"action": "Drop"}]}), "Tag: filterAction"),
        (new_resource("Node", "n", {"bgp": {}}), "Spec.BGP should not be empty"),
        (new_resource("Node", "n", {"bgp": {"ipv4Address": "10.0.0"}}), "Tag: cidrv4"),
        (
            new_resource("GlobalNetworkPolicy", "p", {"ingress": [{"action": "Permit"}]}),
            "failed to validate Field: Action because of Tag: action",
        ),
        (
            new_resource(
                "GlobalNetworkPolicy",
                "p",
                {"ingress": [{"action": "Allow", "destination": {"ports": [80]}}]},
            ),
            "rules that specify ports must set protocol to TCP or UDP or SCTP",
        ),
        (
            new_resource("GlobalNetworkPolicy", "p", {"types": ["Ingress", "Ingress"]}),
            "'Ingress' type specified more than once",
        ),
        (new_resource("HostEndpoint", "h", {"node": "n"}), "no interface or expected IPs"),
        (new_resource("IPReservation", "r", {"reservedCIDRs": ["x"]}), "Tag: net"),
        (new_resource("NetworkPolicy", "p", {}), "namespace is not specified on namespaced"),
    ],
)
async def test_broken_resources_are_refused_with_the_field(
    resource: dict[str, Any], error: str
) -> None:
    store = MemoryDatastore()
    with pytest.raises(ValidationError) as caught:
        await resources(store).create(resource)
    assert error in str(caught.value)
    assert store.keys() == []


async def test_pools_may_not_overlap_nor_change_their_range() -> None:
    store = MemoryDatastore()
    client = resources(store)
    made = await client.create(pool("a", "10.0.0.0/16"))
    with pytest.raises(ValidationError, match=r"IPPool\(b\) CIDR overlaps with IPPool\(a\) CIDR"):
        await client.create(pool("b", "10.0.1.0/24"))
    made["spec"]["cidr"] = "10.0.0.0/15"
    with pytest.raises(ValidationError, match="IPPool CIDR cannot be modified"):
        await client.update(made)
    store.put("/calico/ipam/v2/assignment/ipv4/block/10.1.0.0-26", {"cidr": "10.1.0.0/26"})
    with pytest.raises(ValidationError, match="use a different blockSize"):
        await client.create(pool("c", "10.1.0.0/16", blockSize=28))
    await client.create(pool("c", "10.1.0.0/16"))
