"""TCP headers and options (RFC 9293 section 3.1, RFC 7323, RFC 2018)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from emulator.errors import WireError
from emulator.wire.checksum import checksum, pseudo_header_sum

HEADER_LEN: Final = 20
PROTO: Final = 6
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80

_HEADER = struct.Struct("!HHIIBBHHH")
OPT_END, OPT_NOP, OPT_MSS, OPT_WSCALE, OPT_SACK_OK, OPT_SACK, OPT_TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8


class Timestamps(NamedTuple):
    """TSval and TSecr of RFC 7323."""

    value: int
    echo: int


class Options(NamedTuple):
    """The options every stack sends.  ``sack`` holds (left, right) edges, at most four."""

    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    timestamps: Timestamps | None = None

    @classmethod
    def parse(cls, data: bytes) -> Options:
        """Decode an option field; malformed ones end it, unknown ones are skipped (as Linux)."""
        mss = wscale = timestamps = None
        sack_ok = False
        sack: tuple[tuple[int, int], ...] = ()
        position, size = 0, len(data)
        while position < size:
            kind = data[position]
            if kind == OPT_END:
                break
            if kind == OPT_NOP:
                position += 1
                continue
            length = data[position + 1] if position + 1 < size else 0
            if length < 2 or position + length > size:
                break
            body = data[position + 2 : position + length]
            if kind == OPT_MSS and length == 4:
                mss = int.from_bytes(body, "big")
            elif kind == OPT_WSCALE and length == 3:
                wscale = body[0]
            elif kind == OPT_SACK_OK and length == 2:
                sack_ok = True
            elif kind == OPT_SACK and length >= 10 and (length - 2) % 8 == 0:
                edges = struct.unpack(f"!{(length - 2) // 4}I", body)
                sack = tuple(zip(edges[::2], edges[1::2], strict=True))
            elif kind == OPT_TIMESTAMPS and length == 10:
                timestamps = Timestamps(*struct.unpack("!II", body))
            position += length
        return cls(mss, wscale, sack_ok, sack, timestamps)

    def emit(self) -> bytes:
        """Encode, padded to a multiple of four bytes in the order Linux uses."""
        out = bytearray()
        if self.mss is not None:
            out += struct.pack("!BBH", OPT_MSS, 4, self.mss)
        if self.timestamps is not None:
            # SACK-permitted takes the place of the two NOPs that align the timestamps.
            out += bytes((OPT_SACK_OK, 2)) if self.sack_ok else bytes((OPT_NOP, OPT_NOP))
            out += struct.pack("!BBII", OPT_TIMESTAMPS, 10, *self.timestamps)
        elif self.sack_ok:
            out += bytes((OPT_NOP, OPT_NOP, OPT_SACK_OK, 2))
        if self.wscale is not None:
            out += bytes((OPT_NOP, OPT_WSCALE, 3, self.wscale))
        if self.sack:
            out += bytes((OPT_NOP, OPT_NOP, OPT_SACK, 2 + 8 * len(self.sack)))
            for left, right in self.sack:
                out += struct.pack("!II", left, right)
        return bytes(out)


class Tcp(NamedTuple):
    """A segment; ``window`` is the field of the wire (not scaled)."""

    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    payload: bytes = b""
    options: Options = Options()
    urgent: int = 0

    @classmethod
    def parse(cls, data: bytes, src: int, dst: int, *, verify: bool = True) -> Tcp:
        """Read and check a segment; ``verify`` False takes any checksum (a super-segment's)."""
        if len(data) < HEADER_LEN:
            raise WireError(f"truncated TCP header: {len(data)} bytes of {HEADER_LEN}")
        sport, dport, seq, ack, offset, flags, window, _, urgent = _HEADER.unpack_from(data)
        start = (offset >> 4) * 4
        if not HEADER_LEN <= start <= len(data):
            raise WireError(f"TCP data offset {start} in {len(data)} bytes")
        if verify and checksum(data, pseudo_header_sum(src, dst, PROTO, len(data))):
            raise WireError("bad TCP checksum")
        options = Options.parse(data[HEADER_LEN:start])
        return cls(sport, dport, seq, ack, flags, window, data[start:], options, urgent)

    def emit(self, src: int, dst: int) -> bytes:
        """Return the bytes, checksum included; WireError if the options exceed 40 bytes."""
        options = self.options.emit()
        if len(options) > 40:
            raise WireError(f"TCP options of {len(options)} bytes: at most 40 fit")
        offset = (HEADER_LEN + len(options)) << 2
        head = _HEADER.pack(
            *(self.sport, self.dport, self.seq, self.ack, offset, self.flags, self.window),
            *(0, self.urgent),
        )
        data = b"".join((head, options, self.payload))
        value = checksum(data, pseudo_header_sum(src, dst, PROTO, len(data)))
        return b"".join((data[:16], value.to_bytes(2, "big"), data[18:]))
