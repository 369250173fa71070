"""Calls of the Auth service for tests, and one population of users for all of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from etcd.client import NO_ACCESS, EtcdAccess, EtcdError
from etcd.client.channel import Channel
from etcd.core.pb import auth_pb2
from etcd.core.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import AsyncIterator, Coroutine

    from etcd.core.errors import Status

ROOT = EtcdAccess("root", "rootpw")
ALICE = EtcdAccess("alice", "alicepw")
READ, WRITE, BOTH = (
    auth_pb2.Permission.READ,
    auth_pb2.Permission.WRITE,
    auth_pb2.Permission.READWRITE,
)


class Caller:
    """One client that can make any unary call: ``await caller("Auth/UserAdd", name=…)``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def __call__(self, method: str, **fields: Any) -> Any:
        service, _, name = method.rpartition("/")
        if name == "Compact":
            stem = "Compaction"
        elif service == "Auth" and not name.startswith("Auth"):
            stem = "Auth" + name
        else:
            stem = name
        request = getattr(pb, f"{stem}Request")(**fields)
        response = getattr(pb, f"{stem}Response")
        return await self._channel.call(f"/etcdserverpb.{method}", request, response, read=False)


@contextlib.asynccontextmanager
async def caller(
    endpoint: str, access: EtcdAccess = NO_ACCESS, *, ssl: ssl_module.SSLContext | None = None
) -> AsyncIterator[Caller]:
    channel = Channel([endpoint], access=access, ssl=ssl, rng=None, timeout_s=10.0)
    try:
        yield Caller(channel)
    finally:
        await channel.close()


async def populate(endpoint: str, ssl: ssl_module.SSLContext | None = None) -> None:
    """Root, and alice who may read ``r…`` and read and write ``w…``; then switch auth on."""
    async with caller(endpoint, ssl=ssl) as call:
        for who in (ROOT, ALICE):
            await call("Auth/UserAdd", name=who.user, password=who.password)
        await call("Auth/RoleAdd", name="root")
        await call("Auth/UserGrantRole", user="root", role="root")
        await call("Auth/RoleAdd", name="clerk")
        for kind, key, end in ((READ, b"r", b"s"), (BOTH, b"w", b"x")):
            granted = auth_pb2.Permission(permType=kind, key=key, range_end=end)
            await call("Auth/RoleGrantPermission", name="clerk", perm=granted)
        await call("Auth/UserGrantRole", user="alice", role="clerk")
        await call("Auth/AuthEnable")


async def refused(status: Status, pending: Coroutine[Any, Any, object]) -> None:
    """Assert that a call is refused with exactly this code and text."""
    with pytest.raises(EtcdError) as caught:
        await pending
    assert (caught.value.code, caught.value.message) == status
