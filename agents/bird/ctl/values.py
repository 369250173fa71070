"""Values of BIRD's filter language and what can be done with them (pure).

Integers are 32 bits wide.  Source: BIRD's filter/data.c and filter/f-inst.c.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.bird.attributes import format_path, path_first, path_last, path_length, segments
from agents.bird.ctl.communities import (
    Extended,
    ExtendedPattern,
    Pattern,
    format_community,
    format_extended,
)
from agents.bird.ctl.reply import SYNTAX, CommandError
from agents.bird.filters import NetPattern
from agents.bird.net import Afi, Net, format_address

if TYPE_CHECKING:
    from collections.abc import Callable

MASK: Final = 0xFFFFFFFF


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
        case Extended(number):
            return format_extended(number.to_bytes(8, "big"))
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
        case Pattern(low, high):
            return "..".join(dict.fromkeys(map(format_community, (low, high))))
        case ExtendedPattern(low, high):
            ends = (format_extended(each.to_bytes(8, "big")) for each in (low, high))
            return "..".join(dict.fromkeys(ends))
        case _:
            return format_value(item)


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


def truth(value: Any) -> bool:
    """A condition's value; EvaluationError for anything else."""
    if not isinstance(value, bool):
        raise EvaluationError("Can't operate with value of non-bool type")
    return value


def _calculate(operation: Callable[[int, int], int]) -> Callable[[Any, Any], int]:
    def calculate(a: Any, b: Any) -> int:
        if type(a) is not int or type(b) is not int:
            raise EvaluationError("Argument must be of type int")
        return operation(a, b) & MASK

    return calculate


def _divide(a: int, b: int) -> int:
    if not b:
        raise EvaluationError("Mother told me not to divide by 0")
    return a // b


ARITHMETIC: Final = {
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
            return any(_in_set(each, item) for each in value for item in pattern)
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
        case Pattern() | ExtendedPattern():
            return item.matches(value)
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


FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "len": _length,
    "first": _of_path(path_first),
    "last": _of_path(path_last),
    "ip": _ip,
}
COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": _ordered(lambda a, b: a < b),
    "<=": _ordered(lambda a, b: a <= b),
    ">": _ordered(lambda a, b: a > b),
    ">=": _ordered(lambda a, b: a >= b),
    "~": _matches,
    "!~": lambda a, b: not _matches(a, b),
}
