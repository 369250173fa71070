"""Matches on transport headers: tcp, udp, icmp, multiport."""

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
    single,
)
from emulator.netstack.netfilter.lexer import SERVICES, parse_port, parse_unsigned
from emulator.netstack.packet import ICMP, TCP, UDP, Packet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

MAX_MULTIPORTS: Final = 15  # XT_MULTI_PORTS
TCP_FLAGS: Final = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
PORT_PROTOCOLS: Final = frozenset((TCP, UDP, 33, 132, 136))

# name -> (type, lowest code, highest code); the first name of a pair is the one printed.
ICMP_NAMES: Final[dict[str, tuple[int, int, int]]] = {
    "any": (255, 0, 255),
    "echo-reply": (0, 0, 255),
    "pong": (0, 0, 255),
    "destination-unreachable": (3, 0, 255),
    "network-unreachable": (3, 0, 0),
    "host-unreachable": (3, 1, 1),
    "protocol-unreachable": (3, 2, 2),
    "port-unreachable": (3, 3, 3),
    "fragmentation-needed": (3, 4, 4),
    "source-route-failed": (3, 5, 5),
    "network-unknown": (3, 6, 6),
    "host-unknown": (3, 7, 7),
    "network-prohibited": (3, 9, 9),
    "host-prohibited": (3, 10, 10),
    "communication-prohibited": (3, 13, 13),
    "source-quench": (4, 0, 255),
    "redirect": (5, 0, 255),
    "network-redirect": (5, 0, 0),
    "host-redirect": (5, 1, 1),
    "echo-request": (8, 0, 255),
    "ping": (8, 0, 255),
    "router-advertisement": (9, 0, 255),
    "router-solicitation": (10, 0, 255),
    "time-exceeded": (11, 0, 255),
    "ttl-exceeded": (11, 0, 255),
    "ttl-zero-during-transit": (11, 0, 0),
    "ttl-zero-during-reassembly": (11, 1, 1),
    "parameter-problem": (12, 0, 255),
    "timestamp-request": (13, 0, 255),
    "timestamp-reply": (14, 0, 255),
    "address-mask-request": (17, 0, 255),
    "address-mask-reply": (18, 0, 255),
}


