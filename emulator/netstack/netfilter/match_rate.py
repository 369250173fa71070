"""Matches that remember: statistic, limit, and recent (its lists are in recent.py).

Each keeps its memory in the compiled rule, so replacing a rule starts it afresh, as in Linux.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.netfilter.extension import (
    Given,
    Match,
    ParameterError,
    Predicate,
    RuleEnvironment,
    RuleScope,
    single,
)
from emulator.netstack.netfilter.lexer import parse_unsigned, quote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from emulator.netstack.packet import Packet

MAX_RECENT_NAME: Final = 199  # XT_RECENT_NAME_LEN less the final zero
LIMIT_SCALE: Final = 10000  # XT_LIMIT_SCALE: rates are kept in 1/10000 of a second a packet
LIMIT_BURST: Final = 5
_UNITS: Final = (("day", 86400), ("hour", 3600), ("min", 60), ("sec", 1))


@dataclass(frozen=True, slots=True)
class StatisticMatch(Match):
    """-m statistic: a probability in 1/2**31, or every nth packet."""

    name: ClassVar[str] = "statistic"
    options: ClassVar = {"--mode": 1, "--probability": 1, "--every": 1, "--packet": 1}

    mode: str
    probability: int = 0
    every: int = 0
    packet: int = 0
    inverted: bool = False

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "statistic")
        if "--mode" not in found:
            raise ParameterError("--probability must be specified when using random mode")
        mode = found["--mode"].values[0]
        if mode == "random":
            item = found.get("--probability")
            if item is None:
                raise ParameterError("--probability must be specified when using random mode")
            return cls(mode, _parse_probability(item.values[0]), inverted=item.inverted)
        if mode != "nth":
            raise ParameterError(f'Bad mode "{mode}"')
        every_item, packet_item = found.get("--every"), found.get("--packet")
        if every_item is not None and packet_item is None:
            raise ParameterError('statistic: option "--every" also requires "--packet".\n')
        if every_item is None or packet_item is None:
            raise ParameterError("--every and --packet must be specified when using nth mode")
        every = parse_unsigned(every_item.values[0], 1)
        if every is None:
            raise ParameterError(
                'statistic: bad value for option "--every", or out of range (1-4294967295).\n'
            )
        number = parse_unsigned(packet_item.values[0])
        if number is None:
            raise ParameterError(
                'statistic: bad value for option "--packet", or out of range (0-4294967295).\n'
            )
        if number >= every:
            raise ParameterError("the --packet p must be 0 <= p <= n-1")
        return cls(mode, every=every, packet=number, inverted=every_item.inverted)

    def _text(self, dash: str) -> str:
        sign = "! " if self.inverted else ""
        if self.mode == "random":
            return f"{dash}mode random {sign}{dash}probability {self.probability / 2**31:.11f}"
        return f"{dash}mode nth {sign}{dash}every {self.every} {dash}packet {self.packet}"

    def save(self) -> str:
        return self._text("--")

    def listing(self, numeric: bool) -> str:
        return f"statistic {self._text('')}"

    @property
    def volatile(self) -> bool:
        return True

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        inverted = self.inverted
        if self.mode == "random":
            probability, draw = self.probability, env.rng.getrandbits
            return lambda _packet, _in, _out: (draw(31) < probability) is not inverted
        every, number = self.every, self.packet
        seen = -1

        def nth(_packet: Packet, _in: str, _out: str) -> bool:
            nonlocal seen
            seen = (seen + 1) % every
            return (seen == number) is not inverted

        return nth


def _parse_probability(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ParameterError(
            'statistic: bad value for option "--probability", or out of range (0-1).\n'
        )
    return int(value * 2**31 + 0.5)


@dataclass(frozen=True, slots=True)
class LimitMatch(Match):
    """-m limit: a token bucket; ``period`` is 1/10000 seconds a packet."""

    name: ClassVar[str] = "limit"
    options: ClassVar = {"--limit": 1, "--limit-burst": 1}

    period: int
    burst: int = LIMIT_BURST

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "limit")
        rate = _parse_rate(found["--limit"].values[0]) if "--limit" in found else 12_000_000
        burst = LIMIT_BURST
        if "--limit-burst" in found:
            parsed = parse_unsigned(found["--limit-burst"].values[0], 0, 10000)
            if parsed is None:
                raise ParameterError(
                    'limit: bad value for option "--limit-burst", or out of range (0-10000).\n'
                )
            burst = parsed or LIMIT_BURST
        return cls(rate, burst)

    def _rate(self) -> str:
        unit, scale = _UNITS[0]
        for name, seconds in _UNITS[1:]:
            mult = seconds * LIMIT_SCALE
            if self.period > mult or mult // self.period < mult % self.period:
                break
            unit, scale = name, seconds
        return f"{scale * LIMIT_SCALE // self.period}/{unit}"

    def save(self) -> str:
        burst = f" --limit-burst {self.burst}" if self.burst != LIMIT_BURST else ""
        return f"--limit {self._rate()}{burst}"

    def listing(self, numeric: bool) -> str:
        return f"limit: avg {self._rate()} burst {self.burst}"

    @property
    def volatile(self) -> bool:
        return True

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        period_s, burst, clock = self.period / LIMIT_SCALE, float(self.burst), env.clock
        tokens, filled_at = burst, clock()

        def allowed(_packet: Packet, _in: str, _out: str) -> bool:
            nonlocal tokens, filled_at
            now = clock()
            tokens = min(burst, tokens + (now - filled_at) / period_s)
            filled_at = now
            if tokens < 1.0:
                return False
            tokens -= 1.0
            return True

        return allowed


def _parse_rate(text: str) -> int:
    count_text, slash, unit = text.partition("/")
    seconds = 1
    if slash:
        hits = [s for name, s in _UNITS if unit and _unit_names(name).startswith(unit.lower())]
        if not hits:
            raise ParameterError(f'bad rate "{text}"\'')
        seconds = hits[0]
    count = parse_unsigned(count_text)
    if not count:
        raise ParameterError(f'bad rate "{text}"\'')
    if count // seconds > LIMIT_SCALE:
        raise ParameterError(f'Rate too fast "{text}"')
    return seconds * LIMIT_SCALE // count


def _unit_names(short: str) -> str:
    return {"sec": "second", "min": "minute"}.get(short, short)


@dataclass(frozen=True, slots=True)
class RecentMatch(Match):
    """-m recent: lists of addresses and when they were seen."""

    name: ClassVar[str] = "recent"
    options: ClassVar = {
        "--set": 0,
        "--rcheck": 0,
        "--update": 0,
        "--remove": 0,
        "--seconds": 1,
        "--reap": 0,
        "--hitcount": 1,
        "--rttl": 0,
        "--name": 1,
        "--mask": 1,
        "--rsource": 0,
        "--rdest": 0,
    }

    command: str
    inverted: bool = False
    seconds: int = 0
    hitcount: int = 0
    reap: bool = False
    ttl: bool = False
    list_name: str = "DEFAULT"
    mask: int = 0xFFFFFFFF
    by_source: bool = True

    @classmethod
    def build(cls, given: Sequence[Given], scope: RuleScope) -> Self:
        found = single(given, "recent")
        commands = [o for o in found if o in ("--set", "--rcheck", "--update", "--remove")]
        if len(commands) > 1:
            raise ParameterError(
                f'recent: option "{commands[0]}" cannot be used together with "{commands[1]}".\n'
            )
        if not commands:
            raise ParameterError(
                "recent: you must specify one of `--set', `--rcheck' `--update' or `--remove'"
            )
        if "--reap" in found and "--seconds" not in found:
            raise ParameterError('recent: option "--reap" also requires "--seconds".\n')
        mask = 0xFFFFFFFF
        if "--mask" in found:
            try:
                mask = parse_ip(found["--mask"].values[0])
            except UsageError:
                raise ParameterError(
                    'recent: bad value for option "--mask", or out of range.\n'
                ) from None
        name = found["--name"].values[0] if "--name" in found else "DEFAULT"
        return cls(
            commands[0].removeprefix("--"),
            found[commands[0]].inverted,
            _parse_count(found, "--seconds"),
            _parse_count(found, "--hitcount"),
            "--reap" in found,
            "--rttl" in found,
            name[:MAX_RECENT_NAME],
            mask,
            "--rdest" not in found,
        )

    def save(self) -> str:
        parts = [f"{'! ' if self.inverted else ''}--{self.command}"]
        if self.seconds:
            parts.append(f"--seconds {self.seconds}")
        if self.reap:
            parts.append("--reap")
        if self.hitcount:
            parts.append(f"--hitcount {self.hitcount}")
        if self.ttl:
            parts.append("--rttl")
        parts.append(f"--name {quote(self.list_name)}")
        parts.append(f"--mask {format_ip(self.mask)}")
        parts.append("--rsource" if self.by_source else "--rdest")
        return " ".join(parts)

    def listing(self, numeric: bool) -> str:
        label = "CHECK" if self.command == "rcheck" else self.command.upper()
        parts = [f"{'! ' if self.inverted else ''}recent: {label}"]
        if self.seconds:
            parts.append(f"seconds: {self.seconds}")
        if self.reap:
            parts.append("reap")
        if self.hitcount:
            parts.append(f"hit_count: {self.hitcount}")
        if self.ttl:
            parts.append("TTL-Match")
        side = "source" if self.by_source else "dest"
        parts.append(f"name: {self.list_name} side: {side} mask: {format_ip(self.mask)}")
        return " ".join(parts)

    def kernel_refuses(self, scope: RuleScope) -> bool:
        return self.command in ("set", "remove") and bool(self.seconds or self.hitcount)

    @property
    def volatile(self) -> bool:
        return True

    def compile(self, env: RuleEnvironment) -> Predicate | None:
        table, clock, command = env.recent.get(self.list_name), env.clock, self.command
        mask, by_source, inverted = self.mask, self.by_source, self.inverted
        seconds, hitcount, reap, use_ttl = self.seconds, self.hitcount, self.reap, self.ttl

        def matches(packet: Packet, _in: str, _out: str) -> bool:
            ip = (packet.src if by_source else packet.dst) & mask
            now = clock()
            ttl = packet.ttl
            entry = table.find(ip, ttl if use_ttl else 0)
            if command == "set":
                table.touch(ip, now, ttl)
                return not inverted
            if entry is None:
                return inverted
            if command == "remove":
                table.remove(ip)
                return not inverted
            hits = entry.hits_since(now - seconds if seconds else None)
            hit = hits >= max(hitcount, 1)
            update = command == "update" and hit is not inverted
            if reap:
                table.reap(now - seconds, spare=ip if update else None)
            if update:
                table.touch(ip, now, ttl)
            return hit is not inverted

        return matches


def _parse_count(found: dict[str, Given], option: str) -> int:
    if option not in found:
        return 0
    value = parse_unsigned(found[option].values[0], 1)
    if value is None:
        raise ParameterError(
            f'recent: bad value for option "{option}", or out of range (1-4294967295).\n'
        )
    return value
