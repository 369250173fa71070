"""In which order a host tries the blocks of a pool: its own, the same every time (pure).

Source: projectcalico/calico libcalico-go/lib/ipam/ipam_block_reader_writer.go randomBlockGenerator.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from agents.calico.ipam.gorand import GoSource
from agents.calico.net import BITS, Cidr, Ip

if TYPE_CHECKING:
    from collections.abc import Iterator

_FNV_OFFSET: Final = 0x811C9DC5
_FNV_PRIME: Final = 0x01000193


def fnv1_32(text: str) -> int:
    """FNV-1 (multiply, then XOR) of 32 bits over the UTF-8 of a host's name."""
    value = _FNV_OFFSET
    for byte in text.encode():
        value = value * _FNV_PRIME & 0xFFFFFFFF ^ byte
    return value


@functools.lru_cache(maxsize=4096)
def _start(seed: int, count: int) -> int:
    return GoSource(seed).below(count)


def first_block(pool: Cidr, block_size: int, host: str, *, now_ns: int) -> int:
    """The index of the block a host tries first.

    Blocks of one address have no order of their own: ``now_ns`` (Unix time in ns) is the seed.
    """
    count = 1 << (block_size - pool.length)
    if block_size == BITS[pool.version]:
        return GoSource(now_ns).below(count)
    return _start(fnv1_32(host), count)


def block_order(pool: Cidr, block_size: int, host: str, *, now_ns: int) -> Iterator[Cidr]:
    """Every block of a pool once: from the host's first one on, wrapping at the end."""
    count = 1 << (block_size - pool.length)
    shift = BITS[pool.version] - block_size
    start = first_block(pool, block_size, host, now_ns=now_ns)
    for step in range(count):
        index = (start + step) % count
        yield Cidr(pool.version, pool.network + (index << shift), block_size)


def blocks_in(cidr: Cidr, block_size: int) -> Iterator[Cidr]:
    """The blocks of a network in ascending order."""
    shift = BITS[cidr.version] - block_size
    for index in range(1 << (block_size - cidr.length)):
        yield Cidr(cidr.version, cidr.network + (index << shift), block_size)


def block_of(ip: Ip, block_size: int) -> Cidr:
    """The block an address belongs to."""
    return Cidr.of(ip, block_size)
