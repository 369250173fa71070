"""/metrics: the numbers are those of what happened."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from etcd.client import EtcdClient, EtcdError, Put
from tests.etcd_servers import disk_etcd

if TYPE_CHECKING:
    from pathlib import Path

Samples = dict[str, float]


async def scrape(endpoint: str) -> Samples:
    """Return the samples by name and values of the labels, which are sorted, as ``name{a,b}``."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{endpoint}/metrics") as response,
    ):
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    return {
        sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_was_done_is_counted(tmp_path: Path) -> None:
    async with disk_etcd(tmp_path) as server, EtcdClient([server.endpoint]) as client:
        before = await scrape(server.endpoint)
        lease = await client.lease_grant(60)
        for n in range(5):
            await client.put(b"k%d" % n, b"12345")
        await client.txn(success=[Put(b"a", b"x"), Put(b"b", b"y", lease=lease.id)])
        await client.get(b"k", prefix=True)
        await client.delete(b"k1")
        await client.lease_revoke(lease.id)
        with pytest.raises(EtcdError):
            await client.lease_revoke(lease.id)
        await client.compact(4)
        async with client.watch(b"a"):
            after = await scrape(server.endpoint)
        moved = {name: value - before.get(name, 0) for name, value in after.items()}
    put, revoke = "Put,etcdserverpb.KV,unary", "LeaseRevoke,etcdserverpb.Lease,unary"
    assert {
        name: moved[name]
        for name in (
            "etcd_mvcc_put_total",
            "etcd_mvcc_delete_total",
            "etcd_mvcc_range_total",
            "etcd_mvcc_txn_total",
            "etcd_debugging_mvcc_total_put_size_in_bytes",
            "etcd_debugging_mvcc_watcher_total",
            "etcd_debugging_mvcc_watch_stream_total",
            "etcd_debugging_lease_granted_total",
            "etcd_debugging_lease_revoked_total",
            "etcd_debugging_lease_ttl_total_sum",
            f"grpc_server_started_total{{{put}}}",
            f"grpc_server_handled_total{{OK,{put}}}",
            f"grpc_server_started_total{{{revoke}}}",
            f"grpc_server_handled_total{{OK,{revoke}}}",
            f"grpc_server_handled_total{{NotFound,{revoke}}}",
            "grpc_server_started_total{Watch,etcdserverpb.Watch,bidi_stream}",
        )
    } == {
        "etcd_mvcc_put_total": 7,
        # A call's key, and the key of the lease.
        "etcd_mvcc_delete_total": 2,
        "etcd_mvcc_range_total": 1,
        "etcd_mvcc_txn_total": 1,
        "etcd_debugging_mvcc_total_put_size_in_bytes": 5 * 7 + 4,
        "etcd_debugging_mvcc_watcher_total": 1,
        "etcd_debugging_mvcc_watch_stream_total": 1,
        "etcd_debugging_lease_granted_total": 1,
        "etcd_debugging_lease_revoked_total": 1,
        "etcd_debugging_lease_ttl_total_sum": 60,
        f"grpc_server_started_total{{{put}}}": 5,
        f"grpc_server_handled_total{{OK,{put}}}": 5,
        f"grpc_server_started_total{{{revoke}}}": 2,
        f"grpc_server_handled_total{{OK,{revoke}}}": 1,
        f"grpc_server_handled_total{{NotFound,{revoke}}}": 1,
        "grpc_server_started_total{Watch,etcdserverpb.Watch,bidi_stream}": 1,
    }
    assert after["etcd_debugging_mvcc_keys_total"] == 5
    assert after["etcd_debugging_mvcc_current_revision"] == 9
    assert after["etcd_debugging_mvcc_compact_revision"] == 4
    assert after["etcd_server_has_leader"] == after["etcd_server_is_leader"] == 1
    assert after["etcd_server_version{3.5.21}"] == 1
    assert moved["etcd_disk_wal_fsync_duration_seconds_count"] >= 10
    assert moved["etcd_disk_backend_commit_duration_seconds_bucket{8.192}"] >= 10
    assert moved["etcd_network_client_grpc_received_bytes_total"] > 5 * 9
    assert moved["etcd_network_client_grpc_sent_bytes_total"] > 100
    assert after["process_resident_memory_bytes"] > 1e6


async def test_a_call_the_client_gives_up_is_counted_as_canceled(tmp_path: Path) -> None:
    async with disk_etcd(tmp_path) as server:
        async with EtcdClient([server.endpoint]) as client, client.watch(b"a"):
            pass
        name = "grpc_server_handled_total{Canceled,Watch,etcdserverpb.Watch,bidi_stream}"
        async with asyncio.timeout(30):
            while name not in await scrape(server.endpoint):
                await asyncio.sleep(0.01)
