"""Calico's selectors: what they match, how they print, what they refuse."""

from __future__ import annotations

import base64
import hashlib

import pytest

from agents.calico.selector import SelectorError, parse_selector

LABELS = {"role": "db", "env": "prod-eu", "projectcalico.org/namespace": "default", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("all()", True),
        ("all( )", True),
        ("global()", True),
        ("!all()", False),
        ("has(role)", True),
        ("has( role )", True),
        ("!has(role)", False),
        ("!!has(role)", True),
        ("has(missing)", False),
        ("role == 'db'", True),
        ('role=="db"', True),
        ("role == 'web'", False),
        ("missing == 'db'", False),
        ("role != 'web'", True),
        ("missing != 'web'", True),
        ("empty == ''", True),
        ("role in {'db', 'web'}", True),
        ("role in {'web'}", False),
        ("role in {}", False),
        ("missing not in {'db'}", True),
        ("role not in {'db'}", False),
        ("env starts with 'prod'", True),
        ("env ends with 'eu'", True),
        ("env contains 'd-e'", True),
        ("missing contains ''", False),
        ("projectcalico.org/namespace == 'default'", True),
        ("role == 'web' || env starts with 'prod'", True),
        ("role == 'web' && has(env) || has(role)", True),
        ("role == 'web' && (has(env) || has(role))", False),
        ("!(role == 'db' && has(env))", False),
        # A label called like an operator or a call without its parenthesis.
        ("has", None),
        ("in == 'x'", False),
        ("contains contains 'x'", False),
        ("all == 'x'", False),
    ],
)
def test_selectors_match_labels(text: str, selected: bool | None) -> None:
    if selected is None:
        with pytest.raises(SelectorError):
            parse_selector(text)
    else:
        assert parse_selector(text).matches(LABELS) is selected


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", "all()"),
        ("  role=='db'", 'role == "db"'),
        ("a == '\"'", "a == '\"'"),
        ("a in {'c','b','c'}", 'a in {"b", "c"}'),
        ("a not  in{'c'}", 'a not in {"c"}'),
        ("a startswith 'x'", 'a starts with "x"'),
        ("a=='b'&&c=='d'||!has(e)", '((a == "b" && c == "d") || !has(e))'),
        ("(((a == 'b')))", 'a == "b"'),
        ("!!a == 'b'", 'a == "b"'),
    ],
)
def test_the_canonical_text_is_libcalicos_and_parses_to_itself(text: str, canonical: str) -> None:
    assert str(parse_selector(text)) == canonical
    assert str(parse_selector(canonical)) == canonical


def test_the_unique_id_is_the_sha224_of_the_canonical_text() -> None:
    digest = hashlib.sha224(b'role == "db"').digest()
    wanted = "s:" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert parse_selector("role == 'db'").unique_id == wanted


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("role", "unexpected end of string looking for op"),
        ("role = 'db'", "expected =="),
        ("role == db", "expected string"),
        ("role == 'db", "unterminated string"),
        ("role is 'db'", "unexpected characters after label 'role', was expecting an operator"),
        ("role in 'db'", "expected set literal"),
        ("role in {'db'", "expected }"),
        ("(has(a)", "expected )"),
        ("has(a))", "unexpected content at end of selector [TokRParen() TokEOF()]"),
        ("has()", "no label name in has( expression"),
        ("has(a", "no closing ')' after has("),
        ("all(x)", "no closing ')' after all("),
        ("has(a) & has(b)", "expected &&"),
        ("has(a) &&", "unexpected token: TokEOF()"),
        ("%", "unexpected characters"),
        ("(" * 500 + "all()" + ")" * 500, "more than 100 nested parentheses"),
    ],
)
def test_what_does_not_parse_says_why(text: str, error: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse_selector(text)
    assert str(caught.value) == error
