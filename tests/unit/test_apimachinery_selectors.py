"""Label and field selectors, quantities, ages."""

from __future__ import annotations

from fractions import Fraction

import pytest

from emulator.apimachinery import fieldselector, labels, quantity
from emulator.apimachinery.times import age, human_duration
from emulator.errors import UsageError


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("a=b", {"a": "b"}, {"a": "c"}),
        ("a==b,c", {"a": "b", "c": ""}, {"a": "b"}),
        ("a!=b", {}, {"a": "b"}),
        ("a in (x, y)", {"a": "y"}, {}),
        ("a notin (x,y)", {"b": "x"}, {"a": "x"}),
        ("!a", {"b": ""}, {"a": ""}),
        ("a>3,a<5", {"a": "4"}, {"a": "5"}),
        ("a>3", {"a": "4"}, {"a": "3"}),
        ("kubernetes.io/role = node", {"kubernetes.io/role": "node"}, {}),
        ("a=", {"a": ""}, {"a": "b"}),
    ],
)
def test_label_selector_matches(text: str, matching: dict[str, str], other: dict[str, str]) -> None:
    selector = labels.parse(text)
    assert selector.matches(matching)
    assert not selector.matches(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a=b,", "found '', expected: identifier after ','"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("-a", 'unable to parse requirement: <nil>: Invalid value: "-a"'),
        ("a=(b)", "found '(', expected: identifier"),
    ],
)
def test_bad_label_selector_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(labels.SelectorError) as caught:
        labels.parse(text)
    assert str(caught.value).startswith(message)


def test_label_selector_object_and_its_print() -> None:
    selector = {
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}],
    }
    parsed = labels.from_label_selector(selector)
    assert parsed is not None
    assert parsed.matches({"app": "web", "tier": "a"})
    assert not parsed.matches({"app": "web"})
    assert labels.format_label_selector(selector) == "app=web,tier in (a,b)"
    assert labels.from_label_selector(None) is None


def test_field_selector_knows_the_kinds_fields() -> None:
    known = frozenset({"metadata.name", "spec.nodeName"})
    selector = fieldselector.parse("metadata.name=a,spec.nodeName!=n\\,1", known)
    assert selector.matches({"metadata.name": "a", "spec.nodeName": "n"})
    assert not selector.matches({"metadata.name": "a", "spec.nodeName": "n,1"})
    with pytest.raises(labels.SelectorError, match=r"field label not supported: spec\.foo"):
        fieldselector.parse("spec.foo=1", known)
    with pytest.raises(labels.SelectorError, match="invalid selector: 'x'"):
        fieldselector.parse("x", known)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", Fraction(1, 10)),
        ("1Ki", 1024),
        ("1.5", Fraction(3, 2)),
        ("2e3", 2000),
        ("1e-3", Fraction(1, 1000)),
        ("-1", -1),
    ],
)
def test_quantities(text: str, value: Fraction | int) -> None:
    assert quantity.parse(text) == value


@pytest.mark.parametrize("text", ["", "1Xi", "abc", "1 Gi", "1mi"])
def test_bad_quantities(text: str) -> None:
    with pytest.raises(UsageError, match="quantities must match"):
        quantity.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (599, "9m59s"),
        (600, "10m"),
        (10799, "179m"),
        (10800, "3h"),
        (11000, "3h3m"),
        (28800, "8h"),
        (172799, "47h"),
        (172800, "2d"),
        (180000, "2d2h"),
        (691200, "8d"),
        (63072000, "2y"),
        (70000000, "2y80d"),
        (252288000, "8y"),
    ],
)
def test_human_duration(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


def test_age_of_nothing_is_unknown() -> None:
    assert age(None, 0) == "<unknown>"
    assert age("1970-01-01T00:00:10Z", 100) == "90s"
