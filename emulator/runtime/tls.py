"""What TLS costs a process with many quiet connections."""

from __future__ import annotations

import asyncio.sslproto
import contextlib
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# asyncio fills 256 KiB per TLS connection with zeros to receive into.  A TLS record has 16 KiB, a
# node keeps half a dozen watches open and the API server of 100 nodes a thousand.
TLS_BUFFER_BYTES: Final = 8 * 1024


def use_small_tls_buffers() -> None:
    """Let TLS connections made from now on receive into ``TLS_BUFFER_BYTES``, process-wide."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


def rehearse_handshake(client: ssl.SSLContext, cert: Path, key: Path, name: str) -> None:
    """Shake hands in memory with the server ``name`` that has this certificate.

    OpenSSL and Python fill tables of more than 1 MiB at their first handshake.  Who does this
    before a fork fills them once for all children.  What is wrong with a certificate is said by
    those who use it.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLError, OSError):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(cert, key)
        caller = client.wrap_bio(to_client, to_server, server_hostname=name)
        called = server.wrap_bio(to_server, to_client, server_side=True)
        for side in (caller, called, caller, called):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        caller.write(b"?")
        called.read()
