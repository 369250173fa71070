"""tcpdump reads what is captured, and says the same as our own one-line printer."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from emulator.addr import parse_ip
from emulator.netstack.sock.tcp import Endpoint
from emulator.wire import pcapng
from emulator.wire.describe import describe_frame
from tests.calico_kernels import CalicoSegment
from tests.joined_kernels import Segment


def tcpdump(data: bytes, *options: str) -> list[str]:
    """What tcpdump prints of a capture file."""
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    result = subprocess.run(
        ["tcpdump", "-n", "-t", "-S", "-r", "-", *options],
        input=data,
        capture_output=True,
        timeout=20,
        check=True,
    )
    return result.stdout.decode().splitlines()


class Recorder:
    """A capture as a file, and as our own lines."""

    def __init__(self, net: Segment, number: int, ns, dev: str) -> None:
        self.data = bytearray(pcapng.section_header() + pcapng.interface(dev))
        self.lines: list[str] = []
        net.kernels[number].capture(ns, dev, self._sink)

    def _sink(self, at: float, frame: bytes, outbound: bool) -> None:
        self.data += pcapng.packet(0, at, frame, outbound=outbound)
        self.lines.append(describe_frame(frame))


def test_a_pods_day_in_the_words_of_tcpdump() -> None:
    net = Segment()
    a, b = net.pod(0, 2), net.pod(1, 2)
    record = Recorder(net, 0, a, "eth0")
    net.ping(a, "10.2.2.2")
    net.ping(a, "10.2.2.2", ttl=1)
    net.ping(a, "8.8.8.8")
    sock = a.sockets.udp_bind(0, 0, Endpoint(parse_ip("10.2.2.2"), 9999))
    sock.send(b"closed")
    listener = b.sockets.tcp_listen(0, 5001)
    connection = a.sockets.tcp_connect(Endpoint(parse_ip("10.2.2.2"), 5001))
    net.settle()
    accepted = listener.accept()
    connection.send(b"hello" * 3000)
    net.advance(0.1)
    accepted.read()
    net.advance(1)
    connection.close(now=net.now)
    net.settle()
    a.sockets.tcp_connect(Endpoint(parse_ip("10.2.2.2"), 5002))
    net.advance(1)
    theirs = tcpdump(bytes(record.data))
    # A super-segment inside the host has no checksum yet; tcpdump does not look without -v.
    assert record.lines == theirs
    assert len(theirs) > 20


def test_the_nic_shows_vxlan() -> None:
    net = Segment()
    a = net.pod(0, 2)
    net.pod(1, 2)
    net.ping(a, "10.2.2.2")
    record = Recorder(net, 0, net.kernels[0].root, "eth0")
    net.ping(a, "10.2.2.2")
    theirs = tcpdump(bytes(record.data), "-T", "vxlan")
    ours = [line.replace(": IP 10.", "\nIP 10.") for line in record.lines]
    assert "\n".join(ours).splitlines() == theirs
    assert theirs[0].endswith(": VXLAN, flags [I] (0x08), vni 1")


def test_ip_in_ip_is_what_tcpdump_takes_it_for() -> None:
    net = CalicoSegment()
    a, b = net.pod(0, 2), net.pod(1, 3)
    wire, tunnel = Recorder(net, 0, "root", "eth0"), Recorder(net, 0, "root", "tunl0")
    net.ping(a, "192.168.0.67", size=8)
    lines = [line for line in tcpdump(bytes(wire.data), "-v") if not line.startswith("ARP")]
    text = " ".join(line.strip() for line in lines)
    assert "proto IPIP (4), length 56) 172.17.4.201 > 172.17.4.202: IP (tos 0x0, ttl 63" in text
    assert "192.168.0.2 > 192.168.0.67: ICMP echo request" in text
    assert "172.17.4.202 > 172.17.4.201: IP (tos 0x0, ttl 63" in text
    assert "bad cksum" not in text
    # The device itself has no Ethernet: bare packets.
    assert tunnel.lines

    # A stream through it: super-segments are cut at the NIC, each piece wrapped for itself.
    stream = Recorder(net, 0, "root", "eth0")
    listener = b.sockets.tcp_listen(0, 5001)
    connection = a.sockets.tcp_connect(Endpoint(parse_ip("192.168.0.67"), 5001))
    net.settle()
    accepted = listener.accept()
    connection.send(b"z" * 60000)
    net.advance(2)
    assert accepted.read() == b"z" * 60000
    seen = " ".join(line.strip() for line in tcpdump(bytes(stream.data), "-v"))
    assert "proto IPIP (4), length 1500)" in seen
    assert "incorrect" not in seen
    assert "bad cksum" not in seen
