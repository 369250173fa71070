"""What netfilter costs: ``python -m tests.bench.bench_netfilter [services]``.

A kube-proxy rule set of many services, three endpoints each: time to load it, and per packet
through PREROUTING, FORWARD and POSTROUTING.
"""

from __future__ import annotations

import random
import struct
import sys
from time import perf_counter

from emulator.netstack.netfilter import Netfilter
from emulator.netstack.packet import AddressType, Hook, Packet

ENDPOINTS = 3
ROUNDS = 4000


class View:
    def address_type(self, ip: int) -> AddressType:
        return AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        return 0xAC1104C9

    def invalidate_flows(self) -> None:
        return


def ruleset(services: int) -> str:
    """Return restore text in kube-proxy's form."""
    chains = [":KUBE-SERVICES - [0:0]", ":KUBE-MARK-MASQ - [0:0]", ":KUBE-POSTROUTING - [0:0]"]
    rules = [
        "-A PREROUTING -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    ]
    for n in range(services):
        name, vip = f"ns/svc{n}:p", f"10.3.{n >> 8}.{n & 255}"
        test = f'-m comment --comment "{name} cluster IP" -m tcp -p tcp -d {vip}/32 --dport 80'
        chains.append(f":KUBE-SVC-{n:016d} - [0:0]")
        rules.append(f"-A KUBE-SERVICES {test} -j KUBE-SVC-{n:016d}")
        rules.append(f"-A KUBE-SVC-{n:016d} {test} ! -s 10.2.0.0/16 -j KUBE-MARK-MASQ")
        for end in range(ENDPOINTS):
            sep, ip = f"KUBE-SEP-{n:014d}{end:02d}", f"10.2.{n & 255}.{end + 2}"
            left = ENDPOINTS - end
            dice = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
            chains.append(f":{sep} - [0:0]")
            rules.append(f'-A KUBE-SVC-{n:016d} -m comment --comment "{name}"{dice} -j {sep}')
            rules.append(f"-A {sep} -m comment --comment {n} -s {ip}/32 -j KUBE-MARK-MASQ")
            rules.append(f"-A {sep} -m tcp -p tcp -j DNAT --to-destination {ip}:80")
    return "\n".join(["*nat", *chains, *rules, "COMMIT", ""])


POD, VIPS = 0x0A02C805, 0x0A030000


def segment(src: int, sport: int, dst: int, dport: int, flags: int = 2) -> bytes:
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 40, 1, 0, 64, 6, 1, src, dst)
    return head + struct.pack(">HHIIBBHHH", sport, dport, 1, 1, 0x50, flags, 1000, 1, 0)


def forward(netfilter: Netfilter, data: bytes) -> Packet:
    packet = Packet(data)
    netfilter.hook(Hook.PREROUTING, packet, "cni0", "")
    netfilter.hook(Hook.FORWARD, packet, "cni0", "eth0")
    netfilter.hook(Hook.POSTROUTING, packet, "", "eth0")
    return packet


def main(services: int = 100) -> None:
    netfilter = Netfilter(View(), clock=perf_counter, rng=random.Random(1))
    text = ruleset(services)
    for label in ("restore, first time", "restore, the same again"):
        start = perf_counter()
        netfilter.restore(text)
        took = (perf_counter() - start) * 1e3
        print(f"{label:28} {took:8.1f} ms  ({text.count('-A ')} rules)")
    packets = [segment(POD, 1024 + n, VIPS + n % services, 80) for n in range(services + ROUNDS)]
    for label, part in (("new, chains cold", packets[:services]), ("new", packets[services:])):
        start = perf_counter()
        for data in part:
            forward(netfilter, data)
        print(f"{label:28} {(perf_counter() - start) / len(part) * 1e6:8.1f} us a packet")
    connection = forward(netfilter, segment(POD, 1023, VIPS, 80)).ct
    assert connection is not None
    reply = connection.reply
    forward(netfilter, segment(reply.src, reply.sport, reply.dst, reply.dport, 0x12))
    data = segment(POD, 1023, VIPS, 80, 0x10)
    start = perf_counter()
    for _ in range(ROUNDS):
        forward(netfilter, data)
    print(f"{'known connection':28} {(perf_counter() - start) / ROUNDS * 1e6:8.1f} us a packet")
    now = perf_counter()
    start = perf_counter()
    for _ in range(100_000):
        connection.refresh(now, 64, 90_000)
    print(f"{'Connection.refresh':28} {(perf_counter() - start) * 1e4:8.1f} ns")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
