"""Probes: one real packet sent on purpose, so that every node can write down what it did with it.

The three kinds differ in what no NAT changes and a trace can recognize: a TCP connection's first
sequence number, a ping's number and a token in it, a token in a UDP payload.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.sock.tcp import Endpoint
from emulator.netstack.sock.tcp_state import State
from emulator.netstack.trace import TraceFilter
from emulator.wire import icmpv4

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from emulator.netstack.kernel import Kernel
    from emulator.netstack.netns import NetNs
    from emulator.netstack.sock.ping import EchoAnswer, PingSocket

KINDS: Final = ("tcp", "icmp", "udp")
TOKEN_BYTES: Final = 16
# What ping sends by default.
PING_BYTES: Final = 56


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe as all nodes are told of it; ``number`` and ``ident`` as in TraceFilter."""

    kind: str
    src: str
    dst: str
    port: int
    number: int
    ident: int
    token: bytes

    @classmethod
    def parse(cls, value: object) -> Probe:
        """Read one from a control frame; UsageError for anything else."""
        try:
            probe = cls(**value)  # type: ignore[arg-type]
            parse_ip(probe.src)
            parse_ip(probe.dst)
        except TypeError as error:
            raise UsageError(f"not a probe: {error}") from None
        if probe.kind not in KINDS or not 0 <= probe.port < 65536:
            raise UsageError(f"not a probe: {value!r}")
        return probe

    def filter(self) -> TraceFilter:
        """What recognizes it."""
        if self.kind == "tcp":
            return TraceFilter.tcp(self.number)
        if self.kind == "icmp":
            return TraceFilter.icmp(self.ident, self.number, self.token)
        return TraceFilter.udp(self.token)

    @property
    def description(self) -> str:
        if self.kind == "icmp":
            return f"ICMP echo request {self.src} > {self.dst}"
        what = "TCP SYN" if self.kind == "tcp" else "UDP datagram"
        return f"{what} {self.src} > {self.dst}:{self.port}"


class Answer(NamedTuple):
    """What came of a probe; an error is an answer too."""

    ok: bool
    text: str
    answered: bool


def plan(request: Mapping[str, Any], rng: random.Random, ping: PingSocket | None) -> Probe:
    """Choose what recognizes the probe; ``ping`` is the socket a ping leaves from."""
    port, udp = request["port"], request["udp"]
    kind = "icmp" if ping is not None else "udp" if udp else "tcp"
    return Probe(
        kind,
        request["src"],
        request["dst"],
        port,
        rng.getrandbits(16 if kind == "icmp" else 32),
        ping.ident if ping is not None else 0,
        rng.randbytes(TOKEN_BYTES),
    )


def namespace_of(kernel: Kernel, ip: int) -> NetNs:
    """The namespace that has an address; UsageError if none does."""
    for name in kernel.netns_names():
        ns = kernel.netns(name)
        if any(info.ip == ip for info in ns.addrs()):
            return ns
    raise UsageError(f"{kernel.hostname} has no namespace with the address {format_ip(ip)}")


async def send_tcp(ns: NetNs, probe: Probe, timeout_s: float) -> Answer:
    """Connect, and end the connection at once."""
    try:
        connection = ns.sockets.tcp_connect(
            Endpoint(parse_ip(probe.dst), probe.port), iss=probe.number
        )
    except OSError as error:
        return Answer(False, f"not sent: {error.strerror}", answered=False)
    changed = asyncio.Event()
    connection.notify = changed.set
    try:
        async with asyncio.timeout(timeout_s):
            await changed.wait()
    except TimeoutError:
        return Answer(False, f"no answer within {timeout_s:g} s", answered=False)
    finally:
        closed, error_number = connection.state is State.CLOSED, connection.error
        connection.notify = _ignore
        if not closed:
            connection.abort()
    if closed:
        return Answer(False, f"answer: {os.strerror(error_number)}", answered=True)
    return Answer(True, f"answer: SYN,ACK; {probe.dst}:{probe.port} is open", answered=True)


async def send_ping(sock: PingSocket, probe: Probe, timeout_s: float) -> Answer:
    """Send one echo request from the probe's own socket."""
    arrived = asyncio.Event()
    sock.notify = arrived.set
    try:
        sock.send(parse_ip(probe.dst), probe.number, probe.token.ljust(PING_BYTES, b"\0"))
        async with asyncio.timeout(timeout_s):
            while (answer := sock.receive()) is None:
                arrived.clear()
                await arrived.wait()
    except TimeoutError:
        return Answer(False, f"no answer within {timeout_s:g} s", answered=False)
    except OSError as error:
        return Answer(False, f"not sent: {error.strerror}", answered=False)
    return _ping_answer(answer)


def _ping_answer(answer: EchoAnswer) -> Answer:
    source = format_ip(answer.source)
    if answer.icmp_type == icmpv4.ECHO_REPLY:
        return Answer(True, f"answer: echo reply from {source}, ttl {answer.ttl}", answered=True)
    return Answer(False, f"answer: {_icmp_text(answer)} from {source}", answered=True)


def _icmp_text(answer: EchoAnswer) -> str:
    if answer.icmp_type == icmpv4.TIME_EXCEEDED:
        return "time exceeded"
    if answer.icmp_type == icmpv4.UNREACHABLE:
        return _UNREACHABLE.get(answer.code, f"unreachable (code {answer.code})")
    return f"ICMP error type {answer.icmp_type} code {answer.code}"


_UNREACHABLE: Final = {
    icmpv4.NET: "net unreachable",
    icmpv4.HOST: "host unreachable",
    icmpv4.PROTOCOL: "protocol unreachable",
    icmpv4.PORT: "port unreachable",
    icmpv4.FRAG_NEEDED: "fragmentation needed",
}


async def send_udp(ns: NetNs, probe: Probe, timeout_s: float) -> Answer:
    """Send one datagram that holds the token; an answer that repeats it is traced too."""
    sock = ns.sockets.udp_bind(remote=Endpoint(parse_ip(probe.dst), probe.port))
    arrived = asyncio.Event()
    sock.notify = arrived.set
    try:
        sock.send(probe.token)
        async with asyncio.timeout(timeout_s):
            await arrived.wait()
        if error := sock.take_error():
            return Answer(False, f"answer: {os.strerror(error)}", answered=True)
        return Answer(True, "answer: a datagram came back", answered=True)
    except TimeoutError:
        return Answer(
            True, f"sent; no answer within {timeout_s:g} s (UDP need not answer)", answered=False
        )
    except OSError as error:
        return Answer(False, f"not sent: {error.strerror}", answered=False)
    finally:
        sock.close()


def _ignore() -> None:
    """The owner has gone."""
