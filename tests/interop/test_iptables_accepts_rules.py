"""Debian's iptables-restore takes the agents' rule texts as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agents.flannel.rules import forward_rules, masquerade_rules
from agents.kubeproxy.desired import desired_ruleset
from agents.kubeproxy.model import Endpoint, Key, ServicePort
from agents.kubeproxy.ruleset import NodeConfig, missing_jumps
from emulator.addr import Prefix

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace"),
    pytest.mark.skipif(
        shutil.which("iptables-restore") is None or shutil.which("unshare") is None,
        reason="needs iptables and unshare",
    ),
]
GOLDEN = Path(__file__).parents[1] / "unit" / "golden"
NETWORK, SUBNET = Prefix.parse("10.2.0.0/16"), Prefix.parse("10.2.59.0/24")


def in_namespace(script: str, text: str) -> str:
    """Run a shell script with ``text`` as its input in a network namespace of its own."""
    done = subprocess.run(
        ["unshare", "--net", "sh", "-e", "-c", script],
        input=text, capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def reader(saved: str) -> Callable[[str, str], list[str]]:
    """Look up a chain's rules in iptables-save's text."""
    chains: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            chains.setdefault((table, chain), []).append(rule)
    return lambda table, chain: chains.get((table, chain), [])


def test_modern_rules_with_jumps_are_accepted() -> None:
    made = desired_ruleset([], {}, NodeConfig("n", "192.168.0.2", NETWORK))
    jumps = made.restore_text(missing_jumps=made.jumps)
    saved = in_namespace(
        "iptables-restore --noflush --counters; iptables-save",
        jumps,
    )
    assert missing_jumps(made.jumps, reader(saved)) == ()


def test_six_services_are_accepted() -> None:
    text = (GOLDEN / "kubeproxy_six_services.rules").read_text()
    in_namespace("iptables-restore --test --noflush --counters", text)


def test_2017_rules_are_accepted() -> None:
    key = Key("default", "frontend", "")
    port = ServicePort(
        key, "tcp", "10.3.0.252", 80, node_port=30080, external_ips=("192.168.99.1",),
        load_balancer_ips=("1.2.3.4",), source_ranges=(Prefix.parse("203.0.113.0/25"),),
        external_local=True, affinity_s=10800,
    )  # fmt: skip
    endpoints = {key: [Endpoint("10.2.59.13", 80, is_local=True), Endpoint("10.2.59.14", 80)]}
    node = NodeConfig("w1", "172.17.4.201", NETWORK, profile="2017")
    made = desired_ruleset([port], endpoints, node)
    text = made.restore_text(missing_jumps=made.jumps)
    in_namespace("iptables-restore --test --noflush --counters", text)


@pytest.mark.parametrize("profile", ["modern", "2017"])
def test_flannels_rules_are_found_again_in_what_iptables_saves(profile: str) -> None:
    for made in (
        masquerade_rules(NETWORK, SUBNET, "modern" if profile == "modern" else "2017"),
        forward_rules(NETWORK),
    ):
        saved = in_namespace(
            "iptables-restore --noflush; iptables-save", made.restore_text(made.jumps)
        )
        assert made.missing_jumps(reader(saved)) == ()
        assert len(reader(saved)(made.table, made.chain)) == len(made.rules)
