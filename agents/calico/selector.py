"""Calico's label selectors: text to a tree that evaluates labels (pure).

Grammar: ``all()``, ``global()``, ``has(k)``, ``k == 'v'``, ``k != 'v'``, ``k in {'a','b'}``,
``k not in {…}``, ``k contains 'v'``, ``k starts with 'v'``, ``k ends with 'v'``, ``!``, ``&&``,
``||``, parentheses; the empty text is ``all()``.  ``str()`` gives the canonical text, which felix
hashes into the names of its IP sets.
Source: projectcalico/calico libcalico-go/lib/selector.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


class SelectorError(UsageError):
    """A selector that does not parse."""


class Node(Protocol):
    """One node of the tree."""

    def matches(self, labels: Mapping[str, str]) -> bool: ...


def _quoted(value: str) -> str:
    quote = "'" if '"' in value else '"'
    return f"{quote}{value}{quote}"


@dataclass(frozen=True, slots=True)
class All:
    """``all()``."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        return True

    def __str__(self) -> str:
        return "all()"


@dataclass(frozen=True, slots=True)
class Global:
    """``global()``: in a rule's namespaceSelector, what belongs to no namespace."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        return True

    def __str__(self) -> str:
        return "global()"


@dataclass(frozen=True, slots=True)
class Has:
    """``has(label)``."""

    label: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self.label in labels

    def __str__(self) -> str:
        return f"has({self.label})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """``label OP "value"``; ``!=`` is the one that an absent label passes."""

    label: str
    op: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        got = labels.get(self.label)
        if got is None:
            return self.op == "!="
        match self.op:
            case "==":
                return got == self.value
            case "!=":
                return got != self.value
            case "contains":
                return self.value in got
            case "starts with":
                return got.startswith(self.value)
            case _:
                return got.endswith(self.value)

    def __str__(self) -> str:
        return f"{self.label} {self.op} {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    """``label in {…}`` or ``label not in {…}``; ``values`` sorted, without repeats."""

    label: str
    values: tuple[str, ...]
    negated: bool = False

    def matches(self, labels: Mapping[str, str]) -> bool:
        got = labels.get(self.label)
        if got is None:
            return self.negated
        return (got in self.values) != self.negated

    def __str__(self) -> str:
        op = "not in" if self.negated else "in"
        return f"{self.label} {op} {{{', '.join(_quoted(value) for value in self.values)}}}"


@dataclass(frozen=True, slots=True)
class Not:
    """``!operand``."""

    operand: Node

    def matches(self, labels: Mapping[str, str]) -> bool:
        return not self.operand.matches(labels)

    def __str__(self) -> str:
        return f"!{self.operand}"


@dataclass(frozen=True, slots=True)
class And:
    """``(a && b …)``."""

    operands: tuple[Node, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(operand.matches(labels) for operand in self.operands)

    def __str__(self) -> str:
        return f"({' && '.join(str(operand) for operand in self.operands)})"


@dataclass(frozen=True, slots=True)
class Or:
    """``(a || b …)``."""

    operands: tuple[Node, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return any(operand.matches(labels) for operand in self.operands)

    def __str__(self) -> str:
        return f"({' || '.join(str(operand) for operand in self.operands)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector."""

    root: Node

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True if a thing with these labels is selected."""
        return self.root.matches(labels)

    def __str__(self) -> str:
        return str(self.root)

    @property
    def unique_id(self) -> str:
        """``s:`` and the base64url SHA-224 of the canonical text, as felix names IP sets."""
        digest = hashlib.sha224(str(self.root).encode()).digest()
        return "s:" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@functools.lru_cache(maxsize=1024)
def parse_selector(text: str) -> Selector:
    """Parse a selector, or remember it; raises SelectorError with libcalico's text."""
    tokens = _tokenize(text)
    if tokens[0].kind == "end":
        return Selector(All())
    parser = _Parser(tokens)
    root = parser.alternatives()
    if parser.peek().kind != "end":
        rest = " ".join(str(token) for token in parser.rest())
        raise SelectorError(f"unexpected content at end of selector [{rest}]")
    return Selector(root)


# Tokens ------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    kind: str
    value: str = ""

    def __str__(self) -> str:
        return f"{_GO_NAMES.get(self.kind, self.kind)}({self.value})"


