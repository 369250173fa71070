"""Matches on connection tracking: conntrack and its short form state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from emulator.addr import format_ip
from emulator.netstack.netfilter.connection import (
    ASSURED,
    CONFIRMED,
    DST_NAT,
    EXPECTED,
    SEEN_REPLY,
    SRC_NAT,
    UNTRACKED,
    Connection,
    CtState,
    ct_state,
)
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
from emulator.netstack.netfilter.lexer import (
    format_network,
    parse_network,
    parse_port,
    parse_protocol,
    parse_unsigned,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from emulator.netstack.packet import Packet

CT_STATES: Final = {
    name: CtState[name]
    for name in ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
}
CT_STATUSES: Final = {
    "EXPECTED": EXPECTED,
    "SEEN_REPLY": SEEN_REPLY,
    "ASSURED": ASSURED,
    "CONFIRMED": CONFIRMED,
}
_SNAT: Final = int(CtState.SNAT)
_DNAT: Final = int(CtState.DNAT)
# Options in the order iptables prints them.
_ORDER: Final = (
    "ctstate",
    "ctproto",
    "ctorigsrc",
    "ctorigdst",
    "ctreplsrc",
    "ctrepldst",
    "ctorigsrcport",
    "ctorigdstport",
    "ctreplsrcport",
    "ctrepldstport",
    "ctstatus",
    "ctexpire",
    "ctdir",
)
_Test = tuple[str, bool, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ConntrackMatch(Match):
    """-m conntrack: state, tuples, status, expiry and direction of a packet's connection."""

    name: ClassVar[str] = "conntrack"
    options: ClassVar = {f"--{option}": 1 for option in _ORDER}

    # (option, inverted, numbers), in the order iptables prints them
    tests: tuple[_Test, ...]

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "conntrack")
        tests: list[_Test] = []
        for option in _ORDER:
            item = found.get(f"--{option}")
            if item is not None:
                tests.append((option, item.inverted, _parse(option, item.values[0])))
        if not tests:
            raise ParameterError("conntrack: At least one option is required")
        return cls(tuple(tests))

    def save(self) -> str:
        return " ".join(
            f"{'! ' if inverted else ''}--{option} {_format(option, numbers, save=True)}"
            for option, inverted, numbers in self.tests
        )

    def listing(self, numeric: bool) -> str:
        return " ".join(
            f"{'! ' if inverted else ''}{option} {_format(option, numbers, save=False)}"
            for option, inverted, numbers in self.tests
        )

    @property
    def needs_conntrack(self) -> bool:
        return True

    @property
    def volatile(self) -> bool:
        return any(option == "ctexpire" for option, _, _ in self.tests)

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        tests = [
            (_compile_state(numbers[0]), inverted)
            if option == "ctstate"
            else (_compile_test(option, numbers, env), inverted)
            for option, inverted, numbers in self.tests
        ]
        if len(tests) == 1:
            test, inverted = tests[0]
            return lambda packet, _in, _out: test(packet) is not inverted
        return lambda packet, _in, _out: all(test(packet) is not inv for test, inv in tests)


def _parse_names(text: str, names: dict[str, CtState], label: str) -> int:
    bits = 0
    for word in text.split(","):
        value = names.get(word.upper())
        if value is None:
            raise ParameterError(f'Bad {label} "{word}"')
        bits |= value
    return bits


def _parse(option: str, text: str) -> tuple[int, ...]:
    if option == "ctstate":
        return (_parse_names(text, CT_STATES, "ctstate"),)
    if option == "ctproto":
        return (parse_protocol(text),)
    if option == "ctstatus":
        bits = 0
        for word in text.split(","):
            if word.upper() == "NONE":
                continue
            if word.upper() not in CT_STATUSES:
                raise ParameterError(f'Bad ctstatus "{word}"')
            bits |= CT_STATUSES[word.upper()]
        return (bits,)
    if option == "ctdir":
        if text.upper() not in ("ORIGINAL", "REPLY"):
            raise ParameterError(f'conntrack: Bad value for "--ctdir" option: "{text}"')
        return (int(text.upper() == "REPLY"),)
    if option == "ctexpire" or option.endswith("port"):
        low_text, colon, high_text = text.partition(":")
        if option == "ctexpire":
            low = parse_unsigned(low_text)
            high = parse_unsigned(high_text) if colon else low
            if low is None or high is None:
                raise ParameterError(
                    'conntrack: bad value for option "--ctexpire", or out of range '
                    "(0-4294967295).\n"
                )
            return low, high
        port = parse_port(low_text)
        return port, parse_port(high_text) if colon else port
    return parse_network(text)


