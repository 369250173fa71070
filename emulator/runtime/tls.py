"""What TLS costs a process with many quiet connections."""

from __future__ import annotations

import asyncio.sslproto
import contextlib
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# asyncio fills 256 KiB per TLS connection with zeros to receive into.  A node keeps half a dozen
# watches open and the API server of 100 nodes a thousand, on which little is said; what is longer
# (a record has up to 16 KiB) comes in several reads.
TLS_BUFFER_BYTES: Final = 8 * 1024
# With more a node copies no fewer pages.
REHEARSALS: Final = 4
_rehearsed: Final[list[object]] = []


def use_small_tls_buffers() -> None:
    """Let TLS connections made from now on receive into ``TLS_BUFFER_BYTES``, process-wide."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


def rehearse_handshakes(client: ssl.SSLContext, cert: Path, key: Path, name: str) -> None:
    """Shake hands in memory with the server ``name`` that has this certificate.

    OpenSSL and Python fill tables of more than 1 MiB at their first handshake.  Who does this
    before a fork fills them once for all children.  The connections are kept: they lie in the gaps
    between other things, where those of a child would each copy a page.  What is wrong with a
    certificate is said by those who use it.
    """
    with contextlib.suppress(ssl.SSLError, OSError):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(cert, key)
        for _ in range(REHEARSALS):
            to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
            caller = client.wrap_bio(to_client, to_server, server_hostname=name)
            called = server.wrap_bio(to_server, to_client, server_side=True)
            _rehearsed.append((caller, called))
            for side in (caller, called, caller, called):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
            caller.write(b"?")
            called.read()
