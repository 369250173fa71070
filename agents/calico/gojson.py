"""JSON as Go's encoding/json writes it: compact, <, > and & escaped (pure)."""

from __future__ import annotations

import json
from typing import Any, Final

# The deepest of Calico's values have a dozen levels.  Whoever reads or copies one calls itself
# a few times for each level, and Python ends that at a thousand calls.
MAX_DEPTH: Final = 100

# json.Marshal escapes these inside strings; outside strings JSON has none of them.
_ESCAPES = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def dumps(value: Any) -> bytes:
    """Encode; dicts keep their order (a Go struct's), sort what would be a Go map beforehand."""
    text = _ENCODER.encode(value)
    for char, escape in _ESCAPES:
        if char in text:
            text = text.replace(char, escape)
    return text.encode()


def loads(data: bytes) -> Any:
    """Decode; ValueError for what is no JSON or nested too deeply."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            below
            for each in level
            for below in (each.values() if isinstance(each, dict) else each)
            if isinstance(below, dict | list)
        ]
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
