"""Targets that do not translate: REJECT, MARK, CONNMARK, LOG, NOTRACK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from emulator.netstack.netfilter.connection import (
    UNTRACKED,
)
from emulator.netstack.netfilter.extension import (
    Action,
    Given,
    ParameterError,
    RuleEnvironment,
    RuleScope,
    Target,
    Verdict,
    single,
)
from emulator.netstack.netfilter.lexer import parse_masked, parse_unsigned, quote
from emulator.netstack.netfilter.rewrite import ICMP_ERROR_TYPES
from emulator.netstack.packet import ICMP, TCP, Drop, DropReason, Packet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

# --reject-with: full name -> (short name, ICMP code of type 3)
REJECT_TYPES: Final = {
    "icmp-net-unreachable": ("net-unreach", 0),
    "icmp-host-unreachable": ("host-unreach", 1),
    "icmp-proto-unreachable": ("proto-unreach", 2),
    "icmp-port-unreachable": ("port-unreach", 3),
    "icmp-net-prohibited": ("net-prohib", 9),
    "icmp-host-prohibited": ("host-prohib", 10),
    "tcp-reset": ("tcp-rst", -1),
    "icmp-admin-prohibited": ("admin-prohib", 13),
}
MAX_LOG_PREFIX: Final = 29
_LOG_LEVELS: Final = {
    "panic": 0,
    "emerg": 0,
    "alert": 1,
    "crit": 2,
    "error": 3,
    "err": 3,
    "warn": 4,
    "warning": 4,
    "notice": 5,
    "info": 6,
    "debug": 7,
}
_LOG_FLAGS: Final = {
    "--log-tcp-sequence": 1,
    "--log-tcp-options": 2,
    "--log-ip-options": 4,
    "--log-uid": 8,
    "--log-macdecode": 32,
}


@dataclass(frozen=True, slots=True)
class RejectTarget(Target):
    """-j REJECT: drop and say so to the sender."""

    name: ClassVar[str] = "REJECT"
    options: ClassVar = {"--reject-with": 1}
    tables: ClassVar = frozenset({"filter"})
    chains: ClassVar = frozenset({"INPUT", "FORWARD", "OUTPUT"})

    kind: str = "icmp-port-unreachable"

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "REJECT")
        if "--reject-with" not in found:
            return cls()
        text = found["--reject-with"].values[0].lower()
        for name, (short, _) in REJECT_TYPES.items():
            if text and (name.startswith(text) or short.startswith(text)):
                return cls(name)
        raise ParameterError(f'unknown reject type "{found["--reject-with"].values[0]}"')

    def save(self) -> str:
        return f"--reject-with {self.kind}"

    def listing(self, numeric: bool) -> str:
        return f"reject-with {self.kind}"

    def kernel_refuses(self, scope: RuleScope) -> bool:
        return self.kind == "tcp-reset" and (scope.proto != TCP or scope.proto_inverted)

    def compile(self, env: RuleEnvironment) -> Action:
        code = REJECT_TYPES[self.kind][1]
        detail = f"REJECT --reject-with {self.kind}"
        if code < 0:
            reset = Drop(DropReason.NETFILTER_REJECT, detail, reset=True)
            return lambda _packet, _in, _out: reset
        answered = Drop(DropReason.NETFILTER_REJECT, detail, icmp=(3, code))
        silent = Drop(DropReason.NETFILTER_REJECT, detail)

        def reject(packet: Packet, _in: str, _out: str) -> Verdict:
            # Never an ICMP error about an ICMP error, nor about a later fragment (RFC 1122 3.2.2).
            data, at = packet.data, packet.header_len
            if packet.proto == ICMP and len(data) > at and data[at] in ICMP_ERROR_TYPES:
                return silent
            return silent if (data[6] & 0x1F) or data[7] else answered

        return reject


_MARK_OPTIONS: Final = ("--set-xmark", "--set-mark", "--and-mark", "--or-mark", "--xor-mark")


def _parse_mark(name: str, option: str, text: str) -> tuple[int, int]:
    """Return (value, mask) so that the new mark is (mark & ~mask) ^ value."""
    value, mask = parse_masked(text, name, option)
    if option == "--set-mark":
        return value, mask | value
    if option == "--and-mark":
        return 0, ~value & 0xFFFFFFFF
    if option == "--or-mark":
        return value, value
    if option == "--xor-mark":
        return value, 0
    return value, mask


def _exclusive(found: dict[str, Given], name: str) -> str | None:
    """Return the only option given; two of them are iptables' error."""
    if len(found) > 1:
        first, second = list(found)[:2]
        raise ParameterError(f'{name}: option "{first}" cannot be used together with "{second}".\n')
    return next(iter(found), None)


