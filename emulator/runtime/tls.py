"""What TLS costs a process with many quiet connections."""

from __future__ import annotations

import asyncio.sslproto
from typing import Final

# asyncio fills 256 KiB per TLS connection with zeros to receive into.  A TLS record has 16 KiB, a
# node keeps half a dozen watches open and the API server of 100 nodes a thousand.
TLS_BUFFER_BYTES: Final = 32 * 1024


def use_small_tls_buffers() -> None:
    """Let TLS connections made from now on receive into ``TLS_BUFFER_BYTES``, process-wide."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
