"""One UDP socket of the underlay: batches of datagrams with UDP_SEGMENT and UDP_GRO.

A batch is one buffer with several datagrams of equal size back to back, the last possibly shorter,
as the kernel itself hands them over.  Where the kernel lacks either option (older Linux, gVisor,
other systems) the same batches go out and come in datagram by datagram.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from typing import Final, NamedTuple

SOL_UDP: Final = 17  # linux/udp.h; not all Python versions name these
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_MTU_DISCOVER: Final = 10  # linux/in.h
IP_PMTUDISC_DONT: Final = 0
SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h, needs CAP_NET_ADMIN
SO_RCVBUFFORCE: Final = 33

# One GSO send: 65,507 bytes of UDP payload, 64 datagrams (UDP_MAX_SEGMENTS of Linux before 6.9).
MAX_BATCH_BYTES: Final = 65507
MAX_BATCH_DATAGRAMS: Final = 64
# Socket buffers asked for.  A peer may be off the CPU for some milliseconds while 1 Gbit/s (125
# bytes a microsecond) comes in; the kernel counts about twice the payload.
RECEIVE_BUFFER: Final = 8 * 1024 * 1024
SEND_BUFFER: Final = 4 * 1024 * 1024
# What waits here when the kernel's send buffer is full; more is dropped, as a NIC's queue does.
MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
# Errors of sendmsg(2) that say "this kernel or device cannot segment", not "this send failed".
_NO_GSO: Final = (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT)

Address = tuple[str, int]


class Batch(NamedTuple):
    """What one receive brought; ``segment_size`` 0 means a single datagram."""

    payload: bytes
    source: Address
    segment_size: int


def probe_offload(sock: socket.socket) -> tuple[bool, bool]:
    """Turn UDP_GRO on; return whether this kernel can (UDP_SEGMENT, UDP_GRO)."""
    can_send = can_receive = False
    try:
        can_send = sock.getsockopt(SOL_UDP, UDP_SEGMENT) == 0
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        can_receive = True
    except OSError:
        pass
    return can_send, can_receive


class UnderlaySocket:
    """A bound, non-blocking UDP socket; counts what it had to drop."""

    def __init__(self, address: Address, *, offload: bool = True) -> None:
        """Bind ``address``; ``offload`` False leaves UDP_SEGMENT and UDP_GRO alone.

        Raises OSError (address in use, not an address of this host).
        """
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._raise_buffer(SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._raise_buffer(SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
            if sys.platform == "linux":
                # The kernel's vxlan leaves DF clear too; what is too long is fragmented.
                self._socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            self._socket.bind(address)
        except OSError as error:
            self._socket.close()
            raise OSError(
                error.errno, f"{error.strerror}: UDP {address[0]}:{address[1]} of the underlay"
            ) from None
        self.gso, self.gro = probe_offload(self._socket) if offload else (False, False)
        self._queue: deque[tuple[Address, bytes, int]] = deque()
        self._queued_bytes = 0
        self.sent_datagrams = 0
        self.received_datagrams = 0
        self.send_drops = 0
        self.last_error = ""

    def _raise_buffer(self, forced: int, plain: int, size: int) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, forced, size)
                return
        with contextlib.suppress(OSError):  # less is what we get: drops are counted
            self._socket.setsockopt(socket.SOL_SOCKET, plain, size)

    @property
    def address(self) -> Address:
        """What it is bound to."""
        host, port = self._socket.getsockname()
        return host, port

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    # -- sending -------------------------------------------------------------------------------

    @property
    def backlogged(self) -> bool:
        """Something waits for the kernel's send buffer: call ``flush`` when it is writable."""
        return bool(self._queue)

    def send(self, to: Address, payload: bytes, segment_size: int) -> None:
        """Send a datagram, or with ``segment_size`` > 0 a batch; never raises.

        What the kernel's buffer does not take now waits in a bounded queue; what that does not
        take, or what cannot be sent at all, is counted in ``send_drops``.
        """
        if segment_size <= 0 or segment_size >= len(payload):
            self._send_or_queue(to, payload, 0)
            return
        if not self.gso:
            for start in range(0, len(payload), segment_size):
                self._send_or_queue(to, payload[start : start + segment_size], 0)
            return
        most = min(MAX_BATCH_DATAGRAMS, MAX_BATCH_BYTES // segment_size) * segment_size
        if len(payload) <= most:
            self._send_or_queue(to, payload, segment_size)
            return
        for start in range(0, len(payload), most):
            self._send_or_queue(to, payload[start : start + most], segment_size)

    def _send_or_queue(self, to: Address, payload: bytes, segment_size: int) -> None:
        if self._queue or not self._send_now(to, payload, segment_size):
            if self._queued_bytes + len(payload) > MAX_QUEUED_BYTES:
                self._count_drop(payload, segment_size)
                return
            self._queue.append((to, payload, segment_size))
            self._queued_bytes += len(payload)

    def _send_now(self, to: Address, payload: bytes, segment_size: int) -> bool:
        """True when there is nothing left to do about this batch: sent or dropped for good."""
        try:
            if segment_size and segment_size < len(payload):
                ancillary = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment_size))]
                self._socket.sendmsg((payload,), ancillary, 0, to)
                self.sent_datagrams += -(-len(payload) // segment_size)
            else:
                self._socket.sendto(payload, to)
                self.sent_datagrams += 1
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if segment_size and error.errno in _NO_GSO:
                # A device on the way cannot do it after all: send these one by one, for good.
                self.gso = False
                self.send(to, payload, segment_size)
                return True
            self.last_error = f"{to[0]}:{to[1]}: {error.strerror}"
            self._count_drop(payload, segment_size)
        return True

    def _count_drop(self, payload: bytes, segment_size: int) -> None:
        self.send_drops += -(-len(payload) // segment_size) if segment_size else 1

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        while self._queue:
            to, payload, segment_size = self._queue[0]
            if not self._send_now(to, payload, segment_size):
                return
            self._queue.popleft()
            self._queued_bytes -= len(payload)

    # -- receiving -----------------------------------------------------------------------------

    def receive(self) -> Batch | None:
        """Return the next batch; None if nothing waits."""
        try:
            if self.gro:
                payload, ancillary, _, source = self._socket.recvmsg(65535, 64)
            else:
                payload, source = self._socket.recvfrom(65535)
                ancillary = []
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self.last_error = f"receive: {error.strerror}"
            return None
        segment_size = 0
        for level, kind, value in ancillary:
            if level == SOL_UDP and kind == UDP_GRO and len(value) >= 4:
                segment_size = int(struct.unpack("=i", value[:4])[0])
        if segment_size >= len(payload):
            segment_size = 0
        self.received_datagrams += -(-len(payload) // segment_size) if segment_size else 1
        return Batch(payload, source, segment_size)
