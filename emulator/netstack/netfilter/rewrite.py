"""Change addresses and ports in the bytes of a packet, checksums kept by RFC 1624.

Only the words that change enter the arithmetic, so a checksum that was wrong stays wrong and one
left at zero by UDP (no checksum, RFC 768) stays zero.  Works the same on super-segments.
"""

from __future__ import annotations

from emulator.netstack.packet import ICMP, TCP, UDP
from emulator.wire.checksum import adjust, checksum

ICMP_ECHO_REPLY, ICMP_ECHO = 0, 8
# ICMP errors carry the start of the packet they are about (RFC 792).
ICMP_ERROR_TYPES = frozenset((3, 4, 5, 11, 12))
# Queries have an identifier and a reply type: echo, timestamp, information, address mask.
ICMP_QUERY_REPLY = {8: 0, 13: 14, 15: 16, 17: 18}
ICMP_REPLY_QUERY = {reply: query for query, reply in ICMP_QUERY_REPLY.items()}


def _words(value: int) -> int:
    return (value >> 16) + (value & 0xFFFF)


def rewrite_bytes(data: bytes, *, source: bool, ip: int, port: int) -> bytes:
    """Return ``data``, an IPv4 packet, with one end replaced.

    ``source`` chooses the end.  ``port`` is the TCP or UDP port of that end, or for ICMP queries
    the identifier; other protocols and later fragments ignore it.  The packet may be cut short
    (as inside an ICMP error): fields that are not there are left out.
    """
    header_len = (data[0] & 15) * 4
    proto = data[9]
    head = bytearray(data[: header_len + 20])
    at = 12 if source else 16
    old_sum = _words(int.from_bytes(head[at : at + 4], "big"))
    new_sum = _words(ip)
    head[at : at + 4] = ip.to_bytes(4, "big")
    if old_sum != new_sum:
        ip_sum = adjust(int.from_bytes(head[10:12], "big"), old_sum, new_sum)
        head[10:12] = ip_sum.to_bytes(2, "big")
    if (data[6] & 0x1F) or data[7]:
        return bytes(head) + data[header_len + 20 :]

    room = len(head) - header_len
    if proto in (TCP, UDP):
        if room >= 4:
            at = header_len if source else header_len + 2
            old_sum += int.from_bytes(head[at : at + 2], "big")
            new_sum += port
            head[at : at + 2] = port.to_bytes(2, "big")
        at = header_len + (16 if proto == TCP else 6)
    elif proto == ICMP:
        if room < 8 or head[header_len] in ICMP_ERROR_TYPES:
            return bytes(head) + data[header_len + 20 :]
        at = header_len + 4
        # The pseudo header is no part of ICMP's checksum (RFC 792): only the identifier counts.
        old_sum = int.from_bytes(head[at : at + 2], "big")
        new_sum = port
        head[at : at + 2] = port.to_bytes(2, "big")
        at = header_len + 2
    else:
        return bytes(head) + data[header_len + 20 :]
    if len(head) >= at + 2 and old_sum != new_sum:
        old = int.from_bytes(head[at : at + 2], "big")
        if old or proto != UDP:
            new = adjust(old, old_sum, new_sum)
            if proto == UDP and new == 0:
                new = 0xFFFF
            head[at : at + 2] = new.to_bytes(2, "big")
    return bytes(head) + data[header_len + 20 :]


def rewrite_icmp_error_payload(data: bytes, *, source: bool, ip: int, port: int) -> bytes:
    """Return an ICMP error with one end of the packet it quotes replaced (RFC 5508 section 4)."""
    start = (data[0] & 15) * 4
    inner = rewrite_bytes(data[start + 8 :], source=source, ip=ip, port=port)
    message = data[start : start + 2] + b"\x00\x00" + data[start + 4 : start + 8] + inner
    total = checksum(message)
    return data[:start] + message[:2] + total.to_bytes(2, "big") + message[4:]
