"""IP in IP (RFC 2003): an IPv4 packet as the payload of another, protocol 4."""

from __future__ import annotations

from typing import Final

from emulator.errors import WireError
from emulator.wire import ipv4

PROTO: Final = 4
OVERHEAD: Final = ipv4.HEADER_LEN
# Explicit congestion notification, the low bits of TOS (RFC 3168).
ECT_0: Final = 2
CE: Final = 3


def encapsulate(inner: bytes, src: int, dst: int, *, ttl: int = 0, ident: int = 0) -> bytes:
    """Wrap a packet as Linux's ip_tunnel_xmit does.

    DF and the ECN bits are copied from it (RFC 2003 section 3.1, RFC 6040: congestion marks stay
    inside); ``ttl`` 0 copies its TTL too.
    """
    frag = int.from_bytes(inner[6:8], "big") & ipv4.DF
    ecn = inner[1] & 3
    tos = ECT_0 if ecn == CE else ecn
    return ipv4.build(src, dst, PROTO, inner, ttl=ttl or inner[8], ident=ident, frag=frag, tos=tos)


def decapsulate(outer: bytes) -> bytes:
    """Return the checked inner packet of a checked outer one; WireError if it carries none."""
    if outer[9] != PROTO:
        raise WireError(f"IP protocol {outer[9]} is not IP in IP (4)")
    return ipv4.validate(outer[(outer[0] & 15) * 4 :])
