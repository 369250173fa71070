"""The error families: each says whose fault it is.

- ``UsageError``: the person or their file is wrong.  The command line prints the message as one
  line and exits with 2; an API maps it to its own form.
- ``PeerError``: the other end of a protocol broke it.  Subclasses carry what to answer.
- ``WireError``: bytes that do not parse.  A codec raises nothing else.
- A broken invariant of ours is an ``AssertionError``: the process dies, the supervisor restarts it.

Packets are never exceptions: see ``emulator.netstack.packet.Drop``.
"""

from __future__ import annotations


class PodwireError(Exception):
    """Base of all errors Podwire raises on purpose."""


class UsageError(PodwireError):
    """Bad input of the operator: says what, where and what to do."""


class PeerError(PodwireError):
    """The peer broke the protocol."""


class WireError(PeerError):
    """Bytes that do not parse; the text says which field of what was short or wrong."""


class ExhaustedError(PodwireError):
    """A named limit was reached (addresses, ports, table entries)."""
