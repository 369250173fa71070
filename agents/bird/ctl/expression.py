"""Expressions of BIRD's filter language, for ``show route where`` and ``eval`` (pure).

Parsing makes a function of a route; ``eval`` calls it without one.  Integers are 32 bits wide.
Source: BIRD's filter/config.Y and filter/filter.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from agents.bird.attributes import community_pairs, large_triples
from agents.bird.ctl.communities import (
    KINDS,
    Extended,
    ExtendedPattern,
    Pattern,
    extended_of,
    largest_value,
    make_extended,
)
from agents.bird.ctl.reply import RUNTIME_ERROR, SYNTAX, CommandError, Dialect
from agents.bird.ctl.values import (
    ARITHMETIC,
    COMPARISONS,
    FIELDS,
    MASK,
    EvaluationError,
    PathMask,
    PathValue,
    Range,
    format_value,
    network_of,
    truth,
)
from agents.bird.filters import NetPattern, Source
from agents.bird.net import Net, parse_address
from emulator.errors import UsageError

if TYPE_CHECKING:
    from agents.bird.ctl.lexer import Tokens
    from agents.bird.snapshot import RouteInfo

Expression = Callable[["RouteInfo | None"], Any]

# Parentheses and operators inside each other; people write three.
MAX_DEPTH: Final = 64


def _attribute(name: str) -> Callable[[RouteInfo], Any]:
    def read(route: RouteInfo) -> Any:
        return getattr(route.attrs, name)

    return read


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "net": lambda route: route.net,
    "proto": lambda route: route.protocol,
    "source": lambda route: route.source,
    "dest": lambda route: f"RTD_{route.dest.name}",
    "from": lambda route: route.from_.to_bytes(4, "big"),
    "gw": lambda route: route.ways[0].gateway if route.ways else None,
    "ifname": lambda route: route.ways[0].dev if route.ways else "",
    "preference": _attribute("preference"),
    # Nothing here has a narrower one.
    "scope": lambda route: "SCOPE_UNIVERSE",
    "bgp_origin": _attribute("origin"),
    "bgp_path": lambda route: PathValue(route.attrs.as_path),
    "bgp_next_hop": lambda route: route.attrs.next_hop or None,
    "bgp_local_pref": _attribute("local_pref"),
    "bgp_med": _attribute("med"),
    "bgp_community": lambda route: community_pairs(route.attrs.communities),
    "bgp_ext_community": lambda route: extended_of(route.attrs.ext_communities),
    "bgp_large_community": lambda route: large_triples(route.attrs.large_communities),
    "bgp_originator_id": _attribute("originator_id"),
    "krt_tunnel": _attribute("krt_tunnel"),
    "krt_metric": _attribute("krt_metric"),
}
_CONSTANTS: Final[dict[str, Any]] = {
    "true": True,
    "TRUE": True,
    "false": False,
    "FALSE": False,
    "ORIGIN_IGP": 0,
    "ORIGIN_EGP": 1,
    "ORIGIN_INCOMPLETE": 2,
    **{str(source): source for source in Source},
    **{f"RTD_{name}": f"RTD_{name}" for name in ("UNICAST", "BLACKHOLE", "UNREACHABLE")},
    "RTD_PROHIBIT": "RTD_PROHIBIT",
    **{
        f"SCOPE_{name}": f"SCOPE_{name}"
        for name in ("HOST", "LINK", "SITE", "ORGANIZATION", "UNIVERSE")
    },
    "RTD_ROUTER": "RTD_UNICAST",
}


def parse_expression(tokens: Tokens) -> Expression:
    """Read one expression; CommandError where it is none."""
    return _Parser(tokens).any(0)


def evaluate(expression: Expression, dialect: Dialect) -> str:
    """The text of a value; CommandError if there is none."""
    try:
        return format_value(expression(None))
    except EvaluationError as error:
        if dialect is Dialect.BIRD1:
            raise CommandError(RUNTIME_ERROR, "runtime error") from None
        raise CommandError(SYNTAX, f"filter preevaluation, line 1: {error}") from None


def holds(expression: Expression, route: RouteInfo) -> bool:
    """True if a route fulfils a condition; one that makes no sense for it is not fulfilled."""
    try:
        return expression(route) is True
    except EvaluationError:
        return False


class _Parser:
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def _deeper(self, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise CommandError(SYNTAX, f"more than {MAX_DEPTH} expressions inside each other")
        return depth + 1

    def any(self, depth: int) -> Expression:
        left = self.all(depth)
        while self._tokens.accept("||"):
            left = _either(left, self.all(depth))
        return left

    def all(self, depth: int) -> Expression:
        left = self.comparison(depth)
        while self._tokens.accept("&&"):
            left = _both(left, self.comparison(depth))
        return left

    def comparison(self, depth: int) -> Expression:
        left = self.sum(depth)
        operator = self._tokens.accept("=", "!=", "<", "<=", ">", ">=", "~", "!~")
        if operator is None:
            return left
        return _binary(COMPARISONS[operator], left, self.sum(depth))

    def sum(self, depth: int) -> Expression:
        left = self.product(depth)
        while operator := self._tokens.accept("+", "-"):
            left = _binary(ARITHMETIC[operator], left, self.product(depth))
        return left

    def product(self, depth: int) -> Expression:
        left = self.unary(depth)
        while operator := self._tokens.accept("*", "/"):
            left = _binary(ARITHMETIC[operator], left, self.unary(depth))
        return left

    def unary(self, depth: int) -> Expression:
        if self._tokens.accept("!"):
            return _negated(self.unary(self._deeper(depth)))
        if self._tokens.accept("-"):
            return _binary(ARITHMETIC["-"], lambda _: 0, self.unary(self._deeper(depth)))
        value = self.primary(depth)
        while self._tokens.accept("."):
            field = self._tokens.name()
            if field not in FIELDS:
                raise self._tokens.error()
            value = _field(field, value)
        return value

    def primary(self, depth: int) -> Expression:
        tokens = self._tokens
        depth = self._deeper(depth)
        if tokens.accept("("):
            return self._parenthesis(depth)
        if tokens.accept("["):
            items = self._set()
            return lambda _: items
        if tokens.accept("[="):
            mask = self._mask()
            return lambda _: mask
        token = tokens.next
        value: Any
        match token.kind:
            case "NUM":
                value = int(token.text, 0) & MASK
            case "TEXT":
                value = token.text
            case "IP4" | "IP6":
                value = self._network()
                return lambda _: value
            case "WORD" if token.text == "defined":
                return self._defined()
            case "WORD" if token.text in _CONSTANTS:
                value = _CONSTANTS[token.text]
            case "WORD" if token.text in _READERS:
                tokens.take()
                return _route_value(self._reader(token.text))
            case _:
                raise tokens.error()
        tokens.take()
        return lambda _: value

    def _reader(self, name: str) -> Callable[[Any], Any]:
        """How to read an attribute; to BIRD 1 a route that is not BGP's has no path."""
        read = _READERS[name]
        if name == "bgp_path" and self._tokens.dialect is Dialect.BIRD1:
            return lambda route: read(route) if route.source is Source.BGP else None
        return read

    def _parenthesis(self, depth: int) -> Expression:
        if self._tokens.next.text in KINDS:
            pattern = self._extended()
            if pattern.low != pattern.high:
                raise self._tokens.error()
            return lambda _: Extended(pattern.low)
        parts = [self.any(depth)]
        while self._tokens.accept(","):
            parts.append(self.any(depth))
        self._tokens.expect(")")
        if len(parts) == 1:
            return parts[0]
        if len(parts) > 3:
            raise self._tokens.error()
        return lambda route: tuple(part(route) for part in parts)

    def _defined(self) -> Expression:
        tokens = self._tokens
        tokens.take()
        tokens.expect("(")
        name = tokens.name()
        if name not in _READERS:
            raise tokens.error()
        reader = self._reader(name)
        tokens.expect(")")
        value = _route_value(reader)
        return lambda route: value(route) not in (None, "", ())

    def _network(self) -> bytes | Net:
        """An address, or a network if a slash follows."""
        tokens = self._tokens
        text = tokens.take().text
        try:
            address = parse_address(text)
        except UsageError:
            raise CommandError(SYNTAX, f"Invalid IP address {text}") from None
        if not tokens.accept("/"):
            return address
        length = tokens.number()
        if length is None:
            raise tokens.error()
        return network_of(address, length)

    def _set(self) -> list[Any]:
        items: list[Any] = []
        tokens = self._tokens
        while True:
            items.append(self._item())
            if tokens.accept("]"):
                return sorted(items) if all(isinstance(i, Pattern) for i in items) else items
            tokens.expect(",")

    def _item(self) -> Any:
        tokens = self._tokens
        if tokens.next.kind in ("IP4", "IP6"):
            found = self._network()
            if isinstance(found, bytes):
                return found
            return self._pattern(found)
        if tokens.accept("("):
            if tokens.next.text in KINDS:
                return self._extended()
            return self._community()
        if tokens.next.kind == "WORD" and tokens.next.text in _CONSTANTS:
            return _CONSTANTS[tokens.take().text]
        low = self._number()
        return Range(low, self._number() if tokens.accept("..") else low)

    def _span(self, widest: int) -> tuple[int, int]:
        """``5``, ``5..9`` or ``*``."""
        if self._tokens.accept("*"):
            return 0, widest
        low = self._number()
        return low, self._number() if self._tokens.accept("..") else low

    def _community(self) -> Pattern:
        """``64512, 1..9)``: after a part that leaves something open comes only ``*``."""
        tokens = self._tokens
        spans = [self._span(MASK)]
        while tokens.accept(","):
            low, high = spans[-1]
            if low != high and tokens.next.text != "*":
                raise tokens.error("'*'")
            spans.append(self._span(MASK))
        tokens.expect(")")
        if len(spans) == 2:
            spans = [(low, min(high, 0xFFFF)) for low, high in spans]
        return Pattern(tuple(low for low, _ in spans), tuple(high for _, high in spans))

    def _extended(self) -> ExtendedPattern:
        """``rt, 10, 20)``, the value a span where a set has it."""
        tokens = self._tokens
        name = tokens.take().text
        tokens.expect(",")
        key: int | bytes
        if tokens.next.kind == "IP4":
            key = parse_address(tokens.take().text)
        else:
            key = self._number()
        tokens.expect(",")
        span = self._span(largest_value(name, key))
        tokens.expect(")")
        try:
            low, high = (make_extended(name, key, value).number for value in span)
        except ValueError as error:
            raise CommandError(SYNTAX, str(error)) from None
        return ExtendedPattern(low, high)

    def _pattern(self, net: Net) -> NetPattern:
        tokens = self._tokens
        if tokens.accept("+"):
            return NetPattern.inside(net)
        if tokens.accept("-"):
            return NetPattern(net, 0, net.length)
        if tokens.accept("{"):
            low = self._number()
            tokens.expect(",")
            high = self._number()
            tokens.expect("}")
            return NetPattern(net, low, high)
        return NetPattern.exactly(net)

    def _mask(self) -> PathMask:
        tokens = self._tokens
        items: list[int | None] = []
        while not tokens.accept("=]"):
            if tokens.accept("*"):
                items.append(None)
            elif tokens.accept("?"):
                items.append(-1)
            else:
                items.append(self._number())
        return PathMask(tuple(items))

    def _number(self) -> int:
        value = self._tokens.number()
        if value is None:
            raise self._tokens.error()
        return value & MASK


def _route_value(reader: Callable[[Any], Any]) -> Expression:
    def read(route: RouteInfo | None) -> Any:
        if route is None:
            raise EvaluationError("No route to take the attribute from")
        return reader(route)

    return read


def _either(left: Expression, right: Expression) -> Expression:
    return lambda route: truth(left(route)) or truth(right(route))


def _both(left: Expression, right: Expression) -> Expression:
    return lambda route: truth(left(route)) and truth(right(route))


def _negated(operand: Expression) -> Expression:
    return lambda route: not truth(operand(route))


def _binary(operation: Callable[[Any, Any], Any], a: Expression, b: Expression) -> Expression:
    return lambda route: operation(a(route), b(route))


def _field(name: str, operand: Expression) -> Expression:
    read = FIELDS[name]
    return lambda route: read(operand(route))
