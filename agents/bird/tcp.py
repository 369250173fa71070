"""TCP as BGP wants it: TTL security, signed segments, the control class of service."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agents.bird.events import Dial

# linux/tcp.h and linux/in.h; Python's socket module has no names for these.
TCP_MD5SIG: Final = 14
IP_MINTTL: Final = 21
# DSCP class selector 6, what routers mark BGP with (RFC 4271 says nothing, BIRD sets it).
TOS_CONTROL: Final = 0xC0


def reason_of(error: OSError | None) -> str:
    """strerror's words, "" for a plain end."""
    if error is None:
        return ""
    if isinstance(error, TimeoutError):
        return "Connection timed out"
    inner = getattr(error, "errno", None)
    if inner is not None:
        return os.strerror(inner)
    return str(error)


def set_md5(sock: socket.socket, peer: str, key: str) -> None:
    """Sign and check TCP segments to and from one address (RFC 2385); "" takes the key away."""
    octets = key.encode()
    address = struct.pack("=HH4s120x", socket.AF_INET, 0, socket.inet_aton(peer))
    value = address + struct.pack("=BBHi80s", 0, 0, len(octets), 0, octets)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, value)


def set_ttl(sock: socket.socket, ttl: int, min_ttl: int) -> None:
    """The TTL to send with and the least one to accept (RFC 5082)."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    if min_ttl:
        sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, min_ttl)


async def dial_tcp(dial: Dial, to: tuple[str, int], local: str | None) -> socket.socket:
    """Connect to a peer, from the host address ``local``; OSError if that fails."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        set_ttl(sock, dial.ttl, dial.min_ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS_CONTROL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if dial.password:
            set_md5(sock, to[0], dial.password)
        if local is not None:
            sock.bind((local, 0))
        await asyncio.get_running_loop().sock_connect(sock, to)
    except BaseException:
        sock.close()
        raise
    return sock


def protect_accepted(sock: socket.socket, ttl: int, min_ttl: int) -> None:
    """Give an accepted connection what a dialled one has."""
    set_ttl(sock, ttl, min_ttl)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
