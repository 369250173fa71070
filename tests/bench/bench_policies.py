"""Calico's forwarding through one kernel: ``python -m tests.bench.bench_policies [seconds]``.

IP-in-IP packets from another node for a pod, and a pod's answers, in batches of 64 as UDP_GRO
hands them over: without any rules, with felix's rules and conntrack, and with policies that select
the pod.  An established flow must cost the same in all three: its decision is remembered.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from agents.calico.felix.apply import Dataplane
from agents.calico.felix.compute import compute
from agents.calico.felix.model import (
    Endpoint,
    Host,
    NodeInfo,
    Policy,
    PolicyRule,
    Pool,
    Profile,
    Side,
    State,
)
from agents.calico.selector import parse_selector
from emulator.addr import Prefix, parse_ip
from emulator.wire import ipip, ipv4, udp
from tests.bench.bench_forwarding import Sink, measure
from tests.calico_kernels import CalicoSegment

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 64
PAYLOAD = 64
POLICIES = 100
ALLOW = (PolicyRule("Allow"),)


def state(net: CalicoSegment, policies: int) -> State:
    """One local pod, a remote one, and policies the last of which lets the traffic pass."""
    endpoints = tuple(
        Endpoint(
            *(f"e{node}", "default", f"kube-{node}", f"cali{host:011d}"),
            (net.subnet(node).host(host),),
            {"app": f"a{node}", "projectcalico.org/namespace": "default"},
            ("kns.default",),
        )
        for node, host in ((0, 2), (1, 3))
    )
    closed = PolicyRule("Allow", "tcp", destination=Side(ports=("1",)))
    opened = PolicyRule("Allow", "udp", source=Side(selector=parse_selector("app == 'a1'")))
    written = tuple(
        Policy(
            f"default/p{number:04d}",
            parse_selector("app == 'a0'"),
            float(number),
            ("Ingress",),
            (opened if number == policies - 1 else closed,),
        )
        for number in range(policies)
    )
    return State(
        "kube-0",
        Host(addresses=(net.node_ip(0),)),
        endpoints=endpoints,
        policies=written,
        profiles=(Profile("kns.default", ALLOW, ALLOW),),
        pools=(Pool(Prefix.parse("192.168.0.0/16"), ipip="Always", nat_outgoing=True),),
        nodes=tuple(
            NodeInfo(f"kube-{n}", net.node_ip(n), Prefix.of(net.node_ip(n), 24),
                     net.subnet(n).network)
            for n in (0, 1)
        ),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=1.0)
    seconds = parser.parse_args([] if argv is None else argv).seconds
    print(f"UDP of {PAYLOAD} bytes in IP in IP, batches of {BATCH}")
    for title, policies in (
        ("no rules", None), ("felix", 0), (f"felix, {POLICIES} policies", POLICIES)
    ):  # fmt: skip
        net = CalicoSegment(2)
        pod = net.pod(0, 2)
        root = net.kernels[0].root
        plane = Dataplane(root)
        if policies is not None:
            began = time.perf_counter()
            plane.apply(compute(state(net, policies)))
            took = (time.perf_counter() - began) * 1000
            print(f"{title + ': compute and apply':58} {took:12.1f} ms")
        run(net, pod, title, seconds)


def run(net: CalicoSegment, pod, title: str, seconds: float) -> None:
    """Measure one set of rules."""
    root = net.kernels[0].root
    net.ping(root, "192.168.0.2")
    net.ping(root, "172.17.4.202")
    nic, pod.sockets = root.device("eth0"), Sink()
    a, b = parse_ip("192.168.0.67"), parse_ip("192.168.0.2")
    body = udp.Udp(5000, 5001, bytes(PAYLOAD)).emit(a, b)
    packets = [
        ipip.encapsulate(
            ipv4.build(a, b, 17, body, ident=n * 977 & 0xFFFF, ttl=62),
            net.node_ip(1), net.node_ip(0), ident=n,
        )
        for n in range(BATCH)
    ]  # fmt: skip
    batch, size = b"".join(packets), len(packets[0])
    answer = ipv4.build(b, a, 17, udp.Udp(5001, 5000, bytes(PAYLOAD)).emit(b, a))

    def receive() -> None:
        nic.receive_carrier(batch, size)

    def slowly() -> None:
        net.kernels[0].invalidate_flows()
        nic.receive_carrier(packets[0], 0)

    def send() -> None:
        pod.output(answer)
        nic.take_egress()

    measure(f"{title}: slow path, tunnel to pod", seconds, 1, slowly)
    measure(f"{title}: flow cache, tunnel to pod", seconds, BATCH, receive)
    measure(f"{title}: flow cache, pod to tunnel, one by one", seconds, 1, send)
    assert pod.sockets.packets, "nothing arrived"


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
