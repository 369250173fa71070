"""The agents' client with a user or a certificate: against ours and against a real etcd."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from etcd.client import EtcdAccess, EtcdClient, EtcdError
from etcd.client.access import client_tls
from etcd.core import errors
from tests.etcd_auth_calls import ALICE, ROOT, caller, populate, refused
from tests.etcd_auth_peers import Ours, Peer, Real, TlsFiles
from tests.etcd_servers import NO_REAL_ETCD, real_etcd_binary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WAIT_S = 15.0
BOTH_PEERS = pytest.mark.parametrize(
    "kind",
    [
        Ours,
        pytest.param(
            Real, marks=pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)
        ),
    ],
)


@pytest.fixture
async def peer(kind: type[Ours | Real], tmp_path: Path) -> AsyncIterator[Peer]:
    """A server with the users of ``populate`` over plain text."""
    peer = kind(tmp_path / "data", None)
    try:
        await peer.restart()
        await populate(peer.endpoint)
        yield peer
    finally:
        await peer.stop()


@BOTH_PEERS
async def test_a_token_the_server_forgot_is_replaced_without_anybody_noticing(peer: Peer) -> None:
    async with (
        EtcdClient([peer.endpoint], access=ALICE) as client,
        caller(peer.endpoint, ROOT) as root,
    ):
        lease = (await client.lease_grant(60)).id
        await client.put(b"w1", b"x", lease=lease)
        for _ in range(2):
            # The same password again: the tokens end all the same.
            await root("Auth/UserChangePassword", name="alice", password=ALICE.password)
            many = (client.put(b"w%d" % number, b"y") for number in range(20))
            await asyncio.gather(*many)
        await root("Auth/UserChangePassword", name="alice", password=ALICE.password)
        assert (await client.lease_keep_alive_once(lease)).ttl_s == 60
        await root("Auth/UserChangePassword", name="alice", password=ALICE.password)
        async with client.watch(b"w1"):
            await refused(errors.PERMISSION_DENIED, client.put(b"secret", b""))


@BOTH_PEERS
async def test_watches_and_leases_outlive_a_restart_that_forgot_all_tokens(peer: Peer) -> None:
    async with (
        EtcdClient([peer.endpoint], access=ALICE, timeout_s=WAIT_S) as client,
        EtcdClient([peer.endpoint], access=ROOT, timeout_s=WAIT_S) as root,
        asyncio.timeout(2 * WAIT_S),
    ):
        lease = await client.lease_grant(60)
        async with client.keep_alive(lease.id), client.watch(b"r", prefix=True) as batches:
            await root.put(b"r1", b"before")
            assert (await anext(batches)).events[0].kv.value == b"before"
            await peer.restart()
            await root.put(b"r1", b"after")
            while not (batch := await anext(batches)).events:
                """Progress."""
            assert [event.kv.value for event in batch.events] == [b"after"]
            assert (await client.lease_keep_alive_once(lease.id)).ttl_s == 60
            with pytest.raises(EtcdError, match="permission denied"):
                await client.watch(b"secret").__aenter__()


@BOTH_PEERS
async def test_a_wrong_password_is_told_at_once(peer: Peer) -> None:
    wrong = EtcdAccess("alice", "wrong")
    async with EtcdClient([peer.endpoint], access=wrong) as client, asyncio.timeout(WAIT_S / 3):
        await refused(errors.AUTH_FAILED, client.get(b"r"))
        await refused(errors.AUTH_FAILED, client.lease_keep_alive_once(1))
        await refused(errors.AUTH_FAILED, client.watch(b"r").__aenter__())


@BOTH_PEERS
async def test_a_certificate_s_common_name_is_the_user_unless_there_is_a_token(
    kind: type[Ours | Real], tmp_path: Path
) -> None:
    files = TlsFiles(tmp_path / "pki")
    peer = kind(tmp_path / "data", files)
    root, alice = files.access("root"), files.access("alice")
    both = EtcdAccess("root", "rootpw", alice.cacert, alice.cert, alice.key)
    try:
        await peer.restart()
        await populate(peer.endpoint, client_tls(root))
        async with EtcdClient([peer.endpoint], access=alice) as client:
            await client.put(b"w1", b"x")
            await refused(errors.PERMISSION_DENIED, client.put(b"secret", b"x"))
            async with client.watch(b"r"):
                await refused(errors.PERMISSION_DENIED, client.watch(b"s").__aenter__())
        async with EtcdClient([peer.endpoint], access=root) as client:
            await client.put(b"secret", b"x")
        async with EtcdClient([peer.endpoint], access=both) as client:
            assert (await client.get(b"secret")).kvs[0].value == b"x"
        async with EtcdClient([peer.endpoint], access=files.access("stranger")) as client:
            await refused(errors.PERMISSION_DENIED, client.get(b"r"))
        bare = EtcdAccess(cacert=files.ca)
        async with EtcdClient([peer.endpoint], access=bare, timeout_s=0.5) as client:
            with pytest.raises(EtcdError):
                await client.get(b"r")
    finally:
        await peer.stop()
