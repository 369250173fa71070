"""Every node finds the others in etcd, whatever etcd forgets meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING

import pytest

from agents.node import underlay_map
from agents.node.underlay_map import PREFIX, UnderlayEntry, UnderlayMap
from emulator.errors import UsageError
from etcd.client import Code, EtcdClient, EtcdError
from tests.etcd_servers import memory_etcd
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from etcd.client import LeaseInfo


def entry(name: str, ip: str, port: int = 4000) -> UnderlayEntry:
    return UnderlayEntry(name, ip, "02:00:00:00:00:01", "127.0.0.1", port, port + 1)


OWN, OTHER = entry("kube-0", "10.10.68.222"), entry("kube-1", "10.10.95.205")
KEY, OTHER_KEY = (PREFIX + each.ip.encode() for each in (OWN, OTHER))


class Node:
    """A running map and what it told."""

    def __init__(self, client: EtcdClient) -> None:
        self.told: list[tuple[list[UnderlayEntry], list[UnderlayEntry]]] = []
        self.map = UnderlayMap(
            client, OWN, lambda there, gone: self.told.append((there, gone)), logging.getLogger("u")
        )


@contextlib.asynccontextmanager
async def following(client: EtcdClient) -> AsyncIterator[Node]:
    node = Node(client)
    task = asyncio.create_task(node.map.run())
    try:
        await until(node.map.published.is_set)
        yield node
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def client() -> AsyncIterator[EtcdClient]:
    async with memory_etcd() as server, EtcdClient([server.endpoint]) as connected:
        yield connected


async def test_others_are_told_as_they_come_change_and_go(client: EtcdClient) -> None:
    await client.put(OTHER_KEY, OTHER.value())
    async with following(client) as node:
        await until(lambda: node.told == [([OTHER], [])])
        await client.put(OTHER_KEY, OTHER.value())
        moved = entry("kube-1", OTHER.ip, 5000)
        await client.put(OTHER_KEY, moved.value())
        await client.delete(OTHER_KEY)
        await until(lambda: len(node.told) > 2)
        # Neither our own entry nor one that says what is known already.
        assert node.told[1:] == [([moved], []), ([], [moved])]


async def test_an_entry_turned_to_garbage_is_a_node_that_is_gone(
    client: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(client) as node:
        await client.put(OTHER_KEY, OTHER.value())
        await client.put(OTHER_KEY, json.dumps({"name": "kube-1"}).encode())
        await until(lambda: node.told == [([OTHER], []), ([], [OTHER])])
        assert [line for line in caplog.messages if line.startswith("ignored: underlay entry")]


async def test_another_node_with_our_address_is_said(
    client: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(client) as node:
        await client.put(KEY, entry("kube-9", OWN.ip).value())
        await client.put(OTHER_KEY, OTHER.value())
        await until(lambda: node.told == [([OTHER], [])])
        assert "node kube-9 also claims our address 10.10.68.222" in caplog.messages


async def test_an_entry_whose_lease_etcd_forgot_is_published_again(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underlay_map, "LEASE_TTL_S", 2)
    async with following(client):
        (before,) = (await client.get(KEY)).kvs
        await client.lease_revoke(before.lease)
        async with client.watch(KEY, start_revision=before.mod_revision + 1) as batches:
            seen = []
            async with asyncio.timeout(30):
                async for batch in batches:
                    seen += [(each.kind, each.kv.value) for each in batch.events]
                    if len(seen) > 1:
                        break
        assert seen == [("DELETE", b""), ("PUT", OWN.value())]
        assert (await client.get(KEY)).kvs[0].lease not in (0, before.lease)


async def test_a_failed_renewal_keeps_the_lease(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underlay_map, "LEASE_TTL_S", 2)
    monkeypatch.setattr(underlay_map, "RETRY_S", 0.01)
    keep_alive_once = client.lease_keep_alive_once
    tries: list[int] = []

    async def away(lease: int) -> LeaseInfo:
        tries.append(lease)
        if len(tries) < 3:
            raise EtcdError(Code.UNAVAILABLE, "etcdserver: no leader")
        return await keep_alive_once(lease)

    monkeypatch.setattr(client, "lease_keep_alive_once", away)
    async with following(client):
        (own,) = (await client.get(KEY)).kvs
        await until(lambda: len(tries) > 3)
        assert set(tries) == {own.lease}
        assert (await client.get(KEY)).kvs == (own,)


async def test_an_entry_stays_as_long_as_its_node_and_is_taken_back(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underlay_map, "LEASE_TTL_S", 2)
    renewals: list[int] = []
    keep_alive_once = client.lease_keep_alive_once

    async def counted(lease: int) -> LeaseInfo:
        info = await keep_alive_once(lease)
        renewals.append(lease)
        return info

    monkeypatch.setattr(client, "lease_keep_alive_once", counted)
    async with following(client) as node:
        (own,) = (await client.get(KEY)).kvs
        # Longer than the lease lasts by itself.
        await until(lambda: renewals.count(own.lease) > 4)
        assert (await client.get(KEY)).kvs == (own,)
        await node.map.withdraw()
        assert (await client.get(KEY)).kvs == ()


@pytest.mark.parametrize(
    "broken", [{"vxlan_port": "4000"}, {"carrier_port": 0}, {"bgp_port": 65536}, {"bgp_port": True}]
)
def test_an_entry_is_what_it_was_written_as_or_nothing(broken: dict[str, object]) -> None:
    assert UnderlayEntry.parse(OTHER.value()) == OTHER
    value = json.dumps({**json.loads(OTHER.value()), **broken}).encode()
    with pytest.raises(UsageError, match="ports must be"):
        UnderlayEntry.parse(value)