def port_name(port: int, numeric: bool) -> str:
    """Print a port as -L does."""
    return str(port) if numeric else SERVICES.get(port, str(port))


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports low .. high, or all others when inverted."""

    low: int = 0
    high: int = 65535
    inverted: bool = False

    @classmethod
    def parse(cls, item: Given) -> PortRange:
        low_text, colon, high_text = item.values[0].partition(":")
        low = parse_port(low_text) if low_text or not colon else 0
        high = (parse_port(high_text) if high_text else 65535) if colon else low
        if low > high:
            raise ParameterError("invalid portrange (min > max)")
        return cls(low, high, item.inverted)

    @property
    def exact(self) -> int | None:
        """The only port that matches, if there is one."""
        return self.low if self.low == self.high and not self.inverted else None

    @property
    def any(self) -> bool:
        return self.low == 0 and self.high == 65535 and not self.inverted

    def save(self, option: str) -> str:
        if self.any:
            return ""
        text = str(self.low) if self.low == self.high else f"{self.low}:{self.high}"
        return f"{'! ' if self.inverted else ''}--{option} {text}"

    def listing(self, label: str, numeric: bool) -> str:
        if self.any:
            return ""
        sign = "!" if self.inverted else ""
        if self.low == self.high:
            return f"{label}:{sign}{port_name(self.low, numeric)}"
        low, high = port_name(self.low, numeric), port_name(self.high, numeric)
        return f"{label}s:{sign}{low}:{high}"


def _port_options(
    given: Sequence[Given], scope: RuleScope, proto: int, name: str
) -> tuple[dict[str, Given], PortRange, PortRange]:
    found: dict[str, Given] = {}
    for item in given:
        if item.option in found:
            full = {"--sport": "--source-port", "--dport": "--destination-port"}
            raise ParameterError(f"Only one `{full.get(item.option, item.option)}' allowed")
        found[item.option] = item
    if given and (scope.proto != proto or scope.proto_inverted):
        raise ParameterError(f"{name.upper()} match requires '-p {name}'")
    ends = [
        PortRange.parse(found[option]) if option in found else PortRange()
        for option in ("--sport", "--dport")
    ]
    return found, ends[0], ends[1]


def _port_predicate(sport: PortRange, dport: PortRange, proto: int) -> Predicate | None:
    """Compile two ranges; the commonest shapes get the shortest closures."""
    if sport.any and dport.any:
        return None
    exact = dport.exact
    if sport.any and exact is not None:
        return lambda packet, _in, _out: packet.dport == exact and packet.proto == proto
    slow, shigh, sinv = sport.low, sport.high, sport.inverted
    dlow, dhigh, dinv = dport.low, dport.high, dport.inverted
    return lambda packet, _in, _out: (
        packet.proto == proto
        and (slow <= packet.sport <= shigh) is not sinv
        and (dlow <= packet.dport <= dhigh) is not dinv
    )


_PORT_ALIASES: Final = {"--source-port": "--sport", "--destination-port": "--dport"}


@dataclass(frozen=True, slots=True)
class TcpMatch(Match):
    """-m tcp: ports, flags, one option."""

    name: ClassVar[str] = "tcp"
    options: ClassVar = {
        "--sport": 1,
        "--dport": 1,
        "--tcp-flags": 2,
        "--syn": 0,
        "--tcp-option": 1,
    }
    aliases: ClassVar = _PORT_ALIASES

    sport: PortRange = PortRange()
    dport: PortRange = PortRange()
    flag_mask: int = 0
    flag_value: int = 0
    flags_inverted: bool = False
    option: int = 0
    option_inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found, sport, dport = _port_options(given, scope, TCP, "tcp")
        mask = value = option = 0
        inverted = option_inverted = False
        if "--syn" in found:
            mask, value, inverted = 0x17, 0x02, found["--syn"].inverted
        if "--tcp-flags" in found:
            if "--syn" in found:
                raise ParameterError("Only one of `--syn' or `--tcp-flags'  allowed")
            item = found["--tcp-flags"]
            mask, value = (_parse_flags(text) for text in item.values)
            inverted = item.inverted
        if "--tcp-option" in found:
            item = found["--tcp-option"]
            parsed = parse_unsigned(item.values[0], 1, 255)
            if parsed is None:
                raise ParameterError(f"Bad TCP option `{item.values[0]}'")
            option, option_inverted = parsed, item.inverted
        return cls(sport, dport, mask, value, inverted, option, option_inverted)

    def save(self) -> str:
        parts = [self.sport.save("sport"), self.dport.save("dport")]
        if self.option:
            parts.append(f"{'! ' if self.option_inverted else ''}--tcp-option {self.option}")
        if self.flag_mask:
            sign = "! " if self.flags_inverted else ""
            parts.append(
                f"{sign}--tcp-flags {_flag_names(self.flag_mask)} {_flag_names(self.flag_value)}"
            )
        return " ".join(filter(None, parts))

    def listing(self, numeric: bool) -> str:
        parts = ["tcp", self.sport.listing("spt", numeric), self.dport.listing("dpt", numeric)]
        if self.option:
            parts.append(f"option={'!' if self.option_inverted else ''}{self.option}")
        if self.flag_mask:
            sign = "!" if self.flags_inverted else ""
            if numeric:
                text = f"0x{self.flag_mask:02X}/0x{self.flag_value:02X}"
            else:
                text = f"{_flag_names(self.flag_mask)}/{_flag_names(self.flag_value)}"
            parts.append(f"flags:{sign}{text}")
        return " ".join(filter(None, parts))

    def kernel_refuses(self, scope: RuleScope) -> bool:
        return scope.proto != TCP or scope.proto_inverted

    @property
    def volatile(self) -> bool:
        # Of the flags only PSH differs between the segments of a flow that may be cached.
        return bool(self.option or self.flag_mask & TCP_FLAGS["PSH"])

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        ports = _port_predicate(self.sport, self.dport, TCP)
        if not self.flag_mask and not self.option:
            return ports
        mask, value, inverted = self.flag_mask, self.flag_value, self.flags_inverted
        option, option_inverted = self.option, self.option_inverted

        def matches(packet: Packet, in_dev: str, out_dev: str) -> bool:
            if ports is not None and not ports(packet, in_dev, out_dev):
                return False
            at = packet.header_len
            if len(packet.data) < at + 20:
                return False
            if mask and ((packet.data[at + 13] & mask) == value) is inverted:
                return False
            return not option or _has_option(packet.data, at, option) is not option_inverted

        return matches


def _parse_flags(text: str) -> int:
    bits = 0
    for word in text.split(","):
        upper = word.upper()
        if upper == "ALL":
            bits |= 0x3F
        elif upper in TCP_FLAGS:
            bits |= TCP_FLAGS[upper]
        elif upper != "NONE":
            raise ParameterError(f"Unknown TCP flag `{word}'")
    return bits


def _flag_names(bits: int) -> str:
    return ",".join(name for name, bit in TCP_FLAGS.items() if bits & bit) or "NONE"


def _has_option(data: bytes, header_at: int, wanted: int) -> bool:
    at = header_at + 20
    end = min(header_at + (data[header_at + 12] >> 4) * 4, len(data))
    while at < end:
        kind = data[at]
        if kind == wanted:
            return True
        if kind == 0:
            return False
        at += 1 if kind == 1 or at + 1 >= end else max(data[at + 1], 2)
    return False


@dataclass(frozen=True, slots=True)
class UdpMatch(Match):
    """-m udp: ports."""

    name: ClassVar[str] = "udp"
    options: ClassVar = {"--sport": 1, "--dport": 1}
    aliases: ClassVar = _PORT_ALIASES

    sport: PortRange = PortRange()
    dport: PortRange = PortRange()

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        _, sport, dport = _port_options(given, scope, UDP, "udp")
        return cls(sport, dport)

    def save(self) -> str:
        return " ".join(filter(None, (self.sport.save("sport"), self.dport.save("dport"))))

    def listing(self, numeric: bool) -> str:
        parts = ("udp", self.sport.listing("spt", numeric), self.dport.listing("dpt", numeric))
        return " ".join(filter(None, parts))

    def kernel_refuses(self, scope: RuleScope) -> bool:
        return scope.proto != UDP or scope.proto_inverted

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        return _port_predicate(self.sport, self.dport, UDP)


@dataclass(frozen=True, slots=True)
class IcmpMatch(Match):
    """-m icmp: type and code; type 255 is any."""

    name: ClassVar[str] = "icmp"
    options: ClassVar = {"--icmp-type": 1}

    kind: int
    low_code: int
    high_code: int
    inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "icmp")
        item = found.get("--icmp-type")
        if item is None:
            return cls(255, 0, 255)
        text = item.values[0]
        hits = {name: v for name, v in ICMP_NAMES.items() if name.startswith(text.lower())}
        exact = ICMP_NAMES.get(text.lower())
        if exact is not None:
            return cls(*exact, item.inverted)
        if text and len(hits) == 1:
            return cls(*next(iter(hits.values())), item.inverted)
        kind_text, slash, code_text = text.partition("/")
        kind = parse_unsigned(kind_text, 0, 255)
        code = parse_unsigned(code_text, 0, 255) if slash else 0
        if kind is None or code is None:
            raise ParameterError(f"Unknown ICMP type `{text}'")
        return cls(kind, code, code if slash else 255, item.inverted)

    def save(self) -> str:
        sign = "! " if self.inverted else ""
        if self.kind == 255:
            return f"{sign}--icmp-type any"
        code = "" if (self.low_code, self.high_code) == (0, 255) else f"/{self.low_code}"
        return f"{sign}--icmp-type {self.kind}{code}"

    def listing(self, numeric: bool) -> str:
        sign = "!" if self.inverted else ""
        if not numeric:
            wanted = (self.kind, self.low_code, self.high_code)
            for name, value in ICMP_NAMES.items():
                if value == wanted:
                    return f"icmp {sign}{name}"
        label = "icmp !type" if self.inverted else "icmptype"
        code = "" if (self.low_code, self.high_code) == (0, 255) else f" code {self.low_code}"
        return f"{label} {self.kind}{code}"

    def kernel_refuses(self, scope: RuleScope) -> bool:
        return scope.proto != ICMP or scope.proto_inverted

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        kind, low, high, inverted = self.kind, self.low_code, self.high_code, self.inverted

        def matches(packet: Packet, _in: str, _out: str) -> bool:
            data, at = packet.data, packet.header_len
            if packet.proto != ICMP or len(data) < at + 2:
                return False
            hit = kind == 255 or (data[at] == kind and low <= data[at + 1] <= high)
            return hit is not inverted

        return matches


@dataclass(frozen=True, slots=True)
class MultiportMatch(Match):
    """-m multiport: up to 15 ports or ranges of the source, the destination or either."""

    name: ClassVar[str] = "multiport"
    options: ClassVar = {"--sports": 1, "--dports": 1, "--ports": 1}
    aliases: ClassVar = {"--source-ports": "--sports", "--destination-ports": "--dports"}

    side: str
    ports: tuple[tuple[int, int], ...]
    inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "multiport")
        if not found:
            raise ParameterError("multiport expection an option")
        if len(found) > 1:
            first, second = list(found)[:2]
            raise ParameterError(
                f'multiport: option "{first}" cannot be used together with "{second}".\n'
            )
        item = next(iter(found.values()))
        if scope.proto not in PORT_PROTOCOLS or scope.proto_inverted:
            raise ParameterError(
                "multiport needs `-p tcp', `-p udp', `-p udplite', `-p sctp' or `-p dccp'"
            )
        ports: list[tuple[int, int]] = []
        slots = 0
        for text in item.values[0].split(","):
            low_text, colon, high_text = text.partition(":")
            low = parse_port(low_text)
            high = parse_port(high_text) if colon else low
            if low > high:
                raise ParameterError("invalid portrange specified")
            slots += 2 if colon else 1
            if slots > MAX_MULTIPORTS:
                raise ParameterError("too many ports specified")
            ports.append((low, high))
        return cls(item.option.removeprefix("--"), tuple(ports), item.inverted)

    def _text(self, numeric: bool) -> str:
        return ",".join(
            port_name(low, numeric)
            if low == high
            else f"{port_name(low, numeric)}:{port_name(high, numeric)}"
            for low, high in self.ports
        )

    def save(self) -> str:
        return f"{'! ' if self.inverted else ''}--{self.side} {self._text(True)}"

    def listing(self, numeric: bool) -> str:
        # Of either side's ports iptables never prints the names.
        text = self._text(numeric or self.side == "ports")
        return f"multiport {self.side} {' !' if self.inverted else ''}{text}"

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        ports, side, inverted = self.ports, self.side, self.inverted

        def matches(packet: Packet, _in: str, _out: str) -> bool:
            sport, dport = packet.sport, packet.dport
            for low, high in ports:
                if side != "dports" and low <= sport <= high:
                    return not inverted
                if side != "sports" and low <= dport <= high:
                    return not inverted
            return inverted

        return matches
