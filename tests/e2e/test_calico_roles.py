"""A Calico cluster of roles in separate terminals, and one on a real etcd."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.calico import Calico, calico, cluster_file, pod
from tests.e2e.harness import wait_for
from tests.e2e.test_real_etcd import RealEtcd
from tests.e2e.test_single_roles import Terminals, block, etcd_flags, is_up
from tests.etcd_servers import NO_REAL_ETCD, real_etcd_binary

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


def check_it_works(cluster: Calico) -> None:
    """Pods of two subnets reach each other through the tunnel, and all addresses are accounted."""
    made = cluster.pods(pod("web", "c"), pod("asks", "a", "nicolaka/netshoot"))
    line = f"{cluster.block('c')} via 10.10.80.13 dev tunl0 proto bird onlink"
    cluster.until_routed("a", line)
    wait_for("the pod is reached", lambda: cluster.gets("asks", made["web"]))
    wait_for(
        "ipam check finds nothing",
        lambda: "found 0 problems" in cluster.calicoctl("ipam", "check", check=False).out,
    )
    status = cluster.calicoctl("node", "status").out
    assert "| 10.10.80.13  | node-to-node mesh | up    |" in status


def test_roles_in_separate_terminals_form_a_calico_cluster(home: Path) -> None:
    cluster = calico(home, "ro")
    path = home / "cluster.yaml"
    path.write_text(cluster_file("ac"))
    opened = Terminals(cluster)
    etcd = f"http://{block()}.0.51:2379"
    shared = (str(path), "--cluster", cluster.name, "--etcd-endpoints", etcd)
    try:
        for name in "ac":
            opened.role(name, "node", *shared, "--name", name)
        opened.role("controlplane", "controlplane", *shared)
        opened.role("etcd", "etcd", *etcd_flags(home / "etcd", etcd))
        cluster.env["KUBECONFIG"] = str(home / cluster.name / "kubeconfig")
        wait_for("all roles are ready", lambda: is_up(cluster), within_s=40.0)
        check_it_works(cluster)
        before = cluster.block("c")
        # Ctrl-C and the same command again: the same node, the same block.
        assert opened.interrupt("c") == 0
        opened.role("c", "node", *shared, "--name", "c")
        wait_for("c is back", lambda: is_up(cluster), within_s=40.0)
        wait_for("it has its block", lambda: cluster.block("c") == before)
        cluster.until_routed("a", f"{before} via 10.10.80.13 dev tunl0 proto bird onlink")
    finally:
        opened.close()


def test_calico_works_on_a_real_etcd_with_the_very_same_keys(home: Path, tmp_path: Path) -> None:
    binary = real_etcd_binary()
    if binary is None:
        pytest.skip(NO_REAL_ETCD)
    etcd = RealEtcd(binary, tmp_path)
    etcd.start()
    cluster = calico(home, "re")
    try:
        cluster.up("--etcd-endpoints", etcd.endpoint, text=cluster_file("ac"))
        check_it_works(cluster)
        keys = etcd.ctl("get", "--prefix", "/calico/ipam/v2", "--keys-only")[1].split()
        blocks = [key for key in keys if "/assignment/ipv4/block/" in key]
        claims = [key for key in keys if "/host/a/ipv4/block/" in key]
        assert (len(blocks), len(claims)) == (2, 1)
        found = etcd.ctl("get", blocks[0], "--print-value-only")[1]
        assert json.loads(found)["affinity"] in ("host:a", "host:c")
        cluster.podwire("down")
    finally:
        etcd.kill()
