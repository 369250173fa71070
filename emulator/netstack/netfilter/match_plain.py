"""Matches that look at one field of a packet: comment, mark, connmark, physdev."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from emulator.netstack.netfilter.extension import (
    Given,
    Match,
    ParameterError,
    Predicate,
    RuleEnvironment,
    RuleScope,
    require,
    single,
)
from emulator.netstack.netfilter.lexer import masked, parse_masked, quote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from emulator.netstack.packet import Packet

MAX_COMMENT: Final = 255  # XT_MAX_COMMENT_LEN less the final zero


@dataclass(frozen=True, slots=True)
class CommentMatch(Match):
    """-m comment: matches everything and says why the rule is there."""

    name: ClassVar[str] = "comment"
    options: ClassVar = {"--comment": 1}

    text: str

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        item = require(single(given, "comment"), "comment", "--comment")
        return cls(item.values[0][:MAX_COMMENT])

    def save(self) -> str:
        return f"--comment {quote(self.text)}"

    def listing(self, numeric: bool) -> str:
        return f"/* {self.text} */"


@dataclass(frozen=True, slots=True)
class MarkMatch(Match):
    """-m mark: (mark & mask) == value."""

    name: ClassVar[str] = "mark"
    options: ClassVar = {"--mark": 1}

    value: int
    mask: int = 0xFFFFFFFF
    inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, cls.name)
        item = require(found, cls.name, "--mark")
        value, mask = parse_masked(item.values[0], cls.name, "--mark")
        return cls(value, mask, item.inverted)

    def save(self) -> str:
        return f"{'! ' if self.inverted else ''}--mark {masked(self.value, self.mask)}"

    def listing(self, numeric: bool) -> str:
        return f"mark match {'! ' if self.inverted else ''}{masked(self.value, self.mask)}"

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        value, mask, inverted = self.value, self.mask, self.inverted
        if inverted:
            return lambda packet, _in, _out: packet.mark & mask != value
        return lambda packet, _in, _out: packet.mark & mask == value


@dataclass(frozen=True, slots=True)
class ConnmarkMatch(MarkMatch):
    """-m connmark: the same for the mark of the connection."""

    name: ClassVar[str] = "connmark"

    def listing(self, numeric: bool) -> str:
        return f"connmark match {'!' if self.inverted else ''} {masked(self.value, self.mask)}"

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        value, mask, inverted = self.value, self.mask, self.inverted
        return lambda packet, _in, _out: (
            packet.ct is not None and (packet.ct.mark & mask == value) is not inverted
        )

    @property
    def needs_conntrack(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class PhysdevMatch(Match):
    """-m physdev: the bridge port a bridged packet came in by.

    Bridged frames reach the IPv4 hooks only by bridge netfilter; the port a packet will leave by
    is not known at these hooks, as in Linux for packets that are not bridged.
    """

    name: ClassVar[str] = "physdev"
    options: ClassVar = {
        "--physdev-in": 1,
        "--physdev-out": 1,
        "--physdev-is-in": 0,
        "--physdev-is-out": 0,
        "--physdev-is-bridged": 0,
    }

    # (option, inverted, device name or ""), in the order iptables prints them
    tests: tuple[tuple[str, bool, str], ...]

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "physdev")
        order = ("is-in", "in", "is-out", "out", "is-bridged")
        tests = [
            (option, item.inverted, item.values[0] if item.values else "")
            for option in order
            if (item := found.get(f"--physdev-{option}")) is not None
        ]
        if not tests:
            raise ParameterError("PHYSDEV: no physdev option specified")
        return cls(tuple(tests))

    def save(self) -> str:
        return " ".join(
            f"{'! ' if inverted else ''}--physdev-{option}{' ' if dev else ''}{dev}"
            for option, inverted, dev in self.tests
        )

    def listing(self, numeric: bool) -> str:
        return f"PHYSDEV match {self.save()}"

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        tests = self.tests

        def matches(packet: Packet, _in: str, _out: str) -> bool:
            for option, inverted, dev in tests:
                if option == "is-in":
                    hit = bool(packet.physdev_in)
                elif option == "in":
                    hit = device_matches(packet.physdev_in, dev)
                else:
                    hit = False
                if hit is inverted:
                    return False
            return True

        return matches


def device_matches(dev: str, pattern: str) -> bool:
    """True if a device has the name; ``eth+`` stands for every name that starts with eth."""
    if pattern.endswith("+"):
        return dev.startswith(pattern[:-1])
    return dev == pattern
