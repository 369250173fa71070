"""Packets as one line each, in the words of ``tcpdump -n``."""

from __future__ import annotations

from typing import Final

from emulator.addr import format_ip, format_mac
from emulator.errors import WireError
from emulator.wire import arp, icmpv4, ipv4, tcp, udp, vxlan
from emulator.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, Frame

VXLAN_PORTS: Final = (vxlan.PORT_LINUX, vxlan.PORT_IANA)
# Tunnels in tunnels are described this deep; a forged packet could nest hundreds.
MAX_DEPTH: Final = 4

_FLAG_LETTERS: Final = (
    *((tcp.FIN, "F"), (tcp.SYN, "S"), (tcp.RST, "R"), (tcp.PSH, "P"), (tcp.ACK, ".")),
    *((tcp.URG, "U"), (tcp.ECE, "E"), (tcp.CWR, "W")),
)


def describe_frame(data: bytes, *, depth: int = 0) -> str:
    """Return one line for an Ethernet frame; malformed ones are named, never raised."""
    try:
        frame = Frame.parse(data)
        if frame.ethertype == ETHERTYPE_ARP:
            return _arp(frame.payload)
        if frame.ethertype == ETHERTYPE_IPV4:
            return describe_packet(frame.payload, depth=depth)
    except WireError as error:
        return f"[|ether] {error}"
    return (
        f"{format_mac(frame.src)} > {format_mac(frame.dst)}, ethertype {frame.ethertype:#06x},"
        f" length {len(data)}"
    )


def _arp(data: bytes) -> str:
    message = arp.Arp.parse(data)
    sender, target = format_ip(message.sender_ip), format_ip(message.target_ip)
    if message.op == arp.REQUEST:
        return f"ARP, Request who-has {target} tell {sender}, length {len(data)}"
    if message.op == arp.REPLY:
        return f"ARP, Reply {sender} is-at {format_mac(message.sender_mac)}, length {len(data)}"
    return f"ARP, op {message.op}, length {len(data)}"


def describe_packet(data: bytes, *, depth: int = 0) -> str:
    """Return one line for an IPv4 packet, e.g. ``IP 10.2.1.2 > 10.2.2.2: ICMP echo request …``."""
    try:
        packet = ipv4.Ipv4.parse(data)
    except WireError as error:
        return f"[|ip] {error}"
    src, dst = format_ip(packet.src), format_ip(packet.dst)
    if packet.frag & ipv4.OFFSET_MASK:
        return f"IP {src} > {dst}: ip-proto-{packet.proto}"
    try:
        if packet.proto == tcp.PROTO:
            return _tcp(src, dst, packet)
        if packet.proto == udp.PROTO:
            return _udp(src, dst, packet, depth)
        if packet.proto == 1:
            return f"IP {src} > {dst}: {_icmp(packet)}"
    except WireError as error:
        return f"IP {src} > {dst}: [|{_PROTO_NAMES.get(packet.proto, '')}] {error}"
    if packet.proto == 4 and depth < MAX_DEPTH:
        return f"IP {src} > {dst}: {describe_packet(packet.payload, depth=depth + 1)}"
    return f"IP {src} > {dst}: ip-proto-{packet.proto} {len(packet.payload)}"


_PROTO_NAMES: Final = {1: "icmp", tcp.PROTO: "tcp", udp.PROTO: "udp"}


def _tcp(src: str, dst: str, packet: ipv4.Ipv4) -> str:
    segment = tcp.Tcp.parse(packet.payload, packet.src, packet.dst, verify=False)
    letters = "".join(letter for bit, letter in _FLAG_LETTERS if segment.flags & bit) or "none"
    size = len(segment.payload)
    text = f"IP {src}.{segment.sport} > {dst}.{segment.dport}: Flags [{letters}]"
    if size or segment.flags & (tcp.SYN | tcp.FIN | tcp.RST):
        text += f", seq {segment.seq}"
        if size:
            text += f":{(segment.seq + size) & 0xFFFFFFFF}"
    if segment.flags & tcp.ACK:
        text += f", ack {segment.ack}"
    text += f", win {segment.window}"
    options = _tcp_options(packet.payload[20 : (packet.payload[12] >> 4) * 4])
    if options:
        text += f", options [{options}]"
    return f"{text}, length {size}"