@dataclass(frozen=True, slots=True)
class MarkTarget(Target):
    """-j MARK: mark = (mark & ~mask) ^ value."""

    name: ClassVar[str] = "MARK"
    options: ClassVar = dict.fromkeys(_MARK_OPTIONS, 1)

    value: int
    mask: int

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "MARK")
        option = _exclusive(found, "MARK")
        if option is None:
            raise ParameterError(
                "MARK: One of the --set-xmark, --{and,or,xor,set}-mark options is required"
            )
        return cls(*_parse_mark("MARK", option, found[option].values[0]))

    def save(self) -> str:
        return f"--set-xmark {self.value:#x}/{self.mask:#x}"

    def listing(self, numeric: bool) -> str:
        value, mask = self.value, self.mask
        if value == 0:
            return f"MARK and {~mask & 0xFFFFFFFF:#x}"
        if value == mask:
            return f"MARK or {value:#x}"
        if mask == 0:
            return f"MARK xor {value:#x}"
        if mask == 0xFFFFFFFF:
            return f"MARK set {value:#x}"
        return f"MARK xset {value:#x}/{mask:#x}"

    def compile(self, env: RuleEnvironment) -> Action:
        value, keep = self.value, ~self.mask & 0xFFFFFFFF

        def mark(packet: Packet, _in: str, _out: str) -> None:
            packet.mark = packet.mark & keep ^ value

        return mark


@dataclass(frozen=True, slots=True)
class ConnmarkTarget(Target):
    """-j CONNMARK: set the connection's mark, save the packet's to it or restore it from there."""

    name: ClassVar[str] = "CONNMARK"
    options: ClassVar = {
        **dict.fromkeys(_MARK_OPTIONS, 1),
        "--save-mark": 0,
        "--restore-mark": 0,
        "--mask": 1,
        "--nfmask": 1,
        "--ctmask": 1,
    }

    mode: str
    value: int = 0
    mask: int = 0xFFFFFFFF
    nfmask: int = 0xFFFFFFFF
    ctmask: int = 0xFFFFFFFF

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "CONNMARK")
        masks = {}
        for each in ("--mask", "--nfmask", "--ctmask"):
            item = found.pop(each, None)
            if item is None:
                continue
            number = parse_unsigned(item.values[0])
            if number is None:
                raise ParameterError(
                    f'CONNMARK: bad value for option "{each}", or out of range (0-4294967295).\n'
                )
            masks[each] = number
        option = _exclusive(found, "CONNMARK")
        if option is None:
            raise ParameterError("CONNMARK target: No operation specified")
        if option in ("--save-mark", "--restore-mark"):
            both = masks.get("--mask", 0xFFFFFFFF)
            nfmask, ctmask = masks.get("--nfmask", both), masks.get("--ctmask", both)
            return cls(option[2:].removesuffix("-mark"), 0, 0, nfmask, ctmask)
        value, mask = _parse_mark("CONNMARK", option, found[option].values[0])
        return cls("set", value, mask)

    def save(self) -> str:
        if self.mode == "set":
            return f"--set-xmark {self.value:#x}/{self.mask:#x}"
        return f"--{self.mode}-mark --nfmask {self.nfmask:#x} --ctmask {self.ctmask:#x}"

    def listing(self, numeric: bool) -> str:
        if self.mode == "set":
            return "CONN" + MarkTarget(self.value, self.mask).listing(numeric)
        if self.nfmask == self.ctmask:
            tail = "" if self.nfmask == 0xFFFFFFFF else f" mask {self.nfmask:#x}"
        elif self.mode == "save":
            tail = f" nfmask {self.nfmask:#x} ctmask ~{self.ctmask:#x}"
        else:
            tail = f" ctmask {self.ctmask:#x} nfmask ~{self.nfmask:#x}"
        return f"CONNMARK {self.mode}{tail}"

    @property
    def needs_conntrack(self) -> bool:
        return True

    def compile(self, env: RuleEnvironment) -> Action:
        mode, value, mask = self.mode, self.value, self.mask
        nfmask, ctmask = self.nfmask, self.ctmask

        def connmark(packet: Packet, _in: str, _out: str) -> None:
            connection = packet.ct
            if connection is None or connection is UNTRACKED:
                return
            if mode == "set":
                connection.mark = connection.mark & ~mask & 0xFFFFFFFF ^ value
            elif mode == "save":
                connection.mark = connection.mark & ~ctmask & 0xFFFFFFFF ^ packet.mark & nfmask
            else:
                packet.mark = packet.mark & ~nfmask & 0xFFFFFFFF ^ connection.mark & ctmask

        return connmark