def _format(option: str, numbers: tuple[int, ...], *, save: bool) -> str:
    if option == "ctstate":
        return ",".join(name for name, bit in CT_STATES.items() if numbers[0] & bit)
    if option == "ctproto":
        return str(numbers[0])
    if option == "ctstatus":
        return ",".join(n for n, bit in CT_STATUSES.items() if numbers[0] & bit) or "NONE"
    if option == "ctdir":
        return "REPLY" if numbers[0] else "ORIGINAL"
    low, high = numbers
    if option == "ctexpire" or option.endswith("port"):
        return str(low) if low == high else f"{low}:{high}"
    if high == 0xFFFFFFFF:
        return format_ip(low)
    return format_network(low, high, save=save)


def _compile_state(wanted: int) -> Callable[[Packet], bool]:
    if not wanted & (_SNAT | _DNAT):
        return lambda packet: bool(ct_state(packet) & wanted)

    def test(packet: Packet) -> bool:
        if ct_state(packet) & wanted:
            return True
        connection = packet.ct
        if connection is None:
            return False
        status = connection.status
        return bool((wanted & _SNAT and status & SRC_NAT) or (wanted & _DNAT and status & DST_NAT))

    return test


def _field(option: str) -> Callable[[Connection], int]:
    if option.startswith("ctorig"):
        rest = option.removeprefix("ctorig")
        if rest == "src":
            return lambda c: c.original.src
        if rest == "dst":
            return lambda c: c.original.dst
        return (lambda c: c.original.sport) if rest == "srcport" else lambda c: c.original.dport
    rest = option.removeprefix("ctrepl")
    if rest == "src":
        return lambda c: c.reply.src
    if rest == "dst":
        return lambda c: c.reply.dst
    return (lambda c: c.reply.sport) if rest == "srcport" else lambda c: c.reply.dport


def _compile_test(
    option: str, numbers: tuple[int, ...], env: RuleEnvironment
) -> Callable[[Packet], bool]:
    if option == "ctdir":
        wanted = bool(numbers[0])
        return lambda packet: packet.ct is not None and packet.ct_reply is wanted

    test: Callable[[Connection], bool]
    if option == "ctproto":
        proto = numbers[0]

        def test(c: Connection) -> bool:
            return c.proto == proto
    elif option == "ctstatus":
        bits = numbers[0]

        def test(c: Connection) -> bool:
            mask = EXPECTED | SEEN_REPLY | ASSURED | CONFIRMED
            return bool(c.status & bits) if bits else not c.status & mask
    elif option == "ctexpire":
        low, high = numbers
        clock = env.clock

        def test(c: Connection) -> bool:
            return low <= int(c.expire_at - clock()) <= high
    else:
        field = _field(option)
        first, second = numbers
        if option.endswith("port"):

            def test(c: Connection) -> bool:
                return first <= field(c) <= second
        else:

            def test(c: Connection) -> bool:
                return field(c) & second == first

    return lambda packet: packet.ct is not None and packet.ct is not UNTRACKED and test(packet.ct)


@dataclass(frozen=True, slots=True)
class StateMatch(Match):
    """-m state: the states of a connection under their old name."""

    name: ClassVar[str] = "state"
    options: ClassVar = {"--state": 1}

    states: int
    inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        item = require(single(given, "state"), "state", "--state")
        names = {n: v for n, v in CT_STATES.items() if n not in ("SNAT", "DNAT")}
        return cls(_parse_names(item.values[0], names, "state"), item.inverted)

    def _names(self) -> str:
        return _format("ctstate", (self.states,), save=True)

    def save(self) -> str:
        return f"{'! ' if self.inverted else ''}--state {self._names()}"

    def listing(self, numeric: bool) -> str:
        return f"{'! ' if self.inverted else ''}state {self._names()}"

    @property
    def needs_conntrack(self) -> bool:
        return True

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        states, inverted = self.states, self.inverted
        return lambda packet, _in, _out: bool(ct_state(packet) & states) is not inverted
