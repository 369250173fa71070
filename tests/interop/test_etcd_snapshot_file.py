"""Snapshots between ours and the real etcd, both ways, with etcd's own tools."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from etcd.client import EtcdClient
from etcd.core import errors
from etcd.server.restore import restore_snapshot
from tests.etcd_auth_calls import ALICE, ROOT, caller, populate, refused
from tests.etcd_auth_peers import Real
from tests.etcd_servers import (
    NO_DISTRO,
    NO_REAL_ETCD,
    disk_etcd,
    distro_binary,
    memory_etcd,
    real_etcd,
    real_etcd_binary,
)

if TYPE_CHECKING:
    from pathlib import Path

ETCDCTL = shutil.which("etcdctl")
COMMAND_TIMEOUT_S = 15.0
needs_tools = pytest.mark.skipif(
    ETCDCTL is None or real_etcd_binary() is None, reason=f"no etcdctl, or {NO_REAL_ETCD}"
)
needs_distro = pytest.mark.skipif(distro_binary("etcdutl") is None, reason=NO_DISTRO)


async def tool(*words: str | None) -> str:
    """Run a program that must succeed; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(word for word in words if word is not None),
        env={**os.environ, "ETCDCTL_API": "3"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(COMMAND_TIMEOUT_S):
        out, err = await process.communicate()
    assert process.returncode == 0, f"{words}: {out.decode()}{err.decode()}"
    return out.decode()


async def fill(endpoint: str) -> int:
    """Make history with overwritten, deleted and leased keys; return a lease."""
    async with EtcdClient([endpoint]) as client:
        lease = (await client.lease_grant(500)).id
        for n in range(400):
            await client.put(b"key%d" % (n % 90), b"v" * (n * 7))
        await client.put(b"large", b"x" * 20_000)
        await client.delete(b"key1", range_end=b"key2")
        await client.compact(200)
        await client.delete(b"key5")
        await client.put(b"leased", b"x", lease=lease)
    return lease


async def state(endpoint: str, lease: int) -> tuple[tuple[int, int], int, bytes, int]:
    """Return HashKV, the last key's revision and value and its lease's whole time."""
    async with EtcdClient([endpoint]) as client:
        (found,) = (await client.get(b"leased")).kvs
        left = await client.lease_time_to_live(lease)
        return await client.hash_kv(), found.mod_revision, found.value, left.granted_ttl_s


@needs_tools
async def test_a_real_etcd_starts_from_our_snapshot(tmp_path: Path) -> None:
    saved = str(tmp_path / "saved.db")
    async with memory_etcd() as server:
        lease = await fill(server.endpoint)
        want = await state(server.endpoint, lease)
        await tool(ETCDCTL, f"--endpoints={server.endpoint}", "snapshot", "save", saved)
    status = await tool(ETCDCTL, "snapshot", "status", saved)
    assert f" {want[1]}, " in status
    await tool(ETCDCTL, "snapshot", "restore", saved, "--data-dir", str(tmp_path / "real"))
    async with real_etcd(tmp_path / "real") as endpoint:
        assert await state(endpoint, lease) == want


@needs_tools
async def test_ours_starts_from_a_real_etcds_snapshot_and_from_its_directory(
    tmp_path: Path,
) -> None:
    saved = str(tmp_path / "saved.db")
    async with real_etcd(tmp_path / "real") as endpoint:
        lease = await fill(endpoint)
        want = await state(endpoint, lease)
        await tool(ETCDCTL, f"--endpoints={endpoint}", "snapshot", "save", saved)
    await tool(ETCDCTL, "snapshot", "restore", saved, "--data-dir", str(tmp_path / "again"))
    for source in (saved, str(tmp_path / "again")):
        to = tmp_path / f"ours-{os.path.basename(source)}"
        restore_snapshot(source, str(to), skip_hash_check=False)
        async with disk_etcd(to) as server:
            assert await state(server.endpoint, lease) == want


@needs_tools
async def test_users_roles_and_passwords_go_both_ways(tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ours.db"), str(tmp_path / "theirs.db")
    async with memory_etcd(bcrypt_cost=4) as server:
        await populate(server.endpoint)
        await _save_as_root(server.endpoint, ours)
    await tool(ETCDCTL, "snapshot", "restore", ours, "--data-dir", str(tmp_path / "real"))
    real = Real(tmp_path / "real", None)
    try:
        await real.restart()
        await _alice_is_alice(real.endpoint)
        await _save_as_root(real.endpoint, theirs)
    finally:
        await real.stop()
    data_dir = tmp_path / "again"
    restore_snapshot(theirs, str(data_dir), skip_hash_check=False)
    async with disk_etcd(data_dir) as server:
        await _alice_is_alice(server.endpoint)
        async with caller(server.endpoint, ROOT) as root:
            assert (await root("Auth/AuthStatus")).authRevision == 9
            assert len((await root("Auth/RoleGet", role="clerk")).perm) == 2


async def _save_as_root(endpoint: str, path: str) -> None:
    await tool(ETCDCTL, f"--endpoints={endpoint}", "--user=root:rootpw", "snapshot", "save", path)


async def _alice_is_alice(endpoint: str) -> None:
    async with EtcdClient([endpoint], access=ALICE) as alice:
        await alice.put(b"w1", b"x")
        await refused(errors.PERMISSION_DENIED, alice.put(b"r1", b"x"))


@needs_distro
async def test_etcdutl_takes_our_snapshot(tmp_path: Path) -> None:
    saved, etcdutl = str(tmp_path / "saved.db"), distro_binary("etcdutl")
    async with memory_etcd() as server:
        _, revision, _, _ = await state(server.endpoint, await fill(server.endpoint))
        endpoints = f"--endpoints={server.endpoint}"
        await tool(distro_binary("etcdctl"), endpoints, "snapshot", "save", saved)
    assert f" {revision}, " in await tool(etcdutl, "snapshot", "status", saved)
    to = str(tmp_path / "restored")
    await tool(etcdutl, "snapshot", "restore", saved, "--data-dir", to)
    # What 3.5 made of it, ours reads again.
    said = restore_snapshot(to, str(tmp_path / "ours"), skip_hash_check=False)
    assert f"at revision {revision} and 1 leases" in said
