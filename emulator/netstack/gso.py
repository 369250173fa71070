"""Cutting TCP super-segments at the edge of the host, and joining segments that arrive there.

Source: net/ipv4/tcp_offload.c (tcp_gso_segment, tcp_gro_receive), net/ipv4/af_inet.c.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

FIN, PSH, CWR = 0x01, 0x08, 0x80
# A super-segment's total length is a 16-bit field (GSO_LEGACY_MAX_SIZE).
MAX_LENGTH: Final = 65535

_LENGTH_IDENT = struct.Struct("!HH")


def segments(data: bytes, gso_size: int, prefix: bytes = b"") -> list[bytes]:
    """Cut a super-segment into whole IPv4 packets, lengths, numbers, flags and checksums right.

    ``data`` is an IPv4 packet with a TCP segment; its own TCP checksum is not looked at.  Each
    packet is preceded by ``prefix``.
    """
    ip_len = (data[0] & 15) * 4
    tcp_len = (data[ip_len + 12] >> 4) * 4
    start = ip_len + tcp_len
    total = len(data)
    ident = data[4] << 8 | data[5]
    seq = int.from_bytes(data[ip_len + 4 : ip_len + 8], "big")
    flags = data[ip_len + 13]
    head = data[:2]
    ip_mid = data[6:10]
    ip_tail = data[12:ip_len]
    ports = data[ip_len : ip_len + 4]
    ack_offset = data[ip_len + 8 : ip_len + 13]
    window = data[ip_len + 14 : ip_len + 16]
    tail = data[ip_len + 18 : start]
    # Sums of what every segment shares; the rest is added segment by segment.
    from_bytes = int.from_bytes
    ip_sum = from_bytes(head + ip_mid + ip_tail, "big") % 0xFFFF
    # Pseudo header: addresses and protocol; the offset byte and flags share one word.
    tcp_sum = (
        from_bytes(data[12:20], "big")
        + 6
        + from_bytes(ports + ack_offset[:4], "big")
        + (ack_offset[4] << 8)
        + from_bytes(window, "big")
        + from_bytes(tail, "big")
    ) % 0xFFFF
    out: list[bytes] = []
    position = start
    while True:
        chunk = data[position : position + gso_size]
        size = len(chunk)
        last = position + size >= total
        length = start + size
        value = (ip_sum + length + ident) % 0xFFFF
        ip_check = (value or 0xFFFF) ^ 0xFFFF
        bits = flags if last else flags & ~(FIN | PSH)
        if position > start:
            bits &= ~CWR
        if size & 1:
            payload_sum = from_bytes(chunk, "big") << 8
        else:
            payload_sum = from_bytes(chunk, "big")
        value = (
            tcp_sum + tcp_len + size + (seq >> 16) + (seq & 0xFFFF) + bits + payload_sum
        ) % 0xFFFF
        check = (value or 0xFFFF) ^ 0xFFFF
        out.append(
            b"".join(
                (
                    prefix + head,
                    _LENGTH_IDENT.pack(length, ident),
                    ip_mid,
                    ip_check.to_bytes(2, "big"),
                    ip_tail,
                    ports,
                    seq.to_bytes(4, "big"),
                    ack_offset,
                    bytes((bits,)),
                    window,
                    check.to_bytes(2, "big"),
                    tail,
                    chunk,
                )
            )
        )
        position += size
        if last:
            return out
        ident = (ident + 1) & 0xFFFF
        seq = (seq + size) & 0xFFFFFFFF


def joined(first: bytes, payloads: Sequence[bytes], last_flags: int) -> bytes:
    """Return the super-segment of consecutive segments whose headers agree.

    ``first`` is the first packet's headers (IPv4 and TCP), ``last_flags`` the last one's flags, of
    which FIN and PSH are kept.
    """
    ip_len = (first[0] & 15) * 4
    body = b"".join(payloads)
    total = len(first) + len(body)
    header = bytearray(first)
    old = header[2] << 8 | header[3]
    header[2:4] = total.to_bytes(2, "big")
    value = ((header[10] << 8 | header[11]) ^ 0xFFFF) + total - old
    header[10:12] = ((value % 0xFFFF or 0xFFFF) ^ 0xFFFF).to_bytes(2, "big")
    header[ip_len + 13] |= last_flags & (FIN | PSH)
    header[ip_len + 16 : ip_len + 18] = b"\x00\x00"
    return bytes(header) + body
