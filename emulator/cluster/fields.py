"""Reading a mapping of the cluster file field by field, with one clear line for what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from emulator.addr import Prefix, format_ip, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Fields:
    """One mapping; its readers raise UsageError with the field's path.

    ``done()`` complains about fields nobody asked for.
    """

    def __init__(self, value: object, where: str) -> None:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected a mapping, found {kind_of(value)}")
        self._value: dict[Any, Any] = value
        self._where = where
        self._known: list[str] = []

    def path(self, name: str) -> str:
        """The field's place in the file, as people write it."""
        return f"{self._where}.{name}" if self._where != "cluster file" else name

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def get(self, name: str, default: Any) -> Any:
        """The value, ``default`` if absent or null."""
        self._known.append(name)
        value = self._value.get(name)
        return default if value is None else value

    def text(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if not isinstance(value, str):
            raise UsageError(f"{self.path(name)}: expected text, found {kind_of(value)}")
        return value

    def choice(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """One of ``known``, letter by letter."""
        value = self.text(name, default)
        if value not in known:
            raise UsageError(f"{self.path(name)}: {value!r} is not one of {', '.join(known)}")
        return value

    def truth(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise UsageError(f"{self.path(name)}: expected true or false, found {kind_of(value)}")
        return value

    def number(self, name: str, default: int, low: int = -(1 << 63), high: int = 1 << 63) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{self.path(name)}: expected a number, found {kind_of(value)}")
        if not low <= value <= high:
            raise UsageError(f"{self.path(name)}: {value} must be from {low} to {high}")
        return value

    def prefix(self, name: str, default: str) -> Prefix:
        return self._parsed(name, Prefix.parse, self.text(name, default))

    def ip(self, name: str, default: int) -> int:
        return self._parsed(name, parse_ip, self.text(name, format_ip(default)))

    def interface(self, name: str, default_ip: int, default_length: int) -> tuple[int, int]:
        """An address that may bring its network's length: ``10.0.0.7`` or ``10.0.0.7/20``."""
        address, slash, length = self.text(name, format_ip(default_ip)).partition("/")
        ip = self._parsed(name, parse_ip, address)
        if not slash:
            return ip, default_length
        if not (length.isascii() and length.isdigit() and 1 <= int(length) <= 30):
            raise UsageError(f"{self.path(name)}: /{length} is not a length from /1 to /30")
        return ip, int(length)

    def _parsed(self, name: str, parse: Callable[[str], T], text: str) -> T:
        try:
            return parse(text)
        except UsageError as error:
            raise UsageError(f"{self.path(name)}: {error}") from None

    def texts(self, name: str) -> dict[str, str]:
        """A mapping from text to text, empty if absent."""
        value = self.get(name, {})
        if not isinstance(value, dict) or not all(
            isinstance(part, str) for pair in value.items() for part in pair
        ):
            raise UsageError(f"{self.path(name)}: expected a mapping of text to text")
        return dict(value)

    def done(self) -> None:
        """Raise UsageError if the mapping has a field nobody asked for."""
        for name in self._value:
            if name not in self._known:
                raise UsageError(
                    f"{self.path(str(name))}: unknown field (known: {', '.join(self._known)})"
                )


def kind_of(value: object) -> str:
    """What a value of the file is, in words."""
    return {dict: "a mapping", list: "a list", str: "text", bool: "a truth value"}.get(
        type(value), f"{value!r}"
    )