@dataclass(frozen=True, slots=True)
class LogTarget(Target):
    """-j LOG: its packets are counted by the rule and shown in traces; there is no kernel log."""

    name: ClassVar[str] = "LOG"
    options: ClassVar = {"--log-level": 1, "--log-prefix": 1, **dict.fromkeys(_LOG_FLAGS, 0)}

    level: int = 4
    prefix: str = ""
    flags: int = 0

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "LOG")
        level = 4
        if "--log-level" in found:
            text = found["--log-level"].values[0]
            parsed = parse_unsigned(text, 0, 7)
            if parsed is None:
                hits = [v for name, v in _LOG_LEVELS.items() if text and name.startswith(text)]
                if not hits:
                    raise ParameterError(f'log level "{text}" unknown\n')
                parsed = hits[0]
            level = parsed
        prefix = found["--log-prefix"].values[0] if "--log-prefix" in found else ""
        flags = sum(bit for option, bit in _LOG_FLAGS.items() if option in found)
        return cls(level, prefix[:MAX_LOG_PREFIX], flags)

    def save(self) -> str:
        parts = [f"--log-prefix {quote(self.prefix)}"] if self.prefix else []
        if self.level != 4:
            parts.append(f"--log-level {self.level}")
        parts += [option for option, bit in _LOG_FLAGS.items() if self.flags & bit]
        return " ".join(parts)

    def listing(self, numeric: bool) -> str:
        if numeric:
            text = f"LOG flags {self.flags} level {self.level}"
        else:
            names = {v: k for k, v in reversed(list(_LOG_LEVELS.items()))}
            words = [o.removeprefix("--log-") for o, bit in _LOG_FLAGS.items() if self.flags & bit]
            text = " ".join(["LOG", "level", names[self.level], *words])
        return f'{text} prefix "{self.prefix}"' if self.prefix else text

    def compile(self, env: RuleEnvironment) -> Action:
        return lambda _packet, _in, _out: None


@dataclass(frozen=True, slots=True)
class NotrackTarget(Target):
    """-j NOTRACK: keep a packet out of connection tracking."""

    name: ClassVar[str] = "NOTRACK"
    tables: ClassVar = frozenset({"raw"})

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        return cls()

    def compile(self, env: RuleEnvironment) -> Action:
        def untrack(packet: Packet, _in: str, _out: str) -> None:
            if packet.ct is None:
                packet.ct = UNTRACKED

        return untrack


@dataclass(frozen=True, slots=True)
class CtTarget(Target):
    """-j CT --notrack: NOTRACK under its newer name."""

    name: ClassVar[str] = "CT"
    options: ClassVar = {"--notrack": 0}
    tables: ClassVar = frozenset({"raw"})

    notrack: bool = True

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        if not given:
            raise ParameterError("CT: only --notrack is supported here; give it")
        return cls()

    def save(self) -> str:
        return "--notrack"

    def listing(self, numeric: bool) -> str:
        return "CT notrack"

    def compile(self, env: RuleEnvironment) -> Action:
        return NotrackTarget().compile(env)
