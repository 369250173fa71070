"""What a server with auth on lets whom do."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from emulator.errors import UsageError
from etcd.client import EtcdAccess, EtcdClient, EtcdError
from etcd.core import errors
from etcd.core.auth_check import OPEN, CallCheck
from etcd.core.pb import rpc_pb2 as pb
from etcd.server import auth_hash
from etcd.server.auth_hash import PasswordHasher
from etcd.server.gateway import METHODS
from etcd.server.services import Services
from etcd.server.streams import STREAMS
from tests.etcd_auth_calls import ALICE, READ, ROOT, Caller, caller, populate, refused
from tests.etcd_servers import disk_etcd, memory_etcd, process_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from etcd.server import EtcdServer

DENIED, NOBODY = errors.PERMISSION_DENIED, errors.USER_EMPTY


@pytest.fixture
async def server() -> AsyncIterator[EtcdServer]:
    """A server with the users of ``populate``; hashing as cheap as it gets."""
    async with memory_etcd(bcrypt_cost=4) as server:
        await populate(server.endpoint)
        yield server


async def test_reads_and_writes_are_for_those_who_were_granted_them(server: EtcdServer) -> None:
    async with caller(server.endpoint, ALICE) as alice, caller(server.endpoint) as nobody:
        await alice("KV/Range", key=b"r1", range_end=b"r9")
        await alice("KV/Put", key=b"w1", value=b"x", prev_kv=True)
        await refused(DENIED, alice("KV/Range", key=b"r1", range_end=b"t"))
        await refused(DENIED, alice("KV/Range", key=b"r1", range_end=b"\0"))
        await refused(DENIED, alice("KV/Put", key=b"r1", value=b"x"))
        await refused(DENIED, alice("KV/DeleteRange", key=b"w", range_end=b"y"))
        await refused(NOBODY, nobody("KV/Range", key=b"r1"))
        await refused(NOBODY, nobody("KV/Put", key=b"w1", value=b"x"))
        # What is wrong with a request is told first, whoever asks.
        await refused(errors.EMPTY_KEY, nobody("KV/Put", key=b"", value=b"x"))


async def test_previous_values_need_the_right_to_read(server: EtcdServer) -> None:
    async with caller(server.endpoint, ROOT) as root, caller(server.endpoint, ALICE) as alice:
        await root("KV/Put", key=b"only-write", value=b"secret")
        granted = {"permType": 1, "key": b"only-write"}
        await root("Auth/RoleGrantPermission", name="clerk", perm=granted)
        await alice("KV/Put", key=b"only-write", value=b"1")
        await refused(DENIED, alice("KV/Put", key=b"only-write", prev_kv=True))
        await refused(DENIED, alice("KV/DeleteRange", key=b"only-write", prev_kv=True))
        put = pb.RequestOp(request_put=pb.PutRequest(key=b"only-write", prev_kv=True))
        await refused(DENIED, alice("KV/Txn", success=[put]))
        await alice("KV/DeleteRange", key=b"only-write")


async def test_a_transaction_needs_every_right_of_every_branch_at_every_depth(
    server: EtcdServer,
) -> None:
    allowed = pb.RequestOp(request_range=pb.RangeRequest(key=b"r"))
    forbidden: tuple[dict[str, Any], ...] = (
        {"request_range": pb.RangeRequest(key=b"secret")},
        {"request_put": pb.PutRequest(key=b"r")},
        {"request_delete_range": pb.DeleteRangeRequest(key=b"r")},
    )
    async with caller(server.endpoint, ALICE) as alice:
        await alice("KV/Txn", success=[allowed])
        for fields in forbidden:
            op = pb.RequestOp(**fields)
            nested = pb.RequestOp(request_txn=pb.TxnRequest(failure=[op]))
            for ops in ([op], [allowed, nested]):
                await refused(DENIED, alice("KV/Txn", success=ops))
                await refused(DENIED, alice("KV/Txn", failure=ops))
        compare = pb.Compare(key=b"r", range_end=b"t", target=pb.Compare.VERSION)
        await refused(DENIED, alice("KV/Txn", compare=[compare], success=[allowed]))


async def test_a_longer_transaction_is_allowed_where_the_flag_says_so() -> None:
    ops = [pb.RequestOp(request_range=pb.RangeRequest(key=b"r"))] * 200
    async with memory_etcd(bcrypt_cost=4, max_txn_ops=200) as server:
        await populate(server.endpoint)
        async with caller(server.endpoint, ALICE) as alice:
            assert len((await alice("KV/Txn", success=ops)).responses) == 200
            await refused(errors.TOO_MANY_OPS, alice("KV/Txn", success=ops + ops[:1]))


async def test_a_lease_belongs_to_those_who_may_write_its_keys(server: EtcdServer) -> None:
    endpoint = server.endpoint
    async with (
        caller(endpoint, ROOT) as root,
        caller(endpoint, ALICE) as alice,
        caller(endpoint) as nobody,
        EtcdClient([endpoint], access=ALICE) as client,
    ):
        await refused(NOBODY, nobody("Lease/LeaseGrant", TTL=60))
        lease = (await alice("Lease/LeaseGrant", TTL=60)).ID
        await alice("KV/Put", key=b"w1", lease=lease)
        assert (await client.lease_keep_alive_once(lease)).ttl_s == 60
        assert (await alice("Lease/LeaseTimeToLive", ID=lease, keys=True)).keys == [b"w1"]
        await root("KV/Put", key=b"secret", lease=lease)
        # Now the lease holds a key alice has no rights on.
        await refused(DENIED, alice("KV/Put", key=b"w2", lease=lease))
        op = pb.RequestOp(request_put=pb.PutRequest(key=b"w2", lease=lease))
        await refused(DENIED, alice("KV/Txn", success=[op]))
        await refused(DENIED, alice("Lease/LeaseRevoke", ID=lease))
        await refused(DENIED, alice("Lease/LeaseTimeToLive", ID=lease, keys=True))
        await refused(DENIED, alice("Lease/LeaseLeases"))
        await refused(DENIED, client.lease_keep_alive_once(lease))
        assert (await alice("Lease/LeaseTimeToLive", ID=lease)).TTL > 0
        for method in ("LeaseRevoke", "LeaseTimeToLive"):
            await refused(NOBODY, nobody(f"Lease/{method}", ID=lease))
        await refused(NOBODY, nobody("Lease/LeaseLeases"))
        await root("Lease/LeaseRevoke", ID=lease)


async def test_administration_is_for_root(server: EtcdServer) -> None:
    async with (
        caller(server.endpoint, ROOT) as root,
        caller(server.endpoint, ALICE) as alice,
        caller(server.endpoint) as nobody,
    ):
        for method in (
            "Auth/AuthDisable",
            "Auth/AuthStatus",
            "Auth/UserList",
            "Auth/RoleList",
            "Cluster/MemberAdd",
            "Cluster/MemberRemove",
            "Maintenance/Defragment",
            "Maintenance/Hash",
            "Maintenance/HashKV",
            "Maintenance/MoveLeader",
        ):
            await refused(DENIED, alice(method))
            await refused(NOBODY, nobody(method))
        for method in ("Cluster/MemberList", "Maintenance/Status", "Maintenance/Alarm"):
            await alice(method)
            await refused(NOBODY, nobody(method))
        await refused(DENIED, alice("Maintenance/Alarm", action=pb.AlarmRequest.ACTIVATE, alarm=1))
        assert (await root("Auth/AuthStatus")).enabled
        assert (await alice("Auth/UserGet", name="alice")).roles == ["clerk"]
        assert len((await alice("Auth/RoleGet", role="clerk")).perm) == 2
        await refused(DENIED, alice("Auth/UserGet", name="root"))
        await refused(DENIED, alice("Auth/RoleGet", role="root"))


async def test_nobody_can_make_any_call_but_those_that_are_open(server: EtcdServer) -> None:
    services = Services(server.member)
    checks = CallCheck(server.member.engine.auth, server.member.engine.leases)

    def attempt(path: str) -> None:
        checks.opening(path, None)
        checks.call(path, _request(services, path), None)

    for path in (*services.unary, *STREAMS):
        if path not in OPEN:
            with pytest.raises(EtcdError) as caught:
                attempt(path)
            assert (caught.value.code, caught.value.message) == NOBODY, path


def _request(services: Services, path: str) -> object:
    match path:
        case "/etcdserverpb.Watch/Watch":
            return pb.WatchCreateRequest()
        case "/etcdserverpb.Lease/LeaseKeepAlive":
            return pb.LeaseKeepAliveRequest()
        case "/etcdserverpb.KV/Txn":
            # Without any key there is nothing to ask a permission for.
            return pb.TxnRequest(compare=[pb.Compare(key=b"r")])
        case _ if path in METHODS:
            return METHODS[path].request()
        case _:
            return services.unary[path].request()


async def test_a_watch_needs_the_right_to_read_all_it_watches(server: EtcdServer) -> None:
    async with (
        EtcdClient([server.endpoint], access=ROOT) as root,
        EtcdClient([server.endpoint], access=ALICE) as alice,
        EtcdClient([server.endpoint]) as nobody,
        alice.watch(b"r", range_end=b"s") as batches,
    ):
        await root.put(b"r1", b"x")
        assert (await anext(batches)).events[0].kv.key == b"r1"
        # A watch without end that began with a key that may be read.
        await refused(DENIED, alice.watch(b"r1", range_end=b"\0").__aenter__())
        await refused(DENIED, alice.watch(b"s").__aenter__())
        await refused(NOBODY, nobody.watch(b"r").__aenter__())
        await root.put(b"r2", b"x")
        assert (await anext(batches)).events[0].kv.key == b"r2"


async def test_wrong_passwords_and_users_without_one_get_no_token(server: EtcdServer) -> None:
    async with caller(server.endpoint, ROOT) as root, caller(server.endpoint) as nobody:
        options = {"no_password": True}
        await root("Auth/UserAdd", name="cert", options=options)
        for name, password in (("alice", "x"), ("alice", ""), ("nobody", "x")):
            pending = nobody("Auth/Authenticate", name=name, password=password)
            await refused(errors.AUTH_FAILED, pending)
        pending = nobody("Auth/Authenticate", name="cert", password="x")
        await refused(errors.NO_PASSWORD_USER, pending)
        token = (await nobody("Auth/Authenticate", name="alice", password="alicepw")).token
        letters, _, index = token.partition(".")
        assert len(letters) == 16
        assert index.isdigit()
        pending = root("Auth/UserAdd", name="long", password="x" * 73)
        await refused(errors.PASSWORD_TOO_LONG, pending)


async def test_guessing_passwords_holds_nobody_else_up(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, compared = threading.Event(), []

    def slowly(_: PasswordHasher, password: str, hashed: bytes) -> bool:
        compared.append(password)
        gate.wait(90)
        return password == "right"

    monkeypatch.setattr(PasswordHasher, "matches", slowly)
    monkeypatch.setattr(auth_hash, "INLINE_COST", 0)
    monkeypatch.setattr(auth_hash, "MAX_CHECKS", 2)
    async with caller(server.endpoint) as call, asyncio.timeout(30):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_token(call, password))
                    for password in ("right", "wrong", "right", "too much")
                ]
                await tasks[3]
                # The thread is busy with the first; others are answered all the same.
                await refused(NOBODY, call("KV/Range", key=b"r"))
                assert not any(task.done() for task in tasks[:3])
                gate.set()
        finally:
            gate.set()
    assert [task.result() for task in tasks] == [
        "token",
        errors.AUTH_FAILED[1],
        "token",
        errors.TOO_MANY_REQUESTS[1],
    ]
    assert compared == ["right", "wrong"]


async def _token(call: Caller, password: str) -> str:
    try:
        return "token" if (await call("Auth/Authenticate", name="alice", password=password)) else ""
    except EtcdError as error:
        return error.message


async def test_a_password_changed_while_it_is_compared_is_compared_again(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = asyncio.Event(), threading.Event()
    loop, matches = asyncio.get_running_loop(), PasswordHasher.matches

    def slowly(hasher: PasswordHasher, password: str, hashed: bytes) -> bool:
        if password == "alicepw":
            loop.call_soon_threadsafe(begun.set)
            gate.wait(90)
        return matches(hasher, password, hashed)

    async with caller(server.endpoint, ROOT) as root, caller(server.endpoint) as call:
        await root("KV/Range", key=b"r")
        monkeypatch.setattr(PasswordHasher, "matches", slowly)
        monkeypatch.setattr(auth_hash, "INLINE_COST", 0)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            task = group.create_task(_token(call, "alicepw"))
            await begun.wait()
            await root("Auth/UserChangePassword", name="alice", password="new")
            gate.set()
        assert task.result() == errors.AUTH_FAILED[1]


async def test_a_changed_password_ends_the_tokens_and_a_right_one_is_not_remembered_for_ever(
    server: EtcdServer,
) -> None:
    new = EtcdAccess("alice", "new")
    async with caller(server.endpoint, ROOT) as root, caller(server.endpoint, ALICE) as alice:
        await alice("KV/Range", key=b"r")
        await root("Auth/UserChangePassword", name="alice", password="new")
        # The token is known no more, and the client's password is wrong by now.
        await refused(errors.AUTH_FAILED, alice("KV/Range", key=b"r"))
        async with caller(server.endpoint, new) as again:
            await again("KV/Range", key=b"r")
        await root("Auth/UserDelete", name="alice")
        await refused(errors.AUTH_FAILED, alice("KV/Range", key=b"r"))


async def test_auth_off_lets_everybody_do_everything_and_a_client_with_a_user_stays_usable(
    server: EtcdServer,
) -> None:
    async with caller(server.endpoint, ROOT) as root, caller(server.endpoint, ALICE) as alice:
        await refused(DENIED, alice("KV/Put", key=b"secret"))
        await root("Auth/AuthDisable")
        pending = alice("Auth/Authenticate", name="alice", password="alicepw")
        await refused(errors.AUTH_NOT_ENABLED, pending)
        await alice("KV/Put", key=b"secret")
        async with caller(server.endpoint, ALICE) as fresh:
            await fresh("KV/Put", key=b"secret")
            await fresh("Auth/AuthEnable")
            # "user name is empty" makes it ask for the token there was none of before.
            await fresh("KV/Put", key=b"w1")
            await refused(DENIED, fresh("KV/Put", key=b"secret"))


async def test_a_token_of_nobody_is_refused_everywhere_but_where_one_gets_a_new_one(
    server: EtcdServer,
) -> None:
    async with aiohttp.ClientSession(f"http://{server.endpoint}") as session:
        stale = {"Authorization": "abcdefghijklmnop.9"}
        for path, body in (("kv/range", {"key": "cg=="}), ("lease/grant", {"TTL": 9})):
            async with session.post(f"/v3/{path}", json=body, headers=stale) as response:
                assert response.status == 401
                assert (await response.json())["error"] == "etcdserver: invalid auth token"
        who = {"name": "alice", "password": "alicepw"}
        async with session.post("/v3/auth/authenticate", json=who, headers=stale) as response:
            token = (await response.json())["token"]
        for header in ("Authorization", "Grpc-Metadata-Token"):
            async with session.post(
                "/v3/kv/range", json={"key": "cg=="}, headers={header: token}
            ) as response:
                assert response.status == 200


async def test_users_and_roles_are_administered_over_json_too(server: EtcdServer) -> None:
    async with aiohttp.ClientSession(f"http://{server.endpoint}") as session:

        async def post(path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
            headers = {"Authorization": token} if token else {}
            async with session.post(f"/v3/auth/{path}", json=body, headers=headers) as response:
                answer: dict[str, Any] = json.loads(await response.text())
                return answer

        token = (await post("authenticate", {"name": "root", "password": "rootpw"}))["token"]
        await post("user/add", {"name": "bob", "password": "pw"}, token)
        await post("role/add", {"name": "job"}, token)
        key = base64.b64encode(b"job").decode()
        perm = {"permType": "READWRITE", "key": key}
        await post("role/grant", {"name": "job", "perm": perm}, token)
        await post("user/grant", {"user": "bob", "role": "job"}, token)
        assert (await post("user/get", {"name": "bob"}, token))["roles"] == ["job"]
        assert (await post("role/get", {"role": "job"}, token))["perm"] == [perm]
        assert (await post("user/list", {}, token))["users"] == ["alice", "bob", "root"]
        await post("role/revoke", {"role": "job", "key": key}, token)
        assert "perm" not in await post("role/get", {"role": "job"}, token)
        await post("user/revoke", {"name": "bob", "role": "job"}, token)
        await post("user/changepw", {"name": "bob", "password": "other"}, token)
        assert "token" in await post("authenticate", {"name": "bob", "password": "other"})
        await post("role/delete", {"role": "job"}, token)
        await post("user/delete", {"name": "bob"}, token)
        assert (await post("role/list", {}, token))["roles"] == ["clerk", "root"]
        assert (await post("status", {}, token))["enabled"] is True
        assert (await post("status", {}))["error"] == "etcdserver: user name is empty"


async def _check_alice(endpoint: str) -> None:
    async with caller(endpoint, ALICE) as alice, caller(endpoint, ROOT) as root:
        await alice("KV/Put", key=b"w1")
        await refused(DENIED, alice("KV/Put", key=b"r1"))
        status = await root("Auth/AuthStatus")
        assert (status.enabled, status.authRevision) == (True, 9)
        clerk = await root("Auth/RoleGet", role="clerk")
        assert [(entry.permType, entry.key) for entry in clerk.perm] == [(READ, b"r"), (2, b"w")]


async def test_users_roles_and_auth_itself_survive_kill_9(tmp_path: Path) -> None:
    async with process_etcd(tmp_path) as (process, endpoint):
        await populate(endpoint)
        process.kill()
    async with disk_etcd(tmp_path) as server:
        await _check_alice(server.endpoint)


async def test_watches_and_locks_over_json_are_checked_like_any_other(server: EtcdServer) -> None:
    async with aiohttp.ClientSession(f"http://{server.endpoint}") as session:
        who = {"name": "alice", "password": "alicepw"}
        async with session.post("/v3/auth/authenticate", json=who) as response:
            headers = {"Authorization": (await response.json())["token"]}

        async def first(path: str, body: dict[str, Any], token: bool = True) -> str:
            shown = headers if token else {}
            async with session.post(f"/v3/{path}", json=body, headers=shown) as response:
                return (await response.content.readline()).decode()

        def watch(key: bytes) -> dict[str, Any]:
            return {"create_request": {"key": base64.b64encode(key).decode()}}

        assert '"created":true' in await first("watch", watch(b"r"))
        assert "permission denied" in await first("watch", watch(b"s"))
        assert "user name is empty" in await first("watch", watch(b"r"), token=False)
        lease = {"ID": json.loads(await first("lease/grant", {"TTL": "60"}))["ID"]}
        assert '"TTL":"60"' in await first("lease/keepalive", lease)
        assert "user name is empty" in await first("lease/keepalive", lease, token=False)
        lock = {"name": base64.b64encode(b"w-lock").decode(), "lease": lease["ID"]}
        assert '"key"' in await first("lock/lock", lock)
        assert "user name is empty" in await first("lock/lock", lock, token=False)
        forbidden = {"name": base64.b64encode(b"r-lock").decode()}
        assert "permission denied" in await first("lock/lock", forbidden)
        assert "permission denied" in await first("election/campaign", forbidden)


def _snapshot_holds(directory: Path, text: bytes) -> bool:
    return any(text in path.read_bytes() for path in directory.glob("*.snap"))


async def test_users_and_roles_are_in_snapshots_and_change_no_hash(tmp_path: Path) -> None:
    async with disk_etcd(tmp_path, snapshot_bytes=1, bcrypt_cost=4) as server:
        async with EtcdClient([server.endpoint]) as client:
            await client.put(b"r1", b"x")
            plain = await client.hash_kv()
        await populate(server.endpoint)
        async with EtcdClient([server.endpoint], access=ROOT) as client:
            assert await client.hash_kv() == plain
            async with asyncio.timeout(30):
                while not _snapshot_holds(tmp_path / "snap", b"clerk"):
                    await client.put(b"r1", b"x")
    async with disk_etcd(tmp_path) as server:
        await _check_alice(server.endpoint)


async def test_token_options_that_cannot_work_are_one_clear_line() -> None:
    for option, text in (
        ("bearer", "'bearer' is unknown"),
        ("simple,ttl", "option 'ttl'"),
        ("jwt", "sign-method '' is unknown"),
        ("jwt,sign-method=RS256", "RS256 needs priv-key=FILE or pub-key=FILE"),
        ("jwt,sign-method=HS256", "HS256 needs priv-key=FILE"),
        ("jwt,sign-method=HS256,ttl=soon", "ttl 'soon'"),
        ("jwt,sign-method=HS256,priv-key=/nowhere", "/nowhere"),
    ):
        with pytest.raises(UsageError, match="--auth-token: ") as caught:
            await memory_etcd(auth_token=option).start()
        assert text in str(caught.value)
