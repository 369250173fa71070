"""A Calico cluster through the tools of its people: birdc on a node's socket, calicoctl."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from tests import bgp_peers
from tests.e2e.harness import Podwire, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e
BIRDC = bgp_peers.find("bird", "usr/sbin/birdc", system=False) or bgp_peers.bird2_client()
TIME = re.compile(r"\d\d:\d\d:\d\d")
STATUS = """\
Calico process is running.

IPv4 BGP status
+--------------+-------------------+-------+----------+-------------+
| PEER ADDRESS |     PEER TYPE     | STATE |  SINCE   |    INFO     |
+--------------+-------------------+-------+----------+-------------+
| 10.10.95.205 | node-to-node mesh | up    | HH:MM:SS | Established |
+--------------+-------------------+-------+----------+-------------+

IPv6 BGP status
No IPv6 peers found.

"""
USAGE = """\
+----------+-------------------+-----------+------------+--------------+
| GROUPING |       CIDR        | IPS TOTAL | IPS IN USE |   IPS FREE   |
+----------+-------------------+-----------+------------+--------------+
| IP Pool  | 192.168.0.0/16    |     65536 | 2 (0%)     | 65534 (100%) |
| Block    | 192.168.126.64/26 |        64 | 1 (2%)     | 63 (98%)     |
| Block    | 192.168.145.64/26 |        64 | 1 (2%)     | 63 (98%)     |
+----------+-------------------+-----------+------------+--------------+
"""


@pytest.fixture(scope="module")
def calico(home: Path) -> Iterator[Podwire]:
    podwire = Podwire(home, f"c{os.getpid()}")
    podwire.podwire("up", "--preset", "calico", "--detach")
    yield podwire
    podwire.podwire("down")


def birdc(podwire: Podwire, node: int, *command: str) -> list[str]:
    assert BIRDC is not None
    path = podwire.status()["nodes"][node]["bird_ctl"]
    out = BIRDC.run("-s", path, *command)
    banner, *lines = TIME.sub("HH:MM:SS", out).splitlines()
    assert banner == "BIRD v0.3.3+birdv1.6.8 ready."
    return lines


@pytest.mark.skipif(BIRDC is None, reason=bgp_peers.NO_BIRD2)
def test_birdc_shows_the_sessions_and_routes_of_a_node(calico: Podwire) -> None:
    def is_up() -> bool:
        return any("Established" in line for line in birdc(calico, 0, "show", "protocols"))

    wait_for("the session between the nodes", is_up)
    assert birdc(calico, 0, "show", "protocols") == [
        "name     proto    table    state  since       info",
        "static1  Static   master   up     HH:MM:SS    ",
        "kernel1  Kernel   master   up     HH:MM:SS    ",
        "device1  Device   master   up     HH:MM:SS    ",
        "direct1  Direct   master   up     HH:MM:SS    ",
        "Mesh_10_10_95_205 BGP      master   up     HH:MM:SS    Established   ",
    ]
    assert birdc(calico, 0, "show", "route") == [
        "0.0.0.0/0          via 10.10.64.1 on eth0 [kernel1 HH:MM:SS] * (10)",
        "10.10.64.0/20      dev eth0 [direct1 HH:MM:SS] * (240)",
        "172.17.0.0/16      dev docker0 [direct1 HH:MM:SS] * (240)",
        "192.168.126.64/26  via 10.10.64.1 on eth0 "
        "[Mesh_10_10_95_205 HH:MM:SS from 10.10.95.205] * (100/?) [i]",
        "192.168.145.64/26  blackhole [static1 HH:MM:SS] * (200)",
        "192.168.145.64/32  dev tunl0 [direct1 HH:MM:SS] * (240)",
    ]
    assert birdc(calico, 0, "configure") == [
        "Reading configuration from /etc/calico/confd/config/bird.cfg",
        "Reconfigured",
    ]


@pytest.mark.skipif(BIRDC is None, reason=bgp_peers.NO_BIRD2)
def test_a_table_is_dumped_where_the_readme_says(calico: Podwire) -> None:
    assert birdc(calico, 0, "mrt", "dump", "table", '"master"', "to", '"/tmp/table.mrt"') == []
    assert "/tmp/table.mrt" in calico.node("kube-0", "ls", "/tmp/table.mrt").out
    assert any(path.stat().st_size for path in calico.home.rglob("kube-0/tmp/table.mrt"))


@pytest.mark.skipif(BIRDC is None, reason=bgp_peers.NO_BIRD2)
def test_a_disabled_session_takes_the_route_along_and_bird_comes_back(calico: Podwire) -> None:
    def routes(node: str) -> str:
        return calico.node(node, "ip", "route").out

    assert birdc(calico, 1, "disable", '"Mesh*"') == ["Mesh_10_10_68_222: disabled"]
    wait_for("no route at the peer", lambda: "192.168.126.64/26 via" not in routes("kube-0"))
    assert "down" in calico.podwire("calicoctl", "--node", "kube-1", "node", "status").out
    assert birdc(calico, 1, "enable", "all")[-1] == "Mesh_10_10_68_222: enabled"
    wait_for("the route", lambda: "192.168.126.64/26 via 10.10.95.205" in routes("kube-0"))
    assert birdc(calico, 1, "down") == ["Shutdown requested"]
    wait_for("no route without bird", lambda: "192.168.126.64/26 via" not in routes("kube-0"))
    wait_for("bird again", lambda: "192.168.126.64/26 via 10.10.95.205" in routes("kube-0"))


def test_calicoctl_speaks_of_nodes_pools_and_peers(calico: Podwire) -> None:
    def status() -> str:
        return TIME.sub("HH:MM:SS", calico.podwire("calicoctl", "node", "status").out)

    wait_for("the session", lambda: status() == STATUS)
    assert calico.podwire("calicoctl", "get", "nodes", "-o", "wide").out == (
        "NAME     ASN         IPV4              IPV6   \n"
        "kube-0   (unknown)   10.10.68.222/20          \n"
        "kube-1   (unknown)   10.10.95.205/20          \n\n"
    )
    assert calico.podwire("calicoctl", "ipam", "show", "--show-blocks").out == USAGE
    checked = calico.podwire("calicoctl", "ipam", "check").out
    assert checked.endswith("Check complete; found 0 problems.\n")
    shown = calico.podwire("calicoctl", "ipam", "show", "--ip", "192.168.145.64").out
    assert shown.startswith("IP 192.168.145.64 is in use\nAttributes:\n  node: kube-0\n")


def test_calicoctl_reads_files_and_writes_reports(calico: Podwire, tmp_path: Path) -> None:
    manifest = tmp_path / "pool.yaml"
    manifest.write_text(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: extra}\n"
        "spec: {cidr: 10.9.0.0/16, disabled: true}\n"
    )
    applied = calico.podwire("calicoctl", "apply", "-f", str(manifest))
    assert applied.out == "Successfully applied 1 'IPPool' resource(s)\n"
    calico.podwire("calicoctl", "delete", "ippool", "extra")
    report = tmp_path / "report.json"
    calico.podwire("calicoctl", "ipam", "check", "-o", str(report))
    assert sorted(json.loads(report.read_text())["allocations"]) == [
        "192.168.126.64",
        "192.168.145.64",
    ]
    refused = calico.podwire("calicoctl", "get", "nosuch", check=False)
    assert (refused.code, refused.err) == (
        1,
        "Failed to get resources: resource type 'nosuch' is not supported\n",
    )
    unknown = calico.podwire("calicoctl", "--node", "kube-9", "node", "status", check=False)
    assert unknown.code == 2
    assert "no node 'kube-9' (there are: kube-0, kube-1)" in unknown.err