_GO_NAMES: Final = {
    "label": "TokLabel",
    "string": "TokStringLiteral",
    "{": "TokLBrace",
    "}": "TokRBrace",
    ",": "TokComma",
    "==": "TokEq",
    "!=": "TokNe",
    "in": "TokIn",
    "!": "TokNot",
    "not in": "TokNotIn",
    "contains": "TokContains",
    "starts with": "TokStartsWith",
    "ends with": "TokEndsWith",
    "all": "TokAll",
    "has": "TokHas",
    "(": "TokLParen",
    ")": "TokRParen",
    "&&": "TokAnd",
    "||": "TokOr",
    "global": "TokGlobal",
    "end": "TokEOF",
}
_BLANKS: Final = " \t"
_LABEL: Final = re.compile(r"[a-zA-Z0-9_./-]{1,512}")
_OPERATOR: Final = re.compile(r"(contains)|(starts)[ \t]*with|(ends)[ \t]*with|(not)[ \t]*in|(in)")
_OPERATOR_KINDS: Final = ("contains", "starts with", "ends with", "not in", "in")
_CALL: Final = re.compile(r"(has|all|global)\(")


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _BLANKS:
            at += 1
        if at == len(text):
            tokens.append(_Token("end"))
            return tokens
        token, at = _token(text, at, tokens[-1] if tokens else None)
        tokens.append(token)


def _token(text: str, at: int, last: _Token | None) -> tuple[_Token, int]:
    char = text[at]
    if char in "(){},":
        return _Token(char), at + 1
    if char in "\"'":
        end = text.find(char, at + 1)
        if end < 0:
            raise SelectorError("unterminated string")
        return _Token("string", text[at + 1 : end]), end + 1
    two = text[at : at + 2]
    if two in ("==", "!=", "&&", "||"):
        return _Token(two), at + 2
    if char == "!":
        return _Token("!"), at + 1
    if char in "=&|":
        raise SelectorError(f"expected {char}{char}")
    if last is not None and last.kind == "label":
        operator = _OPERATOR.match(text, at)
        if operator is None or operator.lastindex is None:
            raise SelectorError(
                f"unexpected characters after label '{last.value}', was expecting an operator"
            )
        return _Token(_OPERATOR_KINDS[operator.lastindex - 1]), operator.end()
    call = _CALL.match(text, at)
    if call is not None:
        return _call(text, call.end(), call.group(1))
    label = _LABEL.match(text, at)
    if label is None:
        raise SelectorError("unexpected characters")
    return _Token("label", label.group()), label.end()


def _call(text: str, at: int, name: str) -> tuple[_Token, int]:
    def blanks(at: int) -> int:
        while at < len(text) and text[at] in _BLANKS:
            at += 1
        return at

    at = blanks(at)
    argument = ""
    if name == "has":
        label = _LABEL.match(text, at)
        if label is None:
            raise SelectorError("no label name in has( expression")
        argument = label.group()
        at = blanks(label.end())
    if not text.startswith(")", at):
        raise SelectorError(f"no closing ')' after {name}(")
    return _Token(name, argument), at + 1


# Grammar -----------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent: ``||`` binds loosest, ``!`` tightest."""

    # Deeper than any written selector, shallow enough for the interpreter's stack.
    MAX_DEPTH: Final = 100

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def peek(self) -> _Token:
        return self._tokens[self._at]

    def rest(self) -> list[_Token]:
        return self._tokens[self._at :]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def alternatives(self) -> Node:
        operands = [self._conjunction()]
        while self.peek().kind == "||":
            self._next()
            operands.append(self._conjunction())
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _conjunction(self) -> Node:
        operands = [self._operation()]
        while self.peek().kind == "&&":
            self._next()
            operands.append(self._operation())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _operation(self) -> Node:
        negated = False
        while self.peek().kind == "!":
            self._next()
            negated = not negated
        node = self._primary()
        return Not(node) if negated else node

    def _primary(self) -> Node:
        token = self._next()
        match token.kind:
            case "has":
                return Has(token.value)
            case "all":
                return All()
            case "global":
                return Global()
            case "label":
                return self._comparison(token.value)
            case "(":
                self._depth += 1
                if self._depth > self.MAX_DEPTH:
                    raise SelectorError(f"more than {self.MAX_DEPTH} nested parentheses")
                node = self.alternatives()
                self._depth -= 1
                if self._next().kind != ")":
                    raise SelectorError("expected )")
                return node
            case _:
                raise SelectorError(f"unexpected token: {token}")

    def _comparison(self, label: str) -> Node:
        if len(self.rest()) < 2:
            raise SelectorError("unexpected end of string looking for op")
        op = self._next()
        if op.kind in ("in", "not in"):
            return In(label, self._set(), negated=op.kind == "not in")
        if op.kind not in ("==", "!=", "contains", "starts with", "ends with"):
            raise SelectorError(f"expected == or != not: {op}")
        value = self._next()
        if value.kind != "string":
            raise SelectorError("expected string")
        return Comparison(label, op.kind, value.value)

    def _set(self) -> tuple[str, ...]:
        if self._next().kind != "{":
            raise SelectorError("expected set literal")
        values: list[str] = []
        while self.peek().kind == "string":
            values.append(self._next().value)
            if self.peek().kind != ",":
                break
            self._next()
        if self._next().kind != "}":
            raise SelectorError("expected }")
        return tuple(sorted(dict.fromkeys(values)))
