"""What a protocol tells those who debug it.

Whatever can be traced has an attribute ``trace`` that is None unless somebody asked (``debug``);
what is told then, and in which words, is the listener's business (``ctl/trace.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agents.bird.kernel import Interface, InterfaceAddress
    from agents.bird.net import Afi
    from agents.bird.peer_host import Life
    from agents.bird.rib import Path


class Trace(Protocol):
    """The listener to one protocol; each method is a thing that happened.

    Networks are table keys; the texts are BIRD's own ("added [best]", "filtered out").
    """

    def imported(self, what: str, afi: Afi, key: bytes, path: Path) -> None:
        """A route of the protocol came into its table, or went."""

    def import_refused(self, why: str, afi: Afi, key: bytes, path: Path) -> None:
        """A route of the protocol did not get into its table."""

    def exported(
        self, what: str, afi: Afi, key: bytes, path: Path, *, several: bool = False
    ) -> None:
        """The protocol was told of a route, or of its end; ``several`` ways were made one."""

    def export_refused(
        self, why: str, afi: Afi, key: bytes, path: Path, *, again: bool = False
    ) -> None:
        """The protocol was not told of a route; ``again`` while everything is repeated to it."""

    def life(self, life: Life, *, resumed: bool = False) -> None:
        """The protocol's state changed; ``resumed`` if its routes had stayed meanwhile."""

    def stopping(self) -> None:
        """It is told to stop."""

    def feeding(self) -> None:
        """Everything is repeated to it."""

    def fed(self, afi: Afi) -> None:
        """It was told everything of a table."""

    def event(self, text: str) -> None:
        """Anything else, in words."""

    def message(self, kind: int, body: bytes, *, received: bool) -> None:
        """A BGP message passed."""

    def kernel(self, key: bytes, what: str) -> None:
        """The kernel protocol saw or wrote a route."""

    def pruning(self) -> None:
        """The kernel protocol compares what it saw with its table."""

    def interface(self, name: str, what: str) -> None:
        """A link changed: what it does, as "goes up"."""

    def address(self, address: bytes, length: int, dev: str, *, first: bool, added: bool) -> None:
        """A link's address came or went; ``first`` of its family there."""


class ExportTrace:
    """What an exporter tells, with the route behind each announcement for when that ends."""

    __slots__ = ("_afi", "_head", "_told", "_trace", "is_feeding")

    def __init__(self, trace: Trace, afi: Afi, told: dict[bytes, Path], with_ids: bool) -> None:
        """``told`` is what was announced before, by key; ``with_ids`` keys begin with path ids."""
        self.is_feeding = False
        self._trace = trace
        self._afi = afi
        self._told = told
        self._head = 4 if with_ids else 0

    def feed_begins(self, has_any: bool) -> None:
        """Everything is told again; ``has_any`` if that is something."""
        self._trace.feeding()
        self.is_feeding = True
        if not has_any:
            self.feed_ends()

    def feed_ends(self) -> None:
        """Everything was told."""
        if self.is_feeding:
            self.is_feeding = False
            self._trace.fed(self._afi)

    def refused(
        self, why: str, networks: Sequence[bytes], path: Path, *, again: bool = False
    ) -> None:
        """A route is not told."""
        for key in networks:
            self._trace.export_refused(why, self._afi, key, path, again=again)

    def announced(self, keys: Sequence[bytes], path: Path, *, several: bool = False) -> None:
        """A route is told of these networks."""
        for key in keys:
            what = "replaced" if key in self._told else "added"
            self._told[key] = path
            self._trace.exported(what, self._afi, key[self._head :], path, several=several)

    def was_told(self, key: bytes) -> bool:
        """True if a route is told of a network."""
        return key in self._told

    def withdrawn(self, keys: Sequence[bytes]) -> None:
        """These networks' routes are told to be gone."""
        for key in keys:
            path = self._told.pop(key, None)
            if path is not None:
                self._trace.exported("removed", self._afi, key[self._head :], path)


def trace_interfaces(
    trace: Trace, before: Iterable[Interface], after: Iterable[Interface], *, with_addresses: bool
) -> None:
    """Tell how the interfaces changed (nest/iface.c); addresses only to who follows them."""
    old = {interface.name: interface for interface in before}
    for now in after:
        was = old.pop(now.name, None)
        old_addresses = was.addresses if was is not None and was.up else ()
        new_addresses = now.addresses if now.up else ()
        if with_addresses:
            _trace_addresses(trace, now.name, old_addresses, new_addresses, added=False)
        if was is None:
            trace.interface(now.name, "goes up" if now.up else "created")
        elif was.up != now.up:
            trace.interface(now.name, "goes up" if now.up else "goes down")
        elif was.running != now.running:
            trace.interface(now.name, "changes link")
        elif was.mtu != now.mtu:
            trace.interface(now.name, "changes MTU")
        if with_addresses:
            _trace_addresses(trace, now.name, new_addresses, old_addresses, added=True)
    for gone in old.values():
        if gone.up:
            if with_addresses:
                _trace_addresses(trace, gone.name, gone.addresses, (), added=False)
            trace.interface(gone.name, "goes down")


def _trace_addresses(
    trace: Trace,
    dev: str,
    some: Sequence[InterfaceAddress],
    others: Sequence[InterfaceAddress],
    *,
    added: bool,
) -> None:
    """Tell those of ``some`` that are not among ``others``."""
    seen: set[int] = set()
    for each in some:
        size = len(each.address)
        if each not in others:
            first = size not in seen
            trace.address(each.address, each.length, dev, first=first, added=added)
        seen.add(size)
