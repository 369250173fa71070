"""Query strings, forms, numbers and booleans as Go's net/url and strconv read them."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

Form = dict[str, list[str]]

_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_TRUE: Final = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE: Final = frozenset(("0", "f", "F", "FALSE", "false", "False"))
MAX_UINT64: Final = (1 << 64) - 1


class FormError(ValueError):
    """A form Go would not parse; the text is Go's."""


def text(data: bytes) -> str:
    """Return any bytes as a string that gives them back (surrogateescape)."""
    return data.decode(errors="surrogateescape")


def unescape(data: bytes, *, plus: bool) -> str:
    """Undo percent encoding (and "+" for a space); FormError for a broken escape."""
    at = data.find(b"%")
    while at >= 0:
        if len(data) < at + 3 or data[at + 1] not in _HEX or data[at + 2] not in _HEX:
            raise FormError(f'invalid URL escape "{text(data[at : at + 3])}"')
        at = data.find(b"%", at + 3)
    if plus:
        data = data.replace(b"+", b" ")
    return text(unquote_to_bytes(data))


def parse_form(*sources: bytes) -> Form:
    """Return the fields of a body and a query, in that order.

    FormError names the first fault, as Go does after reading everything.
    """
    form: Form = {}
    fault: FormError | None = None
    for source in sources:
        for field in source.split(b"&"):
            try:
                if b";" in field:
                    raise FormError("invalid semicolon separator in query")
                if field:
                    key, _, value = field.partition(b"=")
                    name = unescape(key, plus=True)
                    form.setdefault(name, []).append(unescape(value, plus=True))
            except FormError as error:
                fault = fault or error
    if fault is not None:
        raise fault
    return form


def parse_uint(value: str) -> int | None:
    """Return an unsigned 64-bit decimal number, None if it is not one (strconv.ParseUint)."""
    if not value.isascii() or not value.isdigit():
        return None
    number = int(value) if len(value.lstrip("0")) <= 20 else MAX_UINT64 + 1
    return number if number <= MAX_UINT64 else None


def parse_bool(value: str) -> bool | None:
    """Return a boolean, None if it is not one (strconv.ParseBool)."""
    if value in _TRUE:
        return True
    return False if value in _FALSE else None


def int64(value: int) -> int:
    """Return a number as Go's int64 arithmetic leaves it after an overflow."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
