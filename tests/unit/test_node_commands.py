"""Transcripts of a node's commands on a real kernel with pods behind cni0.

Formats are those of Debian 12's iproute2, net-tools, bridge-utils, iputils and busybox.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from typing import TYPE_CHECKING

import pytest

from agents.cni.errors import CniError
from agents.cni.plugin import NodeCni
from emulator.addr import Prefix, parse_ip
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.runtime.clock import real_clock
from emulator.runtime.stack import StackNetwork
from emulator.shell.context import Buffer, ShellContext
from emulator.shell.devices import ProcSys
from emulator.shell.files import DiskFiles
from emulator.shell.registry import run_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from emulator.netstack.netns import NetNs

SUBNET_ENV = (
    "FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.59.1/24\n"
    "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)


class Node:
    """A kernel with eth0, flannel.1 and two pods, as flannel and the CNI leave it."""

    def __init__(self, root: Path, era: str) -> None:
        loop = asyncio.get_running_loop()
        self.root, self.era = root, era
        rng = random.Random(3)
        self.kernel = Kernel("w1", clock=loop.time, rng=rng)
        self._handle: asyncio.Handle | None = None
        self._loop = loop
        self.kernel.on_work = self._soon
        ns = self.kernel.root
        ns.link_add("eth0", "dummy", mac=b"\x02\0\0\0\0\x01")
        ns.link_set("eth0", up=True)
        broadcast = parse_ip("172.17.4.255")
        ns.addr_add("eth0", parse_ip("172.17.4.201"), 24, broadcast=broadcast)
        gateway = parse_ip("172.17.4.1")
        ns.route_replace(Route(Prefix(0, 0), dev="eth0", gateway=gateway))
        (root / "run/flannel").mkdir(parents=True)
        (root / "run/flannel/subnet.env").write_text(SUBNET_ENV)
        self.cni = NodeCni(self.kernel, root, era=era, rng=rng)
        for number in (1, 2):
            pod = self.kernel.netns_add(f"cni-p{number}")
            pod.link_set("lo", up=True)
            self.cni.add(f"p{number}", f"cni-p{number}")
        self.networks: dict[str, StackNetwork] = {}

    def _soon(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_soon(self._run)

    def _run(self) -> None:
        at = self.kernel.get_timer()
        if at is not None and at <= self._loop.time():
            self.kernel.handle_timer()
            at = self.kernel.get_timer()
        if at is not None:
            self._handle = self._loop.call_at(at, self._run)

    def close(self) -> None:
        self.kernel.on_work = lambda: None
        if self._handle is not None:
            self._handle.cancel()

    def network(self, ns: NetNs) -> StackNetwork:
        return self.networks.setdefault(ns.name, StackNetwork(ns))

    async def run(
        self, line: str, *, pod: int = 0, style: str = "gnu", interrupt_after_s: float = 0.0
    ) -> tuple[int, str, str]:
        ns = self.kernel.netns(f"cni-p{pod}") if pod else self.kernel.root
        out, err = Buffer(), Buffer()
        context = ShellContext(
            kernel=self.kernel,
            ns=ns,
            network=self.network(ns),
            files=DiskFiles(self.root, generated=ProcSys(ns), on_write=ProcSys(ns).write),
            hostname="w1",
            env={},
            stdout=out,
            stderr=err,
            clock=real_clock(),
            rng=random.Random(1),
            style=style,
            era=self.era,
        )
        if interrupt_after_s:
            self._loop.call_later(interrupt_after_s, context.interrupt.set)
        async with asyncio.timeout(20):
            status = await run_command(context, ["sh", "-c", line])
        return status, out.text, err.text

    async def out(self, line: str, *, pod: int = 0, style: str = "gnu") -> str:
        status, out, err = await self.run(line, pod=pod, style=style)
        assert (status, err) == (0, ""), err
        return out


@contextlib.contextmanager
def a_node(root: Path, era: str = "modern") -> Iterator[Node]:
    node = Node(root, era)
    try:
        yield node
    finally:
        node.close()


async def test_ip_route_prints_as_iproute2(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        assert await node.out("ip route") == (
            "default via 172.17.4.1 dev eth0 \n"
            "10.2.59.0/24 dev cni0 proto kernel scope link src 10.2.59.1 \n"
            "172.17.4.0/24 dev eth0 proto kernel scope link src 172.17.4.201 \n"
        )
        assert await node.out("ip r get 10.2.59.2") == (
            "10.2.59.2 dev cni0 src 10.2.59.1 uid 0 \n    cache \n"
        )
        assert await node.out("ip route get 8.8.8.8") == (
            "8.8.8.8 via 172.17.4.1 dev eth0 src 172.17.4.201 uid 0 \n    cache \n"
        )
        assert await node.out("ip route show dev cni0") == (
            "10.2.59.0/24 proto kernel scope link src 10.2.59.1 \n"
        )
        assert await node.out("ip route", pod=1) == (
            "default via 10.2.59.1 dev eth0 \n"
            "10.2.0.0/16 via 10.2.59.1 dev eth0 \n"
            "10.2.59.0/24 dev eth0 proto kernel scope link src 10.2.59.2 \n"
        )
        assert await node.out("ip route", style="busybox") == (
            "default via 172.17.4.1 dev eth0 \n"
            "10.2.59.0/24 dev cni0 scope link  src 10.2.59.1 \n"
            "172.17.4.0/24 dev eth0 scope link  src 172.17.4.201 \n"
        )


async def test_routes_of_2018_have_double_blanks(tmp_path: Path) -> None:
    with a_node(tmp_path, "2017") as node:
        await node.out("ip route add blackhole 192.168.145.64/26 proto bird")
        assert await node.out("ip route | grep -v default") == (
            "10.2.59.0/24 dev cni0  proto kernel  scope link  src 10.2.59.1 \n"
            "172.17.4.0/24 dev eth0  proto kernel  scope link  src 172.17.4.201 \n"
            "blackhole 192.168.145.64/26  proto bird \n"
        )


async def test_links_and_addresses_of_a_pod_in_2017(tmp_path: Path) -> None:
    with a_node(tmp_path, "2017") as node:
        text = await node.out("ip addr", pod=1)
        assert re.sub(r"@if\d+", "@ifN", text.split("\n", 4)[4]) == (
            "3: eth0@ifN: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP "
            "group default \n"
            "    link/ether 0a:58:0a:02:3b:02 brd ff:ff:ff:ff:ff:ff\n"
            "    inet 10.2.59.2/24 scope global eth0\n"
            "       valid_lft forever preferred_lft forever\n"
        )
        assert (await node.out("ifconfig cni0")).startswith(
            "cni0: flags=4163<UP,BROADCAST,RUNNING,MULTICAST>  mtu 1450\n"
            "        inet 10.2.59.1  netmask 255.255.255.0  broadcast 0.0.0.0\n"
            "        ether 0a:58:0a:02:3b:01  txqueuelen 1000  (Ethernet)\n"
        )
        text = await node.out("brctl show")
        assert re.sub(r"veth[0-9a-f]{8}", "vethX", text) == (
            "bridge name\tbridge id\t\tSTP enabled\tinterfaces\n"
            "cni0\t\t8000.0a580a023b01\tno\t\tvethX\n\t\t\t\t\t\t\tvethX\n"
        )


async def test_links_and_addresses_of_today(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        text = await node.out("ip addr show lo")
        assert text == (
            "1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default "
            "qlen 1000\n"
            "    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00\n"
            "    inet 127.0.0.1/8 scope host lo\n"
            "       valid_lft forever preferred_lft forever\n"
        )
        assert "inet 10.2.59.1/24 brd 10.2.59.255 scope global cni0\n" in await node.out("ip a")
        assert re.search(r"^2: eth0@if\d+: ", await node.out("ip link", pod=1), re.MULTILINE)
        brief = await node.out("ip -br addr show eth0")
        assert brief == "eth0             UNKNOWN        172.17.4.201/24 \n"
        assert "mode DEFAULT group default" in await node.out("ip link show cni0")
        assert "RX:  bytes packets errors dropped" in await node.out("ip -s link show cni0")
        assert len((await node.out("ip -o -4 addr")).splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "status", "err"),
    [
        ("ip foo", 1, 'Object "foo" is unknown, try "ip help".\n'),
        ("ip route foo", 255, 'Command "foo" is unknown, try "ip route help".\n'),
        ("ip addr show dev nope", 1, 'Device "nope" does not exist.\n'),
        ("ip link del foo", 1, 'Cannot find device "foo"\n'),
        ("ip route del 9.9.9.0/24", 2, "RTNETLINK answers: No such process\n"),
        ("ip route add 10.9.9.0/24 via 1.2.3.4 dev eth0 table nope", 2, None),
        ("ip route get 1.2.3", 1, 'Error: any valid prefix is expected rather than "1.2.3".\n'),
        ("ip -bogus", 255, 'Option "-bogus" is unknown, try "ip -help".\n'),
        ("ping", 1, "ping: usage error: Destination address required\n"),
        ("ping -c x 1.1.1.1", 1, "ping: invalid argument: 'x'\n"),
        ("ping -c 1 nohost.invalid", 2, "ping: nohost.invalid: Name or service not known\n"),
        ("brctl show nope", 1, "bridge nope does not exist!\n"),
        ("ifconfig nope", 1, "nope: error fetching interface information: Device not found\n"),
        ("nosuch", 127, "sh: 1: nosuch: not found\n"),
    ],
)
async def test_wrong_commands_say_what_the_tool_says(
    tmp_path: Path, line: str, status: int, err: str | None
) -> None:
    with a_node(tmp_path) as node:
        got, _, text = await node.run(line)
        assert got == status, text
        if err is not None:
            assert text == err


async def test_ping_reaches_a_pod_and_counts(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        out = await node.out("ping -c 2 -i 0.05 10.2.59.2")
        lines = out.splitlines()
        assert lines[0] == "PING 10.2.59.2 (10.2.59.2) 56(84) bytes of data."
        assert re.fullmatch(r"64 bytes from 10\.2\.59\.2: icmp_seq=1 ttl=64 time=\S+ ms", lines[1])
        assert lines[4] == "--- 10.2.59.2 ping statistics ---"
        assert re.fullmatch(
            r"2 packets transmitted, 2 received, 0% packet loss, time \d+ms", lines[5]
        )
        assert re.fullmatch(r"rtt min/avg/max/mdev = [\d.]+/[\d.]+/[\d.]+/[\d.]+ ms", lines[6])
        out = await node.out("ping -c 1 10.2.59.3", pod=1, style="busybox")
        assert out.startswith(
            "PING 10.2.59.3 (10.2.59.3): 56 data bytes\n64 bytes from 10.2.59.3: seq=0 ttl=64 time="
        )
        assert "1 packets transmitted, 1 packets received, 0% packet loss\n" in out


async def test_ping_into_a_blackhole_is_refused_at_once(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        await node.out("ip route add blackhole 10.9.0.0/16")
        status, out, err = await node.run("ping -c 1 10.9.0.1")
        assert (status, out, err) == (2, "", "ping: connect: Invalid argument\n")
        status, _, err = await node.run("ping -c 1 10.9.0.1", style="busybox")
        assert (status, err) == (1, "ping: sendto: Invalid argument\n")


async def test_ping_without_an_answer(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        status, out, _ = await node.run("ping -c 1 -W 0.1 10.2.59.77")
        assert status == 1
        assert out == (
            "PING 10.2.59.77 (10.2.59.77) 56(84) bytes of data.\n\n"
            "--- 10.2.59.77 ping statistics ---\n"
            "1 packets transmitted, 0 received, 100% packet loss, time 0ms\n\n"
        )
        await node.out("ip route del default")
        status, out, err = await node.run("ping -c1 8.8.8.8")
        assert (status, out, err) == (2, "", "ping: connect: Network is unreachable\n")
        status, _, err = await node.run("ping -c1 8.8.8.8", style="busybox")
        assert (status, err) == (1, "ping: sendto: Network is unreachable\n")


async def test_an_interrupted_ping_prints_its_statistics(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        status, out, _ = await node.run("ping 10.2.59.2", interrupt_after_s=0.05)
        # 130 is the shell around it, which the interrupt ends as well.
        assert status == 130
        assert "1 packets transmitted, 1 received, 0% packet loss" in out


async def test_traceroute_shows_the_hop_between_pods_and_beyond(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        out = await node.out("traceroute -n -q 1 172.17.4.201", pod=1)
        assert out.splitlines()[0] == (
            "traceroute to 172.17.4.201 (172.17.4.201), 30 hops max, 60 byte packets"
        )
        assert re.fullmatch(r" 1  172\.17\.4\.201  [\d.]+ ms", out.splitlines()[1])
        out = await node.out("traceroute -n 10.2.59.3", pod=1)
        assert re.fullmatch(r" 1  10\.2\.59\.3(  [\d.]+ ms){3}", out.splitlines()[1])


async def test_verbs_change_the_kernel(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        await node.out(
            "ip link add flannel.1 type vxlan id 1 local 172.17.4.201 dev eth0 "
            "dstport 8472 nolearning"
        )
        await node.out("ip addr add 10.2.59.0/32 dev flannel.1; ip link set flannel.1 up mtu 1450")
        await node.out("ip route replace 10.2.60.0/24 via 10.2.60.0 dev flannel.1 onlink")
        assert "10.2.60.0/24 via 10.2.60.0 dev flannel.1 onlink \n" in await node.out("ip route")
        await node.out("ip neigh replace 10.2.60.0 lladdr 02:00:00:00:00:09 dev flannel.1")
        assert await node.out("ip neigh show dev flannel.1") == (
            "10.2.60.0 lladdr 02:00:00:00:00:09 PERMANENT \n"
        )
        await node.out("bridge fdb replace 02:00:00:00:00:09 dev flannel.1 dst 172.17.4.202")
        assert await node.out("bridge fdb show dev flannel.1") == (
            "02:00:00:00:00:09 dst 172.17.4.202 self permanent\n"
        )
        assert "vxlan id 1 local 172.17.4.201 dev eth0" in await node.out(
            "ip -d link show flannel.1"
        )
        await node.out("ip link del flannel.1")
        assert "flannel.1" not in await node.out("ip link")


async def test_iptables_and_files_are_the_node_s(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        assert await node.out("cat /run/flannel/subnet.env") == SUBNET_ENV
        assert await node.out("cat /proc/sys/net/ipv4/ip_forward") == "1\n"
        assert await node.out("sysctl net.ipv4.ip_forward") == "net.ipv4.ip_forward = 1\n"
        await node.out("iptables -t nat -A POSTROUTING -s 10.2.0.0/16 -j MASQUERADE")
        assert "-A POSTROUTING -s 10.2.0.0/16 -j MASQUERADE\n" in await node.out("iptables-save")
        assert "MASQUERADE" in await node.out("iptables -t nat -nL | grep 10.2")
        status, _, _ = await node.run("cat /../../etc/shadow")
        assert status == 1


async def test_netns_exec_runs_inside_a_pod(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        assert await node.out("ip netns") == "cni-p2\ncni-p1\n"
        assert "10.2.59.2/24" in await node.out("ip netns exec cni-p1 ip addr")
        assert "10.2.59.3/24" in await node.out("ip -n cni-p2 addr")


async def test_nc_curl_and_ss_meet_on_the_emulated_network(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        listener = asyncio.create_task(node.run("nc -l -p 7000", pod=2))
        while "7000" not in (await node.out("ss -tln", pod=2)):
            await asyncio.sleep(0)
        assert (await node.out("ss -tln", pod=2)).splitlines()[1].split() == [
            *("LISTEN", "0", "100", "0.0.0.0:7000", "0.0.0.0:*"),
        ]
        assert "tcp        0      0 0.0.0.0:7000" in await node.out("netstat -tln", pod=2)
        await node.out("echo hello | nc -w 1 10.2.59.3 7000", pod=1)
        assert (await listener)[1] == "hello\n"
        status, _, err = await node.run("curl -sS http://10.2.59.3:81/", pod=1)
        assert status == 7
        assert "Failed to connect to 10.2.59.3 port 81 after" in err
        status, _, err = await node.run("nc -zv 10.2.59.3 81", pod=1)
        assert (status, err) == (
            1,
            "nc: connect to 10.2.59.3 port 81 (tcp) failed: Connection refused\n",
        )


async def test_cni_is_idempotent_checks_and_gives_back(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        again = node.cni.add("p1", "cni-p1")
        assert again.ip == "10.2.59.2"
        node.cni.check("p1", "cni-p1")
        node.kernel.netns("cni-p1").route_del(Route(Prefix(0, 0)))
        with pytest.raises(CniError, match=r"Expected Route 0\.0\.0\.0/0 not found"):
            node.cni.check("p1", "cni-p1")
        assert node.cni.collect(["p2"]) == ("p1",)
        node.cni.delete("p1", "cni-p1")
        names = {path.name for path in (tmp_path / "var/lib/cni/networks/cbr0").iterdir()}
        assert names == {"10.2.59.3", "last_reserved_ip.0", "lock"}
        assert "eth0" not in await node.out("ip link", pod=1)


async def test_a_changed_subnet_is_refused_as_the_real_plugin_does(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        (tmp_path / "run/flannel/subnet.env").write_text(SUBNET_ENV.replace(".59.", ".60."))
        node.kernel.netns_add("cni-p3")
        with pytest.raises(
            CniError, match=r'"cni0" already has an IP address different from 10\.2\.60\.1/24'
        ):
            node.cni.add("p3", "cni-p3")
        networks = tmp_path / "var/lib/cni/networks/cbr0"
        assert not (networks / "10.2.60.2").exists()


async def test_without_flannel_s_masquerade_the_bridge_plugin_brings_its_own(
    tmp_path: Path,
) -> None:
    with a_node(tmp_path) as node:
        env = SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false")
        (tmp_path / "run/flannel/subnet.env").write_text(env)
        node.kernel.netns_add("cni-p3")
        node.cni.add("p3", "cni-p3")
        rules = await node.out("iptables-save -t nat | grep CNI-")
        chain = re.search(r"^:(CNI-[0-9a-f]{24}) - ", rules)
        assert chain is not None
        assert rules.splitlines()[1:] == [
            f'-A POSTROUTING -s 10.2.59.4/32 -m comment --comment "name: \\"cbr0\\" id: \\"p3\\""'
            f" -j {chain[1]}",
            f"-A {chain[1]} -d 10.2.59.0/24 -m comment --comment "
            '"name: \\"cbr0\\" id: \\"p3\\"" -j ACCEPT',
            f"-A {chain[1]} ! -d 224.0.0.0/4 -m comment --comment "
            '"name: \\"cbr0\\" id: \\"p3\\"" -j MASQUERADE',
        ]
        node.cni.delete("p3", "cni-p3")
        assert (await node.run("iptables-save -t nat | grep CNI-"))[1] == ""


async def test_per_device_settings_are_files_that_can_be_read_and_written(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        await node.out("ip link add v0 type veth peer name v1")
        path = "/proc/sys/net/ipv4/conf/v0/proxy_arp"
        assert await node.out(f"cat {path}") == "0\n"
        await node.out(f"echo 1 > {path}")
        assert (
            await node.out("sysctl net.ipv4.conf.v0.proxy_arp")
            == "net.ipv4.conf.v0.proxy_arp = 1\n"
        )
        await node.out("sysctl -w net.ipv4.neigh.v0.proxy_delay=0")
        assert await node.out("cat /proc/sys/net/ipv4/neigh/v0/proxy_delay") == "0\n"
        status, _, err = await node.run("sysctl net.ipv4.conf.nosuch.proxy_arp")
        assert (status, "No such file" in err) == (255, True)


async def test_tunnels_are_shown_under_both_commands(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        await node.out("ip link add tunl0 type ipip")
        await node.out("ip tunnel add t1 mode ipip local 10.0.0.1 remote 10.0.0.2 ttl 7")
        assert await node.out("ip tunnel show") == (
            "tunl0: any/ip remote any local any ttl inherit nopmtudisc\n"
            "t1: ip/ip remote 10.0.0.2 local 10.0.0.1 ttl 7 nopmtudisc\n"
        )
        assert "ipip any remote any local any ttl inherit" in await node.out(
            "ip -d link show tunl0"
        )


async def test_a_multipath_route_is_typed_and_shown(tmp_path: Path) -> None:
    with a_node(tmp_path) as node:
        await node.out(
            "ip link add d0 type dummy; ip link set d0 up; ip addr add 10.9.0.1/24 dev d0"
        )
        await node.out(
            "ip route add 10.5.0.0/16 proto 12 nexthop via 10.9.0.2 nexthop via 10.9.0.3"
        )
        assert (await node.out("ip route show 10.5.0.0/16")).splitlines() == [
            "10.5.0.0/16 proto bird ",
            "\tnexthop via 10.9.0.2 dev d0 weight 1 ",
            "\tnexthop via 10.9.0.3 dev d0 weight 1 ",
        ]
