"""Putting fragments together again (RFC 815's holes as sorted pieces; net/ipv4/ip_fragment.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip
from emulator.netstack.packet import Drop, DropReason, Packet
from emulator.wire import ipv4

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs
    from emulator.netstack.timers import Timer

TIMEOUT_S: Final = 30.0  # net.ipv4.ipfrag_time
# Bytes of fragments a namespace keeps (net.ipv4.ipfrag_high_thresh), each with what it costs beside
# its payload; the kernel counts the whole buffer too.
HIGH_THRESHOLD: Final = 4 * 1024 * 1024
PIECE_OVERHEAD: Final = 512
# Fragments of one packet: 65,535 bytes in pieces of 8 would be thousands, nobody sends those.
MAX_PIECES: Final = 128


class _Queue:
    """The fragments of one packet by offset."""

    __slots__ = ("first", "pieces", "reach", "size", "timer", "total")

    def __init__(self, timer: Timer) -> None:
        self.pieces: dict[int, bytes] = {}
        self.first: Packet | None = None
        self.total: int | None = None
        self.reach = 0  # the end of the furthest piece
        self.size = 0
        self.timer = timer


_Key = tuple[int, int, int, int]


class Reassembler:
    """The incomplete packets of a namespace."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns
        self._queues: dict[_Key, _Queue] = {}
        self._size = 0

    def add(self, packet: Packet) -> Packet | None:
        """Take a fragment; returns the whole packet once it is complete."""
        if packet.flow is not None:
            packet.flow.cacheable = False
            packet.flow = None
        data = packet.data
        key = (packet.src, packet.dst, data[4] << 8 | data[5], packet.proto)
        queue = self._queues.get(key)
        if queue is None:
            kernel = self._ns.kernel
            timer = kernel.timers.at(kernel.clock() + TIMEOUT_S, lambda: self._expire(key))
            queue = self._queues[key] = _Queue(timer)
        frag = data[6] << 8 | data[7]
        offset = (frag & ipv4.OFFSET_MASK) * 8
        payload = data[packet.header_len :]
        more = frag & ipv4.MF
        end = offset + len(payload)
        if not payload or (more and len(payload) % 8) or end > ipv4.MAX_LENGTH - packet.header_len:
            self._discard(key, queue, packet, "a fragment of impossible length")
            return None
        known = queue.total
        if (known is not None and end > known) or (
            not more and (end < queue.reach or known not in (None, end))
        ):
            self._discard(key, queue, packet, "a fragment beyond the last one")
            return None
        queue.reach = max(queue.reach, end)
        if self._overlaps(queue, offset, end):
            # RFC 5722's rule, which Linux applies to IPv4 too: the whole packet is suspect.
            self._discard(key, queue, packet, "overlapping fragments")
            return None
        if not more:
            queue.total = end
        if offset == 0:
            queue.first = packet
        if queue.pieces.get(offset) is None:
            queue.pieces[offset] = payload
            queue.size += len(payload)
            self._size += len(payload) + PIECE_OVERHEAD
        if queue.total is not None and queue.size == queue.total and queue.first is not None:
            if queue.first.header_len + queue.total > ipv4.MAX_LENGTH:
                self._discard(key, queue, packet, "fragments of more than 65,535 bytes")
                return None
            return self._finish(key, queue)
        if len(queue.pieces) > MAX_PIECES:
            self._discard(key, queue, packet, f"more than {MAX_PIECES} fragments")
            return None
        while self._size > HIGH_THRESHOLD:
            oldest = next(iter(self._queues))
            self._forget(oldest)
            detail = f"fragments of more than {HIGH_THRESHOLD} bytes"
            self._ns.count_drop(Drop(DropReason.REASSEMBLY_FULL, detail), packet)
        return None

    @staticmethod
    def _overlaps(queue: _Queue, offset: int, end: int) -> bool:
        return any(
            start < end and offset < start + len(piece)
            for start, piece in queue.pieces.items()
            if not (start == offset and start + len(piece) == end)
        )

    def _finish(self, key: _Key, queue: _Queue) -> Packet:
        self._forget(key)
        first = queue.first
        assert first is not None
        body = b"".join(queue.pieces[offset] for offset in sorted(queue.pieces))
        header = first.data[: first.header_len]
        ident = header[4] << 8 | header[5]
        df = (header[6] << 8) & ipv4.DF
        total = len(header) + len(body)
        whole = Packet(ipv4.with_total_length(header, total, ident, df) + body, in_dev=first.in_dev)
        whole.mark, whole.trace, whole.physdev_in = first.mark, first.trace, first.physdev_in
        return whole

    def _forget(self, key: _Key) -> None:
        queue = self._queues.pop(key)
        queue.timer.cancel()
        self._size -= queue.size + PIECE_OVERHEAD * len(queue.pieces)

    def _discard(self, key: _Key, queue: _Queue, packet: Packet, why: str) -> None:
        self._forget(key)
        self._ns.count_drop(Drop(DropReason.BAD_HEADER, why), packet)

    def _expire(self, key: _Key) -> None:
        queue = self._queues.get(key)
        if queue is None:
            return
        self._forget(key)
        detail = f"fragments from {format_ip(key[0])} incomplete after {TIMEOUT_S:.0f} s"
        if queue.first is None:
            self._ns.count_drop(Drop(DropReason.REASSEMBLY_TIMEOUT, detail), None)
        else:
            # RFC 792: only with the first fragment in hand is there something to quote.
            owed = (11, 1) if self._ns.is_local(key[1]) else None
            self._ns.end(queue.first, Drop(DropReason.REASSEMBLY_TIMEOUT, detail, icmp=owed))
