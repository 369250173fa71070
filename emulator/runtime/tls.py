"""What TLS costs a process with many quiet connections."""

from __future__ import annotations

import asyncio.sslproto
import contextlib
import ssl
from typing import Final

# asyncio fills 256 KiB per TLS connection with zeros to receive into.  A TLS record has 16 KiB, a
# node keeps half a dozen watches open and the API server of 100 nodes a thousand.
TLS_BUFFER_BYTES: Final = 32 * 1024


def use_small_tls_buffers() -> None:
    """Let TLS connections made from now on receive into ``TLS_BUFFER_BYTES``, process-wide."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


def rehearse_handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Shake hands in memory, with nothing to show for it but what the first time leaves behind.

    OpenSSL and Python fill tables of some 2 MiB at their first handshake.  Who does this before a
    fork fills them once for all children.  What is wrong with a certificate is said elsewhere.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(to_client, to_server, server_hostname=name)
    called = server.wrap_bio(to_server, to_client, server_side=True)
    with contextlib.suppress(ssl.SSLError):
        for side in (caller, called, caller, called):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        caller.write(b"?")
        called.read()
