"""Real BIRD 1.6 reads the files confd renders."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from agents.bird.config import BfdOptions
from agents.calico.confd.peering import Secret
from agents.calico.confd.plan import make_plan
from agents.calico.confd.render import render
from agents.calico.confd.state import read_state
from agents.calico.datastore import KVPair
from agents.calico.net import Cidr
from agents.calico.resources import key_of_resource, new_resource

NODES = (("kube-0", "10.10.68.222/20"), ("kube-1", "10.10.95.205/20"))


def bird() -> str:
    """Path of BIRD 1.6; skips the test where there is none."""
    given = os.environ.get("PODWIRE_TEST_BGP")
    root = Path(given) if given else Path.home() / ".cache/podwire-test-peers"
    for found in (str(root / "bird/usr/sbin/bird"), shutil.which("bird") or ""):
        if found and os.access(found, os.X_OK):
            return found
    pytest.skip("no BIRD 1.6: set PODWIRE_TEST_BGP to unpacked packages")


def stored(kind: str, name: str, spec: dict[str, Any]) -> KVPair:
    resource = new_resource(kind, name, spec)
    return KVPair(key_of_resource(resource), resource, 1)


POOLS = {
    "ipip": {"cidr": "192.168.0.0/16", "ipipMode": "Always"},
    "cross-subnet": {"cidr": "192.168.0.0/16", "ipipMode": "CrossSubnet"},
    "plain": {"cidr": "192.168.0.0/16", "disableBGPExport": True},
    "vxlan": {"cidr": "192.168.0.0/16", "vxlanMode": "Always"},
}
RICH = (
    stored(
        "BGPConfiguration",
        "default",
        {
            "listenPort": 1790,
            "bindMode": "NodeIP",
            "ignoredInterfaces": ["docker*"],
            "logSeverityScreen": "Debug",
            "nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}},
            "nodeMeshMaxRestartTime": "60s",
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}],
            "communities": [{"name": "site", "value": "64512:120"}],
            "prefixAdvertisements": [
                {"cidr": "192.168.0.0/18", "communities": ["site", "64512:1:2"]}
            ],
        },
    ),
    stored(
        "BGPPeer",
        "tor",
        {
            "peerIP": "10.10.64.11:179",
            "asNumber": 65001,
            "filters": ["no-default"],
            "reachableBy": "10.10.64.1",
            "ttlSecurity": 2,
            "keepOriginalNextHop": True,
            "numAllowedLocalASNumbers": 1,
            "maxRestartTime": "10s",
            "keepaliveTime": "20s",
        },
    ),
    stored("BGPPeer", "rr", {"node": "kube-0", "peerIP": "10.10.64.12", "asNumber": 64512}),
    stored(
        "BGPFilter",
        "no-default",
        {
            "importV4": [
                {"action": "Reject", "matchOperator": "Equal", "cidr": "0.0.0.0/0"},
                {
                    "action": "Accept",
                    "matchOperator": "In",
                    "cidr": "10.0.0.0/8",
                    "prefixLength": {"min": 16, "max": 24},
                    "source": "RemotePeers",
                },
            ],
            "exportV4": [
                {"action": "Reject", "matchOperator": "NotIn", "cidr": "192.168.0.0/16"},
                {"action": "Reject", "interface": "eth*"},
                {
                    "action": "Accept",
                    "peerType": "eBGP",
                    "communities": {"values": ["65000:42"]},
                    "operations": [
                        {"addCommunity": {"value": "64512:1:2"}},
                        {"addCommunity": {"value": "64512:3"}},
                        {"prependASPath": {"prefix": [65000, "1.1"]}},
                        {"setPriority": {"value": 256}},
                    ],
                },
                {"action": "Reject", "asPathPrefix": [65000, 65001], "priority": 100},
                {"action": "Reject", "communities": {"values": ["64512:1:2"]}},
                {"action": "Accept"},
            ],
        },
    ),
)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("more", [(), RICH], ids=["mesh", "everything"])
@pytest.mark.parametrize("bfd", [None, BfdOptions(), BfdOptions(0.05, graceful=True)])
async def test_bird_accepts_every_file(
    pool: str, more: tuple[KVPair, ...], bfd: BfdOptions | None, tmp_path: Path
) -> None:
    program = bird()
    state = read_state(
        [
            *(stored("Node", name, {"bgp": {"ipv4Address": address}}) for name, address in NODES),
            stored("IPPool", "pool", POOLS[pool]),
            *more,
        ],
        {"kube-0": (Cidr.parse("192.168.145.64/26"),)},
    )
    plan = make_plan(state, "kube-0", bfd=bfd)
    assert plan is not None
    assert plan.problems == ()
    for name, text in render(plan, {Secret("bgp", "mesh"): "hush"}).items():
        # Calico's own BIRD knows this attribute, the stock one does not.
        kept = [line for line in text.splitlines(True) if "krt_tunnel" not in line]
        (tmp_path / name).write_text("".join(kept))
    process = await asyncio.create_subprocess_exec(
        program, "-p", "-c", str(tmp_path / "bird.cfg"),
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, "")
