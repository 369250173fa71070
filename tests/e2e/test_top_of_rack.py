"""A real router joins a Calico cluster by the recipes in examples/top-of-rack."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import bgp_peers
from tests.e2e.harness import Podwire, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = Path(__file__).parents[2] / "examples/top-of-rack"
BLOCKS = ("192.168.126.64/26", "192.168.145.64/26")
OUTSIDE = "10.99.0.0/16"


@pytest.fixture(scope="module")
def calico(home: Path) -> Iterator[Podwire]:
    podwire = Podwire(home, "rack")
    podwire.podwire("up", "--preset", "calico", "--detach")
    podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()
    podwire.kubectl("apply", "-f", str(RECIPE / "peer.yaml"))
    yield podwire
    podwire.podwire("down")


def recipe(cluster: Podwire, name: str, folder: Path, router: str) -> Path:
    """A configuration of the recipe with this cluster's addresses and a router's own."""
    text = (RECIPE / name).read_text().replace("127.0.0.11", router)
    for index, node in enumerate(cluster.status()["nodes"], 1):
        text = text.replace(f"127.48.1.{index}", node["underlay"])
    path = folder / name
    path.write_text(text)
    return path


def publish(cluster: Podwire, router: str) -> None:
    """Say where the router is, as the recipe does."""
    if shutil.which("etcdctl") is None:
        pytest.skip("etcdctl is not installed")
    entry = json.loads((RECIPE / "underlay.json").read_text()) | {"underlay": router}
    endpoint = cluster.status()["etcd"]["endpoints"][0]
    key = f"/podwire/underlay/{entry['ip']}"
    cluster.run(["etcdctl", "--endpoints", endpoint, "put", key, json.dumps(entry)])


def routes_of(cluster: Podwire, node: str) -> list[str]:
    return cluster.node(node, "ip", "route").out.splitlines()


def check_both_ways(cluster: Podwire) -> None:
    """The nodes' tables lead to the outside network through the router."""
    on_link = f"{OUTSIDE} via 10.10.64.11 dev eth0 proto bird "
    wait_for("kube-0 routes outside", lambda: on_link in routes_of(cluster, "kube-0"))
    # From the other subnet the router is behind the gateway.
    beyond = f"{OUTSIDE} via 10.10.80.1 dev eth0 proto bird "
    wait_for("kube-1 routes outside", lambda: beyond in routes_of(cluster, "kube-1"))


def check_gone(cluster: Podwire) -> None:
    for node in ("kube-0", "kube-1"):
        wait_for(
            f"{node} forgets the outside",
            lambda node=node: not any(OUTSIDE in line for line in routes_of(cluster, node)),
        )


def test_bird_2_learns_the_blocks_and_announces_a_network(calico: Podwire, tmp_path: Path) -> None:
    program, client = bgp_peers.bird2(), bgp_peers.bird2_client()
    if program is None or client is None:
        pytest.skip(bgp_peers.NO_BIRD2)
    control = tmp_path / "b.ctl"
    router = "127.0.111.11"
    arguments = ["-f", "-c", str(recipe(calico, "bird.conf", tmp_path, router))]
    arguments += ["-s", str(control), "-P", str(tmp_path / "b.pid")]
    with bgp_peers.process(program, arguments, tmp_path / "bird.log"):
        publish(calico, router)

        def routes() -> str:
            return client.run("-s", str(control), "show", "route")

        wait_for("BIRD has both blocks", lambda: all(block in routes() for block in BLOCKS))
        assert len(re.findall(r"kube_[01]\b", routes())) >= 2
        check_both_ways(calico)
    check_gone(calico)


def test_gobgp_learns_the_blocks_and_announces_a_network(calico: Podwire, tmp_path: Path) -> None:
    program, client = bgp_peers.gobgpd(), bgp_peers.gobgp()
    if program is None or client is None:
        pytest.skip(bgp_peers.NO_GOBGP)
    router = "127.0.111.12"
    arguments = ["-f", str(recipe(calico, "gobgpd.toml", tmp_path, router))]
    arguments += ["--api-hosts", f"{router}:50051", "--pprof-disable", "-p"]
    with bgp_peers.process(program, arguments, tmp_path / "gobgp.log"):
        publish(calico, router)

        def ask(*words: str) -> str:
            with contextlib.suppress(OSError):
                return client.run("-u", router, *words)
            return ""

        wait_for("gobgpd answers", lambda: "Peer" in ask("neighbor"))
        ask("global", "rib", "add", OUTSIDE, "nexthop", "10.10.64.11")
        wait_for(
            "GoBGP has both blocks",
            lambda: all(block in ask("global", "rib") for block in BLOCKS),
            within_s=40,
        )
        check_both_ways(calico)
    check_gone(calico)
