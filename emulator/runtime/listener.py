"""A listening socket that is there before its server: clients wait instead of trying again."""

from __future__ import annotations

import socket
from typing import Final

# Connections nobody has accepted yet: when a large cluster starts each node makes some, all at
# once.  Linux itself stops at net.core.somaxconn, 4096.
BACKLOG: Final = 1024


def listen_tcp(host: str, port: int) -> socket.socket:
    """Bind and listen, to be handed to a server later; raises OSError for a taken address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
