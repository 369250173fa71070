"""Collects the broken fields of one resource, in libcalico's words (pure)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from agents.calico.errors import ErroredField, ValidationError
from agents.calico.net import Cidr, Ip
from agents.calico.selector import SelectorError, parse_selector
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_AS: Final = 0xFFFFFFFF
_DOTTED_AS: Final = re.compile(r"(\d{1,5})\.(\d{1,5})")
_MAC: Final = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


def parse_as(value: object) -> int | None:
    """An AS number of a resource: a number, its text, or high.low; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value <= _MAX_AS else None
    if not isinstance(value, str):
        return None
    dotted = _DOTTED_AS.fullmatch(value)
    if dotted is not None:
        high, low = (int(part) for part in dotted.groups())
        return high << 16 | low if max(high, low) <= 0xFFFF else None
    if value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value) if int(value) <= _MAX_AS else None
    return None


class Fields:
    """Takes values, remembers what is wrong; ``None`` and "" are absent and always right."""

    def __init__(self) -> None:
        self._broken: list[ErroredField] = []

    @property
    def broken(self) -> bool:
        """True if a rule was broken so far."""
        return bool(self._broken)

    def bad(self, name: str, reason: str, value: object) -> None:
        """Note a broken field."""
        self._broken.append(ErroredField(name, reason, value))

    def tag(self, name: str, tag: str, value: object) -> None:
        """Note a field that its Go struct tag refuses."""
        self.bad(name, f"Reason: failed to validate Field: {name} because of Tag: {tag} ", value)

    def finish(self) -> None:
        """Raise ValidationError if anything was wrong."""
        if self._broken:
            raise ValidationError(*self._broken)

    def choice(self, name: str, value: object, allowed: Sequence[str], *, tag: str = "") -> None:
        """One of a few words."""
        if value in (None, ""):
            return
        if value not in allowed:
            if tag:
                self.tag(name, tag, value)
            else:
                self.bad(name, f"must be one of {', '.join(allowed)}", value)

    def boolean(self, name: str, value: object) -> None:
        """True or false."""
        if value is not None and not isinstance(value, bool):
            self.bad(name, "must be true or false", value)

    def integer(self, name: str, value: object, least: int, most: int) -> None:
        """A whole number in a range."""
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.bad(name, f"must be a number from {least} to {most}", value)

    def selector(self, name: str, value: object) -> None:
        """A label selector."""
        if value in (None, ""):
            return
        try:
            if not isinstance(value, str):
                raise SelectorError("not a string")
            parse_selector(value)
        except SelectorError:
            self.tag(name, "selector", value)

    def ip(self, name: str, value: object, *, version: int = 0) -> None:
        """An address; ``version`` 0: of either family."""
        if value in (None, ""):
            return
        try:
            right = version in (0, Ip.parse(str(value)).version)
        except UsageError:
            right = False
        if not right:
            self.tag(name, f"ipv{version}" if version else "ip", value)

    def cidr(self, name: str, value: object, *, version: int = 0, tag: str = "cidr") -> None:
        """A network, host bits allowed, an address alone too."""
        if value in (None, ""):
            return
        try:
            right = version in (0, Cidr.parse(str(value)).version)
        except UsageError:
            right = False
        if not right:
            self.tag(name, tag, value)

    def mac(self, name: str, value: object) -> None:
        """A MAC address."""
        if value and not _MAC.fullmatch(str(value)):
            self.tag(name, "mac", value)

    def as_number(self, name: str, value: object) -> None:
        """An AS number: 0 … 2**32-1, or high.low."""
        if value is None:
            return
        if parse_as(value) is None:
            self.bad(name, "'" + str(value) + "' is not a valid AS number", value)

    def strings(self, name: str, value: object) -> list[str]:
        """The list of strings, empty if it is none (and noted if it is something else)."""
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self.bad(name, "must be a list of strings", value)
            return []
        return value

    def mappings(self, name: str, value: object) -> list[dict[str, Any]]:
        """The list of objects, as ``strings``."""
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self.bad(name, "must be a list of objects", value)
            return []
        return value
