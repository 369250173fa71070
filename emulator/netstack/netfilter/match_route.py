"""Matches that ask the routing tables or the sets of the namespace: addrtype, rpfilter, set."""

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
from emulator.netstack.packet import Hook

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from emulator.netstack.packet import Packet

ADDRESS_TYPES: Final = (
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
)
MAX_SET_DIMENSIONS: Final = 6  # IPSET_DIM_MAX
_ALL_HOOKS: Final = frozenset(hook.name for hook in Hook)


@dataclass(frozen=True, slots=True)
class AddrtypeMatch(Match):
    """-m addrtype: what the routing tables think of an address; 0 means not asked."""

    name: ClassVar[str] = "addrtype"
    options: ClassVar = {
        "--src-type": 1,
        "--dst-type": 1,
        "--limit-iface-in": 0,
        "--limit-iface-out": 0,
    }

    src_types: int = 0
    dst_types: int = 0
    src_inverted: bool = False
    dst_inverted: bool = False
    limit_in: bool = False
    limit_out: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "addrtype")
        if "--limit-iface-in" in found and "--limit-iface-out" in found:
            raise ParameterError(
                'addrtype: option "--limit-iface-in" cannot be used together with '
                '"--limit-iface-out".\n'
            )
        src, dst = found.get("--src-type"), found.get("--dst-type")
        if src is None and dst is None:
            raise ParameterError("addrtype: you must specify --src-type or --dst-type")
        return cls(
            _parse_types(src.values[0]) if src else 0,
            _parse_types(dst.values[0]) if dst else 0,
            src is not None and src.inverted,
            dst is not None and dst.inverted,
            "--limit-iface-in" in found,
            "--limit-iface-out" in found,
        )

    def save(self) -> str:
        parts: list[str] = []
        for side, types, inverted in (
            ("src", self.src_types, self.src_inverted),
            ("dst", self.dst_types, self.dst_inverted),
        ):
            if types:
                parts.append(f"{'! ' if inverted else ''}--{side}-type {_type_names(types)}")
        if self.limit_in:
            parts.append("--limit-iface-in")
        if self.limit_out:
            parts.append("--limit-iface-out")
        return " ".join(parts)

    def listing(self, numeric: bool) -> str:
        parts = ["ADDRTYPE match"]
        for side, types, inverted in (
            ("src", self.src_types, self.src_inverted),
            ("dst", self.dst_types, self.dst_inverted),
        ):
            if types:
                parts.append(f"{side}-type {'!' if inverted else ''}{_type_names(types)}")
        if self.limit_in:
            parts.append("limit-in")
        if self.limit_out:
            parts.append("limit-out")
        return " ".join(parts)

    @property
    def chains(self) -> frozenset[str]:
        if self.limit_in:
            return _ALL_HOOKS - {"POSTROUTING", "OUTPUT"}
        if self.limit_out:
            return _ALL_HOOKS - {"PREROUTING", "INPUT"}
        return frozenset()

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        view = env.view
        src, dst, src_inv, dst_inv = (
            self.src_types,
            self.dst_types,
            self.src_inverted,
            self.dst_inverted,
        )
        limit_in, limit_out = self.limit_in, self.limit_out

        def limited(packet: Packet, in_dev: str, out_dev: str) -> bool:
            dev = in_dev if limit_in else out_dev
            if src and bool(src >> view.address_type_on(packet.src, dev) & 1) is src_inv:
                return False
            return not dst or bool(dst >> view.address_type_on(packet.dst, dev) & 1) is not dst_inv

        def matches(packet: Packet, _in: str, _out: str) -> bool:
            if src and bool(src >> view.address_type(packet.src) & 1) is src_inv:
                return False
            return not dst or bool(dst >> view.address_type(packet.dst) & 1) is not dst_inv

        return limited if limit_in or limit_out else matches


def _parse_types(text: str) -> int:
    bits = 0
    for word in text.split(","):
        if word.upper() not in ADDRESS_TYPES:
            raise ParameterError(f'addrtype: bad type "{word}"')
        bits |= 1 << ADDRESS_TYPES.index(word.upper())
    return bits


def _type_names(bits: int) -> str:
    return ",".join(name for index, name in enumerate(ADDRESS_TYPES) if bits >> index & 1)


@dataclass(frozen=True, slots=True)
class RpfilterMatch(Match):
    """-m rpfilter: an answer to the packet would leave by the device it came in by."""

    name: ClassVar[str] = "rpfilter"
    options: ClassVar = {"--loose": 0, "--validmark": 0, "--accept-local": 0, "--invert": 0}
    tables: ClassVar = frozenset({"raw", "mangle"})

    loose: bool = False
    valid_mark: bool = False
    accept_local: bool = False
    inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "rpfilter")
        return cls(*(option in found for option in cls.options))

    def _words(self) -> list[str]:
        flags = (self.loose, self.valid_mark, self.accept_local, self.inverted)
        return [o for o, is_set in zip(self.options, flags, strict=True) if is_set]

    def save(self) -> str:
        return " ".join(self._words())

    def listing(self, numeric: bool) -> str:
        return " ".join(("rpfilter", *(word[2:] for word in self._words())))

    @property
    def chains(self) -> frozenset[str]:
        return frozenset({"PREROUTING"})

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        view = env.view
        loose, accept_local, inverted = self.loose, self.accept_local, self.inverted

        def matches(packet: Packet, in_dev: str, _out: str) -> bool:
            # rpfilter_mt: what comes from lo is always right; 0.0.0.0 asks for an address.
            src, dst = packet.src, packet.dst
            if in_dev == "lo" or (src >> 24 == 0 and (dst == 0xFFFFFFFF or dst >> 8 == 0xE00000)):
                return not inverted
            return (
                view.reverse_path_ok(src, in_dev, loose=loose, accept_local=accept_local)
                is not inverted
            )

        return matches


@dataclass(frozen=True, slots=True)
class SetMatch(Match):
    """-m set: the packet's addresses and ports are in a set."""

    name: ClassVar[str] = "set"
    options: ClassVar = {"--match-set": 2}

    set_name: str
    # For each dimension: True for the source's, False for the destination's.
    sources: tuple[bool, ...]
    inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        item = next((each for each in given if each.option == "--match-set"), None)
        if item is None:
            raise ParameterError("You must specify `--match-set' with proper arguments")
        if len(given) > 1:
            raise ParameterError("--match-set can be specified only once")
        name, directions = item.values
        words = directions.split(",")
        if len(words) > MAX_SET_DIMENSIONS:
            raise ParameterError(f"Can't be more src/dst options than {MAX_SET_DIMENSIONS}.")
        if any(word not in ("src", "dst") for word in words):
            raise ParameterError("You must spefify (the comma separated list of) 'src' or 'dst'.")
        return cls(name, tuple(word == "src" for word in words), item.inverted)

    def _text(self) -> str:
        return f"{self.set_name} {','.join('src' if each else 'dst' for each in self.sources)}"

    def save(self) -> str:
        return f"{'! ' if self.inverted else ''}--match-set {self._text()}"

    def listing(self, numeric: bool) -> str:
        return f"{'! ' if self.inverted else ''}match-set {self._text()}"

    @property
    def sets(self) -> tuple[str, ...]:
        return (self.set_name,)

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        find, name = env.sets.find, self.set_name
        sources, inverted = self.sources, self.inverted

        def matches(packet: Packet, _in: str, _out: str) -> bool:
            # Looked up each time: a swap puts another set under the name.
            found = find(name)
            return found is not None and found.matches(packet, sources) is not inverted

        return matches
