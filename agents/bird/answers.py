"""What filters said of single routes, for all who ask the same.

A node of a mesh tells each of its peers the same few routes, and a reflector tells each of its
clients about every other: what one route is for a hundred peers with one filter is worked out once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.bird.filter_eval import Leaf, facts_of, finish, specialise
from agents.bird.outgoing import outgoing

if TYPE_CHECKING:
    from agents.bird.attributes import Attrs
    from agents.bird.config import ChannelConfig, NextHopRule
    from agents.bird.filters import Filter
    from agents.bird.net import Afi
    from agents.bird.outgoing import Terms
    from agents.bird.rib import NextHop, Path

# Answers remembered: a reflector's routes in one burst times its filters, and the kernel's.
MAX_KNOWN: Final = 4096
# Terms an answer remembers: a node's peers have a handful, but of neighbours on one link each has
# its own and nothing to share.
MAX_TERMS: Final = 16


class Answer:
    """One filter's answer for one route as it is now."""

    __slots__ = ("_filter", "_leaving", "_path", "leaf", "ways")

    def __init__(self, filter_: Filter, path: Path, afi: Afi, key: bytes) -> None:
        # Both objects are kept, so that no other can come to have their ids.
        self._filter = filter_
        self._path = path
        self.ways: tuple[NextHop, ...] = path.ways
        self.leaf: Leaf = finish(specialise(filter_, path.attrs, facts_of(path)), afi, key)
        self._leaving: dict[tuple[Terms, NextHopRule], Attrs] = {}

    def leaving(self, terms: Terms, config: ChannelConfig) -> Attrs | None:
        """The attributes with which it leaves to a peer on these terms, None if it does not."""
        if not self.leaf.accept:
            return None
        name = (terms, config.next_hop)
        attrs = self._leaving.get(name)
        if attrs is None:
            if len(self._leaving) >= MAX_TERMS:
                self._leaving.clear()
            attrs = self._leaving[name] = outgoing(self.leaf, self._path, terms, config)
        return attrs


class Answers:
    """The answers of one table's readers."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, bytes], Answer] = {}

    def of(self, filter_: Filter, path: Path, afi: Afi, key: bytes) -> Answer:
        """The answer for one network; asked again when the path goes another way."""
        name = (id(filter_), id(path), key)
        known = self._known.get(name)
        if known is None or known.ways is not path.ways:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[name] = Answer(filter_, path, afi, key)
        return known
