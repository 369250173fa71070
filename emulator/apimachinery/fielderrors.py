"""Field errors of validation (apimachinery/pkg/util/validation/field/errors.go)."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from emulator.apimachinery.gotext import quote


class ErrorKind(enum.Enum):
    """(reason in ``status.details.causes``, words in the message)."""

    REQUIRED = ("FieldValueRequired", "Required value")
    INVALID = ("FieldValueInvalid", "Invalid value")
    NOT_FOUND = ("FieldValueNotFound", "Not found")
    DUPLICATE = ("FieldValueDuplicate", "Duplicate value")
    NOT_SUPPORTED = ("FieldValueNotSupported", "Unsupported value")
    FORBIDDEN = ("FieldValueForbidden", "Forbidden")
    TOO_LONG = ("FieldValueTooLong", "Too long")


_SHOWS_VALUE = (
    ErrorKind.INVALID, ErrorKind.NOT_FOUND, ErrorKind.DUPLICATE, ErrorKind.NOT_SUPPORTED
)  # fmt: skip


class Text(str):
    """A bad value already in Go's notation: printed as it is, not quoted."""

    __slots__ = ()


class FieldError(NamedTuple):
    """One finding: where, what kind, the bad value (None: not shown), and why."""

    field: str
    kind: ErrorKind
    value: Any
    detail: str

    def body(self) -> str:
        """The message without the field's path."""
        words = self.kind.value[1]
        shown = self.kind in _SHOWS_VALUE
        if shown:
            words += f": {_show(self.value)}"
        return f"{words}: {self.detail}" if self.detail else words

    def __str__(self) -> str:
        return f"{self.field}: {self.body()}"


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    return str(value)


def required(field: str, detail: str = "") -> FieldError:
    """A value that must be there."""
    return FieldError(field, ErrorKind.REQUIRED, None, detail)


def invalid(field: str, value: Any, detail: str) -> FieldError:
    """A value that is wrong, with the reason."""
    return FieldError(field, ErrorKind.INVALID, value, detail)


def not_found(field: str, value: Any) -> FieldError:
    """A reference to something that is not there."""
    return FieldError(field, ErrorKind.NOT_FOUND, value, "")


def duplicate(field: str, value: Any) -> FieldError:
    """A value that must be unique."""
    return FieldError(field, ErrorKind.DUPLICATE, value, "")


def not_supported(field: str, value: Any, known: tuple[str, ...]) -> FieldError:
    """A value outside an enumeration; ``known`` is printed in its order."""
    listed = ", ".join(quote(k) for k in known)
    return FieldError(field, ErrorKind.NOT_SUPPORTED, value, f"supported values: {listed}")


def forbidden(field: str, detail: str) -> FieldError:
    """A field that may not be set here."""
    return FieldError(field, ErrorKind.FORBIDDEN, None, detail)


def too_long(field: str, limit: int) -> FieldError:
    """A value over its limit."""
    return FieldError(field, ErrorKind.TOO_LONG, None, f"may not be more than {limit} bytes")
