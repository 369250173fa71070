"""IP in IP (RFC 2003): an IPv4 packet as the payload of another, protocol 4."""

from __future__ import annotations

from typing import Final

from emulator.errors import WireError
from emulator.wire import ipv4

PROTO: Final = 4
OVERHEAD: Final = ipv4.HEADER_LEN


def encapsulate(inner: bytes, src: int, dst: int, *, ttl: int, ident: int = 0) -> bytes:
    """Wrap a packet; DF and TOS are copied from it (RFC 2003 section 3.1, Linux's pmtudisc)."""
    frag = int.from_bytes(inner[6:8], "big") & ipv4.DF
    return ipv4.build(src, dst, PROTO, inner, ttl=ttl, ident=ident, frag=frag, tos=inner[1])


def decapsulate(outer: bytes) -> bytes:
    """Return the checked inner packet of a checked outer one; WireError if it carries none."""
    if outer[9] != PROTO:
        raise WireError(f"IP protocol {outer[9]} is not IP in IP (4)")
    return ipv4.validate(outer[(outer[0] & 15) * 4 :])
