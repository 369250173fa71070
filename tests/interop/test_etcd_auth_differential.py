"""Random users, roles and requests: ours and a real etcd allow and refuse the same.

A failure names its seed; PODWIRE_TEST_SEED repeats it.
"""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from etcd.client import EtcdAccess, EtcdError
from etcd.core.pb import rpc_pb2 as pb
from tests.etcd_auth_calls import ROOT, Caller, caller, populate
from tests.etcd_auth_peers import Ours, Real
from tests.etcd_servers import NO_REAL_ETCD, real_etcd_binary

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS, ADMIN_STEPS, REQUESTS = 12, 12, 30
NAMES = ("u0", "u1")
ROLES = ("r0", "r1", "r2", "root")


class Draw:
    """Random requests over few keys, so that permissions and requests meet."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def key(self) -> bytes:
        return bytes(self.rng.choices(b"abc", k=self.rng.randint(1, 2)))

    def range(self) -> tuple[bytes, bytes]:
        """A key, a range that holds something, or everything from a key on."""
        first, second = sorted((self.key(), self.key()))
        if first == second:
            return first, self.rng.choice((b"", b"\0"))
        return first, self.rng.choice((b"", b"\0", second, second))

    def admin(self) -> tuple[str, dict[str, Any]]:
        name, role = self.rng.choice(NAMES), self.rng.choice(ROLES)
        key, range_end = self.range()
        perm = {"permType": self.rng.randrange(3), "key": key, "range_end": range_end}
        return self.rng.choice(
            (
                *(("Auth/UserAdd", {"name": name, "password": "pw"}),) * 3,
                ("Auth/UserDelete", {"name": name}),
                *(("Auth/UserGrantRole", {"user": name, "role": role}),) * 3,
                ("Auth/UserRevokeRole", {"name": name, "role": role}),
                ("Auth/UserGet", {"name": name}),
                ("Auth/UserList", {}),
                # Roles stay small: Go sorts more than twelve permissions in another order.
                *(("Auth/RoleAdd", {"name": role}), ("Auth/RoleDelete", {"role": role})) * 2,
                *(("Auth/RoleGrantPermission", {"name": role, "perm": perm}),) * 4,
                ("Auth/RoleGet", {"role": role}),
                ("Auth/RoleRevokePermission", {"role": role, "key": key, "range_end": range_end}),
                ("Auth/RoleList", {}),
            )
        )

    def request(self) -> tuple[str, dict[str, Any]]:
        key, range_end = self.range()
        match self.rng.randrange(5):
            case 0:
                return "KV/Put", {"key": key, "value": b"x", "prev_kv": self.rng.random() < 0.3}
            case 1:
                prev_kv = self.rng.random() < 0.3
                fields = {"key": key, "range_end": range_end, "prev_kv": prev_kv}
                return "KV/DeleteRange", fields
            case 2:
                return "KV/Txn", {
                    "compare": [pb.Compare(key=key, range_end=range_end)],
                    "success": [self.operation() for _ in range(self.rng.randrange(3))],
                    "failure": [self.operation() for _ in range(self.rng.randrange(2))],
                }
            case _:
                return "KV/Range", {"key": key, "range_end": range_end, "serializable": True}

    def operation(self) -> pb.RequestOp:
        key, range_end = self.range()
        if self.rng.random() < 0.5:
            return pb.RequestOp(request_range=pb.RangeRequest(key=key, range_end=range_end))
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


async def _outcome(call: Caller, method: str, fields: dict[str, Any]) -> object:
    try:
        response = await call(method, **fields)
    except EtcdError as error:
        return error.code, error.message
    # Ids differ.
    response.ClearField("header")
    return response


@pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)
async def test_the_same_is_allowed_and_refused_by_a_real_etcd(tmp_path: Path) -> None:
    seed = int(os.environ.get("PODWIRE_TEST_SEED") or random.randrange(2**32))
    draw = Draw(random.Random(seed))
    servers = Ours(tmp_path / "ours", None), Real(tmp_path / "real", None)
    try:
        async with contextlib.AsyncExitStack() as stack:
            roots = []
            for server in servers:
                await server.restart()
                await populate(server.endpoint)
                roots.append(await stack.enter_async_context(caller(server.endpoint, ROOT)))
            for _ in range(ROUNDS):
                for _ in range(ADMIN_STEPS):
                    await _compare(seed, "root", roots, *draw.admin())
                who = draw.rng.choice(NAMES)
                async with contextlib.AsyncExitStack() as users:
                    calls = [
                        await users.enter_async_context(
                            caller(server.endpoint, EtcdAccess(who, "pw"))
                        )
                        for server in servers
                    ]
                    for _ in range(REQUESTS):
                        await _compare(seed, who, calls, *draw.request())
    finally:
        for server in servers:
            await server.stop()


async def _compare(
    seed: int, who: str, calls: list[Caller], method: str, fields: dict[str, Any]
) -> None:
    ours, theirs = [await _outcome(call, method, fields) for call in calls]
    assert ours == theirs, f"seed {seed}: {who} {method} {fields}"
