"""The Huffman code of HPACK (RFC 7541 appendix B).

The code is canonical: codes of one length are consecutive, in the order of their symbols, so the
lengths alone define it.
"""

from __future__ import annotations

from functools import cache

from emulator.errors import WireError

_EOS = 256
# Code lengths in bits of the symbols 0..255 and EOS.
# fmt: off
_LENGTHS = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30,
    28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8,
    15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19,
    13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11,
    14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23,
    23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23,
    23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27,
    24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27,
    27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)
# fmt: on


@cache
def _codes() -> tuple[tuple[int, int], ...]:
    """Return (code, bits) of every symbol."""
    codes = [(0, 0)] * len(_LENGTHS)
    code = previous = 0
    for bits, symbol in sorted((bits, symbol) for symbol, bits in enumerate(_LENGTHS)):
        code <<= bits - previous
        codes[symbol] = (code, bits)
        code, previous = code + 1, bits
    return tuple(codes)


# A state of the decoder is an inner node of the code tree.  For each of the 16 next nibbles it has
# (next state, emitted symbol or -1); a negative next state is an EOS, which no string may contain.
_Row = list[tuple[int, int]]


@cache
def _machine() -> tuple[list[_Row], frozenset[int]]:
    """Return the nibble-wise decoder and the states where a string may end."""
    # children[node][bit]: a node's number, or ~symbol for a leaf.
    children: list[list[int]] = [[0, 0]]
    for symbol, (code, bits) in enumerate(_codes()):
        node = 0
        for shift in range(bits - 1, 0, -1):
            bit = code >> shift & 1
            if children[node][bit] == 0:
                children.append([0, 0])
                children[node][bit] = len(children) - 1
            node = children[node][bit]
        children[node][code & 1] = ~symbol
    rows = [
        [_step(children, node, nibble) for nibble in range(16)] for node in range(len(children))
    ]
    # Padding is at most seven ones: the prefix of EOS (section 5.2).
    ends, node = {0}, 0
    for _ in range(7):
        node = children[node][1]
        ends.add(node)
    return rows, frozenset(ends)


def _step(children: list[list[int]], node: int, nibble: int) -> tuple[int, int]:
    emitted = -1
    for shift in (3, 2, 1, 0):
        node = children[node][nibble >> shift & 1]
        if node < 0:
            emitted, node = ~node, 0
            if emitted == _EOS:
                return -1, -1
    return node, emitted


def decode(data: bytes) -> bytes:
    """Return the decoded string; WireError for EOS inside or bad padding."""
    rows, ends = _machine()
    out = bytearray()
    state = 0
    for byte in data:
        for nibble in (byte >> 4, byte & 15):
            state, symbol = rows[state][nibble]
            if symbol >= 0:
                out.append(symbol)
            elif state < 0:
                raise WireError("HPACK string: EOS inside a Huffman-coded string")
    if state not in ends:
        raise WireError("HPACK string: Huffman padding is not a prefix of EOS")
    return bytes(out)


def encode(data: bytes) -> bytes:
    """Return the Huffman-coded string, padded with ones."""
    codes = _codes()
    value = bits = 0
    for byte in data:
        code, length = codes[byte]
        value = value << length | code
        bits += length
    pad = -bits % 8
    value = value << pad | (1 << pad) - 1
    return value.to_bytes((bits + pad) // 8, "big")
