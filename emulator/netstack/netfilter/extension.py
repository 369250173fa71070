"""What a match or target of iptables is made of.

An extension is a frozen record of its options.  It is built from the options given on a command
line, prints itself as iptables-save and as ``iptables -L`` would, and compiles to a closure that
looks at packets.  State (counters of -m statistic, token buckets) lives in the closure, so that
equal rules are equal records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from emulator.errors import UsageError
from emulator.netstack.packet import Drop, Packet

if TYPE_CHECKING:
    import random
    from typing import Self

    from emulator.netstack.netfilter.ipset import IpSets
    from emulator.netstack.netfilter.nat import Nat
    from emulator.netstack.netfilter.recent import RecentLists
    from emulator.netstack.packet import NamespaceView


class ParameterError(UsageError):
    """A command line that iptables refuses before it asks the kernel; exit code 2."""


class Accept:
    """Type of the verdict that ends a table's traversal and lets the packet go on."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ACCEPT"


ACCEPT_VERDICT = Accept()

Verdict = Accept | Drop
Predicate = Callable[[Packet, str, str], bool]
# A target's answer: a verdict, or None to go on with the next rule.
Action = Callable[[Packet, str, str], Verdict | None]


class Given(NamedTuple):
    """One option as typed: its canonical name, whether ``!`` stood before it, its values."""

    option: str
    inverted: bool
    values: tuple[str, ...]


class RuleScope(NamedTuple):
    """What an extension may know of the rule it stands in."""

    proto: int
    proto_inverted: bool


class RuleEnvironment(Protocol):
    """What compiled rules reach of the namespace they filter for."""

    clock: Callable[[], float]
    rng: random.Random
    view: NamespaceView
    nat: Nat
    recent: RecentLists
    sets: IpSets
    notes: dict[str, str]


class Extension:
    """Base of all matches and targets.

    ``options`` maps each option to the number of values it takes; ``aliases`` other spellings.
    """

    __slots__ = ()

    name: ClassVar[str]
    options: ClassVar[Mapping[str, int]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        """Make the record; raises ParameterError with iptables' text."""
        raise AssertionError(f"{cls.__name__} has no build")

    def save(self) -> str:
        """Return the options as iptables-save prints them, without ``-m name``; "" for none."""
        return ""

    def listing(self, numeric: bool) -> str:
        """Return the text of ``iptables -L``; "" for none."""
        return ""

    def kernel_refuses(self, scope: RuleScope) -> bool:
        """True if the kernel would answer EINVAL for the extension in such a rule."""
        return False


class Match(Extension):
    """Answers yes or no about a packet."""

    __slots__ = ()

    # Tables the kernel allows it in; empty means all.
    tables: ClassVar[frozenset[str]] = frozenset()

    @property
    def chains(self) -> frozenset[str]:
        """Built-in chains the kernel allows it to be reached from; empty means all."""
        return frozenset()

    @property
    def sets(self) -> tuple[str, ...]:
        """The IP sets it looks into: they must exist."""
        return ()

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        """Return the closure, or None if every packet matches."""
        return None

    @property
    def needs_conntrack(self) -> bool:
        """True if the match looks at connections, so that they must be tracked."""
        return False

    @property
    def volatile(self) -> bool:
        """True if the answer may differ for the next packet of the same flow."""
        return False


class Target(Extension):
    """Acts on a packet that matched a rule."""

    __slots__ = ()

    # Where the kernel allows it; empty means everywhere.
    tables: ClassVar[frozenset[str]] = frozenset()
    chains: ClassVar[frozenset[str]] = frozenset()

    def compile(self, env: RuleEnvironment) -> Action:
        raise AssertionError(f"{type(self).__name__} has no compile")

    @property
    def needs_conntrack(self) -> bool:
        return False


def single(given: Sequence[Given], name: str) -> dict[str, Given]:
    """Index options by name; an option given twice is iptables' error."""
    found: dict[str, Given] = {}
    for item in given:
        if item.option in found:
            raise ParameterError(f'{name}: option "{item.option}" can only be used once.\n')
        found[item.option] = item
    return found


def require(found: Mapping[str, Given], name: str, option: str) -> Given:
    """Return a mandatory option or raise iptables' error."""
    item = found.get(option)
    if item is None:
        raise ParameterError(f'{name}: option "{option}" must be specified\n')
    return item
