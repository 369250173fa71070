"""Connection tracking: tuples, states and timeouts of one namespace."""

from __future__ import annotations


class Connection:
    """One tracked connection."""

    __slots__ = ()
