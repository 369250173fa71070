"""Rules that look into sets and routing tables, on packets."""

from __future__ import annotations

import pytest

from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import Route
from emulator.netstack.netfilter import ipset
from emulator.netstack.packet import DropReason
from emulator.wire import ipv4, udp
from tests.calico_kernels import CalicoSegment


def received(net: CalicoSegment, pod, src: str, port: int) -> bool:
    """Whether a datagram from a remote pod reaches a pod of node 1."""
    got: list[bytes] = []
    pod.sockets.deliver = lambda packet: got.append(packet.data)
    a, b = parse_ip(src), parse_ip("192.168.0.67")
    inner = ipv4.build(a, b, 17, udp.Udp(5000, port, b"x").emit(a, b))
    outer = ipv4.build(net.node_ip(0), net.node_ip(1), 4, inner)
    net.kernels[1].root.device("eth0").receive_carrier(outer, 0)
    net.settle()
    return bool(got)


def world(rules: str) -> tuple[CalicoSegment, object, object]:
    net = CalicoSegment()
    pod = net.pod(1, 3)
    net.ping(net.kernels[1].root, "192.168.0.67")
    netfilter = net.kernels[1].root.netfilter
    sets = netfilter.sets
    sets.create("nets", "hash:net")
    sets.create("ports", "hash:ip,port")
    netfilter.restore(rules)
    return net, pod, sets


def test_a_set_decides_and_a_change_is_seen_at_once_by_a_cached_flow() -> None:
    net, pod, sets = world("*filter\n-A FORWARD -m set ! --match-set nets src -j DROP\nCOMMIT\n")
    assert not received(net, pod, "192.168.0.9", 53)
    sets.add("nets", "192.168.0.0/28")
    assert received(net, pod, "192.168.0.9", 53)
    assert received(net, pod, "192.168.0.9", 53)
    sets.add("nets", "192.168.0.9", nomatch=True)
    assert not received(net, pod, "192.168.0.9", 53)


def test_addresses_and_ports_are_looked_up_together() -> None:
    net, pod, sets = world(
        "*filter\n-A FORWARD -m set ! --match-set ports dst,dst -j DROP\nCOMMIT\n"
    )
    sets.add("ports", "192.168.0.67,udp:53")
    assert received(net, pod, "192.168.0.9", 53)
    assert not received(net, pod, "192.168.0.9", 54)
    sets.replace("ports", ("192.168.0.67,udp:54", "192.168.0.67,tcp:53"))
    assert not received(net, pod, "192.168.0.9", 53)
    assert received(net, pod, "192.168.0.9", 54)


def test_a_swap_puts_another_set_under_the_name_rules_know() -> None:
    net, pod, sets = world("*filter\n-A FORWARD -m set --match-set nets src -j DROP\nCOMMIT\n")
    sets.create("spare", "hash:net")
    sets.add("spare", "192.168.0.9")
    assert received(net, pod, "192.168.0.9", 53)
    sets.swap("nets", "spare")
    assert not received(net, pod, "192.168.0.9", 53)
    with pytest.raises(UsageError, match="in use by a kernel component"):
        sets.destroy("nets")
    sets.destroy("spare")


def test_a_set_is_never_larger_than_it_was_made() -> None:
    _, _, sets = world("*filter\nCOMMIT\n")
    sets.create("small", "hash:ip", maxelem=2)
    with pytest.raises(UsageError, match="Hash is full"):
        sets.replace("small", ("1.1.1.1", "1.1.1.2", "1.1.1.3"))
    with pytest.raises(UsageError, match=f"at most {ipset.MAX_MAXELEM}"):
        sets.create("large", "hash:ip", maxelem=ipset.MAX_MAXELEM + 1)


def test_a_pod_that_borrows_an_address_is_stopped_before_it_is_tracked() -> None:
    net = CalicoSegment(1)
    pod = net.pod(0, 2)
    root = net.kernels[0].root
    root.netfilter.restore("*raw\n-A PREROUTING -i cali+ -m rpfilter --invert -j DROP\nCOMMIT\n")
    assert net.ping(pod, "172.17.4.201") is not None
    pod.addr_add("eth0", parse_ip("192.168.0.77"), 32)
    dst = parse_ip("172.17.4.201")
    body = udp.Udp(5000, 9, b"forged").emit(parse_ip("192.168.0.77"), dst)
    pod.output(ipv4.build(parse_ip("192.168.0.77"), dst, 17, body))
    assert root.drops[DropReason.NETFILTER_DROP].packets == 1


def test_only_the_addresses_of_the_device_are_local_to_a_limited_addrtype() -> None:
    net = CalicoSegment(2)
    net.pod(1, 3)
    root = net.kernels[0].root
    root.netfilter.restore(
        "*nat\n-A POSTROUTING -o tunl0 -m addrtype ! --src-type LOCAL --limit-iface-out "
        "-m addrtype --src-type LOCAL -j MASQUERADE\nCOMMIT\n"
    )
    seen: list[bytes] = []
    net.kernels[1].capture("root", "tunl0", lambda _at, packet, out: out or seen.append(packet))
    root.route_add(Route(Prefix.parse("192.168.0.67/32"), gateway=net.node_ip(1), dev="tunl0",
                         onlink=True, src=net.node_ip(0)))  # fmt: skip
    assert net.ping(root, "192.168.0.67") is not None
    # The route asked for the node's address; the tunnel's is what the other node sees.
    assert ipv4.Ipv4.parse(seen[0]).src == parse_ip("192.168.0.0")
