"""Targets of the nat table: DNAT, SNAT, MASQUERADE, REDIRECT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.netfilter.connection import (
    UNTRACKED,
)
from emulator.netstack.netfilter.extension import (
    ACCEPT_VERDICT,
    Action,
    Given,
    ParameterError,
    RuleEnvironment,
    RuleScope,
    Target,
    Verdict,
    require,
    single,
)
from emulator.netstack.netfilter.lexer import parse_unsigned
from emulator.netstack.netfilter.match_l4 import PORT_PROTOCOLS
from emulator.netstack.netfilter.nat import NatRange
from emulator.netstack.packet import Drop, DropReason, Packet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_FLAG_OPTIONS: Final = {"--random": 0, "--random-fully": 0, "--persistent": 0}
LOOPBACK: Final = 0x7F000001
_NAT: Final = frozenset({"nat"})
_DST_CHAINS: Final = frozenset({"PREROUTING", "OUTPUT"})


@dataclass(frozen=True, slots=True)
class _NatTarget(Target):
    """Addresses and ports of a translation; None where the rule names none."""

    ip_min: int | None = None
    ip_max: int | None = None
    port_min: int | None = None
    port_max: int | None = None
    base_port: int | None = None
    random: bool = False
    random_fully: bool = False
    persistent: bool = False

    @property
    def needs_conntrack(self) -> bool:
        return True

    def _ports(self) -> str:
        if self.port_min is None:
            return ""
        text = str(self.port_min)
        if self.port_max != self.port_min:
            text += f"-{self.port_max}"
        return text if self.base_port is None else f"{text}/{self.base_port}"

    def _flags(self, dash: str) -> list[str]:
        words = ("random", "random-fully", "persistent")
        values = (self.random, self.random_fully, self.persistent)
        return [f"{dash}{word}" for word, value in zip(words, values, strict=True) if value]

    def _address_text(self) -> str:
        text = "" if self.ip_min is None else format_ip(self.ip_min)
        if self.ip_max is not None and self.ip_max != self.ip_min:
            text += f"-{format_ip(self.ip_max)}"
        ports = self._ports()
        return f"{text}:{ports}" if ports else text

    def _range(self, ip_min: int, ip_max: int | None = None) -> NatRange:
        return NatRange(
            ip_min,
            ip_min if ip_max is None else ip_max,
            self.port_min,
            self.port_max,
            self.base_port,
            self.random,
            self.random_fully,
            self.persistent,
        )


def _check_ports_allowed(scope: RuleScope) -> None:
    if scope.proto not in PORT_PROTOCOLS or scope.proto_inverted:
        raise ParameterError("Need TCP, UDP, SCTP or DCCP with port specification")


def _parse_ports(text: str, scope: RuleScope) -> tuple[int, int, int | None]:
    _check_ports_allowed(scope)
    ports, slash, base_text = text.partition("/")
    low_text, dash, high_text = ports.partition("-")
    numbers = []
    for word in (low_text, *([high_text] if dash else []), *([base_text] if slash else [])):
        number = parse_unsigned(word, 0 if word != low_text else 1, 65535)
        if number is None:
            raise ParameterError(f"Port `{word}' not valid")
        numbers.append(number)
    low = numbers[0]
    high = numbers[1] if dash else low
    if high < low:
        raise ParameterError(f"Port range `{high_text}' funky")
    return low, high, numbers[-1] if slash else None


def _parse_address(text: str) -> int:
    try:
        return parse_ip(text)
    except UsageError:
        raise ParameterError(f'Bad IP address "{text}"') from None


def _parse_to(
    text: str, scope: RuleScope
) -> tuple[int | None, int | None, int | None, int | None, int | None]:
    addresses, colon, ports = text.partition(":")
    low = high = base = None
    if colon:
        low, high, base = _parse_ports(ports, scope)
        if not addresses:
            return None, None, low, high, base
    first, dash, last = addresses.partition("-")
    ip_min = _parse_address(first)
    return ip_min, _parse_address(last) if dash else ip_min, low, high, base


def _flags_of(found: dict[str, Given]) -> tuple[bool, bool, bool]:
    return "--random" in found, "--random-fully" in found, "--persistent" in found


@dataclass(frozen=True, slots=True)
class DnatTarget(_NatTarget):
    """-j DNAT: give a new connection another destination."""

    name: ClassVar[str] = "DNAT"
    options: ClassVar = {"--to-destination": 1, **_FLAG_OPTIONS}
    tables: ClassVar = _NAT
    chains: ClassVar = _DST_CHAINS

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "DNAT")
        item = require(found, "DNAT", "--to-destination")
        return cls(*_parse_to(item.values[0], scope), *_flags_of(found))

    def save(self) -> str:
        return " ".join([f"--to-destination {self._address_text()}", *self._flags("--")])

    def listing(self, numeric: bool) -> str:
        return " ".join([f"to:{self._address_text()}", *self._flags("")])

    def compile(self, env: RuleEnvironment) -> Action:
        setup, fixed = env.nat.setup, self._range(self.ip_min or 0, self.ip_max)
        keeps_address = self.ip_min is None

        def dnat(packet: Packet, _in: str, _out: str) -> Verdict:
            connection = packet.ct
            if connection is None or connection is UNTRACKED:
                return ACCEPT_VERDICT
            wanted = self._range(packet.dst) if keeps_address else fixed
            return setup(connection, wanted, source=False) or ACCEPT_VERDICT

        return dnat


@dataclass(frozen=True, slots=True)
class SnatTarget(_NatTarget):
    """-j SNAT: give a new connection another source."""

    name: ClassVar[str] = "SNAT"
    options: ClassVar = {"--to-source": 1, **_FLAG_OPTIONS}
    tables: ClassVar = _NAT
    chains: ClassVar = frozenset({"POSTROUTING", "INPUT"})

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "SNAT")
        item = require(found, "SNAT", "--to-source")
        return cls(*_parse_to(item.values[0], scope), *_flags_of(found))

    def save(self) -> str:
        return " ".join([f"--to-source {self._address_text()}", *self._flags("--")])

    def listing(self, numeric: bool) -> str:
        return " ".join([f"to:{self._address_text()}", *self._flags("")])

    def compile(self, env: RuleEnvironment) -> Action:
        setup, fixed = env.nat.setup, self._range(self.ip_min or 0, self.ip_max)
        keeps_address = self.ip_min is None

        def snat(packet: Packet, _in: str, _out: str) -> Verdict:
            connection = packet.ct
            if connection is None or connection is UNTRACKED:
                return ACCEPT_VERDICT
            wanted = self._range(packet.src) if keeps_address else fixed
            return setup(connection, wanted, source=True) or ACCEPT_VERDICT

        return snat


@dataclass(frozen=True, slots=True)
class MasqueradeTarget(_NatTarget):
    """-j MASQUERADE: SNAT to the address of the device the packet leaves by."""

    name: ClassVar[str] = "MASQUERADE"
    options: ClassVar = {"--to-ports": 1, "--random": 0, "--random-fully": 0}
    tables: ClassVar = _NAT
    chains: ClassVar = frozenset({"POSTROUTING"})

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "MASQUERADE")
        low = high = None
        if "--to-ports" in found:
            low, high, _ = _parse_ports(found["--to-ports"].values[0], scope)
        return cls(None, None, low, high, None, *_flags_of(found))

    def save(self) -> str:
        ports = [f"--to-ports {self._ports()}"] if self.port_min is not None else []
        return " ".join(ports + self._flags("--"))

    def listing(self, numeric: bool) -> str:
        ports = [f"masq ports: {self._ports()}"] if self.port_min is not None else []
        return " ".join(ports + self._flags(""))

    def compile(self, env: RuleEnvironment) -> Action:
        setup, primary = env.nat.setup, env.view.primary_address

        def masquerade(packet: Packet, _in: str, out_dev: str) -> Verdict:
            connection = packet.ct
            if connection is None or connection is UNTRACKED or packet.src == 0:
                return ACCEPT_VERDICT
            ip = primary(out_dev, packet.dst)
            if ip is None:
                return Drop(
                    DropReason.NETFILTER_DROP, f"MASQUERADE: {out_dev} has no address to take"
                )
            connection.masquerade_dev = out_dev
            return setup(connection, self._range(ip), source=True) or ACCEPT_VERDICT

        return masquerade


@dataclass(frozen=True, slots=True)
class RedirectTarget(_NatTarget):
    """-j REDIRECT: DNAT to this host."""

    name: ClassVar[str] = "REDIRECT"
    options: ClassVar = {"--to-ports": 1, "--random": 0}
    tables: ClassVar = _NAT
    chains: ClassVar = _DST_CHAINS

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "REDIRECT")
        low = high = None
        if "--to-ports" in found:
            low, high, _ = _parse_ports(found["--to-ports"].values[0], scope)
        return cls(None, None, low, high, None, "--random" in found)

    def save(self) -> str:
        ports = [f"--to-ports {self._ports()}"] if self.port_min is not None else []
        return " ".join(ports + self._flags("--"))

    def listing(self, numeric: bool) -> str:
        ports = [f"redir ports {self._ports()}"] if self.port_min is not None else []
        return " ".join(ports + self._flags(""))

    def compile(self, env: RuleEnvironment) -> Action:
        setup, primary = env.nat.setup, env.view.primary_address

        def redirect(packet: Packet, in_dev: str, _out: str) -> Verdict:
            connection = packet.ct
            if connection is None or connection is UNTRACKED:
                return ACCEPT_VERDICT
            # A packet of this host goes to the loopback address, one that arrives to the device's.
            ip = primary(in_dev, packet.src) if in_dev else LOOPBACK
            if ip is None:
                return Drop(DropReason.NETFILTER_DROP, f"REDIRECT: {in_dev} has no address to take")
            return setup(connection, self._range(ip), source=False) or ACCEPT_VERDICT

        return redirect
