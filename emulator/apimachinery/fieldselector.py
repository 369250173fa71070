"""Field selectors: ``a.b=c,d!=e`` over a kind's own fields.

Source: apimachinery/pkg/fields/selector.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from emulator.apimachinery.labels import SelectorError

if TYPE_CHECKING:
    from collections.abc import Mapping


class FieldTerm(NamedTuple):
    """One term."""

    field: str
    equal: bool
    value: str


class FieldSelector(NamedTuple):
    """All terms must hold."""

    terms: tuple[FieldTerm, ...]

    def matches(self, fields: Mapping[str, str]) -> bool:
        """Whether an object with these selectable fields is selected."""
        return all((fields.get(t.field, "") == t.value) == t.equal for t in self.terms)


def parse(text: str, known: Mapping[str, str] | frozenset[str]) -> FieldSelector:
    """Parse; SelectorError for bad syntax or a field outside ``known``."""
    terms: list[FieldTerm] = []
    for part in _split(text):
        if not part:
            continue
        term = _term(part)
        if term.field not in known:
            raise SelectorError(f"field label not supported: {term.field}")
        terms.append(term)
    return FieldSelector(tuple(terms))


def _split(text: str) -> list[str]:
    parts: list[str] = []
    current = ""
    escaped = False
    for char in text:
        if escaped:
            current += "\\" + char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == ",":
            parts.append(current)
            current = ""
        else:
            current += char
    if escaped:
        raise SelectorError(f"invalid field selector: {text!r}; ends with an escape")
    parts.append(current)
    return parts


def _term(part: str) -> FieldTerm:
    for at in range(len(part)):
        for sign, equal in (("!=", False), ("==", True), ("=", True)):
            if part.startswith(sign, at):
                value = part[at + len(sign) :]
                for mark in ("\\\\", "\\,", "\\="):
                    value = value.replace(mark, mark[1])
                return FieldTerm(part[:at], equal, value)
    raise SelectorError(f"invalid selector: '{part}'; can't understand '{part}'")