def _tcp_options(data: bytes) -> str:
    out: list[str] = []
    position = 0
    while position < len(data):
        kind = data[position]
        if kind == tcp.OPT_END:
            out.append("eol")
            break
        if kind == tcp.OPT_NOP:
            out.append("nop")
            position += 1
            continue
        length = data[position + 1] if position + 1 < len(data) else 0
        if length < 2 or position + length > len(data):
            out.append(f"unknown-{kind}")
            break
        one = tcp.Options.parse(data[position : position + length])
        match kind:
            case tcp.OPT_MSS if one.mss is not None:
                out.append(f"mss {one.mss}")
            case tcp.OPT_WSCALE if one.wscale is not None:
                out.append(f"wscale {one.wscale}")
            case tcp.OPT_SACK_OK:
                out.append("sackOK")
            case tcp.OPT_SACK:
                edges = "".join(f"{{{left}:{right}}}" for left, right in one.sack)
                out.append(f"sack {len(one.sack)} {edges}")
            case tcp.OPT_TIMESTAMPS if one.timestamps is not None:
                out.append(f"TS val {one.timestamps.value} ecr {one.timestamps.echo}")
            case _:
                out.append(f"unknown-{kind} 0x{data[position + 2 : position + length].hex()}")
        position += length
    return ",".join(out)


def _udp(src: str, dst: str, packet: ipv4.Ipv4, depth: int) -> str:
    datagram = packet.payload
    if len(datagram) < udp.HEADER_LEN:
        raise WireError(f"truncated UDP header: {len(datagram)} bytes of {udp.HEADER_LEN}")
    sport = int.from_bytes(datagram[:2], "big")
    dport = int.from_bytes(datagram[2:4], "big")
    size = int.from_bytes(datagram[4:6], "big") - udp.HEADER_LEN
    text = f"IP {src}.{sport} > {dst}.{dport}: "
    if dport in VXLAN_PORTS and depth < MAX_DEPTH:
        outer = vxlan.Vxlan.parse(datagram[udp.HEADER_LEN :])
        inner = describe_frame(outer.frame, depth=depth + 1)
        return f"{text}VXLAN, flags [I] (0x08), vni {outer.vni}: {inner}"
    return f"{text}UDP, length {size}"


def _icmp(packet: ipv4.Ipv4) -> str:
    data = packet.payload
    if len(data) < icmpv4.HEADER_LEN:
        raise WireError(f"truncated ICMP header: {len(data)} bytes of {icmpv4.HEADER_LEN}")
    kind, code = data[0], data[1]
    tail = f", length {len(data)}"
    if kind in (icmpv4.ECHO_REQUEST, icmpv4.ECHO_REPLY):
        word = "request" if kind == icmpv4.ECHO_REQUEST else "reply"
        ident, seq = int.from_bytes(data[4:6], "big"), int.from_bytes(data[6:8], "big")
        return f"ICMP echo {word}, id {ident}, seq {seq}{tail}"
    if kind == icmpv4.TIME_EXCEEDED:
        if code == icmpv4.TTL:
            return f"ICMP time exceeded in-transit{tail}"
        return f"ICMP ip reassembly time exceeded{tail}"
    if kind == icmpv4.UNREACHABLE:
        return f"ICMP {_unreachable(code, data)}{tail}"
    return f"ICMP type-#{kind} code {code}{tail}"


def _unreachable(code: int, data: bytes) -> str:
    quoted = data[icmpv4.HEADER_LEN :]
    if len(quoted) < 20:
        return f"unreachable #{code}"
    dst = format_ip(int.from_bytes(quoted[16:20], "big"))
    proto = quoted[9]
    match code:
        case icmpv4.NET:
            return f"net {dst} unreachable"
        case icmpv4.HOST:
            return f"host {dst} unreachable"
        case icmpv4.PROTOCOL:
            return f"{dst} protocol {proto} unreachable"
        case icmpv4.PORT:
            start = (quoted[0] & 15) * 4
            port = int.from_bytes(quoted[start + 2 : start + 4], "big")
            name = _PROTO_NAMES.get(proto, f"protocol {proto}")
            return f"{dst} {name} port {port} unreachable"
        case icmpv4.FRAG_NEEDED:
            mtu = int.from_bytes(data[6:8], "big")
            suffix = f" (mtu {mtu})" if mtu else ""
            return f"{dst} unreachable - need to frag{suffix}"
        case icmpv4.NET_PROHIBITED:
            return f"net {dst} unreachable - admin prohibited"
        case icmpv4.HOST_PROHIBITED:
            return f"host {dst} unreachable - admin prohibited"
        case icmpv4.ADMIN_PROHIBITED:
            return f"host {dst} unreachable - admin prohibited filter"
        case _:
            return f"{dst} unreachable - #{code}"
