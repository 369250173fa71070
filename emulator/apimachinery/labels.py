"""Label selectors: the query form (``a=b,c in (x,y),!d``) and the object form.

Source: apimachinery/pkg/labels/selector.go and pkg/apis/meta/v1/helpers.go.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.apimachinery.names import label_value, qualified_name
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN = re.compile(r"\s*(?:(==|!=|=|!|\(|\)|,|<|>)|([^\s=!(),<>]+))")


class SelectorError(UsageError):
    """A selector that does not parse; an API server answers 400 with this text."""


class Requirement(NamedTuple):
    """One term: ``operator`` is ``in notin = != exists ! gt lt``."""

    key: str
    operator: str
    values: tuple[str, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels satisfies the term."""
        value = labels.get(self.key)
        match self.operator:
            case "=" | "in":
                return value is not None and value in self.values
            case "!=" | "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "!":
                return value is None
            case _:
                return value is not None and _compare(value, self.operator, self.values[0])

    def __str__(self) -> str:
        match self.operator:
            case "exists":
                return self.key
            case "!":
                return f"!{self.key}"
            case "=" | "!=":
                return f"{self.key}{self.operator}{self.values[0]}"
            case "gt":
                return f"{self.key}>{self.values[0]}"
            case "lt":
                return f"{self.key}<{self.values[0]}"
            case _:
                return f"{self.key} {self.operator} ({','.join(sorted(self.values))})"


def _compare(value: str, operator: str, bound: str) -> bool:
    try:
        left, right = int(value), int(bound)
    except ValueError:
        return False
    return left > right if operator == "gt" else left < right


class Selector(NamedTuple):
    """All requirements must hold; no requirement matches everything."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Whether an object with these labels is selected."""
        have: Mapping[str, str] = labels or {}
        return all(r.matches(have) for r in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(r) for r in self.requirements)


def parse(text: str) -> Selector:
    """Parse the query form; SelectorError with the real server's words."""
    tokens = _tokenize(text)
    found: list[Requirement] = []
    at = 0
    while at < len(tokens):
        requirement, at = _requirement(tokens, at)
        found.append(requirement)
        if at == len(tokens):
            break
        if tokens[at] != ",":
            raise SelectorError(f"found '{tokens[at]}', expected: ',' or 'end of string'")
        at += 1
        if at == len(tokens):
            raise SelectorError("found '', expected: identifier after ','")
    return Selector(tuple(sorted(found)))


def _tokenize(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise SelectorError(f"unable to parse requirement: unexpected {text[at:]!r}")
        tokens.append(match.group(1) or match.group(2))
        at = match.end()
    return tokens


def _requirement(tokens: list[str], at: int) -> tuple[Requirement, int]:
    def token(i: int) -> str:
        return tokens[i] if i < len(tokens) else ""

    if token(at) == "!":
        key = _key(token(at + 1))
        return Requirement(key, "!", ()), at + 2
    key = _key(token(at))
    operator = token(at + 1)
    if operator in ("", ","):
        return Requirement(key, "exists", ()), at + 1
    if operator in ("=", "==", "!=", "<", ">"):
        value = token(at + 2)
        if value in ("", ","):
            value, at = "", at - 1
        elif value in ("(", ")", "=", "==", "!=", "!", "<", ">"):
            raise SelectorError(f"found '{value}', expected: identifier")
        operator = {"==": "=", "<": "lt", ">": "gt"}.get(operator, operator)
        if operator in ("lt", "gt") and not re.fullmatch(r"[-+]?\d+", value):
            raise SelectorError(
                f'unable to parse requirement: values[0][{key}]: Invalid value: "{value}": '
                "for 'Gt', 'Lt' operators, the value must be an integer"
            )
        return Requirement(key, operator, (_value(key, value),)), at + 3
    if operator in ("in", "notin"):
        return _set_requirement(tokens, at, key, operator)
    raise SelectorError(
        f"unable to parse requirement: found '{operator}', expected: in, notin, =, ==, !=, gt, lt"
    )


def _set_requirement(
    tokens: list[str], at: int, key: str, operator: str
) -> tuple[Requirement, int]:
    if tokens[at + 2 : at + 3] != ["("]:
        found = tokens[at + 2] if at + 2 < len(tokens) else ""
        raise SelectorError(f"unable to parse requirement: found '{found}' expected: '('")
    try:
        end = tokens.index(")", at + 3)
    except ValueError:
        raise SelectorError("unable to parse requirement: found '', expected: ',' or ')'") from None
    values: list[str] = []
    wanted = True
    for token in tokens[at + 3 : end]:
        if token == ",":
            if wanted:
                values.append("")
            wanted = True
        elif wanted:
            values.append(_value(key, token))
            wanted = False
        else:
            raise SelectorError(
                f"unable to parse requirement: found '{token}', expected: ',' or ')'"
            )
    if wanted:
        values.append("")
    return Requirement(key, operator, tuple(sorted(set(values)))), end + 1


def _key(text: str) -> str:
    if text in ("", ",", "(", ")", "=", "==", "!=", "!", "<", ">"):
        raise SelectorError(f"unable to parse requirement: found '{text}', expected: identifier")
    problems = qualified_name(text)
    if problems:
        raise SelectorError(
            f'unable to parse requirement: <nil>: Invalid value: "{text}": {"; ".join(problems)}'
        )
    return text


def _value(key: str, text: str) -> str:
    problems = label_value(text)
    if problems:
        raise SelectorError(
            f'unable to parse requirement: values[0][{key}]: Invalid value: "{text}": '
            f"{'; '.join(problems)}"
        )
    return text


_OBJECT_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


def from_label_selector(selector: Any) -> Selector | None:
    """The selector of a ``LabelSelector`` object; None (matches nothing) for a null one.

    Raises SelectorError for an unknown operator.
    """
    if not isinstance(selector, dict):
        return None
    found = [
        Requirement(str(k), "in", (str(v),)) for k, v in (selector.get("matchLabels") or {}).items()
    ]
    for term in selector.get("matchExpressions") or []:
        operator = _OBJECT_OPERATORS.get(term.get("operator", ""))
        if operator is None:
            raise SelectorError(
                f'"{term.get("operator", "")}" is not a valid label selector operator'
            )
        values = tuple(sorted(str(v) for v in term.get("values") or []))
        found.append(Requirement(str(term.get("key", "")), operator, values))
    return Selector(tuple(sorted(found)))


def from_map(labels: Mapping[str, str] | None) -> Selector:
    """The selector of a plain map (services, replication controllers)."""
    return Selector(tuple(Requirement(k, "=", (v,)) for k, v in sorted((labels or {}).items())))


def format_label_selector(selector: Any) -> str:
    """As tables print a ``LabelSelector`` (metav1.FormatLabelSelector)."""
    parsed = from_label_selector(selector)
    if parsed is None or not parsed.requirements:
        return "<none>"
    return ",".join(
        f"{r.key}={r.values[0]}" if r.operator == "in" and len(r.values) == 1 else str(r)
        for r in parsed.requirements
    )


def format_labels(labels: Any) -> str:
    """As tables print a label map: ``a=b,c=d`` sorted, ``<none>`` when empty."""
    if not labels:
        return "<none>"
    return ",".join(f"{k}={labels[k]}" for k in sorted(labels))
