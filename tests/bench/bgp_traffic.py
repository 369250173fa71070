"""The load of the BGP benchmark: one who sends a million prefixes, one who counts what comes.

Both are plain blocking sockets, and the messages are encoded beforehand, so that a daemon between
them is what takes the time.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import struct
import time
from typing import TYPE_CHECKING

from agents.bird.attribute_encoder import encode
from agents.bird.attributes import Attrs, build_path
from agents.bird.capabilities import Capabilities, Restart
from agents.bird.messages import KEEPALIVE_MESSAGE, OPEN, Open, message
from agents.bird.net import Afi
from agents.bird.update import announcements, withdrawals
from emulator.addr import parse_ip

if TYPE_CHECKING:
    from collections.abc import Sequence

HOLD_S = 240
READ = 1 << 20


def prefixes(count: int) -> list[bytes]:
    """Consecutive /28 from 16.0.0.0 as NLRI."""
    base = 16 << 24
    return [b"\x1c" + struct.pack(">I", base + 16 * i) for i in range(count)]


def packed(keys: Sequence[bytes], asn: int, next_hop: str) -> bytes:
    """All prefixes with one set of attributes, messages as full as may be."""
    hop = parse_ip(next_hop).to_bytes(4, "big")
    block = encode(
        Attrs(origin=0, as_path=build_path([(2, (asn,))]), next_hop=hop), as4=True, next_hop=True
    )
    return b"".join(announcements(Afi.IPV4, block, hop, keys, 4096))


def spread(keys: Sequence[bytes], asn: int, next_hop: str) -> bytes:
    """Four prefixes a message, each message with a path and a community of its own."""
    hop = parse_ip(next_hop).to_bytes(4, "big")
    out = []
    for number, at in enumerate(range(0, len(keys), 4)):
        attrs = Attrs(
            origin=0,
            as_path=build_path([(2, (asn, 100000 + number, 7))]),
            next_hop=hop,
            communities=struct.pack(">I", number),
        )
        block = encode(attrs, as4=True, next_hop=True)
        out += announcements(Afi.IPV4, block, hop, keys[at : at + 4], 4096)
    return b"".join(out)


def withdraw(keys: Sequence[bytes]) -> bytes:
    """Withdrawals of all."""
    return b"".join(withdrawals(Afi.IPV4, keys, 4096))


class Endpoint:
    """One side: an established session and a count of the prefixes that came."""

    def __init__(self, source: str, target: tuple[str, int], asn: int, router_id: str) -> None:
        """Connect as ``source``; OSError while the daemon is not there."""
        self.announced = 0
        self.withdrawn = 0
        self._asn = asn
        self._rest = b""
        self.sock = socket.socket()
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self.sock.bind((source, 0))
            self.sock.settimeout(5)
            self.sock.connect(target)
            capabilities = Capabilities(
                families=(1,), route_refresh=True, restart=Restart(), as4=asn
            )
            opened = Open(asn & 0xFFFF, HOLD_S, parse_ip(router_id), capabilities)
            self.sock.sendall(message(OPEN, opened.body()))
            self._handshake()
        except BaseException:
            self.sock.close()
            raise

    def _handshake(self) -> None:
        keepalives = 0
        while not keepalives:
            data = self.sock.recv(READ)
            if not data:
                raise ConnectionResetError("the daemon closed the connection")
            for kind, _ in self._messages(data):
                if kind == 1:
                    self.sock.sendall(KEEPALIVE_MESSAGE)
                elif kind == 4:
                    keepalives += 1
                elif kind == 3:
                    raise ConnectionResetError("the daemon sent a NOTIFICATION")

    def _messages(self, data: bytes) -> list[tuple[int, bytes]]:
        buffer = self._rest + data
        at = 0
        found = []
        while at + 19 <= len(buffer):
            length = buffer[at + 16] << 8 | buffer[at + 17]
            if at + length > len(buffer):
                break
            found.append((buffer[at + 18], buffer[at + 19 : at + length]))
            at += length
        self._rest = buffer[at:]
        return found

    def receive(self) -> None:
        """Take what is there and count it."""
        data = self.sock.recv(READ)
        if not data:
            raise ConnectionResetError("the daemon closed the connection")
        for kind, body in self._messages(data):
            if kind == 3:
                raise ConnectionResetError(f"the daemon sent NOTIFICATION {body.hex()}")
            if kind != 2:
                continue
            gone = body[0] << 8 | body[1]
            attributes = body[2 + gone] << 8 | body[3 + gone]
            # All prefixes here are /28: five octets.
            self.withdrawn += gone // 5
            self.announced += (len(body) - 4 - gone - attributes) // 5

    def close(self) -> None:
        """End it."""
        self.sock.close()


def connect(source: str, target: tuple[str, int], asn: int, router_id: str) -> Endpoint:
    """An endpoint, once the daemon is ready for it; AssertionError after half a minute."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return Endpoint(source, target, asn, router_id)
        except OSError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"no session of {source} with {target}: {error}") from error
            time.sleep(0.1)


def pump(sender: Endpoint, receiver: Endpoint, data: bytes, counter: str, goal: int) -> float:
    """Send everything and wait until the other side has ``goal`` of it; seconds."""
    began = time.monotonic()
    view = memoryview(data)
    sent = 0
    sender.sock.setblocking(False)
    receiver.sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(sender.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        selector.register(receiver.sock, selectors.EVENT_READ)
        for turn in itertools.count():
            if getattr(receiver, counter) >= goal:
                return time.monotonic() - began
            if turn % 64 == 0 and time.monotonic() - began > 300:
                raise AssertionError(f"{getattr(receiver, counter)} of {goal} after 300 s")
            for key, events in selector.select(1):
                if events & selectors.EVENT_READ:
                    (sender if key.fileobj is sender.sock else receiver).receive()
                if events & selectors.EVENT_WRITE:
                    if sent < len(view):
                        sent += sender.sock.send(view[sent : sent + READ])
                    else:
                        selector.modify(sender.sock, selectors.EVENT_READ)
    raise AssertionError
