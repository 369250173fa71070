"""What a full or a damaged server refuses, and that no alarm keeps it from starting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from etcd.client import Code, EtcdClient, EtcdError, Get, Put
from etcd.core.engine import Engine
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_servers import disk_etcd, memory_etcd

if TYPE_CHECKING:
    from pathlib import Path

    from etcd.server import EtcdServer

ALARM = "/etcdserverpb.Maintenance/Alarm"


async def alarm(client: EtcdClient, action: int, number: int, member: int = 5) -> list[int]:
    """Ask for an alarm; return the kinds of those answered."""
    request = pb.AlarmRequest(action=action, memberID=member, alarm=number)  # type: ignore[arg-type]
    answer = await client._channel.call(ALARM, request, pb.AlarmResponse, read=False)
    return [int(member.alarm) for member in answer.alarms]


async def test_transactions_meet_the_quota_as_puts_do() -> None:
    async with memory_etcd(quota_bytes=1000) as etcd, EtcdClient([etcd.endpoint]) as client:
        for number in range(2):
            await client.txn(success=[Put(b"k%d" % number, bytes(600))])
        with pytest.raises(EtcdError, match="database space exceeded"):
            await client.txn(success=[Put(b"k2", b"")])
        assert list(etcd.member.engine.alarms) == [(etcd.member.engine.member_id, pb.NOSPACE)]
        assert (await client.txn(success=[Get(b"k1")])).succeeded
        assert (await client.delete(b"k", prefix=True)).deleted == 2


async def test_with_damaged_data_only_reads_go_on() -> None:
    """As of 3.4.23 and 3.5.1 (server/etcdserver/corrupt.go, applierV3Corrupt)."""
    async with memory_etcd() as etcd, EtcdClient([etcd.endpoint]) as client:
        await client.put(b"a", b"1")
        lease = await client.lease_grant(60)
        assert await alarm(client, pb.AlarmRequest.ACTIVATE, pb.CORRUPT) == [pb.CORRUPT]
        for refused in (
            client.put(b"a", b"2"),
            client.delete(b"a"),
            client.txn(success=[Put(b"a", b"2")]),
            client.compact(2),
            client.lease_grant(60),
            client.lease_revoke(lease.id),
        ):
            with pytest.raises(EtcdError, match="etcdserver: corrupt cluster") as error:
                await refused
            assert error.value.code == Code.DATA_LOSS
        assert (await client.get(b"a")).kvs[0].value == b"1"
        assert (await client.txn(success=[Get(b"a")])).succeeded
        assert await alarm(client, pb.AlarmRequest.DEACTIVATE, pb.CORRUPT) == [pb.CORRUPT]
        await client.put(b"a", b"2")


def test_leases_of_damaged_data_do_not_expire() -> None:
    engine = Engine(1, 2)
    engine.lease_grant(7, 2, now=0.0)
    engine.set_alarm(2, pb.CORRUPT, active=True)
    assert engine.expire(now=10.0) == 0
    engine.set_alarm(2, pb.CORRUPT, active=False)
    assert engine.expire(now=10.0) == 1


async def test_an_alarm_nobody_knows_is_not_raised(tmp_path: Path) -> None:
    async with disk_etcd(tmp_path) as etcd, EtcdClient([etcd.endpoint]) as client:
        for number in (0, 7, 300, -3):
            assert await alarm(client, pb.AlarmRequest.ACTIVATE, number) == []
        # Neither to raise nor to clear: a real etcd ends here.
        assert await alarm(client, 5, pb.NOSPACE) == []
        assert (await client.status()).version
        async with aiohttp.ClientSession() as http:
            assert (await http.get(f"http://{etcd.endpoint}/health")).status == 200
    async with disk_etcd(tmp_path) as etcd:
        assert not etcd.member.engine.alarms


@pytest.mark.parametrize("number", [pb.NOSPACE, pb.CORRUPT])
async def test_a_server_with_an_alarm_starts_again(tmp_path: Path, number: int) -> None:
    """With the v2 API, too, whose start is a change of its own."""

    def server() -> EtcdServer:
        return disk_etcd(tmp_path, enable_v2=True)

    async with server() as etcd, EtcdClient([etcd.endpoint]) as client:
        await client.put(b"a", b"1")
        await alarm(client, pb.AlarmRequest.ACTIVATE, number, etcd.member.engine.member_id)
    async with server() as etcd, EtcdClient([etcd.endpoint]) as client:
        assert await alarm(client, pb.AlarmRequest.GET, pb.NONE) == [number]
        assert (await client.get(b"a")).kvs[0].value == b"1"
        async with aiohttp.ClientSession() as http:
            got = await http.get(f"http://{etcd.endpoint}/v2/keys/")
            assert got.status == 200
