"""``$((…))``: the integer arithmetic of the shell (pure).

C's operators and precedence as of POSIX XCU section 2.6.4, without ``?:``, on 64 bits; division
cuts towards zero, a name without a number counts as 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F]+|\d+)|(?P<name>[A-Za-z_]\w*)|"
    r"(?P<op>\+\+|--|<<=|>>=|[-+*/%&|^]=|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%()<>=!~&|^]))"
)
_WRAP: Final = 1 << 64
# Nested parentheses; deeper ones would only exhaust Python's own stack.
MAX_DEPTH: Final = 50


def _divide(a: int, b: int) -> int:
    if not b:
        raise UsageError("arithmetic syntax error: divide by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_BINARY: Final[dict[str, tuple[int, Callable[[int, int], int]]]] = {
    "||": (1, lambda a, b: int(bool(a) or bool(b))),
    "&&": (2, lambda a, b: int(bool(a) and bool(b))),
    "|": (3, lambda a, b: a | b),
    "^": (4, lambda a, b: a ^ b),
    "&": (5, lambda a, b: a & b),
    "==": (6, lambda a, b: int(a == b)),
    "!=": (6, lambda a, b: int(a != b)),
    "<": (7, lambda a, b: int(a < b)),
    "<=": (7, lambda a, b: int(a <= b)),
    ">": (7, lambda a, b: int(a > b)),
    ">=": (7, lambda a, b: int(a >= b)),
    "<<": (8, lambda a, b: a << (b & 63)),
    ">>": (8, lambda a, b: a >> (b & 63)),
    "+": (9, lambda a, b: a + b),
    "-": (9, lambda a, b: a - b),
    "*": (10, lambda a, b: a * b),
    "/": (10, _divide),
    "%": (10, lambda a, b: a - b * _divide(a, b)),
}


def evaluate(text: str, variables: MutableMapping[str, str]) -> int:
    """The value of an expression; assignments change ``variables``.  UsageError for a bad one."""
    tokens: list[str] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise UsageError("arithmetic syntax error")
        tokens.append(match[0].strip())
        at = match.end()
    if not tokens:
        return 0
    reader = _Reader(tokens, variables)
    value = reader.expression(0, 0)
    if reader.left():
        raise UsageError("arithmetic syntax error")
    return value


def _number(text: str) -> int:
    try:
        octal = len(text) > 1 and text[0] == "0" and text[1] not in "xX"
        return int(text, 8 if octal else 0)
    except ValueError:
        raise UsageError(f"arithmetic syntax error: {text}") from None


class _Reader:
    def __init__(self, tokens: list[str], variables: MutableMapping[str, str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._variables = variables

    def left(self) -> bool:
        return self._at < len(self._tokens)

    def _peek(self) -> str:
        return self._tokens[self._at] if self.left() else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _load(self, name: str) -> int:
        text = self._variables.get(name, "").strip()
        return int(text) if re.fullmatch(r"-?\d+", text) else 0

    def _store(self, name: str, value: int) -> int:
        self._variables[name] = str(value)
        return value

    def expression(self, least: int, depth: int) -> int:
        """Operators that bind at least as tightly as ``least``."""
        left = self._operand(depth)
        while (found := _BINARY.get(self._peek())) is not None and found[0] > least:
            self._take()
            right = self.expression(found[0], depth)
            value = found[1](left, right) % _WRAP
            left = value - _WRAP if value >= _WRAP // 2 else value
        return left

    def _operand(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise UsageError("arithmetic syntax error: too deep")
        token = self._take()
        match token:
            case "(":
                value = self.expression(0, depth + 1)
                if self._take() != ")":
                    raise UsageError("arithmetic syntax error: missing ')'")
                return value
            case "-":
                return -self._operand(depth + 1)
            case "+":
                return self._operand(depth + 1)
            case "!":
                return int(not self._operand(depth + 1))
            case "~":
                return ~self._operand(depth + 1)
            case "++" | "--":
                name = self._take()
                return self._store(name, self._load(name) + (1 if token == "++" else -1))
        if token[:1].isdigit():
            return _number(token)
        if not token.isidentifier():
            raise UsageError("arithmetic syntax error")
        return self._variable(token, depth)

    def _variable(self, name: str, depth: int) -> int:
        after = self._peek()
        if after == "=":
            self._take()
            return self._store(name, self.expression(0, depth + 1))
        if after in ("++", "--"):
            self._take()
            before = self._load(name)
            self._store(name, before + (1 if after == "++" else -1))
            return before
        if after.endswith("=") and (found := _BINARY.get(after[:-1])) and after not in _BINARY:
            self._take()
            return self._store(name, found[1](self._load(name), self.expression(0, depth + 1)))
        return self._load(name)
