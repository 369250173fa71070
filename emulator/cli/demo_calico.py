"""The demo with Calico: blocks, tunnel, BGP, and a policy whose drop is explained."""

from __future__ import annotations

import re
import time
from typing import Any, ClassVar, Final

from emulator.cli.demo import Demo

POLICY: Final = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-is-closed}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: []
"""
# A policy is in force milliseconds after the API server has it.
POLICY_WITHIN_S: Final = 10.0


class CalicoDemo(Demo):
    """The story with Calico; what every network does is told the same way."""

    network: ClassVar[str] = "calico"
    tunnel: ClassVar[str] = "Calico's tunnel, IP in IP"

    def show_network(
        self, status: dict[str, Any], nodes: list[dict[str, Any]], pods: list[dict[str, Any]]
    ) -> None:
        """Blocks and where they are known, sessions and what they carry, a policy."""
        self._blocks(nodes)
        self._sessions(nodes)
        self._block_routes(nodes)
        self._policy(pods)

    def _calicoctl(self, *argv: str) -> str:
        print(f"  $ podwire calicoctl {' '.join(argv)}", flush=True)
        return self.podwire("calicoctl", "--name", self.name, *argv, show=True)

    def _blocks(self, nodes: list[dict[str, Any]]) -> None:
        self.step("Every node has a block of addresses, claimed in etcd as Calico's IPAM does")
        out = self._calicoctl("ipam", "show", "--show-blocks")
        self.must(out.count("| Block ") == len(nodes), "not one block per node")

    def _sessions(self, nodes: list[dict[str, Any]]) -> None:
        self.step("Their BGP speakers tell each other: real sessions over TCP")
        out = self._calicoctl("node", "status")
        self.must(out.count("Established") == len(nodes) - 1, "not a session with every node")
        print(f"  birdc asks more: birdc -s {nodes[0]['bird_ctl']} show route")

    def _block_routes(self, nodes: list[dict[str, Any]]) -> None:
        self.step("So each node routes the others' blocks into tunl0, and its pods one by one")
        out = self.on_node(nodes[0], "ip", "route", show=True)
        remote = re.findall(r"^\S+ via \S+ dev tunl0 proto bird onlink", out, re.M)
        self.must(len(remote) == len(nodes) - 1, "no route to each of the other nodes' blocks")
        self.must(bool(re.search(r"^blackhole \S+ proto bird", out, re.M)), "no own block")

    def _policy(self, pods: list[dict[str, Any]]) -> None:
        self.step("A NetworkPolicy closes the pods; the trace of a lost packet names it")
        print(POLICY.strip().replace("\n", "\n  ").join(("  ", "")))
        path = self.scratch / "policy.yaml"
        path.write_text(POLICY)
        self.kubectl("apply", "-f", str(path), show=True)
        target = f"{pods[0]['status']['podIP']}:80"
        deadline = time.monotonic() + POLICY_WITHIN_S
        while True:
            out = self.podwire("trace", "--name", self.name, "client", target, check=False)
            if "netfilter_drop" in out or time.monotonic() > deadline:
                break
        print(f"  $ podwire trace client {target}")
        shown = [line for line in out.splitlines() if "policies " in line]
        print("\n".join(f"  {line.strip()}" for line in shown))
        self.must("default/knp.default.web-is-closed" in out, "the trace does not name the policy")
        self.kubectl("delete", "-f", str(path), show=True)
