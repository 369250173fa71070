"""IPAM as hosts see it: automatic and asked-for addresses, limits, borrowing, release, pools."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agents.calico.datastore import Create, Query, Unchanged, Update
from agents.calico.errors import AlreadyExistsError, DoesNotExistError, UpdateConflictError
from agents.calico.ipam.affinity import Affinities
from agents.calico.ipam.block import ReleaseOptions
from agents.calico.ipam.errors import BlockLimitError, BlockNotEmptyError, IpamError
from agents.calico.ipam.model import IpamConfig
from agents.calico.ipam.pools import NoPoolError
from agents.calico.net import Cidr, Ip
from agents.calico.resources import new_resource
from tests.calico_cluster import Cluster, cluster
from tests.calico_memory import MemoryDatastore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POOL = "192.168.0.0/16"


@pytest.fixture(params=["memory", "etcd"])
async def calico(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with cluster(request.param) as made:
        await made.node("kube-0", "kube-1", "a", "b", "c")
        yield made


def inside(ips: list[str], cidr: str) -> int:
    return sum(Cidr.parse(cidr).holds(Ip.parse(ip)) for ip in ips)


# Assigning -------------------------------------------------------------------------------------


async def test_the_first_address_claims_the_host_s_own_first_block(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    await calico.take("kube-1", handle="k8s-pod-network.1", secondary={"pod": "x"})
    await calico.take("kube-0", handle="ipip-tunnel-addr-kube-0")
    assert await calico.keys() == [
        "assignment/ipv4/block/192.168.126.64-26",
        "assignment/ipv4/block/192.168.145.64-26",
        "handle/ipip-tunnel-addr-kube-0",
        "handle/k8s-pod-network.1",
        "host/kube-0/ipv4/block/192.168.145.64-26",
        "host/kube-1/ipv4/block/192.168.126.64-26",
    ]
    block = await calico.block("192.168.126.64/26")
    assert (block.affinity, block.allocations[0], block.unallocated[:2]) == (
        "host:kube-1",
        0,
        [1, 2],
    )
    assert block.affinity_claim_time == "2026-01-01T00:00:00Z"
    # Written once at creation, once for the address.
    assert block.sequence_number == 1767225600 * 10**9 + 1
    assert block.sequence_numbers == {0: 1767225600 * 10**9}
    keys = ("handle/k8s-pod-network.1", "host/kube-1/ipv4/block/192.168.126.64-26")
    stored = await calico.store.read(*(Query("/calico/ipam/v2/" + key) for key in keys))
    assert [json.dumps(kvps[0].value) for kvps in stored.results] == [
        '{"block": {"192.168.126.64/26": 1}, "deleted": false}',
        '{"state": "confirmed", "deleted": false}',
    ]


async def test_hosts_take_different_blocks_and_borrow_when_the_pool_is_full(
    calico: Cluster,
) -> None:
    await calico.pool("p", "10.0.0.0/25")
    first, second = await calico.ips("a"), await calico.ips("b")
    own = "10.0.0.0/26" if inside(first, "10.0.0.0/26") else "10.0.0.64/26"
    assert not inside(second, own)
    more = await calico.ips("a", 64)
    assert inside(more, own) == 63
    assert len({*first, *second, *more}) == 66


async def test_strict_affinity_does_not_borrow(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/26")
    await calico.ipam.set_config(IpamConfig(strict_affinity=True))
    got = await calico.take("a", 256)
    assert len(got.ips) == 64
    assert got.shortfall() == (
        "Assigned 64 out of 256 requested IPv4 addresses; "
        "No more free affine blocks and strict affinity enabled"
    )
    assert (await calico.take("b")).ips == []


async def test_an_exhausted_pool_says_which(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/30", blockSize=30)
    await calico.pool("q", "10.0.1.0/30", blockSize=30)
    got = await calico.take("a", 9)
    assert len(got.ips) == 8
    assert got.shortfall() == (
        "Assigned 8 out of 9 requested IPv4 addresses; "
        "No IPs available in pools: [10.0.0.0/30 10.0.1.0/30]"
    )
    assert (await calico.take("b")).shortfall() == (
        "Assigned 0 out of 1 requested IPv4 addresses; "
        "No IPs available in pools: [10.0.0.0/30 10.0.1.0/30]"
    )


async def test_a_host_may_not_own_more_blocks_than_its_limit(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/28", blockSize=30)
    await calico.ipam.set_config(IpamConfig(strict_affinity=True, max_blocks_per_host=2))
    assert len(await calico.ips("a", 8)) == 8
    for _ in range(2):
        with pytest.raises(BlockLimitError) as caught:
            await calico.take("a")
        assert str(caught.value) == "cannot allocate new block due to per host block limit"
        assert caught.value.assignments.shortfall() == (
            "Assigned 0 out of 1 requested IPv4 addresses; Need to allocate an IPAM block but "
            "could not - limit of 2 blocks reached for this node"
        )
        await calico.take("b")
    await calico.ipam.set_config(IpamConfig(strict_affinity=True, max_blocks_per_host=3))
    assert len(await calico.ips("a")) == 1


async def test_the_smaller_of_the_request_s_and_the_cluster_s_limit_counts(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/24", blockSize=31)
    with pytest.raises(BlockLimitError):
        await calico.take("a", 3, max_blocks=1)
    with pytest.raises(BlockLimitError, match="block limit") as caught:
        await calico.take("b", 100)
    assert len(caught.value.assignments.ips) == 40


async def test_addresses_wrap_around_the_block(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/30", blockSize=30)
    seen = []
    for _ in range(9):
        (ip,) = await calico.ips("a")
        seen.append(ip)
        await calico.free(ip)
    assert seen == [f"10.0.0.{n % 4}" for n in range(9)]


async def test_a_host_without_a_node_gets_nothing(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    with pytest.raises(DoesNotExistError, match=r"resource does not exist: Node\(stranger\)"):
        await calico.take("stranger")
    assert await calico.keys() == []


async def test_auto_allocation_of_blocks_can_be_off(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    await calico.ipam.set_config(IpamConfig(strict_affinity=True, auto_allocate_blocks=False))
    with pytest.raises(IpamError, match="failed to find or claim a block"):
        await calico.take("a")
    await calico.ipam.claim_affinity(Cidr.parse("192.168.7.0/26"), "a")
    assert await calico.ips("a") == ["192.168.7.0"]


async def test_ipv6_blocks_work_the_same_way(calico: Cluster) -> None:
    await calico.pool("v6", "fd00:10::/112")
    await calico.pool("v4", POOL)
    ips = await calico.ips("kube-0", 3, version=6, handle="h")
    assert ips[1] == str(Ip(6, Ip.parse(ips[0]).value + 1))
    assert next(key for key in await calico.keys() if "block" in key).startswith(
        "assignment/ipv6/block/fd00:10::"
    )
    await calico.ipam.release_by_handle("h")
    assert "handle/h" not in await calico.keys()


# Pools -----------------------------------------------------------------------------------------


async def test_requested_pools_must_exist_and_be_enabled(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/24")
    await calico.pool("q", "10.0.1.0/24", disabled=True)
    await calico.pool("r", "10.0.2.0/24", nodeSelector="rack == 'none'")
    assert inside(await calico.ips("a", pools=["10.0.0.0/24"]), "10.0.0.0/24")
    # What is asked for by name is given, whatever it selects.
    assert inside(await calico.ips("a", pools=["10.0.2.0/24"]), "10.0.2.0/24")
    for cidr in ("10.0.1.0/24", "10.0.0.0/25"):
        with pytest.raises(NoPoolError) as caught:
            await calico.take("a", pools=[cidr])
        assert str(caught.value) == f"the given pool ({cidr}) does not exist, or is not enabled"


async def test_selectors_uses_and_modes_choose_the_pool(calico: Cluster) -> None:
    await calico.node("rack1", rack="1")
    await calico.pool("rack", "10.0.0.0/24", nodeSelector="rack == '1'")
    await calico.pool("tunnels", "10.0.1.0/24", allowedUses=["Tunnel"])
    await calico.pool("team", "10.0.2.0/24", namespaceSelector="team == 'x'")
    await calico.pool("manual", "10.0.3.0/24", assignmentMode="Manual")
    assert inside(await calico.ips("rack1"), "10.0.0.0/24")
    assert inside(await calico.ips("a", use="Tunnel"), "10.0.1.0/24")
    assert inside(await calico.ips("a", namespace_labels={"team": "x"}), "10.0.2.0/24")
    assert inside(await calico.ips("a", pools=["10.0.3.0/24"]), "10.0.3.0/24")
    with pytest.raises(NoPoolError) as caught:
        await calico.take("a", namespace_labels={"team": "y"})
    assert str(caught.value) == (
        "cannot find a qualified ippool, no pools match the required use (Workload)"
    )


async def test_no_pool_for_the_node_says_so(calico: Cluster) -> None:
    with pytest.raises(NoPoolError, match="cannot find a qualified ippool"):
        await calico.take("a")
    await calico.pool("rack", "10.0.0.0/24", nodeSelector="rack == '1'")
    with pytest.raises(NoPoolError, match="no configured Calico pools for node a"):
        await calico.take("a")


async def test_after_a_pool_is_gone_its_blocks_are_not_used(calico: Cluster) -> None:
    await calico.pool("old", "10.0.0.0/24")
    (before,) = await calico.ips("a")
    await calico.remove("IPPool", "old")
    await calico.pool("new", "10.0.1.0/24")
    assert inside(await calico.ips("a", 3), "10.0.1.0/24") == 3
    # Still released, though no pool has it.
    assert await calico.free(before) == ()
    assert await calico.free(before, "172.16.0.1") == (Ip.parse("172.16.0.1"), Ip.parse(before))


async def test_an_empty_block_is_given_up_when_its_pool_selects_the_node_no_more(
    calico: Cluster,
) -> None:
    await calico.node("n", rack="1")
    await calico.pool("one", "10.0.0.0/24", nodeSelector="rack == '1'")
    await calico.pool("two", "10.0.1.0/24", nodeSelector="rack == '2'")
    (ip,) = await calico.ips("n")
    await calico.node("n", rack="2")
    await calico.take("n")
    assert len([key for key in await calico.keys() if key.startswith("host/n/")]) == 2
    # With its last address the block goes.
    await calico.free(ip)
    left = [key for key in await calico.keys() if "block" in key]
    assert [key for key in left if "10.0.0." in key] == []
    assert len(left) == 2
    # Already empty when the labels change: given up by the next assignment.
    await calico.node("n", rack="1")
    (ip,) = await calico.ips("n")
    await calico.free(ip)
    await calico.node("n", rack="2")
    await calico.take("n")
    assert [key for key in await calico.keys() if "10.0.0." in key] == []


async def test_reserved_addresses_are_given_only_to_who_asks_for_them(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/29", blockSize=30)
    spec = {"reservedCIDRs": ["10.0.0.0/30", "10.0.0.5/32"]}
    await calico.put(new_resource("IPReservation", "r", spec))
    got = await calico.take("a", 8)
    assert sorted(str(ip) for ip in got.ips) == ["10.0.0.4", "10.0.0.6", "10.0.0.7"]
    await calico.ipam.assign_ip("a", Ip.parse("10.0.0.5"))
    await calico.ipam.assign_ip("a", Ip.parse("10.0.0.1"))


# One address -----------------------------------------------------------------------------------


async def test_an_address_can_be_asked_for_once(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    ip = Ip.parse("192.168.3.77")
    await calico.ipam.assign_ip("a", ip, "h", {"pod": "x"})
    assert (await calico.block("192.168.3.64/26")).affinity == "host:a"
    with pytest.raises(AlreadyExistsError, match=r"resource already exists: 192\.168\.3\.77"):
        await calico.ipam.assign_ip("b", ip, "h2")
    assert await calico.ipam.assignment(ip) == ("h", {"pod": "x"})
    assert await calico.ipam.ips_by_handle("h") == (ip,)
    assert [key for key in await calico.keys() if key.startswith("handle")] == ["handle/h"]
    with pytest.raises(DoesNotExistError, match="IP is unassigned"):
        await calico.ipam.assignment(Ip.parse("192.168.3.78"))
    # Not in strict affinity another host may take from the block.
    await calico.ipam.assign_ip("b", Ip.parse("192.168.3.78"))
    with pytest.raises(IpamError) as caught:
        await calico.ipam.assign_ip("a", Ip.parse("172.16.0.1"))
    assert str(caught.value) == "The provided IP address is not in a configured pool"


async def test_strict_affinity_refuses_addresses_of_other_hosts(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    await calico.ipam.set_config(IpamConfig(strict_affinity=True))
    await calico.ipam.assign_ip("a", Ip.parse("192.168.3.77"))
    with pytest.raises(IpamError, match="Block host affinity does not match"):
        await calico.ipam.assign_ip("b", Ip.parse("192.168.3.78"))
    await calico.ipam.release_host_affinities("a", must_be_empty=False)
    with pytest.raises(IpamError, match=r"from block 192\.168\.3\.64/26 with no affinity"):
        await calico.ipam.assign_ip("a", Ip.parse("192.168.3.78"))


# Releasing -------------------------------------------------------------------------------------


async def test_addresses_of_several_blocks_are_released_in_one_call(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    ips = await calico.ips("a", 66, handle="h")
    assert len([key for key in await calico.keys() if "assignment" in key]) == 2
    assert await calico.free(*ips, *ips) == ()
    assert [key for key in await calico.keys() if key.startswith("handle")] == []
    assert len(await calico.free(*ips)) == 66


async def test_more_handles_than_a_transaction_holds_are_all_lowered(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/24", blockSize=24)
    ips = [ip for number in range(140) for ip in await calico.ips("a", handle=f"h{number}")]
    assert await calico.free(*ips) == ()
    assert [key for key in await calico.keys() if key.startswith("handle")] == []


async def test_a_late_release_does_not_free_a_new_holder_s_address(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/30", blockSize=30)
    (ip,) = (await calico.take("a", handle="h")).ips
    old = (await calico.block("10.0.0.0/30")).sequence_numbers[0]
    await calico.free(str(ip))
    await calico.take("a", 4, handle="h")
    outcome = await calico.ipam.release_ips(ReleaseOptions(ip, "h", old))
    assert isinstance(outcome.failure, UpdateConflictError)
    assert outcome.failure.cause.startswith(f"the given sequence number ({old}) does not match")
    assert outcome.released == ()
    outcome = await calico.ipam.release_ips(ReleaseOptions(ip, "other"))
    assert outcome.failure is not None
    assert len(await calico.ipam.ips_by_handle("h")) == 4
    now = (await calico.block("10.0.0.0/30")).sequence_numbers[0]
    outcome = await calico.ipam.release_ips(ReleaseOptions(ip, "h", now))
    assert outcome.failure is None
    assert len(await calico.ipam.ips_by_handle("h")) == 3


async def test_borrowed_addresses_go_back_by_handle(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/29", blockSize=30)
    await calico.take("a", 4, handle="a1")
    await calico.take("b", 2, handle="b1")
    borrowed = await calico.ips("a", 2, handle="a2")
    assert len(borrowed) == 2
    await calico.ipam.release_by_handle("a2")
    with pytest.raises(DoesNotExistError):
        await calico.ipam.release_by_handle("a2")
    assert await calico.ips("b", 2) == borrowed


async def test_a_handle_that_counts_too_much_is_removed(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    (ip,) = (await calico.take("a", handle="h")).ips
    key = "/calico/ipam/v2/handle/h"
    (found,) = (await calico.store.read(Query(key))).results[0]
    wrong = {"block": {**found.value["block"], "10.9.9.0/26": 3}, "deleted": False}
    await calico.store.commit(Update(found.with_value(wrong)))
    assert await calico.ipam.ips_by_handle("h") == (ip,)
    await calico.ipam.release_by_handle("h")
    assert [key for key in await calico.keys() if key.startswith("handle")] == []


async def test_a_block_without_owner_goes_with_its_last_address(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    ips = await calico.ips("a", 2)
    await calico.ipam.release_host_affinities("a", must_be_empty=False)
    assert [key.partition("/")[0] for key in await calico.keys()] == ["assignment"]
    await calico.free(ips[0])
    assert len(await calico.keys()) == 1
    await calico.free(ips[1])
    assert await calico.keys() == []


# Affinities ------------------------------------------------------------------------------------


async def test_a_network_of_blocks_belongs_to_who_claims_it_first(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    cidr = Cidr.parse("192.168.1.0/24")
    assert len((await calico.ipam.claim_affinity(cidr, "a")).claimed) == 4
    assert len((await calico.ipam.claim_affinity(cidr, "a")).claimed) == 4
    assert len((await calico.ipam.claim_affinity(cidr, "b")).failed) == 4
    assert [key for key in await calico.keys() if key.startswith("host/b")] == []
    await calico.ipam.release_affinity(cidr, "b", must_be_empty=False)
    assert len(await calico.keys()) == 8
    await calico.ipam.release_affinity(cidr, "a", must_be_empty=True)
    assert await calico.keys() == []


async def test_claims_must_be_inside_a_pool_and_not_below_a_block(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    with pytest.raises(IpamError) as caught:
        await calico.ipam.claim_affinity(Cidr.parse("10.0.0.0/24"), "a")
    assert str(caught.value) == (
        "The requested CIDR (10.0.0.0/24) is not within any configured pools."
    )
    with pytest.raises(IpamError, match="is smaller than the minimum"):
        await calico.ipam.release_affinity(Cidr.parse("192.168.0.0/27"), "a", must_be_empty=True)


async def test_a_block_in_use_is_kept_when_it_must_be_empty(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    await calico.take("kube-0")
    await calico.ipam.claim_affinity(Cidr.parse("192.168.1.0/26"), "kube-0")
    with pytest.raises(BlockNotEmptyError):
        await calico.ipam.release_host_affinities("kube-0", must_be_empty=True)
    assert await calico.keys("/calico/ipam/v2/host/") == [
        "host/kube-0/ipv4/block/192.168.145.64-26"
    ]


async def test_a_claim_marked_for_deletion_is_confirmed_again_when_its_block_is_in_use(
    calico: Cluster,
) -> None:
    await calico.pool("p", "10.0.0.0/30", blockSize=30)
    await calico.take("a")
    key = "/calico/ipam/v2/host/a/ipv4/block/10.0.0.0-30"
    (claim,) = (await calico.store.read(Query(key))).results[0]
    marked = {**claim.value, "state": "pendingDeletion"}
    await calico.store.commit(Update(claim.with_value(marked)))
    with pytest.raises(BlockNotEmptyError):
        await calico.ipam.release_host_affinities("a", must_be_empty=True)
    (claim,) = (await calico.store.read(Query(key))).results[0]
    assert claim.value["state"] == "confirmed"


async def test_a_pool_s_affinities_are_released_on_all_hosts(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/24")
    await calico.pool("q", "10.0.1.0/24")
    for host in ("a", "b"):
        await calico.take(host, pools=["10.0.0.0/24"])
        await calico.take(host, pools=["10.0.1.0/24"])
    await calico.ipam.release_pool_affinities(Cidr.parse("10.0.0.0/24"))
    left = await calico.keys("/calico/ipam/v2/host/")
    assert len(left) == 2
    assert all("10.0.1." in key for key in left)


async def test_a_removed_host_leaves_only_its_addresses(calico: Cluster) -> None:
    await calico.pool("p", POOL)
    await calico.ipam.mark_host("kube-0")
    await calico.ipam.mark_host("kube-0")
    await calico.take("kube-0", handle="h")
    assert "host/kube-0" in await calico.keys()
    await calico.ipam.remove_host("kube-0")
    await calico.ipam.remove_host("kube-0")
    assert await calico.keys() == ["assignment/ipv4/block/192.168.145.64-26", "handle/h"]


async def test_an_unfinished_claim_is_finished_by_the_next_assignment() -> None:
    async with cluster() as calico:
        assert isinstance(calico.store, MemoryDatastore)
        await calico.node("kube-0")
        await calico.pool("p", POOL)
        key = "/calico/ipam/v2/host/kube-0/ipv4/block/192.168.7.0-26"
        for state in ("pending", "pendingDeletion"):
            calico.store.put(key, {"state": state, "deleted": False})
            assert inside(await calico.ips("kube-0"), "192.168.7.0/26")
            assert json.loads(calico.store.raw(key))["state"] == "confirmed"
        # Data of before 3.1: no value at all.
        calico.store.put(key, b"")
        assert inside(await calico.ips("kube-0"), "192.168.7.0/26")


async def test_a_claim_to_another_host_s_block_is_removed() -> None:
    async with cluster() as calico:
        assert isinstance(calico.store, MemoryDatastore)
        await calico.node("a", "kube-0")
        await calico.pool("p", POOL)
        await calico.ipam.claim_affinity(Cidr.parse("192.168.7.0/26"), "a")
        key = "/calico/ipam/v2/host/kube-0/ipv4/block/192.168.7.0-26"
        calico.store.put(key, {"state": "confirmed", "deleted": False})
        assert inside(await calico.ips("kube-0"), "192.168.145.64/26")
        assert key not in calico.store.keys("/calico/ipam/")


async def test_another_host_s_empty_block_is_taken_back_after_a_minute(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/30", blockSize=30)
    await calico.ipam.set_config(IpamConfig(strict_affinity=True))
    (ip,) = await calico.ips("a")
    await calico.free(ip)
    calico.now_s = 59.0
    assert (await calico.take("b")).ips == []
    calico.now_s = 61.0
    assert await calico.ips("b") == ["10.0.0.0"]
    assert await calico.keys("/calico/ipam/v2/host/") == ["host/b/ipv4/block/10.0.0.0-30"]
    # In use it stays where it is.
    calico.now_s = 200.0
    assert (await calico.take("a")).ips == []


# Asking ----------------------------------------------------------------------------------------


async def test_the_configuration_is_stored_only_when_it_is_set(calico: Cluster) -> None:
    assert await calico.ipam.config() == IpamConfig(False, True, 0)
    assert await calico.keys() == []
    await calico.ipam.set_config(IpamConfig(False, True, 0))
    assert await calico.keys() == []
    with pytest.raises(IpamError, match="Cannot disable 'StrictAffinity' and"):
        await calico.ipam.set_config(IpamConfig(False, False, 0))
    with pytest.raises(IpamError, match="MaxBlocksPerHost requires StrictAffinity"):
        await calico.ipam.set_config(IpamConfig(False, True, 5))
    await calico.ipam.set_config(IpamConfig(True, False, 5))
    assert await calico.ipam.config() == IpamConfig(True, False, 5)
    (stored,) = (await calico.store.read(Query("/calico/ipam/v2/config"))).results[0]
    assert stored.value == {"strict_affinity": True, "maxBlocksPerHost": 5}


async def test_utilization_counts_blocks_of_pools_and_orphans(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/24")
    await calico.pool("q", "10.0.1.0/24", blockSize=28)
    await calico.take("a", 3, pools=["10.0.0.0/24"])
    await calico.take("a", 3, pools=["10.0.1.0/24"])
    await calico.remove("IPPool", "q")
    use = await calico.ipam.utilization()
    assert [(each.name, str(each.cidr)) for each in use] == [
        ("p", "10.0.0.0/24"),
        ("orphaned allocation blocks", "0.0.0.0/0"),
    ]
    assert [(each.capacity, each.available) for pool in use for each in pool.blocks] == [
        (64, 61),
        (16, 13),
    ]
    assert [each.name for each in await calico.ipam.utilization(["10.0.0.0/24"])] == ["p"]


# The short way: what a host remembers of its last assignment -------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "pool disabled",
        "pool deleted",
        "pool added",
        "reserved",
        "node relabelled",
        "block borrowed",
        "owner lost",
    ],
)
async def test_nothing_remembered_outlives_a_change(change: str) -> None:
    async with cluster() as calico:
        await calico.node("a", "b", rack="1")
        await calico.pool("p", "10.0.0.0/28", blockSize=29, nodeSelector="rack == '1'")
        other = Cluster(calico.store)
        seen = [*(await calico.ips("a")), *(await calico.ips("a")), *(await calico.ips("a"))]
        assert len(set(seen)) == 3
        match change:
            case "pool disabled":
                await calico.pool("p", "10.0.0.0/28", blockSize=29, disabled=True)
                with pytest.raises(NoPoolError):
                    await calico.take("a")
            case "pool deleted":
                await calico.remove("IPPool", "p")
                with pytest.raises(NoPoolError):
                    await calico.take("a")
            case "pool added":
                await calico.pool("z", "10.0.1.0/24")
                assert inside(await calico.ips("a", pools=["10.0.1.0/24"]), "10.0.1.0/24")
                assert inside(await calico.ips("a"), "10.0.0.0/28")
            case "reserved":
                spec = {"reservedCIDRs": ["10.0.0.0/28"]}
                await calico.put(new_resource("IPReservation", "r", spec))
                assert await calico.ips("a") == []
            case "node relabelled":
                await calico.node("a", rack="2")
                with pytest.raises(NoPoolError):
                    await calico.take("a")
            case "block borrowed":
                for ip in (await other.take("b", 13)).ips:
                    assert str(ip) not in seen
                assert (await calico.take("a")).ips == []
            case "owner lost":
                await other.ipam.release_host_affinities("a", must_be_empty=False)
                (ip,) = await calico.ips("a")
                assert ip not in seen
                claimed = await calico.keys("/calico/ipam/v2/host/")
                assert len(claimed) == 1


async def test_the_first_block_with_room_is_used_again_when_it_has_room_again() -> None:
    async with cluster() as calico:
        await calico.node("a")
        await calico.pool("p", "10.0.0.0/28", blockSize=30)
        first = sorted(await calico.ips("a", 8))
        await calico.ips("a")
        await calico.ips("a")
        # Released by another process of the host: this one has not heard of it.
        await Cluster(calico.store).free(first[0])
        assert await calico.ips("a") == [first[0]]


async def test_a_commit_may_ask_that_nothing_under_a_prefix_was_written() -> None:
    for kind in ("memory", "etcd"):
        async with cluster(kind) as calico:
            store = calico.store
            revision = await store.commit(Create("/calico/x/1", 1))
            await store.commit(Unchanged("/calico/x/", revision), Create("/calico/y", 1))
            await store.commit(Unchanged("/calico/empty/", revision), Create("/calico/z", 1))
            await store.commit(Create("/calico/x/2", 1))
            with pytest.raises(UpdateConflictError, match="/calico/x/"):
                await store.commit(Unchanged("/calico/x/", revision), Create("/calico/w", 1))
            assert (await store.read(Query("/calico/w"))).one(0) is None


async def test_a_block_that_changed_since_it_was_read_is_not_given_up(calico: Cluster) -> None:
    await calico.pool("p", "10.0.0.0/29", blockSize=30)
    (taken,) = await calico.ips("a")
    await calico.free(taken)
    (block,) = await calico.ipam.blocks()
    claims = Affinities(calico.store, calico.clock)
    stale = block.sequence_number - 1
    with pytest.raises(IpamError, match="updated since we last read it"):
        await claims.release("a", block.cidr, must_be_empty=True, sequence_number=stale)
    assert len(await calico.ipam.blocks()) == 1
    now = block.sequence_number
    await claims.release("a", block.cidr, must_be_empty=True, sequence_number=now)
    assert not await calico.ipam.blocks()
