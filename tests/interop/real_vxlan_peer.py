"""Run in a network namespace of its own: a real kernel's vxlan device as the other node.

The emulated node's NIC is joined to it by a real UDP socket; what crosses is checked by Linux.
Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time

from emulator.addr import Prefix, parse_ip, parse_mac
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.netstack.sock.tcp import Endpoint

OUR_MAC, REAL_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
OURS, REAL = ("172.31.0.1", 8472), ("172.31.0.2", 8472)
TOTAL = 300_000

# The real node is a second namespace behind a veth: Linux sends no VXLAN to an address of its own.
NEAR = """
set -e
ip link set lo up
ip link add real0 type veth peer name eth0 netns {pid}
ip addr add 172.31.0.1/24 dev real0
ip link set real0 up
"""
FAR = f"""
set -e
ip link set lo up
ip addr add 172.31.0.2/24 dev eth0
ip link set eth0 up
ip link add flannel.1 address {REAL_MAC} mtu 1450 type vxlan id 1 local 172.31.0.2 dev eth0 \
    dstport 8472 nolearning
ip addr add 10.2.9.0/32 dev flannel.1
ip link set flannel.1 up
ip neigh add 10.2.1.0 lladdr {OUR_MAC} dev flannel.1 nud permanent
bridge fdb add {OUR_MAC} dev flannel.1 dst 172.31.0.1
ip route add 10.2.1.0/24 via 10.2.1.0 dev flannel.1 onlink
"""


# Without ``ethtool -K flannel.1 tx off gso off tso off`` Linux leaves inner checksums to a NIC that
# is not there.  STXCSUM, SGSO, STSO of linux/ethtool.h by SIOCETHTOOL.
OFFLOADS_OFF = """
import ctypes, fcntl, socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for dev in (b"flannel.1", b"eth0"):
    for command in (0x17, 0x24, 0x1F):
        value = ctypes.create_string_buffer(struct.pack("II", command, 0), 8)
        fcntl.ioctl(sock, 0x8946, struct.pack("16sP16x", dev, ctypes.addressof(value)))
"""
ECHO_SERVER = """
import socket
with socket.create_server(("10.2.9.0", 7000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)
"""


class Node:
    """The emulated node, with one pod."""

    def __init__(self) -> None:
        self.kernel = Kernel("node-0", clock=time.monotonic, rng=random.Random(1))
        root = self.kernel.root
        root.link_add("eth0", "underlay")
        root.link_set("eth0", up=True)
        root.addr_add("eth0", parse_ip("172.17.4.201"), 24)
        root.link_add(
            *("flannel.1", "vxlan"),
            mac=parse_mac(OUR_MAC),
            vni=1,
            local=parse_ip("172.17.4.201"),
            dev="eth0",
            learning=False,
        )
        root.link_set("flannel.1", up=True)
        root.addr_add("flannel.1", parse_ip("10.2.1.0"), 32)
        root.link_add("cni0", "bridge", mtu=1450)
        root.link_set("cni0", up=True)
        root.addr_add("cni0", parse_ip("10.2.1.1"), 24)
        self.peer = parse_ip("172.17.4.202")
        self.nic = root.device("eth0")
        self.nic.peer_set(self.peer, b"\x02\x00\x00\x00\x00\x02")
        there = parse_ip("10.2.9.0")
        root.neigh_replace("flannel.1", there, parse_mac(REAL_MAC))
        root.fdb_replace("flannel.1", parse_mac(REAL_MAC), self.peer)
        root.route_add(Route(Prefix(there, 24), gateway=there, dev="flannel.1", onlink=True))
        self.pod = self.kernel.netns_add("pod")
        self.pod.link_add("eth0", "veth", mtu=1450, peer="veth0", peer_ns=root)
        root.link_set("veth0", master="cni0", up=True)
        self.pod.link_set("eth0", up=True)
        self.pod.addr_add("eth0", parse_ip("10.2.1.2"), 24)
        self.pod.route_add(Route(Prefix(0, 0), gateway=parse_ip("10.2.1.1")))
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(OURS)
        self.sock.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.sock, selectors.EVENT_READ)

    def turn(self) -> None:
        """Send what waits, wait a moment, take what came."""
        at = self.kernel.get_timer()
        if at is not None and at <= time.monotonic():
            self.kernel.handle_timer()
        for item in self.nic.take_egress():
            size = item.segment_size or len(item.payload)
            for start in range(0, len(item.payload), size):
                self.sock.sendto(item.payload[start : start + size], REAL)
        self.selector.select(0.002)
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                payload, source = self.sock.recvfrom(65536)
                self.nic.receive_vxlan(self.peer, source[1], payload, 0)

    def until(self, ready, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"{ready} after {seconds} s")
            self.turn()


def main() -> None:
    """Ping the real kernel, let it ping us, and move bytes both ways over its TCP."""
    with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as far:
        try:
            converse(far.pid)
        finally:
            far.kill()


def converse(pid: int) -> None:
    """Everything once the other namespace exists."""
    there = ["nsenter", "-t", str(pid), "-n"]
    end = time.monotonic() + 5
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        if time.monotonic() > end:
            raise TimeoutError("no second namespace")
        time.sleep(0.01)
    subprocess.run(["sh", "-c", NEAR.format(pid=pid)], check=True)
    subprocess.run([*there, "sh", "-c", FAR], check=True)
    subprocess.run([*there, sys.executable, "-c", OFFLOADS_OFF], check=True)
    node = Node()
    answers = []
    sock = node.pod.sockets.ping_open()
    sock.send(parse_ip("10.2.9.0"), 1, bytes(1000))

    def answered() -> bool:
        answer = sock.receive()
        answers.extend([answer] if answer is not None else [])
        return bool(answers)

    node.until(answered)
    theirs = subprocess.Popen(
        [*there, "ping", "-c", "3", "-i", "0.2", "-n", "10.2.1.2"],
        stdout=subprocess.PIPE,
        text=True,
    )
    node.until(lambda: theirs.poll() is not None)
    ping_text = theirs.communicate()[0]

    server = subprocess.Popen(
        [*there, sys.executable, "-c", ECHO_SERVER], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    connection = node.pod.sockets.tcp_connect(Endpoint(parse_ip("10.2.9.0"), 7000))
    node.until(lambda: connection.connected)
    data = random.Random(2).randbytes(TOTAL)
    connection.send(data)
    got = bytearray()

    def all_back() -> bool:
        got.extend(connection.read())
        return len(got) >= TOTAL

    node.until(all_back)
    connection.close(now=time.monotonic())
    node.until(lambda: server.poll() is not None)
    server.communicate()
    print(
        json.dumps(
            {
                "ttl": answers[0].ttl,
                "ping": ping_text,
                "same": bytes(got) == data,
                "hits": node.kernel.flows.hits,
                "bad": node.kernel.root.drops["bad_checksum"].packets,
            }
        )
    )


if __name__ == "__main__":
    main()
