"""A node with three pods in two namespaces, whose policies are the datastore's resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.calico.datastore import KVPair
from agents.calico.felix.apply import Dataplane
from agents.calico.felix.compute import compute
from agents.calico.felix.reading import read_state
from agents.calico.kubecontrollers.conversion import (
    endpoint_labels,
    namespace_profile,
)
from agents.calico.resources import endpoint_name, new_resource, resource_key
from agents.calico.validation import prepare
from emulator.addr import format_ip, parse_ip
from emulator.wire import icmpv4, ipv4, tcp, udp
from tests.calico_kernels import CalicoSegment

if TYPE_CHECKING:
    from emulator.netstack.packet import Drop, Packet

Object = dict[str, Any]
NODE = "172.17.4.201"
NAMESPACES = {"shop": {"team": "a"}, "bank": {"team": "b", "gold": "1"}}
# name: (namespace, labels, host number, named ports)
PODS = {
    "web": ("shop", {"app": "web", "tier": "front"}, 2, {("http", "TCP"): 80}),
    "api": ("shop", {"app": "api"}, 3, {("http", "TCP"): 8080, ("dns", "UDP"): 53}),
    "vault": ("bank", {"app": "api", "tier": "back"}, 4, {}),
}
PORTS = (53, 80, 443, 8080)


def labels_of(pod: str) -> dict[str, str]:
    return PODS[pod][1]


def address_of(pod: str) -> str:
    return f"192.168.0.{PODS[pod][2]}"


class Sink:
    """A pod's sockets and ICMP that keep what they get."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def deliver(self, packet: Packet) -> Drop | None:
        self.got.append(packet.data)
        return None


class World:
    """One node with three pods in two namespaces; made once, its policies change."""

    def __init__(self) -> None:
        self.net = CalicoSegment(1, tunnel=False)
        self.kernel = self.net.kernels[0]
        self.root = self.kernel.root
        self.pods = {name: self.net.pod(0, PODS[name][2], name) for name in PODS}
        for pod in self.pods.values():
            self.net.ping(pod, NODE)
            self.net.ping(self.root, format_ip(pod.addrs()[1].ip))
        self.sinks: dict[str, Sink] = {}
        for name, pod in (*self.pods.items(), ("host", self.root)):
            sink = self.sinks[name] = pod.sockets = Sink()
            pod.icmp.receive = sink.deliver
        self.plane = Dataplane(self.root)
        self.port = 10000
        base = [namespace_profile({"metadata": {"name": n, "labels": NAMESPACES[n]}})
                for n in NAMESPACES]  # fmt: skip
        base += [self._endpoint(name) for name in PODS]
        base.append(new_resource("Node", "kube-0", {"bgp": {"ipv4Address": f"{NODE}/24"}}))
        self.base = base

    def _endpoint(self, name: str) -> Object:
        namespace, labels, host, ports = PODS[name]
        pod = {"metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {}}
        spec = {
            "orchestrator": "k8s", "node": "kube-0", "pod": name, "endpoint": "eth0",
            "interfaceName": f"cali{host:011d}", "ipNetworks": [f"192.168.0.{host}/32"],
            "profiles": [f"kns.{namespace}"],
            "ports": [{"name": n, "protocol": p, "port": v} for (n, p), v in ports.items()],
        }  # fmt: skip
        return new_resource(
            "WorkloadEndpoint", endpoint_name("kube-0", "k8s", name), spec,
            namespace=namespace, labels=endpoint_labels(pod),
        )  # fmt: skip

    def items(self, policies: list[Object]) -> dict[str, KVPair]:
        """The datastore with these policies in it."""
        items = {}
        for resource in (*self.base, *(prepare(policy) for policy in policies)):
            meta = resource["metadata"]
            key = resource_key(resource["kind"], meta["name"], meta.get("namespace", ""))
            items[key] = KVPair(key, resource, 1)
        return items

    def install(self, policies: list[Object]) -> None:
        state = read_state(self.items(policies), "kube-0")
        assert state.refused == ()
        assert self.plane.apply(compute(state))

    def passes(self, src: str, dst: str, proto: str, port: int) -> bool:
        """Send one first packet; True if it arrives."""
        self.port = self.port + 1 if self.port < 60000 else 10000
        a = parse_ip(NODE if src == "host" else address_of(src))
        b = parse_ip(NODE if dst == "host" else address_of(dst))
        if proto == "UDP":
            number, body = 17, udp.Udp(self.port, port, b"x").emit(a, b)
        elif proto == "TCP":
            number, body = 6, tcp.Tcp(self.port, port, 1, 0, tcp.SYN, 100).emit(a, b)
        else:
            number, body = 1, icmpv4.echo_request(self.port, 1, b"x").emit()
        sender = self.root if src == "host" else self.pods[src]
        sink = self.sinks[dst]
        sink.got.clear()
        # As a stranger: nothing of an earlier packet speaks for this one.
        for connection in list(self.root.netfilter.conntrack):
            self.root.netfilter.conntrack.delete(connection)
        sender.output(ipv4.build(a, b, number, body))
        self.net.settle()
        return bool(sink.got)
