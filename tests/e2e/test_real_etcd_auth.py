"""A cluster on a real etcd that speaks TLS and lets nobody in without a certificate and a user."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from etcd.client import EtcdClient
from etcd.client.access import client_tls
from tests.e2e.harness import Podwire
from tests.etcd_auth_calls import BOTH, ROOT, caller, populate
from tests.etcd_auth_peers import Real, TlsFiles
from tests.etcd_servers import NO_REAL_ETCD, real_etcd_binary

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD),
]
# All that a cluster keeps in etcd.
PREFIXES = (b"/coreos.com/", b"/registry/", b"/podwire/")


async def test_a_cluster_lives_on_an_etcd_with_tls_and_a_user_of_few_rights(
    home: Path, tmp_path: Path
) -> None:
    files = TlsFiles(tmp_path / "pki")
    etcd = Real(tmp_path / "data", files)
    shown = files.access("nobody")
    podwire = Podwire(home, f"s{os.getpid()}")
    flags = ["--cacert", shown.cacert, "--cert", shown.cert, "--key", shown.key]
    up = ["up", "--nodes", "2", "--detach", "--etcd-endpoints", etcd.endpoint, *flags]
    try:
        await etcd.restart()
        tls = client_tls(shown)
        await populate(etcd.endpoint, tls)
        async with caller(etcd.endpoint, ROOT, ssl=tls) as root:
            await root("Auth/UserAdd", name="podwire", password="pa55word")
            await root("Auth/RoleAdd", name="cluster")
            for prefix in PREFIXES:
                granted = {"permType": BOTH, "key": prefix, "range_end": prefix[:-1] + b"0"}
                await root("Auth/RoleGrantPermission", name="cluster", perm=granted)
            await root("Auth/UserGrantRole", user="podwire", role="cluster")
        refused = await asyncio.to_thread(podwire.podwire, *up, check=False)
        assert refused.code == 2
        assert "etcdserver: permission denied" in refused.err
        wrong = await asyncio.to_thread(
            podwire.podwire, *up, "--user", "podwire:wrong", check=False
        )
        assert "authentication failed" in wrong.err
        await asyncio.to_thread(podwire.podwire, *up, "--user", "podwire:pa55word")
        try:
            status = await asyncio.to_thread(podwire.status)
            assert status["up"]
            exports = (await asyncio.to_thread(podwire.podwire, "env")).out.splitlines()
            assert f"export ETCDCTL_CACERT={shown.cacert}" in exports
            assert "export ETCDCTL_USER=podwire" in exports
            assert "pa55word" not in f"{exports}{status}"
            assert [node["restarts"] for node in status["nodes"]] == [0, 0]
            async with EtcdClient([etcd.endpoint], access=ROOT, ssl=tls) as client:
                leases = await client.get(b"/coreos.com/network/subnets/", prefix=True)
                assert leases.count == 2
        finally:
            await asyncio.to_thread(podwire.podwire, "down")
    finally:
        await etcd.stop()


def test_flags_for_an_etcd_that_is_not_named_are_a_mistake(home: Path) -> None:
    podwire = Podwire(home, f"t{os.getpid()}")
    for flags, text in (
        (["--user", "a:b"], "our own etcd lets everybody in"),
        (["--user", "a"], "--user: no password for 'a'"),
        (["--cert", "x"], "--cert and --key: give both or none"),
        (["--cacert", "/nowhere", "--etcd-endpoints", "http://127.0.0.1:1"], "TLS files /nowhere"),
    ):
        done = podwire.podwire("up", *flags, check=False)
        assert done.code == 2
        assert text in done.err
        assert done.err.count("\n") == 1
