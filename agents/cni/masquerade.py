"""The bridge plugin's ipMasq: what flannel leaves to CNI when FLANNEL_IPMASQ is false.

Source: containernetworking/plugins, pkg/ip/ipmasq_linux.go and pkg/utils/utils.go.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from agents.cni.errors import GENERIC, CniError
from emulator.netstack.netfilter.iptables import run_iptables

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs

# XT_EXTENSION_MAXNAMELEN less the final zero.
_MAX_CHAIN = 28
_PREFIX = "CNI-"


def chain_name(network: str, container_id: str) -> str:
    """``CNI-`` and as much of the SHA-512 of both names as a chain's name holds."""
    digest = hashlib.sha512(f"{network}{container_id}".encode()).hexdigest()
    return f"{_PREFIX}{digest}"[:_MAX_CHAIN]


def _comment(network: str, container_id: str) -> list[str]:
    return ["-m", "comment", "--comment", f'name: "{network}" id: "{container_id}"']


def set_up(ns: NetNs, network: str, container_id: str, ip: str, subnet: str) -> None:
    """Masquerade what leaves the subnet from ``ip``; repeating it changes nothing."""
    chain, comment = chain_name(network, container_id), _comment(network, container_id)
    if run_iptables(ns.netfilter, ["-t", "nat", "-S", chain]).exit_code == 0:
        return
    for words in (
        ["-N", chain],
        ["-A", chain, "-d", subnet, *comment, "-j", "ACCEPT"],
        ["-A", chain, "!", "-d", "224.0.0.0/4", *comment, "-j", "MASQUERADE"],
        ["-A", "POSTROUTING", "-s", ip, *comment, "-j", chain],
    ):
        result = run_iptables(ns.netfilter, ["-t", "nat", *words])
        if result.exit_code != 0:
            raise CniError(GENERIC, f"failed to set up ip masq: {result.stderr.strip()}")


def tear_down(ns: NetNs, network: str, container_id: str, ip: str) -> None:
    """Undo ``set_up``; what is absent is no error."""
    chain, comment = chain_name(network, container_id), _comment(network, container_id)
    for words in (
        ["-D", "POSTROUTING", "-s", ip, *comment, "-j", chain],
        ["-F", chain],
        ["-X", chain],
    ):
        run_iptables(ns.netfilter, ["-t", "nat", *words])
