"""Expressions of BIRD's filter language, for ``show route where`` and ``eval`` (pure).

Parsing makes a function of a route; ``eval`` calls it without one.  Integers are 32 bits wide.
Source: BIRD's filter/config.Y and filter/filter.c.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.bird.attributes import (
    community_pairs,
    format_path,
    large_triples,
    path_first,
    path_last,
    path_length,
    segments,
)
from agents.bird.ctl.reply import RUNTIME_ERROR, SYNTAX, CommandError, Dialect
from agents.bird.filters import NetPattern, Source
from agents.bird.net import Afi, Net, format_address, parse_address
from emulator.errors import UsageError

if TYPE_CHECKING:
    from agents.bird.ctl.lexer import Tokens
    from agents.bird.snapshot import RouteInfo

Expression = Callable[["RouteInfo | None"], Any]

_MASK: Final = 0xFFFFFFFF
# Parentheses and operators inside each other; people write three.
MAX_DEPTH: Final = 64


class PathValue(NamedTuple):
    """``bgp_path``."""

    path: bytes


class PathMask(NamedTuple):
    """``[= a * b =]``; None stands for ``*``, -1 for ``?``."""

    items: tuple[int | None, ...]


class Range(NamedTuple):
    """``low..high`` in a set of integers."""

    low: int
    high: int


class EvaluationError(Exception):
    """What BIRD calls a runtime error."""


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
    "bgp_origin": _attribute("origin"),
    "bgp_path": lambda route: PathValue(route.attrs.as_path),
    "bgp_next_hop": lambda route: route.attrs.next_hop or None,
    "bgp_local_pref": _attribute("local_pref"),
    "bgp_med": _attribute("med"),
    "bgp_community": lambda route: community_pairs(route.attrs.communities),
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


def format_value(value: Any) -> str:
    """A value as ``eval`` prints it."""
    match value:
        case None:
            return "(void)"
        case bool():
            return "TRUE" if value else "FALSE"
        case bytes():
            return format_address(value)
        case PathValue(path):
            return f"(path {format_path(path)})"
        case Net() | int() | str():
            return str(value)
        case (int(), *_):
            return f"({','.join(map(str, value))})"
        case tuple():
            return " ".join(map(format_value, value))
        case _:
            return f"[{', '.join(map(_set_item, value))}]"


def _set_item(item: Any) -> str:
    match item:
        case NetPattern(net, low, high):
            return str(net) if low == high == net.length else f"{net}{{{low},{high}}}"
        case Range(low, high):
            return str(low) if low == high else f"{low}..{high}"
        case _:
            return format_value(item)


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
        return _binary(_COMPARISONS[operator], left, self.sum(depth))

    def sum(self, depth: int) -> Expression:
        left = self.product(depth)
        while operator := self._tokens.accept("+", "-"):
            left = _binary(_ARITHMETIC[operator], left, self.product(depth))
        return left

    def product(self, depth: int) -> Expression:
        left = self.unary(depth)
        while operator := self._tokens.accept("*", "/"):
            left = _binary(_ARITHMETIC[operator], left, self.unary(depth))
        return left

    def unary(self, depth: int) -> Expression:
        if self._tokens.accept("!"):
            return _negated(self.unary(self._deeper(depth)))
        if self._tokens.accept("-"):
            return _binary(_ARITHMETIC["-"], lambda _: 0, self.unary(self._deeper(depth)))
        value = self.primary(depth)
        while self._tokens.accept("."):
            field = self._tokens.name()
            if field not in _FIELDS:
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
                value = int(token.text, 0) & _MASK
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
                return items
            tokens.expect(",")

    def _item(self) -> Any:
        tokens = self._tokens
        if tokens.next.kind in ("IP4", "IP6"):
            found = self._network()
            if isinstance(found, bytes):
                return found
            return self._pattern(found)
        if tokens.accept("("):
            values = [self._number()]
            while tokens.accept(","):
                values.append(self._number())
            tokens.expect(")")
            return tuple(values)
        if tokens.next.kind == "WORD" and tokens.next.text in _CONSTANTS:
            return _CONSTANTS[tokens.take().text]
        low = self._number()
        return Range(low, self._number() if tokens.accept("..") else low)

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
        return value & _MASK


def network_of(address: bytes, length: int) -> Net:
    """A network; CommandError for host bits or a length that cannot be."""
    afi = Afi.IPV4 if len(address) == 4 else Afi.IPV6
    value = int.from_bytes(address, "big")
    if length > afi.bits:
        raise CommandError(SYNTAX, f"Invalid prefix length {length}")
    shift = afi.bits - length
    if value >> shift << shift != value:
        raise CommandError(SYNTAX, f"Invalid IPv{4 if afi is Afi.IPV4 else 6} prefix")
    return Net(afi, value, length)


def _route_value(reader: Callable[[Any], Any]) -> Expression:
    def read(route: RouteInfo | None) -> Any:
        if route is None:
            raise EvaluationError("No route to take the attribute from")
        return reader(route)

    return read


def _either(left: Expression, right: Expression) -> Expression:
    return lambda route: _truth(left(route)) or _truth(right(route))


def _both(left: Expression, right: Expression) -> Expression:
    return lambda route: _truth(left(route)) and _truth(right(route))


def _negated(operand: Expression) -> Expression:
    return lambda route: not _truth(operand(route))


def _binary(operation: Callable[[Any, Any], Any], a: Expression, b: Expression) -> Expression:
    return lambda route: operation(a(route), b(route))


def _field(name: str, operand: Expression) -> Expression:
    read = _FIELDS[name]
    return lambda route: read(operand(route))


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise EvaluationError("Can't operate with value of non-bool type")
    return value


def _calculate(operation: Callable[[int, int], int]) -> Callable[[Any, Any], int]:
    def calculate(a: Any, b: Any) -> int:
        if type(a) is not int or type(b) is not int:
            raise EvaluationError("Argument must be of type int")
        return operation(a, b) & _MASK

    return calculate


def _divide(a: int, b: int) -> int:
    if not b:
        raise EvaluationError("Mother told me not to divide by 0")
    return a // b


_ARITHMETIC: Final = {
    "+": _calculate(lambda a, b: a + b),
    "-": _calculate(lambda a, b: a - b),
    "*": _calculate(lambda a, b: a * b),
    "/": _calculate(_divide),
}


def _ordered(operation: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(a: Any, b: Any) -> bool:
        if type(a) is not type(b) or not isinstance(a, int | bytes):
            raise EvaluationError("Can't compare values of incompatible types")
        return operation(a, b)

    return compare


def _matches(value: Any, pattern: Any) -> bool:
    """The operator ``~``."""
    match value, pattern:
        case str(), str():
            return fnmatchcase(value, pattern)
        case Net(), Net():
            return pattern.covers(value)
        case bytes(), Net():
            return pattern.covers(network_of(value, 8 * len(value)))
        case PathValue(path), PathMask(items):
            return _path_matches(_hops(path), items)
        case int(), PathValue(path):
            return value in _hops(path)
        case tuple(), tuple():
            return value in pattern
        case tuple(), list() if value and isinstance(value[0], tuple):
            return any(each in pattern for each in value)
        case _, list():
            return any(_in_set(value, item) for item in pattern)
        case _:
            raise EvaluationError("~ applied on unknown type pair")


def _in_set(value: Any, item: Any) -> bool:
    match item:
        case NetPattern():
            return isinstance(value, Net) and item.matches(value)
        case Range(low, high):
            return type(value) is int and low <= value <= high
        case _:
            return bool(value == item)


def _hops(path: bytes) -> tuple[int, ...]:
    return tuple(asn for _, asns in segments(path) for asn in asns)


def _path_matches(hops: tuple[int, ...], items: tuple[int | None, ...]) -> bool:
    # reachable: how many hops may be used up by the items so far.
    reachable = {0}
    for item in items:
        if item is None:
            reachable = set(range(min(reachable), len(hops) + 1)) if reachable else set()
        else:
            reachable = {at + 1 for at in reachable if at < len(hops) and item in (-1, hops[at])}
    return len(hops) in reachable


def _length(value: Any) -> int:
    match value:
        case PathValue(path):
            return path_length(path)
        case Net():
            return value.length
        case tuple():
            return len(value)
        case _:
            raise EvaluationError("Prefix, path, clist or eclist expected")


def _of_path(read: Callable[[bytes], int]) -> Callable[[Any], int]:
    def of(value: Any) -> int:
        if not isinstance(value, PathValue):
            raise EvaluationError("AS path expected")
        return read(value.path)

    return of


def _ip(value: Any) -> bytes:
    if not isinstance(value, Net):
        raise EvaluationError("Prefix expected")
    return value.network.to_bytes(value.afi.bits // 8, "big")


_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "len": _length,
    "first": _of_path(path_first),
    "last": _of_path(path_last),
    "ip": _ip,
}
_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": _ordered(lambda a, b: a < b),
    "<=": _ordered(lambda a, b: a <= b),
    ">": _ordered(lambda a, b: a > b),
    ">=": _ordered(lambda a, b: a >= b),
    "~": _matches,
    "!~": lambda a, b: not _matches(a, b),
}
