"""JSON as Go reads it, down to the texts of its errors.

``Scanner`` cuts one value out of a buffer that may still grow (a request body holds several for a
streaming call) and tells its syntax errors as encoding/json does; ``parse`` gives the value as a
tree.  Numbers stay text, for Go's messages quote them.

Source: Go's encoding/json scanner.go and stream.go.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from emulator.errors import PodwireError

# Twice what a protobuf parser follows; Go would go on to 10,000, where our stack ends before.
MAX_DEPTH = 200
# Values in one text.  Go has no limit and takes a fifth of the time; a request that is not made of
# bytes written as lists of numbers has some thousands.
MAX_VALUES = 100_000
_SPACE = b" \t\r\n"
_SPACES = re.compile(rb"[ \t\r\n]*")
_ORDINARY = re.compile(rb'[^"\\\x00-\x1f]*')
_DIGITS = b"0123456789"
_HEX = b"0123456789abcdefABCDEF"
_LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_VALUE = "looking for beginning of value"
_KEY = "looking for beginning of object key string"


class GoJsonError(PodwireError):
    """Input Go's decoder refuses; the text is Go's."""


class UnfinishedError(Exception):
    """The buffer ends within a value."""


class Number(NamedTuple):
    """A number as written."""

    text: str


Value = bool | str | Number | list["Value"] | dict[str, "Value"] | None


def quoted(char: int) -> str:
    """Return a byte as Go's messages show it."""
    if char == ord("'"):
        return r"'\''"
    if char == ord('"'):
        return "'\"'"
    text = chr(char)
    escapes = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}
    if char in escapes:
        return f"'{escapes[char]}'"
    if char == ord("\\"):
        return r"'\\'"
    if char < 0x20 or char == 0x7F:
        return f"'\\x{char:02x}'"
    if not text.isprintable():
        return f"'\\u{char:04x}'"
    return f"'{text}'"


class Scanner:
    """Finds the end of one JSON value; one pass, nothing built."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at
        self._depth = 0
        # How many values were met, those inside others included.
        self.values = 0

    def value(self) -> tuple[int, int] | None:
        """Return (start, end) of the next value, None if only space is left.

        Raises UnfinishedError, or GoJsonError for what can never become a value.
        """
        self._skip()
        if self._at == len(self._data):
            return None
        start = self._at
        self._value()
        return start, self._at

    def _skip(self) -> None:
        found = _SPACES.match(self._data, self._at)
        assert found is not None, "it matches the empty string"
        self._at = found.end()

    def _peek(self) -> int:
        if self._at >= len(self._data):
            raise UnfinishedError
        return self._data[self._at]

    def _bad(self, context: str) -> GoJsonError:
        return GoJsonError(f"invalid character {quoted(self._data[self._at])} {context}")

    def _value(self) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise GoJsonError(f"more than {MAX_VALUES} values")
        self._skip()
        char = self._peek()
        if char == ord('"'):
            self._string()
        elif char in b"{[":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise GoJsonError("exceeded max depth")
            if char == ord("{"):
                self._object()
            else:
                self._array()
            self._depth -= 1
        elif char == ord("-") or char in _DIGITS:
            self._number()
        elif char in _LITERALS:
            self._literal(_LITERALS[char])
        else:
            raise self._bad(_VALUE)

    def _object(self) -> None:
        self._at += 1
        self._skip()
        if self._peek() == ord("}"):
            self._at += 1
            return
        while True:
            self._skip()
            if self._peek() != ord('"'):
                raise self._bad(_KEY)
            self._string()
            self._skip()
            if self._peek() != ord(":"):
                raise self._bad("after object key")
            self._at += 1
            self._value()
            if self._ends(ord("}"), "after object key:value pair"):
                return

    def _array(self) -> None:
        self._at += 1
        self._skip()
        if self._peek() == ord("]"):
            self._at += 1
            return
        while True:
            self._value()
            if self._ends(ord("]"), "after array element"):
                return

    def _ends(self, end: int, context: str) -> bool:
        self._skip()
        char = self._peek()
        if char not in (end, ord(",")):
            raise self._bad(context)
        self._at += 1
        return char == end

    def _string(self) -> None:
        self._at += 1
        while True:
            ordinary = _ORDINARY.match(self._data, self._at)
            assert ordinary is not None, "it matches the empty string"
            self._at = ordinary.end()
            char = self._peek()
            if char == ord('"'):
                self._at += 1
                return
            if char < 0x20:
                raise self._bad("in string literal")
            self._at += 1
            if char == ord("\\"):
                escape = self._peek()
                if escape not in b'bfnrt\\/"u':
                    raise self._bad("in string escape code")
                self._at += 1
                for _ in range(4 if escape == ord("u") else 0):
                    if self._peek() not in _HEX:
                        raise self._bad("in \\u hexadecimal character escape")
                    self._at += 1

    def _number(self) -> None:
        if self._data[self._at] == ord("-"):
            self._at += 1
            if self._peek() not in _DIGITS:
                raise self._bad("in numeric literal")
        if self._data[self._at] == ord("0"):
            self._at += 1
        else:
            self._digits()
        if self._next_is(b"."):
            if self._peek() not in _DIGITS:
                raise self._bad("after decimal point in numeric literal")
            self._digits()
        if self._next_is(b"eE"):
            if self._peek() in b"+-":
                self._at += 1
            if self._peek() not in _DIGITS:
                raise self._bad("in exponent of numeric literal")
            self._digits()

    def _digits(self) -> None:
        while self._at < len(self._data) and self._data[self._at] in _DIGITS:
            self._at += 1

    def _next_is(self, chars: bytes) -> bool:
        found = self._at < len(self._data) and self._data[self._at] in chars
        self._at += found
        return found

    def _literal(self, word: bytes) -> None:
        self._at += 1
        for expected in word[1:]:
            if self._peek() != expected:
                raise self._bad(f"in literal {word.decode()} (expecting {quoted(expected)})")
            self._at += 1


def tree(text: bytes) -> Value:
    """Return a value whose syntax has been checked; the last of equal keys counts, as in Go."""
    value: Value = json.loads(
        text.decode("utf-8", "replace"), parse_int=Number, parse_float=Number, strict=False
    )
    return value


def whole(text: bytes) -> Value:
    """Return the one value a text holds, as Go's Unmarshal does; GoJsonError for anything else."""
    scanner = Scanner(text)
    try:
        span = scanner.value()
    except UnfinishedError:
        span = None
    if span is None:
        raise GoJsonError("unexpected end of JSON input")
    rest = text[span[1] :].lstrip(_SPACE)
    if rest:
        raise GoJsonError(f"invalid character {quoted(rest[0])} after top-level value")
    return tree(text[span[0] : span[1]])


def dumps(value: object) -> str:
    """Return a value as Go's Marshal writes it: no spaces, HTML's characters escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text
