"""The ids of a fresh member are those a real etcd gives itself for the same flags."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from etcd.client import EtcdClient
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_servers import NO_REAL_ETCD, memory_etcd, real_etcd, real_etcd_binary

if TYPE_CHECKING:
    from pathlib import Path


async def _members(endpoint: str) -> pb.MemberListResponse:
    async with EtcdClient([endpoint]) as client:
        return await client._channel.call(
            "/etcdserverpb.Cluster/MemberList",
            pb.MemberListRequest(),
            pb.MemberListResponse,
            read=True,
        )


@pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)
async def test_cluster_and_member_have_a_real_etcds_ids(tmp_path: Path) -> None:
    async with real_etcd(tmp_path, "--initial-cluster-token", "some token") as endpoint:
        theirs = await _members(endpoint)
    (member,) = theirs.members
    urls = tuple(member.peerURLs)
    async with memory_etcd(peer_urls=urls, cluster_token="some token") as server:
        ours = await _members(server.endpoint)
    assert ours.header.cluster_id == theirs.header.cluster_id
    assert ours.header.member_id == theirs.header.member_id == member.ID == ours.members[0].ID
