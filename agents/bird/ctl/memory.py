"""An estimate of what a speaker holds in memory, in the parts BIRD names (pure)."""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING, Final

from agents.bird.ctl.reply import Dialect
from agents.bird.ctl.show_daemon import MemoryUse

if TYPE_CHECKING:
    from agents.bird.speaker import Speaker

# A network's key as bytes object; a Path with its Attrs; a peer with its connections and buffers.
KEY_OCTETS: Final = 40
PATH_OCTETS: Final = 400
PEER_OCTETS: Final = 8000
# Networks whose routes are looked at to guess how many share a Path.
SAMPLE: Final = 10_000


def memory_use(speaker: Speaker, dialect: Dialect) -> list[MemoryUse]:
    """The rows of ``show memory``; the last is the sum."""
    tables = attributes = 0
    for table in speaker.tables.values():
        networks = len(table.routes)
        tables += sys.getsizeof(table.routes) + networks * KEY_OCTETS
        sample = [path for _, paths in islice(table.items(), SAMPLE) for path in paths]
        distinct = len({id(path) for path in sample})
        attributes += distinct * PATH_OCTETS * max(1, networks // SAMPLE)
    protocols = len(speaker.peers) * PEER_OCTETS
    for peer in speaker.peers.values():
        protocols += sum(
            sys.getsizeof(channel.received) for channel in peer.exchange.channels.values()
        )
        protocols += sum(
            sys.getsizeof(exporter.sent) for exporter in peer.exchange.exporters.values()
        )
    parts = [MemoryUse("Routing tables", tables), MemoryUse("Route attributes", attributes)]
    if dialect is Dialect.BIRD1:
        parts.append(MemoryUse("ROA tables", 0))
    parts.append(MemoryUse("Protocols", protocols))
    total = sum(part.effective for part in parts)
    return [*parts, MemoryUse("Total", total)]
